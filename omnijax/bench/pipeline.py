"""What voice assistants are mostly made of, as the other side: who ends speaking is recognised, the
same model answers the text, and the answer is synthesised.

The end of speech is a silence; whisper-base recognises, told which language it is; SVOX Pico
synthesises. Every stage gets all that it needs at once, and nothing is sent over a network.

L samples  T samples of a scenario
"""

import functools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soxr

from omnijax.bench import voice
from omnijax.evals import codec, duplex
from omnijax.evals.duplex import Scenario
from omnijax.generate.events import End, Event, Text
from omnijax.generate.sample import GREEDY
from omnijax.generate.service import Service

# (text, language) -> float32 [L] at SPOKEN
Synthesiser = Callable[[str, str], np.ndarray]

SPOKEN = 16_000  # samples a second of Pico and of what whisper hears
VOICES = {"de": "de-DE", "en": "en-US", "es": "es-ES", "fr": "fr-FR", "it": "it-IT"}  # Pico's
STAGES = ("silence_s", "recognise_s", "write_s", "speak_s", "lead_s")
_PIECE_S = 0.02  # of sound, in which it is fed
_BEFORE_S = 0.2  # of sound before speech that whisper hears, too
_EARLY_S = 0.1  # before the end of a question, in which its end may be found
_MOST = 64  # positions of an answer
_THREADS = 2  # whisper's


def whisper(directory: Path) -> codec.Recogniser:
  """Whisper-base with weights of 8 bits, warm; the directory is where its parts are joined."""
  recognise = codec.whisper(directory, _THREADS)
  recognise(np.zeros(SPOKEN, np.float32), "en")
  return recognise


def pico() -> Synthesiser:
  """SVOX Pico, warm, with a voice of each language in VOICES."""
  from py_nanotts import NanoTTS

  made = NanoTTS()

  def speak(text: str, language: str) -> np.ndarray:
    pcm = made.speak(text, voice=VOICES[language])
    return np.frombuffer(pcm, np.int16).astype(np.float32) / 2**15

  for language in VOICES:
    speak("a", language)
  return speak


class Endpointer:
  """Finds where speech ends: it was loud, and then wasn't for a while.

  Args:
    rate: samples a second.
    silence_s: that ends it.
  """

  def __init__(self, rate: int, silence_s: float):
    self._rate, self._silence_s = rate, silence_s
    self._rest_L, self._at = np.zeros(0, np.float32), 0
    self.began: int | None = None  # sample at which the first speech began
    self._quiet_s = 0.0

  def hear(self, wave_L: np.ndarray) -> bool:
    """Takes in the next samples; tells whether speech has ended."""
    block = round(duplex.BLOCK_S * self._rate)
    whole_L = np.concatenate([self._rest_L, wave_L])
    loud_N = duplex.active(whole_L, self._rate)
    self._rest_L = whole_L[len(loud_N) * block :]
    for loud in loud_N:
      if loud and self.began is None:
        self.began = self._at
      self._quiet_s = 0.0 if loud else self._quiet_s + duplex.BLOCK_S
      self._at += block
      if self.began is not None and self._quiet_s >= self._silence_s - 1e-6:
        return True
    return False


class Pipeline:
  """The stages, with a model.

  Args:
    service: of the model; a row is free.
    recognise, speak: the stages before and after it.
    silence_s: that ends a question.
  """

  def __init__(self, service: Service, recognise: codec.Recogniser, speak: Synthesiser,
               silence_s: float):
    self._service, self._recognise, self._speak = service, recognise, speak
    self._silence_s = silence_s

  def answer(self, scenario: Scenario) -> dict[str, Any]:
    """Plays a scenario of one question in real time, and answers it.

    Returns:
      latency_s, from the end of the question to the first sound of the answer, and the seconds of
      each of STAGES, whose sum it is: until the silence was long enough, recognising, writing,
      synthesising, and silence at the beginning of what was synthesised. heard: by whisper.
      said: by the model. failed: why there is no latency; else empty.
    """
    question = scenario.of("question")[0]
    out: dict[str, Any] = {"latency_s": None, "heard": "", "said": "", "failed": ""}
    begun = time.perf_counter()
    wave_T = self._listen(scenario.wave_T, begun)
    times = [begun + question["end"], time.perf_counter()]
    if wave_T is None:
      return out | {"failed": "no end of speech was found"}
    if times[1] < times[0] - _EARLY_S:
      return out | {"failed": "it took a pause for the end"}
    out["heard"] = self._recognise(wave_T, question["language"]).strip()
    times.append(time.perf_counter())
    if not out["heard"]:
      return out | {"failed": "nothing was recognised"}
    try:
      out["said"] = self.write(out["heard"])
    except ValueError as error:  # too long
      return out | {"failed": str(error)}
    times.append(time.perf_counter())
    sound_L = self._speak(out["said"], question["language"])
    times.append(time.perf_counter())
    lead = np.flatnonzero(duplex.active(sound_L, SPOKEN))
    if not len(lead):
      return out | {"failed": "the answer has no sound"}
    times.append(times[-1] + float(lead[0]) * duplex.BLOCK_S)
    stages = dict(zip(STAGES, np.diff(times).tolist(), strict=True))
    return out | stages | {"latency_s": times[-1] - times[0]}

  def _listen(self, wave_T: np.ndarray, begun: float) -> np.ndarray | None:
    """The sound of a question, at whisper's rate, as soon as it is over; None if it never is."""
    rate = self._service.sample_rate
    ends, piece = Endpointer(rate, self._silence_s), round(_PIECE_S * rate)
    for at in range(0, len(wave_T), piece):
      heard_L = wave_T[at : at + piece]
      end = at + len(heard_L)
      time.sleep(max(begun + end / rate - time.perf_counter(), 0))
      if ends.hear(heard_L):
        assert ends.began is not None
        since = max(ends.began - round(_BEFORE_S * rate), 0)
        return soxr.resample(wave_T[since:end], rate, SPOKEN)
    return None

  def write(self, text: str) -> str:
    """What the model writes in answer to a text, most likely tokens.

    Raises:
      ValueError: it is too long.
      RuntimeError: the service failed.
    """
    done, pieces, errors = threading.Event(), list[str](), list[str]()

    def emit(event: Event) -> None:
      if isinstance(event, Text):
        pieces.append(event.delta)
      elif isinstance(event, End):
        errors.append(event.error)
        done.set()

    self._service.write([{"text": text}], to="text", sampling=GREEDY, max_new=_MOST, emit=emit)
    done.wait()
    if errors[0]:
      raise RuntimeError(f"the service ended an answer: {errors[0]}.")
    return "".join(pieces).strip()


