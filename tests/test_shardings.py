"""Where every parameter of every experiment lives, against golden files."""

import json
import os
import pathlib

import jax
import pytest

from omnijax import checkpoint, experiment, sharding
from omnijax.model import transformer
from omnijax.tokenizers import load

ROOT = pathlib.Path(__file__).parents[1]
PATHS = [p for p in sorted((ROOT / "experiments").glob("*.py")) if "def run()" in p.read_text()]


def shardings(path):
  """{parameter: its shape and the mesh axes of each dim} on the experiment's own mesh."""
  run = experiment.load(path)
  sizes = [max(getattr(run.mesh, axis), 1) for axis in sharding.AXES]
  mesh = jax.sharding.AbstractMesh(tuple(sizes), sharding.AXES,
                                   axis_types=(jax.sharding.AxisType.Explicit,) * len(sizes))
  vocab = load.planned_vocab(run.tokenizers)
  with jax.sharding.use_abstract_mesh(mesh):
    made = jax.eval_shape(lambda key: transformer.init(run.model, vocab, sharding.RULES, key),
                          jax.eval_shape(lambda: jax.random.key(0)))
  return {name: f"{list(x.shape)} {tuple(x.sharding.spec)}"
          for name, x in sorted(checkpoint.named(made).items())}


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.stem)
def test_shardings_match_their_goldens(path):
  golden = ROOT / "tests" / "golden" / f"{path.stem}.shardings.json"
  got = shardings(path)
  if os.environ.get("UPDATE_GOLDEN"):
    golden.write_text(json.dumps(got, indent=1) + "\n", "utf-8")
  want = json.loads(golden.read_text("utf-8"))
  assert got == want, "if that is meant, run UPDATE_GOLDEN=1 pytest and commit the golden file"
  if max(getattr(experiment.load(path).mesh, axis) for axis in sharding.AXES) > 1:
    assert sum("'" in v for v in got.values()) > 20  # the large ones are spread out
