"""A service that only pretends to be a model, the realtime endpoint on a port, and a client's ear.

In a talk it answers what it hears: after a question (three loud frames, then two quiet ones) it
says words, one a frame, in a tone of the question's pitch, until it is done or somebody talks into
it.
"""

import asyncio
import base64
import contextlib
import io
import queue
import socket
import threading
import time

import numpy as np
import openai
import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute

from omnijax.generate.events import End, Frame, Full, Sound, Text, TooLong
from omnijax.serve.realtime import Realtime
from omnijax.serve.realtime_shared import Settings

RATE, FRAME = 16000, 1280


def tone(seconds, hz=500.0, rate=24000, loud=0.3):
  at = np.arange(round(seconds * rate)) / rate
  return (loud * np.sin(2 * np.pi * hz * at)).astype(np.float32)


def silence(seconds, rate=24000):
  return np.zeros(round(seconds * rate), np.float32)


def packed(*waves):
  """Samples at 24 kHz as they travel."""
  return base64.b64encode(np.round(np.concatenate(waves) * 32767).astype("<i2")).decode()


def unpacked(*texts):
  return np.concatenate([np.frombuffer(base64.b64decode(t), "<i2") for t in texts]) / 32768


def pitch(wave, rate=24000):
  return float(np.argmax(np.abs(np.fft.rfft(wave * np.hanning(len(wave)), rate))))


def png(h, w, value=200):
  out = io.BytesIO()
  Image.fromarray(np.full((h, w, 3), value, np.uint8)).save(out, "PNG")
  return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


class Talk:
  """What was asked of it is kept in `asked`."""

  def __init__(self, service, emit):
    self._service, self._emit = service, emit
    self.asked, self.out, self.heard, self.closed = [], [], 0, False
    self._jobs = queue.Queue()
    self._rest, self._loud, self._quiet = np.zeros(0, np.float32), 0, 0
    self._todo, self._hz, self._index = [], 0.0, 0
    self._thread = threading.Thread(target=self._run, daemon=True)
    self._thread.start()

  def hear(self, wave):
    assert wave.dtype == np.float32 and not self.closed
    if self.heard - self._index * FRAME + len(wave) > self._service.most_waiting:
      raise ValueError("more than 10 s wait; send no faster than time goes.")
    self.heard += len(wave)
    self._jobs.put(lambda: self._hear(wave))

  def insert(self, parts):
    if any(part.get("text") == "unreadable" for part in parts):
      raise ValueError("the text can't be read.")
    self._service.seeing.wait(5)
    self.asked.append(("insert", parts))
    self._jobs.put(lambda: self._todo.extend(
      word for part in parts for word in part.get("text", "picture").split()))

  def truncate(self, frame, samples=0):
    self.asked.append(("truncate", frame, samples))

  def hush(self):
    self.asked.append(("hush",))
    self._jobs.put(self._todo.clear)

  def close(self):
    self._finish("cancelled")

  def fail(self, reason, error=""):
    self._jobs.put(lambda: self._finish(reason, error))

  def _finish(self, reason, error=""):
    if not self.closed:
      self.closed = True
      self._service.talks.remove(self)
      self._emit(End(reason, self._index, 0, error))
      self._jobs.put(None)

  def _run(self):
    while job := self._jobs.get():
      job()

  def _hear(self, wave):
    self._rest = np.concatenate([self._rest, wave])
    while len(self._rest) >= FRAME and not self.closed:
      heard, self._rest = self._rest[:FRAME], self._rest[FRAME:]
      loud = float(np.std(heard)) > 0.05
      if loud:
        self._loud, self._quiet = self._loud + 1, 0
        self._hz = pitch(heard, RATE)
        if self._loud >= 2:
          self._todo.clear()
      else:
        self._quiet += 1
        if self._quiet == 2 and self._loud >= 3:
          self._todo = list(self._service.words)
        if self._quiet >= 2:
          self._loud = 0
      out, word = np.zeros(FRAME, np.float32), ""
      if self._todo and not loud:
        word = self._todo.pop(0) + " "
        at = (self._index * FRAME + np.arange(FRAME)) / RATE
        out = (0.3 * np.sin(2 * np.pi * (self._hz or 700) * at)).astype(np.float32)
      if self._service.mute:
        out[:] = 0
      self.out.append(out)
      self._index += 1
      self._emit(Frame(self._index - 1, out, word, self._service.took_s))


class Ticket:
  def __init__(self):
    self.cancelled = threading.Event()

  def cancel(self):
    self.cancelled.set()


