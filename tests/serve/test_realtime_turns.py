"""Conversations by turns, with OpenAI's client, whose pauses may be found by the server."""

import asyncio
import base64

import numpy as np
import pytest
import voices
from voices import packed, session, silence, soon, speak, tone, unpacked, update

WORDS = "one two three four five six seven eight "
VAD = {"type": "server_vad"}


@pytest.fixture
def service():
  return voices.Service()


@pytest.fixture
def url(service):
  with voices.serving(service) as found:
    yield found


def turns(detection, **fields):
  return {"audio": {"input": {"turn_detection": detection}}, **fields}


def text(words, role="user", **fields):
  kind = "output_text" if role == "assistant" else "input_text"
  return {"type": "message", "role": role, "content": [{"type": kind, "text": words}], **fields}


def test_push_to_talk(url, service):
  async def main():
    async with session(url) as (connection, ear):
      await update(connection, ear, **turns(None))
      await speak(connection, tone(0.5))
      await connection.input_audio_buffer.clear()
      await ear.until("input_audio_buffer.cleared")
      await speak(connection, silence(0.1), tone(0.7, hz=600))
      await connection.input_audio_buffer.commit()
      committed = await ear.until("input_audio_buffer.committed")
      item = (await ear.until("conversation.item.done")).item
      assert item.id == committed.item_id and committed.previous_item_id is None
      await connection.response.create()
      done = (await ear.until("response.done")).response
      assert done.status == "completed" and done.output_modalities == ["audio"]
      assert done.usage.total_tokens == 15 and done.usage.output_token_details.audio_tokens == 8
      content = done.output[0].content[0]
      assert (content.type, content.transcript) == ("output_audio", WORDS)
      sound = unpacked(*[e.delta for e in ear.all("response.output_audio.delta")])
      assert len(sound) == 8 * 1920 and abs(voices.pitch(sound) - 500) < 3
      said = [e.previous_item_id for e in ear.all("conversation.item.added")]
      assert said == [None, item.id]
      # The sound of both is still there.
      for item_id, hz, seconds in ((item.id, 600, 0.8), (done.output[0].id, 500, 0.64)):
        await connection.conversation.item.retrieve(item_id=item_id)
        kept = unpacked((await ear.until("conversation.item.retrieved")).item.content[0].audio)
        assert len(kept) == seconds * 24000 and abs(voices.pitch(kept) - hz) < 3
      # The next prompt has all of it.
      await connection.conversation.item.create(item=text("and then?"))
      await connection.response.create(response={"output_modalities": ["text"],
                                                 "max_output_tokens": 3, "metadata": {"a": "b"}})
      done = (await ear.until("response.done")).response
      assert (done.status, done.status_details.reason) == ("incomplete", "max_output_tokens")
      assert (done.output[0].content[0].text, done.metadata) == ("one two three ", {"a": "b"})
      assert [e.delta for e in ear.all("response.output_text.delta")] == ["one ", "two ", "three "]
  asyncio.run(main())
  first, second = service.written
  assert [(w["to"], w["max_new"]) for w in service.written] == [("audio", 375), ("text", 3)]
  (heard,) = first["parts"]
  assert heard["role"] == "user" and heard["audio"].dtype == np.float32
  assert len(heard["audio"]) == 0.8 * 16000
  assert abs(voices.pitch(heard["audio"], 16000) - 600) < 3
  assert second["parts"][0]["audio"] is heard["audio"]
  assert second["parts"][1]["role"] == "assistant" and second["parts"][1]["transcript"] == WORDS
  assert len(second["parts"][1]["audio"]) == 8 * 1280
  assert second["parts"][2] == {"text": "and then?", "role": "user"}


