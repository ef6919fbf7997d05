"""`omnijax bench voice`: latencies of known frames, stages of known length, files, bad input."""

import json
import re
import sys
import threading
import time
import types

import numpy as np
import pytest
import soundfile

from omnijax import checkpoint, cli
from omnijax.bench import page, pipeline, voice, voice_command
from omnijax.evals import charts
from omnijax.evals.duplex import Scenario
from omnijax.generate.events import End, Frame, Text

RATE, SIZE, BLOCK = 16_000, 1280, 160


def tone(seconds: float) -> np.ndarray:
  return 0.1 * np.sin(np.arange(round(seconds * RATE)) / 3).astype(np.float32)


def silence(seconds: float) -> np.ndarray:
  return np.zeros(round(seconds * RATE), np.float32)


def frame(at_s: float, loud: range = range(0), took_s: float = 0.03) -> voice.Came:
  wave_L = np.zeros(SIZE, np.float32)
  for block in loud:
    wave_L[block * BLOCK : (block + 1) * BLOCK] = tone(0.01)
  return voice.Came(at_s, took_s, wave_L, "")


def placed(seconds: float, *events: tuple, begin_s: float = 0.0) -> list[voice.Placed]:
  found = tuple({"event": kind, "start": start, "end": end} for kind, start, end in events)
  return [voice.Placed(begin_s, Scenario("one", "answer", silence(seconds), found))]


# --- answers and stops -------------------------------------------------------


def test_an_answer_is_heard_at_its_place_in_the_frame_that_brings_it():
  came = [frame(10.10), frame(11.25), frame(11.40, range(3, 8), 0.05), frame(11.48, range(8))]
  answer, = voice.answers(placed(5.0, ("question", 0.4, 1.2), begin_s=10.0), came, RATE)
  assert not answer["spoke"]
  assert answer["latency_s"] == pytest.approx(11.40 + 0.03 - 11.2)
  assert answer["compute_s"] == 0.05
  assert answer["audio_s"] == pytest.approx(answer["latency_s"] - 0.05)


@pytest.mark.parametrize(("at_s", "latency"), [
  (1.12, -0.08),  # before the very end
  (2.95, 1.75),
  (3.05, None)])  # the next question has begun
def test_an_answer_is_looked_for_until_the_next_question(at_s, latency):
  where = placed(5.0, ("question", 0.4, 1.2), ("question", 3.0, 3.5))
  got = voice.answers(where, [frame(at_s, range(1))], RATE)[0]["latency_s"]
  assert got == (None if latency is None else pytest.approx(latency))


def test_who_speaks_already_does_not_answer():
  came = [frame(1.0, range(8)), frame(1.08, range(8)), frame(1.16, range(8))]
  answer, = voice.answers(placed(5.0, ("question", 0.4, 1.2)), came, RATE)
  assert answer == {"scenario": "one", "spoke": True, "latency_s": None, "audio_s": None,
                    "compute_s": None}


def test_what_is_interrupted_is_no_answer():
  where = placed(9.0, ("question", 0.5, 1.0), ("question", 3.0, 4.0), ("interruption", 3.0, 4.0))
  got = voice.answers(where, [frame(1.2, range(8)), frame(4.3, range(8))], RATE)
  assert [a["latency_s"] for a in got] == [pytest.approx(0.3)]


def test_a_stop_is_the_end_of_the_last_sound_before_a_silence():
  where = placed(9.0, ("interruption", 3.0, 4.0))
  came = [frame(2.8, range(8)), frame(3.0, range(8)), frame(3.3, range(4, 5), 0.07),  # a short gap
          frame(3.8, range(8))]  # after a silence of 0.45 s: another answer
  stop, = voice.stops(where, came, RATE)
  assert stop["spoke"] and stop["latency_s"] == pytest.approx(0.35)
  assert stop["compute_s"] == 0.07 and stop["audio_s"] == pytest.approx(0.28)
  goes_on = [frame(2.8 + 0.08 * i, range(8)) for i in range(20)]
  stop, = voice.stops(where, goes_on, RATE)
  assert stop["spoke"] and stop["latency_s"] is None
  stop, = voice.stops(where, [frame(2.5, range(8)), frame(3.4, range(8))], RATE)
  assert not stop["spoke"] and stop["latency_s"] is None
  stop, = voice.stops(where, [frame(2.8, range(8))], RATE)  # had just finished
  assert stop["latency_s"] == 0 and stop["compute_s"] == 0


