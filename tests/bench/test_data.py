"""`omnijax bench data`: figures that are right where they can be counted, on few documents."""

import dataclasses
import json
import os
import subprocess

import numpy as np
import pytest

from omnijax.bench import data as data_lib
from omnijax.bench import data_command
from omnijax.cli import main
from omnijax.data import documents, loader, records

SMALL = ["--documents", "200000", "--records", "500", "--repeats", "1", "--positions", "2048"]


def test_the_synthetic_mixture_is_what_it_says():
  table, starts = data_lib.parts(np.random.default_rng(0), 20_000)
  counts = documents.counts(table, starts)
  share = [np.mean((counts["audio"] == a) & (counts["images"] == i)) for a, i in
           ((0, 0), (0, 1), (1, 0))]
  np.testing.assert_allclose(share, [0.5, 0.25, 0.25], atol=0.01)
  text = counts["positions"][(counts["audio"] == 0) & (counts["images"] == 0)] - 2
  assert (text.min(), text.max()) == (50, 800)
  assert (counts["frames"][counts["audio"] > 0].min(), counts["frames"].max()) == (40, 1500)


def test_memory_is_that_of_processes_that_live():
  child = subprocess.Popen(["sh", "-c", "cat; true"], stdin=subprocess.PIPE,
                           stdout=subprocess.PIPE, bufsize=0)
  child.stdin.write(b"a\n")
  assert child.stdout.readline() == b"a\n"  # by now it has a child of its own
  below, = data_lib._children(child.pid)
  assert {child.pid, below} <= set(data_lib._children(os.getpid()))
  child.communicate()
  assert data_lib._children(child.pid) == [] and data_lib._pss(child.pid) == 0


def test_the_records_are_records(tmp_path):
  data_lib.synthetic_records(tmp_path, 300)
  read = records.Records(tmp_path)
  made = [read.read(i) for i in range(300)]
  assert {tuple(p.kind for p in parts) for parts in made} == {(0,), (1, 0), (2,)}
  settings = dataclasses.replace(data_lib.DATA, sources=(str(tmp_path),))
  batch = loader.Loader(settings, data_lib.VOCAB, seed=0).batch_at(0)
  assert (batch["segment"] > 0).mean() > 0.9 and batch["frames"].max() <= data_lib.VOCAB.audio


def test_the_command(tmp_path, capsys):
  out = tmp_path / "data.json"
  assert main(["bench", "data", *SMALL, "--dir", str(tmp_path), "--json", str(out)]) == 0
  values = json.loads(out.read_text())
  assert set(data_command._TOLD) <= values.keys()
  assert values["packing_efficiency"] > 0.985 and 0 < values["frame_efficiency"] < 1
  assert values["ratio_to_grain_first_fit"] > 1 and values["plan_peak_gib"] > 0
  assert 0 < values["seek_s"] < 5 and values["positions_per_s_per_core"] > 1e5
  assert [p.name for p in tmp_path.iterdir()] == ["data.json"]
  assert "packing_efficiency" in capsys.readouterr().out


@pytest.mark.parametrize(("argv", "says"), [
  (["--documents", "0"], "--documents is 0; wanted 1 or more"),
  (["--json", "/nowhere/x.json"], "--json: there is no directory /nowhere"),
  (["--dir", "/nowhere"], "--dir: there is no directory /nowhere")])
def test_bad_options(argv, says, capsys):
  assert main(["bench", "data", *argv]) == 2
  assert says in capsys.readouterr().err
