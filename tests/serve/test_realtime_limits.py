"""Who may come, how much is too much, and what clients must not do to others."""

import asyncio
import json
import socket
import time

import httpx
import pytest
import serving
import voices
import websockets
from voices import config, item, packed, session, silence, soon, speak, tone, update

VAD_OFF = {"audio": {"input": {"turn_detection": None}}}


@pytest.fixture(scope="module")
def shared():
  """A service and a server for tests that leave nothing behind."""
  service = voices.Service()
  with voices.serving(service) as url:
    yield url


class Counts:
  def __init__(self):
    self.opened = self.closed = 0
    self.frames = []

  def session_opened(self):
    self.opened += 1

  def session_closed(self):
    self.closed += 1

  def observe_frame(self, took_s, late):
    self.frames.append((took_s, late))


async def refused(url, **kwargs):
  with pytest.raises(websockets.InvalidStatus) as caught:
    await websockets.connect(f"{url}/realtime", **kwargs)
  response = caught.value.response
  return response.status_code, json.loads(response.body)["error"]["code"]


def test_keys_and_origins():
  async def main(url):
    for key in ("first", "second"):
      async with session(url, key=key):
        pass
    for offered in ({"additional_headers": {"Authorization": "Bearer firs"}}, {},
                    {"subprotocols": ["realtime", "openai-insecure-api-key.no"]},
                    {"additional_headers": {"Authorization": "Basic first"}}):
      assert await refused(url, **offered) == (401, "invalid_api_key")
    # As pages do, of whatever origin.
    async with websockets.connect(f"{url}/realtime", origin="http://elsewhere", subprotocols=[
        "realtime", "openai-insecure-api-key.second"]) as connection:
      assert connection.subprotocol == "realtime"
      assert json.loads(await connection.recv())["type"] == "session.created"
  with serving.serving(voices.Service(), serving.Settings(api_keys=("first", "second"))) as server:
    asyncio.run(main(server.url.replace("http", "ws") + "/v1"))


def test_sessions_count_in_the_rate():
  async def main(url):
    async with session(url):
      pass
    async with session(url):
      pass
    assert await refused(url) == (429, "rate_limit_exceeded")
  with serving.serving(voices.Service(), serving.Settings(rate=2)) as server:
    asyncio.run(main(server.url.replace("http", "ws") + "/v1"))


def test_pages_of_others_and_unknown_models(shared):
  async def main():
    host = shared.removeprefix("ws://").removesuffix("/v1")
    async with websockets.connect(f"{shared}/realtime?model=tiny", origin=f"http://{host}"):
      pass
    for origin in ("http://elsewhere", "null", "http://[", f"http://{host}.evil", "x"):
      assert await refused(shared, origin=origin) == (403, "origin_not_allowed")
    with pytest.raises(websockets.InvalidStatus) as caught:
      await websockets.connect(f"{shared}/realtime?model=gpt-realtime")
    assert caught.value.response.status_code == 404
    error = json.loads(caught.value.response.body)["error"]
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    # Without an upgrade there is nothing here.
    assert httpx.get(f"{shared.replace('ws', 'http')}/realtime").status_code == 404
  asyncio.run(main())


def test_the_whole_server_has_sessions_until_it_stops():
  with serving.serving(voices.Service(), serving.Settings(api_keys=("k",))) as server:
    context = server.config.app.state.context
    url = server.url.replace("http", "ws") + "/v1"

    async def main():
      assert await refused(url) == (401, "invalid_api_key")
      async with session(url, key="k") as (connection, ear):
        await speak(connection, silence(0.4), tone(0.4), silence(1.5))
        await ear.until("response.done")
        told = context.metrics.text().decode()
        assert "omnijax_realtime_sessions 1.0" in told
        assert "omnijax_frames_late_total 0.0" in told
        context.access.stopping = True
        assert await refused(url, additional_headers={"Authorization": "Bearer k"}) == (
          503, "stopping")
        context.access.stopping = False
    asyncio.run(main())


