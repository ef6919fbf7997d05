"""Dialogues in real time: when frames, answers and stops come, and what of that is computing.

A sample is spoken at its place after the talk's beginning; a frame is given to the service when its
last sample has been spoken, and what comes back is heard from that moment on, as by a player that
holds nothing back.

F frames  L samples of a frame  T samples of a talk  N blocks of 10 ms in which something is heard
"""

import dataclasses
import itertools
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from omnijax.evals import duplex
from omnijax.evals.duplex import BEFORE_S, BLOCK_S, SILENT_S, STOPS_S, Scenario
from omnijax.generate.events import End, Frame
from omnijax.generate.service import Service

_AHEAD_S = 0.5  # from a talk's opening to its first sample
_EARLY_S = 0.1  # before a question's very end, in which an answer may begin


@dataclasses.dataclass(frozen=True)
class Came:
  """A frame of the model's sound, and when it came, in seconds from the talk's first sample."""

  at_s: float
  took_s: float
  wave_L: np.ndarray
  text: str


@dataclasses.dataclass(frozen=True)
class Played:
  """A talk that is over.

  fed_late_s: of each frame, how long after its last sample it was given to the service.
  behind: what the service said when too much sound waited; empty if it kept up.
  """

  came: list[Came]
  fed_late_s: list[float]
  behind: str


class Placed(NamedTuple):
  """A scenario in a talk, and when it begins, in seconds."""

  begin_s: float
  scenario: Scenario


class _Live:
  """A talk that is fed by the clock."""

  def __init__(self, service: Service, wave_T: np.ndarray):
    size = service.frame_size
    self._frames_FL = np.pad(wave_T, (0, -len(wave_T) % size)).reshape(-1, size)
    self._frame_s = size / service.sample_rate
    self._begun, self._error = 0.0, ""
    self._over, self._ended = threading.Event(), threading.Event()
    self.came: list[Came] = []
    self.fed_late_s: list[float] = []
    self.behind = ""
    self._talk = service.talk(emit=self._emit)

  def _emit(self, event: Frame | End) -> None:
    now = time.perf_counter()
    if isinstance(event, End):
      self._error = event.error
      self._over.set()
      self._ended.set()
      return
    self.came.append(Came(now - self._begun, event.took_s, event.wave_L, event.text))
    if len(self.came) == len(self._frames_FL):
      self._over.set()

  def feed(self, begun: float, advance: Callable[[], None]) -> None:
    """Gives every frame when it has been spoken; runs on a thread of its own."""
    self._begun = begun
    for i, frame_L in enumerate(self._frames_FL):
      due = begun + (i + 1) * self._frame_s
      time.sleep(max(due - time.perf_counter(), 0))
      if self._over.is_set():  # the service has failed
        return
      self.fed_late_s.append(time.perf_counter() - due)
      try:
        self._talk.hear(frame_L)
      except ValueError as error:
        self.behind = str(error)
        return self._over.set()
      advance()

  def result(self) -> Played:
    """Waits for the last frame, and ends the talk."""
    self._over.wait()
    self._talk.close()
    self._ended.wait()
    if self._error:
      raise RuntimeError(f"the service ended a talk: {self._error}.")
    return Played(self.came, self.fed_late_s, self.behind)


def live(service: Service, waves: Sequence[np.ndarray], *, rng: np.random.Generator,
         advance: Callable[[], None] = lambda: None) -> list[Played]:
  """Talks at once, each fed in real time, beginning anywhere within a frame of each other.

  Args:
    service: with at least as many rows free.
    waves: float32 [T] at the service's rate, what each talk hears.
    rng: draws the beginnings.
    advance: called for each frame that was given, from several threads.

  Raises:
    RuntimeError: the service failed.
  """
  talks = [_Live(service, wave_T) for wave_T in waves]
  frame_s = service.frame_size / service.sample_rate
  begun = time.perf_counter() + _AHEAD_S
  threads = [threading.Thread(target=talk.feed, daemon=True,
                              args=(begun + rng.uniform(0, frame_s), advance)) for talk in talks]
  for thread in threads:
    thread.start()
  results = [talk.result() for talk in talks]
  for thread in threads:
    thread.join()
  return results


