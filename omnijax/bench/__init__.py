"""Benchmarks: our train step against a plain PyTorch implementation of the same model."""
