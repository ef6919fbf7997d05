"""SIGTERM in every phase, data that doesn't come, memory over many saves: real processes, slow."""

import os
import re
import signal
import time
from pathlib import Path

import pytest
from test_faults import EXPERIMENT, FAST, SAVED, after, ended, experiment, start, until  # noqa: F401

from omnijax import checkpoint, config
from omnijax.job import exits
from omnijax.train import metrics

# What an experiment puts before itself: it says that it is in a phase, and makes that last.
SLOW = """
import sys, time
def slowly(owner, name, seconds, when=lambda *_: True):
  old = getattr(owner, name)
  def new(*args, **kwargs):
    if when(*args):
      print("PHASE", flush=True)
      time.sleep(seconds)
    return old(*args, **kwargs)
  setattr(owner, name, new)
"""
PHASES = {
  "restore": ("import omnijax.checkpoint as c; slowly(c.Checkpoints, 'restore', 2)", 0),
  "compile": ("from omnijax.train import step; slowly(step, 'make_train_step', 2)", 0),
  "evaluation": ("from omnijax.train import step; slowly(step, 'make_eval_step', 2)", 1),
  "save": ("import omnijax.checkpoint as c; slowly(c.Checkpoints, 'save', 2)", 2),
  "samples": ("from omnijax.evals import samples; slowly(samples, 'write', 2)", 3),
  # The batches of one of the processes, of the fourth step and on.
  "data": ("""
import jax
from omnijax.data import loader
slowly(loader, '_stack', 4, lambda rows: jax.process_index() == jax.process_count() - 1 and
       next(COUNT) >= 3)
import itertools
COUNT = itertools.count()
""", 1)}


def slow(experiment, phase, **changes):  # noqa: F811
  train = config.Train(steps=10_000, save_every=2, sample_every=3)
  data = {"prefetch": 0} if phase == "data" else {}
  file = experiment(**({"train": train, "eval": config.Eval(every=1, batches=2), "data": data}
                       | changes))
  file.write_text(SLOW + PHASES[phase][0] + file.read_text())
  return file


@pytest.mark.slow
@pytest.mark.parametrize(("phase", "processes"), [
  (phase, n) for phase in PHASES for n in (1, 2) if (phase, n) != ("samples", 2)])
def test_sigterm_in_every_phase_saves_a_step_and_ends(experiment, tmp_path, phase,  # noqa: F811
                                                      processes):
  run_dir = tmp_path / "run"
  gang = start(slow(experiment, phase), run_dir, processes, 2 // processes)
  until(lambda: any("PHASE" in line for lines in gang.lines for line in lines), gang)
  gang.members[-1].send_signal(signal.SIGTERM)
  codes, seconds = ended(gang)
  # The last thing that a step does is to be written; one that the signal came before may be later.
  written = run_dir / "metrics.jsonl"
  since = min(seconds, time.time() - written.stat().st_mtime) if written.exists() else seconds
  print(f"{phase}, {processes} processes: {codes} after {seconds:.1f} s, {since:.1f} s after its "
        "last step", flush=True)
  assert codes == [0] * processes, (codes, [lines[-5:] for lines in gang.lines])
  assert since < FAST and seconds < SAVED
  done = len(metrics.read(run_dir))
  saved = checkpoint.steps(run_dir / "checkpoints")
  assert PHASES[phase][1] <= done < 100 and saved[-1:] == ([done] if done else [])
  assert "stopped on request" in (run_dir / "log.txt").read_text().splitlines()[-1]


@pytest.mark.slow
def test_sigterm_before_jax_is_there_is_obeyed_once_it_is(experiment, tmp_path):  # noqa: F811
  run_dir = tmp_path / "run"
  gang = start(experiment(train=config.Train(steps=10_000)), run_dir, 1, 1)
  maps = Path(f"/proc/{gang.members[0].pid}/maps")
  until(lambda: "jaxlib" in maps.read_text(), gang)
  gang.members[0].send_signal(signal.SIGTERM)
  codes, _ = ended(gang)
  assert codes == [0], gang.lines
  assert "stopped on request" in (run_dir / "log.txt").read_text().splitlines()[-1]


def children(pid):
  """Processes that a process has started."""
  found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
  for thread in Path(f"/proc/{pid}/task").iterdir():
    found += (thread / "children").read_text().split()
  return sorted({int(x) for x in found})


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code", "message"), [
  (signal.SIGSTOP, exits.STUCK, "stuck in waiting for the data of step"),
  (signal.SIGKILL, exits.AGAIN, "a data worker is gone")])
def test_a_data_worker_that_is_stuck_or_gone_ends_the_job(experiment, tmp_path,  # noqa: F811
                                                          number, code, message):
  run_dir = tmp_path / "run"
  train = config.Train(steps=30, save_every=2, stuck_after_s=40.0)
  file = experiment(train=train, data={"workers": 1, "prefetch": 1})
  # Data that is slower than the steps: there is none in store.
  file.write_text(SLOW + "from omnijax.data import loader\nslowly(loader, '_stack', 0.2)\n"
                  + file.read_text())
  gang = start(file, run_dir, 1, 1)
  after(run_dir, 5, gang)
  for worker in children(gang.members[0].pid):
    if "spawn_main" in Path(f"/proc/{worker}/cmdline").read_text():
      os.kill(worker, number)
  codes, seconds = ended(gang)
  print(codes, f"{seconds:.1f} s", flush=True)
  assert codes == [code], gang.lines[0][-8:]
  assert message in (run_dir / "log.txt").read_text().splitlines()[-1]
  assert ended(start(file, run_dir, 1, 1))[0] == [0]
  assert len(metrics.read(run_dir)) == 30


@pytest.mark.slow
def test_memory_stays_flat_over_many_saves(experiment, tmp_path):  # noqa: F811
  run_dir, used = tmp_path / "run", []
  file = experiment(train=config.Train(steps=80, save_every=2),
                    model={"layers": 8, "dim": 256, "mlp": 1024})  # a checkpoint is 100 MB
  gang = start(file, run_dir, 1, 1)
  for saves in (5, 10, 20, 30, 38):
    after(run_dir, 2 * saves + 1, gang)
    status = Path(f"/proc/{gang.members[0].pid}/status").read_text()
    used.append(int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024)
  assert ended(gang)[0] == [0]
  print([f"{x:.0f} MiB" for x in used], flush=True)
  assert max(used[2:]) < 1.05 * max(used[:2]), used
