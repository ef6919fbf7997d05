"""A sweep from its runs to all of them done: what is started, again, and not again."""

import dataclasses
import fcntl
import json
import os
import signal
import time

import pretend
import pytest

from omnijax import config
from omnijax.job import exits
from omnijax.sweep import driver, figures, space
from omnijax.sweep import manifest as manifest_lib
from omnijax.sweep import trial as trial_lib

RATES = (1e-3, 2e-3, 3e-3, 4e-3)


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
  monkeypatch.setattr(driver, "_POLL_S", 0.001)
  monkeypatch.setattr(driver, "_PAUSE_S", 0.01)


def runs(rates=RATES, **changes):
  return list(space.grid(pretend.run(**changes), {"optim.peak_lr": rates}))


def sweep(root, engine, made, restarts=2):
  """Runs a sweep of these runs in a directory, as the command does."""
  book = manifest_lib.Manifest(root)
  for run in made:
    book.add(run)
  book.begin(())
  show = pretend.Show()
  objective = figures.Objective(None, made)
  driver.Driver(book, engine, driver.Listed(objective), show, restarts=restarts).run()
  return book, show.said


def states(book):
  return [(e.state, e.starts) for e in book.listed]


def test_all_are_run_once_and_none_again(tmp_path):
  made, engine = runs(), pretend.Engine(room=3)
  book, _ = sweep(tmp_path, engine, made)
  assert sorted(engine.started) == sorted(r.name for r in made)
  assert states(book) == [("done", 1)] * 4
  assert [e.value for e in book.listed] == [4.0] * 4
  again = pretend.Engine()
  book, _ = sweep(tmp_path, again, made)
  assert again.started == [] and states(book) == [("done", 1)] * 4


def test_who_ends_before_is_started_again_and_goes_on(tmp_path):
  made = runs((*RATES, 5e-3))
  # Killed; stopped by somebody with all saved; lost others with nothing new, twice; killed before
  # the last step was saved.
  ends = {made[0].name: [(-9, 4)], made[1].name: [(0, 7), (75, 9)],
          made[2].name: [(75, 0), (76, 0)], made[4].name: [(-9, pretend.STEPS)]}
  engine = pretend.Engine(ends=ends)
  book, said = sweep(tmp_path, engine, made)
  assert states(book) == [("done", 2), ("done", 3), ("done", 3), ("done", 1), ("done", 2)]
  assert any("ended with -9 at step 4 (killed by SIGKILL); again in" in s for s in said)
  # What never had a start comes before what had one that failed.
  assert engine.started.index(made[3].name) < engine.started.index(made[0].name, 1)
  lines = trial_lib.lines(book.listed[1].trial.dir / "metrics.jsonl")
  assert [line["step"] for line in lines] == list(range(pretend.STEPS))


@pytest.mark.parametrize(("ends", "starts"), [
  ([(2, 0)], 1), ([(42, 5)], 1), ([(1, 0)] * 9, 3), ([(-9, 3)] * 9, 3),
  # Each start saves: that is progress, until the last ones don't.
  ([(75, 2), (75, 4), (75, 6), (1, 6), (1, 6), (1, 6)], 5)])
def test_who_fails_leaves_the_others_alone_and_is_tried_again(tmp_path, ends, starts):
  made = runs()
  book, said = sweep(tmp_path, pretend.Engine(ends={made[1].name: ends}), made)
  assert states(book) == [("done", 1), ("failed", starts), ("done", 1), ("done", 1)]
  why = "killed by SIGKILL" if ends[-1][0] == -9 else f"it is {ends[-1][0]}"
  assert book.listed[1].why == why and any(f"failed: {why}" in s for s in said)
  engine = pretend.Engine()
  book, _ = sweep(tmp_path, engine, made)
  assert engine.started == [made[1].name] and states(book)[1] == ("done", starts + 1)
  assert book.listed[1].why == ""


