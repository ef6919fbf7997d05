"""Full duplex by OpenAI's client: the model decides when it speaks, the events say so."""

import asyncio

import numpy as np
import pytest
import soxr
import voices
from voices import FRAME, packed, session, silence, soon, speak, tone, unpacked, update

ASK = (silence(0.4), tone(0.4), silence(0.4))


@pytest.fixture
def service():
  return voices.Service()


@pytest.fixture
def url(service):
  with voices.serving(service) as found:
    yield found


def told(ear, response_id):
  """Sound and words of a response, as the client has them."""
  mine = [e for e in ear.events if getattr(e, "response_id", None) == response_id]
  sound = unpacked(*[e.delta for e in mine if e.type == "response.output_audio.delta"])
  return sound, "".join(e.delta for e in mine if e.type == "response.output_audio_transcript.delta")


def test_a_question_and_its_answer(url, service):
  async def main():
    async with session(url) as (connection, ear):
      began = ear.events[0].session
      assert began.type == "realtime" and began.model == "tiny"
      assert began.audio.input.turn_detection.type == "native"
      assert began.audio.input.format.rate == began.audio.output.format.rate == 24000
      assert began.output_modalities == ["audio"] and began.tools == []
      await speak(connection, *ASK)
      await ear.until("response.output_audio.delta")
      await speak(connection, silence(2))
      done = await ear.until("response.done")
      await ear.until_all("conversation.item.done", 2)
      kinds = [k for k in ear.kinds() if k.startswith("response.")]
      deltas = ("response.output_audio.delta", "response.output_audio_transcript.delta")
      mine = ear.all("response.created")[0].response.id
      assert done.response.id == mine and done.response.status == "completed"
      # The model answers before the server is sure that the client has stopped; what was said first
      # is first all the same.
      (said, before), (user, root) = (
        (e.item, e.previous_item_id) for e in ear.all("conversation.item.added"))
      assert before is None and root is None
      assert (user.role, user.content[0].type) == ("user", "input_audio")
      assert said.role == "assistant" and done.response.output[0].id == said.id
      assert ear.all("conversation.item.done")[-1].previous_item_id == user.id
      assert kinds[:4] == ["response.created", "response.output_item.added",
                           "response.content_part.added", deltas[0]]
      assert [k for k in kinds[3:] if k not in deltas] == [
        "response.output_audio.done", "response.output_audio_transcript.done",
        "response.content_part.done", "response.output_item.done", "response.done"]
      assert ear.all("response.output_audio_transcript.done")[0].transcript == (
        "one two three four five six seven eight ")
    await soon(lambda: service.talks == [])  # the session has ended
    return ear, mine, done
  ear, mine, done = asyncio.run(main())
  talk = service.all_talks[0]
  sound, words = told(ear, mine)
  assert words == "one two three four five six seven eight "
  # From the first frame that isn't silent to 0.4 s after the last: those frames, and no other.
  spoken = [i for i, out in enumerate(talk.out) if out.any()]
  assert len(spoken) == 8
  frames = np.concatenate(talk.out[spoken[0] : spoken[-1] + 6])
  wanted = soxr.resample(frames, 16000, 24000, "VHQ")
  assert len(sound) == len(wanted) == 13 * 1920
  assert np.abs(sound - wanted)[200:].max() < 2e-3
  assert done.response.usage.output_tokens == 13
  assert done.response.usage.input_tokens == spoken[0]


def test_what_the_client_says_is_found_and_timed(url):
  async def main():
    async with session(url) as (connection, ear):
      await speak(connection, silence(0.5), tone(0.6), silence(1), tone(0.5), silence(1))
      for start, stop in ((500, 1600), (2100, 3100)):
        started = await ear.until("input_audio_buffer.speech_started")
        stopped = await ear.until("input_audio_buffer.speech_stopped")
        committed = await ear.until("input_audio_buffer.committed")
        assert (started.audio_start_ms, stopped.audio_end_ms) == (start, stop)
        assert started.item_id == stopped.item_id == committed.item_id
        assert (await ear.until("conversation.item.added")).item.id == started.item_id
  asyncio.run(main())


def test_who_interrupts_is_told_what_was_cut(url, service):
  async def main():
    async with session(url) as (connection, ear):
      await speak(connection, *ASK, silence(0.24), tone(0.5), silence(2.5))
      first = (await ear.until("response.done")).response
      assert (first.status, first.status_details.reason) == ("cancelled", "turn_detected")
      assert first.output[0].status == "incomplete"
      # And it answers what interrupted it.
      second = (await ear.until("response.done")).response
      assert second.status == "completed" and second.id != first.id
      cut, words = told(ear, first.id)
      assert 0 < len(words.split()) < 8 and len(told(ear, second.id)[1].split()) == 8
      assert abs(voices.pitch(cut[: 4 * 1920]) - 500) < 5
  asyncio.run(main())


