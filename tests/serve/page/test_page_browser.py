"""Talking through the web page, in a real Chromium. Shapes: L samples."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tests.serve.fake_realtime import ANSWER, RATE, WORDS
from tests.serve.page.browser import PITCH, data, tab_to, turns, wait, wait_for

pytestmark = pytest.mark.browser
ANSWER_MS = 80 * ANSWER


def test_a_conversation_with_an_interruption_by_the_space_bar_alone(page, fake):
  page.keyboard.press("Space")
  wait(page, "document.querySelectorAll('.turn.model[aria-busy=false]').length === 2")
  wait(page, "document.body.dataset.phase === 'listening'")
  # The first answer was cut, and the server knows how much of it was heard.
  [cut] = fake.of("conversation.item.truncate")
  sent_ms = fake.sent["said_1"] * 1000 / RATE
  assert cut["item_id"] == "said_1" and cut["content_index"] == 0
  # The model yields 0.24 s into the second burst; it began 0.4 s after the first, which ended 2 s
  # before: 1.84 s. What is played is behind by the wait for sound that is late.
  assert 1300 < cut["audio_end_ms"] < sent_ms < 2100
  assert sent_ms - cut["audio_end_ms"] < 400
  # The second was played to its end: all the sound there is, and no more.
  assert abs(float(data(page, "playedMs")) - cut["audio_end_ms"] - ANSWER_MS) < 10
  first, second = turns(page, "model")
  assert f"interrupted after {cut['audio_end_ms'] / 1000:.1f} s" in first
  assert second == " ".join(WORDS[:(ANSWER + 2) // 3])
  assert page.get_attribute(".turn.model", "aria-busy") == "false"
  assert [re.fullmatch(r"spoke for (0\.[789]|1\.0) s", turn) is not None
          for turn in turns(page, "user")] == [True, True]
  # From the end of speech, by loudness: the server's five frames, and the way to the ear.
  assert 300 < float(data(page, "latencyMs")) < 1200
  assert page.inner_text("#latency").endswith(" s") and "of 2" in page.inner_text("#latency-median")
  # What the server heard is what the microphone said, in pieces of 20 ms.
  assert {len(piece) for piece in fake.heard} == {480}
  wave_L = np.concatenate(fake.heard)
  burst_L = wave_L[np.argmax(np.abs(wave_L) > 0.1):][:RATE // 2]
  peak = np.argmax(np.abs(np.fft.rfft(burst_L * np.hanning(len(burst_L))))) * RATE / len(burst_L)
  assert abs(peak - PITCH) < 4
  page.keyboard.press("Space")
  wait(page, "document.body.dataset.state === 'idle'")
  appends = fake.appends
  page.wait_for_timeout(300)
  assert fake.appends == appends and page.is_hidden("#notice")


def test_an_answer_that_fell_silent_is_marked_as_interrupted_too(page, fake):
  fake.late = 8
  page.click("#talk")
  wait_for(page, lambda: "interrupted" in "".join(turns(page, "model")))
  # All that had come was heard: there is nothing to tell the server.
  assert not fake.of("conversation.item.truncate") and not fake.of("response.cancel")
  assert f"after {fake.sent['said_1'] / RATE:.1f} s" in turns(page, "model")[0]


def test_a_model_that_takes_turns_is_silenced_by_speech(page, fake):
  fake.native = False
  page.click("#talk")
  wait_for(page, lambda: fake.of("conversation.item.truncate"))
  asked = [event["session"]["audio"]["input"]["turn_detection"]["type"]
           for event in fake.of("session.update")]
  assert asked == ["native", "server_vad"] and "takes turns" in page.inner_text("#status")
  [cut] = fake.of("conversation.item.truncate")
  # All of it had been sent long ago: nothing to cancel. Played: 1.6 s, less what it took to begin.
  assert fake.sent["said_1"] * 1000 / RATE == ANSWER_MS and not fake.of("response.cancel")
  assert 1200 < cut["audio_end_ms"] < 1700
  wait(page, "document.querySelectorAll('.turn.model').length === 2")
  assert "interrupted" in turns(page, "model")[0]


def test_latency_is_that_of_answers_to_speech(page, fake):
  fake.deaf = True
  page.click("#talk")
  wait_for(page, lambda: fake.appends > 110)  # the first question is over
  page.fill("#text", "hello")
  page.keyboard.press("Enter")
  wait(page, "Number(document.body.dataset.playedMs) > 0")
  assert data(page, "latencyMs") is None


def test_escape_silences_and_typing_goes_into_the_conversation(page, fake):
  fake.deaf = True  # or the microphone would end the answer
  tab_to(page, "talk")
  page.keyboard.press("Enter")
  wait(page, "document.body.dataset.state === 'live'")
  assert page.is_hidden("#answers") and page.is_visible("#spoken-hint")
  tab_to(page, "text")
  page.keyboard.type("what is this")
  page.keyboard.press("Enter")
  wait_for(page, lambda: fake.of("conversation.item.create"))
  [item] = fake.of("conversation.item.create")
  assert item["item"] == {"type": "message", "role": "user",
                          "content": [{"type": "input_text", "text": "what is this"}]}
  assert not fake.of("response.create")
  wait(page, "Number(document.body.dataset.playedMs) > 200")
  page.keyboard.press("Escape")
  wait_for(page, lambda: fake.of("conversation.item.truncate"))
  assert [event["event_id"] for event in fake.of("response.cancel")] == ["cut"]
  assert 0 < fake.of("conversation.item.truncate")[0]["audio_end_ms"] < 1000
  page.keyboard.press("Escape")  # there is nothing to silence: nothing more is sent
  assert turns(page, "user")[0] == "what is this" and not fake.bodies
  assert page.evaluate("document.activeElement.id") == "text"


def test_what_is_said_is_drawn_on_its_side(page, fake):
  # By way of a copy: the browser warns of a canvas that is often read.
  ink = """() => {
    const drawn = (from) => {
      const pen = Object.assign(document.createElement("canvas"), {width, height}).getContext(
        "2d", {willReadFrequently: true});
      pen.drawImage(from, 0, 0);
      return pen.getImageData(0, 0, width, height).data;
    };
    const canvas = document.querySelector("#waves"), {width, height} = canvas;
    const pixels = drawn(canvas);
    const rows = [[0.1, 0.45], [0.55, 0.9]];
    return rows.map(([from, to]) => {
      let sum = 0;
      for (let y = Math.floor(from * height); y < to * height; y++) {
        for (let x = 0; x < width; x++) sum += pixels[4 * (y * width + x) + 3] > 128;
      }
      return sum;
    });
  }"""
  assert page.evaluate(ink) == [0, 0]
  page.check("[value=speech]", force=True)
  page.fill("#text", "say it")
  page.keyboard.press("Enter")
  wait(page, "Number(document.body.dataset.playedMs) === 320")
  user, model = page.evaluate(ink)
  assert user == 0 and model > 100
  page.click("#talk")
  wait_for(page, lambda: page.evaluate(ink)[0] > 100)


@pytest.mark.parametrize("fault, words", [
  ("NotAllowedError", "may not use the microphone"),
  ("NotFoundError", "No microphone was found"),
  ("NotReadableError", "in use"),
  ("OddError", "odd indeed"),
])
def test_a_microphone_that_does_not_open_is_told_in_words(page, fake, fault, words):
  page.evaluate("""name => navigator.mediaDevices.getUserMedia =
    async () => { throw new DOMException("odd indeed", name); }""", fault)
  page.keyboard.press("Space")
  page.wait_for_selector("#notice:not([hidden])")
  assert words in page.inner_text("#notice-text")
  assert data(page, "state") == "idle" and page.inner_text("#talk-label") == "Talk"
  assert page.get_attribute("#notice", "role") == "alert"


def test_a_page_without_leave_for_microphones_says_what_to_do(page, fake):
  page.evaluate("Object.defineProperty(navigator, 'mediaDevices', {value: undefined})")
  page.click("#talk")
  page.wait_for_selector("#notice:not([hidden])")
  assert "https://" in page.inner_text("#notice-text")


def test_a_broken_conversation_is_told_and_connected_again(page, fake):
  fake.hang_up_after = 4
  page.click("#talk")
  page.wait_for_selector("#notice-action:not([hidden])")
  assert "hung up" in page.inner_text("#notice-text") and data(page, "state") == "idle"
  assert page.inner_text("#notice-action") == "Reconnect"
  fake.hang_up_after = 0
  page.click("#notice-action")
  wait(page, "document.body.dataset.state === 'live'")
  assert page.is_hidden("#notice")
  before = fake.appends
  wait_for(page, lambda: fake.appends > before)


def test_a_server_with_no_place_says_so(page, fake):
  page.expected.append("WebSocket connection to .* failed")
  fake.full = True
  page.click("#talk")
  page.wait_for_selector("#notice-action:not([hidden])")
  assert "places are taken" in page.inner_text("#notice-text")


# What the worklet makes of a second of a sine: 16-bit samples.
CAPTURE = """async ([rate, hertz]) => {
  const context = new OfflineAudioContext(1, rate, rate);
  await context.audioWorklet.addModule("capture.js");
  const node = new AudioWorkletNode(context, "capture", {numberOfOutputs: 0});
  const pieces = [];
  node.port.onmessage = ({data}) => pieces.push(...data.pcm);
  const tone = new OscillatorNode(context, {frequency: hertz});
  tone.connect(node);
  tone.start();
  await context.startRendering();
  await new Promise((resolve) => setTimeout(resolve, 200));
  return pieces;
}"""


@pytest.mark.parametrize("rate", [48000, 44100, 16000, 24000, 96000])
def test_the_microphone_is_resampled(page, rate):
  passed_L = np.array(page.evaluate(CAPTURE, [rate, 1000])) / 32767
  assert RATE - 1000 < len(passed_L) <= RATE
  inside_L = passed_L[2000:22000]
  time_L = np.arange(len(inside_L)) / RATE
  basis = np.stack([np.sin(2 * np.pi * 1000 * time_L), np.cos(2 * np.pi * 1000 * time_L)], 1)
  found, *_ = np.linalg.lstsq(basis, inside_L, rcond=None)
  assert abs(np.hypot(*found) - 1) < 1e-3
  assert np.abs(inside_L - basis @ found).max() < 1e-3  # nothing but the tone
  if rate > 30000:  # what 24 kHz can't hold is gone, and not folded back
    folded_L = np.array(page.evaluate(CAPTURE, [rate, 13500])) / 32767
    assert np.abs(folded_L[2000:22000]).max() < 1e-3