def chosen(scenarios: Sequence[Scenario], count: int) -> list[Scenario]:
  """The first scenarios of one question, in languages that the pipeline can speak.

  Raises:
    ValueError: there is none.
  """
  found = [s for s in scenarios if s.kind == "answer" and s.of("question")
           and s.of("question")[0].get("language") in VOICES]
  if not found:
    raise ValueError('the scenarios have no question of kind "answer" with a language among '
                     f"{', '.join(VOICES)}; give others, or --questions 0 for no pipeline.")
  return found[:count]


def compare(service: Service, scenarios: Sequence[Scenario], pipelines: Mapping[str, Pipeline], *,
            rng: np.random.Generator, advance: Callable[[], None] = lambda: None
            ) -> list[dict[str, Any]]:
  """The same questions to a dialogue and to pipelines, in turn, in real time.

  Returns:
    Of each scenario its name, and what each side did; "ours" has `said`, too.
  """
  out = []
  for i, scenario in enumerate(scenarios):
    sides: dict[str, Any] = {}
    turns: list[tuple[str, Callable[[], dict[str, Any]]]] = [
      ("ours", functools.partial(_ours, service, scenario, rng))]
    turns += [(name, functools.partial(p.answer, scenario)) for name, p in pipelines.items()]
    shift = i % len(turns)
    for name, act in turns[shift:] + turns[:shift]:
      sides[name] = act()
      advance()
    out.append({"scenario": scenario.name, "language": scenario.of("question")[0]["language"],
                "want": scenario.of("question")[0].get("answer"), **sides})
  return out


def _ours(service: Service, scenario: Scenario, rng: np.random.Generator) -> dict[str, Any]:
  played = voice.live(service, [scenario.wave_T], rng=rng)[0]
  found = voice.answers([voice.Placed(0.0, scenario)], played.came, service.sample_rate)[0]
  return {**found, "said": "".join(f.text for f in played.came).strip(), "behind": played.behind}


def figures(found: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Any]:
  """Medians over the scenarios that both a pipeline and ours answered, in seconds.

  Returns:
    Of each pipeline: pairs; latency_s and the stages; ours, with latency_s, audio_s and compute_s;
    ratio of the pipeline's latency to ours; later_s, how much later it was, the median of the
    pairs; failed: how often, by reason. And "each".
  """
  median = lambda values: float(np.median(values)) if len(values) else None
  out: dict[str, Any] = {"ours": {"of": len(found), "unanswered": sum(
    f["ours"]["latency_s"] is None for f in found)}}
  for name in names:
    pairs = [(f[name], f["ours"]) for f in found
             if f[name]["latency_s"] is not None and f["ours"]["latency_s"] is not None]
    reasons = [f[name]["failed"] for f in found if f[name]["failed"]]
    theirs = {key: median([p[key] for p, _ in pairs]) for key in ("latency_s", *STAGES)}
    ours = {key: median([o[key] for _, o in pairs])
            for key in ("latency_s", "audio_s", "compute_s")}
    # An answer may come before the very end of a question: then a ratio says nothing.
    ratio = theirs["latency_s"] / ours["latency_s"] if (ours["latency_s"] or 0) > 0 else None
    out[name] = {"of": len(found), "pairs": len(pairs), **theirs, "ours": ours, "ratio": ratio,
                 "later_s": median([p["latency_s"] - o["latency_s"] for p, o in pairs]),
                 "failed": {reason: reasons.count(reason) for reason in sorted(set(reasons))}}
  return out | {"each": list(found)}