def test_an_edited_sweep_adds_runs_and_keeps_those_that_left(tmp_path):
  sweep(tmp_path, pretend.Engine(), runs())
  engine = pretend.Engine()
  book, _ = sweep(tmp_path, engine, runs((9e-3, 4e-3, 1e-3)))
  assert engine.started == ["tiny,peak_lr=0.009"]
  assert [e.trial.run.optim.peak_lr for e in book.listed] == [9e-3, 4e-3, 1e-3]
  assert [e.trial.run.optim.peak_lr for e in book.left] == [2e-3, 3e-3]
  assert all(e.trial.finished for e in book.left)
  values = json.loads((tmp_path / "manifest.json").read_text())["trials"]
  assert [v["settings"] for v in values] == [
    {"optim.peak_lr": r} for r in (9e-3, 4e-3, 1e-3, 2e-3, 3e-3)]


def test_what_the_sweeper_did_not_see_end_is_seen(tmp_path):
  """Killed in between, it says that trials are running which are done, or gone."""
  made = runs()
  sweep(tmp_path, pretend.Engine(ends={r.name: [(2, 3)] for r in made[2:]}), made)
  text = (tmp_path / "manifest.json").read_text().replace('"done"', '"running"')
  (tmp_path / "manifest.json").write_text(text.replace('"failed"', '"running"'))
  engine = pretend.Engine()
  book, _ = sweep(tmp_path, engine, made)
  assert engine.started == [r.name for r in made[2:]]
  assert states(book) == [("done", 1), ("done", 1), ("done", 2), ("done", 2)]


@pytest.mark.parametrize(("number", "raises"), [
  (signal.SIGTERM, exits.Again), (signal.SIGINT, KeyboardInterrupt), (signal.SIGHUP, exits.Again)])
def test_asked_to_stop_all_save_and_the_next_call_goes_on(tmp_path, foreground, number, raises):
  made = runs()

  class Asked(pretend.Engine):
    def ended(self):
      out = super().ended()
      if any(t.steps == 4 for t in self._running.values()):
        os.kill(os.getpid(), number)
      return out

  before = signal.getsignal(number)
  with pytest.raises(raises):
    sweep(tmp_path, Asked(), made, restarts=0)
  assert signal.getsignal(number) == before
  book = manifest_lib.Manifest(tmp_path)
  assert [(e.state, e.starts, e.trial.saved) for e in book.left] == [
    ("waiting", 1, 4), ("waiting", 1, 4), ("waiting", 0, -1), ("waiting", 0, -1)]
  book, _ = sweep(tmp_path, pretend.Engine(), made)
  assert states(book) == [("done", 2), ("done", 2), ("done", 1), ("done", 1)]


def test_a_hang_up_is_nothing_under_nohup(tmp_path):
  class Hung(pretend.Engine):
    def ended(self):
      os.kill(os.getpid(), signal.SIGHUP)
      return super().ended()

  before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
  try:
    book, _ = sweep(tmp_path, Hung(), runs())
  finally:
    signal.signal(signal.SIGHUP, before)
  assert states(book) == [("done", 1)] * 4


def test_who_is_found_running_is_waited_for(tmp_path):
  made, engine = runs(), pretend.Engine(room=3)
  book = manifest_lib.Manifest(tmp_path)
  for run in made:
    book.add(run)
  engine._running[book.listed[2].trial.id] = book.listed[2].trial
  engine.started.append(made[2].name)
  book.begin([book.listed[2].trial.id])
  driver.Driver(book, engine, driver.Listed(figures.Objective(None, made)), pretend.Show(),
                restarts=0).run()
  assert states(book) == [("done", 1), ("done", 1), ("done", 0), ("done", 1)]


def test_asked_twice_it_waits_for_nobody(tmp_path):
  class Deaf(pretend.Engine):
    killed = False

    def ended(self):
      os.kill(os.getpid(), signal.SIGTERM)
      return dict.fromkeys(self._running, -9) if self.killed else {}

    def kill(self):
      self.killed = True

  with pytest.raises(exits.Again):
    sweep(tmp_path, Deaf(), runs())