def test_a_pause_is_answered(url, service):
  async def main():
    async with session(url) as (connection, ear):
      await update(connection, ear, **turns(VAD))
      # What isn't said stays.
      told = await update(connection, ear, audio={"output": {"voice": "alloy"}})
      assert told.audio.output.voice == "alloy" and told.audio.output.format.rate == 24000
      detection = told.audio.input.turn_detection
      assert (detection.type, detection.threshold, detection.prefix_padding_ms,
              detection.silence_duration_ms, detection.create_response,
              detection.interrupt_response) == ("server_vad", 0.5, 300, 500, True, True)
      await speak(connection, silence(2), tone(0.6), silence(1))
      started = await ear.until("input_audio_buffer.speech_started")
      stopped = await ear.until("input_audio_buffer.speech_stopped")
      assert (started.audio_start_ms, stopped.audio_end_ms) == (1700, 3100)
      assert (await ear.until("input_audio_buffer.committed")).item_id == started.item_id
      assert (await ear.until("response.done")).response.status == "completed"
  asyncio.run(main())
  ((heard,),) = [w["parts"] for w in service.written]
  assert len(heard["audio"]) == 1.4 * 16000
  loud = np.abs(heard["audio"]) > 0.1
  assert abs(loud.argmax() - 0.3 * 16000) < 20


def test_who_speaks_into_a_response_ends_it(url, service):
  service.free.clear()

  async def main():
    async with session(url) as (connection, ear):
      await update(connection, ear, **turns(VAD))
      await speak(connection, silence(0.5), tone(0.5), silence(0.6))
      await ear.until("response.output_audio.delta")
      await speak(connection, tone(0.5))
      await ear.until("input_audio_buffer.speech_started")
      done = (await ear.until("response.done")).response
      assert (done.status, done.status_details.reason) == ("cancelled", "turn_detected")
      (item,) = done.output
      assert item.content[0].transcript == "one " and item.status == "incomplete"
      assert service.tickets[0].cancelled.is_set()
      service.free.set()
      await speak(connection, silence(0.6))
      assert (await ear.until("response.done")).response.status == "completed"
  asyncio.run(main())
  # What was said of the first is in the second's prompt, as far as it went.
  user, cut, again = service.written[1]["parts"]
  assert cut["transcript"] == "one " and len(cut["audio"]) == 1280
  assert user["role"] == again["role"] == "user"


def test_server_vad_without_answers_and_interruptions(url, service):
  async def main():
    async with session(url) as (connection, ear):
      await update(connection, ear, **turns(VAD | {"create_response": False,
                                                   "interrupt_response": False,
                                                   "prefix_padding_ms": 0,
                                                   "silence_duration_ms": 200}))
      await speak(connection, silence(0.5), tone(0.5), silence(0.5))
      assert (await ear.until("input_audio_buffer.speech_stopped")).audio_end_ms == 1200
      await ear.until("conversation.item.done")
      await update(connection, ear)
      assert ear.all("response.created") == []
      service.free.clear()
      await connection.response.create()
      await ear.until("response.output_audio.delta")
      await speak(connection, tone(0.5), silence(0.5))
      await ear.until("conversation.item.done")
      await update(connection, ear, **turns(VAD | {"interrupt_response": False}))
      await speak(connection, tone(0.5), silence(0.7))
      error = (await ear.until("error")).error
      assert error.code == "conversation_already_has_active_response"
      service.free.set()
      assert (await ear.until("response.done")).response.status == "completed"
      assert len(ear.all("response.created")) == 1
  asyncio.run(main())


def test_two_sentences_in_one_message(url, service):
  async def main():
    async with session(url) as (connection, ear):
      await update(connection, ear, **turns(VAD))
      await connection.input_audio_buffer.append(audio=packed(
        silence(0.5), tone(0.5), silence(1), tone(0.5, hz=800), silence(1)))
      assert [(await ear.until("response.done")).response.status for _ in range(2)] == [
        "cancelled", "completed"]
      assert len(ear.all("input_audio_buffer.committed")) == 2
  asyncio.run(main())


def test_long_speech_is_answered_in_parts():
  service = voices.Service()

  async def main(url):
    async with session(url) as (connection, ear):
      await update(connection, ear, **turns(VAD))
      # Silence is never too long.
      await speak(connection, silence(5), piece_s=0.5)
      await speak(connection, tone(2.5), piece_s=0.1)
      stopped = await ear.until("input_audio_buffer.speech_stopped")
      assert 6400 < stopped.audio_end_ms <= 6700 and ear.all("error") == []
  with voices.serving(service, buffer_s=2) as url:
    asyncio.run(main(url))


