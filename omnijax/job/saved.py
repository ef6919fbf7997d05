"""Which steps a run has saved: what those look at who start it again, without jax."""

from pathlib import Path


def steps(checkpoints: Path) -> list[int]:
  """Of the whole checkpoints in a run's `checkpoints` directory, in order."""
  return sorted(int(p.name) for p in checkpoints.glob("*") if p.name.isdigit())


def newest(run_dir: Path) -> int:
  """The last of them; -1 without one."""
  return max(steps(run_dir / "checkpoints"), default=-1)
