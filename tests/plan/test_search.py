"""The search for the best variant of a run, with compilations made up: order, memory, resuming."""

import dataclasses
import json
import re
import types
import typing

import pytest
import tiny

from omnijax import cli, config, experiment
from omnijax.plan import chips, promise, search
from omnijax.plan import plan as plan_lib
from omnijax.plan.child import Refused

WHERE = chips.parse("v5e:2x2")
MESH = config.Mesh(fsdp=4)
RUN = tiny.run(mesh=MESH, data={"positions": 2048, "frames": 256})
REMATS = typing.get_args(typing.get_type_hints(config.Model)["remat"])


def figures(run, hbm=1.0, bonus=0.0):
  """Made up: tensor parallelism is bad, many rows are good, remat costs a third."""
  rate = 1000.0 / run.mesh.tensor + run.data.rows - 300 * (run.model.remat == "full") + bonus
  return {"fits": hbm < 0.98 * 16, "advice": ["smaller"], "hbm_gib": hbm,
          "mfu_estimate": rate / 1e4, "step_s_estimate": run.data.rows * 2048 / 4 / rate,
          "tokens_per_s_per_chip": rate}


class Fake:
  """Compiles nothing, and remembers what."""

  def __init__(self, make=figures):
    self.make, self.runs, self.said = make, [], []

  def __call__(self, run, what):
    self.runs.append(run)
    self.said.append(what)
    return self.make(run)


def looked(tmp_path, fake, tries=6, run=RUN, **more):
  return search.search(run, tiny.VOCAB, WHERE, fake, tries=tries, log=tmp_path / "log.json", **more)