def test_who_speaks_after_the_end_has_not_interrupted(url):
  async def main():
    async with session(url) as (connection, ear):
      # The answer ends 0.16 s before the next speech, and 0.4 s of silence later that goes on.
      await speak(connection, *ASK, silence(0.64 + 0.16), tone(1), silence(0.2))
      done = (await ear.until("response.done")).response
      assert done.status == "completed"
      assert ear.all("input_audio_buffer.speech_started")[1:] != []
  asyncio.run(main())


def test_response_cancel_hushes(url, service):
  async def main():
    async with session(url) as (connection, ear):
      with_error = {"type": "response.cancel", "event_id": "early"}
      await speak(connection, silence(0.1))
      await connection.send(with_error)
      error = (await ear.until("error")).error
      assert (error.code, error.event_id) == ("response_cancel_not_active", "early")
      service.words = ["word"] * 100
      await speak(connection, *ASK)
      await ear.until("response.output_audio.delta")
      await connection.response.cancel()
      done = (await ear.until("response.done")).response
      assert (done.status, done.status_details.reason) == ("cancelled", "client_cancelled")
      count = len(ear.all("response.output_audio.delta"))
      await speak(connection, silence(2))
      # What still comes of the response is not sent, nor is it another response.
      service.words = ["again"]
      await speak(connection, *ASK, silence(1))
      done = (await ear.until("response.done")).response
      assert done.output[0].content[0].transcript == "again "
      late = ear.all("response.output_audio.delta")[count:]
      assert {e.response_id for e in late} == {done.id}
  asyncio.run(main())
  assert [a for a in service.all_talks[0].asked if a[0] == "hush"] == [("hush",)]


@pytest.mark.parametrize(("ms", "frame", "samples"), [
  (0, 0, 0), (1, 0, 16), (79, 0, 1264), (80, 1, 0), (333, 4, 208), (1039, 12, 1264)])
def test_truncation_is_at_the_frame_and_sample_that_was_heard(url, service, ms, frame, samples):
  async def main():
    async with session(url) as (connection, ear):
      await speak(connection, *ASK, silence(2))
      item = (await ear.until("response.done")).response.output[0]
      await connection.conversation.item.truncate(item_id=item.id, content_index=0,
                                                  audio_end_ms=ms)
      event = await ear.until("conversation.item.truncated")
      assert (event.item_id, event.content_index, event.audio_end_ms) == (item.id, 0, ms)
      # What it is now: its words are no longer known, and it is not longer than that.
      await connection.conversation.item.retrieve(item_id=item.id)
      assert (await ear.until("conversation.item.retrieved")).item.content[0].transcript is None
      await connection.conversation.item.truncate(item_id=item.id, content_index=0,
                                                  audio_end_ms=ms + 1)
      assert f"has {ms} ms" in (await ear.until("error")).error.message
  asyncio.run(main())
  talk = service.all_talks[0]
  first = next(i for i, out in enumerate(talk.out) if out.any())
  assert [a for a in talk.asked if a[0] != "insert"] == [("truncate", first + frame, samples)]


def test_truncating_all_that_was_said_changes_nothing_and_more_is_wrong(url, service):
  async def main():
    async with session(url) as (connection, ear):
      await speak(connection, *ASK, silence(2))
      item = (await ear.until("response.done")).response.output[0]
      await connection.conversation.item.truncate(item_id=item.id, content_index=0,
                                                  audio_end_ms=1040)
      await ear.until("conversation.item.truncated")
      for fields, param in (({"audio_end_ms": 1041}, "audio_end_ms"),
                            ({"content_index": 1}, "content_index"),
                            ({"item_id": "item_none"}, "item_id")):
        await connection.conversation.item.truncate(
          **{"item_id": item.id, "content_index": 0, "audio_end_ms": 5, **fields})
        assert (await ear.until("error")).error.param == param
      # Another answer, and the first is no longer the last.
      await speak(connection, *ASK, silence(2))
      await ear.until("response.done")
      await connection.conversation.item.truncate(item_id=item.id, content_index=0, audio_end_ms=5)
      assert "only the last item" in (await ear.until("error")).error.message
  asyncio.run(main())
  assert service.all_talks[0].asked == []


