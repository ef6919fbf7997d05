"""Chats by OpenAI's own client: every kind of part, whole and streamed answers, speech."""

import base64
import io

import numpy as np
import openai
import pytest
import soundfile
from fake_service import RATE, FakeService, tone
from media_of import encoded, picture, sound
from serving import client_of, error_of, serving

from omnijax.generate.sample import Sampling, Setting

SPOKEN = {"modalities": ["text", "audio"], "audio": {"voice": "alloy", "format": "wav"}}


def user(*content):
  return {"role": "user", "content": content[0] if isinstance(content[0], str) else list(content)}


def text(content):
  return {"type": "text", "text": content}


def chat(client, *messages, **more):
  return client.chat.completions.create(model="fake", messages=list(messages), **more)


def test_text_is_answered(client, service):
  answer = chat(client, user("a red bus"), seed=5, temperature=0, max_tokens=50)
  choice, = answer.choices
  assert (choice.message.content, choice.message.role) == ("a red bus", "assistant")
  assert choice.finish_reason == "stop" and choice.message.audio is None
  assert answer.object == "chat.completion" and answer.model == "fake"
  assert answer.usage.to_dict() == dict(prompt_tokens=5, completion_tokens=3, total_tokens=8)
  call = service.calls[-1]
  assert call["parts"] == [{"role": "user", "text": "a red bus"}]
  assert (call["to"], call["seed"], call["max_new"]) == ("text", 5, 50)
  assert call["sampling"].text.temperature == 0 and call["sampling"].text.top_p == 0.95
  assert call["sampling"].acoustic == Sampling().acoustic


def test_every_kind_of_part_reaches_the_model(client, service):
  grey = chat(client, user(text("what is it?"), picture(w=20, grey=100), sound(0.5)))
  assert grey.choices[0].message.content == "what is it? picture 16x8 of 100 sound 0.50 s"
  parts = service.calls[-1]["parts"]
  assert parts[1]["image"].dtype == np.uint8 and parts[1]["image"].shape == (8, 16, 3)
  wave = parts[2]["audio"]
  assert wave.dtype == np.float32 and np.allclose(wave, tone(0.5), atol=1e-3)


@pytest.mark.parametrize("kind, rate, more", [
  ("wav", 44_100, {}), ("flac", 8000, {}), ("mp3", 24_000, {}), ("ogg", 16_000, {}),
  ("opus", 48_000, {"subtype": "OPUS"})])
def test_sounds_of_any_kind_and_rate(kind, rate, more, client, service):
  chat(client, user(sound(0.5, rate, kind, **more)))
  wave = service.calls[-1]["parts"][0]["audio"]
  assert abs(len(wave) / RATE - 0.5) < 0.1  # MP3 has padding
  peak = np.abs(np.fft.rfft(wave)).argmax() * RATE / len(wave)
  assert abs(peak - 440) < 5, "it must be resampled"


def test_pcm16_is_of_24_khz(client, service):
  data = np.round(tone(0.5, 24_000) * 32767).astype("<i2").tobytes()
  chat(client, user({"type": "input_audio",
                     "input_audio": {"data": encoded(data), "format": "pcm16"}}))
  assert np.allclose(service.calls[-1]["parts"][0]["audio"][100:-100], tone(0.5)[100:-100],
                     atol=1e-2)


@pytest.mark.parametrize("kind, more", [("JPEG", {}), ("WEBP", {}), ("GIF", {})])
def test_pictures_of_any_kind(kind, more, client):
  answer = chat(client, user(picture(kind=kind, **more)))
  assert answer.choices[0].message.content.startswith("picture 16x8 of 2")


def test_large_pictures_are_scaled_down(client):
  # 512 positions, an eighth of them as a square of 8 x 8 codes of 8 pixels.
  assert chat(client, user(picture(640, 320))).choices[0].message.content == (
    "picture 64x32 of 200")


