"""Real jobs of several processes: killed, stopped, resized, stuck, and refused."""

import dataclasses
import random
import resource
import signal
import sys
import time
from pathlib import Path

import pytest

from launch import local
from omnijax import checkpoint, config
from omnijax.checkpoint import identity
from omnijax.job import exits
from omnijax.train import metrics

HERE = Path(__file__).parent
EXPERIMENT = """
from pathlib import Path
from omnijax import config
run = lambda: config.from_json(Path({!r}).read_text())
"""
ENV = {"PYTHONPATH": str(HERE.parents[1])}
FAST = 10.0  # seconds that survivors may take
GANGS = []
SAVED = 30.0  # that stopping may take with everything saved: 4 on a quiet machine, 11 on a busy one


@pytest.fixture
def experiment(records, tmp_path):
  """Writes an experiment file of `make_run`, changed."""
  from test_loop import make_run

  def write(data=None, **changes):
    run = make_run(records, **{"mesh": config.Mesh(), "eval": config.Eval(every=0)} | changes)
    run = dataclasses.replace(run, data=dataclasses.replace(run.data, **data or {}))
    (tmp_path / "run.json").write_text(config.to_json(run))
    (tmp_path / "exp.py").write_text(EXPERIMENT.format(str(tmp_path / "run.json")))
    return tmp_path / "exp.py"

  yield write
  while GANGS:
    GANGS.pop().send(signal.SIGKILL)  # of a test that failed


def start(experiment, run_dir, processes, devices, **env):
  command = [sys.executable, "-m", "omnijax.cli", "train", str(experiment), "--run-dir",
             str(run_dir)]
  GANGS.append(local.Gang(command, processes, devices=devices, env=ENV | env, echo=False))
  return GANGS[-1]


def until(happened, gang):
  """Waits for something, while all processes live."""
  deadline = time.monotonic() + 180
  while not happened():
    assert all(m.poll() is None for m in gang.members), [x[-3:] for x in gang.lines]
    assert time.monotonic() < deadline, [x[-3:] for x in gang.lines]
    time.sleep(0.005)


def after(run_dir, lines, gang):
  """Waits until so many steps are written."""
  path = run_dir / "metrics.jsonl"
  until(lambda: path.exists() and path.read_text().count("\n") >= lines, gang)


def ended(gang):
  """Exit codes, and seconds from now until all are gone."""
  begun = time.monotonic()
  return gang.wait(), time.monotonic() - begun


def test_killed_and_resized_it_is_still_the_same_run(experiment, whole, tmp_path):
  run_dir, file = tmp_path / "run", experiment()
  gang = start(file, run_dir, 2, 2)
  after(run_dir, 3, gang)
  gang.members[1].kill()
  codes, seconds = ended(gang)
  assert codes == [exits.AGAIN, -signal.SIGKILL] and seconds < FAST, (codes, gang.lines[0][-5:])
  assert "another process is gone" in gang.lines[0][-1] or "lost the job" in gang.lines[0][-1]

  gang = start(file, run_dir, 1, 4)
  assert ended(gang)[0] == [0], gang.lines
  got, want = ([line["loss"] for line in metrics.read(d)] for d in (run_dir, whole))
  assert len(got) == len(want) == 12
  assert got == pytest.approx(want, abs=1e-5)


def test_a_job_ends_when_it_is_asked_to_or_loses_its_coordinator(experiment, tmp_path):
  file = experiment(train=config.Train(steps=10_000, save_every=10_000))
  run_dir = tmp_path / "run"
  gang = start(file, run_dir, 2, 1)
  after(run_dir, 2, gang)
  gang.members[1].send_signal(signal.SIGTERM)
  codes, seconds = ended(gang)
  assert codes == [0, 0] and seconds < SAVED, (codes, gang.lines)
  done = len(metrics.read(run_dir))
  assert 2 <= done < 10_000 and checkpoint.steps(run_dir / "checkpoints") == [done]
  assert "stopped on request" in (run_dir / "log.txt").read_text().splitlines()[-1]

  gang = start(file, run_dir, 2, 1)
  after(run_dir, done + 2, gang)
  gang.members[0].kill()
  codes, seconds = ended(gang)
  assert codes == [-signal.SIGKILL, exits.AGAIN] and seconds < FAST, (codes, gang.lines[1][-5:])


def test_a_second_job_is_told_who_holds_the_run(experiment, tmp_path):
  file, run_dir = experiment(train=config.Train(steps=10_000, save_every=10_000)), tmp_path / "run"
  first = start(file, run_dir, 1, 1, OMNIJAX_STOPPED_CODE="75")
  after(run_dir, 1, first)
  second = start(file, run_dir, 1, 1)
  assert ended(second)[0] == [exits.BAD_INPUT]
  assert f"is being trained by process {first.members[0].pid} on " in second.lines[0][-1]
  first.members[0].send_signal(signal.SIGTERM)
  codes, seconds = ended(first)
  assert codes == [exits.AGAIN] and seconds < SAVED  # as an engine wants to be told
  assert checkpoint.steps(run_dir / "checkpoints")[-1] == len(metrics.read(run_dir))


