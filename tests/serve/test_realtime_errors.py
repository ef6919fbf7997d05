"""Events that are malformed, or ask for what can't be: each is told, and the session goes on."""

import asyncio
import base64
import json

import pytest
import voices
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from voices import config, item, session, update

VAD_OFF = {"audio": {"input": {"turn_detection": None}}}
IMAGE = {"type": "message", "role": "user", "content": [{"type": "input_image"}]}


@pytest.fixture(scope="module")
def shared():
  """A server for tests that leave nothing behind."""
  with voices.serving(voices.Service()) as url:
    yield url


def image(url):
  return item({"type": "input_image", "image_url": url})


WRONG = {
  "not json": ("{", None, "invalid_json"),
  "no object": ("[]", None, "invalid_json"),
  "deep": ("[" * 100000, None, "invalid_json"),
  "surrogate": ('{"type": "\\ud800"}', None, "invalid_json"),
  "not a number": ('{"type": NaN}', None, "invalid_json"),
  "no type": ({}, "type", "missing_required_parameter"),
  "type of a type": ({"type": 3}, "type", "invalid_value"),
  "unknown": ({"type": "session.destroy"}, "type", "invalid_value"),
  "buffer of WebRTC": ({"type": "output_audio_buffer.clear"}, "type", "invalid_value"),
  "no session": ({"type": "session.update"}, "session", "missing_required_parameter"),
  "no kind of session": ({"type": "session.update", "session": {}}, "session.type",
                         "missing_required_parameter"),
  "misspelt": (config(instructoins="x"), "session.instructoins", "unknown_parameter"),
  "two modalities": (config(output_modalities=["text", "audio"]), "session.output_modalities",
                     "invalid_value"),
  "no modality": (config(output_modalities=["smell"]), "session.output_modalities[0]",
                  "invalid_value"),
  "tools": (config(tools=[{"type": "function", "name": "f"}]), "session.tools", "invalid_value"),
  "another model": (config(model="gpt-realtime"), "session.model", "invalid_value"),
  "speed": (config(audio={"output": {"speed": 1.5}}), "session.audio.output.speed",
            "invalid_value"),
  "voice": (config(audio={"output": {"voice": 3}}), "session.audio.output.voice",
            "invalid_value"),
  "format": (config(audio={"input": {"format": {"type": "audio/opus"}}}),
             "session.audio.input.format.type", "invalid_value"),
  "rate": (config(audio={"input": {"format": {"type": "audio/pcm", "rate": 16000}}}),
           "session.audio.input.format", "invalid_value"),
  "semantic": (config(audio={"input": {"turn_detection": {"type": "semantic_vad"}}}),
               "session.audio.input.turn_detection.type", "invalid_value"),
  "threshold": (config(audio={"input": {"turn_detection": {"type": "server_vad",
                                                           "threshold": 2}}}),
                "session.audio.input.turn_detection.threshold", "invalid_value"),
  "idle": (config(audio={"input": {"turn_detection": {"type": "server_vad",
                                                      "idle_timeout_ms": 5000}}}),
           "session.audio.input.turn_detection.idle_timeout_ms", "invalid_value"),
  "tokens": (config(max_output_tokens=0), "session.max_output_tokens", "invalid_value"),
  "no base64": ({"type": "input_audio_buffer.append", "audio": "?"}, "audio", "invalid_value"),
  "sound of a number": ({"type": "input_audio_buffer.append", "audio": 5}, "audio",
                        "invalid_value"),
  "half a sample": ({"type": "input_audio_buffer.append", "audio": "AAAA"}, "audio",
                    "invalid_value"),
  "function": ({"type": "conversation.item.create", "item": {
    "type": "function_call_output", "call_id": "x", "output": "y"}}, "item.type", "invalid_value"),
  "no content": (item(), "item.content", "invalid_value"),
  "a text without text": (item({"type": "input_text"}), "item.content[0].text",
                          "missing_required_parameter"),
  "the second": (item({"type": "input_text", "text": "a"}, {"type": "input_text", "text": 5}),
                 "item.content[1].text", "invalid_type"),
  "role": (item({"type": "output_text", "text": "a"}), "item.content[0].type", "invalid_value"),
  "speech of ours": (item({"type": "output_audio"}, role="assistant"), "item.content[0].type",
                     "invalid_value"),
  "fetch": (image("http://127.0.0.1/secret.png"), "item.content[0].image_url", "invalid_url"),
  "no picture": (image("data:image/png;base64," + base64.b64encode(b"PNG?").decode()),
                 "item.content[0].image_url", "invalid_image"),
  "no base64 in a picture": (image("data:image/png;base64,?"), "item.content[0].image_url",
                             "invalid_base64"),
  "a large picture": (image(voices.png(600, 600)), "item.content[0].image_url",
                      "image_too_large"),
  "index": ({"type": "conversation.item.truncate", "item_id": "x", "content_index": -1,
             "audio_end_ms": 0}, "content_index", "invalid_value"),
  "end": ({"type": "conversation.item.truncate", "item_id": "x", "content_index": 0,
           "audio_end_ms": 10**30}, "item_id", "item_not_found"),
  "float": ({"type": "conversation.item.truncate", "item_id": "x", "content_index": 0,
             "audio_end_ms": 1.5}, "audio_end_ms", "invalid_type"),
  "input": ({"type": "response.create", "response": {"conversation": "none", "input": [
    {"type": "item_reference", "id": "none"}]}}, "response.input[0].id", "item_not_found"),
  "content of an input": ({"type": "response.create", "response": {
    "conversation": "none", "input": [IMAGE]}}, "response.input[0].content[0].image_url",
    "missing_required_parameter"),
  "kind of an input": ({"type": "response.create", "response": {"input": [{"type": "x"}]}},
                       "response.input[0]", "invalid_value"),
  "metadata": ({"type": "response.create", "response": {"metadata": {"a" * 65: "b"}}},
               "response.metadata", "invalid_value"),
  "conversation": ({"type": "response.create", "response": {"conversation": "other"}},
                   "response.conversation", "invalid_value"),
  "cancel": ({"type": "response.cancel", "response_id": "resp_x"}, "response_id",
             "response_cancel_not_active"),
}


