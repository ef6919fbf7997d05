"""Responses that Service.write makes: the client, or a pause in its speech, asks for them."""

import asyncio
import logging
import secrets
from collections.abc import Callable, Sequence
from typing import Any, Literal

from omnijax.generate.events import End, Event, Full, Sound, Text, TooLong
from omnijax.serve import conversation as conversation_lib
from omnijax.serve.conversation import Item
from omnijax.serve.realtime_events import Options, Problem
from omnijax.serve.realtime_shared import Shared, Ticket, usage
from omnijax.serve.response import Response

_LOG = logging.getLogger(__name__)
_MOST_APART = 4  # responses outside the conversation, of a session at a time


class Answer:
  """One of them, from its prompt to its end."""

  def __init__(self, shared: Shared, response: Response, over: Callable[["Answer"], None]):
    self.response = response
    self._shared, self._tell = shared, over
    self._ticket: Ticket | None = None
    self._over = False
    self._task: asyncio.Task[None] | None = None

  def start(self, parts: list[dict[str, Any]], max_new: int) -> None:
    """Queues it; from here on its events come by themselves."""
    self._task = asyncio.create_task(self._start(parts, max_new))

  async def _start(self, parts: list[dict[str, Any]], max_new: int) -> None:
    emit = self._shared.on_loop(self._event)

    def write() -> None:
      ticket = self._shared.service.write(
        parts, to=self.response.modality, seed=secrets.randbits(31), max_new=max_new, emit=emit)
      # Whichever comes first, this or stop, the other sees it.
      self._ticket = ticket
      if self._over:
        ticket.cancel()

    try:
      if not parts:
        raise ValueError("there is nothing to answer: the conversation, or the input, has no item "
                         "that the model could read.")
      await self._shared.in_thread(write)
    except Full as error:
      self._fail(str(error) or "all slots are busy; try again later.", "rate_limit_exceeded",
                 "rate_limit_error")
    except ValueError as error:
      code = "context_length_exceeded" if isinstance(error, TooLong) else "invalid_prompt"
      self._fail(str(error), code, "invalid_request_error")
    except Exception:
      _LOG.exception("a realtime response fails")
      self._fail("the server failed.", "server_error", "server_error")

  def stop(self, reason: Literal["turn_detected", "client_cancelled"] | None) -> None:
    """Cancels it; with a reason, the client is told."""
    if self._over:
      return
    self._end()
    if self._ticket:
      self._ticket.cancel()
    if reason:
      self.response.finish("cancelled", None, reason=reason)

  def _event(self, event: Event) -> None:
    if self._over:
      return
    if isinstance(event, Text):
      (self.response.words if event.spoken else self.response.text)(event.delta)
    elif isinstance(event, Sound):
      self.response.sound(event.wave_L)
    elif isinstance(event, End):
      self._finish(event)

  def _finish(self, end: End) -> None:
    used = usage(end.prompt, end.written, self.response.modality)
    if end.reason == "failed":
      self._fail(end.error or "the model failed.", "server_error", "server_error")
      return
    self._end()
    if end.reason == "stop":
      self.response.finish("completed", used)
    elif end.reason == "length":
      self.response.finish("incomplete", used, reason="max_output_tokens")
    else:
      # Nobody here asked for it: the server ends.
      self.response.finish("cancelled", used)

  def _fail(self, message: str, code: str, kind: str) -> None:
    if not self._over:
      self._end()
      self.response.finish("failed", None,
                           error={"message": message, "code": code, "type": kind})

  def _end(self) -> None:
    self._over = True
    self._tell(self)


class Answers:
  """A session's."""

  def __init__(self, shared: Shared):
    self._shared = shared
    self._running: dict[str, Answer] = {}

  @property
  def current(self) -> Answer | None:
    """The one that the conversation gets, while it is made."""
    return next((a for a in self._running.values() if not a.response.apart), None)

  def has(self, response_id: str) -> bool:
    """Whether that response is being made."""
    return response_id in self._running

  def create(self, options: Options, items: Sequence[Item]) -> None:
    """Starts one.

    Args:
      options: of the client, perhaps empty.
      items: of the prompt.

    Raises:
      Problem: there is one already, or the model can't speak, or no more items are allowed.
    """
    shared, config = self._shared, self._shared.config
    modality = (options.output_modalities or config.output_modalities)[0]
    if modality not in shared.service.modalities:
      raise Problem(f"the model writes {', '.join(sorted(shared.service.modalities))}, not "
                    f"{modality}; ask for another modality.", param="response.output_modalities")
    apart = options.conversation == "none"
    if not apart:
      if self.current:
        raise Problem(f"the conversation has the active response {self.current.response.id}; wait "
                      "for response.done, or cancel it.",
                      code="conversation_already_has_active_response")
      shared.conversation.check()
    elif sum(a.response.apart for a in self._running.values()) >= _MOST_APART:
      raise Problem(f"{_MOST_APART} responses outside the conversation are active, which is the "
                    "most; wait for one.", code="rate_limit_exceeded", kind="rate_limit_error")
    most = options.max_output_tokens or config.max_output_tokens or "inf"
    instructions = config.instructions if options.instructions is None else options.instructions
    output = options.audio.output if options.audio else None
    form = output.format.type if output and output.format else config.audio.output.format.type
    parts = conversation_lib.prompt(items, instructions)
    answer = Answer(shared, Response(
      shared, modality=modality, form=form, keep=not apart, apart=apart,
      metadata=options.metadata, max_tokens=most), self._over)
    self._running[answer.response.id] = answer
    limit = shared.settings.max_new
    answer.start(parts, min(most, limit) if isinstance(most, int) else limit)

  def cancel(self, response_id: str | None) -> None:
    """Cancels that of an id, or the conversation's, for the client.

    Raises:
      Problem: there is none.
    """
    answer = self.current if response_id is None else self._running.get(response_id)
    if answer is None:
      raise Problem("there is no active response to cancel"
                    + (f" with the id {response_id[:100]!r}." if response_id else "."),
                    code="response_cancel_not_active",
                    param="response_id" if response_id else None)
    answer.stop("client_cancelled")

  def close(self) -> None:
    """Cancels all; nobody is told any more."""
    for answer in list(self._running.values()):
      answer.stop(None)

  def _over(self, answer: Answer) -> None:
    del self._running[answer.response.id]
