"""Optuna's choices and pruning, whole, cut off and gone on with."""

import math
import time

import pretend
import pytest

from omnijax import config
from omnijax.sweep import arguments, driver, figures, space, study
from omnijax.sweep import manifest as manifest_lib

BEST = 3e-3


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
  monkeypatch.setattr(driver, "_POLL_S", 0.001)
  monkeypatch.setattr(driver, "_PAUSE_S", 0.01)


def bowl(run, step):
  """A loss that is least at the best rate, and tells so from the first step on."""
  return 1 + abs(math.log(run.optim.peak_lr / BEST)) - 0.01 * step


def rates(**changes):
  return space.random(pretend.run(**changes), {
    "optim.peak_lr": space.LogUniform(1e-5, 1e-1), "optim.kind": ("adamw", "muon")}, trials=8)


def sweep(root, engine, over, sampler="tpe", pruner="", trials=8, seed=0):
  book = manifest_lib.Manifest(root)
  asked = isinstance(over, space.Space)
  for run in () if asked else over:
    book.add(run)
  objective = figures.Objective(None, [over.run] if asked else over)
  source = study.Study(
    book, objective, space=over if asked else None, sampler=sampler if asked else "",
    base=[over.run.name, over.run.train.steps] if asked else "", pruner=pruner, trials=trials,
    seed=seed)
  book.begin(())
  driver.Driver(book, engine, source, pretend.Show(), restarts=1).run()
  return book, source


def told(source):
  """What Optuna knows, by number."""
  return [(t.state.name, t.value, t.params) for t in source._study.get_trials()]


@pytest.mark.parametrize("sampler", [s for s in arguments.SAMPLERS if s != "gp"])
def test_each_sampler_chooses_trials_that_are_all_run_once(tmp_path, sampler):
  over = rates()
  engine = pretend.Engine(loss=bowl)
  book, source = sweep(tmp_path, engine, over, sampler)
  assert len(engine.started) == len(set(engine.started)) == 8
  assert [e.state for e in book.listed] == ["done"] * 8
  known = told(source)
  assert [state for state, *_ in known].count("COMPLETE") == 8
  for entry in book.listed:
    state, value, params = known[entry.number]
    assert state == "COMPLETE" and value == entry.value
    assert float(f"{params['optim.peak_lr']:.4g}") == entry.trial.run.optim.peak_lr
  again = pretend.Engine()
  assert len(sweep(tmp_path, again, over, sampler)[0].listed) == 8 and again.started == []
  # More of them, and no one twice.
  book, _ = sweep(tmp_path, again, over, sampler, trials=12)
  assert len(again.started) == 4 and len({e.trial.id for e in book.listed}) == 12


def test_tpe_finds_what_chance_does_not(tmp_path):
  def distance(sampler):
    engine = pretend.Engine(room=1, loss=bowl)
    book, _ = sweep(tmp_path / sampler, engine, rates(), sampler, trials=24)
    late = book.listed[12:]
    return sum(e.value for e in late) / len(late)

  for name in ("tpe", "random"):
    (tmp_path / name).mkdir()
  assert distance("tpe") < distance("random") - 0.5


class Killed(Exception):
  """What the sweep does not come back from."""


@pytest.mark.parametrize(("owner", "name", "call"), [
  (manifest_lib.Manifest, "add", 5), (manifest_lib.Manifest, "write", 8),
  (manifest_lib.Manifest, "write", 9), (manifest_lib.Manifest, "write", 10),
  (study.Study, "_tell", 4), (pretend.Engine, "start", 4), (pretend.Engine, "ended", 30)])
@pytest.mark.parametrize("late", [False, True])
def test_killed_anywhere_it_goes_on(tmp_path, monkeypatch, owner, name, call, late):
  calls, real = [], getattr(owner, name)

  def dies(*args, **kwargs):
    calls.append(1)
    if len(calls) == call and not late:
      raise Killed
    out = real(*args, **kwargs)
    if len(calls) == call:
      raise Killed
    return out

  first, second = pretend.Engine(loss=bowl), pretend.Engine(loss=bowl)
  with monkeypatch.context() as patch:
    patch.setattr(owner, name, dies)
    with pytest.raises(Killed):
      sweep(tmp_path, first, rates())
  done = {e.trial.run.name for e in manifest_lib.Manifest(tmp_path).left if e.trial.finished}
  # Also within a write to the journal.
  with (tmp_path / study.JOURNAL).open("a") as file:
    file.write('{"op_code": 6, "wor')
  book, source = sweep(tmp_path, second, rates())
  assert [e.state for e in book.listed] == ["done"] * 8
  assert done.isdisjoint(second.started) and len(second.started) == 8 - len(done)
  assert sorted(s for s, *_ in told(source)) in (["COMPLETE"] * 8, ["COMPLETE"] * 8 + ["FAIL"])
  assert {e.value for e in book.listed} == {v for s, v, _ in told(source) if s == "COMPLETE"}