def test_truncating_what_is_being_said_ends_it(url, service):
  async def main():
    service.words = ["word"] * 100
    async with session(url) as (connection, ear):
      await speak(connection, *ASK, silence(0.5))
      item_id = (await ear.until("response.output_item.added")).item.id
      for _ in range(4):
        await ear.until("response.output_audio.delta")
      await connection.conversation.item.truncate(item_id=item_id, content_index=0,
                                                  audio_end_ms=100)
      done = (await ear.until("response.done")).response
      assert (done.status, done.status_details.reason) == ("cancelled", "turn_detected")
      await ear.until("conversation.item.truncated")
  asyncio.run(main())
  talk = service.all_talks[0]
  first = next(i for i, out in enumerate(talk.out) if out.any())
  assert talk.asked == [("hush",), ("truncate", first + 1, 320)]


def test_texts_and_pictures_come_in_between(url, service):
  async def main():
    async with session(url) as (connection, ear):
      create = connection.conversation.item.create
      # Before there is sound, and after.
      await create(item={"type": "message", "role": "user",
                         "content": [{"type": "input_text", "text": "early"}]})
      await ear.until("conversation.item.done")
      await speak(connection, silence(1))
      assert (await ear.until("response.done")).response.output[0].content[0].transcript == "early "
      await create(item={"type": "message", "role": "user", "id": "mine", "content": [
        {"type": "input_text", "text": "look here"},
        {"type": "input_image", "image_url": voices.png(10, 19)}]})
      added, done = await ear.until("conversation.item.added"), await ear.until(
        "conversation.item.done")
      assert added.item.id == done.item.id == "mine" and added.previous_item_id
      await connection.response.create()
      await speak(connection, silence(1))
      assert (await ear.until("response.done")).response.output[0].content[0].transcript == (
        "look here picture ")
      assert ear.all("error") == []
      for item, said in (
          ({"role": "assistant", "content": [{"type": "output_text", "text": "no"}]}, "role user"),
          ({"role": "user", "content": [{"type": "input_text", "text": "unreadable"}]},
           "can't be read"),
          ({"role": "user", "content": [{"type": "input_audio", "audio": "AAA="}]},
           "input_audio_buffer.append")):
        await create(item={"type": "message", **item})
        assert said in (await ear.until("error")).error.message
      await connection.response.create(response={"instructions": "shout"})
      assert "takes no instructions" in (await ear.until("error")).error.message
      await connection.conversation.item.delete(item_id="mine")
      assert "memory" in (await ear.until("error")).error.message
      for call in (connection.input_audio_buffer.commit, connection.input_audio_buffer.clear):
        await call()
        assert "no sound waits" in (await ear.until("error")).error.message
  asyncio.run(main())
  (_, early), (_, later) = service.all_talks[0].asked
  assert early == [{"text": "early", "role": "user"}]
  assert later[0] == {"text": "look here", "role": "user"}
  assert later[1]["image"].shape == (8, 20, 3) and later[1]["image"].dtype == np.uint8


def test_sound_does_not_wait_for_a_picture(url, service):
  async def main():
    async with session(url) as (connection, ear):
      await speak(connection, silence(0.1))
      await update(connection, ear)  # the talk is open
      service.seeing.clear()
      await connection.conversation.item.create(item={
        "type": "message", "role": "user", "content": [
          {"type": "input_image", "image_url": voices.png(8, 8)}]})
      await speak(connection, *ASK, silence(2))
      await ear.until("response.done")
      seen = [c.type for e in ear.all("conversation.item.added") for c in e.item.content]
      assert "input_image" not in seen
      service.seeing.set()
      while (await ear.until("conversation.item.done")).item.content[0].type != "input_image":
        pass
  asyncio.run(main())


def test_sound_does_not_overtake_a_change_of_turns(url, service):
  async def main():
    async with session(url) as (connection, ear):
      await speak(connection, silence(0.1))
      await update(connection, ear)  # the talk is open
      service.seeing.clear()
      await connection.conversation.item.create(item={
        "type": "message", "role": "user", "content": [{"type": "input_text", "text": "wait"}]})
      await connection.session.update(session={
        "type": "realtime", "audio": {"input": {"turn_detection": None}}})
      await speak(connection, tone(1))
      await asyncio.sleep(0.1)
      service.seeing.set()
      await connection.input_audio_buffer.commit()
      committed = await ear.until("input_audio_buffer.committed")
      await connection.conversation.item.retrieve(item_id=committed.item_id)
      kept = (await ear.until("conversation.item.retrieved")).item.content[0].audio
      # Its first samples are the last of before, which the filter held back.
      assert len(unpacked(kept)) == 24000 + 24
  asyncio.run(main())
  assert service.all_talks[0].heard < 0.1 * 16000 + 1