def test_figures_of_talks_at_once():
  where = placed(5.0, ("question", 0.4, 1.2))
  quick = voice.Played([frame(1.4, range(8), 0.02), frame(1.5, took_s=0.04)], [0.001, 0.003], "")
  slow = voice.Played([frame(1.6, range(8), 0.09), frame(1.7, took_s=0.08)], [0.002], "too much")
  got = voice.figures([quick, slow], [where, where], frame_s=0.08, rate=RATE)
  assert got["frames"] == 4 and got["late"] == 0.25 and got["behind"] == 1
  assert got["frame_s"]["p50"] == pytest.approx(0.06) and got["frame_s"]["max"] == 0.09
  assert got["fed_late_s"]["p50"] == pytest.approx(0.002)
  answers = got["answers"]
  assert answers["of"] == 2 and answers["latency_s"]["p50"] == pytest.approx(0.3)
  assert answers["compute_s"]["p50"] == pytest.approx(0.055)
  assert got["stops"]["of"] == 0 and got["stops"]["latency_s"]["p50"] is None


def test_talks_hear_scenarios_one_after_the_other():
  scenarios = [Scenario(str(i), "answer", np.full(RATE * (i + 1), i, np.float32), ())
               for i in range(3)]  # 1, 2, 3 s
  made = voice.streams(scenarios, 2, 7 * RATE, RATE, np.random.default_rng(0))
  for wave_T, where in made:
    assert len(wave_T) == 7 * RATE
    for begin_s, scenario in where:
      begin = round(begin_s * RATE)
      np.testing.assert_array_equal(wave_T[begin : begin + len(scenario.wave_T)], scenario.wave_T)
  assert sorted(p.scenario.name for p in made[0][1]) == ["0", "1", "2"]  # 6 s; 1 s of another


# --- talks by the clock ------------------------------------------------------


class FakeTalk:
  """Says a frame of tone after each question, at once; fails where it is told to."""

  def __init__(self, service, emit):
    self.service, self.emit, self.heard, self.loud = service, emit, [], False
    self.ended = False

  def hear(self, wave_L):
    n = len(self.heard)
    if n == self.service.full_at:
      raise ValueError("10 s of sound wait already")
    self.heard.append((time.perf_counter(), wave_L))
    if n == self.service.fails_at:
      self.ended = True
      return self.emit(End("failed", error="the service has failed"))
    loud = bool(np.abs(wave_L).max() > 0.01)
    answers, self.loud = self.loud and not loud, loud
    time.sleep(self.service.takes_s)
    self.emit(Frame(n, tone(0.08) if answers else silence(0.08), "two" if answers else "", 0.01))

  def close(self):
    if not self.ended:
      self.emit(End("cancelled"))


class FakeService:
  sample_rate, frame_size, full_at, fails_at, takes_s = RATE, SIZE, None, None, 0.0

  def __init__(self):
    self.talks, self.asked, self.closed = [], [], False

  def talk(self, *, emit):
    self.talks.append(FakeTalk(self, emit))
    return self.talks[-1]

  def write(self, parts, *, to, sampling, max_new, emit):
    assert to == "text" and sampling.text.temperature == 0
    self.asked.append(parts)
    for event in (Text("t", False), Text("wo ", False), End("stop")):
      emit(event)

  def close(self):
    self.closed = True


def test_talks_are_fed_by_the_clock():
  service, given = FakeService(), []
  waves = [np.arange(3 * SIZE + 5, dtype=np.float32), np.ones(2 * SIZE, np.float32)]
  played = voice.live(service, waves, rng=np.random.default_rng(0),
                      advance=lambda: given.append(threading.get_ident()))
  assert [len(p.came) for p in played] == [4, 2] and len(given) == 6
  heard = np.concatenate([wave_L for _, wave_L in service.talks[0].heard])
  np.testing.assert_array_equal(heard[: len(waves[0])], waves[0])
  for talk, result in zip(service.talks, played, strict=True):
    assert min(result.fed_late_s) >= 0
    # When its last sample had been spoken, and not before.
    for i, came in enumerate(result.came):
      assert came.at_s >= (i + 1) * 0.08 + result.fed_late_s[i]
    assert talk.heard[-1][0] - talk.heard[0][0] >= 0.08 * (len(talk.heard) - 1) - max(
      result.fed_late_s)
  begun = [talk.heard[0][0] - result.fed_late_s[0]
           for talk, result in zip(service.talks, played, strict=True)]
  assert begun[0] != pytest.approx(begun[1], abs=1e-3)


