"""Scenarios played to a service, and the figures of what it says: times, words, stops."""

import json
import threading

import numpy as np
import pytest
import soundfile

from omnijax.evals import duplex
from omnijax.evals.duplex import Said, Scenario
from omnijax.generate.events import End, Frame

RATE, SIZE = 16_000, 1280
WORDS = {"en": [f"word{d}" for d in range(10)], "fr": [f"mot{d}" for d in range(10)]}


class Judge:
  """Hears the digit in how loud a word is."""

  def predict(self, waves):
    tenths = [round(10 * float(np.max(np.abs(w)))) if len(w) else 0 for w in waves]
    return np.array(["en"] * len(waves)), np.array(tenths, int)


def wave(seconds, *words):
  """Silence with words (start, end, digit) in it."""
  out = np.zeros(round(seconds * RATE), np.float32)
  for start, end, digit in words:
    at = slice(round(start * RATE), round(end * RATE))
    out[at] = digit / 10 * np.sign(np.sin(np.arange(at.stop - at.start)))
  return out


def said(seconds, *words):
  """That, and the transcript of it."""
  texts = [(int(start / 0.08), f"word{digit}") for start, _, digit in words]
  return Said(wave(seconds, *words), texts, [0.01])


def question(start, end, *answer, op="after"):
  words = [WORDS["en"][d] for d in answer]
  return {"event": "question", "start": start, "end": end, "answer": words, "language": "en",
          "kind": "espeak", "op": op}


def scenario(kind, *events):
  return Scenario("one", kind, wave(12), events)


def judged(kind, events, *words):
  return duplex.judge(scenario(kind, *events), said(12, *words), Judge(), WORDS, rate=RATE,
                      size=SIZE)


COUNT = [(2.08 + i * 0.8, 2.56 + i * 0.8, 3 + i) for i in range(7)]  # three to nine


def test_answers_are_timed_and_judged():
  ask = question(1.0, 2.0, 5)
  right = judged("answer", [ask], (2.16, 2.6, 5))["answers"][0]
  assert right["right"] and right["delay_s"] == pytest.approx(0.16, abs=0.011)
  assert not judged("answer", [ask], (2.16, 2.6, 4))["answers"][0]["right"]
  none = judged("answer", [ask])["answers"][0]
  assert not none["right"] and none["delay_s"] is None
  # Words too many, and too few.
  assert not judged("answer", [ask], (2.16, 2.6, 5), (3.2, 3.6, 5))["answers"][0]["right"]
  count = question(1.0, 2.0, 3, 4, 5, 6, 7, 8, 9, op="count")
  assert judged("answer", [count], *COUNT)["answers"][0]["right"]
  assert not judged("answer", [count], *COUNT[:-1])["answers"][0]["right"]


def test_who_speaks_in_a_pause_has_taken_over():
  events = [question(1.0, 4.0, 5), {"event": "pause", "start": 1.8, "end": 3.4}]
  assert judged("pause", events, (4.16, 4.6, 5))["takeovers"] == [False]
  assert judged("pause", events, (2.4, 2.8, 5))["takeovers"] == [True]


def test_interruptions_stop_it():
  first, second = question(1.0, 2.0, *range(3, 10), op="count"), question(3.7, 4.5, 6)
  events = [first, second, {"event": "interruption", "start": 3.7, "end": 4.5}]
  words = [*COUNT[:2], (3.68, 3.9, 5), (4.64, 5.0, 6)]
  out = judged("interruption", events, *words)
  assert out["stops"] == [pytest.approx(0.2, abs=0.011)]
  assert [a["right"] for a in out["answers"]] == [True]  # of the second alone
  assert judged("interruption", events, *COUNT)["stops"] == [None]
  assert judged("interruption", events, (2.08, 2.4, 3), (4.64, 5.0, 6))["stops"] == ["silent"]


def test_back_channels_and_noises_do_not():
  ask = question(1.0, 2.0, *range(3, 10), op="count")
  event = {"event": "backchannel", "start": 3.0, "end": 3.3}
  assert judged("backchannel", [ask, event], *COUNT)["false_stops"] == [False]
  assert judged("backchannel", [ask, event], *COUNT[:2])["false_stops"] == [True]
  late = {"event": "noise", "start": 6.9, "end": 7.2}  # while the last word is said
  assert judged("noise", [ask, late], *COUNT)["false_stops"] == [False]
  assert judged("noise", [ask, event | {"start": 9.0}], *COUNT)["false_stops"] == [None]