def test_what_is_wrong_is_told_and_the_session_goes_on():
  async def main(url):
    async with session(url) as (connection, ear):
      for name, (event, param, code) in WRONG.items():
        if isinstance(event, dict):
          event = event | {"event_id": f"mine {name}"}
        await connection.send_raw(event if isinstance(event, str) else json.dumps(event))
        error = (await ear.until("error")).error
        assert (name, error.param, error.code) == (name, param, code), error.message
        assert error.type == "invalid_request_error" and error.message
        assert error.event_id == (f"mine {name}" if isinstance(event, dict) else None)
      await connection.send_raw(b"{}")
      assert "binary" in (await ear.until("error")).error.message
      await update(connection, ear, **VAD_OFF)
      await connection.input_audio_buffer.commit()
      assert (await ear.until("error")).error.code == "input_audio_buffer_commit_empty"
      assert len(ear.all("error")) == len(WRONG) + 2
      assert set(ear.kinds()) == {"session.created", "session.updated", "error"}
  with voices.serving(voices.Service(), pixels=500 * 500) as url:
    asyncio.run(main(url))


_SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(
  st.characters(codec="utf-8"), max_size=8)
_TYPES = st.sampled_from([e["type"] for e, *_ in WRONG.values() if isinstance(e, dict) and "type"
                          in e] + ["input_audio_buffer.clear", "conversation.item.delete",
                                   "input_text", "message", "audio/pcm", "server_vad", "native"])
_KEYS = st.sampled_from(["type", "session", "item", "audio", "input", "output", "response",
                         "content", "role", "text", "item_id", "event_id", "turn_detection",
                         "format", "previous_item_id", "audio_end_ms", "content_index", "id"])
_VALUES = st.recursive(_SCALARS | _TYPES, lambda inner: st.lists(inner, max_size=3)
                       | st.dictionaries(_KEYS, inner, max_size=5), max_leaves=12)
_EVENTS = st.fixed_dictionaries({"type": _TYPES}, optional={
  "session": _VALUES, "item": _VALUES, "audio": _VALUES, "response": _VALUES, "event_id": _VALUES,
  "item_id": _VALUES, "previous_item_id": _VALUES, "audio_end_ms": _VALUES,
  "content_index": _VALUES}) | _VALUES


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(events=st.lists(_EVENTS, min_size=30, max_size=30))
def test_no_message_ends_a_session(shared, events):
  async def main():
    async with session(shared) as (connection, ear):
      for event in events:
        await connection.send_raw(json.dumps(event))
      # Each is answered before the next, and all of them are malformed, or change little.
      await connection.send({"type": "conversation.item.retrieve", "item_id": "last",
                             "event_id": "last"})
      while (await ear.until("error")).error.event_id != "last":
        pass
      for error in ear.all("error"):
        assert error.error.type == "invalid_request_error" and error.error.code
      told = {e.error.event_id for e in ear.all("error")}
      ids = [e["event_id"] for e in events if isinstance(e, dict) and isinstance(
        e.get("event_id"), str) and e.get("type") == "session.destroy"]
      assert told >= set(ids)
      assert {"session.created", "error"} <= set(ear.kinds())
  asyncio.run(main())