class Service:
  """Says `words`; a frame of speech for each, of which every one waits for `step` if it is held."""

  name, sample_rate, frame_size, image_step = "tiny", RATE, FRAME, 4
  max_positions, created = 512, 0

  def __init__(self, *, slots=4, modalities=("text", "image", "audio"), words="one two three four "
               "five six seven eight", most_waiting=10 * RATE):
    self.modalities, self.slots, self.words = frozenset(modalities), slots, words.split()
    self.most_waiting, self.took_s = most_waiting, 0.01
    self.talks, self.all_talks, self.tickets, self.written = [], [], [], []
    self.threads, self.full = [], False
    self.free = threading.Event()  # cleared: writing stands still after the first word
    self.free.set()
    self.seeing = threading.Event()  # cleared: what is inserted takes its time
    self.seeing.set()
    self.mute, self.speechless, self.pace_s = False, False, 0.0

  def talk(self, *, seed, emit):
    if self.speechless:
      raise ValueError("the run's data.acoustic_delay is 2.")
    if len(self.talks) >= self.slots:
      raise Full("all 4 slots are taken")
    self.talks.append(Talk(self, emit))
    self.all_talks.append(self.talks[-1])
    return self.talks[-1]

  def write(self, parts, *, to, seed, max_new, emit):
    if self.full:
      raise Full("the queue is full")
    texts = [part.get("text") for part in parts]
    if "too long" in texts:
      raise TooLong("the prompt leaves 0 positions")
    if "bug" in texts:
      raise KeyError("a mistake in the service")
    self.written.append({"parts": parts, "to": to, "max_new": max_new})
    self.tickets.append(ticket := Ticket())
    thread = threading.Thread(
      target=self._write, args=(ticket, to, max_new, "break" in texts, emit), daemon=True)
    thread.start()
    self.threads.append(thread)  # `close` waits for what has been started
    return ticket

  def _write(self, ticket, to, max_new, breaks, emit):
    said = 0
    for word in self.words[:max_new]:
      said += 1
      emit(Text(word + " ", to == "audio"))
      if to == "audio":
        emit(Sound(tone(0.08, rate=RATE)))
      time.sleep(self.pace_s)
      while not self.free.wait(0.005) and not ticket.cancelled.is_set():
        pass
      if ticket.cancelled.is_set() or breaks:
        break
    reason = "cancelled" if ticket.cancelled.is_set() else "failed" if breaks else (
      "length" if max_new < len(self.words) else "stop")
    emit(End(reason, 7, said, "it broke" if breaks else ""))

  def active(self):
    return {"write": 0, "talk": len(self.talks), "queued": 0, "slots": self.slots}

  def close(self):
    self.free.set()
    for talk in list(self.talks):
      talk.close()
    for ticket in self.tickets:
      ticket.cancel()
    for thread in (*self.threads, *(talk._thread for talk in self.all_talks)):
      thread.join(5)


@contextlib.contextmanager
def serving(service, **settings):
  """The endpoint on a free port of this machine; the URL before /realtime."""
  endpoint = Realtime(service, Settings(**settings)).endpoint
  app = Starlette(routes=[WebSocketRoute("/v1/realtime", endpoint)])
  config = uvicorn.Config(app, log_level="error", lifespan="off", ws_max_size=8 << 20,
                          ws_per_message_deflate=False, timeout_graceful_shutdown=1)
  with socket.create_server(("127.0.0.1", 0)) as listening:
    # What the system keeps for a client that doesn't read; connections have it from here.
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
      yield f"ws://127.0.0.1:{listening.getsockname()[1]}/v1"
    finally:
      server.should_exit = True
      service.close()
      thread.join(10)
      assert not thread.is_alive()


async def soon(condition, seconds=10):
  """Waits for what must come."""
  async with asyncio.timeout(seconds):
    while not condition():
      await asyncio.sleep(0.01)


class Ear:
  """Everything that a connection received, to be looked at in order."""

  def __init__(self, connection):
    self.connection, self.events, self._seen = connection, [], 0
    self._more, self.closed = asyncio.Event(), None
    self._task = asyncio.create_task(self._listen())

  async def _listen(self):
    try:
      async for event in self.connection:
        self.events.append(event)
        self._more.set()
    except Exception as error:
      self.closed = error
    self.closed = self.closed or EOFError("closed")
    self._more.set()

  async def until(self, *kinds, seconds=10):
    """The next event of one of these kinds; those before it are passed over."""
    async with asyncio.timeout(seconds):
      while True:
        while self._seen < len(self.events):
          self._seen += 1
          if self.events[self._seen - 1].type in kinds:
            return self.events[self._seen - 1]
        if self.closed:
          raise self.closed
        self._more.clear()
        await self._more.wait()

  async def until_all(self, kind, count):
    """As many events of a kind, those seen before included."""
    while len(self.all(kind)) < count:
      await self.until(kind)

  async def until_closed(self, seconds=10):
    async with asyncio.timeout(seconds):
      await self._task
    return self.closed

  def all(self, kind):
    return [event for event in self.events if event.type == kind]

  def kinds(self):
    return [event.type for event in self.events]


@contextlib.asynccontextmanager
async def session(url, *, key="none", model="tiny", **kwargs):
  """A session by OpenAI's own client, and its ear, which has heard session.created."""
  async with openai.AsyncOpenAI(api_key=key, websocket_base_url=url, base_url="http://unused"
                                ) as client:
    async with client.realtime.connect(model=model, **kwargs) as connection:
      ear = Ear(connection)
      await ear.until("session.created")
      yield connection, ear
      await connection.close()
      await ear.until_closed()


async def update(connection, ear, **fields):
  await connection.session.update(session={"type": "realtime", **fields})
  return (await ear.until("session.updated")).session


def item(*content, **fields):
  """An event that creates an item of the user."""
  return {"type": "conversation.item.create",
          "item": {"type": "message", "role": "user", "content": list(content), **fields}}


def config(**fields):
  """An event that changes the session."""
  return {"type": "session.update", "session": {"type": "realtime", **fields}}


async def speak(connection, *waves, piece_s=0.04):
  """Sends sound in pieces, much faster than real time."""
  wave = np.concatenate(waves)
  step = round(piece_s * 24000)
  for i in range(0, len(wave), step):
    await connection.input_audio_buffer.append(audio=packed(wave[i : i + step]))