def test_a_service_that_falls_behind_and_one_that_fails():
  service = FakeService()
  service.full_at = 2
  played, = voice.live(service, [silence(1.0)], rng=np.random.default_rng(0))
  assert "10 s" in played.behind and len(played.came) == 2
  service.full_at, service.fails_at = None, 1
  with pytest.raises(RuntimeError, match="the service has failed"):
    voice.live(service, [silence(1.0)], rng=np.random.default_rng(0))
  with pytest.raises(RuntimeError, match="before all was said"):
    voice.flat_out(service, [silence(1.0)])


def test_wall_time_over_sound_time():
  service = FakeService()
  service.takes_s = 0.02
  assert 0.25 <= voice.flat_out(service, [silence(0.4)]) < 2


# --- the pipeline ------------------------------------------------------------


@pytest.mark.parametrize("piece", [7, 320, 5000])
def test_speech_ends_after_a_silence(piece):
  wave_T = np.concatenate([silence(0.3), tone(0.2), silence(0.3), tone(0.2), silence(1.0)])
  for silence_s, want in ((0.5, 1.5), (0.2, 0.7)):
    ends = pipeline.Endpointer(RATE, silence_s)
    ended = next(at for at in range(0, len(wave_T), piece) if ends.hear(wave_T[at : at + piece]))
    assert ended <= want * RATE <= ended + piece and ends.began == 0.3 * RATE
  ends = pipeline.Endpointer(RATE, 0.2)
  assert not ends.hear(silence(2.0))


def question(*pieces: np.ndarray, end: float = 0.3) -> Scenario:
  event = {"event": "question", "start": 0.1, "end": end, "language": "en", "answer": ["two"]}
  return Scenario("q", "answer", np.concatenate(pieces), (event,))


def slow(value, seconds):
  def act(wave_or_text, language):
    assert language == "en"
    time.sleep(seconds)
    return value
  return act


def test_stages_of_a_pipeline():
  speech = np.concatenate([silence(0.05), tone(0.1)])
  side = pipeline.Pipeline(FakeService(), slow(" one? ", 0.06), slow(speech, 0.03), 0.2)
  got = side.answer(question(silence(0.1), tone(0.2), silence(1.0)))
  assert (got["heard"], got["said"], got["failed"]) == ("one?", "two", "")
  assert got["latency_s"] == pytest.approx(sum(got[stage] for stage in pipeline.STAGES))
  assert got["silence_s"] >= 0.2 and got["recognise_s"] >= 0.06 and got["speak_s"] >= 0.03
  assert got["write_s"] < got["recognise_s"] and got["lead_s"] == pytest.approx(0.05)


@pytest.mark.parametrize(("scenario", "heard", "sound", "failed"), [
  (question(silence(0.4)), "a", tone(0.1), "no end of speech"),
  (question(silence(0.1), tone(0.1), silence(0.3), end=0.8), "a", tone(0.1), "took a pause"),
  (question(silence(0.1), tone(0.2), silence(0.3)), " ", tone(0.1), "nothing was recognised"),
  (question(silence(0.1), tone(0.2), silence(0.3)), "a", silence(0.1), "has no sound")])
def test_a_pipeline_fails_for_a_reason(scenario, heard, sound, failed):
  side = pipeline.Pipeline(FakeService(), slow(heard, 0), slow(sound, 0), 0.2)
  got = side.answer(scenario)
  assert failed in got["failed"] and got["latency_s"] is None