def test_roles_and_what_clients_send_unasked(client, service):
  chat(client, {"role": "system", "content": "fr"}, user("un"),
       {"role": "assistant", "content": "deux", "refusal": None, "annotations": [],
        "function_call": None, "tool_calls": None, "audio": None},
       {"role": "developer", "content": [text("en"), text("")]},
       {"role": "user", "content": "trois", "name": "me"},
       frequency_penalty=0, presence_penalty=0.0, logit_bias={}, logprobs=False, user="me",
       response_format={"type": "text"}, tools=[], tool_choice="none", store=False, metadata={},
       parallel_tool_calls=True, service_tier="auto", reasoning_effort="low", top_p=1)
  assert [(p["role"], p["text"]) for p in service.calls[-1]["parts"]] == [
    ("user", "fr"), ("user", "un"), ("assistant", "deux"), ("user", "en"), ("user", "trois")]


def test_several_answers_are_drawn_apart(client, service):
  answer = chat(client, user("one two"), n=3, seed=1)
  assert [c.index for c in answer.choices] == [0, 1, 2]
  assert len({c["seed"] for c in service.calls[-3:]}) == 3 and service.calls[-3]["seed"] == 1
  assert answer.usage.completion_tokens == 6 and answer.usage.prompt_tokens == 4
  seeds = [chat(client, user("a")) and service.calls[-1]["seed"] for _ in range(3)]
  assert len(set(seeds)) > 1, "without a seed each request is drawn anew"


def test_length_and_stops_end_an_answer(client, service):
  cut = chat(client, user("one two three four"), max_completion_tokens=2).choices[0]
  assert (cut.message.content, cut.finish_reason) == ("one two", "length")
  cut = chat(client, user("one two three four"), stop=["our", "o t"]).choices[0]
  assert (cut.message.content, cut.finish_reason) == ("one tw", "stop")


def test_a_stop_ends_the_model_s_work():
  service = FakeService(pace_s=0.02)
  with serving(service) as server, client_of(server) as client:
    assert chat(client, user("one two" + " x" * 400), stop="two").choices[0].message.content == (
      "one ")
    assert service.ends[-1].reason == "cancelled"


def test_how_text_is_drawn(client, service):
  for given, wanted in (({}, None), ({"top_p": 0}, Setting(temperature=0.7, top_p=1e-6)),
                        ({"top_p": 0.5, "extra_body": {"top_k": 3}},
                         Setting(temperature=0.7, top_p=0.5, top_k=3))):
    chat(client, user("a"), **given)
    drawn = service.calls[-1]["sampling"]
    assert (drawn and drawn.text) == wanted


def pieces(client, *messages, **more):
  return list(chat(client, *messages, stream=True, **more))


def test_a_stream_says_the_same(client):
  found = pieces(client, user("one two three four"), stop="three",
                 stream_options={"include_usage": True})
  assert "".join(c.choices[0].delta.content or "" for c in found[:-1]) == "one two "
  assert found[0].choices[0].delta.role == "assistant"
  assert [c.choices[0].finish_reason for c in found[:-1] if c.choices[0].finish_reason] == ["stop"]
  assert len({(c.id, c.created, c.object) for c in found}) == 1
  assert found[0].object == "chat.completion.chunk" and found[0].usage is None
  assert found[-1].choices == [] and found[-1].usage.prompt_tokens == 6
  assert not pieces(client, user("a"))[-1].usage


def test_a_stream_of_several_answers(client):
  found = pieces(client, user("one two"), n=2)
  for i in range(2):
    mine = [c.choices[0] for c in found if c.choices[0].index == i]
    assert "".join(c.delta.content or "" for c in mine) == "one two"
    assert mine[-1].finish_reason == "stop"


