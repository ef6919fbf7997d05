"""A server on a socket under clients that ask too much, leave, or do not read."""

import http.client
import json
import socket
import threading
import time

import openai
import pytest
from fake_service import FakeService
from media_of import sound_file
from serving import ask, client_of, error_of, serving, until

from omnijax.serve.settings import Settings

CHAT, SPEECH = "/v1/chat/completions", "/v1/audio/speech"


def asked(text, **more):
  return {"model": "fake", "messages": [{"role": "user", "content": text}], **more}


def connected(server, path, body, length=None):
  """A request sent by hand, its answer not read."""
  data = body if isinstance(body, bytes) else json.dumps(body).encode()
  connection = socket.create_connection(server.url.removeprefix("http://").split(":"), timeout=10)
  connection.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                     f"Content-Length: {length or len(data)}\r\n\r\n".encode() + data)
  return connection


def counted(server, name):
  lines = ask(server, "GET", "/metrics")[2].decode().splitlines()
  return {line.rpartition(" ")[0].removeprefix(name): float(line.rpartition(" ")[2])
          for line in lines if line.startswith(name)}


def test_keys_are_needed_under_v1_only():
  with serving(FakeService(), Settings(api_keys=("secret", "other"))) as server:
    for method, path in (("GET", "/v1/models"), ("POST", CHAT), ("POST", "/v1/nothing")):
      status, error = error_of(server, path, method=method)
      assert (status, error["code"]) == (401, "invalid_api_key")
    assert ask(server, "GET", "/health")[0] == ask(server, "GET", "/metrics")[0] == 200
    with client_of(server, "secret") as client:
      assert client.models.list().data[0].id == "fake"
    with client_of(server, "Secret") as client, pytest.raises(openai.AuthenticationError):
      client.models.list()


def test_a_rate_is_held():
  with serving(FakeService(), Settings(rate=2)) as server:
    assert [ask(server, "GET", "/v1/models")[0] for _ in range(3)] == [200, 200, 429]
    status, headers, content = ask(server, "GET", "/v1/models")
    assert 1 <= int(headers["retry-after"]) <= 30
    assert content["error"]["code"] == "rate_limit_exceeded"
    assert ask(server, "GET", "/health")[0] == 200


@pytest.fixture(scope="module")
def small():
  limits = Settings(max_upload_mb=0.2, max_audio_s=1.0, stall_s=0.5, max_buffer_mb=4)
  with serving(FakeService(slots=2, queue=1), limits) as server:
    server.service = server._context.service
    yield server


def test_a_body_may_not_be_too_large(small):
  status, error = error_of(small, CHAT, asked("a" * 300_000))
  assert (status, error["code"]) == (413, "body_too_large") and "0.2 MB" in error["message"]
  connection = connected(small, CHAT, b"{", length=10**12)  # by its header, before it comes
  with connection:
    assert connection.recv(100).startswith(b"HTTP/1.1 413")
  with client_of(small) as client, pytest.raises(openai.APIStatusError) as caught:
    client.audio.transcriptions.create(model="fake", file=("a.wav", sound_file(10)))
  assert caught.value.status_code == 413


def test_a_body_without_a_length_is_measured_while_it_comes(small):
  connection = http.client.HTTPConnection(small.url.removeprefix("http://"), timeout=10)
  sent = 0

  def pieces():
    nonlocal sent
    for _ in range(1000):
      yield b" " * 10_000
      sent += 10_000

  connection.request("POST", CHAT, pieces(), {"Content-Type": "application/json"},
                     encode_chunked=True)
  answer = connection.getresponse()
  assert answer.status == 413 and json.load(answer)["error"]["code"] == "body_too_large"
  connection.close()
  assert ask(small, "POST", CHAT, asked("b"))[0] == 200


def test_a_body_that_does_not_come(small):
  with connected(small, CHAT, b'{"model"', length=100) as connection:
    assert connection.recv(100).startswith(b"HTTP/1.1 408")


def test_a_sound_may_not_be_too_long(small):
  with client_of(small) as client, pytest.raises(openai.BadRequestError) as caught:
    client.audio.transcriptions.create(model="fake", file=("a.wav", sound_file(1.1, 8000)))
  assert caught.value.code == "audio_too_long" and caught.value.param == "file"


def test_a_full_queue_says_when_to_come_again(small):
  connections = [connected(small, CHAT, asked("wait")) for _ in range(3)]
  active = small.service.active
  until(lambda: (active()["write"], active()["queued"]) == (2, 1))
  status, headers, content = ask(small, "POST", CHAT, asked("a"))
  assert (status, content["error"]["code"]) == (429, "queue_full")
  assert content["error"]["type"] == "requests" and headers["retry-after"] == "2"
  # And half of several answers is not kept running.
  assert ask(small, "POST", CHAT, asked("wait", n=4))[0] == 429
  for connection in connections:
    connection.close()
  until(lambda: active()["write"] == active()["queued"] == 0)


@pytest.mark.parametrize("path, body", [
  (CHAT, asked("wait")), (CHAT, asked("wait", stream=True)),
  (CHAT, asked("wait", n=2)), ("/v1/images/generations", {"prompt": "wait"}),
  (SPEECH, {"model": "fake", "input": "wait"}),
  (SPEECH, {"model": "fake", "input": "flood", "response_format": "pcm"})])
