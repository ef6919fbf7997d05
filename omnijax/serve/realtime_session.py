"""A realtime session: what each of the client's events does.

L samples
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import numpy as np

from omnijax.generate.events import Full
from omnijax.serve import conversation as conversation_lib
from omnijax.serve import pcm, realtime_config, realtime_events
from omnijax.serve import realtime_events as ev
from omnijax.serve.answers import Answers
from omnijax.serve.conversation import Conversation, Item
from omnijax.serve.duplex import Duplex, check_truncation, truncated
from omnijax.serve.realtime_config import Config, TurnDetection
from omnijax.serve.realtime_events import Problem
from omnijax.serve.realtime_shared import Service, Settings, Shared
from omnijax.serve.resample import Resampler
from omnijax.serve.turns import Turns

_LONG = 64 << 10  # characters of a message, bytes of a sound: more is decoded beside the event loop
_WAITING = 16  # events of one client


class Session:
  """Hears the client's events, in order, and sends those of the server.

  With native turn detection the first sound opens a talk, and the sound of each event is handed to
  it when the event arrives, even while one before it (a picture, say) is still being decoded.
  Before that, and with other turn detection, the conversation goes by turns; texts and pictures
  that nothing has answered yet are shown to the talk when it opens.

  Args:
    service: the model's.
    settings: limits.
    threads: for what takes long.
    send: queues a server event; must not wait.
    end: closes the connection, with a code and a reason, after what is queued; must not wait.
  """

  def __init__(self, service: Service, settings: Settings, threads: anyio.CapacityLimiter, *,
               send: Callable[[dict[str, Any]], None], end: Callable[[int, str], None]):
    self.id = realtime_events.new_id("sess")
    self._service = service
    self._shared = Shared(service, settings, threads, send, end, _first_config(service),
                          Conversation(settings.items, settings.conversation_bytes))
    self._answers = Answers(self._shared)
    self._duplex: Duplex | None = None
    self._heard = 0  # samples at the service's rate
    self._lane: asyncio.Queue[ev.Event] = asyncio.Queue(_WAITING)
    self._behind = 0  # of those in the lane, events that sound must not overtake
    self._resampler, self._turns = self._new_resampler(), self._new_turns()
    self._send({"type": "session.created", "session": self._describe()})

  def _send(self, event: dict[str, Any]) -> None:
    self._shared.send(event)

  def _describe(self) -> dict[str, Any]:
    return {"object": "realtime.session", "id": self.id} | realtime_config.describe(
      self._shared.config)

  @property
  def _turn_detection(self) -> TurnDetection | None:
    return self._shared.config.audio.input.turn_detection

  async def receive(self, text: str) -> None:
    """Takes a client's message; waits only while many of its own are in work."""
    if len(text) > _LONG:
      event = await self._shared.in_thread(lambda: realtime_events.parse(text))
    else:
      event = realtime_events.parse(text)
    if not isinstance(event, ev.Event):
      problem, event_id = event
      self._send(problem.event(event_id))
    elif (isinstance(event, ev.Append) and self._duplex and not self._behind
          and len(event.audio) <= _LONG):
      with self._answering(event):
        self._hear(self._samples(event.audio))
    else:
      self._behind += isinstance(event, ev.Append | ev.SessionUpdate)
      await self._lane.put(event)

  async def work(self) -> None:
    """Handles the events that were received, until it is cancelled."""
    while True:
      event = await self._lane.get()
      with self._answering(event):
        await self._handle(event)
      self._behind -= isinstance(event, ev.Append | ev.SessionUpdate)

  def close(self) -> None:
    """Frees all that it holds."""
    self._answers.close()
    if self._duplex:
      self._duplex.close()

  @contextlib.contextmanager
  def _answering(self, event: ev.Event) -> Iterator[None]:
    """Tells the client what is wrong with an event while it is handled."""
    try:
      yield
    except Problem as problem:
      self._send(problem.event(event.event_id))

  async def _handle(self, event: ev.Event) -> None:
    match event:
      case ev.SessionUpdate():
        await self._update(event)
      case ev.Append():
        await self._append(event)
      case ev.Commit():
        self._by_turns(event).commit(self._take(self._resampler.flush()))
      case ev.Clear():
        self._by_turns(event).clear()
        self._resampler.flush()
        self._send({"type": "input_audio_buffer.cleared"})
      case ev.ItemCreate():
        await self._create_item(event)
      case ev.ItemRetrieve():
        await self._retrieve(event.item_id)
      case ev.ItemDelete():
        self._delete(event.item_id)
      case ev.ItemTruncate():
        self._truncate(event)
      case ev.ResponseCreate():
        await self._respond(event.response or ev.Options())
      case ev.ResponseCancel():
        self._cancel(event.response_id)

  # The session's settings

  async def _update(self, event: ev.SessionUpdate) -> None:
    old, given = self._shared.config, event.session
    new = realtime_config.merge(old, given)
    known = self._service.modalities
    if new.model not in (None, self._service.name):
      raise Problem(f"the model of this session is {self._service.name}, and can't become "
                    f"{given.model!r}: connect with another.", param="session.model")
    if new.output_modalities[0] not in known:
      raise Problem(f"the model writes {', '.join(sorted(known))}, not "
                    f"{new.output_modalities[0]}.", param="session.output_modalities")
    turns = new.audio.input.turn_detection
    if turns and "audio" not in known:
      raise Problem("the model hears nothing; the only turn_detection is null.",
                    param="session.audio.input.turn_detection")
    before = self._turn_detection
    self._shared.config = new.model_copy(update={"model": self._service.name})
    if new.audio.input.format != old.audio.input.format:
      self._resampler = self._new_resampler()
    if turns != before:
      if self._duplex and turns and turns.type == "native":
        self._duplex.detect(turns)
      elif self._duplex:
        self._duplex.leave()
        self._duplex = None
      self._turns = self._new_turns()
    self._send({"type": "session.updated", "session": self._describe()})
    if self._duplex and new.instructions and new.instructions != old.instructions:
      await self._duplex.insert([{"text": new.instructions, "role": "user"}],
                                "session.instructions")

  def _new_resampler(self) -> Resampler:
    return Resampler(pcm.RATES[self._shared.config.audio.input.format.type],
                     self._service.sample_rate)

  def _new_turns(self) -> Turns:
    """An empty buffer, with the way of taking turns that is set now."""
    turns = self._turn_detection
    return Turns(self._shared, None if turns and turns.type == "native" else turns, self._heard,
                 self._speech_started, self._speech_committed)

  # The client's sound

  def _samples(self, data: bytes) -> np.ndarray:
    try:
      wave_L = pcm.decode(data, self._shared.config.audio.input.format.type)
    except ValueError as error:
      raise Problem(str(error), param="audio") from error
    return self._take(self._resampler.feed(wave_L))

  def _take(self, wave_L: np.ndarray) -> np.ndarray:
    self._heard += len(wave_L)
    return wave_L

  def _hear(self, wave_L: np.ndarray) -> None:
    (self._duplex.hear if self._duplex else self._turns.append)(wave_L)

  async def _append(self, event: ev.Append) -> None:
    turns = self._turn_detection
    if "audio" not in self._service.modalities:
      raise Problem("the model hears nothing; send text.", param="type")
    if turns and turns.type == "native" and not self._duplex:
      # Not `_duplex` before it is open: sound that arrives meanwhile stays behind this.
      duplex = Duplex(self._shared, turns, self._heard)
      try:
        await duplex.open()
      except Full as error:
        self._send(Problem(str(error) or "no slot is free; try again later.",
                           code="rate_limit_exceeded", kind="rate_limit_error"
                           ).event(event.event_id))
        self._shared.end(1013, "no slot is free")
        return
      except ValueError as error:
        raise Problem(f"{error} Set turn_detection to server_vad or null.", param="type") from error
      except BaseException:
        duplex.close()
        raise
      self._duplex = duplex
    if len(event.audio) > _LONG:
      self._hear(await self._shared.in_thread(lambda: self._samples(event.audio)))
    else:
      self._hear(self._samples(event.audio))

  def _by_turns(self, event: ev.Event) -> Turns:
    turns = self._turn_detection
    if turns and turns.type == "native":
      raise Problem("with native turn detection no sound waits: the model has heard it when it was "
                    "appended. Set turn_detection to null to commit.", param="type")
    return self._turns

  def _speech_started(self) -> None:
    turns, current = self._turn_detection, self._answers.current
    if turns and turns.interrupt_response and current:
      current.stop("turn_detected")

  def _speech_committed(self) -> None:
    turns = self._turn_detection
    if turns and turns.create_response:
      try:
        self._answers.create(ev.Options(), self._shared.conversation.items)
      except Problem as problem:  # of no event of the client's
        self._send(problem.event(None))

  # Items

  async def _read(self, item: ev.Item, param: str) -> Item:
    """An item of an event; texts at once, others in a thread."""
    service, kind = self._service, self._shared.config.audio.input.format.type
    reads = {"input_audio": "audio", "input_image": "image"}
    for i, part in enumerate(item.content):
      if reads.get(part.type, "text") not in service.modalities:
        raise Problem(f"the model reads {', '.join(sorted(service.modalities))}; it can't read "
                      f"{part.type}.", param=f"{param}.content[{i}].type")

    def hear(data: bytes) -> np.ndarray:
      resampler = Resampler(pcm.RATES[kind], service.sample_rate)
      return np.concatenate([resampler.feed(pcm.decode(data, kind)), resampler.flush()])

    read = lambda: conversation_lib.read(
      item, param=param, hear=hear, see=self._shared.see)
    slow = any(part.type in reads for part in item.content)
    return await self._shared.in_thread(read) if slow else read()

  async def _create_item(self, event: ev.ItemCreate) -> None:
    item = await self._read(event.item, "item")
    conversation, after = self._shared.conversation, event.previous_item_id
    if self._duplex:
      if item.role == "assistant" or after not in (None, conversation.last_id):
        raise Problem("into a native talk texts and pictures of the user are put, at its end; "
                      "wanted role user, and no previous_item_id.", param="item")
      if any(c.kind == "input_audio" for c in item.content):
        raise Problem("into a native talk sound comes by input_audio_buffer.append.", param="item")
      conversation.forget()
      conversation.check(item)
      await self._duplex.insert(conversation_lib.prompt([item]))
      conversation.forget()  # others may have come meanwhile
      after = None
    self._shared.announce(item, after)

  async def _retrieve(self, item_id: str) -> None:
    item = self._shared.conversation.find(item_id)
    side = self._shared.config.audio.input if item.role == "user" else (
      self._shared.config.audio.output)
    kind = side.format.type

    def sound(wave_L: np.ndarray) -> bytes:
      resampler = Resampler(self._service.sample_rate, pcm.RATES[kind])
      return pcm.encode(np.concatenate([resampler.feed(wave_L), resampler.flush()]), kind)

    told = await self._shared.in_thread(lambda: item.json(sound))
    self._send({"type": "conversation.item.retrieved", "item": told})

  def _delete(self, item_id: str) -> None:
    if self._duplex:
      raise Problem("a native talk has no item that could leave the model's memory, but for what "
                    "the model said last: truncate that.", param="item_id")
    self._whole(self._shared.conversation.find(item_id))
    self._shared.conversation.remove(item_id)
    self._send({"type": "conversation.item.deleted", "item_id": item_id})

  def _whole(self, item: Item) -> Item:
    if item.status == "in_progress":
      raise Problem(f"item {item.id} is still being made; cancel its response first.",
                    param="item_id")
    return item

  def _truncate(self, event: ev.ItemTruncate) -> None:
    if self._duplex:
      self._duplex.truncate(event)
      return
    item = self._whole(self._shared.conversation.find(event.item_id))
    content = item.content[event.content_index] if event.content_index < len(item.content) else None
    wave_L = content.wave_L if content else None
    check_truncation(event, item, self._shared.ms(len(wave_L)) if wave_L is not None else 0)
    assert content and wave_L is not None
    samples = event.audio_end_ms * self._service.sample_rate // 1000
    if samples < len(wave_L):
      content.wave_L, content.transcript = wave_L[:samples].copy(), None
    self._send(truncated(event))

  # Responses

  async def _respond(self, options: ev.Options) -> None:
    if self._duplex and options.conversation != "none":
      # The model has seen what was inserted, and answers as it likes: there is nothing to do. What
      # asks for more than that is refused.
      given = {name for name in options.model_fields_set if getattr(options, name)}
      given -= {"conversation"}
      if options.output_modalities == self._shared.config.output_modalities:
        given.discard("output_modalities")
      if given:
        raise Problem("in a native talk the model answers when and how it likes, and takes no "
                      f"{', '.join(sorted(given))}; give conversation \"none\" for a response "
                      "beside the talk, or set turn_detection to null.", param="response")
      return
    items = self._shared.conversation.items
    if options.input is not None:
      items = [self._shared.conversation.find(part.id, f"response.input[{i}].id")
               if isinstance(part, ev.Reference)
               else await self._read(part, f"response.input[{i}]")
               for i, part in enumerate(options.input)]
    self._answers.create(options, items)

  def _cancel(self, response_id: str | None) -> None:
    if self._duplex and (response_id is None or not self._answers.has(response_id)):
      self._duplex.cancel(response_id)
    else:
      self._answers.cancel(response_id)


def _first_config(service: Service) -> Config:
  """Native full duplex if the model hears and speaks, else text by turns."""
  audio = "audio" in service.modalities
  turns = TurnDetection(type="native") if audio else None
  sound = realtime_config.Audio(input=realtime_config.Input(turn_detection=turns))
  return Config(type="realtime", model=service.name, audio=sound,
                output_modalities=["audio" if audio else "text"])