@pytest.mark.parametrize("kind", ["wav", "mp3", "flac", "opus", "pcm16"])
def test_speech(kind, client, service):
  more = {**SPOKEN, "audio": {"voice": {"id": "x"}, "format": kind}}
  message = chat(client, user("one two"), **more).choices[0].message
  assert service.calls[-1]["to"] == "audio"
  assert message.content is None and message.audio.transcript == "one two"
  data = base64.b64decode(message.audio.data)
  if kind == "pcm16":
    wave, rate = np.frombuffer(data, "<i2") / 32768, 24_000
  else:
    wave, rate = soundfile.read(io.BytesIO(data))
  assert rate in (24_000, 48_000) and abs(len(wave) / rate - 0.16) < 0.08
  assert 0.4 < np.abs(wave).max() < 0.7


def test_speech_comes_as_it_is_made(client):
  found = [c.choices[0].delta for c in pieces(
    client, user("one two three"), **{**SPOKEN, "audio": {"voice": "a", "format": "pcm16"}})]
  heard = [d.audio for d in found if d.audio]
  assert "".join(a.transcript or "" for a in heard) == "one two three"
  data = b"".join(base64.b64decode(a.data) for a in heard if a.data)
  assert len(data) == round(0.24 * 24_000) * 2
  whole = chat(client, user("one two three"), **{**SPOKEN, "audio": {"voice": "a",
                                                                   "format": "pcm16"}})
  assert base64.b64decode(whole.choices[0].message.audio.data) == data
  assert sum(bool(a.data) for a in heard) >= 3
  assert heard[-1].expires_at and not heard[-1].data and len({a.id for a in heard}) == 1


def test_what_was_said_can_be_named(client, service):
  spoken = chat(client, user("one two"), **SPOKEN).choices[0].message
  found = pieces(client, user("three"), **{**SPOKEN, "audio": {"voice": "a", "format": "pcm16"}})
  streamed = next(c.choices[0].delta.audio.id for c in found if c.choices[0].delta.audio)
  chat(client, user("one two"), spoken.model_dump(), user("three"),
       {"role": "assistant", "audio": {"id": streamed}}, user("four"))
  _, first, _, second, _ = service.calls[-1]["parts"]
  assert first["role"] == "assistant" and first["transcript"] == "one two"
  assert np.array_equal(first["audio"], np.tile(tone(0.08), 2))
  assert second["transcript"] == "three" and len(second["audio"]) == 1280


PATH = "/v1/chat/completions"


def asked(*content, **more):
  return {"model": "fake", "messages": [user(*content)], **more}