def test_a_directory_that_somebody_trains_in_is_left_alone(tmp_path, monkeypatch):
  monkeypatch.setattr(driver, "_HELD_S", 0.05)
  made = runs()
  held = trial_lib.make(made[0], tmp_path / "trials").dir
  held.mkdir(parents=True)
  lock = (held / "lock").open("w+")
  lock.write(json.dumps({"pid": 7, "host": "h", "since": "then"}))
  lock.flush()
  fcntl.flock(lock, fcntl.LOCK_EX)
  begun = time.monotonic()

  class Until(pretend.Engine):
    def start(self, trials):
      assert trials[0].dir != held or time.monotonic() - begun > 0.3
      super().start(trials)

    def ended(self):
      if time.monotonic() - begun > 0.3:
        lock.close()
      return super().ended()

  book, said = sweep(tmp_path, Until(room=1), made)
  assert states(book) == [("done", 1)] * 4
  assert sum("waits for process 7 on h since then, which trains there" in s for s in said) == 1


def test_an_id_is_name_and_what_decides_the_result(tmp_path):
  name = lambda run: trial_lib.make(run, tmp_path).id
  one = pretend.run()
  assert name(one) == name(pretend.run()) and name(one).startswith("tiny-")
  same = [pretend.run(mesh=config.Mesh(data=2)), pretend.run(data={"prefetch": 9}),
          pretend.run(train={"log_every": 3, "save_every": 7, "keep": 1})]
  other = [pretend.run("tony"), pretend.run(train={"steps": 11}), pretend.run(train={"seed": 1}),
           pretend.run(optim={"peak_lr": 0.5}), pretend.run(eval=config.Eval(every=1))]
  assert {name(r) for r in same} == {name(one)}
  assert len({name(r) for r in [one, *other]}) == len(other) + 1
  assert name(pretend.run("a/b,c=d e" + "x" * 300)).startswith("a-b-c-d-exxx")
  assert len(name(pretend.run("x" * 300))) < 100


def test_an_id_stays_when_a_version_has_more_fields(tmp_path, monkeypatch):
  @dataclasses.dataclass(frozen=True, kw_only=True)
  class Train(config.Train):
    flavour: str = "plain"

  one = pretend.run()
  newer = dataclasses.replace(one, train=Train(**dataclasses.asdict(one.train)))
  name = lambda run: trial_lib.make(run, tmp_path).id
  assert name(newer) == name(one)
  other = dataclasses.replace(newer, train=dataclasses.replace(newer.train, flavour="sweet"))
  assert name(other) != name(one)
  # A default that became another is another run.
  book = manifest_lib.Manifest(tmp_path)
  book.add(one)
  book.write()
  before, field = name(one), config.Optim.__dataclass_fields__["b1"]
  monkeypatch.setattr(field, "default", 0.5)
  changed = dataclasses.replace(one, optim=dataclasses.replace(one.optim, b1=0.5))
  assert name(changed) == before
  with pytest.raises(ValueError, match="other defaults: optim.b1 was 0.9 and is 0.5; set them in"):
    manifest_lib.Manifest(tmp_path).add(changed)


def test_two_runs_of_one_name_are_refused(tmp_path):
  book = manifest_lib.Manifest(tmp_path)
  book.add(pretend.run())
  with pytest.raises(ValueError, match="named 'tiny'; they differ in train.seed: give each"):
    book.add(pretend.run(train={"seed": 1}))
  with pytest.raises(ValueError, match="is in the sweep twice"):
    book.add(pretend.run())


def test_what_is_no_manifest_is_not_overwritten(tmp_path):
  (tmp_path / "manifest.json").write_text("[]")
  with pytest.raises(ValueError, match="manifest.json is no manifest of a sweep"):
    manifest_lib.Manifest(tmp_path)
