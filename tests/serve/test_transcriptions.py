"""Transcriptions by OpenAI's own client."""

import io

import numpy as np
import pytest
from fake_service import tone
from media_of import sound_file
from serving import error_of

PATH = "/v1/audio/transcriptions"


def hear(client, content=None, name="a.wav", **more):
  content = sound_file() if content is None else content
  return client.audio.transcriptions.create(model="fake", file=(name, content), **more)


def test_words_of_a_sound(client, service):
  answer = hear(client, temperature=0)
  assert answer.text == "sound 0.50 s"
  assert answer.usage.to_dict() == dict(type="tokens", input_tokens=9, output_tokens=3,
                                        total_tokens=12)
  call = service.calls[-1]
  assert call["to"] == "text" and call["sampling"].text.temperature == 0
  part, = call["parts"]
  assert part["role"] == "user" and np.allclose(part["audio"], tone(0.5), atol=1e-3)


@pytest.mark.parametrize("kind", ["flac", "mp3", "ogg"])
def test_every_kind_of_file(kind, client):
  assert hear(client, sound_file(kind=kind), f"a.{kind}").text.startswith("sound 0.5")


def test_texts_before_it(client, service):
  assert hear(client, language="fr", prompt="digits").text == "fr digits sound 0.50 s"
  assert [p.get("text") for p in service.calls[-1]["parts"]] == ["fr", "digits", None]


def test_formats(client):
  assert hear(client, response_format="text") == "sound 0.50 s\n"
  answer = hear(client, response_format="verbose_json", language="fr")
  assert (answer.text, answer.language, answer.duration) == ("fr sound 0.50 s", "fr", 0.5)
  assert answer.usage.seconds == 0.5


def test_a_stream_says_the_same(client):
  events = list(hear(client, stream=True))
  assert [e.type for e in events] == ["transcript.text.delta"] * 3 + ["transcript.text.done"]
  assert "".join(e.delta for e in events[:-1]) == events[-1].text == "sound 0.50 s"
  assert events[-1].usage.total_tokens == 12


def test_a_large_file_is_read_whole(client):
  # Larger than what stays in memory, and than a field that is no file may be.
  noise = np.random.default_rng(0).uniform(-0.5, 0.5, 48_000 * 12).astype(np.float32)
  content = sound_file(kind="wav", wave=noise, rate=48_000, subtype="FLOAT")
  assert len(content) > 2_000_000
  assert hear(client, content).text == "sound 12.00 s"


def form(fields, content=b"", name="a.wav"):
  with io.BytesIO() as body:
    for key, value in fields.items():
      body.write(f'--x\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n'.encode())
    if name:
      body.write(b'--x\r\nContent-Disposition: form-data; name="file"; filename="' + name.encode()
                 + b'"\r\n\r\n' + content + b"\r\n")
    return body.getvalue() + b"--x--\r\n"


@pytest.mark.parametrize("fields, content, status, code, param", [
  ({}, sound_file(), 400, "missing_required_parameter", "model"),
  ({"model": "fake"}, b"", 400, "invalid_audio", "file"),
  ({"model": "fake"}, b"abc", 400, "invalid_audio", "file"),
  ({"model": "fake"}, sound_file()[:40], 400, "invalid_audio", "file"),
  ({"model": "whisper-1"}, sound_file(), 404, "model_not_found", "model"),
  ({"model": "fake", "response_format": "srt"}, sound_file(), 400, "invalid_value",
   "response_format"),
  ({"model": "fake", "temperature": "hot"}, sound_file(), 400, "invalid_value", "temperature"),
  ({"model": "fake", "timestamp_granularities[]": "word"}, sound_file(), 400,
   "unsupported_parameter", "timestamp_granularities"),
  ({"model": "fake", "prompt": "a " * 600}, sound_file(), 400, "context_length_exceeded", "file"),
])
def test_what_can_not_be_heard(fields, content, status, code, param, server):
  headers = {"Content-Type": "multipart/form-data; boundary=x"}
  got, error = error_of(server, PATH, form(fields, content), headers)
  assert (got, error["code"], error["param"]) == (status, code, param), error
  assert "object at" not in error["message"]


def test_bodies_that_are_no_form(server):
  head = "multipart/form-data"
  for body, kind in ((b"x", head), (b"x", f"{head}; boundary=x"), (b"{}", "application/json"),
                     (form({"model": "fake"}, b"abc")[:-20], f"{head}; boundary=x"), (b"", "")):
    assert error_of(server, PATH, body, {"Content-Type": kind})[0] == 400
  no_file = form({"model": "fake", "file": "abc"}, name="")
  assert error_of(server, PATH, no_file, {"Content-Type": f"{head}; boundary=x"})[0] == 400