@pytest.mark.parametrize("body, status, code, param", [
  ({}, 400, "missing_required_parameter", "model"),
  ([], 400, "invalid_value", None),
  ({"model": "fake", "messages": []}, 400, "invalid_value", "messages"),
  ({"model": "fake", "messages": [{"role": "tool", "content": "x"}]}, 400, "invalid_value",
   "messages[0].role"),
  (asked(5), 400, "invalid_value", "messages[0].content[0]"),
  (asked(""), 400, "invalid_value", "messages"),
  ({"model": "fake", "messages": [{"role": "assistant", "content": "x"}]}, 400, "invalid_value",
   "messages"),
  (asked({"type": "video"}), 400, "invalid_value", "messages[0].content[0]"),
  (asked({"type": "text"}), 400, "missing_required_parameter", "messages[0].content[0].text"),
  (asked({"type": "text", "text": 5}), 400, "invalid_value", "messages[0].content[0].text"),
  (asked({"type": "image_url", "image_url": {}}), 400, "missing_required_parameter",
   "messages[0].content[0].image_url.url"),
  (asked({"type": "image_url", "image_url": {"url": "https://a.org/b.png"}}), 400, "invalid_url",
   "messages[0].content[0].image_url.url"),
  (asked({"type": "image_url", "image_url": {"url": "data:image/png;base64,@@"}}), 400,
   "invalid_base64", "messages[0].content[0].image_url.url"),
  (asked({"type": "image_url", "image_url": {"url": "data:image/png,xx"}}), 400, "invalid_url",
   "messages[0].content[0].image_url.url"),
  (asked({"type": "image_url", "image_url": {"url": "data:image/png;base64,YWJj"}}), 400,
   "invalid_image", "messages[0].content[0].image_url.url"),
  (asked({"type": "input_audio", "input_audio": {"data": "YWJj", "format": "wav"}}), 400,
   "invalid_audio", "messages[0].content[0].input_audio.data"),
  (asked({"type": "input_audio", "input_audio": {"data": "YQ=b", "format": "wav"}}), 400,
   "invalid_base64", "messages[0].content[0].input_audio.data"),
  (asked({"type": "input_audio", "input_audio": {"data": "YWJj", "format": "midi"}}), 400,
   "invalid_value", "messages[0].content[0].input_audio.format"),
  (asked(*[picture()] * 65), 400, "invalid_value", "messages"),
  ({"model": "fake", "messages": [user("a"), {"role": "assistant", "tool_calls": [{"id": "x"}]}]},
   400, "unsupported_parameter", "messages[1].tool_calls"),
  ({"model": "fake", "messages": [user("a"), {"role": "assistant", "audio": {"id": "audio_x"}}]},
   400, "audio_not_found", "messages[1].audio.id"),
  ({"model": "fake", "messages": [{"role": "user", "audio": {"id": "audio_x"}}]}, 400,
   "invalid_value", "messages[0].audio.id"),
  (asked("a", model="gpt-4o"), 404, "model_not_found", "model"),
  (asked("a", speed=2), 400, "unknown_parameter", "speed"),
  (asked("a", n=0), 400, "invalid_value", "n"),
  (asked("a", temperature=3), 400, "invalid_value", "temperature"),
  (asked("a", temperature="warm"), 400, "invalid_value", "temperature"),
  (asked("a", stop=[""]), 400, "invalid_value", "stop"),
  (asked("a", stop=list("abcde")), 400, "invalid_value", "stop"),
  (asked("a", modalities=["text", "image"]), 400, "invalid_value", "modalities[1]"),
  (asked("a", modalities=["text", "audio"]), 400, "missing_required_parameter", "audio"),
  (asked("a", **SPOKEN, stop="x"), 400, "unsupported_parameter", "stop"),
  (asked("a", **SPOKEN, stream=True), 400, "unsupported_value", "audio.format"),
  (asked("a", tools=[{"type": "function"}]), 400, "unsupported_parameter", "tools"),
  (asked("a", response_format={"type": "json_object"}), 400, "unsupported_parameter",
   "response_format"),
  (asked("a", logprobs=True), 400, "unsupported_parameter", "logprobs"),
  (asked("a", presence_penalty=0.5), 400, "unsupported_parameter", "presence_penalty"),
  (asked("a " * 600), 400, "context_length_exceeded", "messages"),
  (asked("bug"), 500, "internal_error", None),
  (asked("fail"), 500, "internal_error", None),
])
def test_what_can_not_be_answered(body, status, code, param, server):
  got, error = error_of(server, PATH, body)
  assert (got, error["code"], error["param"]) == (status, code, param), error
  assert error["type"] == ("server_error" if status == 500 else "invalid_request_error")
  assert len(error["message"]) < 500 and "secret" not in error["message"]


def test_a_stream_that_fails_says_so(client, server):
  with pytest.raises(openai.APIError, match="failed to answer") as caught:
    pieces(client, user("fail"))
  assert caught.value.code == "internal_error"
  # What can be told before the stream begins has a status of its own.
  assert error_of(server, PATH, asked("a " * 600, stream=True))[0] == 400


def test_bodies_that_are_no_json(server):
  post = {"Content-Type": "application/json"}
  assert error_of(server, PATH, b'{"a', post)[1]["code"] == "invalid_json"
  assert error_of(server, PATH, b"\xff\xfe", post)[0] == 400
  assert error_of(server, PATH, b"a=b", {"Content-Type": "text/plain"})[1]["code"] == (
    "invalid_json")
  assert error_of(server, PATH, b"", post)[0] == 400
  assert error_of(server, PATH, b"[" * 100_000, post)[0] == 400
