"""Compiling a step for devices that aren't here, and reading cost off the compiled program."""
