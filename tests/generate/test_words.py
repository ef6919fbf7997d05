"""Ids become characters one by one, and what is remembered of them stays small."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from omnijax.generate.writing import Words
from omnijax.tokenizers import text

TOKENIZER = text.load()


@settings(deadline=None)
@given(st.text(st.sampled_from(list("abe 7.é\u202füЖж日本\U0001f600\n")), max_size=200))
def test_pieces_are_the_whole(written):
  ids = TOKENIZER.encode(written)
  words = Words(TOKENIZER)
  pieces = [words.take(int(i)) for i in ids]
  assert "".join(pieces) + words.rest() == written
  assert "\ufffd" not in "".join(pieces)


def test_any_ids_for_ever():
  """Bytes that never become a character are told, too."""
  words, sizes, told = Words(TOKENIZER), [], 0
  for i in [*np.random.default_rng(0).integers(1, 257, 3000), *[TOKENIZER.encode("ж")[0]] * 300]:
    told += len(words.take(int(i)))
    sizes.append(len(words._ids))
  assert max(sizes) < 100 and told > 1000
