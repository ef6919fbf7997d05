"""Plans of the large experiments: `python -m experiments.plans [NAME ...]`, with the extra `tpu`.

Compiles each for the slices it is meant for, minutes apiece on two cores, and writes what
`omnijax plan --json` says to experiments/results/plans/NAME.json, with the commit and the versions
of jax and of the compiler.
"""

import importlib.metadata
import json
import pathlib
import shlex
import subprocess
import sys

HERE = pathlib.Path(__file__).parent
PLANS = {
  "omni_8b.v5p_4x4x4": "omni_8b.py --topology v5p:4x4x4",
  "omni_8b.v5p_4x4x4_int8": "omni_8b.py --topology v5p:4x4x4 --model.matmuls int8",
  "omni_8b.v6e_16x16": "omni_8b.py --topology v6e:16x16 --mesh.fsdp 256 --data.rows 256",
  "omni_8b.v5e_16x16_4_slices": "omni_8b.py --topology v5e:16x16 --slices 4 --mesh.data 4 "
                                "--mesh.fsdp 256 --data.rows 1024 --model.remat full",
  "omni_70b.v5p_8x8x16": "omni_70b.py --topology v5p:8x8x16",
  "omni_8b.v5p_4x4x4_131072_positions": "omni_8b.py --topology v5p:4x4x4 --mesh.fsdp 4 "
                                        "--mesh.context 16 --data.rows 8 --data.positions 131072 "
                                        "--data.frames 20480",
  # The shapes of llama3.1-8b in MaxText: its vocabulary, hardly any speech.
  "omni_8b.v5p_4x4x4_text": "omni_8b.py --topology v5p:4x4x4 --tokenizers.text-size 127872 "
                            "--tokenizers.image-size 128 --data.frames 16",
  "omni_mini.v5e_4x4": "omni_mini.py --topology v5e:4x4",
  "omni_1b.v5e_8x8": "omni_1b.py --topology v5e:8x8",
  "omni_moe.v5p_8x8x4": "omni_moe.py --topology v5p:8x8x4",
}


def main() -> None:
  out = HERE / "results" / "plans"
  out.mkdir(parents=True, exist_ok=True)
  for name in sys.argv[1:] or PLANS:
    path = out / f"{name}.json"
    arguments = shlex.split(PLANS[name])
    arguments[0] = str(HERE / arguments[0])
    subprocess.run([sys.executable, "-m", "omnijax.cli", "plan", *arguments, "--json", str(path)],
                   check=True, cwd=HERE.parent)
    annotate(path, name)


def annotate(path: pathlib.Path, name: str) -> None:
  """Adds to a file of figures what they were made by."""
  commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True,
                          check=True, cwd=HERE).stdout.strip()
  made = {"command": f"omnijax plan experiments/{PLANS[name]}", "commit": commit,
          **{p: importlib.metadata.version(p) for p in ("jax", "libtpu")}}
  path.write_text(json.dumps(made | json.loads(path.read_text()), indent=1) + "\n", "utf-8")


if __name__ == "__main__":
  main()
