"""Ten thousand malformed messages to a server process, while somebody else talks with it."""

import asyncio
import contextlib
import http.client
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import openai
import pytest
import voices
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from test_realtime_errors import _EVENTS, _VALUES

pytestmark = pytest.mark.slow
MESSAGES, REQUESTS, AT_ONCE = 6000, 4000, 20
MORE_MIB = 48  # that the server may grow by; a message that were kept would show
SETTINGS = dict(deadline=None, suppress_health_check=list(HealthCheck), database=None)
_PATHS = st.sampled_from(["/v1/chat/completions", "/v1/images/generations", "/v1/audio/speech",
                          "/v1/audio/transcriptions", "/v1/models", "/v1/none", "/", "/metrics"])
_FIELDS = st.sampled_from(["model", "messages", "prompt", "input", "voice", "stream", "max_tokens",
                           "temperature", "modalities", "audio", "size", "n", "response_format"])
_CONTENT = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "x"]),
                                  "content": _VALUES})
_BODIES = st.one_of(
  st.dictionaries(_FIELDS, _VALUES | st.lists(_CONTENT, max_size=3), max_size=5).map(json.dumps),
  _VALUES.map(json.dumps), st.binary(max_size=60))
_TEXTS = st.one_of(_EVENTS.map(json.dumps), st.binary(max_size=40),
                   st.text(st.characters(codec="utf-8"), max_size=40))


class Process:
  """The server, and how much memory it has."""

  def __init__(self):
    tests = Path(__file__).parents[1]
    path = os.pathsep.join(map(str, (tests, tests / "generate", os.environ.get("PYTHONPATH", ""))))
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": path}
    self.process = subprocess.Popen(
      [sys.executable, Path(__file__).with_name("fuzz_server.py")], env=env,
      stdout=subprocess.PIPE, text=True)
    self.port = int(self.process.stdout.readline())
    self.url = f"ws://127.0.0.1:{self.port}/v1"

  def resident_mib(self) -> float:
    status = Path(f"/proc/{self.process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024


@pytest.fixture(scope="module")
def process():
  made = Process()
  yield made
  with made.process:  # closes what it wrote to
    made.process.terminate()
    assert made.process.wait(30) == 0


@contextlib.asynccontextmanager
async def session(process):
  client = openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{process.port}/v1", api_key="none",
                              websocket_base_url=process.url)
  async with client.realtime.connect(model="tiny") as connection:
    yield connection


async def talk(process, seconds: float) -> np.ndarray:
  """What the model says to a fixed sound, at the speed of speech."""
  sound = voices.tone(seconds, hz=300.0)
  out = []
  async with session(process) as connection:
    async def listen():
      while True:
        event = await connection.recv()
        if event.type == "response.output_audio.delta":
          out.append(voices.unpacked(event.delta))

    listener = asyncio.create_task(listen())
    for at in range(0, len(sound), 1920):
      await connection.input_audio_buffer.append(audio=voices.packed(sound[at : at + 1920]))
      await asyncio.sleep(0.08)
    await asyncio.sleep(1.0)
    listener.cancel()
  return np.concatenate(out)


def test_ten_thousand_malformed_messages(process):
  alone = asyncio.run(talk(process, 4.0))
  assert len(alone) > 24000
  beside, stop = [], threading.Event()

  def watch():
    while not stop.is_set():
      beside.append(asyncio.run(talk(process, 4.0)))

  watcher = threading.Thread(target=watch)
  watcher.start()
  sent = {"messages": 0, "requests": 0}

  @seed(0)
  @settings(max_examples=MESSAGES // AT_ONCE, **SETTINGS)
  @given(texts=st.lists(_TEXTS, min_size=AT_ONCE, max_size=AT_ONCE))
  def messages(texts):
    async def main():
      async with session(process) as connection:
        for text in texts:
          await connection.send_raw(text)
          sent["messages"] += 1
        await connection.send({"type": "conversation.item.retrieve", "item_id": "last",
                               "event_id": "last"})
        while True:
          event = await asyncio.wait_for(connection.recv(), 60)
          if event.type == "error" and event.error.event_id == "last":
            return
    asyncio.run(main())

  @seed(1)
  @settings(max_examples=REQUESTS // AT_ONCE, **SETTINGS)
  @given(some=st.lists(st.tuples(_PATHS, _BODIES, st.sampled_from([
    "application/json", "multipart/form-data; boundary=x", "text/plain"])), min_size=AT_ONCE,
    max_size=AT_ONCE))
  def requests(some):
    connection = http.client.HTTPConnection("127.0.0.1", process.port, timeout=60)
    for path, body, kind in some:
      body = body.encode() if isinstance(body, str) else body
      connection.request("POST", path, body, {"Content-Type": kind})
      answer = connection.getresponse()
      content = answer.read()
      sent["requests"] += 1
      assert answer.status < 500 or answer.status == 503, (path, body, content)
      if answer.status >= 400:
        assert set(json.loads(content)["error"]) == {"message", "type", "param", "code"}
    connection.close()

  try:
    messages()
    requests()
    first = process.resident_mib()
    messages()
    requests()
    more = process.resident_mib() - first
  finally:
    stop.set()
    watcher.join()
  assert sent["messages"] >= 2 * MESSAGES and sent["requests"] >= 2 * REQUESTS
  assert process.process.poll() is None
  assert more < MORE_MIB, f"the server has grown by {more:.0f} MiB"
  # Nothing of what others sent is in what the one hears who talks meanwhile.
  assert len(beside) > 2
  for other in beside:
    n = min(len(alone), len(other))
    assert n > 24000
    np.testing.assert_array_equal(other[:n], alone[:n])
