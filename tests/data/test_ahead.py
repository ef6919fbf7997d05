"""Windows counted by other processes and kept in a file: the same rows, at once."""

import dataclasses

import pytest
from test_loader import data, equal, make, root  # noqa: F401

from omnijax.data import ahead, loader


def test_rows_counted_by_processes_are_the_plan_s(data):  # noqa: F811
  data = dataclasses.replace(data, weights=(1.0, 2.0), stages=(40,), sources=data.sources)
  one, two = make(data), make(data)
  one._plan.row(400)
  list(ahead.count(two._plan, two.records, 400, 2))
  n = len(one._plan._ends)
  assert two._plan._ends[:n] == one._plan._ends and two._plan._places[: n + 1] == one._plan._places


def test_what_is_kept_is_taken_over_by_the_same_data_only(data, tmp_path, caplog):  # noqa: F811
  made, file = make(data), tmp_path / "plan.npz"
  made.batch_at(70)
  made.keep(file)
  fresh = make(data)
  fresh.recall(file)
  assert fresh._plan._ends == made._plan._ends
  equal(fresh.batch_at(70), made.batch_at(70))
  other = make(dataclasses.replace(data, positions=120))
  other.recall(file)
  assert other._plan._ends == []
  file.write_bytes(file.read_bytes()[:100])
  broken = make(data)
  broken.recall(file)
  assert broken._plan._ends == [] and "its rows are counted again" in caplog.text
  broken.recall(tmp_path / "gone.npz")
  equal(broken.batch_at(70), made.batch_at(70))


def test_a_step_far_on_is_reached_by_processes(data, monkeypatch):  # noqa: F811
  monkeypatch.setattr(loader, "_FAR", 50)
  made, whole = make(data), make(data)
  made.reach(40 * 4)
  assert made._plan.reached() == 0, "near: counted as it is read"
  made.reach(300 * 4)
  assert made._plan.reached() >= 300 * 4
  equal(made.batch_at(300), whole.batch_at(300))


def test_data_that_run_out_say_when(data):  # noqa: F811
  data = dataclasses.replace(data, epochs=(1.0,), weights=(1.0,))
  made = make(data)
  steps = made.steps
  assert steps is not None
  with pytest.raises(ValueError, match=f"the data run out in step {steps + 1}: .*Data.epochs"):
    made.batch_at(steps)
  with pytest.raises(ValueError, match="the data run out in step"):
    list(made.iterate(0, steps + 1))
  # Also of a batch that is begun but not full.
  assert sum((made.batch_at(t)["segment"].max(1)).sum() for t in range(steps - 1)) > 250