def test_figures_are_of_pairs():
  def of(latency_s, failed=""):
    if latency_s is None:
      return {"latency_s": None, "failed": failed}
    return {"latency_s": latency_s, "failed": "", **dict.fromkeys(pipeline.STAGES, latency_s / 5)}

  ours = lambda s: {"latency_s": s, "audio_s": s and s - 0.05, "compute_s": s and 0.05}
  found = [{"ours": ours(0.2), "p": of(1.0)}, {"ours": ours(0.3), "p": of(1.2)},
           {"ours": ours(None), "p": of(9.0)}, {"ours": ours(0.1), "p": of(None, "why")}]
  got = pipeline.figures(found, ["p"])
  side = got["p"]
  assert (side["of"], side["pairs"], side["failed"]) == (4, 2, {"why": 1})
  assert got["ours"] == {"of": 4, "unanswered": 1}
  assert side["latency_s"] == pytest.approx(1.1)
  assert side["ours"]["latency_s"] == pytest.approx(0.25)
  assert side["ratio"] == pytest.approx(4.4) and side["later_s"] == pytest.approx(0.85)
  early = pipeline.figures([{"ours": ours(-0.05), "p": of(1.0)}], ["p"])["p"]
  assert early["ratio"] is None and early["later_s"] == pytest.approx(1.05)
  assert pipeline.figures([], ["p"])["p"]["ratio"] is None


def test_questions_that_a_pipeline_can_be_asked():
  ask = lambda kind, language: Scenario(kind + language, kind, silence(1.0), (
    {"event": "question", "start": 0.0, "end": 0.5, "language": language},))
  scenarios = [ask("answer", "ru"), ask("pause", "en"), ask("answer", "it"), ask("answer", "en")]
  assert [s.name for s in pipeline.chosen(scenarios, 5)] == ["answerit", "answeren"]
  assert len(pipeline.chosen(scenarios, 1)) == 1
  with pytest.raises(ValueError, match="--questions 0"):
    pipeline.chosen(scenarios[:2], 5)


# --- the command -------------------------------------------------------------


@pytest.fixture
def files(tmp_path, monkeypatch):
  """A run that there is not, and a file of scenarios; the service is a fake."""
  made = []

  def load(run_dir, *, slots):
    made.append((slots, FakeService()))
    return made[-1][1]

  monkeypatch.setattr(voice_command.Service, "load", load)
  monkeypatch.setattr(checkpoint, "read_identity", lambda path: (7, None))
  monkeypatch.setattr(voice_command, "_stages", lambda: (
    lambda wave_T, language: f"{len(wave_T) / RATE:.1f} s", lambda text, language: tone(0.1)))
  wave_T = np.concatenate([silence(0.1), tone(0.2), silence(0.7)])
  soundfile.write(tmp_path / "a.wav", wave_T, RATE, subtype="FLOAT")
  event = {"event": "question", "start": 0.1, "end": 0.3, "language": "en", "answer": ["two"]}
  line = {"id": "a", "kind": "answer", "audio": "a.wav", "events": [event]}
  path = tmp_path / "scenarios.jsonl"
  path.write_text(json.dumps(line) + "\n")
  return types.SimpleNamespace(made=made, path=path, out=tmp_path / "voice.json",
                               argv=["bench", "voice", "run", "--scenarios", str(path)])


def extras(monkeypatch, *missing):
  """As if all extras were installed but some."""
  found = types.SimpleNamespace(find_spec=lambda name: None if name in missing else object())
  monkeypatch.setattr(voice_command, "importlib", types.SimpleNamespace(util=found))