def test_a_text_client_needs_no_sound(url, service):
  async def main():
    async with session(url) as (connection, ear):
      await update(connection, ear, output_modalities=["text"])
      await connection.conversation.item.create(item={
        "type": "message", "role": "user", "content": [{"type": "input_text", "text": "hello"}]})
      await connection.response.create()
      assert (await ear.until("response.output_text.done")).text.startswith("one two")
      await ear.until("response.done")
      # Full duplex, of which only the words are wanted.
      await speak(connection, *ASK, silence(2))
      done = (await ear.until("response.done")).response
      assert done.output_modalities == ["text"] and done.output[0].content[0].type == "output_text"
      assert done.output[0].content[0].text == "one two three four five six seven eight "
      # Beside the talk.
      await connection.response.create(response={
        "conversation": "none", "output_modalities": ["text"], "input": [], "instructions": "sum"})
      apart = (await ear.until("response.done")).response
      assert apart.status == "completed" and apart.conversation_id is None
  asyncio.run(main())
  assert service.written[0]["to"] == "text"
  assert service.written[0]["parts"] == [{"text": "hello", "role": "user"}]
  assert service.written[1]["parts"] == [{"text": "sum", "role": "user"}]


def test_sessions_do_not_mix(url):
  async def talk(hz):
    async with session(url) as (connection, ear):
      for _ in range(3):
        await speak(connection, silence(0.4), tone(0.4, hz=hz), silence(2))
        done = (await ear.until("response.done")).response
        sound, _ = told(ear, done.id)
        assert len(sound) == 13 * 1920 and abs(voices.pitch(sound[: 8 * 1920]) - hz) < 5
      assert len(ear.all("response.done")) == 3

  async def main():
    await asyncio.gather(talk(400), talk(650), talk(900), talk(1300))
  asyncio.run(main())


def test_leaving_the_talk_frees_its_slot(url, service):
  async def main():
    service.words = ["word"] * 100
    async with session(url) as (connection, ear):
      await speak(connection, *ASK, silence(0.3))
      await ear.until("response.output_audio.delta")
      changed = await update(connection, ear, audio={"input": {"turn_detection": None}})
      assert changed.audio.input.turn_detection is None
      done = ear.all("response.done")[0].response
      assert (done.status, done.status_details.reason) == ("cancelled", "client_cancelled")
      assert service.talks == [] and len(service.all_talks) == 1
      # By turns now, then another talk.
      await speak(connection, tone(0.3))
      await connection.input_audio_buffer.commit()
      await ear.until("input_audio_buffer.committed")
      await update(connection, ear, audio={"input": {"turn_detection": {"type": "native"}}},
                   instructions="be brief")
      service.words = ["new"]
      await speak(connection, silence(0.5), *ASK, silence(1))
      while "new " not in (await ear.until("response.done")).response.output[0].content[
          0].transcript:
        pass
  asyncio.run(main())
  assert len(service.all_talks) == 2
  assert service.all_talks[1].asked == [("insert", [{"text": "be brief", "role": "user"}])]


def test_a_model_that_can_not_talk_and_texts_that_can_not_be_put_in(url, service):
  async def main():
    service.speechless = True
    async with session(url) as (connection, ear):
      await connection.input_audio_buffer.append(audio=packed(silence(0.1)))
      assert "server_vad or null" in (await ear.until("error")).error.message
      service.speechless = False
      await update(connection, ear, instructions="unreadable")
      await connection.input_audio_buffer.append(audio=packed(*ASK))
      assert "can't be read" in (await ear.until("error")).error.message
      await speak(connection, silence(2))
      assert (await ear.until("response.done")).response.status == "completed"
      await update(connection, ear, instructions="")
      await update(connection, ear, instructions="unreadable")
      error = (await ear.until("error")).error
      assert (error.param, len(ear.all("error"))) == ("session.instructions", 3)
  asyncio.run(main())
  assert len(service.all_talks) == 1 and service.all_talks[0].asked == []


def test_its_words_may_lead_its_sound(url, service):
  service.mute = True

  async def main():
    async with session(url) as (connection, ear):
      await speak(connection, *ASK, silence(2))
      done = (await ear.until("response.done")).response
      assert done.output[0].content[0].transcript.split()[0] == "one"
      assert not told(ear, done.id)[0].any()
  asyncio.run(main())
  assert FRAME == service.frame_size
