"""Stops are found however the text is cut, and no part of one is ever shown."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnijax.serve.stops import Stops

SMALL = st.text("ab", max_size=12)


@settings(deadline=None)
@given(SMALL, st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
       st.lists(st.integers(0, 12), max_size=5))
def test_any_cut_shows_what_precedes_the_first_stop(text, stops, cuts):
  cuts = sorted({min(c, len(text)) for c in cuts} | {0, len(text)})
  pieces = [text[a:b] for a, b in itertools.pairwise(cuts)]
  one, shown = Stops(stops), ""
  for i, piece in enumerate(pieces):
    shown += one.feed(piece)
    if not one.met:
      # As little as can be is held back: a longer show would have shown a stop's beginning.
      held = "".join(pieces[: i + 1])[len(shown):]
      assert held == "" or any(stop.startswith(held) for stop in stops)
  shown += one.rest()
  found = [i for s in stops if (i := text.find(s)) >= 0]
  # A stop that ends earlier may be met before one that begins earlier, and ends later.
  assert one.met == bool(found)
  if found and len(pieces) == 1:
    assert shown == text[: min(found)]
  assert text.startswith(shown) and (found or shown == text)
  assert not any(s in shown for s in stops)


@pytest.mark.parametrize("pieces, shown", [
  (["one EN", "D two"], ["one ", ""]), (["one EN", "T two"], ["one ", "ENT two"]),
  (["E", "N", "D"], ["", "", ""])])
def test_the_beginning_of_a_stop_is_held_back(pieces, shown):
  one = Stops(["END"])
  assert [one.feed(p) for p in pieces] == shown
  assert one.feed("more") == ("" if one.met else "more")
