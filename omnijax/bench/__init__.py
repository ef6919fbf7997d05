"""Benchmarks: a train step, the path of data, dialogues, each beside others' way to do the same."""

import os
import platform
import resource
import subprocess
import sys
from pathlib import Path


def host_memory() -> float:
  """The most bytes that this process has had in memory."""
  unit = 1 if sys.platform == "darwin" else 1024
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def cores() -> int:
  """How many of the machine's cores this process may use."""
  return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_name() -> str:
  """What the CPU calls itself, and how many of its cores this process may use."""
  about = Path("/proc/cpuinfo")  # Linux
  lines = about.read_text().splitlines() if about.exists() else []
  names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
  return f"{names[0] if names else platform.processor() or 'CPU'}, {cores()} cores"


def commit() -> str | None:
  """The commit of this code, with a + where it was changed; None where it is no checkout."""
  root = Path(__file__).parents[2]
  if not (root / ".git").exists():
    return None
  git = lambda *what: subprocess.run(["git", "-C", str(root), *what], capture_output=True,
                                     text=True, check=True).stdout.strip()
  changed = git("status", "--porcelain", "--untracked-files=no")
  return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
