"""Configs survive JSON, refuse nonsense, and every field of them is read by something."""

import ast
import dataclasses
import json
import os
import typing
from pathlib import Path

import numpy as np
import pytest
import tiny

from omnijax import config, experiment
from omnijax.model import rope

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden"
EXPERIMENTS = sorted(p for p in (ROOT / "experiments").glob("*.py")
                     if "def run(" in p.read_text("utf-8"))


def test_json_round_trip():
  run = tiny.run(data={"sources": ("a", "b"), "weights": (1.0, 2.5)}, mesh={"fsdp": 4})
  text = config.to_json(run)
  again = config.from_json(text)
  assert again == run
  assert type(again.data.sources) is tuple
  assert config.to_json(again) == text
  assert again != tiny.run()


def edited(**changes) -> str:
  values = json.loads(config.to_json(tiny.run()))
  for path, value in changes.items():
    *sections, name = path.split("__")
    inner = values
    for section in sections:
      inner = inner[section]
    inner[name] = value
  return json.dumps(values)


def test_unknown_fields_are_named_with_their_path():
  with pytest.raises(ValueError, match=r"run\.optim has the unknown field\(s\) \['peak_lrr'\]"):
    config.from_json(edited(optim__peak_lrr=1.0))
  with pytest.raises(ValueError, match=r"run has the unknown field\(s\) \['modle'\]"):
    config.from_json(edited(modle={}))
  values = json.loads(edited())
  del values["model"]["layers"]
  with pytest.raises(ValueError, match="run.model can't be read.*layers"):
    config.from_json(json.dumps(values))


@pytest.mark.parametrize("section, values, message", [
  ("model", {"layers": 0}, "Model.layers is 0"),
  ("model", {"kv_heads": 3}, "heads is 4.*kv_heads 3"),
  ("model", {"depth_heads": 3}, "depth_dim is 32.*depth_heads 3"),
  ("model", {"head_dim": 12}, "head_dim 12.*multiple of 8"),
  ("model", {"remat": "ful"}, "Model.remat is 'ful'; wanted one of 'none', 'minimal'"),
  ("model", {"matmuls": "int4"}, "Model.matmuls is 'int4'; wanted one of 'dtype', 'int8'"),
  ("optim", {"moment_dtype": "float16"}, "Optim.moment_dtype is 'float16'"),
  ("tokenizers", {"codebooks": 0}, "Tokenizers.codebooks is 0"),
  ("data", {"weights": (1.0, 2.0)}, "2 entries for 1 sources"),
  ("data", {"frames": 65}, "frames is 65.*positions 64"),
  ("data", {"depth_frames": 25}, "depth_frames is 25.*frames 24"),
  ("data", {"documents": -1}, "'documents': -1.*may be below 0"),
  ("model", {"attention_documents": 8}, "documents is 8 and Data.documents any.*8 or less"),
  ("data", {"caption_dropout": 1.0}, "caption_dropout is 1.0"),
  ("data", {"listen_dropout": -0.1}, "listen_dropout is -0.1"),
  ("data", {"workers": -1}, "may be below 0"),
  ("data", {"rows": 6}, None),
  ("loss", {"image": -1.0}, "Loss.image is -1.0"),
  ("optim", {"peak_lr": 0.0}, "Optim.peak_lr is 0.0"),
  ("optim", {"ema": 1.0}, "Optim.ema is 1.0"),
  ("optim", {"decay_fraction": 0.0}, "decay_fraction is 0.0"),
  ("optim", {"accumulate": 3}, "rows 8 is not a multiple of Optim.accumulate 3"),
  ("mesh", {"data": 0}, "axes must be 1 or more"),
  ("mesh", {"data": -1, "fsdp": -1}, "at most one -1"),
  ("optim", {"skips": 0}, "Optim.skips is 0"),
  ("optim", {"spike": -1.0}, "Optim.spike is -1.0"),
  ("train", {"steps": 0}, "Train.steps is 0"),
  ("train", {"keep_every": -1}, "keep_every.* -1.*below 0"),
  ("train", {"stuck_after_s": -1.0}, "stuck_after_s.* -1.0.*none of them may be below 0"),
  ("eval", {"batches": 0}, "Eval.batches is 0"),
])
def test_bad_values_are_named(section, values, message):
  if message is None:
    tiny.run(**{section: values})
    return
  with pytest.raises(ValueError, match=message):
    tiny.run(**{section: values})


