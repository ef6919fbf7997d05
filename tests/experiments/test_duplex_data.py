"""The dialogues are what they claim: times, silences, stops, answers and who speaks."""

import json

import numpy as np
import pytest
import soundfile

from experiments.digits import unpack
from experiments.digits.voices import LANGUAGES, WORDS
from experiments.duplex import dialogues, manifest, phrases, recordings, scenarios, sounds, talk
from experiments.duplex.recordings import FRAME, RATE
from omnijax.data import sources
from omnijax.data.sources import rows
from omnijax.tokenizers import clips

DIALOGUES = 12


@pytest.fixture(scope="module")
def made():
  return [dialogues.dialogue(3, split, i) for split in dialogues.SPLITS for i in range(DIALOGUES)]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
  folder = tmp_path_factory.mktemp("duplex")
  manifest.write(folder, seed=3, dialogues=DIALOGUES, heldout=2, scenarios=2, processes=0)
  return folder


def lines(path):
  return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def answered(dialogue):
  """Events that have an answer."""
  return [event for event in dialogue.events if "answer" in event]


def said(dialogue, event):
  return [recordings.word(w.language, w.digit) for w in dialogue.words
          if event["answer_start"] <= w.frame * FRAME < event["answer_end"]]


@pytest.mark.parametrize(("op", "digit", "want"), [
  ("after", 9, (0,)), ("bare", 3, (4,)), ("before", 0, (9,)), ("before", 5, (4,)),
  ("count", 4, (4, 5, 6, 7, 8, 9)),
  ("count", 8, (8, 9, 0, 1)), ("count", 0, tuple(range(10)))])
def test_what_the_answer_is(op, digit, want):
  assert phrases.answer(op, digit) == want


