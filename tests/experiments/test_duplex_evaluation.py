"""The file of figures that an evaluation of dialogues writes, and what it refuses."""

import json
from pathlib import Path

import pytest

from experiments.duplex import evaluate


def test_a_scenario_is_a_line():
  found = {"about": {"run": "r"}, "figures": {"answers": {"share": 0.5, "n": 2}},
           "scenarios": [{"name": "a", "words": [[3, "ноль"]]}, {"name": "b", "words": []}]}
  text = evaluate.text(found)
  assert json.loads(text) == found
  lines = text.splitlines()
  assert [json.loads(x.strip(" ,"))["name"] for x in lines if '"name"' in x] == ["a", "b"]
  assert "ноль" in text


def test_numbers_below_one_are_refused_before_a_model_is_loaded():
  for name in ("at_once", "each"):
    wanted = {"at_once": 1, "each": 1, "echo_db": None} | {name: 0}
    with pytest.raises(ValueError, match=f"{name.replace('_', '-')} is 0; wanted 1 or more"):
      evaluate.evaluate(Path("none"), Path("none"), **wanted)
