"""Stages of the quickstart, with everything costly replaced; what it joins is tested by itself."""

import contextlib
import dataclasses
import json
import pathlib

import pytest

from omnijax import config, quickstart
from omnijax.evals import report
from tests.evals import specimen

EXPERIMENT = '''
from pathlib import Path
from omnijax import config
WORDS, SAMPLING, ANSWERS, SOURCES = {}, "greedy", 20, Path("SOURCES.md")
GUIDANCE = 1.0
def run():
  return config.Run(
    name="tiny", model=config.Model(layers=1, dim=8, heads=1, kv_heads=1, head_dim=8, mlp=8,
      depth_layers=1, depth_dim=8, depth_heads=1, depth_mlp=8),
    data=config.Data(sources=("elsewhere",), rows=1, positions=8, frames=8),
    train=config.Train(steps=STEPS))
def manifests(folder):
  (folder / "made").write_text("x")
def cases(folder): return []
def judges(): return Path("a"), Path("b")
'''


@pytest.fixture
def fakes(tmp_path, monkeypatch):
  """Replaces the parts that a quickstart joins; returns what was called, and the experiment."""
  calls = []
  material = specimen.material(tmp_path / "specimen")

  def train(run, run_dir):
    calls.append(("train", run))
    if fakes.interrupt:
      raise KeyboardInterrupt

  def evaluate(module, settings, directory, tokenizers):
    calls.append(("evaluate", settings))
    lines = [m | {"step_s": 1e-6} if "step_s" in m else m for m in material.metrics]
    return dataclasses.replace(material, metrics=lines, train={"steps": settings.train.steps,
                                                **report.learning(material.metrics)})

  fakes = type("Fakes", (), {"interrupt": False, "calls": calls})
  monkeypatch.setattr(quickstart.loop, "train", train)
  monkeypatch.setattr(quickstart, "_evaluate", evaluate)
  monkeypatch.setattr(quickstart.tokenizers_lib, "load_all", lambda cfg: ("t", "i", "a"))
  monkeypatch.setattr(quickstart.prepare, "prepare",
                      lambda manifest, out, **kw: calls.append(("prepare", manifest.name)))
  fakes.path = tmp_path / "experiment.py"
  fakes.path.write_text(EXPERIMENT.replace("STEPS", "3"))
  fakes.dir = tmp_path / "run"
  return fakes


def names(fakes):
  return [name for name, _ in fakes.calls]


def test_all_stages_and_their_places(fakes):
  values = quickstart.run(fakes.dir, fakes.path)
  assert names(fakes) == ["prepare", "prepare", "train", "evaluate"]
  run = dict(fakes.calls)["train"]
  assert run.data.sources == (str(fakes.dir / "records" / "train"),)
  assert run.data.heldout == (str(fakes.dir / "records" / "heldout"),)
  assert (fakes.dir / "data" / "made").exists() and (fakes.dir / "report.html").exists()
  assert json.loads((fakes.dir / "report.json").read_text()) == values
  assert values["train"]["steps"] == 3 and values["train"]["peak_memory_gib"] > 0
  assert values["train"]["seconds"] == values["stages"]["train"]
  assert set(values["stages"]) >= {"data", "prepare", "train", "evaluate"}


def test_second_run_trains_nothing_and_keeps_the_times(fakes):
  first = quickstart.run(fakes.dir, fakes.path)
  (fakes.dir / "data" / "made").unlink()
  second = quickstart.run(fakes.dir, fakes.path)
  assert names(fakes).count("train") == 1 and names(fakes).count("evaluate") == 2
  assert not (fakes.dir / "data" / "made").exists()
  assert first["train"] == second["train"]


def test_interrupted_training_goes_on_and_its_time_adds_up(fakes):
  fakes.interrupt = True
  with pytest.raises(KeyboardInterrupt):
    quickstart.run(fakes.dir, fakes.path)
  before = json.loads((fakes.dir / "stages.json").read_text())
  assert before["train"]["key"] is None and before["data"]["key"] is not None
  # As if it had taken long.
  before["train"]["seconds"] = 1000.0
  (fakes.dir / "stages.json").write_text(json.dumps(before))
  fakes.interrupt = False
  values = quickstart.run(fakes.dir, fakes.path)
  assert names(fakes).count("train") == 2
  assert 1000 <= values["train"]["seconds"] < 1010


def test_another_experiment_is_trained_anew(fakes):
  quickstart.run(fakes.dir, fakes.path)
  fakes.path.write_text(EXPERIMENT.replace("STEPS", "4"))
  values = quickstart.run(fakes.dir, fakes.path)
  assert names(fakes).count("train") == 2 and values["train"]["steps"] == 4


def test_what_is_missing_is_named(fakes):
  fakes.path.write_text(EXPERIMENT.replace("STEPS", "3").replace("def judges", "def jury"))
  with pytest.raises(ValueError, match=r"has no judges; a quickstart wants judges: \(\) -> "):
    quickstart.run(fakes.dir, fakes.path)
  with pytest.raises(ValueError, match=r"no experiment file .*nowhere.py"):
    quickstart.run(fakes.dir, pathlib.Path("nowhere.py"))
  assert not fakes.dir.exists()


def test_directory_that_cannot_be_written(fakes, tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(ValueError, match=r"can't be written .*change --dir"):
    quickstart.run(tmp_path / "file" / "x", fakes.path)


def test_memory_is_the_most_of_all_the_times_a_stage_was_begun(tmp_path, monkeypatch):
  stages = quickstart.Stages(tmp_path)
  for gib, finish in ((3, False), (2, True), (9, True)):
    monkeypatch.setattr(quickstart, "_peak_memory_gib", lambda gib=gib: gib)
    with contextlib.suppress(KeyboardInterrupt), stages.stage("train", "key"):
      if not finish:
        raise KeyboardInterrupt
  # The last time there was nothing to do.
  assert stages.of_training(0)["peak_memory_gib"] == 3


def test_time_of_a_killed_training_is_that_of_its_steps(tmp_path):
  stages = quickstart.Stages(tmp_path)
  with stages.stage("train", "key"):
    pass
  assert stages.of_training(0)["seconds"] < 1 and stages.of_training(70.0)["seconds"] == 70
  assert quickstart.Stages(tmp_path).seconds == {"train": 70}


def test_the_config_it_runs_is_a_run():
  assert isinstance(config.from_json(config.to_json(_quickstart())), config.Run)


def _quickstart():
  from omnijax import experiment
  return experiment.load(pathlib.Path(__file__).parents[1] / quickstart.EXPERIMENT)
