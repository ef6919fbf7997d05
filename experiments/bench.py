"""Speed of the train step: `python -m experiments.bench [PART ...]`, with the extra `bench`.

quickstart: the quickstart's step against its twin in PyTorch, in turns. Minutes on two cores.
sweep: MFU of a small model by mix, length of rows and length of documents, as curves, on whatever
there is. A quarter of an hour on two cores.
gpu: `omni_1b` at 4,096 packed positions in bfloat16 on one H200, against its twin and alone. Ten
minutes, three of them PyTorch's compiler. `small` is the pair at a size for two cores.

Each run of `omnijax bench step` leaves its figures in experiments/results/bench/NAME.json, with the
command, the commit and the versions.
"""

import importlib.metadata
import json
import pathlib
import shlex
import subprocess
import sys
from typing import Any

from omnijax.evals import charts
from omnijax.evals.report_style import page

HERE = pathlib.Path(__file__).parent
OUT = HERE / "results" / "bench"
# Two layers of omni_mini's kind. Blocks of few steps: these are dear on a CPU.
_TINY = ("omni_mini.py --mesh.fsdp 1 --tokenizers.text-size 1024 --tokenizers.image-size 1024 "
         "--model.layers 2 --model.dim 256 --model.heads 4 --model.kv-heads 2 --model.head-dim 64 "
         "--model.mlp 768 --model.depth-layers 1 --model.depth-dim 128 --model.depth-heads 2 "
         "--model.depth-mlp 256 --model.dtype float32 --repeats 3 --steps 2")
_ROWS = "--data.rows {} --data.positions {} --data.frames {}"
# Of equal positions a step; frames for the largest share of speech.
_SHAPES = {256: (16, 128), 512: (8, 256), 1024: (4, 512), 2048: (2, 1024)}
_GPU = ("omni_1b.py --mesh.fsdp 1 --data.positions 4096 --data.frames 640 --data.documents 15 "
        "--model.attention-documents 15 --document 1024 --steps 5")


def _tiny(positions: int, more: str) -> str:
  rows, frames = _SHAPES[positions]
  return f"{_TINY} {_ROWS.format(rows, positions, frames)} {more}"


MIXES = (0, 10, 20, 30, 40)  # % of speech; the rest is text and images, two to one
LENGTHS = tuple(_SHAPES)
DOCUMENTS = (32, 64, 128, 256, 512, 1024)
SWEEP = {
  **{f"mix_{m}": _tiny(1024, f"--document 256 --mix {2 * (100 - m)} {100 - m} {3 * m}")
     for m in MIXES},
  **{f"positions_{s}": _tiny(s, f"--document {s // 4}") for s in LENGTHS},
  **{f"document_{d}": _tiny(1024, f"--document {d}") for d in DOCUMENTS},
}
PARTS = {
  "quickstart": {"quickstart": "quickstart.py --against torch"},
  "sweep": SWEEP,
  # All layers compiled as one: no copies of activations to and from stacks of them. Both sides of
  # the pair lie in the GPU's memory together, 56 and 58 GiB.
  "gpu": {
    "omni_1b_h200_pair": f"{_GPU} --model.unroll 20 --data.rows 4 --model.remat none "
                         "--against torch",
    "omni_1b_h200": f"{_GPU} --model.unroll 20 --data.rows 4",
    "omni_1b_h200_8_rows": f"{_GPU} --model.unroll 20 --data.rows 8 --model.remat none",
  },
  "small": {"omni_1b_small": f"{_GPU} --against torch --data.rows 1 --data.positions 512 "
            "--data.frames 80 --document 128 --model.layers 2 --model.dim 256 --model.heads 4 "
            "--model.kv-heads 2 --model.head-dim 64 --model.mlp 768 --model.depth-layers 1 "
            "--model.depth-dim 128 --model.depth-heads 2 --model.depth-mlp 256 "
            "--tokenizers.text-size 1024 --tokenizers.image-size 1024 --repeats 3"},
}


def main() -> None:
  OUT.mkdir(parents=True, exist_ok=True)
  for part in sys.argv[1:] or ("quickstart", "sweep"):
    if part not in PARTS:
      raise SystemExit(f"there is no part {part!r}; wanted some of {', '.join(PARTS)}.")
    for name, command in PARTS[part].items():
      measure(name, command)
    if part == "sweep":
      draw()


def measure(name: str, command: str) -> None:
  """Runs one benchmark and adds to its figures what they were made by."""
  path = OUT / f"{name}.json"
  experiment, *arguments = shlex.split(command)
  subprocess.run([sys.executable, "-m", "omnijax.cli", "bench", "step", str(HERE / experiment),
                  *arguments, "--json", str(path)], check=True, cwd=HERE.parent)
  commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True,
                          check=True, cwd=HERE).stdout.strip()
  made = {"command": f"omnijax bench step experiments/{command}", "commit": commit,
          "jaxlib": importlib.metadata.version("jaxlib")}
  path.write_text(json.dumps(made | json.loads(path.read_text("utf-8")), indent=1) + "\n", "utf-8")


def draw() -> None:
  """The sweep as a page with a chart for each of its three directions."""
  shown = []
  read = lambda name: json.loads((OUT / f"{name}.json").read_text("utf-8"))
  for kind, values, title, label in (
      ("mix", MIXES, "Mix", "% of positions are speech, the rest text and images, two to one"),
      ("positions", LENGTHS, "Length of a row", "positions of a row, 4,096 in a step"),
      ("document", DOCUMENTS, "Packing", "mean positions of a document, rows of 1,024")):
    figures = [read(f"{kind}_{value}") for value in values]
    shown.append(f"<h2>{title}</h2>{_chart(title, label, values, figures)}")
  f = figures[0]
  about = (f"<p>{f['parameters'] / 1e6:.1f} M parameters, {f['dtype']}, on {f['device']}, commit "
           f"{f['commit']}, jax {f['jax']}. MFU counts the model's FLOPs only, attention within "
           f"documents once, of {f['peak_flops_of']} in each run.</p>")
  (OUT / "sweep.html").write_text(page("MFU of the train step", about + "".join(shown)),
                                  "utf-8")


def _chart(title: str, label: str, values: tuple[int, ...], figures: list[dict[str, Any]]) -> str:
  mfu = [100 * f["ours"]["mfu"] for f in figures]
  rows = "".join(f"<tr><td>{v}</td><td>{m:.1f} %</td><td>{f['ours']['tokens_per_s']:,.0f}</td></tr>"
                 for v, m, f in zip(values, mfu, figures, strict=True))
  curve = charts.Curve("MFU", "--accent", values, mfu, smooth=False)
  chart = charts.lines([curve], title=title, x_label=label, y_label="MFU", percent=True)
  return (f'<div style="max-width:560px">{chart}</div><table class="figures"><tr><th>{label}</th>'
          f"<th>MFU</th><th>tokens/s</th></tr>{rows}</table>")


if __name__ == "__main__":
  main()
