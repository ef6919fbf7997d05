"""Dialogues with a live model, judged: does it answer rightly and at once, wait, stop, go on.

In the manner of Full-Duplex-Bench (Lin et al., 2025): a user's side is played to the model frame by
frame, echo included if wanted, and what it says is measured as sound. Words are judged by a
recogniser that had no part in training; the model's own transcript only says where to cut.

T samples
"""

import dataclasses
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from omnijax.evals.judges import SpeechJudge
from omnijax.generate.callers import Talk
from omnijax.generate.events import End, Frame
from omnijax.generate.service import Service

KINDS = ("answer", "pause", "interruption", "backchannel", "noise")
BLOCK_S = 0.01
_ACTIVE = 0.01  # root mean square of a block of 10 ms in which something is said, -40 dB
SILENT_S = 0.4  # of silence, after which it has stopped
STOPS_S = 1.0  # within which an interruption must have stopped it
BEFORE_S = 0.3  # before an event, in which it must have spoken to be interrupted by it


@dataclasses.dataclass(frozen=True)
class Scenario:
  """A user's side of a dialogue, and what is in it; `events` as in a manifest's "duplex"."""

  name: str
  kind: str
  wave_T: np.ndarray
  events: tuple[Mapping[str, Any], ...]

  def of(self, event: str) -> list[Mapping[str, Any]]:
    return [e for e in self.events if e["event"] == event]


@dataclasses.dataclass
class Said:
  """The model's side, and when its words began; `took_s` is the computing of each frame."""

  wave_T: np.ndarray
  words: list[tuple[int, str]]  # frame, characters
  took_s: list[float]


def read(path: Path, rate: int) -> list[Scenario]:
  """The scenarios of a JSONL file: {"id", "kind", "audio", "events"}; audio beside the file.

  Raises:
    ValueError: a line that isn't one, or a sound of another rate.
  """
  out = []
  for number, line in enumerate(Path(path).read_text("utf-8").splitlines(), 1):
    where = f"{path}, line {number}"
    try:
      item = json.loads(line)
      name, kind, events, audio = (item[key] for key in ("id", "kind", "events", "audio"))
      wave_T, found = soundfile.read(Path(path).parent / audio, dtype="float32")
    except (ValueError, TypeError, KeyError, soundfile.SoundFileError) as error:
      raise ValueError(f"{where}: {error}; wanted an object with id, kind, events and audio, "
                       "a file beside this one.") from error
    if kind not in KINDS:
      raise ValueError(f"{where}: kind is {kind!r}; wanted one of {', '.join(KINDS)}.")
    if found != rate or wave_T.ndim != 1:
      raise ValueError(f"{where}: {audio} has {found} samples/s and {wave_T.ndim} dims; wanted one "
                       f"channel at {rate}.")
    out.append(Scenario(name, kind, wave_T, tuple(events)))
  return out


