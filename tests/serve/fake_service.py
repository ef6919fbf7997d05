"""A service without a model: what it says, draws and speaks follows from the prompt alone."""

import threading
import time

import numpy as np

from omnijax.generate.events import End, Full, Picture, Sound, Text, TooLong

RATE, FRAME, STEP = 16_000, 1280, 8


def described(parts) -> str:
  """What the prompt was, in words: the answer."""
  words = []
  for part in parts:
    if "text" in part:
      words.append(part["text"])
    elif "image" in part:
      h, w, _ = part["image"].shape
      words.append(f"picture {w}x{h} of {part['image'].mean():.0f}")
    else:
      words.append(f"sound {len(part['audio']) / RATE:.2f} s")
  return " ".join(words)


def tone(seconds: float, rate: int = RATE, hertz: float = 440.0) -> np.ndarray:
  return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)
          ).astype(np.float32)


def positions(part) -> int:
  if "text" in part:
    return len(part["text"].split())
  if "image" in part:
    return part["image"].shape[0] * part["image"].shape[1] // STEP**2
  return -(-len(part["audio"]) // FRAME)


class Ticket:
  def __init__(self):
    self.cancelled = threading.Event()

  def cancel(self):
    self.cancelled.set()


class FakeService:
  """Answers by repeating what it was asked, a word at a time; each word is spoken for 80 ms.

  Texts that do something else: "fail" fails, "break" after its word; "bug" raises out of write;
  "wait" waits until it is cancelled, or `go` is set; "flood" is speech without end.
  """

  name, created, sample_rate, frame_size, max_positions, image_step = (
    "fake", 1_700_000_000, RATE, FRAME, 512, STEP)
  modalities = frozenset({"text", "image", "audio"})
  alive = True

  def __init__(self, slots: int = 4, queue: int = 4, pace_s: float = 0.0):
    self.slots, self.queue, self.pace_s = slots, queue, pace_s
    self.calls: list[dict] = []
    self.ends: list[End] = []
    self.go, self.closed = threading.Event(), threading.Event()
    self._free = threading.Semaphore(slots)
    self._lock = threading.Lock()
    self._running = self._queued = 0

  def write(self, parts, *, to, sampling=None, seed=0, max_new=256, image_size=None, guidance=1.0,
            emit):
    asked = described(parts)
    self.calls.append(dict(parts=parts, to=to, sampling=sampling, seed=seed, max_new=max_new,
                           image_size=image_size, guidance=guidance))
    if asked == "bug":
      raise RuntimeError("a secret of the inside")
    prompt = sum(map(positions, parts)) + 2
    if prompt + 2 > self.max_positions:
      raise TooLong(f"the prompt leaves {self.max_positions - prompt} positions, and {to} "
                    "output takes at least 2; raise max_positions or shorten the prompt.")
    with self._lock:
      if self.closed.is_set():
        raise Full("the service ends.")
      if self._queued >= self.queue and self._running >= self.slots:
        raise Full(f"{self._queued} wait already.")
      self._queued += 1
    ticket = Ticket()
    threading.Thread(target=self._run, args=(asked, prompt, to, seed, max_new, image_size, ticket,
                                             emit), daemon=True).start()
    return ticket

  def _run(self, asked, prompt, to, seed, max_new, image_size, ticket, emit):
    while not self._free.acquire(timeout=0.01) and not ticket.cancelled.is_set():
      pass
    with self._lock:
      self._queued, self._running = self._queued - 1, self._running + 1
    end = End("stop", prompt, 0)
    for event in self._events(asked, to, seed, image_size, ticket):
      if ticket.cancelled.is_set() or self.closed.is_set():
        end = End("cancelled", prompt, end.written)
        break
      if end.written >= max_new:
        end = End("length", prompt, end.written)
        break
      emit(event)
      end = End("stop", prompt, end.written + 1)
      time.sleep(self.pace_s)
    if asked in ("fail", "break"):
      end = End("failed", prompt, 0, "a secret of the inside")
    with self._lock:
      self._running -= 1
    self._free.release()
    self.ends.append(end)
    emit(end)

  def _events(self, asked, to, seed, image_size, ticket):
    if asked == "fail":
      return
    if asked == "wait":
      while not (self.go.is_set() or ticket.cancelled.is_set() or self.closed.is_set()):
        time.sleep(0.005)
    if to == "image":
      yield Text(asked, spoken=False)
      h, w = image_size or (32, 32)
      yield Picture(np.full((h, w, 3), seed % 256, np.uint8))
      return
    while asked == "flood":
      yield Sound(np.zeros(RATE, np.float32))
    for i, word in enumerate(asked.split(" ")):
      yield Text(word if not i else f" {word}", spoken=to == "audio")
      if to == "audio":
        yield Sound(tone(0.08))

  def active(self):
    with self._lock:
      return {"write": self._running, "talk": 0, "queued": self._queued, "slots": self.slots}

  def close(self, *, drain_s=0.0):
    self.closed.set()