def test_a_lock_that_nobody_holds_is_nobodys(tmp_path):
  (tmp_path / f"{study.JOURNAL}.lock").symlink_to(study.JOURNAL)
  begun = time.monotonic()
  sweep(tmp_path, pretend.Engine(), rates(), trials=1)
  assert time.monotonic() - begun < 25  # Optuna would wait for half a minute


def test_who_is_worse_than_others_is_stopped(tmp_path):
  made = list(space.grid(pretend.run(train={"steps": 40}), {
    "optim.peak_lr": (3e-3, 4e-3, 2e-3, 1e-5, 2e-5, 3.5e-3)}))
  engine = pretend.Engine(room=1, loss=bowl)
  book, source = sweep(tmp_path, engine, made, pruner="median")
  assert [e.state for e in book.listed] == ["done", "done", "done", "pruned", "pruned", "done"]
  assert all(4 <= e.trial.steps < 10 for e in book.listed if e.state == "pruned")
  assert [s for s, *_ in told(source)] == ["COMPLETE"] * 3 + ["PRUNED"] * 2 + ["COMPLETE"]
  engine = pretend.Engine(loss=bowl)
  book, _ = sweep(tmp_path, engine, made, pruner="median")
  assert engine.started == [] and [e.state for e in book.listed].count("pruned") == 2


@pytest.mark.parametrize("pruner", arguments.PRUNERS)
def test_each_pruner_saves_steps_and_keeps_the_best(tmp_path, pruner):
  over = rates(train={"steps": 40})
  book, _ = sweep(tmp_path, pretend.Engine(room=1, loss=bowl), over, "random", pruner, trials=16)
  states = [e.state for e in book.listed]
  assert states.count("pruned") >= 3 and states.count("pruned") + states.count("done") == 16
  best = min(book.listed, key=lambda e: bowl(e.trial.run, 40))
  assert best.state == "done"


def test_who_failed_is_tried_again_and_told_of(tmp_path):
  over = rates()
  bad = sweep(tmp_path / ".", pretend.Engine(ends={}), over, trials=1)[0].listed[0].trial.run.name
  (tmp_path / "more").mkdir()
  book, source = sweep(tmp_path / "more", pretend.Engine(ends={bad: [(2, 3)]}), over)
  assert [e.state for e in book.listed].count("failed") == 1
  assert [s for s, *_ in told(source)].count("FAIL") == 1
  engine = pretend.Engine()
  book, source = sweep(tmp_path / "more", engine, over)
  assert engine.started == [bad] and [e.state for e in book.listed] == ["done"] * 8
  for entry in book.listed:  # with the settings that it had
    state, _, params = told(source)[entry.number]
    rate = entry.trial.run.optim.peak_lr
    assert state == "COMPLETE" and params["optim.peak_lr"] == pytest.approx(rate, rel=1e-3)
  assert [s for s, *_ in told(source)].count("COMPLETE") == 8


def test_a_loss_that_is_no_number_is_a_failure_to_optuna_alone(tmp_path):
  book, source = sweep(tmp_path, pretend.Engine(loss=lambda run, step: math.nan), rates(), trials=2)
  assert [(e.state, e.value) for e in book.listed] == [("done", None)] * 2
  assert [s for s, *_ in told(source)] == ["FAIL"] * 2


def test_a_space_that_is_used_up_ends_the_sweep(tmp_path):
  over = space.grid(pretend.run(), {"train.seed": (0, 1, 2)})
  book, source = sweep(tmp_path, pretend.Engine(room=4), over, trials=10)
  assert [e.state for e in book.listed] == ["done"] * 3
  assert len(told(source)) <= 3 + 4 * study._SAME  # it is not asked all the time


def test_settings_that_optuna_does_not_know_are_chosen_too(tmp_path):
  large = config.from_json(config.to_json(pretend.run(model={"mlp": 128}))).model
  over = space.grid(pretend.run(), {"model": (pretend.run().model, large),
                                    "model.rope_split": ((2, 1, 1), (2, 2, 4))[:1],
                                    "train.seed": (3, 4)})
  del over.fields["model.rope_split"]
  book, _ = sweep(tmp_path, pretend.Engine(), over, trials=4)
  assert {(e.trial.run.model.mlp, e.trial.run.train.seed) for e in book.listed} == {
    (64, 3), (64, 4), (128, 3), (128, 4)}


def test_another_space_is_another_study_which_knows_what_was_run(tmp_path):
  over = space.grid(pretend.run(), {"train.seed": (0, 1, 2)})
  sweep(tmp_path, pretend.Engine(), list(over))
  engine = pretend.Engine()
  wider = space.grid(pretend.run(), {"train.seed": (0, 1, 2, 3)})
  book, source = sweep(tmp_path, engine, wider, trials=4)
  assert engine.started == ["tiny,seed=3"] and len(book.listed) == 4
  assert [s for s, *_ in told(source)].count("COMPLETE") >= 4


def test_a_sampler_that_lacks_a_library_says_so(tmp_path, monkeypatch):
  monkeypatch.setattr(study.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(ValueError, match="sampler gp needs torch; `pip install torch` brings it"):
    sweep(tmp_path, pretend.Engine(), rates(), "gp")
