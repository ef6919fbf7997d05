"""Evaluations, one file for each family."""