def test_who_leaves_frees_the_slot(path, body, small):
  before = counted(small, "omnijax_requests_total")
  connection = connected(small, path, body)
  until(lambda: small.service.active()["write"])
  connection.close()
  until(lambda: not small.service.active()["write"])
  assert small.service.ends[-1].reason == "cancelled"
  until(lambda: not small._context.access.inside)
  # Of a stream the head may have been sent, or not yet.
  streams = "flood" in body.values() or body.get("stream", False)
  names = [f'{{endpoint="{path}",status="{status}"}}' for status in ("499", "200")[: 1 + streams]]
  counts = lambda: sum(counted(small, "omnijax_requests_total").get(name, 0) - before.get(name, 0)
                       for name in names)
  until(lambda: counts() == 1)


def test_who_does_not_read_is_dropped_and_harms_nobody(small):
  with connected(small, SPEECH, {"model": "fake", "input": "flood", "response_format": "pcm"}):
    until(lambda: small.service.active()["write"])
    seconds = []
    while small.service.active()["write"]:
      start = time.monotonic()
      assert ask(small, "POST", CHAT, asked("a b"))[0] == 200
      seconds.append(time.monotonic() - start)
      assert len(seconds) < 1000
    assert small.service.ends[-2].reason == "cancelled" or small.service.ends[-1].reason == (
      "cancelled")
  assert max(seconds) < 2
  until(lambda: not small._context.access.inside)


def test_who_reads_nothing_for_long_is_dropped():
  service = FakeService(pace_s=0.02)  # slow enough that the buffer does not overflow first
  with serving(service, Settings(stall_s=0.5, max_buffer_mb=1000)) as server:
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    host, port = server.url.removeprefix("http://").split(":")
    connection.connect((host, int(port)))
    body = json.dumps({"model": "fake", "input": "flood", "response_format": "pcm"}).encode()
    connection.sendall(f"POST {SPEECH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                       f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
    until(lambda: service.active()["write"])
    until(lambda: not service.active()["write"], seconds=10)
    assert service.ends[-1].reason == "cancelled"
    # Linux ends the connection itself: nothing is kept for who doesn't take it.
    until(lambda: not server.server_state.connections, seconds=10)
    connection.close()


def test_several_clients_get_their_own(small):
  found = {}

  def one(i):
    with client_of(small) as client:
      words = " ".join(f"w{i}x{j}" for j in range(20))
      while True:
        try:
          stream = client.chat.completions.create(stream=True, **asked(words))
        except openai.RateLimitError:
          time.sleep(0.01)
          continue
        found[i] = "".join(c.choices[0].delta.content or "" for c in stream) == words
        return

  threads = [threading.Thread(target=one, args=(i,)) for i in range(8)]
  for t in threads:
    t.start()
  for t in threads:
    t.join()
  assert found == dict.fromkeys(range(8), True)


def test_what_is_counted(small):
  before = counted(small, "omnijax_first_seconds_count")
  positions = counted(small, "omnijax_positions_total")
  ask(small, "POST", SPEECH, {"model": "fake", "input": "one two"})
  error_of(small, "/nowhere", method="GET")
  name = f'{{endpoint="{SPEECH}",kind="text"}}'
  assert counted(small, "omnijax_first_seconds_count")[name] == before.get(name, 0) + 1
  name = f'{{endpoint="{SPEECH}",of="answer"}}'
  assert counted(small, "omnijax_positions_total")[name] == positions.get(name, 0) + 4
  assert counted(small, "omnijax_requests_total")['{endpoint="other",status="404"}'] >= 1
  assert counted(small, "omnijax_service_slots") == {"": 2.0}


def test_a_model_that_has_failed_is_told():
  service = FakeService()
  with serving(service) as server:
    assert ask(server, "GET", "/health")[2]["status"] == "ok"
    service.alive = False
    status, _, content = ask(server, "GET", "/health")
    assert (status, content["status"]) == (503, "failed")


def test_addresses_and_methods(small):
  for method, path, status, code in (
      ("GET", "/v1/nothing", 404, "unknown_url"), ("GET", "/v1/models/", 404, "unknown_url"),
      ("GET", "/v1/models/gpt-4o", 404, "model_not_found"),
      ("GET", CHAT, 405, "method_not_allowed"), ("PUT", "/v1/models", 405, "method_not_allowed")):
    got, error = error_of(small, path, method=method)
    assert (got, error["code"]) == (status, code)
  with client_of(small) as client:
    assert client.models.retrieve("fake").created == 1_700_000_000
    with pytest.raises(openai.NotFoundError):
      client.models.retrieve("other")


def test_a_model_without_sound():
  class Silent(FakeService):
    modalities = frozenset({"text", "image"})

  with serving(Silent()) as server:
    for path, body in ((SPEECH, {"model": "fake", "input": "a"}),
                       (CHAT, asked("a", modalities=["audio"], audio={"format": "wav"}))):
      status, error = error_of(server, path, body)
      assert (status, error["code"]) == (400, "unsupported_modality")
      assert "image, text" in error["message"]
    sent = {"type": "input_audio", "input_audio": {"data": "YWJj", "format": "wav"}}
    assert error_of(server, CHAT, asked([sent]))[1]["code"] == "unsupported_modality"


def test_the_openapi_document(small):
  document = ask(small, "GET", "/openapi.json")[2]
  assert set(document["paths"]) == {
    CHAT, SPEECH, "/v1/images/generations", "/v1/audio/transcriptions", "/v1/models",
    "/v1/models/{name}", "/health", "/metrics"}
  for path, methods in document["paths"].items():
    for about in methods.values():
      assert about["summary"] and about["description"], path
      if path.startswith("/v1"):
        assert {"200", "4XX", "5XX"} <= set(about["responses"]) and "422" not in about["responses"]
  fields = document["components"]["schemas"]["Chat"]
  assert {"messages", "stream", "modalities"} <= set(fields["properties"])
  assert fields["required"] == ["model", "messages"]
