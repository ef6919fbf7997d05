"""Training: state, loss, step, optimizer, metrics and the loop. Read step.py first."""
