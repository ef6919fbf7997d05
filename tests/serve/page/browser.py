"""What a microphone of tests says, and what tests do with the page. Shapes: L samples."""

from __future__ import annotations

import contextlib
import re
import time
import urllib.parse

import numpy as np
import soundfile

PITCH = 300.0  # Hz of the microphone's bursts
# Of the microphone, in seconds: silence, a question, silence, an interruption, silence.
BURSTS = ((1.0, 0), (0.8, 1), (2.0, 0), (0.8, 1), (15.0, 0))


def bursts(path) -> None:
  """Bursts with the rhythm of syllables, or the browser would take them for noise."""
  parts = []
  for seconds, loud in BURSTS:
    time_L = np.arange(int(seconds * 48000)) / 48000
    swell_L = 0.6 + 0.4 * np.sin(2 * np.pi * 4 * time_L)
    parts.append(0.4 * loud * swell_L * np.sin(2 * np.pi * PITCH * time_L))
  soundfile.write(path, np.concatenate(parts), 48000, subtype="PCM_16")


@contextlib.contextmanager
def opened(chromium, url):
  """The page at an address; in the end: it asked nobody but this machine and did not complain.

  `page.expected`: patterns of complaints that the test provokes.
  """
  context = chromium.new_context(accept_downloads=True)
  context.grant_permissions(["microphone", "clipboard-read", "clipboard-write"], origin=url)
  page = context.new_page()
  page.set_default_timeout(8000)
  asked, complaints, page.expected = [], [], []
  context.on("request", lambda request: asked.append(request.url))
  page.on("websocket", lambda socket: asked.append(socket.url))
  page.on("pageerror", lambda error: complaints.append(str(error)))
  page.on("console", lambda line: complaints.append(line.text)
          if line.type in ("error", "warning") else None)
  page.goto(url)
  page.wait_for_selector("body[data-server]")
  yield page
  page.wait_for_timeout(50)
  context.close()
  hosts = {urllib.parse.urlsplit(address).hostname for address in asked
           if not address.startswith(("data:", "blob:"))}
  assert hosts == {"127.0.0.1"}
  unforeseen = [c for c in complaints if not any(re.search(p, c) for p in page.expected)]
  assert not unforeseen


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
