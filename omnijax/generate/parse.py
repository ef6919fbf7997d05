"""Generated streams back to parts: the inverse of data.documents.render.

T frames  Q codebooks
"""

import numpy as np

from omnijax import vocab as vocab_lib
from omnijax.data.documents import ASSISTANT, Part, Streams
from omnijax.generate.grammar import Layout


def parts(streams: Streams, layout: Layout) -> list[Part]:
  """Text, images and speech of one turn, in the order in which they were written.

  Args:
    streams: what Engine.write returned, well-formed by its grammar.
    layout: vocabulary and delays under which it was written.
  """
  v, main = layout.vocab, streams.main
  out: list[Part] = []
  at = 0
  while at < len(main):
    grid = vocab_lib.grid_of(int(main[at]))
    if grid:
      _, h = grid
      _, w = vocab_lib.grid_of(int(main[at + 1])) or ("", 0)
      codes = main[at + 2 : at + 2 + h * w] - v.image_start
      out.append(Part(vocab_lib.IMAGE, ASSISTANT, codes.reshape(h, w)))
      at += 2 + h * w
    elif main[at] == vocab_lib.SPEAK:
      end = at + int(np.flatnonzero(main[at:] == vocab_lib.AUDIO_END)[0])
      out.append(_speech(streams, at + 1, end, layout))
      at = end + layout.ending
    else:
      ids = main[at:]
      text = (ids >= v.text_start) & (ids < v.text_start + v.text)
      n = len(ids) if text.all() else int(np.flatnonzero(~text)[0])
      assert n, f"main token {main[at]} at {at} opens nothing"
      out.append(Part(vocab_lib.TEXT, ASSISTANT, ids[:n] - v.text_start))
      at += n
  return out


def _speech(streams: Streams, start: int, end: int, layout: Layout) -> Part:
  """The speech whose positions begin at `start` and whose AUDIO_END is at `end`."""
  v, lead, lag = layout.vocab, layout.text_delay, layout.acoustic_delay
  T = end - start - lead
  first = int(np.searchsorted(streams.frame_at, start)) + lead
  codes_TQ = np.concatenate([streams.frames[first : first + T, :1],
                             streams.frames[first + lag : first + lag + T, 1 : v.codebooks]], 1)
  main = streams.main[start:end]
  return Part(vocab_lib.AUDIO, ASSISTANT, codes_TQ,
              main[main != vocab_lib.PAD] - v.text_start)