def test_truncation_keeps_what_was_heard(url, service):
  async def main():
    async with session(url) as (connection, ear):
      await update(connection, ear, **turns(None))
      truncate = connection.conversation.item.truncate
      await connection.conversation.item.create(item=text("hello", id="mine"))
      await connection.response.create()
      item = (await ear.until("response.done")).response.output[0]
      for fields, param in (({"audio_end_ms": 641}, "audio_end_ms"),
                            ({"content_index": 1}, "content_index"), ({"item_id": "no"}, "item_id"),
                            ({"item_id": "mine"}, "content_index")):
        await truncate(**{"item_id": item.id, "content_index": 0, "audio_end_ms": 0, **fields})
        assert (await ear.until("error")).error.param == param
      await truncate(item_id=item.id, content_index=0, audio_end_ms=333)
      await ear.until("conversation.item.truncated")
      await connection.response.create(response={"output_modalities": ["text"]})
      await ear.until("response.done")
      await truncate(item_id=item.id, content_index=0, audio_end_ms=0)
      await ear.until("conversation.item.truncated")
      service.free.clear()
      await connection.response.create()
      added = (await ear.until("response.output_item.added")).item
      await ear.until("response.output_audio.delta")
      await truncate(item_id=added.id, content_index=0, audio_end_ms=0)
      assert "still being made" in (await ear.until("error")).error.message
      await connection.conversation.item.delete(item_id=added.id)
      assert "still being made" in (await ear.until("error")).error.message
      # A prompt that is made meanwhile leaves it out.
      await connection.response.create(response={"conversation": "none"})
      await soon(lambda: len(service.written) == 4)
      await connection.response.cancel()
      await ear.until("response.done")
  asyncio.run(main())
  _, heard = service.written[1]["parts"]
  assert len(heard["audio"]) == 333 * 16 and "transcript" not in heard
  # Of nothing that was heard nothing is left.
  for written in service.written[2:]:
    assert [p.get("text") for p in written["parts"]] == ["hello", WORDS]


def test_items_in_any_order(url, service):
  async def main():
    async with session(url) as (connection, ear):
      await update(connection, ear, **turns(None, output_modalities=["text"],
                                            instructions="be brief"))
      create = connection.conversation.item.create
      sound = base64.b64encode(np.zeros(2400, "<i2").tobytes()).decode()
      await create(item=text("b", id="b"))
      await create(item=text("d", role="assistant", id="d"))
      await create(item=text("a", role="system", id="a"), previous_item_id="root")
      await create(item={"type": "message", "role": "user", "id": "c", "content": [
        {"type": "input_image", "image_url": voices.png(4, 8, 7), "detail": "low"},
        {"type": "input_audio", "audio": sound, "transcript": "hum"}]}, previous_item_id="b")
      await create(item=text("gone", id="e"), previous_item_id="d")
      await connection.conversation.item.delete(item_id="e")
      await ear.until("conversation.item.deleted")
      assert [(e.item.id, e.previous_item_id) for e in ear.all("conversation.item.added")] == [
        ("b", None), ("d", "b"), ("a", None), ("c", "b"), ("e", "d")]
      await connection.conversation.item.retrieve(item_id="c")
      image, audio = (await ear.until("conversation.item.retrieved")).item.content
      assert image.image_url == voices.png(4, 8, 7) and audio.transcript == "hum"
      assert len(unpacked(audio.audio)) == 2400
      for item, after, param in ((text("x", id="b"), None, "item.id"),
                                 (text("x"), "e", "previous_item_id")):
        await create(item=item, previous_item_id=after)
        assert (await ear.until("error")).error.param == param
      for call in (connection.conversation.item.delete, connection.conversation.item.retrieve):
        await call(item_id="e")
        assert (await ear.until("error")).error.code == "item_not_found"
      await connection.response.create()
      await ear.until("response.done")
      # With an input of its own, and apart; in parallel to another.
      service.free.clear()
      await connection.response.create(response={
        "conversation": "none", "instructions": "",
        "input": [{"type": "item_reference", "id": "b"}, text("only this")]})
      await connection.response.create(response={"instructions": "shout"})
      apart = (await ear.until("response.created")).response
      while (inside := await ear.until("response.created")).response.conversation_id is None:
        pass
      assert apart.conversation_id is None and apart.id != inside.response.id
      await connection.response.cancel(response_id=apart.id)
      done = (await ear.until("response.done")).response
      assert (done.id, done.status) == (apart.id, "cancelled")
      await connection.response.cancel(response_id=apart.id)
      assert (await ear.until("error")).error.code == "response_cancel_not_active"
      service.free.set()
      assert (await ear.until("response.done")).response.id == inside.response.id
      # What was apart is no item.
      assert len(ear.all("conversation.item.added")) == 7
  asyncio.run(main())
  whole, apart, inside = (w["parts"] for w in service.written)
  assert [p.get("text", "-") for p in whole] == ["be brief", "a", "b", "-", "-", "d"]
  assert [p["role"] for p in whole] == ["user"] * 5 + ["assistant"]
  assert (whole[3]["image"] == 7).all() and whole[3]["image"].shape == (4, 8, 3)
  assert len(whole[4]["audio"]) == 1600 and whole[4]["transcript"] == "hum"
  assert [p["text"] for p in apart] == ["b", "only this"]
  assert inside[0]["text"] == "shout" and inside[-1]["text"] == WORDS


