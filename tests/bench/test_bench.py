"""`omnijax bench step` on a model of a few thousand parameters, without the other side."""

import json
import math
import re
import sys
import types

import pytest
import tiny

from omnijax import cli, config
from omnijax.bench import command, compare, process

EXPERIMENT = f'''
import dataclasses
from omnijax import config
def run():
  run = config.from_json({config.to_json(tiny.run())!r})
  sizes = dataclasses.replace(run.tokenizers, text_size=200, image_size=100, audio_size=48,
                              codebooks=3)
  return dataclasses.replace(run, tokenizers=sizes, mesh=config.Mesh(data=1, fsdp=1))
'''


@pytest.fixture
def experiment(tmp_path):
  (tmp_path / "benched.py").write_text(EXPERIMENT)
  return str(tmp_path / "benched.py")


def test_a_step_is_timed_in_a_process_of_its_own(experiment, tmp_path, capsys):
  paths = [f"--{kind}={tmp_path / kind}" for kind in ("json", "html")]
  assert cli.main(["bench", "step", experiment, "--repeats", "3", "--steps", "2", "--document",
                   "16", *paths, "--data.rows", "4"]) == 0
  f = json.loads((tmp_path / "json").read_text())
  ours = f["ours"]
  assert f["rows"] == 4 and f["document"] == 16 and len(ours["ms_per_step_of_each"]) == 3
  seconds = ours["ms_per_step"] / 1e3
  assert seconds > 0 and ours["compile_s"] > 10 * seconds
  assert ours["mfu"] == pytest.approx(f["model_flops"] / seconds / f["peak_flops"])
  used = round((1 - f["shares"]["padding"]) * 4 * 64)
  assert ours["tokens_per_s"] == pytest.approx(used / seconds)
  # Near that of a guess among all ids, and less after seven steps on one batch.
  assert 0.5 * math.log(tiny.VOCAB.size) < ours["first_loss"] < 20
  assert ours["last_loss"] < ours["first_loss"] - 0.01
  assert "ratio" not in f and "measured" in f["peak_flops_of"] and f["device"]
  out = capsys.readouterr().out
  assert "3 of 3: ours" in out and "MFU" in out
  assert "<svg" in (tmp_path / "html").read_text()


@pytest.mark.parametrize("arguments, message", [
  (["--repeats", "0"], "--repeats is 0; wanted 1 or more"),
  (["--steps", "-1"], "--steps is -1"),
  (["--document", "100"], "--document is 100; wanted 8 or more positions and at most .* 64"),
  (["--mix", "1", "1", "2"], "50% of speech.* data.frames is 24"),
  (["--json", "/nowhere/at/all.json"], "no directory"),
  (["--model.layerz", "4"], "did you mean --model.layers"),
  (["--mesh.data", "9", "--mesh.fsdp", "1"], "mesh .*'data': 9"),
  (["--against", "torch", "--optim.ema", "0.5"], "optim.ema is 0.5, and the twin"),
  (["--against", "torch", "--mesh.data", "2"], "mesh.data is 2, .*--mesh.data 1"),
  (["--against", "torch", "--model.experts", "4"], "model.experts is 4, .*--model.experts 0"),
])
def test_bad_input_is_one_line(experiment, arguments, message, capfd):
  assert cli.main(["bench", "step", experiment, *arguments]) == 2
  error = capfd.readouterr().err
  assert error.count("\n") == 1 and re.search(message, error), error


def test_without_torch_it_says_how_to_get_it(experiment, monkeypatch, capsys):
  monkeypatch.setattr(command, "importlib", types.SimpleNamespace(
    util=types.SimpleNamespace(find_spec=lambda name: None)))
  assert cli.main(["bench", "step", experiment, "--against", "torch"]) == 2
  assert 'pip install "omnijax[bench]"' in capsys.readouterr().err


def test_help_teaches(experiment, capsys):
  with pytest.raises(SystemExit, match="0"):
    cli.main(["bench", "step", "--help"])
  out = capsys.readouterr().out
  assert "--against" in out and "above 1 where ours is faster" in out
  with pytest.raises(SystemExit, match="0"):
    cli.main(["bench", "step", experiment, "--help"])
  assert "--data.positions" in capsys.readouterr().out


class Fake:
  """Two sides of known speeds, in the order in which they are asked."""

  calls: list = []

  def __init__(self, module, *args):
    self.name, self.count = module.split(".")[-1], 0

  def start(self):
    self.calls.append((self.name, "start"))

  def steps(self, count):
    self.calls.append((self.name, count))
    self.count += 1
    return count * {"ours": 0.1, "theirs": (0.2, 0.3, 0.1)[(self.count - 1) % 3]}[self.name]

  def about(self):
    out = {"losses": [7.0, 6.0], "compile_s": 1.0, "peak_memory_gib": 2.0}
    more = {"device": "d", "devices": 1, "peak_flops": 1e9, "peak_flops_of": "p", "jax": "1",
            "parameters": 5}
    return out | (more if self.name == "ours" else {"torch": "2", "attention": "plain"})

  def close(self):
    self.calls.append((self.name, "close"))


def test_sides_take_turns(experiment, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(command, "Side", Fake)
  monkeypatch.setattr(Fake, "calls", [])
  monkeypatch.setattr(command, "importlib", types.SimpleNamespace(
    util=types.SimpleNamespace(find_spec=lambda name: name)))
  assert cli.main(["bench", "step", experiment, "--against", "torch", "--repeats", "3", "--steps",
                   "4", "--json", str(tmp_path / "j")]) == 0
  turns = [("ours", 4), ("theirs", 4)] * 3
  assert Fake.calls == [("ours", "start"), ("theirs", "start"), *turns, ("ours", "close"),
                        ("theirs", "close")]
  f = json.loads((tmp_path / "j").read_text())
  assert f["ratio"] == pytest.approx(2) and f["ratio_range"] == pytest.approx([1, 3])
  assert (f["jax"], f["torch_version"]) == ("1", "2")
  assert f["torch"]["ms_per_step"] == pytest.approx(200) and f["ours"]["ms_per_step"] == 100
  assert "torch / ours: 2.000" in capsys.readouterr().out.replace("\n", " ")


def test_pairs():
  # The ratio of medians would be 1: pairs are what is compared, as the machine changes.
  got = compare.ratio([1.0, 2.0, 4.0], [2.0, 1.0, 8.0])
  assert got["ratio"] == 2 and got["ratio_range"] == [0.5, 2]
  compare.check_same(7.0, 7.001, "float32")
  with pytest.raises(ValueError, match="7 with us and 7.1 with the twin.*not the same model"):
    compare.check_same(7.0, 7.1, "float32")
  with pytest.raises(ValueError):
    compare.check_same(7.0, math.nan, "bfloat16")


def test_errors_of_a_process_come_home():
  side = process.Side("omnijax.bench.ours", tiny.run(mesh={"data": 3, "fsdp": 5}), tiny.VOCAB, {},
                      None)
  try:
    with pytest.raises(ValueError, match="mesh .* needs a multiple of 15 devices"):
      side.start()
  finally:
    side.close()
  assert "omnijax.bench.ours" not in sys.modules  # it was only imported there
