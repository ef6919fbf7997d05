"""The life of a run: real tokenizers and records, killed and resumed, evaluated and refused."""

import dataclasses
import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import soundfile
import tiny
from PIL import Image

from omnijax import checkpoint, config
from omnijax.data import encode, loader, prepare
from omnijax.evals import show
from omnijax.job import exits
from omnijax.tokenizers import load as tokenizers_lib
from omnijax.train import loop, metrics

STEPS = 12


@pytest.fixture(scope="session")
def records(tmp_path_factory):
  """Sixty documents of text, pictures and sound through the tokenizers that ship."""
  return prepared(tmp_path_factory.mktemp("raw"), documents=60)


def prepared(root, documents):
  r = np.random.default_rng(0)
  for i in range(4):
    Image.fromarray(r.integers(0, 255, (16, 16, 3), np.uint8)).save(root / f"{i}.png")
    tone = np.sin(np.arange(4000) * (0.05 + 0.02 * i)).astype(np.float32) * 0.3
    soundfile.write(root / f"{i}.wav", tone, 16000)
  words = ["one", "two", "three", "four"]
  with (root / "m.jsonl").open("w") as out:
    for n in range(documents):
      i = n % 4
      parts = [{"text": words[i], "role": "user"}, {"image": f"{i}.png", "role": "assistant"}]
      if n % 3 == 1:
        parts = [{"text": words[i], "role": "user"},
                 {"audio": f"{i}.wav", "transcript": words[i], "role": "assistant"}]
      if n % 3 == 2:
        parts = [{"audio": f"{i}.wav", "transcript": words[i], "role": "user"},
                 {"text": words[i], "role": "assistant"}]
      out.write(json.dumps({"parts": parts}) + "\n")
  loaded = tokenizers_lib.load_all(config.Tokenizers())
  prepare.prepare(root / "m.jsonl", root / "records", tokenizers=encode.Tokenizers(*loaded),
                  processes=0, progress=False)
  return root / "records"


def make_run(records, **changes):
  base = dict(
    data=config.Data(sources=(str(records),), heldout=(str(records),), rows=4, positions=64,
                     frames=24, window=512, prefetch=2),
    tokenizers=config.Tokenizers(codebooks=3), mesh=config.Mesh(data=1, fsdp=1),
    train=config.Train(steps=STEPS, log_every=5, save_every=2),
    eval=config.Eval(every=5, batches=1))
  return tiny.run(**(base | changes))


def losses(run_dir):
  return [line["loss"] for line in metrics.read(run_dir)]


@pytest.fixture(scope="session")
def whole(records, tmp_path_factory):
  """An uninterrupted run."""
  run_dir = tmp_path_factory.mktemp("whole")
  loop.train(make_run(records), run_dir)
  return run_dir


def test_a_run_directory_describes_itself(whole, records):
  lines = metrics.read(whole)
  assert [line["step"] for line in lines] == list(range(STEPS))
  for key in ("loss", "loss/text", "loss/image", "loss/audio", "tokens_per_s", "mfu",
              "data_wait_s", "step_s", "bits_per_byte", "bits_per_pixel", "bits_per_second"):
    assert all(np.isfinite(line[key]) for line in lines), key
  assert lines[-1]["loss"] < lines[0]["loss"] - 0.5
  assert config.from_json((whole / "config.json").read_text()) == make_run(records)
  sample = whole / "samples" / f"{STEPS:07d}"
  assert {p.name for p in sample.iterdir()} >= {"text.txt", "image_0.png", "audio_0.wav"}
  assert list((whole / "tensorboard").iterdir()) and (whole / "log.txt").exists()
  evals = [json.loads(x) for x in (whole / "eval.jsonl").read_text().splitlines()]
  assert [e["step"] for e in evals] == [5, 10, 12]  # the last step, too
  assert checkpoint.read_identity(whole / "checkpoints")[0] == STEPS


