"""Generation: prompts to streams to text, pictures and sound. Read step.py first."""