def test_answers_are_right_and_begin_with_the_frame_after_the_question(made):
  ops = set()
  for dialogue in made:
    for event in answered(dialogue):
      ops.add(event["op"])
      whole = [WORDS[event["language"]][d] for d in
               ((event["digit"],) if event["op"] == "name" else
                phrases.answer(event["op"], event["digit"]))]
      assert event["answer"] == whole
      assert said(dialogue, event) == whole[: event["said"]]
      assert event["said"] == len(whole) or "stop" in event
      if event["event"] == "question":
        assert event["answer_start"] == -(-event["end"] // FRAME) * FRAME
      else:
        assert event["answer_start"] == event["start"] + FRAME
        assert event["start"] // FRAME in [frame for frame, _ in dialogue.cuts]
  assert ops >= {"after", "before", "count", "bare"}


def test_words_sound_in_their_frames_and_nothing_else_does(made):
  for dialogue in made:
    silent = np.ones(len(dialogue.assistant_T), bool)
    for word in dialogue.words:
      start = word.frame * FRAME
      # Loud from the first 20 ms on: the time of a word is that of its sound.
      assert np.abs(dialogue.assistant_T[start : start + RATE // 50]).max() > 2e-3
      silent[start : word.end] = False
    assert not dialogue.assistant_T[silent].any()
    for word, following in zip(dialogue.words, dialogue.words[1:], strict=False):
      assert following.frame * FRAME >= word.end


def test_counted_words_are_one_to_two_frames_apart_but_where_it_was_held(made):
  gaps = []
  for dialogue in made:
    holds = {e["end"] for e in dialogue.events if e["event"] == "held"}
    for event in answered(dialogue):
      mine = [w for w in dialogue.words
              if event["answer_start"] <= w.frame * FRAME < event["answer_end"]]
      for a, b in zip(mine, mine[1:], strict=False):
        gaps += [b.frame * FRAME - a.end] if b.frame * FRAME not in holds else []
  assert min(gaps) >= FRAME and max(gaps) < 2 * FRAME


def test_who_stops_without_need_goes_on_with_the_next_word(made):
  holds = 0
  for dialogue in made:
    for event in (e for e in dialogue.events if e["event"] == "held"):
      holds += 1
      sounded = [(e["start"], e["end"]) for e in dialogue.events
                 if e["event"] in ("backchannel", "noise")]
      assert any(0 <= event["start"] - start - talk.REACTION * RATE < FRAME
                 and FRAME <= event["end"] - end < 2 * FRAME for start, end in sounded)
      assert not dialogue.assistant_T[event["start"] : event["end"]].any()
      (of,) = [e for e in answered(dialogue)
               if e["answer_start"] < event["start"] < e["answer_end"]]
      assert said(dialogue, of) == of["answer"][: of["said"]]
  assert holds


@pytest.mark.parametrize(("onset", "seconds", "held"), [
  (2.0, 0.5, True), (2.0, 0.1, False),  # over before it could have stopped
  (9.0, 0.5, False)])  # the last word is being said
def test_what_is_let_pass_holds_nobody(onset, seconds, held):
  told = talk.Talk(recordings.load("train"), np.random.default_rng(0), disguised=True)
  event = told.note("question", 0, 0)
  end = told.answer(10, "en", tuple(range(10)), event)
  onset = int(min(onset * RATE, told.words[-1].frame * FRAME + 1000))
  told.hold(onset, onset + int(seconds * RATE), event)
  assert (event["answer_end"] > end) == held == any(e["event"] == "held" for e in told.events)
  assert [w.digit for w in told.words] == list(range(10))
  assert held or all(w.stop is None for w in told.words)


def test_who_is_interrupted_stops(made):
  stops = late = 0
  for dialogue in made:
    for event in dialogue.events:
      if event["event"] != "interruption":
        continue
      stops += 1
      after = event["stop"] - event["start"] - talk.REACTION * RATE
      assert 0 <= after < (1 + talk.LATE_FRAMES) * FRAME
      late += after >= FRAME
      assert event["stop"] % FRAME == 0
      # Not a sound until the question that interrupted has ended, and then its answer.
      quiet_T = dialogue.assistant_T[event["stop"] : event["end"]]
      assert not quiet_T.any()
      asked = [e for e in answered(dialogue) if e["start"] == event["start"]]
      assert len(asked) == 1 and asked[0]["answer_start"] >= event["end"]
      # What was begun has two frames at least, and ends softly.
      last = [w for w in dialogue.words if w.frame * FRAME < event["stop"]][-1]
      assert event["stop"] // FRAME - last.frame >= talk.LEAST
      assert np.abs(dialogue.assistant_T[event["stop"] - 3 : event["stop"]]).max() < 0.02
  assert stops > 5 and 0 < late < stops / 2


def test_back_channels_and_noises_stop_nobody(made):
  inside = 0
  for dialogue in made:
    stops = {e["stop"] for e in dialogue.events if e["event"] == "interruption"}
    for event in answered(dialogue):
      over = [e for e in dialogue.events if e["event"] in ("backchannel", "noise")
              and event["answer_start"] < e["start"] < event["answer_end"]]
      inside += len(over)
      assert ("stop" in event) == (event.get("stop") in stops)
      assert event["said"] == len(event["answer"]) or "stop" in event
  assert inside > 5


def test_the_user_waits_for_no_frame_and_keeps_within_range(made):
  starts = [e["start"] % FRAME for d in made for e in d.events if e["event"] == "question"]
  assert np.mean(np.array(starts) == 0) < 0.05 and np.std(starts) > FRAME / 5
  for dialogue in made:
    assert np.abs(dialogue.user_T).max() <= 1
    assert len(dialogue.user_T) == len(dialogue.assistant_T)
    assert len(dialogue.user_T) % FRAME == 0
    assert len(dialogue.user_T) <= dialogues.MOST_FRAMES * FRAME
    first = min(e["start"] for e in dialogue.events)
    assert 0.5 * RATE <= first < 2 * RATE


def test_a_dialogue_depends_on_its_seed_and_number_only(made):
  again = dialogues.dialogue(3, "train", 1)
  assert np.array_equal(again.user_T, made[1].user_T)
  assert np.array_equal(again.assistant_T, made[1].assistant_T)
  assert again.events == made[1].events
  other = dialogues.dialogue(4, "train", 1)
  assert not np.array_equal(again.user_T[: 5 * RATE], other.user_T[: 5 * RATE])


def test_no_voice_of_training_is_tested_and_no_user_is_the_assistant():
  train, heldout = recordings.load("train"), recordings.load("heldout")
  assert not set(train.kinds) & set(heldout.kinds)
  for bank, least in ((train, 40), (heldout, 8)):
    spoken = {voice for _, voice, _ in bank.said}
    assert spoken <= set(bank.kinds)
    for language in LANGUAGES:
      assert recordings.ASSISTANT[language] not in {v for la, v in bank.digits if la == language}
      askers = [v for some in bank.voices[language].values() for v in some
                if bank.asks(language, v)]
      assert len(askers) >= least
      assert not any(bank.kinds[v] == "person" for v in askers)
    said = {len(some) for (_, _, use), some in bank.said.items() if use == "backchannel"}
    assert said == {6 if bank is train else phrases.TESTED_BACKCHANNELS}
  voices = {e["voice"] for e in unpack.index() if e["split"] == "train"}
  assert set(recordings.ASSISTANT.values()) <= voices


def test_every_source_is_named_with_its_licence():
  text = (recordings.DATA.parent / "SOURCES.md").read_text("utf-8")
  entries = lines(recordings.DATA / "index.jsonl")
  for source in {e["source"] for e in entries}:
    assert f"`{'festival-*' if source.startswith('festival-') else source}`" in text
  assert len({e["id"] for e in entries}) == len(entries)


def test_documents_are_read_and_their_words_lie_in_the_frames_of_their_sound(written):
  parted = 0
  for line in lines(written / "train.jsonl") + lines(written / "heldout.jsonl"):
    parts = rows.item(1, "x", line).parts
    assert not isinstance(parts, sources.Bad), parts
    audio = [p for p in line["parts"] if "audio" in p]
    parted += len(audio) > 1
    total = 0
    for part in audio:
      spoken_T, rate = soundfile.read(written / part["audio"])
      heard_T, _ = soundfile.read(written / part["listen"])
      assert rate == RATE and len(spoken_T) == len(heard_T) and len(spoken_T) % FRAME == 0
      assert part["words"]
      total += len(spoken_T)
      for time, _ in part["words"]:
        frame = int(time * 12.5)  # as `omnijax prepare` places it
        before_T = spoken_T[max(frame * FRAME - RATE // 100, 0) : frame * FRAME]
        assert not before_T.any()
        assert np.abs(spoken_T[frame * FRAME : frame * FRAME + RATE // 50]).max() > 2e-3
    assert total == round(line["duplex"]["seconds"] * RATE)
    assert len(line["duplex"]["cuts"]) == len(audio) - 1
    for part in line["parts"]:
      assert "image" not in part or (written / part["image"]).exists()
  assert parted


def test_what_is_written_is_left_alone(tmp_path):
  write = lambda dialogues: manifest.write(tmp_path, seed=3, dialogues=dialogues, heldout=0,
                                           scenarios=0, processes=0)
  write(1)
  first = (tmp_path / "train.jsonl").read_text("utf-8")
  path = tmp_path / json.loads(first)["parts"][0]["audio"]
  before = path.stat().st_mtime_ns
  write(2)
  assert path.stat().st_mtime_ns == before
  assert (tmp_path / "train.jsonl").read_text("utf-8").splitlines(True)[0] == first


def test_scenarios_come_with_time_to_answer(written):
  kinds = []
  for line in lines(written / "scenarios.jsonl"):
    kinds.append(line["kind"])
    wave_T, _ = soundfile.read(written / line["audio"])
    assert 8 <= len(wave_T) / RATE == line["seconds"] <= 17
    asked = [e for e in line["events"] if e["event"] == "question"]
    last = asked[-1]
    assert line["seconds"] - last["end"] >= (6 if last["op"] == "count" else 3)
    if line["kind"] == "interruption":
      assert 1.0 <= asked[1]["start"] - asked[0]["end"] <= 2.2 and asked[0]["op"] == "count"
      assert asked[1]["op"] != "count"
    elif line["kind"] in ("backchannel", "noise"):
      (event,) = [e for e in line["events"] if e["event"] == line["kind"]]
      assert 1.0 <= event["start"] - last["end"] <= 2.2 and last["op"] == "count"
    elif line["kind"] == "pause":
      (pause,) = [e for e in line["events"] if e["event"] == "pause"]
      assert last["start"] < pause["start"] < pause["end"] < last["end"]
      assert pause["end"] - pause["start"] >= 0.6
  assert kinds == [kind for kind in scenarios.KINDS for _ in range(2)]


def test_the_voices_of_scenarios_take_turns():
  bank = recordings.load("heldout")
  heard = {(e["language"], e["voice"]) for i in range(80)
           for e in scenarios.scenario(0, "answer", i).events if e["event"] == "question"}
  assert heard == {(la, v) for la, some in bank.voices.items() for vs in some.values() for v in vs}


def test_a_murmur_is_a_piece_of_a_digit_that_begins_and_ends_softly():
  bank = recordings.load("train")
  who = talk.Asker("fr", bank.voices["fr"]["kokoro"][0], 0.0, None)
  takes = [take for some in bank.digits["fr", who.voice].values() for take in some]
  ways = set()
  for seed in range(20):
    piece_T = talk.Talk(bank, np.random.default_rng(seed), disguised=True)._murmur(who)
    assert 0.05 < len(piece_T) / RATE < 0.5
    assert abs(piece_T[0]) < 0.01 and abs(piece_T[-1]) < 0.01 and sounds.rms(piece_T) > 5e-3
    low, high = len(piece_T) // 4, len(piece_T) // 2
    for way, late, wave_T in ((1, low, piece_T[low:high]),
                              (-1, len(piece_T) - high, piece_T[low:high][::-1])):
      for take in takes:
        for i in np.flatnonzero(take[: len(take) - len(wave_T) + 1] == wave_T[0]):
          if np.array_equal(take[i : i + len(wave_T)], wave_T):
            assert i - late >= len(take) // 4
            ways.add(way)
  assert ways == {1, -1}


def test_a_disguise_is_the_same_for_the_same_seed():
  wave_T = recordings.assistant()["en", 3]
  one, same, other = (clips.disguise(wave_T, np.random.default_rng(s)) for s in (1, 1, 2))
  assert np.array_equal(one, same)
  assert len(one) != len(other) or not np.array_equal(one, other)


@pytest.mark.parametrize("kind", sounds.BURSTS)
def test_noises_are_finite_and_of_one_loudness(kind):
  for seed in range(20):
    wave_T = sounds.burst(np.random.default_rng(seed), kind)
    assert 0.04 * RATE < len(wave_T) < 2 * RATE
    assert sounds.rms(wave_T) == pytest.approx(1, abs=1e-3)


def test_what_is_wrong_is_said():
  with pytest.raises(ValueError, match="no split 'test'; want one of train, heldout"):
    dialogues.dialogue(0, "test", 0)
  with pytest.raises(ValueError, match="no scenario 'joke'; want one of answer"):
    scenarios.scenario(0, "joke", 0)
  with pytest.raises(ValueError, match="unknown operation 'add'; want one of after"):
    phrases.answer("add", 1)


def test_fewer_than_none(tmp_path):
  with pytest.raises(ValueError, match="heldout is -1; wanted 0 or more"):
    manifest.write(tmp_path / "out", seed=0, dialogues=1, heldout=-1, scenarios=1)
  assert not (tmp_path / "out").exists()
