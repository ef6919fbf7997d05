import collections

import numpy as np
import pytest

from omnijax.evals import directions
from tests.evals import specimen


def evaluate(tmp_path, generator, sampling="greedy", n=20):
  chosen = directions.choose(specimen.cases(tmp_path / "in"), n, seed=0)
  return directions.evaluate(generator, specimen.JUDGES, chosen, tmp_path / "out",
                             sampling=sampling, seed=0, batch=8)


@pytest.mark.parametrize("wrong", [None, 3])
def test_scores_count_what_is_wrong(tmp_path, wrong):
  answers = evaluate(tmp_path, specimen.Generator(wrong))
  assert tuple(answers) == directions.DIRECTIONS
  for some in answers.values():
    score = directions.score(some)
    assert score["n"] == 20
    assert score["accuracy"] == score["digit_accuracy"] == (1.0 if wrong is None else 0.9)
    assert score["by_language"]["fr"]["n"] == 10
    counts = directions.confusion(some)
    want = np.eye(10, 11, dtype=int) * 2
    if wrong is not None:
      want[wrong, wrong], want[wrong, wrong + 1] = 0, 2
    np.testing.assert_array_equal(counts, want)
  # "six" is a word of two languages.
  assert [directions.score(v)["prompts"] for v in answers.values()] == [20, 20, 19, 20, 20, 20]
  assert set(directions.score(answers["speech->text"])["by_voice"]) == {"person", "robot"}
  assert "by_voice" not in directions.score(answers["text->image"])


def test_language_counts_but_not_for_pictures():
  case = directions.Case(direction="image->speech", prompt=({"text": "fr"},), digit=6,
                         language="fr")
  answer = lambda digit, language: directions.Answer(case=case, digit=digit, language=language)
  score = directions.score([answer(6, "fr"), answer(6, "en"), answer(5, "fr"),
                            answer(None, None)])
  assert (score["accuracy"], score["digit_accuracy"]) == (0.25, 0.5)
  (verdict,) = specimen.JUDGES.of_images([specimen.draw(4)], [case])
  assert verdict == ("fr", 4)


def test_words_are_compared_exactly_and_the_wanted_language_first():
  case = lambda language: directions.Case(direction="image->text", prompt=(), digit=6,
                                          language=language)
  verdicts = specimen.JUDGES.of_texts(
    ["six", "six", " seven\n", "z\u00e9ro", "ze\u0301ro", "sixx", ""],
    [case(la) for la in ("fr", "en", "fr", "fr", "fr", "en", "en")])
  assert verdicts == [("fr", 6), ("en", 6), ("en", 7), ("fr", 0), ("fr", 0), (None, None),
                      (None, None)]


def test_silence_says_nothing():
  waves = [np.zeros(0, np.float32), np.zeros(8000, np.float32), specimen.speak(4, "en")]
  assert specimen.JUDGES.of_sounds(waves) == [(None, None), (None, None), ("en", 4)]


def test_finished_directions_are_read_again_unless_the_sampling_changed(tmp_path):
  first = evaluate(tmp_path, specimen.Generator(3))
  again = specimen.Generator(3)
  assert evaluate(tmp_path, again) == first and not again.calls
  (tmp_path / "out" / "image_to_text.jsonl").unlink()
  assert evaluate(tmp_path, again) == first
  assert {call[0] for call in again.calls} == {"text"}
  other = specimen.Generator(3)
  evaluate(tmp_path, other, sampling="warm")
  assert len(other.calls) == 6 * 3


def test_every_batch_has_one_size_and_its_own_seed(tmp_path):
  generator = specimen.Generator()
  evaluate(tmp_path, generator)
  assert {n for _, n, _, _ in generator.calls} == {8}
  assert len({seed for *_, seed in generator.calls}) == len(generator.calls)


def test_choice_is_even_and_repeats_only_words(tmp_path):
  cases = specimen.cases(tmp_path)
  chosen = directions.choose(cases, 50, seed=0)
  assert {k: len(v) for k, v in chosen.items()} == {
    k: 50 if k.startswith("text->") else 20 for k in directions.DIRECTIONS}
  few = directions.choose(cases * 5, 40, seed=0)["speech->text"]
  assert set(collections.Counter((c.language, c.digit) for c in few).values()) == {2}
  assert chosen != directions.choose(cases, 50, seed=1)


def test_judges_are_judged_on_each_real_file_once(tmp_path):
  cases = specimen.cases(tmp_path)
  figures = directions.judge_figures(specimen.JUDGES, cases * 2)
  assert (figures["image"]["n"], figures["speech"]["n"]) == (10, 20)
  assert figures["speech"]["by_voice"]["person"] == {"accuracy": 1.0, "digit_accuracy": 1.0,
                                                     "n": 10}


def test_unknown_direction():
  with pytest.raises(ValueError, match=r"'text->smell'; wanted one of speech->text"):
    directions.Case(direction="text->smell", prompt=(), digit=1, language="en")
