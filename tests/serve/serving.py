"""Servers on sockets, in threads of this process, and how they are asked."""

import contextlib
import http.client
import json
import threading
import time

import openai

from omnijax.serve import app as app_lib
from omnijax.serve import server as server_lib
from omnijax.serve.settings import Settings


@contextlib.contextmanager
def serving(service, settings=Settings()):
  """A server in a thread; yields it, with its `url`."""
  ready = threading.Event()
  server = server_lib.Server(app_lib.create(service, settings), ready.set)
  bound = server_lib.bind("127.0.0.1", 0, settings.stall_s)
  server.url = f"http://127.0.0.1:{bound.getsockname()[1]}"
  thread = threading.Thread(target=server.run, args=([bound],), daemon=True)
  thread.start()
  try:
    assert ready.wait(10)
    yield server
  finally:
    server.should_exit = True
    thread.join(30)
    assert not thread.is_alive()


@contextlib.contextmanager
def client_of(server, key="none", timeout=10):
  """OpenAI's own client, without second tries."""
  with openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0,
                     timeout=timeout) as client:
    yield client


def ask(server, method, path, body=None, headers=None):
  """One request without any client's help: status, headers and the JSON or bytes that came."""
  connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=10)
  if isinstance(body, dict | list):
    body, headers = json.dumps(body), {"Content-Type": "application/json", **(headers or {})}
  try:
    connection.request(method, path, body, headers or {})
    answer = connection.getresponse()
    content = answer.read()
  finally:
    connection.close()
  found = dict(answer.getheaders())
  if found.get("content-type") == "application/json":
    content = json.loads(content)
  return answer.status, found, content


def error_of(server, path, body=None, headers=None, method="POST"):
  """The error that a request ends with, in the shape that all must have, and its status."""
  status, found, content = ask(server, method, path, body, headers)
  assert status >= 400, content
  assert found["x-request-id"].startswith("req_")
  assert set(content) == {"error"}
  error = content["error"]
  assert set(error) == {"message", "type", "param", "code"}
  assert isinstance(error["message"], str) and error["message"].endswith(".")
  return status, error


def until(true, seconds=5.0):
  """Waits until something has become true."""
  end = time.monotonic() + seconds
  while not true():
    assert time.monotonic() < end, "it never became true"
    time.sleep(0.005)