_CHILD = """
import sys
import conftest
from pathlib import Path
import test_loop
from omnijax.train import loop
loop.train(test_loop.make_run(Path(sys.argv[1])), Path(sys.argv[2]))
"""


def test_killed_and_resumed_is_bitwise_the_whole_run(whole, records, tmp_path):
  run_dir, seed = tmp_path / "run", random.randrange(1 << 30)
  here = os.path.dirname(__file__)
  env = os.environ | {"PYTHONPATH": os.pathsep.join([here, os.path.dirname(here),
                                                     os.path.dirname(os.path.dirname(here))])}
  command = [sys.executable, "-c", _CHILD, str(records), str(run_dir)]
  child = subprocess.Popen(command, env=env, start_new_session=True)
  target = random.Random(seed).randrange(3, STEPS - 1)
  lines = run_dir / "metrics.jsonl"
  while not (lines.exists() and lines.read_text().count("\n") >= target):
    assert child.poll() is None, "the run ended before it was killed"
    time.sleep(0.02)
  os.killpg(child.pid, signal.SIGKILL)
  child.wait()
  before = losses(run_dir)
  assert before, f"seed {seed}"
  loop.train(make_run(records), run_dir)
  assert losses(run_dir) == losses(whole), f"seed {seed}, killed after step {target}"
  assert heldout(run_dir) == heldout(whole), f"seed {seed}, killed after step {target}"


def heldout(run_dir):
  lines = [json.loads(x) for x in (run_dir / "eval.jsonl").read_text().splitlines()]
  return [(line["step"], line["eval/loss"]) for line in lines]


def test_what_is_done_is_not_forgotten_when_it_is_started_again(whole, records, tmp_path):
  run_dir = tmp_path / "run"
  shutil.copytree(whole, run_dir)
  loop.train(make_run(records), run_dir)
  assert losses(run_dir) == losses(whole) and heldout(run_dir) == heldout(whole)


def test_another_experiment_is_refused(whole, records):
  with pytest.raises(ValueError, match=r"other run: model\.layers was 2 and is now 1; .*-run-dir"):
    loop.train(make_run(records, model={"layers": 1}), whole)
  assert losses(whole)  # nothing was lost


def test_other_codebooks_are_another_run(whole, records):
  with pytest.raises(ValueError, match="another run: tokenizers.codebooks was 3 and is now 2;"):
    loop.train(make_run(records, tokenizers=config.Tokenizers(codebooks=2)), whole)


def test_a_mesh_that_does_not_divide_is_named(records, tmp_path):
  with pytest.raises(ValueError, match=r"data.rows .* is 4.*product 8.*use 8"):
    loop.train(make_run(records, mesh=config.Mesh(data=8, fsdp=1)), tmp_path)


