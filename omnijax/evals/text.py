"""What the text tokenizer does to held-out text: nothing, in how many pieces."""

from collections.abc import Sequence
from typing import Any

from omnijax.tokenizers.text import TextTokenizer


def evaluate(tokenizer: TextTokenizer, texts: Sequence[str]) -> dict[str, Any]:
  """Bytes of UTF-8 for each piece, the share of exact round trips, and the use of pieces.

  Raises:
    ValueError: no text.
  """
  if not any(texts):
    raise ValueError(f"{len(texts)} texts, none with a character; want held-out text")
  pieces = [tokenizer.encode(text) for text in texts]
  exact = sum(tokenizer.decode(ids) == text for ids, text in zip(pieces, texts, strict=True))
  used = {i for ids in pieces for i in ids}
  return {
    "n": len(texts),
    "bytes_per_piece": sum(len(t.encode()) for t in texts) / sum(map(len, pieces)),
    "exact": exact / len(texts),
    "codes": {"used": len(used) / tokenizer.size, "size": tokenizer.size},
  }
