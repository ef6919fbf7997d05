"""The rules of the code base that a machine can check: who imports whom, sizes, banned names."""

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "omnijax"
FILES = sorted(SOURCE.rglob("*.py"))

# A module may import modules of its own layer and of those before it. The longest prefix counts.
LAYERS = (
  ("omnijax", "omnijax.config", "omnijax.config_json", "omnijax.host", "omnijax.usage",
   "omnijax.arguments", "omnijax.job"),
  ("omnijax.vocab", "omnijax.sharding", "omnijax.kernels", "omnijax.experiment"),
  ("omnijax.tokenizers",),
  ("omnijax.data", "omnijax.model"),
  ("omnijax.train", "omnijax.checkpoint", "omnijax.generate"),
  ("omnijax.evals", "omnijax.serve"),
  ("omnijax.train.loop", "omnijax.quickstart", "omnijax.plan", "omnijax.bench",
   "omnijax.sweep"),
  ("omnijax.cli",),
)
LAYER = {name: i for i, names in enumerate(LAYERS) for name in names}
FLAX = ("omnijax.model", "omnijax.tokenizers")
NUMPY_ONLY = "omnijax.data"
NOT_NUMPY = {"jax", "flax", "optax", "orbax", "torch", "tensorflow"}
# "data" is left out: the word has other uses.
MESH_AXES = {"fsdp", "context", "expert", "tensor"}
BANNED_NNX = {"jit", "grad", "value_and_grad", "scan", "vmap", "Optimizer"}
LONGEST = 400


def name_of(path: Path) -> str:
  parts = path.relative_to(ROOT).with_suffix("").parts
  return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer(module: str) -> int:
  parts = module.split(".")
  for n in range(len(parts), 0, -1):
    if ".".join(parts[:n]) in LAYER and (n > 1 or len(parts) == 1):
      return LAYER[".".join(parts[:n])]
  raise AssertionError(f"{module} is in no layer; add it to LAYERS and to DESIGN section 8.")


@functools.cache
def tree(path: Path) -> ast.Module:
  return ast.parse(path.read_text("utf-8"))


def imports(module: ast.Module, known: frozenset[str]) -> Iterator[str]:
  """Every imported module, also inside functions; `from package import module` in full."""
  for node in ast.walk(module):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, "imports are absolute"
      for alias in node.names:
        full = f"{node.module}.{alias.name}"
        yield full if full in known else str(node.module)


KNOWN = frozenset(map(name_of, FILES))


def faults(name: str, module: ast.Module) -> list[str]:
  """What a module imports that it must not."""
  found = []
  for target in imports(module, KNOWN):
    top = target.split(".")[0]
    if top == "omnijax" and layer(target) > layer(name):
      found.append(f"{name} imports {target} of a higher layer")
    if name.startswith("omnijax.data") and target.startswith("omnijax.model"):
      found.append(f"{name} imports {target}")
    if name.startswith("omnijax.model") and target.startswith("omnijax.data"):
      found.append(f"{name} imports {target}")
    if top == "flax" and not name.startswith(FLAX):
      found.append(f"{name} imports flax")
    if name.startswith(NUMPY_ONLY) and top in NOT_NUMPY:
      found.append(f"{name} imports {target}; data is numpy only")
    if top in ("experiments", "tests"):
      found.append(f"{name} imports {target}")
  return found


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_point_downwards(path):
  assert faults(name_of(path), tree(path)) == []


@pytest.mark.parametrize("name, text", [
  ("omnijax.data.records", "import jax"),
  ("omnijax.data.records", "def f():\n  from jax import numpy"),
  ("omnijax.train.loss", "from flax import nnx"),
  ("omnijax.train.loss", "from omnijax.train import loop"),
  ("omnijax.tokenizers.text", "from omnijax.data import records"),
  ("omnijax.model.layers", "import omnijax.data.records"),
  ("omnijax.config", "from omnijax import vocab"),
  ("omnijax.cli", "import experiments.quickstart"),
])
def test_wrong_imports_are_found(name, text):
  assert len(faults(name, ast.parse(text))) == 1


def strings(module: ast.Module) -> set[str]:
  return {n.value for n in ast.walk(module)
          if isinstance(n, ast.Constant) and isinstance(n.value, str)}


def test_mesh_axes_are_named_in_sharding_only():
  # config.py has them as fields of Mesh, and says which of those are not supported yet.
  allowed = {SOURCE / "sharding.py", SOURCE / "config.py"}
  found = {name_of(p): strings(tree(p)) & MESH_AXES for p in FILES if p not in allowed}
  assert {k: v for k, v in found.items() if v} == {}
  assert strings(tree(SOURCE / "sharding.py")) >= MESH_AXES


def banned(module: ast.Module) -> set[str]:
  return {n.attr for n in ast.walk(module) if isinstance(n, ast.Attribute)
          and isinstance(n.value, ast.Name) and n.value.id == "nnx"} & BANNED_NNX


def test_flax_transforms_are_not_used():
  found = {name_of(p): banned(tree(p)) for p in FILES}
  assert {k: v for k, v in found.items() if v} == {}
  assert banned(ast.parse("step = nnx.jit(f)")) == {"jit"}


def test_files_can_be_read_in_one_sitting():
  files = [*FILES, *(ROOT / "experiments").rglob("*.py")]
  lines = {str(p.relative_to(ROOT)): len(p.read_text("utf-8").splitlines()) for p in files}
  assert {k: n for k, n in lines.items() if n > LONGEST} == {}


def test_every_folder_is_a_package():
  # Else it would be left out of the wheel.
  folders = {p.parent for p in FILES}
  assert [str(f) for f in folders if not (f / "__init__.py").exists()] == []


def loaded(code: str) -> set[str]:
  """Top-level names of the modules that a fresh interpreter has after running code."""
  script = f"import sys\n{code}\nprint(*{{m.split('.')[0] for m in sys.modules}})"
  out = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
  return set(out.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("code", [
  "import omnijax",
  "import omnijax.cli\ntry: omnijax.cli.main(['--help'])\nexcept SystemExit: pass",
  "import omnijax.cli\ntry: omnijax.cli.main(['generate', '--help'])\nexcept SystemExit: pass",
  "import omnijax.cli\ntry: omnijax.cli.main(['sweep', '--help'])\nexcept SystemExit: pass",
  "import omnijax.cli\ntry: omnijax.cli.main(['serve', '--help'])\nexcept SystemExit: pass",
  "import omnijax.config, omnijax.experiment, omnijax.vocab, omnijax.sweep.space",
])
def test_light_imports(code):
  heavy = {"jax", "flax", "tyro", "rich", "grain", "sentencepiece", "fastapi"}
  assert heavy & loaded(code) == set()


def test_data_runs_without_jax():
  # Readers of records are started by the dozen: they must not each start an accelerator runtime.
  modules = ", ".join(name_of(p) for p in FILES if p.parent == SOURCE / "data")
  assert {"jax", "flax"} & loaded(f"import {modules}") == set()
  assert "jax" in loaded("import jax")