def test_a_disk_that_is_full_ends_the_job_and_harms_nothing(experiment, whole, tmp_path):
  run_dir, file = tmp_path / "run", experiment()
  gang = start(file, run_dir, 1, 1)
  after(run_dir, 5, gang)
  # To a process, a file that may not grow is like a disk that has no room for it.
  small = 2**14, resource.getrlimit(resource.RLIMIT_FSIZE)[1]
  resource.prlimit(gang.members[0].pid, resource.RLIMIT_FSIZE, small)
  codes, _ = ended(gang)
  saved = checkpoint.steps(run_dir / "checkpoints")
  assert codes == [exits.AGAIN] and 2 <= saved[-1] < 12, (codes, saved, gang.lines[0][-5:])
  # Whichever file it hits first.
  assert "saving step" in gang.lines[0][-1] or "can't be written" in gang.lines[0][-1]
  assert "is untouched" in gang.lines[0][-1]
  assert ended(start(file, run_dir, 1, 1))[0] == [0]
  assert [x["loss"] for x in metrics.read(run_dir)] == pytest.approx(
    [x["loss"] for x in metrics.read(whole)], abs=1e-5)


def test_who_is_missing_or_misdirected_is_named_in_time(experiment, tmp_path):
  command = [sys.executable, "-m", "omnijax.cli", "train", str(experiment()), "--run-dir",
             str(tmp_path / "run")]
  for env, message in (
      ({"JAX_PROCESS_ID": "2"}, "JAX_PROCESS_ID is 2 and JAX_NUM_PROCESSES 2"),
      ({"JAX_NUM_PROCESSES": "two"}, "must be whole numbers")):
    wrong = local.Gang(command, 2, devices=1, env=ENV | env, echo=False)
    assert wrong.wait() == [exits.BAD_INPUT] * 2
    assert message in wrong.lines[0][-1]


@pytest.mark.slow
@pytest.mark.parametrize("index", ["0", "1"])
def test_who_waits_for_the_others_in_vain_ends_within_a_minute(experiment, tmp_path, index):
  command = [sys.executable, "-m", "omnijax.cli", "train", str(experiment()), "--run-dir",
             str(tmp_path / "run")]
  alone = local.Gang(command, 1, devices=1, echo=False,
                     env=ENV | {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": index})
  codes, seconds = ended(alone)
  assert codes == [exits.AGAIN] and seconds < 75
  assert f"process {index} of 2 waited 40 s in vain for the others at" in alone.lines[0][-1]
  if index == "0":
    names = next(i for i, line in enumerate(alone.lines[0]) if "timed out task names" in line)
    assert alone.lines[0][names + 1] == "1"


def at_random(run_dir, gang, rng, last):
  """Waits for a moment after the first step was begun: in any of the next steps, or in a save."""
  until(lambda: any("starting at step" in line for line in gang.lines[0]), gang)
  if rng.random() < 0.5:
    until(lambda: list((run_dir / "checkpoints").glob("*tmp*")), gang)
    return "save"
  steps = len(metrics.read(run_dir)) + rng.randrange(4)
  after(run_dir, min(steps, last), gang)
  time.sleep(rng.random() * 0.5)
  return "step"


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "part"), [(2, 1), (2, 2), (2, 3), (2, 4), (4, 1), (4, 2)])
def test_random_kills(experiment, tmp_path, processes, part):
  """Of any process, within steps and saves; every start goes on exactly. Thirty over all parts."""
  kills = 5
  seed = random.randrange(1 << 30)
  rng = random.Random(seed)
  steps = 12 * kills
  file = experiment(train=config.Train(steps=steps, save_every=2))
  whole, run_dir = tmp_path / "whole", tmp_path / "run"
  assert ended(start(file, whole, processes, 4 // processes))[0] == [0] * processes
  for kill in range(kills):
    gang = start(file, run_dir, processes, 4 // processes)
    where, victim = at_random(run_dir, gang, rng, steps - 1), rng.randrange(processes)
    gang.members[victim].kill()
    codes, seconds = ended(gang)
    told = f"seed {seed}: kill {kill} of {victim} in a {where}: {codes} in {seconds:.1f} s"
    print(told, flush=True)
    wanted = [-signal.SIGKILL if i == victim else exits.AGAIN for i in range(processes)]
    assert codes == wanted and seconds < FAST, (told, [x[-3:] for x in gang.lines])
  assert ended(start(file, run_dir, processes, 4 // processes))[0] == [0] * processes, seed
  got, want = ([line["loss"] for line in metrics.read(d)] for d in (run_dir, whole))
  assert got == want, seed
  a, b = (identity.read(d / "checkpoints" / str(steps))["fingerprints"] for d in (run_dir, whole))
  assert a == b, seed
