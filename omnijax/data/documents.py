"""A document, the tasks it can be rendered to, and the streams of each rendering.

A document is a sequence of parts; which positions and frames it takes depends on the task and on
the delays, so rendering happens at read time and `lengths` says beforehand, for whole columns of
documents at once, how long each will be.

P parts  N documents  L positions of one document  M its frames  Q codebooks
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from omnijax import config as config_lib
from omnijax import vocab as vocab_lib

# Roles of a part, and the main token that a change to each writes.
NONE, USER, ASSISTANT = 0, 1, 2
ROLES = {"user": USER, "assistant": ASSISTANT}
_TURN = {USER: vocab_lib.USER, ASSISTANT: vocab_lib.ASSISTANT}

# Tasks, in the order of config.Tasks.
TASKS = tuple(f.name for f in dataclasses.fields(config_lib.Tasks))
PLAIN, CAPTION, DRAW, TRANSCRIBE, SPEAK, FOLLOW = range(len(TASKS))

# One row for each part: where its ids or codes lie, and its size.
PART = np.dtype([
  ("kind", "u1"), ("role", "u1"), ("rows", "<u2"), ("cols", "<u2"),
  ("length", "<i4"),  # ids of text, codes of an image, frames of audio
  ("words", "<i4"),  # ids of the transcript of audio; -1 is no transcript
  ("timed", "u1"),  # its ids lie at their frames: `length` of them, with gaps
  ("offset", "<i8"), ("words_offset", "<i8"),
  ("heard_offset", "<i8"),  # codes of what is heard meanwhile; -1 is nothing
])

# One row for each document: everything that its lengths depend on.
COUNTS = np.dtype([
  ("parts", "<i8"),  # its first row in the table of parts
  ("positions", "<i4"), ("frames", "<i4"),  # plain rendering without any delay
  ("text", "<i4"),  # ids that a two-sided task moves or drops
  ("images", "<u2"), ("audio", "<u2"), ("monologues", "<u2"),
  ("allows", "u1"),  # bit i: TASKS[i]
  # Of a document in which the assistant draws: all that is written and said, delays left out.
  ("asked_positions", "<i4"), ("asked_frames", "<i4"), ("asked_audio", "<u2"),
  ("asked_monologues", "<u2"),
])


@dataclasses.dataclass(frozen=True)
class Part:
  """One part: text ids [n], image codes [h, w] or audio codes [T, Q].

  Audio may have the ids of its transcript, [n], or if it is timed [T] with -1 where no word
  begins; and the codes [T, Q] of what is heard meanwhile, the other side of a dialogue.
  """

  kind: int
  role: int
  codes: np.ndarray
  words: np.ndarray | None = None
  timed: bool = False
  heard: np.ndarray | None = None

  @property
  def transcript(self) -> np.ndarray:
    """The ids of `words` without gaps."""
    assert self.words is not None
    return self.words[self.words >= 0] if self.timed else self.words


@dataclasses.dataclass(frozen=True)
class Streams:
  """One rendered document, without padding; see DESIGN section 3."""

  main: np.ndarray  # [L] int32
  modality: np.ndarray  # [L] int8
  position: np.ndarray  # [L, 3] int32
  weight: np.ndarray  # [L] float32, of main[i] as a target
  frame_at: np.ndarray  # [M] int32
  frames: np.ndarray  # [M, 2Q] int32
  frame_weight: np.ndarray  # [M, Q] float32, of the speak codes as targets


def counts(parts_P: np.ndarray, starts_N: np.ndarray) -> np.ndarray:
  """The length index of documents, from their parts.

  Args:
    parts_P: rows of `PART`, document after document.
    starts_N: the first part of each document; no document is empty.

  Returns:
    Rows of `COUNTS`, [N].
  """
  p = parts_P
  text, image, audio = (p["kind"] == k for k in (vocab_lib.TEXT, vocab_lib.IMAGE, vocab_lib.AUDIO))
  told = audio & (p["words"] >= 0)
  each = lambda x_P: np.add.reduceat(x_P.astype(np.int64), starts_N)
  sizes_N = np.diff(starts_N, append=len(p))
  # A part that opens a turn: its role differs from the last role before it in its document.
  owner_P = np.repeat(np.arange(len(starts_N)), sizes_N)
  with_role = np.flatnonzero(p["role"])
  same = np.zeros(len(with_role), bool)
  before, now = with_role[:-1], with_role[1:]
  same[1:] = (owner_P[before] == owner_P[now]) & (p["role"][before] == p["role"][now])
  turn_P = np.zeros(len(p), bool)
  turn_P[with_role[~same]] = True

  out = np.zeros(len(starts_N), COUNTS)
  out["parts"] = starts_N
  out["positions"] = 2 + each(turn_P + p["length"].astype(np.int64) + 2 * (image | audio))
  out["frames"] = each(np.where(audio, p["length"], 0))
  out["images"] = each(image)
  out["audio"] = each(audio)
  out["monologues"] = each(told & (p["role"] != USER))
  free_N = each(p["role"] > 0) == 0
  pair_N = free_N & (sizes_N == 2) & (each(image) == 1) & (each(text) == 1)
  told_N = free_N & (sizes_N == 1) & (each(told & (p["heard_offset"] < 0)) == 1)
  out["text"] = np.where(pair_N, each(np.where(text, p["length"], 0)),
                         np.where(told_N, each(p["words"]), 0))
  out["allows"] = (1 << PLAIN) + pair_N * (1 << CAPTION | 1 << DRAW)
  out["allows"] += (told_N * (1 << TRANSCRIBE | 1 << SPEAK)).astype(np.uint8)
  out["allows"] += (told_N & (each(p["timed"]) == 1)).astype(np.uint8) << FOLLOW
  asked_P = np.repeat(each(image & (p["role"] == ASSISTANT)) > 0, sizes_N) & ~image
  out["asked_positions"] = each(asked_P * (p["length"] + 2 * audio))
  out["asked_frames"] = each(asked_P * audio * p["length"])
  out["asked_audio"] = each(asked_P * audio)
  out["asked_monologues"] = each(asked_P & told & (p["role"] != USER))
  return out


def lengths(counts_N: np.ndarray, task_N: np.ndarray | int, dropped_N: np.ndarray | bool,
            data: config_lib.Data) -> tuple[np.ndarray, np.ndarray]:
  """Positions and frames [N] int64 that `render` will yield for each document.

  Args:
    counts_N: rows of `COUNTS`.
    task_N: index into `TASKS` of each document, one that it allows.
    dropped_N: whether what asks for a drawing is left out.
    data: the delays are read.
  """
  c = counts_N
  task_N = np.broadcast_to(np.asarray(task_N), c.shape)
  ad, td = data.acoustic_delay, data.text_delay
  talk_N = (task_N == TRANSCRIBE) | (task_N == SPEAK)
  listens_N = (task_N == TRANSCRIBE) | (task_N == FOLLOW)
  spoken_N = np.where(listens_N, 0, c["monologues"]).astype(np.int64)
  audio_N = c["audio"].astype(np.int64)
  text_N = np.where(talk_N, c["text"], 0) - np.where((task_N == DRAW) & dropped_N, c["text"], 0)
  unasked_N = (task_N == PLAIN) & dropped_N
  audio_N -= np.where(unasked_N, c["asked_audio"], 0)
  spoken_N -= np.where(unasked_N, c["asked_monologues"], 0)
  # The first delayed frame shares its position with AUDIO_END.
  delays_N = max(ad - 1, 0) * audio_N + td * spoken_N
  turns_N = np.where(task_N == PLAIN, 0, np.where(task_N == FOLLOW, 1, 2))
  positions_N = c["positions"] + delays_N + turns_N + text_N
  positions_N -= np.where(unasked_N, c["asked_positions"], 0)
  frames_N = c["frames"] - np.where(unasked_N, c["asked_frames"], 0)
  # What is followed ends when its last word can have been written, and then with AUDIO_END.
  follow_N = np.where(task_N == FOLLOW, data.follow_delay, 0)
  positions_N += follow_N + ((task_N == FOLLOW) & (ad > 0))
  return positions_N, frames_N + ad * audio_N + td * spoken_N + follow_N


def choose(counts_N: np.ndarray, usable_NT: np.ndarray, chance_N: np.ndarray,
           data: config_lib.Data) -> tuple[np.ndarray, np.ndarray]:
  """Draws the task of each document, and whether a drawing loses what asked for it.

  Args:
    counts_N: rows of `COUNTS`.
    usable_NT: bool, the tasks that a document allows and a row can hold; at least one.
    chance_N: uint64, uniform and a pure function of (seed, epoch, document).

  Returns:
    task [N] int8 and dropped [N] bool.
  """
  odds_T = np.asarray(dataclasses.astuple(data.tasks), np.float64)
  odds_NT = odds_T * usable_NT
  # Odds of 0 for all that a document can be: the first of those tasks, rather than nothing.
  none_N = ~odds_NT.any(1)
  odds_NT[none_N, usable_NT[none_N].argmax(1)] = 1.0
  edges_NT = np.cumsum(odds_NT, 1)
  pick_N = (chance_N >> np.uint64(32)) * 2.0**-32 * edges_NT[:, -1]
  task_N = (pick_N[:, None] >= edges_NT).sum(1).astype(np.int8)
  low_N = (chance_N & np.uint64(0xFFFFFFFF)) * 2.0**-32
  drawn_N = (task_N == DRAW) | (task_N == PLAIN) & (counts_N["asked_positions"] > 0)
  return task_N, drawn_N & (low_N < data.caption_dropout)


def allowed(counts_N: np.ndarray) -> np.ndarray:
  """Which tasks each document allows: bool [N, T]."""
  return (counts_N["allows"][:, None] >> np.arange(len(TASKS)) & 1).astype(bool)


def arrange(parts: Sequence[Part], task: int, dropped: bool, prompt: np.ndarray | None = None
            ) -> list[Part]:
  """The parts of a document in the order and with the roles of a task.

  Args:
    parts: as they are.
    task: that the document allows.
    dropped: whether what asks for a drawing is left out.
    prompt: ids of the user's instruction, if there is one.
  """
  if task == PLAIN:
    drawn = any(p.kind == vocab_lib.IMAGE and p.role == ASSISTANT for p in parts)
    return [unasked(p) for p in parts] if dropped and drawn else list(parts)
  as_user = lambda p: dataclasses.replace(p, role=USER)
  as_assistant = lambda p: dataclasses.replace(p, role=ASSISTANT)
  asked = [Part(vocab_lib.TEXT, USER, prompt)] if prompt is not None else []
  if task in (CAPTION, DRAW):
    text, image = sorted(parts, key=lambda p: p.kind)
    if task == CAPTION:
      return [as_user(image), *asked, as_assistant(text)]
    text = as_user(text)
    return [*([unasked(text)] if dropped else [*asked, text]), as_assistant(image)]
  (audio,) = parts
  if task == FOLLOW:
    return [*asked, as_user(audio)]
  text = Part(vocab_lib.TEXT, NONE, audio.transcript)
  if task == TRANSCRIBE:
    return [as_user(audio), *asked, as_assistant(text)]
  return [*asked, as_user(text), as_assistant(audio)]


def unasked(part: Part) -> Part:
  """A part without words and speech, for classifier-free guidance; its turn stays.

  The assistant's own words go too: they say what a picture that follows them shows.
  """
  if part.kind == vocab_lib.IMAGE:
    return part
  return Part(vocab_lib.TEXT, part.role, np.zeros(0, np.int32))


def render(parts: Sequence[Part], task: int, dropped: bool, data: config_lib.Data,
           vocab: vocab_lib.Vocab, prompt: np.ndarray | None = None) -> Streams:
  """The streams of one document: BOS, its parts with their turns, EOS.

  A part of the user has weight `data.prompt_weight`. Audio that is listened to is input only;
  so is the main stream of spoken audio without a transcript, its end included: PAD would teach
  that nothing was said, and the end alone would teach to stop at once. Audio that is followed is
  listened to with its words in the main stream, each so many frames after it begins.
  """
  arranged = arrange(parts, task, dropped, prompt)
  role, size, frames = NONE, 2, 0
  for part in arranged:
    if part.role not in (NONE, role):
      role, size = part.role, size + 1
    if part.kind == vocab_lib.AUDIO:
      slots = _slots(part, task == FOLLOW, data)
      frames += slots
      size += 1 + slots + (task == FOLLOW or not data.acoustic_delay)
    else:
      size += part.codes.size + 2 * (part.kind == vocab_lib.IMAGE)
  Q = vocab.codebooks
  out = Streams(
    np.zeros(size, np.int32), np.zeros(size, np.int8), np.zeros((size, 3), np.int32),
    np.zeros(size, np.float32), np.zeros(frames, np.int32),
    np.full((frames, 2 * Q), vocab.no_code, np.int32), np.zeros((frames, Q), np.float32))
  assert _write(out, 0, 0, arranged, task, data, vocab) == (size, frames)
  return out


def render_into(row: Streams, at: int, frame: int, parts: Sequence[Part], task: int,
                dropped: bool, data: config_lib.Data, vocab: vocab_lib.Vocab,
                prompt: np.ndarray | None = None) -> tuple[int, int]:
  """Renders a document into a row, from a position and a frame on that nothing was written to.

  Returns:
    the position and the frame behind it.
  """
  return _write(row, at, frame, arrange(parts, task, dropped, prompt), task, data, vocab)


def _write(row: Streams, at: int, frame: int, parts: Sequence[Part], task: int,
           data: config_lib.Data, vocab: vocab_lib.Vocab) -> tuple[int, int]:
  writer = _Writer(row, at, frame, task == FOLLOW, data, vocab)
  writer.control(vocab_lib.BOS, 0.0)
  role = NONE
  for part in parts:
    if part.role not in (NONE, role):
      role = part.role
      writer.control(_TURN[role], 1.0)
    weight = data.prompt_weight if part.role == USER else 1.0
    if part.kind == vocab_lib.TEXT:
      writer.text(part, weight)
    elif part.kind == vocab_lib.IMAGE:
      writer.image(part, weight)
    else:
      writer.audio(part, weight)
  writer.control(vocab_lib.EOS, 1.0)
  return writer.at, writer.frame


def _slots(part: Part, follows: bool, data: config_lib.Data) -> int:
  """Positions that the frames of an audio part take, delays included."""
  lead = data.text_delay if part.role != USER and part.words is not None else 0
  return len(part.codes) + data.acoustic_delay + lead + (data.follow_delay if follows else 0)


class _Writer:
  """Fills arrays from a place on."""

  def __init__(self, row: Streams, at: int, frame: int, follows: bool, data: config_lib.Data,
               vocab: vocab_lib.Vocab):
    self.row, self.data, self.vocab, self.follows = row, data, vocab, follows
    self.at, self.number, self.frame = at, 0, frame  # next index, position number, frame

  def _run(self, ids: np.ndarray | int, n: int, modality: int, weight: float) -> slice:
    """Writes n tokens whose three position numbers all count on; returns where."""
    span = slice(self.at, self.at + n)
    self.row.main[span] = ids
    self.row.modality[span] = modality
    self.row.position[span] = np.arange(self.number, self.number + n, dtype=np.int32)[:, None]
    self.row.weight[span] = weight
    self.at += n
    self.number += n
    return span

  def control(self, token: int, weight: float) -> None:
    self.row.main[self.at] = token
    self.row.modality[self.at] = vocab_lib.TEXT
    self.row.position[self.at] = self.number
    self.row.weight[self.at] = weight
    self.at += 1
    self.number += 1

  def text(self, part: Part, weight: float) -> None:
    ids = part.codes.astype(np.int32) + self.vocab.text_start
    self._run(ids, len(ids), vocab_lib.TEXT, weight)

  def image(self, part: Part, weight: float) -> None:
    h, w = part.codes.shape
    self.control(vocab_lib.rows(h), weight)
    self.control(vocab_lib.cols(w), weight)
    start = self.number
    ids = part.codes.reshape(-1).astype(np.int32) + self.vocab.image_start
    span = self._run(ids, h * w, vocab_lib.IMAGE, weight)
    position_HW3 = self.row.position[span].reshape(h, w, 3)
    position_HW3[:] = start
    position_HW3[..., 1] += np.arange(h, dtype=np.int32)[:, None]
    position_HW3[..., 2] += np.arange(w, dtype=np.int32)
    self.number = start + max(h, w)

  def audio(self, part: Part, weight: float) -> None:
    """Frames at their delays, and the inner monologue of the one who speaks."""
    listen, Q, T = part.role == USER, self.vocab.codebooks, len(part.codes)
    words = None if listen and not self.follows else part.words
    self.control(vocab_lib.LISTEN if listen else vocab_lib.SPEAK, weight)
    slots, lag = _slots(part, self.follows, self.data), self.data.acoustic_delay
    lead = 0 if self.follows else slots - T - lag  # of the words, before the frames
    inside = 0.0 if words is None else 1.0 if self.follows else weight
    span = self._run(vocab_lib.PAD, slots, vocab_lib.AUDIO, inside)
    if words is not None:
      at = np.flatnonzero(words >= 0) if part.timed else np.arange(len(words)) * T // max(
        len(words), 1)
      late = self.data.follow_delay if self.follows else 0
      self.row.main[span][at + late] = part.transcript.astype(np.int32) + self.vocab.text_start
    if lag and not self.follows:
      # At the first position without a first code: that there is none must not tell the model,
      # which at generation decides the end before it writes codes, that the end is near.
      self.row.main[span][lead + T] = vocab_lib.AUDIO_END
      self.row.weight[span][lead + T + 1 :] = 0.0
    else:
      self.control(vocab_lib.AUDIO_END, inside)

    rows = slice(self.frame, self.frame + slots)
    self.row.frame_at[rows] = np.arange(span.start, span.stop)
    frames = self.row.frames[rows]
    for codes, group in ((part.codes, frames[:, Q:] if listen else frames[:, :Q]),
                         (part.heard, frames[:, Q:])):
      if codes is not None:
        group[lead : lead + T, 0] = codes[:, 0]
        group[lead + lag : lead + lag + T, 1:] = codes[:, 1:Q]
    if not listen:
      self.row.frame_weight[rows][lead : lead + T, 0] = weight
      self.row.frame_weight[rows][lead + lag : lead + lag + T, 1:] = weight
    self.frame += slots
