"""Those whom a service works for: somebody who has a turn written, and somebody who talks.

L samples
"""

import collections
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from omnijax.data.documents import Part
from omnijax.generate import step
from omnijax.generate.events import End, Event, Frame, TooLong
from omnijax.generate.prompts import Prompts
from omnijax.generate.sample import Sampling
from omnijax.generate.slots import Slots, Work
from omnijax.generate.voice import Voice
from omnijax.generate.writing import Writing

_BEHIND_S = 10.0  # of sound that may wait to be heard


class Host(Protocol):
  """What they need of the service; `changed` guards what its thread shares with others."""

  changed: threading.Condition
  prompts: Prompts
  slots: Slots
  silence_Q: np.ndarray
  sample_rate: int
  frame_size: int
  max_positions: int

  def forget(self, talk: "Talk", frame: int) -> None: ...


class Ticket:
  """A turn that is being written."""

  def __init__(self, service: Host, work: Work, emit: Callable[[Event], None]):
    self._service, self.work, self.emit = service, work, emit
    self.prompt = len(work.prompts[0].main) - 1
    self.writing = Writing(service.slots.layout, service.prompts.tokenizers)
    self.pieces = list[tuple[int, step.Piece]]()
    self.cancelled = False
    self.spoke = False  # whether sound has come out: the decoder is late by its delay

  def cancel(self) -> None:
    """It ends, if it hasn't yet, with End("cancelled")."""
    with self._service.changed:
      self.cancelled = True
      self._service.changed.notify()


class Talk:
  """A dialogue: it hears while it speaks."""

  def __init__(self, service: Host, sampling: Sampling, seed: int,
               emit: Callable[[Frame | End], None]):
    self._service, self.sampling, self.seed, self.emit = service, sampling, seed, emit
    slots = service.slots
    self.voice = Voice(slots.layout, service.prompts.tokenizers.text, service.silence_Q, slots.kept)
    self.pieces = list[tuple[int, step.Piece]]()
    self.waiting = collections.deque[tuple[np.ndarray, float]]()  # frames, and when they came
    self.said = collections.deque[list[Part]]()  # to be put in
    self.orders = collections.deque[Callable[[], None]]()  # to be carried out between steps
    self.part_L = np.zeros(0, np.float32)  # samples of the frame that isn't whole yet
    self.frames = 0
    self.closed = False

  def hear(self, wave_L: np.ndarray) -> None:
    """Takes in samples, float32 [L] in [-1, 1] at the service's rate, any number of them.

    Raises:
      ValueError: they aren't such, or over 10 s wait to be worked on.
    """
    wave_L = np.asarray(wave_L)
    if wave_L.ndim != 1 or not np.issubdtype(wave_L.dtype, np.floating):
      raise ValueError(f"the sound is {wave_L.dtype}{list(wave_L.shape)}; wanted float [L].")
    if not np.isfinite(wave_L).all():
      raise ValueError("the sound has NaN or infinite samples; wanted [-1, 1].")
    size, now = self._service.frame_size, time.perf_counter()
    with self._service.changed:
      if len(self.waiting) * size > _BEHIND_S * self._service.sample_rate:
        raise ValueError(f"{_BEHIND_S:g} s of sound wait already; send it no faster than it is "
                         "spoken, or start fewer dialogues at once.")
      whole_L = np.concatenate([self.part_L, wave_L.astype(np.float32)])
      n = len(whole_L) // size
      self.waiting.extend((frame_L, now) for frame_L in whole_L[: n * size].reshape(n, size))
      self.part_L = whole_L[n * size :]
      self._service.changed.notify()

  def insert(self, parts: Sequence[Mapping[str, Any]]) -> None:
    """Puts text and pictures of the user into the dialogue, at its next frame.

    Raises:
      ValueError: a part that can't be read; TooLong: there is too much of it.
    """
    said = self._service.prompts.encode([parts])[0]
    size = len(self._service.prompts.render(said).main)
    if size > self._service.max_positions // 2:
      raise TooLong(f"what is put in takes {size} positions; wanted at most "
                    f"{self._service.max_positions // 2}: shorten it, or make pictures smaller.")
    self.order(lambda: self.said.append(said))

  def truncate(self, frame: int, samples: int = 0) -> None:
    """Forgets the sound from a frame on, of which the other side heard so many samples at most.

    What was heard stays in memory, and so does a frame of which at least half was heard.
    """
    frame += samples * 2 >= self._service.frame_size
    self.order(lambda: self._service.forget(self, frame))

  def hush(self) -> None:
    """It says nothing more until it hears something."""
    self.order(self.voice.hush)

  def close(self) -> None:
    """It ends, if it hasn't yet."""
    with self._service.changed:
      self.closed = True
      self._service.changed.notify()

  def order(self, act: Callable[[], None]) -> None:
    """Has the service do something between two steps."""
    with self._service.changed:
      self.orders.append(act)
      self._service.changed.notify()