def test_the_command(files, monkeypatch, capsys):
  extras(monkeypatch)
  monkeypatch.setattr(sys, "argv", ["/usr/bin/omnijax", "bench", "voice", "a run"])
  assert cli.main([*files.argv, "--sessions", "1,2", "--seconds", "1", "--questions", "1", "--out",
                   str(files.out)]) == 0
  values = json.loads(files.out.read_text())
  assert [slots for slots, _ in files.made] == [1, 2] and all(s.closed for _, s in files.made)
  assert values["checkpoint"] == 7 and values["command"] == "omnijax bench voice 'a run'"
  assert values["device"] and values["commit"] and values["run"] == "run"
  assert [len(s.asked) for _, s in files.made] == [2, 0]  # the pipelines, once
  one, two = values["talks"]
  assert (one["sessions"], two["sessions"], two["slots"]) == (1, 2, 2)
  assert two["frames"] == 2 * len(one["frame_s"]["each"]) == 24
  assert one["answers"]["of"] == 0  # a second is not a whole number of frames: cut off
  assert 0 < one["wall_over_sound"] < 1
  each, = values["pipeline"]["each"]
  assert each["want"] == ["two"] and each["ours"]["said"] == "two"
  theirs = each["500 ms of silence"]
  assert (theirs["heard"], theirs["said"]) == ("0.8 s", "two")
  assert values["pipeline"]["200 ms of silence"]["pairs"] == 1
  later = [values["pipeline"][name]["latency_s"] for name in values["silences"]]
  assert later[0] - later[1] > 0.2
  html = files.out.with_suffix(".html").read_text()
  assert html.count("<svg") == 2 and "2 at once" in html and "recognising" in html
  out = capsys.readouterr().out
  assert "pipeline / ours" in out and "Open" in out


def test_without_a_pipeline_on_one_service(files, capsys):
  assert cli.main([*files.argv, "--sessions", "1,2", "--seconds", "2", "--questions", "0",
                   "--slots", "3", "--out", str(files.out)]) == 0
  values = json.loads(files.out.read_text())
  assert [slots for slots, _ in files.made] == [3] and values["pipeline"] == {}
  answers = values["talks"][1]["answers"]
  assert answers["of"] == 4 and answers["latency_s"]["n"] == 4
  assert 0 < answers["latency_s"]["p50"] < 1 and answers["compute_s"]["p50"] == 0.01
  assert "pipeline / ours" not in capsys.readouterr().out


@pytest.mark.parametrize(("argv", "says"), [
  (["--seconds", "0"], "--seconds is 0; wanted 1 or more"),
  (["--seconds", "nan"], "--seconds is nan"),
  (["--questions", "-1"], "--questions is -1"),
  (["--sessions", "1,0"], "'1,0'; wanted numbers above 0"),
  (["--sessions", "1;2"], "'1;2'; wanted numbers"),
  (["--slots", "2"], "--slots is 2, and --sessions asks for 8"),
  (["--out", "voice.txt"], "--out is voice.txt; wanted a name that ends in .json"),
  (["--out", "/nowhere/x.json"], "no directory /nowhere"),
  (["--scenarios", "/nowhere/x.jsonl"], "there is no file /nowhere/x.jsonl")])
def test_bad_options(files, argv, says, capsys):
  try:
    code = cli.main([*files.argv, *argv])
  except SystemExit as stop:  # argparse
    code = stop.code
  error = capsys.readouterr().err
  assert code == 2 and says in error and error.count("\n") == 1


def test_a_run_that_is_none(files, monkeypatch, capsys):
  monkeypatch.undo()
  assert cli.main(["bench", "voice", "/nowhere/run", "--scenarios", str(files.path)]) == 2
  assert re.search("/nowhere/run", capsys.readouterr().err)


def test_extras_that_are_missing(files, monkeypatch, capsys):
  extras(monkeypatch, "py_nanotts")
  assert cli.main(files.argv) == 2
  assert 'pip install "omnijax[voice]"' in capsys.readouterr().err


def test_bars_are_as_long_as_their_parts():
  chart = charts.stacks([("a", [charts.Piece("x", "--text", 1.0), charts.Piece("y", "--bad", 3.0),
                                charts.Piece("z", "--pad", -1.0)]),
                         ("b", [charts.Piece("x", "--text", 2.0)])], title="t", x_label="ms")
  rects = [tuple(map(float, found)) for found in
           re.findall(r'<rect [^>]*x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', chart)]
  assert len(rects) == 3
  (x0, w0), (x1, w1), (x2, w2) = rects
  assert w1 == pytest.approx(3 * w0, abs=0.2) and w2 == pytest.approx(2 * w0, abs=0.2)
  assert x1 == pytest.approx(x0 + w0, abs=0.1) and x2 == x0
  assert "a, y: 3" in chart and ">z<" not in chart


def test_the_page_of_nothing_answered(files):
  assert "No question was answered" in page._stacked({"p": {"pairs": 0}}, ["p"])