def test_no_more_sessions_and_talks_than_allowed():
  service = voices.Service(slots=1)

  async def main(url):
    async with session(url) as (first, _), session(url) as (second, ear):
      assert await refused(url) == (429, "queue_full")
      await speak(first, silence(0.2))
      await soon(lambda: len(service.talks) == 1)
      await speak(second, silence(0.02))
      error = (await ear.until("error")).error
      assert (error.type, error.code) == ("rate_limit_error", "rate_limit_exceeded")
      await ear.until_closed()
      assert ear.connection._connection.close_code == 1013
    await soon(lambda: service.talks == [])
    async with session(url) as (third, ear):
      await speak(third, silence(0.4), tone(0.4), silence(1.5))
      await ear.until("response.done")
  with serving.serving(service, serving.Settings(requests=2)) as server:
    asyncio.run(main(server.url.replace("http", "ws") + "/v1"))


def test_too_much_at_once():
  service = voices.Service(most_waiting=16000)

  async def main(url):
    async with session(url) as (connection, ear):
      await connection.send_raw('{"type": "response.create"' + " " * 100_000 + "}")
      assert (await ear.until("error")).error.code == "message_too_large"
      # Characters are not bytes.
      await connection.send_raw(json.dumps({"type": "é" * 50_001}, ensure_ascii=False))
      assert (await ear.until("error")).error.code == "message_too_large"
      # Of the model, which may be slow.
      await connection.input_audio_buffer.append(audio=packed(silence(1.1)), event_id="late")
      error = (await ear.until("error")).error
      assert (error.code, error.event_id) == ("input_audio_buffer_full", "late")
      await update(connection, ear, **VAD_OFF)
      for _ in range(4):
        await connection.input_audio_buffer.append(audio=packed(silence(0.6)))
      assert "1800 ms of sound wait" in (await ear.until("error")).error.message
      create = connection.conversation.item.create
      text = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}]}
      for _ in range(2):
        await create(item=text)
        await ear.until("conversation.item.done")
      # That was room for sound, but not for this one.
      await create(item=text)
      assert (await ear.until("error")).error.code == "conversation_full"
      await connection.response.create()
      assert (await ear.until("error")).error.code == "conversation_full"
      await connection.input_audio_buffer.commit()
      assert (await ear.until("error")).error.code == "conversation_full"
      first, second = (e.item.id for e in ear.all("conversation.item.done"))
      await connection.conversation.item.delete(item_id=first)
      await connection.input_audio_buffer.commit()
      item = (await ear.until("conversation.item.done")).item
      assert item.content[0].type == "input_audio"
      await connection.conversation.item.delete(item_id=second)
      await create(item={"type": "message", "role": "user", "content": [
        {"type": "input_text", "text": "b" * 30_000}]})
      assert "bytes" in (await ear.until("error")).error.message
  with voices.serving(service, message_bytes=100_000, buffer_s=2, items=2,
                      conversation_bytes=140_000) as url:
    asyncio.run(main(url))


def test_a_talk_forgets_its_oldest_items():
  service = voices.Service()

  async def main(url):
    async with session(url) as (connection, ear):
      for _ in range(4):
        await speak(connection, silence(0.4), tone(0.4), silence(2))
        await ear.until("response.done")
      await ear.until_all("conversation.item.done", 8)
      assert ear.all("error") == []
      oldest = ear.all("conversation.item.done")[0].item.id
      await connection.conversation.item.retrieve(item_id=oldest)
      assert (await ear.until("error")).error.code == "item_not_found"
  with voices.serving(service, items=3) as url:
    asyncio.run(main(url))


@pytest.mark.parametrize("native", [True, False])
def test_who_does_not_read_is_dropped_and_hurts_nobody(native):
  service, counts = voices.Service(words="word " * 900), Counts()
  service.pace_s = 0.002

  async def main(url):
    host, port = url.removeprefix("ws://").removesuffix("/v1").split(":")
    narrow = socket.socket()
    narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    narrow.connect((host, int(port)))
    narrow.setblocking(False)
    deaf = await websockets.connect(f"{url}/realtime", sock=narrow, max_queue=1, ping_interval=None)
    async with session(url) as (connection, ear):
      if native:
        for _ in range(60):
          await deaf.send(json.dumps({"type": "input_audio_buffer.append", "audio": packed(
            *([silence(0.4), tone(0.4), silence(0.2)] if not service.talks else [silence(1)]))}))
          await asyncio.sleep(0.02)
          if service.all_talks and service.all_talks[0].closed:
            break
      else:
        await deaf.send(json.dumps(config(**VAD_OFF)))
        await deaf.send(json.dumps(item({"type": "input_text", "text": "go"})))
        await deaf.send('{"type": "response.create"}')
      await soon(lambda: service.all_talks[0].closed if native else (
        service.tickets and service.tickets[0].cancelled.is_set()))
      # What it had is free at once, before its connection is.
      assert counts.closed == 0
      await soon(lambda: counts.closed == 1)
      # The other one didn't notice.
      service.words = ["fine"]
      await speak(connection, silence(0.4), tone(0.4), silence(1))
      assert (await ear.until("response.done")).response.status == "completed"
    deaf.transport.abort()
    await deaf.wait_closed()
  with voices.serving(service, metrics=counts, outgoing_bytes=300_000, max_new=900) as url:
    asyncio.run(main(url))
  assert (counts.opened, counts.closed) == (2, 2)


