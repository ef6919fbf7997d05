"""Attention, chosen once per backend behind one function."""
