"""`omnijax serve`: what it takes, what it says, how it ends; as a process, with a fake model."""

import asyncio
import base64
import importlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import openai
import pytest
import tiny
import voices
import websockets.sync.client
from fake_service import FakeService
from media_of import sound_file
from serving import ask, client_of, serving, until

import omnijax.generate
from omnijax import cli
from omnijax.serve import app, command, server
from omnijax.serve.settings import Settings

# A process whose service is the fake one.
CHILD = f"""
import sys, types
sys.path.insert(0, {str(Path(__file__).parent)!r})
from fake_service import FakeService
FakeService.load = classmethod(lambda cls, run_dir, *, slots, **_: cls(slots))
sys.modules["omnijax.generate.service"] = types.SimpleNamespace(Service=FakeService)
from omnijax import cli
sys.exit(cli.main(["serve", "run", "--port", "0", "--slots", "2", *sys.argv[1:]]))
"""


@pytest.fixture
def loaded(monkeypatch):
  """Calls of Service.load and of what would serve; nothing is loaded and nobody listens."""
  calls = types.SimpleNamespace(load=[], settings=[])

  class Service(FakeService):
    @classmethod
    def load(cls, run_dir, **options):
      calls.load.append((run_dir, options))
      return cls()

  module = types.SimpleNamespace(Service=Service)
  monkeypatch.setattr(omnijax.generate, "service", module, raising=False)
  monkeypatch.setitem(sys.modules, "omnijax.generate.service", module)
  monkeypatch.setattr(server.Server, "run", lambda self, sockets: sockets[0].close())
  create = app.create
  monkeypatch.setattr(app, "create", lambda service, settings: (
    calls.settings.append(settings), create(service, settings))[1])
  monkeypatch.delenv(command.KEY_VARIABLE, raising=False)
  return calls


def error_of(capfd, *argv) -> str:
  assert cli.main(["serve", *map(str, argv)]) == 2
  out, err = capfd.readouterr()
  assert out == "" and err.startswith("omnijax: error: ") and err.count("\n") == 1, err
  return err


def test_what_it_takes(loaded, tmp_path):
  assert cli.main(["serve", str(tmp_path), "--port", "0", "--slots", "8", "--queue", "3",
                   "--positions", "99", "--int8", "--api-key", "a", "--api-key", "b", "--rate",
                   "5", "--max-upload-mb", "1.5", "--max-audio-s", "2", "--max-megapixels", "3",
                   "--image-size", "32", "--drain-s", "4"]) == 0
  assert loaded.load == [(tmp_path, dict(slots=8, queue=3, positions=99, int8=True))]
  s, = loaded.settings
  assert (s.api_keys, s.rate, s.max_upload_mb, s.max_audio_s, s.max_megapixels, s.image_size,
          s.drain_s) == (("a", "b"), 5, 1.5, 2, 3, 32, 4)


@pytest.mark.parametrize("value, keys", [(None, ()), ("", ()), ("k", ("k",)), ("k,l", ("k", "l"))])
def test_keys_of_the_environment(value, keys, loaded, monkeypatch):
  if value is not None:
    monkeypatch.setenv(command.KEY_VARIABLE, value)
  assert cli.main(["serve", "run", "--port", "0"]) == 0
  assert cli.main(["serve", "run", "--port", "0", "--api-key", "given"]) == 0
  assert [s.api_keys for s in loaded.settings] == [keys, ("given",)]


def test_an_open_door_is_told(loaded, caplog, monkeypatch):
  monkeypatch.setattr("omnijax.host.log_to_stderr", lambda: None)
  cli.main(["serve", "run", "--port", "0"])
  assert "whoever reaches" not in caplog.text
  cli.main(["serve", "run", "--port", "0", "--host", "0.0.0.0"])
  assert "whoever reaches http://0.0.0.0:" in caplog.text and "OMNIJAX_API_KEY" in caplog.text


def test_bad_commands(loaded, capfd, monkeypatch):
  with socket.socket() as other:
    other.bind(("127.0.0.1", 0))
    other.listen()
    port = other.getsockname()[1]
    assert f"port {port}: Address already in use" in error_of(capfd, "run", "--port", port)
  assert "--port" in error_of(capfd, "run", "--host", "203.0.113.7")
  assert "--port is 99999" in error_of(capfd, "run", "--port", 99_999)
  assert "rate is -1" in error_of(capfd, "run", "--rate", -1)
  monkeypatch.setenv(command.KEY_VARIABLE, "a,,b")
  assert "an API key is empty" in error_of(capfd, "run")
  monkeypatch.delenv(command.KEY_VARIABLE)
  real = importlib.import_module

  def missing(name, *args):
    if name == "prometheus_client":
      raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    return real(name, *args)

  monkeypatch.setattr(importlib, "import_module", missing)
  assert 'pip install "omnijax[serve]"' in error_of(capfd, "run")
  assert loaded.load == [], "all of this is told before a model is loaded"