def test_variants_fill_the_slice_and_say_what_does_not_divide():
  made = list(search.variants(RUN, WHERE))
  runs = [r for r in made if isinstance(r, config.Run)]
  assert {r.model.remat for r in runs} == set(REMATS) - {"names"}
  assert {r.data.rows for r in runs} == {4, 8, 16, 32}
  assert {r.optim.accumulate for r in runs} == {1, 2, 4}
  meshes = {tuple(dataclasses.asdict(r.mesh).values()) for r in runs}
  # 2 heads of keys and values are on 2 devices at most.
  assert meshes == {(d, 4 // d // t, 1, 1, t) for d, t in
                    ((1, 1), (2, 1), (4, 1), (1, 2), (2, 2))}
  assert any("kv_heads is 2" in why for why in made if isinstance(why, str))
  assert len(set(map(repr, runs))) == len(runs)


def test_meshes_follow_the_torus():
  run = tiny.run(model={"heads": 16, "kv_heads": 8, "dim": 64, "depth_dim": 64, "depth_heads": 8},
                 data={"rows": 64})
  shapes = lambda name, slices=1: {
    (r.mesh.data, r.mesh.fsdp, r.mesh.tensor)
    for r in search.variants(run, chips.parse(name, slices)) if isinstance(r, config.Run)}
  # Each axis is a whole side of the square, or both.
  assert shapes("v5e:8x8") == {(64, 1, 1), (1, 64, 1), (8, 8, 1), (8, 1, 8), (1, 8, 8)}
  assert (16, 1, 8) in shapes("v5e:8x8", 2) and (8, 16, 1) not in shapes("v5e:8x8", 2)


def test_what_is_given_stays():
  runs = [r for r in search.variants(RUN, WHERE, ("mesh", "data.rows", "model.remat"))
          if isinstance(r, config.Run)]
  assert {(r.mesh, r.data.rows, r.model.remat) for r in runs} == {(MESH, 8, "none")}
  assert len({r.optim.accumulate for r in runs}) > 1


def test_slices_are_crossed_by_data_only():
  runs = [r for r in search.variants(RUN, chips.parse("v5e:2x2", 2)) if isinstance(r, config.Run)]
  assert {r.mesh.data for r in runs} == {2, 4, 8}


def test_the_run_itself_comes_first_and_the_best_is_found(tmp_path):
  fake = Fake()
  found = looked(tmp_path, fake)
  assert fake.runs[0] == RUN and len(fake.runs) == 6 == len({repr(r) for r in fake.runs})
  best = search.run_of(RUN, found.best)
  assert best.data.rows == 32 and best.mesh.tensor == 1 and best.model.remat != "full"
  rates = [t.tokens_per_s for t in found.tries]
  assert rates == sorted(rates, reverse=True)
  assert found.dropped["promises less"] > 10
  assert fake.said[0].startswith("try 1 of 6: mesh.fsdp 4 ")
  assert re.match(r"try 6 of 6, about \d+ min left: ", fake.said[5])


def test_what_a_try_takes_is_expected_of_those_like_it(tmp_path):
  # Far more memory than promised: nothing but what works on less at once fits.
  count = promise.parameters(RUN, tiny.VOCAB)
  of = lambda run: promise.promise(run, tiny.VOCAB, WHERE, count)
  more = 16 * 2**30 / of(RUN).others

  def make(run):
    return figures(run, hbm=(of(run).state + more * of(run).others) / 2**30)

  fake = Fake(make)
  found = looked(tmp_path, fake, tries=8)
  assert [t.outcome for t in found.tries] == ["fits"] * 7 + ["does not fit"]
  assert found.tries[-1].settings == search.settings_of(RUN) and found.tries[-1].why == "smaller"
  assert found.dropped["would take too much memory"] > 10


def test_a_run_that_cannot_fit_is_not_compiled(tmp_path):
  huge = tiny.run(mesh=MESH, model={"dim": 32768, "mlp": 131072, "heads": 256, "kv_heads": 64,
                                    "layers": 64, "head_dim": 128},
                  data={"positions": 2048, "frames": 256})
  count = 64 * (32768 * (2 * 256 + 2 * 64) * 128 + 3 * 32768 * 131072)
  assert promise.parameters(huge, tiny.VOCAB) == pytest.approx(count, rel=0.01)
  fake = Fake()
  with pytest.raises(ValueError, match=r"no variant of tiny fits v5e:2x2: the least takes about "
                                       r"[\d.]+ GiB.*more chips"):
    looked(tmp_path, fake, run=huge)
  assert fake.runs == []


def test_a_crash_is_a_try_like_another(tmp_path):
  def make(run):
    if run.data.rows > 8:
      raise Refused("the compiler failed on it")
    return figures(run)

  found = looked(tmp_path, Fake(make), tries=12)
  assert {t.outcome for t in found.tries} == {"fits", "failed"}
  assert found.best.settings["data.rows"] == 8
  assert found.tries[-1].why == "the compiler failed on it"


def test_nothing_is_compiled_twice(tmp_path):
  first, second = Fake(), Fake()
  looked(tmp_path, first, tries=3)
  found = looked(tmp_path, second, tries=5)
  assert len(found.tries) == 5 and len(second.runs) == 2
  assert not {repr(r) for r in first.runs} & {repr(r) for r in second.runs}
  with pytest.raises(ValueError, match="tries of another run"):
    looked(tmp_path, second, fixed=("mesh",))


def test_promises_are_ordered_as_one_would_expect():
  full = dataclasses.replace(RUN, data=dataclasses.replace(RUN.data, rows=4096))
  of = lambda **k: promise.promise(dataclasses.replace(full, **k), tiny.VOCAB, WHERE, 10**9)
  base = of()
  remat = of(model=dataclasses.replace(RUN.model, remat="full"))
  assert remat.bytes < base.bytes and remat.seconds > base.seconds
  split = of(optim=dataclasses.replace(RUN.optim, accumulate=4))
  assert split.seconds > base.seconds and split.others < base.others
  assert of(mesh=config.Mesh(data=4, fsdp=1)).state == 4 * base.state == 4 * 12 * 10**9 / 4
  assert of(mesh=config.Mesh(fsdp=2, tensor=2)).seconds > base.seconds


EXPERIMENT = '''
from omnijax import config
def run():
  return config.from_json({!r})
'''


def test_the_command_writes_an_experiment_that_loads(tmp_path, monkeypatch, capsys):
  (tmp_path / "deep").mkdir()
  path, out = tmp_path / "searched.py", tmp_path / "deep" / "best.py"
  path.write_text(EXPERIMENT.format(config.to_json(tiny.run(data={"positions": 2048,
                                                                  "frames": 256}))))
  fake = Fake()

  def plan(run, vocab, where, **_):
    found = fake(run, "")
    return types.SimpleNamespace(as_json=lambda price: found, advice=(), cost=None)

  monkeypatch.setattr(plan_lib, "plan", plan)
  monkeypatch.setattr(chips.Slice, "need_compiler", lambda self: None)
  arguments = ["plan", str(path), "--topology", "v5e:2x2", "--search", str(out), "--tries", "4",
               "--optim.peak-lr", "0.5", "--data.positions=1024", "--optim.accumulate", "1"]
  assert cli.main(arguments) == 0, capsys.readouterr().err
  made = experiment.load(out)
  assert made in fake.runs and made.data.rows == 32
  assert (made.optim.peak_lr, made.data.positions, made.optim.accumulate) == (0.5, 1024, 1)
  assert {r.optim.accumulate for r in fake.runs} == {1}
  assert re.search(r"\d not compiled: promises less", capsys.readouterr().out)
  assert len(json.loads(out.with_suffix(".json").read_text())["tries"]) == 4
  assert cli.main(arguments) == 0 and len(fake.runs) == 4  # all known


@pytest.mark.parametrize("arguments,message", [
  (["--topology", "cpu:4", "--search"], "no model for cpu"),
  (["--topology", "v5e:2x2", "--tries", "2"], "no effect without --search"),
  (["--topology", "v5e:2x2", "--search", "--decode"], "leave --decode out"),
  (["--topology", "v5e:2x2", "--search", "--tries", "0"], "--tries is 0; wanted 1"),
])
def test_bad_input_is_one_line(tmp_path, arguments, message, capsys):
  path = tmp_path / "searched.py"
  path.write_text(EXPERIMENT.format(config.to_json(RUN)))
  assert cli.main(["plan", str(path), *arguments]) == 2
  assert message in capsys.readouterr().err


@pytest.mark.parametrize("name,held,message", [
  ("searched.py", None, "would write over .*searched.py, which no search has written"),
  ("best.json", None, "best.json is no Python file; wanted a new experiment, such as .*best.py"),
  ("best.py", "[1]", "best.json is no log of a search"),
  ("best.py", "not JSON", "best.json is no log of a search"),
])
def test_files_of_others_are_left_alone(tmp_path, name, held, message, monkeypatch, capsys):
  monkeypatch.setattr(chips.Slice, "need_compiler", lambda self: None)
  path, log = tmp_path / "searched.py", tmp_path / "best.json"
  path.write_text(EXPERIMENT.format(config.to_json(RUN)))
  if held:
    log.write_text(held)
  before = {p: p.read_bytes() for p in tmp_path.iterdir()}
  assert cli.main(["plan", str(path), "--topology", "v5e:2x2", "--search",
                   str(tmp_path / name)]) == 2
  assert re.search(message, capsys.readouterr().err)
  assert {p: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()} == before
