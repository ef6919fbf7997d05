"""Benchmarks: our train step against a plain PyTorch implementation of the same model."""

import resource


def host_memory() -> float:
  """The most bytes that this process has had in memory."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