def test_the_port_is_taken_from_the_start():
  first = server.bind("127.0.0.1", 0, 1.0)
  with first, pytest.raises(ValueError, match="give another --port"):
    server.bind("127.0.0.1", first.getsockname()[1], 1.0)


class Process:
  """A server that runs, and what it has printed."""

  def __init__(self, *command, env=None):
    self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                    text=True, env={**os.environ, **(env or {})})
    self.line = self.process.stdout.readline()
    found = re.fullmatch(r"Serving (\S+) on (http://127\.0\.0\.1:\d+), (\d+) slots\n", self.line)
    assert found, (self.line, self.process.stderr.read())
    self.name, self.url = found[1], found[2]

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.process.kill()
    self.process.communicate()

  def ended(self):
    out, err = self.process.communicate(timeout=20)
    assert out == ""
    return self.process.returncode, err


def chat(text):
  return {"model": "fake", "messages": [{"role": "user", "content": text}]}


def asking(running, body, found):
  thread = threading.Thread(target=lambda: found.append(
    ask(running, "POST", "/v1/chat/completions", body)))
  thread.start()
  until(lambda: ask(running, "GET", "/health")[2]["active"]["write"])
  return thread


def test_sigterm_lets_clients_finish():
  with Process(sys.executable, "-c", CHILD, "--drain-s", "15") as running:
    assert running.name == "fake"
    found = []
    thread = asking(running, chat("wait"), found)
    running.process.send_signal(signal.SIGTERM)
    until(lambda: ask(running, "GET", "/health")[0] == 503)
    status, headers, content = ask(running, "POST", "/v1/chat/completions", chat("a"))
    assert (status, content["error"]["code"]) == (503, "stopping") and headers["retry-after"]
    assert running.process.poll() is None and not found
    # Only a second one ends what runs; whoever waits is told.
    running.process.send_signal(signal.SIGTERM)
    thread.join(10)
    assert found[0][0] == 503 and found[0][2]["error"]["code"] == "stopping"
    code, err = running.ended()
    assert code == 0 and "Traceback" not in err


def test_sigint_is_an_interruption(foreground):
  with Process(sys.executable, "-c", CHILD) as running:
    found = []
    thread = asking(running, chat("wait"), found)
    running.process.send_signal(signal.SIGINT)
    thread.join(10)
    assert found[0][0] == 503
    assert running.ended() == (130, "omnijax: interrupted\n")


def test_the_time_to_finish_has_an_end():
  service = FakeService()
  with serving(service, Settings(drain_s=0.3)) as running:
    found, start = [], time.monotonic()
    thread = asking(running, {**chat("wait"), "stream": True}, found)
    running.handle_exit(signal.SIGTERM, None)
    thread.join(10)
    assert 0.3 < time.monotonic() - start < 5
    assert b'"code":"stopping"' in found[0][2], "a stream is told in its own way"
    assert service.closed.is_set()


def test_who_is_done_in_time_is_answered():
  service = FakeService()
  with serving(service, Settings(drain_s=10)) as running:
    found, start = [], time.monotonic()
    thread = asking(running, chat("wait"), found)
    socket_url = f"{running.url.replace('http', 'ws')}/v1/realtime"
    running.handle_exit(signal.SIGTERM, None)
    with pytest.raises(websockets.exceptions.InvalidStatus) as caught:
      websockets.sync.client.connect(socket_url)
    assert caught.value.response.status_code == 503
    assert json.loads(caught.value.response.body)["error"]["code"] == "stopping"
    service.go.set()
    thread.join(10)
    assert found[0][2]["choices"][0]["message"]["content"] == "wait"
    until(service.closed.is_set)  # and the server ends, for nobody is left
    assert time.monotonic() - start < 5