def test_a_directory_that_cannot_be_written(records, tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(ValueError, match=r"run directory .*file/run can't be written.*--run-dir"):
    loop.train(make_run(records), tmp_path / "file" / "run")


def test_rows_too_small_for_a_document(records, tmp_path):
  data = config.Data(sources=(str(records),), rows=4, positions=4, frames=4)
  with pytest.raises(ValueError, match=re.compile("positions", re.I)):
    loop.train(make_run(records, data=data), tmp_path / "run")
  assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(("mesh", "message"), [
  (config.Mesh(data=16, fsdp=1), "16 devices"),
  (config.Mesh(data=8, fsdp=1), "rows")])
def test_a_run_that_does_not_fit_the_devices_writes_nothing(records, tmp_path, mesh, message):
  with pytest.raises(ValueError, match=message):
    loop.train(make_run(records, mesh=mesh), tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_evaluation_reads_and_does_not_write(whole):
  before = sorted((p, p.stat().st_mtime_ns) for p in (whole / "checkpoints").rglob("*"))
  values = loop.evaluate(whole, batches=1)
  assert values["step"] == STEPS and 0 < values["eval/loss/text"] < 10
  assert sorted((p, p.stat().st_mtime_ns) for p in (whole / "checkpoints").rglob("*")) == before


def test_model_flops_against_a_count_by_hand():
  batch = tiny.pack([[tiny.streams(np.random.default_rng(0))]])
  m, flops = tiny.MODEL, metrics.model_flops(tiny.MODEL, tiny.VOCAB, batch)
  n, f = int((batch["segment"] > 0).sum()), int(batch["frame_weight"].any(-1).sum())
  layer = 32 * 64 + 2 * 32 * 32 + 64 * 32 + 3 * 32 * 64
  assert flops["trunk"] == 6 * n * m.layers * layer
  assert flops["attention"] == 12 * n * (n + 1) / 2 * m.layers * 64
  assert flops["head"] == 6 * n * 32 * tiny.VOCAB.size
  assert flops["depth"] == 6 * f * (3 * 32 * 32 + 32 * 32 + 3 * 32 * (4 * 32 + 3 * 32) + 9 * 32
                                    + 3 * 32 * 50)


def test_hosts_and_workers_see_the_same_batches(records):
  run = make_run(records)
  vocab = tokenizers_lib.vocab_of(tokenizers_lib.load_all(run.tokenizers), run.tokenizers)
  one = loader.Loader(run.data, vocab, seed=0).batch_at(5)
  two = [loader.Loader(run.data, vocab, seed=0, mine=rows).batch_at(5)
         for rows in (range(2), range(2, 4))]
  for key, value in one.items():
    np.testing.assert_array_equal(value, np.concatenate([b[key] for b in two]))
  assert not np.array_equal(two[0]["main"], two[1]["main"])
  assert jax.tree.leaves(one)


def test_a_run_over_context_and_experts_writes_samples_too(records, tmp_path):
  # Rows are spread out in training, and whole on every device where something is written.
  run = make_run(records, mesh=config.Mesh(data=1, fsdp=1, context=2, expert=2),
                 model={"experts": 4, "mlp": 32}, train=config.Train(steps=2))
  loop.train(run, tmp_path / "run")
  assert any((tmp_path / "run" / "samples").rglob("*.png"))
  assert len(losses(tmp_path / "run")) == 2


def poisoned(monkeypatch, bad):
  """Batches of these numbers have a weight that is no number."""
  whole = loader.Loader.iterate

  def iterate(self, first, last=None, row=None):
    begin = first if row is None else row // self._data.rows
    for number, batch in enumerate(whole(self, first, last, row), begin):
      if number in bad:
        batch = batch | {"weight": np.full_like(batch["weight"], np.nan)}
      yield batch

  monkeypatch.setattr(loader.Loader, "iterate", iterate)


def test_a_step_whose_gradients_are_not_finite_changes_nothing(whole, records, tmp_path,
                                                               monkeypatch):
  poisoned(monkeypatch, {5})
  run = make_run(records, eval=config.Eval(every=0))
  loop.train(run, tmp_path / "run")
  lines = metrics.read(tmp_path / "run")
  assert [line["skipped"] for line in lines] == [int(i == 5) for i in range(STEPS)]
  assert np.isnan(lines[5]["loss"]) and lines[4]["loss"] == metrics.read(whole)[4]["loss"]
  assert all(np.isfinite(line["loss"]) for i, line in enumerate(lines) if i != 5)
  assert lines[-1]["loss"] < lines[0]["loss"] - 0.5


def test_many_of_them_are_left_out(records, tmp_path, monkeypatch):
  """Back to the checkpoint before them, on with the data after them, twice the same."""
  poisoned(monkeypatch, {5, 6, 7})
  run = make_run(records, eval=config.Eval(every=0), optim={"skips": 2},
                 train=config.Train(steps=STEPS, save_every=4))
  for name in "ab":
    loop.train(run, tmp_path / name)
  a, b = ([line["loss"] for line in metrics.read(tmp_path / name)] for name in "ab")
  assert a == b and len(a) == STEPS and np.isfinite(a).all()
  found = checkpoint.identity.read(tmp_path / "a" / "checkpoints" / str(STEPS))
  assert found["events"] == [{"kind": "went back", "step": 4, "from": 8, "row": 32}]
  # After a resume the data goes on from there, too.
  read = []
  whole = loader.Loader.iterate
  monkeypatch.setattr(loader.Loader, "iterate",
                      lambda self, *span: read.append(span) or whole(self, *span))
  longer = dataclasses.replace(run, train=dataclasses.replace(run.train, steps=STEPS + 2))
  loop.train(longer, tmp_path / "a")
  assert read[0] == (STEPS, STEPS + 2, 4 * (STEPS + 4))


def test_a_run_that_can_not_go_on_says_so(records, tmp_path, monkeypatch):
  poisoned(monkeypatch, set(range(3, 1000)))
  run = make_run(records, eval=config.Eval(every=0), optim={"skips": 2})
  with pytest.raises(exits.Never, match="going back to step 2 3 times did not help"):
    loop.train(run, tmp_path / "run")
  assert checkpoint.read_identity(tmp_path / "run" / "checkpoints")[0] == 2


@pytest.mark.parametrize(("number", "wanted"),
                         [(errno.ENOSPC, exits.Again), (errno.EPERM, OSError)])
def test_a_full_disk_is_no_fault_of_the_run(records, tmp_path, monkeypatch, number, wanted):
  def full(self, step, values):
    raise OSError(number, "full")

  monkeypatch.setattr(metrics.Writer, "__init__", full)
  with pytest.raises(wanted, match="can't be written: full" if wanted is exits.Again else "full"):
    loop.train(make_run(records), tmp_path / "run")
  name = "Again" if wanted is exits.Again else "PermissionError"
  assert f"ERROR {name}" in (tmp_path / "run" / "log.txt").read_text()


def test_another_batch_size_and_mixture_are_an_event_of_the_run(records, tmp_path, monkeypatch):
  """Refused unless meant; the data goes on where it was; a crash before the next save harms not."""
  first = make_run(records, train=config.Train(steps=6, save_every=3), eval=config.Eval(every=0))
  loop.train(first, tmp_path / "a")
  shutil.copytree(tmp_path / "a", tmp_path / "b")
  data = dataclasses.replace(first.data, rows=8, tasks=config.Tasks(draw=3.0))
  second = dataclasses.replace(first, data=data, train=config.Train(steps=STEPS, save_every=3))
  with pytest.raises(ValueError, match="data.rows was 4 and is now 8.*--change to go on"):
    loop.train(second, tmp_path / "a")
  read, iterate = [], loader.Loader.iterate

  def noted(self, *span):
    for batch in iterate(self, *span):
      read.append(batch["main"])
      yield batch

  monkeypatch.setattr(loader.Loader, "iterate", noted)
  loop.train(second, tmp_path / "a", change=True)
  # Four rows have been read six times: on with the 25th.
  vocab = tokenizers_lib.vocab_of(tokenizers_lib.load_all(second.tokenizers), second.tokenizers)
  plan = loader.Loader(data, vocab, seed=0)
  want = [plan.batch_at(t)["main"] for t in range(3, 9)]
  assert all(np.array_equal(x, y) for x, y in zip(want, read, strict=False))
  found = checkpoint.identity.read(tmp_path / "a" / "checkpoints" / str(STEPS))
  assert found["events"] == [{"kind": "changed", "step": 6, "row": 24, "settings": {
    "data.rows": [4, 8], "data.tasks.draw": [1.0, 3.0]}}]
  # Of each step, before and after, `omnijax data show` finds what was read.
  for step, row, rows in ((5, 20, 4), (8, 40, 8)):
    then, past = show.of_run(tmp_path / "a", step)
    shown = show.collect(then, step, 1, tokenizers_lib.load_all(then.tokenizers), vocab,
                         past)
    assert (shown.first, then.data.rows, then.data.tasks.draw) == (row, rows, 1 + rows // 8 * 2)
    if step >= 6:
      assert np.array_equal(shown.batch["main"], read[step - 6][:1])

  def killed(self, step, values):
    raise exits.Again("as if killed")

  with monkeypatch.context() as patch:
    patch.setattr(loop, "_deleted", lambda state: True)  # nothing of it is saved
    patch.setattr(metrics.Writer, "write", killed)
    with pytest.raises(exits.Again):
      loop.train(second, tmp_path / "b", change=True)
  assert checkpoint.steps(tmp_path / "b" / "checkpoints")[-1] == 6
  loop.train(second, tmp_path / "b")  # no need to say it again
  assert losses(tmp_path / "a") == losses(tmp_path / "b")


def test_several_sources_are_told_apart_in_the_metrics(records, tmp_path):
  shutil.copytree(records, tmp_path / "more")
  run = make_run(records, train=config.Train(steps=2), eval=config.Eval(every=2, batches=2))
  sources = (str(records), str(tmp_path / "more"))
  run = dataclasses.replace(run, data=dataclasses.replace(
    run.data, sources=sources, weights=(1.0, 3.0), heldout=sources))
  loop.train(run, tmp_path / "run")
  names = metrics.labels(sources)
  assert names[1] == "more"
  for line in metrics.read(tmp_path / "run"):
    both = [line[f"loss/source/{name}"] for name in names]
    assert min(both) < line["loss"] < max(both) and both[0] != both[1]
    used = [line[f"tokens/{name}"] for name in names]
    assert sum(used) == round(line["tokens_per_s"] * line["step_s"]) and used[0] < used[1]
  held = json.loads((tmp_path / "run" / "eval.jsonl").read_text().splitlines()[0])
  assert all(held[f"eval/loss/source/{name}"] for name in names)


def test_data_that_run_out_are_refused_before_anything_is_written(records, tmp_path):
  run = make_run(records, train=config.Train(steps=5000))
  run = dataclasses.replace(run, data=dataclasses.replace(run.data, epochs=(1.0,)))
  with pytest.raises(ValueError, match="the data run out after about .* of 5000 steps"):
    loop.train(run, tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_other_records_of_the_same_name_are_refused(records, tmp_path):
  shutil.copytree(records, tmp_path / "records")
  run = make_run(tmp_path / "records", train=config.Train(steps=2), eval=config.Eval(every=0))
  loop.train(run, tmp_path / "run")
  again = dataclasses.replace(run, train=config.Train(steps=4))
  shutil.rmtree(tmp_path / "records")
  prepared(tmp_path, documents=48)
  with pytest.raises(ValueError, match="records of .* are not those that step 2 was saved with"):
    loop.train(again, tmp_path / "run")
  loop.train(again, tmp_path / "run", change=True)
  found = checkpoint.identity.read(tmp_path / "run" / "checkpoints" / "4")
  assert [(e["kind"], e["row"], *e["settings"]) for e in found["events"]] == [
    ("changed", 8, "records")]


def test_the_best_checkpoints_stay(records, tmp_path, monkeypatch):
  with pytest.raises(ValueError, match="keep_best is 1, but not every saved step has"):
    make_run(records, train=config.Train(steps=8, keep_best=1), eval=config.Eval(every=0))
  losses_at = {2: 3.0, 4: 1.0, 6: 2.0, 8: 4.0}
  steps = iter(losses_at)
  monkeypatch.setattr(loop, "_evaluate", lambda *_: {"eval/loss": losses_at[next(steps)]})
  run = make_run(records, train=config.Train(steps=8, save_every=2, keep=1, keep_best=1),
                 eval=config.Eval(every=2))
  loop.train(run, tmp_path / "run")
  assert checkpoint.steps(tmp_path / "run" / "checkpoints") == [4, 8]
