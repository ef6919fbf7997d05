"""Speech by OpenAI's own client: every format, as it is made, and its errors."""

import base64
import http.client
import io
import json

import numpy as np
import pytest
import soundfile
from fake_service import FakeService, tone
from serving import ask, client_of, error_of, serving, until

PATH = "/v1/audio/speech"


def say(client, text="one two three", **more):
  return client.audio.speech.create(model="fake", input=text, voice="alloy", **more)


@pytest.mark.parametrize("kind, media", [
  (None, "audio/mpeg"), ("mp3", "audio/mpeg"), ("opus", "audio/ogg"), ("flac", "audio/flac"),
  ("wav", "audio/wav")])
def test_every_format(kind, media, client):
  answer = say(client, **({} if kind is None else {"response_format": kind}))
  assert answer.response.headers["content-type"] == media
  wave, rate = soundfile.read(io.BytesIO(answer.content))
  assert rate in (24_000, 48_000) and abs(len(wave) / rate - 0.24) < 0.08
  peak = np.abs(np.fft.rfft(wave[: round(0.08 * rate)])).argmax() / 0.08
  assert abs(peak - 440) < 15


def test_pcm_is_bare_samples_of_24_khz(client):
  wave = np.frombuffer(say(client, response_format="pcm").content, "<i2") / 32767
  assert len(wave) == round(0.24 * 24_000)
  one = wave[200 : round(0.08 * 24_000) - 200]
  assert np.allclose(one, tone(0.08, 24_000)[200:-200], atol=0.01)


def test_texts_before_it(client, service):
  say(client, "six", instructions="calmly", extra_body={"language": "fr", "seed": 3})
  call = service.calls[-1]
  assert [p["text"] for p in call["parts"]] == ["fr", "calmly", "six"]
  assert {p["role"] for p in call["parts"]} == {"user"}
  assert (call["to"], call["seed"]) == ("audio", 3)


@pytest.mark.parametrize("kind", ["pcm", "wav"])
def test_it_comes_while_it_is_made(kind):
  service = FakeService(pace_s=0.1)
  with serving(service) as server, client_of(server) as client:
    with client.audio.speech.with_streaming_response.create(
        model="fake", input="one two three four five six", voice="a",
        response_format=kind) as answer:
      pieces = answer.iter_bytes()
      assert next(pieces) and not service.ends, "nothing may wait for the end"
      until(lambda: service.ends)
      assert sum(map(len, pieces)) > 15_000


def test_events(client, server):
  body = dict(model="fake", input="one two", voice="a", response_format="pcm", stream_format="sse")
  _, headers, content = ask(server, "POST", PATH, body)
  assert headers["content-type"].startswith("text/event-stream")
  events = [json.loads(line.removeprefix(b"data: ")) for line in content.split(b"\n\n") if line]
  assert [e["type"] for e in events][-1] == "speech.audio.done"
  data = b"".join(base64.b64decode(e["audio"]) for e in events[:-1])
  assert data == say(client, "one two", response_format="pcm").content
  assert events[-1]["usage"] == dict(input_tokens=4, output_tokens=4, total_tokens=8)


@pytest.mark.parametrize("more, status, code, param", [
  ({"input": ""}, 400, "invalid_value", "input"),
  ({"input": "a" * 40_000}, 400, "invalid_value", "input"),
  ({"input": "a " * 600}, 400, "context_length_exceeded", "input"),
  ({"speed": 2}, 400, "unsupported_value", "speed"),
  ({"response_format": "aac"}, 400, "invalid_value", "response_format"),
  ({"model": "tts-1"}, 404, "model_not_found", "model"),
  ({"pitch": 2}, 400, "unknown_parameter", "pitch"),
  # Also where the answer is a stream: it has not begun.
  ({"input": "fail"}, 500, "internal_error", None),
])
def test_what_can_not_be_said(more, status, code, param, server):
  body = {"model": "fake", "input": "a", "voice": "a", "response_format": "pcm", **more}
  got, error = error_of(server, PATH, body)
  assert (got, error["code"], error["param"]) == (status, code, param), error


def test_a_broken_stream_does_not_look_whole(server, client):
  with pytest.raises(http.client.IncompleteRead):
    ask(server, "POST", PATH, dict(model="fake", input="break", response_format="wav"))
  # What is sent whole was not begun.
  assert error_of(server, PATH, dict(model="fake", input="break"))[0] == 500
  body = dict(model="fake", input="break", response_format="pcm", stream_format="sse")
  events = ask(server, "POST", PATH, body)[2]
  assert b'"code":"internal_error"' in events and b"done" not in events