async def talked(url):
  """What a client of the realtime endpoint does, with a model whose answers mean nothing."""
  async with voices.session(url) as (connection, ear):
    await voices.speak(connection, voices.tone(1.5))
    response = (await ear.until("response.created", seconds=60)).response
    await ear.until("response.output_audio.delta", seconds=60)
    await connection.response.cancel(response_id=response.id)
    assert (await ear.until("response.done", seconds=60)).response.status == "cancelled"
    await connection.send(voices.item({"type": "input_text", "text": "one"}))
    await ear.until("conversation.item.done", seconds=60)
  async with voices.session(url) as (connection, ear):
    await voices.update(connection, ear, audio={"input": {"turn_detection": {
      "type": "server_vad"}}})
    reasons = []
    for _ in range(9):  # some answers are over before anybody can speak into them
      await voices.speak(connection, voices.silence(0.4), voices.tone(0.5), voices.silence(0.7))
      await ear.until("response.output_audio.delta", "response.done", seconds=60)
      await voices.speak(connection, voices.tone(0.5))
      done = (await ear.until("response.done", seconds=60)).response
      reasons.append((done.status, getattr(done.status_details, "reason", None)))
      if done.status == "cancelled":
        break
      await voices.speak(connection, voices.silence(0.7))
      await ear.until("response.done", seconds=60)
    assert reasons[-1] == ("cancelled", "turn_detected"), reasons


@pytest.mark.slow
def test_a_run_is_served(tmp_path):
  # As a run that was trained: real tokenizers, a checkpoint; its answers mean nothing.
  saved = subprocess.run(
    [sys.executable, "-c", SAVE, str(tmp_path)], capture_output=True, text=True,
    env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(tiny.__file__).parent),
                                                      *sys.path])})
  assert saved.returncode == 0, saved.stderr
  command = (sys.executable, "-m", "omnijax.cli", "serve", str(tmp_path), "--port", "0",
             "--positions", "256", "--slots", "2")
  with Process(*command) as running, client_of(running, timeout=120) as client:
    model = client.models.list().data[0].id
    assert model == "tiny" == running.name
    messages = [{"role": "user", "content": "one"}]
    answer = client.chat.completions.create(model=model, messages=messages, max_tokens=5)
    assert answer.usage.completion_tokens <= 6 and answer.usage.prompt_tokens > 1
    pieces = list(client.chat.completions.create(model=model, messages=messages, max_tokens=5,
                                                 stream=True))
    assert pieces[-1].choices[0].finish_reason in ("stop", "length")
    picture = client.images.generate(prompt="one", size="16x16")
    assert picture.size == "16x16"
    speech = client.audio.speech.create(model=model, input="one", voice="a", response_format="wav")
    assert speech.content[:4] == b"RIFF"
    heard = client.audio.transcriptions.create(model=model, file=("a.wav", sound_file(0.3)))
    assert isinstance(heard.text, str)
    sound = {"type": "input_audio", "input_audio": {"format": "wav", "data": base64.b64encode(
      sound_file(0.3)).decode()}}
    seen = {"type": "image_url", "image_url": {"url": voices.png(32, 32)}}
    words = {"type": "text", "text": "en"}
    said = client.chat.completions.create(
      model=model, messages=[{"role": "user", "content": [words, seen, sound]}], max_tokens=20,
      modalities=["text", "audio"], audio={"voice": "a", "format": "wav"})
    assert base64.b64decode(said.choices[0].message.audio.data)[:4] == b"RIFF"
    with pytest.raises(openai.BadRequestError) as caught:
      client.chat.completions.create(model=model, messages=[{"role": "user",
                                                             "content": "one " * 999}])
    assert caught.value.code == "context_length_exceeded"
    asyncio.run(talked(f"{running.url.replace('http', 'ws')}/v1"))
    running.process.send_signal(signal.SIGTERM)
    assert running.ended()[0] == 0


SAVE = """
import sys
from pathlib import Path
import jax, jax.numpy as jnp, tiny
from flax import nnx
from omnijax import checkpoint, config, sharding
from omnijax.model.transformer import Omni
from omnijax.tokenizers import load
run = tiny.run(tokenizers=config.Tokenizers(codebooks=3), mesh=config.Mesh(data=1, fsdp=1))
tokenizers = load.load_all(run.tokenizers)
vocab = load.vocab_of(tokenizers, run.tokenizers)
prints = {k: getattr(tokenizers, k).fingerprint for k in ("text", "image", "audio")}
identity = checkpoint.Identity(run=run, vocab=vocab, tokenizers=prints, data="none")
with jax.set_mesh(sharding.make_mesh(run.mesh)):
  model = Omni(run.model, vocab, sharding.RULES, rngs=nnx.Rngs(jax.random.key(0)))
  writer = checkpoint.Checkpoints(Path(sys.argv[1]) / "checkpoints", identity, keep=1)
  writer.save(1, nnx.state(model), {"step": jnp.int32(1)}, [])
  writer.close()
"""
