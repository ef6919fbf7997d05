"""What a microphone of tests says, and what tests do with the page. Shapes: L samples."""

from __future__ import annotations

import time

import numpy as np
import soundfile

PITCH = 300.0  # Hz of the microphone's bursts
# Of the microphone, in seconds: silence, a question, silence, an interruption, and then silence that
# no test outlives: at the end of the file the browser hangs.
BURSTS = ((1.0, 0), (0.8, 1), (2.0, 0), (0.8, 1), (90.0, 0))


def bursts(path) -> None:
  """Bursts with the rhythm of syllables, or the browser would take them for noise."""
  parts = []
  for seconds, loud in BURSTS:
    time_L = np.arange(int(seconds * 48000)) / 48000
    swell_L = 0.6 + 0.4 * np.sin(2 * np.pi * 4 * time_L)
    parts.append(0.4 * loud * swell_L * np.sin(2 * np.pi * PITCH * time_L))
  soundfile.write(path, np.concatenate(parts), 48000, subtype="PCM_16")


def data(page, name):
  return page.evaluate("name => document.body.dataset[name]", name)


def wait_for(page, found):
  """Waits until something is so, for a time that is long on a busy machine, too."""
  end = time.monotonic() + 20
  while not found():
    assert time.monotonic() < end, "it did not happen"
    page.wait_for_timeout(20)


def wait(page, condition):
  # Not the browser's own waiting: it evaluates strings, which the page's policy forbids.
  wait_for(page, lambda: page.evaluate(condition))


def tab_to(page, wanted):
  """Presses Tab until the element of this id has the focus, and shows that it has."""
  for _ in range(20):
    page.keyboard.press("Tab")
    if page.evaluate("document.activeElement.id") == wanted:
      return
  raise AssertionError(f"Tab never comes to {wanted}")


def turns(page, who):
  """What the page shows of one side's turns, each without its heading."""
  found = page.query_selector_all(f".{who}.turn")
  return [turn.inner_text().split("\n", 1)[1].strip() for turn in found]