@pytest.mark.parametrize("entry", ["What is it?", "plain: x", "caption:", "caption :x"])
def test_instructions_name_their_task(entry):
  with pytest.raises(ValueError, match=r'wanted "TASK: WORDS", TASK one of caption, draw'):
    config.Data(sources=(), rows=1, positions=8, frames=8, prompts=(entry,))
  config.Data(sources=(), rows=1, positions=8, frames=8, prompts=("caption: x",))


def test_odds_of_tasks():
  with pytest.raises(ValueError, match="at least one above 0"):
    config.Tasks(plain=0, caption=0, draw=0, transcribe=0, speak=0, follow=0)
  with pytest.raises(ValueError, match="odds must be >= 0"):
    config.Tasks(draw=-1.0)


def test_fingerprints_follow_the_values():
  assert config.fingerprint(tiny.run()) == config.fingerprint(tiny.run())
  assert config.fingerprint(tiny.run()) != config.fingerprint(tiny.run(train={"seed": 1}))


def sections(cls: type) -> typing.Iterator[type]:
  yield cls
  for kind in typing.get_type_hints(cls).values():
    if dataclasses.is_dataclass(kind):
      yield from sections(kind)


def read_names(files: list[Path]) -> set[str]:
  """Names of all attributes that code reads, and the strings that it could get them by."""
  names = set()
  for path in files:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
      if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
        names.add(node.attr)
  return names


def test_every_field_is_read():
  # A setting that nothing reads looks as if it worked.
  files = [p for p in (ROOT / "omnijax").rglob("*.py") if p.name != "config.py"]
  read = read_names(files)
  # Mesh axes are read by iterating over sharding.AXES; rates of tasks as one tuple.
  whole = {config.Mesh, config.Tasks}
  unread = [f"{cls.__name__}.{f.name}" for cls in sections(config.Run) if cls not in whole
            for f in dataclasses.fields(cls) if f.name not in read]
  assert unread == []
  assert "no_such_field" not in read


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: p.stem)
def test_a_step_in_time_by_row_or_by_column_turns_something(path):
  model = experiment.load(path).model
  for axis in range(3):
    position_BS3 = np.zeros((1, 2, 3), np.int32)
    position_BS3[0, 1, axis] = 1
    cos_BS1H, _ = rope.angles(position_BS3, model.head_dim, model.rope_theta, model.rope_split)
    assert np.arccos(np.asarray(cos_BS1H)[0, 1]).max() > 0.3, axis


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: p.stem)
def test_experiments_match_their_goldens(path):
  run = experiment.load(path)
  assert config.from_json(config.to_json(run)) == run
  golden = GOLDEN / f"{path.stem}.json"
  if os.environ.get("UPDATE_GOLDEN"):
    golden.parent.mkdir(exist_ok=True)
    golden.write_text(config.to_json(run), "utf-8")
  assert golden.is_file(), f"no {golden.name}: run UPDATE_GOLDEN=1 pytest {__file__}"
  assert config.to_json(run) == golden.read_text("utf-8"), (
    f"{path.name} describes another run than {golden.name}; if that is meant, run "
    "UPDATE_GOLDEN=1 pytest and commit the change of the golden file with it.")


def test_what_does_not_count_are_fields():
  run = experiment.load(EXPERIMENTS[0])
  assert {*config.INCIDENTAL} < {*config.flat(run)}
