"""`python -m launch ENGINE ...`: starts a job of one or more processes."""

import sys

from launch import jobset, local, ray, slurm, tpu_vm, xpk

ENGINES = {"local": local, "slurm": slurm, "ray": ray, "jobset": jobset, "xpk": xpk,
           "tpu-vm": tpu_vm}


def main() -> int:
  name = sys.argv[1] if len(sys.argv) > 1 else "--help"
  if name not in ENGINES:
    told = "\n".join(f"  {k:<8}{(v.__doc__ or '').splitlines()[0]}" for k, v in ENGINES.items())
    print(f"{__doc__}\n\nEngines (`python -m launch ENGINE --help`):\n{told}", file=sys.stderr)
    return 0 if name in ("-h", "--help") else 2
  return ENGINES[name].main(sys.argv[2:])


if __name__ == "__main__":
  sys.exit(main())
