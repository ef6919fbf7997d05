"""Sending and waiting, without a socket: who takes nothing, who leaves, what breaks."""

import asyncio
import types

import pytest

from omnijax.serve.errors import Refused
from omnijax.serve.streams import Gone, Streamed, as_events, event, unless_gone


class Client:
  """The other side of an ASGI app: leaves when it is told to, takes what it likes."""

  def __init__(self, takes=100):
    self.takes, self.got, self.left = takes, [], asyncio.Event()

  async def receive(self):
    await self.left.wait()
    return {"type": "http.disconnect"}

  async def send(self, message):
    if len(self.got) == self.takes:
      await asyncio.Event().wait()
    self.got.append(message)


def sent(client, body, stall_s=5.0):
  """Sends a stream; whether its work was closed."""
  closed = []
  work = types.SimpleNamespace(close=lambda: closed.append(True))
  return closed, Streamed(work, body, "text/plain", stall_s)({}, client.receive, client.send)


async def counting(n, fails=None):
  for i in range(n):
    await asyncio.sleep(0)
    yield b"%d" % i
  if fails is not None:
    raise fails


def run(coroutine):
  return asyncio.run(asyncio.wait_for(coroutine, 5))


def test_all_of_it_is_sent():
  async def main():
    client = Client()
    closed, sending = sent(client, counting(3))
    await sending
    return client.got, closed

  got, closed = run(main())
  assert got[0]["status"] == 200 and closed == [True]
  assert [m["body"] for m in got[1:]] == [b"0", b"1", b"2", b""]
  assert [m["more_body"] for m in got[1:]] == [True, True, True, False]


@pytest.mark.parametrize("fails", [Refused(500, "x")])
def test_what_breaks_has_no_end(fails):
  async def main():
    client = Client()
    closed, sending = sent(client, counting(2, fails))
    await sending
    return client.got, closed

  got, closed = run(main())
  assert got[-1]["more_body"] and len(got) == 3 and closed == [True]


def test_who_takes_nothing_is_given_up():
  async def main():
    client = Client(takes=2)
    closed, sending = sent(client, counting(10), stall_s=0.05)
    await sending
    return len(client.got), closed

  assert run(main()) == (2, [True])


def test_who_leaves_is_not_waited_for():
  async def main():
    client = Client(takes=2)
    closed, sending = sent(client, counting(10))
    client.left.set()
    await sending
    return closed

  assert run(main()) == [True]


def test_waiting_ends_when_the_client_leaves():
  async def main(leaves, doing):
    client = Client()
    if leaves:
      client.left.set()
    return await unless_gone(client, doing)

  cancelled = []

  async def endless():
    try:
      await asyncio.Event().wait()
    except asyncio.CancelledError:
      cancelled.append(True)
      raise

  async def fails():
    raise KeyError("x")

  with pytest.raises(Gone):
    run(main(True, endless()))
  assert cancelled == [True]
  assert run(main(False, asyncio.sleep(0, 5))) == 5
  with pytest.raises(KeyError):
    run(main(False, fails()))


def test_events_tell_what_goes_wrong():
  async def objects(fails):
    yield {"a": "\u00e9\n"}
    if fails:
      raise fails

  async def all_of(fails):
    return [e async for e in as_events(objects(fails), last=b"END")]

  one = b'data: {"a":"\\u00e9\\n"}\n\n'
  assert run(all_of(None)) == [one, b"END"] and event({"a": "\u00e9\n"}) == one
  told = run(all_of(Refused(503, "soon", code="stopping")))
  assert told[0] == one and b'"code":"stopping"' in told[1] and len(told) == 2
  assert b"internal_error" in run(all_of(KeyError("secret")))[1]
