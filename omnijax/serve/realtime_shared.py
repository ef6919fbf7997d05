"""What the parts of a realtime session have in common: limits, the model's service, the client.

L samples
"""

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import anyio
import anyio.to_thread
import numpy as np

from omnijax.generate.events import End, Event, Frame
from omnijax.serve import pixels, uploads
from omnijax.serve.conversation import Conversation, Item
from omnijax.serve.errors import Refused
from omnijax.serve.realtime_config import Config
from omnijax.serve.realtime_events import Problem

_LOG = logging.getLogger(__name__)
T = TypeVar("T")


class Ticket(Protocol):
  def cancel(self) -> None: ...


class Talk(Protocol):
  def hear(self, wave_L: np.ndarray) -> None: ...
  def insert(self, parts: list[dict[str, Any]]) -> None: ...
  def truncate(self, frame: int, samples: int = 0) -> None: ...
  def hush(self) -> None: ...
  def close(self) -> None: ...


class Service(Protocol):
  """What is used of generate.service.Service."""

  name: str
  sample_rate: int
  frame_size: int
  modalities: frozenset[str]
  image_step: int

  def write(self, parts: list[dict[str, Any]], *, to: Any, seed: int, max_new: int,
            emit: Callable[[Event], None]) -> Ticket: ...

  def talk(self, *, seed: int, emit: Callable[[Frame | End], None]) -> Talk: ...


class Metrics(Protocol):
  """Who counts."""

  def observe_frame(self, took_s: float, late: bool) -> None:
    """A frame of a talk: seconds since the last sample it hears; late: longer than it is."""

  def session_opened(self) -> None: ...

  def session_closed(self) -> None: ...


@dataclasses.dataclass(frozen=True)
class Settings:
  """Limits of the realtime endpoint.

  keyed: who comes has shown a key; otherwise pages of other origins are refused.
  message_bytes: of a client's event. The server in front must not allow less (uvicorn's
    ws_max_size), and should not compress (ws_per_message_deflate): base64 of sound hardly shrinks.
  buffer_s: of sound that waits to be committed.
  items, conversation_bytes: of a conversation.
  outgoing_bytes: that a client has not read; with more it is closed.
  pixels: of a picture, before it is scaled down.
  image_size: pixels of the longer side that it is scaled down to.
  max_new: positions of one response that Service.write makes.
  idle_s: a client that says nothing for so long is closed.
  session_s: a session ends after so long.
  """

  keyed: bool = False
  message_bytes: int = 4 << 20
  buffer_s: float = 60.0
  items: int = 1000
  conversation_bytes: int = 64 << 20
  outgoing_bytes: int = 8 << 20
  pixels: int = 16_000_000
  image_size: int = 256
  max_new: int = 375
  idle_s: float | None = None
  session_s: float | None = None
  metrics: Metrics | None = None


@dataclasses.dataclass
class Shared:
  """One session's.

  send: queues a server event; never waits.
  end: sends what is queued, then closes the connection with a code of RFC 6455 and a reason.
  config: changes with session.update.
  """

  service: Service
  settings: Settings
  threads: anyio.CapacityLimiter
  send: Callable[[dict[str, Any]], None]
  end: Callable[[int, str], None]
  config: Config
  conversation: Conversation

  def __post_init__(self):
    self._loop = asyncio.get_running_loop()

  def ms(self, samples: int) -> int:
    """Milliseconds of so many samples at the service's rate."""
    return samples * 1000 // self.service.sample_rate

  def see(self, url: str, param: str) -> np.ndarray:
    """Pixels uint8 [H, W, C] of a data: URL, as the model takes them.

    Raises:
      Refused: it is none, or too large.
    """
    content = uploads.data_url(url, param)
    if (found := pixels.count(content, param)) > self.settings.pixels:
      raise Refused(400, f"The picture has {found} pixels; the most is {self.settings.pixels}: "
                    "scale it down.", code="image_too_large", param=param)
    return pixels.decode(content, self.service.image_step, self.settings.image_size, param)

  async def in_thread(self, function: Callable[[], T]) -> T:
    """Runs what takes long beside the event loop; nobody waits for it if the session ends."""
    return await anyio.to_thread.run_sync(function, abandon_on_cancel=True, limiter=self.threads)

  def on_loop(self, function: Callable[[Any], None]) -> Callable[[Any], None]:
    """The same function, to be called by the service's thread; returns before it is run."""
    def run(value: Any) -> None:
      with self.failing():
        function(value)

    def call(value: Any) -> None:
      try:
        self._loop.call_soon_threadsafe(run, value)
      except RuntimeError:
        # The loop is closed: the server has ended, and the service says so to its last work.
        assert self._loop.is_closed()
    return call

  @contextlib.contextmanager
  def failing(self) -> Iterator[None]:
    """A mistake of ours in here is logged, told without its details, and ends the session."""
    try:
      yield
    except Exception:
      _LOG.exception("a realtime session fails")
      self.send(Problem("the server failed; connect again.", code="server_error",
                        kind="server_error").event(None))
      self.end(1011, "server error")

  def announce(self, item: Item, after: str | None = None) -> None:
    """Adds an item that is whole, and tells so."""
    before = self.conversation.add(item, after)
    for kind in ("added", "done"):
      self.send({"type": f"conversation.item.{kind}", "previous_item_id": before,
                 "item": item.json()})


def usage(prompt: int, written: int, modality: str) -> Mapping[str, Any]:
  """OpenAI's usage; tokens are positions of the model, of the prompt not told apart by kind."""
  other = "text" if modality == "audio" else "audio"
  return {"total_tokens": prompt + written, "input_tokens": prompt, "output_tokens": written,
          "input_token_details": {"cached_tokens": 0},
          "output_token_details": {f"{modality}_tokens": written, f"{other}_tokens": 0}}


def whole(pieces: Sequence[np.ndarray]) -> np.ndarray:
  """The pieces of a sound as one, float32 [L]."""
  return np.concatenate([np.zeros(0, np.float32), *pieces])
