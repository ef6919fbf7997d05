"""The text tokenizer gives back any string exactly, and says what is wrong."""

import shutil

import hypothesis
import hypothesis.strategies as st
import pytest

from omnijax.tokenizers import text

SENTENCES = ["one two three", "press one to hear the menu", "press two to leave", "goodbye",
             "enter the number of your account", "please hold while I try that extension"] * 50
HARD = ["", " ", "  a", "a  ", "a   b", "\n", "a\n\nb\t\r\n", "a\0b", "\0", "\u2581",
        "\u2581 \u2581x", "\U0001f600 \U0001f469\u200d\U0001f467", "e\u0301 \u00e9", "\ufeffx",
        "\ufb01 \u2460 \uff21", "<0x41>", "<unk>", "\u0bf5\U00010348\uffff", "12345 007"]


@pytest.fixture(scope="module")
def packaged():
  return text.load()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
  file = tmp_path_factory.mktemp("corpus") / "sentences.txt"
  file.write_text("\n".join(SENTENCES), "utf-8")
  return file


@pytest.fixture(scope="module", params=["unigram", "bpe"])
def trained(request, corpus, tmp_path_factory):
  out = tmp_path_factory.mktemp("text") / "tok"
  return text.train([corpus], out, size=290, kind=request.param), out


@pytest.mark.parametrize("string", HARD)
def test_hard_strings_come_back(packaged, trained, string):
  for tok in (packaged, trained[0]):
    ids = tok.encode(string)
    assert tok.decode(ids) == string
    assert all(0 <= i < tok.size for i in ids)


@hypothesis.given(st.text())
@hypothesis.settings(deadline=None, max_examples=300)
def test_any_string_comes_back(packaged, string):
  assert packaged.decode(packaged.encode(string)) == string


def test_plain_sentencepiece_would_lose_some(packaged):
  # the other arm: what the special cases are there for
  plain = packaged.processor
  assert plain.DecodeIds(plain.EncodeAsIds("\u2581x")) != "\u2581x"


def test_words_seen_in_training_take_fewer_pieces(packaged):
  for word in ("three", "four", "otto", "quatre", "nueve", "\u0448\u0435\u0441\u0442\u044c"):
    assert len(packaged.encode(word)) == 1
    assert len(packaged.encode(" " + word)) == 2
    assert len(packaged.encode(word[1:] + word[0])) > 1


def test_a_digit_is_one_piece_and_never_part_of_another(packaged):
  ids = packaged.encode("2024")
  assert len(ids) == 4
  assert ids[0] == ids[2] != ids[3]


def test_a_cut_character_decodes_to_the_replacement_mark(packaged):
  ids = packaged.encode("\U0001f600")
  assert len(ids) == 4
  assert packaged.decode(ids[:3]) == "\ufffd"


def test_saved_and_loaded_are_the_same(trained):
  tok, out = trained
  again = text.load(out)
  assert (again.size, again.fingerprint) == (290, tok.fingerprint)
  assert again.encode(SENTENCES[0]) == tok.encode(SENTENCES[0])


def test_training_again_gives_the_same_fingerprint_and_other_text_another(corpus, tmp_path):
  first, again = (text.train([corpus], tmp_path / x, size=290) for x in "ab")
  assert first.fingerprint == again.fingerprint
  other = tmp_path / "other.txt"
  other.write_text("\n".join(s[::-1] for s in SENTENCES))
  assert text.train([other], tmp_path / "c", size=290).fingerprint != first.fingerprint


def test_a_replaced_model_is_refused(trained, tmp_path):
  broken = tmp_path / "broken"
  shutil.copytree(trained[1], broken)
  text.load(broken)
  shutil.copy(text.DEFAULT / "tokenizer.model", broken / "tokenizer.model")
  with pytest.raises(ValueError, match=f"{text.load().fingerprint}.*{trained[0].fingerprint}"):
    text.load(broken)


@pytest.mark.parametrize("ids", [[-1], [512], [3, 100000]])
def test_ids_outside_are_named(packaged, ids):
  assert packaged.size == 512
  with pytest.raises(ValueError, match=rf"id {ids[-1]} .*0\.\.511"):
    packaged.decode(ids)


def test_bad_input_is_named(packaged, corpus, tmp_path):
  with pytest.raises(ValueError, match=r"'\\ud800' at 1"):
    packaged.encode("a\ud800")
  with pytest.raises(ValueError, match=r"config\.json is missing"):
    text.load(tmp_path)
  with pytest.raises(ValueError, match="size=100"):
    text.train([corpus], tmp_path / "t", size=100)
  with pytest.raises(ValueError, match="size=5000"):
    text.train([corpus], tmp_path / "t", size=5000)
  with pytest.raises(ValueError, match="kind='word'"):
    text.train([corpus], tmp_path / "t", size=290, kind="word")  # type: ignore[arg-type]
  with pytest.raises(ValueError, match=r"absent\.txt"):
    text.train([tmp_path / "absent.txt"], tmp_path / "t", size=290)
  empty = tmp_path / "empty.txt"
  empty.write_text("\n \n")
  with pytest.raises(ValueError, match="without a line of text"):
    text.train([empty], tmp_path / "t", size=290)
  latin = tmp_path / "latin.txt"
  latin.write_bytes(b"caf\xe9")
  with pytest.raises(ValueError, match=r"latin\.txt"):
    text.train([latin], tmp_path / "t", size=290)
  assert not (tmp_path / "t").exists()