def test_figures_are_shares_and_medians():
  of = {"language": "en", "op": "after", "kind": "person"}
  results = [(None, {"answers": [of | {"right": i < 3, "delay_s": 0.1 * i}],
                     "takeovers": [i == 0],
                     "stops": [[0.1, 0.2, None, "silent"][i]],
                     "false_stops": [[True, False, False, None][i]]}) for i in range(4)]
  out = duplex.figures(results)
  assert out["answers"]["share"] == 0.75 and out["answers"]["n"] == 4
  assert out["answers"]["by_voice"]["person"]["n"] == 4
  assert out["response_s"]["median"] == pytest.approx(0.1)
  assert out["takeovers"]["share"] == 0.25
  assert out["stops"]["share"] == pytest.approx(2 / 3) and out["stops"]["was_silent"] == 1
  assert out["stops"]["latency_s"]["median"] == pytest.approx(0.15)
  assert out["false_stops"]["share"] == pytest.approx(1 / 3)
  assert out["false_stops"]["n"] == 3 and out["false_stops"]["was_silent"] == 1


class Parrot:
  """A service whose talks say what they hear, half as loud, and note it."""

  sample_rate, frame_size = RATE, SIZE

  def __init__(self):
    self.heard = []

  def talk(self, *, emit):
    return Mouth(self, emit)


class Mouth:
  def __init__(self, service, emit):
    self._service, self._emit, self._index = service, emit, 0

  def hear(self, wave_L):
    self._service.heard.append(wave_L)
    event = Frame(self._index, 0.5 * wave_L, "x" if self._index == 3 else "", 0.01)
    self._index += 1
    # Not from here: a service answers on a thread of its own.
    threading.Thread(target=self._emit, args=(event,)).start()

  def close(self):
    self._emit(End("cancelled"))


@pytest.mark.parametrize("echo", [None, (0.1, SIZE // 2)])
def test_what_is_said_comes_a_frame_later_and_is_heard_again(echo):
  service, r = Parrot(), np.random.default_rng(0)
  user = r.uniform(-0.3, 0.3, 10 * SIZE - 5).astype(np.float32)
  out, = duplex.play(service, [Scenario("a", "answer", user, ())], at_once=2, echo=echo)
  heard = np.concatenate(service.heard)
  assert len(heard) == len(out.wave_T) == 10 * SIZE and out.words == [(4, "x")]
  np.testing.assert_allclose(out.wave_T[SIZE:], 0.5 * heard[:-SIZE], atol=1e-6)
  padded = np.pad(user, (0, 5))
  if echo is None:
    np.testing.assert_array_equal(heard, padded)
  else:
    late = np.concatenate([np.zeros(SIZE // 2), out.wave_T[: -SIZE // 2]])
    np.testing.assert_allclose(heard, padded + 0.1 * late, atol=1e-6)


def test_scenarios_are_read(tmp_path):
  soundfile.write(tmp_path / "a.wav", np.zeros(800), RATE)
  soundfile.write(tmp_path / "b.wav", np.zeros(800), 8000)
  path = tmp_path / "s.jsonl"
  line = {"id": "x", "kind": "noise", "audio": "a.wav", "events": []}
  path.write_text(json.dumps(line))
  one, = duplex.read(path, RATE)
  assert (one.name, one.kind, len(one.wave_T)) == ("x", "noise", 800)
  path.write_text(json.dumps(line | {"kind": "song"}))
  with pytest.raises(ValueError, match="line 1: kind is 'song'; wanted one of answer"):
    duplex.read(path, RATE)
  for text, says in (("{", "line 1: Expecting"), ("[]", "line 1"), ('{"id": 1}', "line 1: 'kind'"),
                     (json.dumps(line | {"audio": "none.wav"}), "none.wav")):
    path.write_text(text)
    with pytest.raises(ValueError, match=says):
      duplex.read(path, RATE)
  path.write_text(json.dumps(line | {"audio": "b.wav"}))
  with pytest.raises(ValueError, match="b.wav has 8000 samples/s"):
    duplex.read(path, RATE)