def flat_out(service: Service, waves: Sequence[np.ndarray]) -> float:
  """Wall time over sound time of talks at once, each given a frame as soon as it has answered.

  waves: float32 [T] at the service's rate, all of one length.
  """
  scenarios = [Scenario(f"talk {i}", "answer", wave_T, ()) for i, wave_T in enumerate(waves)]
  begun = time.perf_counter()
  said = duplex.play(service, scenarios, at_once=len(scenarios))
  took = time.perf_counter() - begun
  frames = -(-len(waves[0]) // service.frame_size)
  if any(len(s.took_s) != frames for s in said):
    raise RuntimeError("the service ended a talk before all was said.")
  return took / (len(waves[0]) / service.sample_rate)


def streams(scenarios: Sequence[Scenario], count: int, samples: int, rate: int,
            rng: np.random.Generator) -> list[tuple[np.ndarray, list[Placed]]]:
  """What each of some talks hears: scenarios in random order, one after the other, all the time.

  Args:
    scenarios: each is heard before one is heard again.
    count: talks.
    samples: of each talk.
    rate: samples a second.
    rng: draws the order.

  Returns:
    Of each talk its wave, float32 [samples], and the scenarios that are whole in it.
  """
  order: Iterator[int] = itertools.cycle(rng.permutation(len(scenarios)).tolist())
  out = []
  for _ in range(count):
    pieces, placed, at = [], [], 0
    while at < samples:
      scenario = scenarios[next(order)]
      pieces.append(scenario.wave_T)
      if at + len(scenario.wave_T) <= samples:
        placed.append(Placed(at / rate, scenario))
      at += len(scenario.wave_T)
    out.append((np.concatenate(pieces)[:samples].astype(np.float32), placed))
  return out


def _loud(came: Sequence[Came], rate: int) -> tuple[np.ndarray, np.ndarray]:
  """When blocks begin in which something is heard [N], in order, and the frame of each [N]."""
  at = [frame.at_s + BLOCK_S * np.flatnonzero(duplex.active(frame.wave_L, rate)) for frame in came]
  at_N = np.concatenate([np.zeros(0), *at])
  frame_N = np.repeat(np.arange(len(at)), [len(x) for x in at])
  order = np.argsort(at_N, kind="stable")
  return at_N[order], frame_N[order]


def _any(at_N: np.ndarray, since_s: float, until_s: float) -> bool:
  return bool(np.any((at_N >= since_s) & (at_N < until_s)))


def answers(placed: Sequence[Placed], came: Sequence[Came], rate: int) -> list[dict[str, Any]]:
  """How long after each question's end the first sound of the answer is heard.

  Questions whose answers are interrupted are left out.

  Returns:
    latency_s, None if there was no answer; of that compute_s, which its frame took, and audio_s,
    the rest. spoke: whether it was speaking just before, so that no answer can be told.
  """
  at_N, frame_N = _loud(came, rate)
  out = []
  for begin_s, scenario in placed:
    questions = scenario.of("question")
    untils = [q["start"] for q in questions[1:]] + [len(scenario.wave_T) / rate]
    for question, until in zip(questions, untils, strict=True):
      end = question["end"]
      if any(end < i["start"] < until + 1e-3 for i in scenario.of("interruption")):
        continue
      since = begin_s + end - _EARLY_S
      n = int(np.searchsorted(at_N, since))
      spoke = _any(at_N, since - BEFORE_S, since)
      found = not spoke and n < len(at_N) and at_N[n] < begin_s + until
      out.append({"scenario": scenario.name, "spoke": spoke, **_split(
        float(at_N[n]) - begin_s - end if found else None,
        came[frame_N[n]].took_s if found else 0.0)})
  return out


def stops(placed: Sequence[Placed], came: Sequence[Came], rate: int) -> list[dict[str, Any]]:
  """How long after each interruption's beginning it is silent.

  Returns:
    As `answers`: latency_s is None if it went on for more than a second, compute_s is of the last
    frame in which it spoke. spoke: whether it was speaking just before; else there is no latency.
  """
  at_N, frame_N = _loud(came, rate)
  out = []
  for begin_s, scenario in placed:
    for event in scenario.of("interruption"):
      since = begin_s + event["start"]
      spoke = _any(at_N, since - BEFORE_S, since)
      n = int(np.searchsorted(at_N, since - BLOCK_S, side="right"))
      # It has stopped at the first silence that is long enough.
      begins = np.append(at_N[n:], math.inf)
      ends = np.insert(at_N[n:] + BLOCK_S, 0, since)
      last = int(np.argmax(begins - ends >= SILENT_S))
      latency = float(ends[last]) - since
      stopped = spoke and latency <= STOPS_S
      out.append({"scenario": scenario.name, "spoke": spoke, **_split(
        latency if stopped else None,
        came[frame_N[n + last - 1]].took_s if stopped and last else 0.0)})
  return out


def _split(latency_s: float | None, compute_s: float) -> dict[str, float | None]:
  if latency_s is None:
    return {"latency_s": None, "audio_s": None, "compute_s": None}
  return {"latency_s": latency_s, "audio_s": latency_s - compute_s, "compute_s": compute_s}


def figures(played: Sequence[Played], placed: Sequence[Sequence[Placed]], *, frame_s: float,
            rate: int) -> dict[str, Any]:
  """What came of talks at once, times in seconds.

  Returns:
    frame_s: from the last sample heard to the frame of sound; late: the share of frames that took
    longer than they last; fed_late_s: how late the talks were fed, the measuring's own error;
    behind: talks that were given up as too much sound waited; answers, stops: see there.
  """
  took = [frame.took_s for talk in played for frame in talk.came]
  replies = [a for talk, where in zip(played, placed, strict=True)
             for a in answers(where, talk.came, rate)]
  ends = [s for talk, where in zip(played, placed, strict=True)
          for s in stops(where, talk.came, rate)]
  return {
    "frames": len(took), "frame_s": spread(took) | {"each": [round(x, 5) for x in took]},
    "late": float(np.mean(np.array(took) > frame_s)) if took else None,
    "fed_late_s": spread([x for talk in played for x in talk.fed_late_s]),
    "behind": sum(bool(talk.behind) for talk in played),
    "answers": _told([a for a in replies if not a["spoke"]])
    | {"spoke_before": sum(a["spoke"] for a in replies)},
    "stops": _told([s for s in ends if s["spoke"]])
    | {"was_silent": sum(not s["spoke"] for s in ends)}}


def _told(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  heard = [f for f in found if f["latency_s"] is not None]
  return {"of": len(found), **{key: spread([f[key] for f in heard])
                               for key in ("latency_s", "audio_s", "compute_s")},
          "each": list(found)}


def spread(values: Sequence[float]) -> dict[str, Any]:
  """How many there are, and their quantiles; None where there are none."""
  quantiles = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}
  return {"n": len(values), **{name: float(np.quantile(values, q)) if len(values) else None
                               for name, q in quantiles.items()}}
