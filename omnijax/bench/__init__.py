"""Benchmarks: our train step against a plain PyTorch implementation of the same model."""

import os
import resource
import sys


def host_memory() -> float:
  """The most bytes that this process has had in memory."""
  unit = 1 if sys.platform == "darwin" else 1024
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def cores() -> int:
  """How many of the machine's cores this process may use."""
  return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
