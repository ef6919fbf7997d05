"""A run on two, four and one processes and on other meshes in between: slow."""

import signal

import pytest
from test_faults import after, ended, experiment, start  # noqa: F401

from omnijax import checkpoint, config
from omnijax.checkpoint import identity
from omnijax.train import metrics

# What an experiment puts before itself: which bits each row of each batch has is noted.
NOTES = """
import os, zlib
from omnijax.data import loader
iterate = loader.Loader.iterate
def noting(self, first, last=None, row=None):
  for step, batch in enumerate(iterate(self, first, last, row), first):
    with open(os.environ["NOTES"], "a") as file:
      for j, name in enumerate(self._rows._mine):
        bits = zlib.crc32(b"".join(batch[k][j].tobytes() for k in sorted(batch)))
        file.write(f"{step} {name} {bits}\\n")
    yield batch
loader.Loader.iterate = noting
"""


@pytest.mark.slow
def test_two_four_and_one_processes_are_one_run(experiment, tmp_path):  # noqa: F811
  run_dir, steps = tmp_path / "run", 60
  notes = {name: tmp_path / name for name in ("whole.txt", "resized.txt")}

  def launch(name, directory, processes, devices, mesh):
    train = config.Train(steps=steps, save_every=5, keep=100)
    file = experiment(train=train, mesh=mesh, data={"rows": 8})
    file.write_text(NOTES + file.read_text())
    return start(file, directory, processes, devices, NOTES=str(notes[name]))

  assert ended(launch("whole.txt", tmp_path / "whole", 1, 1, config.Mesh()))[0] == [0]
  gang = launch("resized.txt", run_dir, 2, 2, config.Mesh())
  after(run_dir, 12, gang)
  gang.members[0].kill()
  ended(gang)
  gang = launch("resized.txt", run_dir, 4, 1, config.Mesh(data=2, fsdp=1, tensor=2))
  after(run_dir, 30, gang)
  gang.members[2].send_signal(signal.SIGTERM)
  assert ended(gang)[0] == [0] * 4, [lines[-3:] for lines in gang.lines]
  assert ended(launch("resized.txt", run_dir, 1, 8, config.Mesh(context=2)))[0] == [0]

  whole_rows, rows = ({tuple(line.split()) for line in notes[n].read_text().splitlines()}
                      for n in notes)
  assert rows == whole_rows and len(rows) == 8 * steps  # each row of each step has the same bits
  got, want = ([line["loss"] for line in metrics.read(d)] for d in (run_dir, tmp_path / "whole"))
  print("losses differ by at most", max(abs(a - b) for a, b in zip(got, want, strict=True)))
  assert got == pytest.approx(want, abs=1e-5)
  # What was restored had the bits that were saved: whoever restores makes sure of it.
  log = (run_dir / "log.txt").read_text()
  assert log.count("starting at step") == 3 and "damaged" not in log
  assert checkpoint.steps(run_dir / "checkpoints")[-1] == steps
  assert identity.read(run_dir / "checkpoints" / str(steps)) is not None