@pytest.mark.parametrize(("kind", "width"), [("audio/pcmu", 1), ("audio/pcma", 1)])
def test_telephones(url, service, kind, width):
  from omnijax.serve import pcm

  async def main():
    async with session(url) as (connection, ear):
      told = await update(connection, ear, audio={
        "input": {"turn_detection": None, "format": {"type": kind}},
        "output": {"format": {"type": kind}}})
      assert told.audio.input.format.type == told.audio.output.format.type == kind
      data = base64.b64encode(pcm.encode(tone(0.5, rate=8000, hz=600), kind)).decode()
      await connection.input_audio_buffer.append(audio=data)
      await connection.input_audio_buffer.commit()
      await connection.response.create()
      await ear.until("response.done")
      sound = b"".join(base64.b64decode(e.delta) for e in ear.all("response.output_audio.delta"))
      assert len(sound) == 8 * 640 * width
      assert abs(voices.pitch(pcm.decode(sound, kind), 8000) - 500) < 3
  asyncio.run(main())
  (heard,) = service.written[0]["parts"]
  assert len(heard["audio"]) == 8000 and abs(voices.pitch(heard["audio"], 16000) - 600) < 3


@pytest.mark.parametrize(("words", "code"), [
  ("too long", "context_length_exceeded"), ("bug", "server_error"), ("break", "server_error"),
  ("full", "rate_limit_exceeded"), (None, "invalid_prompt")])
def test_responses_that_fail(url, service, words, code):
  service.full = words == "full"

  async def main():
    async with session(url) as (connection, ear):
      await update(connection, ear, **turns(None, output_modalities=["text"]))
      if words:
        await connection.conversation.item.create(item=text(words))
      await connection.response.create()
      done = (await ear.until("response.done")).response
      assert (done.status, done.status_details.error.code) == ("failed", code)
      # It goes on.
      service.full = False
      await connection.response.create(response={"input": [text("fine")]})
      assert (await ear.until("response.done")).response.status == "completed"
  asyncio.run(main())


def test_a_model_without_sound():
  service = voices.Service(modalities=("text",))

  async def main(url):
    async with session(url) as (connection, ear):
      assert ear.events[0].session.output_modalities == ["text"]
      assert ear.events[0].session.audio.input.turn_detection is None
      await connection.input_audio_buffer.append(audio=packed(silence(0.1)))
      assert "hears nothing" in (await ear.until("error")).error.message
      for fields, param in ((turns(VAD), "session.audio.input.turn_detection"),
                            ({"output_modalities": ["audio"]}, "session.output_modalities")):
        await connection.session.update(session={"type": "realtime", **fields})
        assert (await ear.until("error")).error.param == param
      await connection.conversation.item.create(item={
        "type": "message", "role": "user", "content": [
          {"type": "input_image", "image_url": voices.png(4, 4)}]})
      assert (await ear.until("error")).error.param == "item.content[0].type"
      await connection.conversation.item.create(item=text("hi"))
      await connection.response.create(response={"output_modalities": ["audio"]})
      assert (await ear.until("error")).error.param == "response.output_modalities"
      await connection.response.create()
      assert (await ear.until("response.done")).response.output[0].content[0].text == WORDS
  with voices.serving(service) as url:
    asyncio.run(main(url))