class _Player:
  """Plays a scenario to a talk, frame after frame, and keeps what it says."""

  def __init__(self, scenario: Scenario, size: int, echo: tuple[float, int] | None,
               done: Callable[[], None]):
    self._size, self._echo, self._done = size, echo, done
    frames = -(-len(scenario.wave_T) // size)
    self._user_T = np.pad(scenario.wave_T, (0, frames * size - len(scenario.wave_T)))
    self.said = Said(np.zeros_like(self._user_T), [], [])
    self._at = 0
    self.talk: Talk | None = None

  def next(self) -> None:
    """Has the talk hear the next frame; the echo is of what has been played by then."""
    assert self.talk is not None
    span = slice(self._at, self._at + self._size)
    heard_T = self._user_T[span]
    if self._echo is not None:
      gain, late = self._echo
      begin = self._at - late
      past_T = self.said.wave_T[max(begin, 0) : max(begin + self._size, 0)]
      heard_T = heard_T + gain * np.pad(past_T, (self._size - len(past_T), 0))
    self.talk.hear(np.clip(heard_T, -1, 1).astype(np.float32))

  def emit(self, event: Frame | End) -> None:
    if isinstance(event, End):
      return self._done()
    # What comes out while a frame was heard is played during the next one.
    begin = self._at + self._size
    room = self.said.wave_T[begin : begin + self._size]
    room[:] = event.wave_L[: len(room)]
    if event.text:
      self.said.words.append((event.index + 1, event.text))
    self.said.took_s.append(event.took_s)
    self._at = begin
    assert self.talk is not None
    if self._at < len(self._user_T):
      self.next()
    else:
      self.talk.close()


def play(service: Service, scenarios: Sequence[Scenario], *, at_once: int,
         echo: tuple[float, int] | None = None, advance: Callable[[], None] = lambda: None
         ) -> list[Said]:
  """What the model says to each scenario, aligned in time with what it heard.

  Args:
    service: with at least `at_once` rows free.
    scenarios: at the service's sample rate.
    at_once: dialogues at a time; what is said doesn't depend on it.
    echo: how loud (a factor) and how many samples later the model hears itself.
    advance: called after each scenario.
  """
  out: list[Said] = []
  for i in range(0, len(scenarios), at_once):
    ended = threading.Semaphore(0)
    players = [_Player(s, service.frame_size, echo, ended.release)
               for s in scenarios[i : i + at_once]]
    for player in players:
      player.talk = service.talk(emit=player.emit)
    for player in players:
      player.next()
    for _ in players:
      ended.acquire()
      advance()
    out += [p.said for p in players]
  return out


def write(folder: Path, scenarios: Sequence[Scenario], said: Sequence[Said], rate: int) -> None:
  """What was heard (left) and said (right), a WAV of each scenario."""
  Path(folder).mkdir(parents=True, exist_ok=True)
  for scenario, answer in zip(scenarios, said, strict=True):
    user_T = np.pad(scenario.wave_T, (0, len(answer.wave_T) - len(scenario.wave_T)))
    soundfile.write(Path(folder) / f"{scenario.name}.wav", np.stack([user_T, answer.wave_T], 1),
                    rate)


def active(wave_T: np.ndarray, rate: int) -> np.ndarray:
  """Whether something is said in each block of 10 ms, bool."""
  size = round(BLOCK_S * rate)
  blocks = wave_T[: len(wave_T) // size * size].reshape(-1, size)
  return np.sqrt(np.mean(blocks**2, 1)) > _ACTIVE


def _first(active_N: np.ndarray, since_s: float, until_s: float | None = None) -> float | None:
  """When it first says something from a time on."""
  since = int(np.ceil(since_s / BLOCK_S - 1e-6))
  until = len(active_N) if until_s is None else round(until_s / BLOCK_S)
  found = np.flatnonzero(active_N[since:until])
  return None if not len(found) else (since + int(found[0])) * BLOCK_S


def _stop(active_N: np.ndarray, since_s: float) -> float | None:
  """When it is silent for a while, for the first time from a time on."""
  since, least = round(since_s / BLOCK_S), round(SILENT_S / BLOCK_S)
  padded = np.concatenate([active_N[since:], np.zeros(least, bool)])
  for i in range(len(active_N) - since + 1):
    if not padded[i : i + least].any():
      return (since + i) * BLOCK_S
  return None


def _cuts(said: Said, rate: int, size: int, since_s: float, until_s: float) -> list[np.ndarray]:
  """The sound of each word that begins in a span, up to the next one or a silence."""
  frames = [f for f, text in said.words if text.strip() and since_s <= f * size / rate < until_s]
  # Pieces of one word follow each other frame by frame.
  starts = [f for i, f in enumerate(frames) if not i or f - frames[i - 1] > 2]
  out = []
  for i, frame in enumerate(starts):
    end = starts[i + 1] * size if i + 1 < len(starts) else round(until_s * rate)
    end = min(end, frame * size + round(1.4 * rate))
    out.append(said.wave_T[frame * size : end])
  return out


def judge(scenario: Scenario, said: Said, judge: SpeechJudge,
          words: Mapping[str, Sequence[str]], *, rate: int, size: int) -> dict[str, Any]:
  """The figures of one scenario.

  Returns:
    answers: of each question that isn't cut off, whether it was answered with the right words in
      the right language, the first word's delay in seconds (None: no answer), and what was heard.
    takeovers: whether it spoke in each pause. stops: of each interruption, the seconds until it
      stopped; None if it didn't, "silent" if it wasn't speaking. false_stops: of each back-channel
      or noise, whether it soon stopped, and not with the answer's last word; None if it wasn't
      speaking.
  """
  active_N = active(said.wave_T, rate)
  total_s = len(said.wave_T) / rate
  questions, interruptions = scenario.of("question"), scenario.of("interruption")
  cut = [any(abs(i["start"] - q["start"]) > 1e-3 and i["start"] > q["end"] for i in interruptions)
         for q in questions]
  starts = [q["start"] for q in questions] + [total_s]
  out: dict[str, Any] = {"answers": [], "takeovers": [], "stops": [], "false_stops": []}
  ended = {}  # whether what it said ended as the answer does, by where the question begins
  for n, q in enumerate(questions):
    # An answer may be begun before the very end of a question: then its delay is less than 0.
    pieces = _cuts(said, rate, size, q["end"] - 0.3, starts[n + 1])
    languages, digits = judge.predict(pieces)
    heard = [words[la][d] for la, d in zip(languages, digits, strict=True)]
    last = words[q["language"]].index(q["answer"][-1])
    ended[q["start"]] = bool(len(digits)) and int(digits[-1]) == last
    if cut[n]:
      continue
    right = (len(heard) == len(q["answer"]) and all(
      words[q["language"]][int(d)] == want for d, want in zip(digits, q["answer"], strict=True))
      and all(la == q["language"] or words[la][d] == words[q["language"]][d]
              for la, d in zip(languages, digits, strict=True)))
    onset = _first(active_N, q["end"] - 0.1, starts[n + 1])
    out["answers"].append({
      "right": bool(right), "delay_s": None if onset is None else onset - q["end"],
      "heard": heard, "want": q["answer"], "language": q["language"], "kind": q["kind"],
      "op": q["op"]})
  for pause in scenario.of("pause"):
    out["takeovers"].append(_first(active_N, pause["start"] + 0.1, pause["end"] + 0.1) is not None)
  speaking = lambda t: _first(active_N, max(t - BEFORE_S, 0), t) is not None
  for event in interruptions:
    stop = _stop(active_N, event["start"])
    late = stop is None or stop - event["start"] > STOPS_S
    out["stops"].append("silent" if not speaking(event["start"]) else
                        None if late else stop - event["start"])
  for event in scenario.of("backchannel") + scenario.of("noise"):
    question = [q for q in questions if q["end"] < event["start"]]
    if not question or not speaking(event["start"]):
      out["false_stops"].append(None)
      continue
    stop = _stop(active_N, event["start"])
    soon = stop is not None and stop - event["start"] < STOPS_S
    out["false_stops"].append(soon and not ended[question[-1]["start"]])
  return out


def figures(results: Sequence[tuple[Scenario, Mapping[str, Any]]]) -> dict[str, Any]:
  """All scenarios' figures: shares with their counts, and medians in seconds."""
  def share(values: Sequence[bool]) -> dict[str, Any]:
    return {"share": float(np.mean(values)) if values else None, "n": len(values)}

  answers = [a for _, r in results for a in r["answers"]]
  delays = [a["delay_s"] for a in answers if a["right"]]
  stops = [s for _, r in results for s in r["stops"]]
  tried = [s for s in stops if s != "silent"]
  latencies = [s for s in tried if s is not None]
  falls = [f for _, r in results for f in r["false_stops"]]
  by = lambda key: {v: share([a["right"] for a in answers if a[key] == v])
                    for v in sorted({a[key] for a in answers})}
  return {
    "answers": share([a["right"] for a in answers]) | {
      "by_language": by("language"), "by_op": by("op"), "by_voice": by("kind")},
    "response_s": _spread(delays),
    "takeovers": share([t for _, r in results for t in r["takeovers"]]),
    "stops": share([s is not None for s in tried]) | {
      "was_silent": len(stops) - len(tried), "latency_s": _spread(latencies)},
    "false_stops": share([f for f in falls if f is not None]) | {
      "was_silent": sum(f is None for f in falls)},
  }


def _spread(values: Sequence[float]) -> dict[str, float] | None:
  if not values:
    return None
  return {name: float(np.quantile(values, q))
          for name, q in (("p10", 0.1), ("median", 0.5), ("p90", 0.9), ("p99", 0.99))}