def test_who_vanishes_frees_all():
  service, counts = voices.Service(words="word " * 50), Counts()
  service.free.clear()

  async def main(url):
    for abort in (True, False):
      async with session(url) as (connection, ear):
        await speak(connection, silence(0.4), tone(0.4), silence(0.5))
        await connection.response.create(response={"conversation": "none", "instructions": "go"})
        await ear.until("response.output_audio_transcript.delta")
        await soon(lambda: len(service.talks) == 1)
        if abort:
          connection._connection.transport.abort()
        else:
          await connection.close()
        await soon(lambda: service.talks == [] and all(
          ticket.cancelled.is_set() for ticket in service.tickets))
    await soon(lambda: counts.closed == 2)
  with voices.serving(service, metrics=counts) as url:
    asyncio.run(main(url))
  assert len(service.all_talks) == len(service.tickets) == 2
  assert len(counts.frames) >= 20 and set(counts.frames) == {(0.01, False)}


def test_frames_that_are_late_are_counted():
  service, counts = voices.Service(), Counts()
  service.took_s = 0.081

  async def main(url):
    async with session(url) as (connection, ear):
      await speak(connection, silence(0.4), tone(0.4), silence(1.5))
      await ear.until("response.done")
  with voices.serving(service, metrics=counts) as url:
    asyncio.run(main(url))
  assert set(counts.frames) == {(0.081, True)}


@pytest.mark.parametrize(("reason", "code", "closed"), [
  ("length", "context_length_exceeded", 1000), ("failed", "server_error", 1011),
  ("cancelled", "server_shutdown", 1001)])
def test_talks_that_end_by_themselves(reason, code, closed):
  service = voices.Service(words="word " * 50)

  async def main(url):
    async with session(url) as (connection, ear):
      await speak(connection, silence(0.4), tone(0.4), silence(0.6))
      await ear.until("response.output_audio.delta")
      service.talks[0].fail(reason, "it broke" if reason == "failed" else "")
      assert (await ear.until("response.done")).response.status in ("failed", "incomplete")
      assert (await ear.until("error")).error.code == code
      await ear.until_closed()
      assert connection._connection.close_code == closed
  with voices.serving(service) as url:
    asyncio.run(main(url))


def test_who_is_silent_or_stays_too_long_is_closed():
  async def main(url, code):
    async with session(url) as (connection, ear):
      began = time.monotonic()
      while not ear.closed:
        if code == "session_expired":
          try:
            await speak(connection, silence(0.04))
          except websockets.ConnectionClosed:
            break
        await asyncio.sleep(0.02)
        assert time.monotonic() - began < 10
      await ear.until_closed()
      assert ear.all("error")[-1].error.code == code
      assert connection._connection.close_code == 1000
      assert time.monotonic() - began > 0.25
  for limit, code in (("idle_s", "session_idle"), ("session_s", "session_expired")):
    with voices.serving(voices.Service(), **{limit: 0.3}) as url:
      asyncio.run(main(url, code))


@pytest.mark.parametrize("where", ["event", "frame"])
def test_a_mistake_of_ours_is_told_without_details_and_logged(caplog, monkeypatch, where):
  service, counts = voices.Service(), Counts()
  if where == "event":
    service.frame_size = 0
  else:
    monkeypatch.setattr(counts, "observe_frame", lambda *args: 1 / 0)

  async def main(url):
    async with session(url) as (connection, ear):
      await connection.input_audio_buffer.append(audio=packed(silence(0.2)))
      error = (await ear.until("error")).error
      assert (error.type, error.code) == ("server_error", "server_error")
      assert "division" not in error.message
      await ear.until_closed()
      assert connection._connection.close_code == 1011
  with voices.serving(service, metrics=counts) as url:
    asyncio.run(main(url))
  assert "ZeroDivisionError" in caplog.text
