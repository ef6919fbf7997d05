"""Sweeps: many runs of an experiment, run, begun again and compared as one thing."""
