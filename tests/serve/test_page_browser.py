"""The web page in a real Chromium: a microphone that speaks in bursts, and a server of tests.

Shapes: L samples.
"""

from __future__ import annotations

import base64
import io
import re
import urllib.parse

import numpy as np
import pytest
import soundfile
from PIL import Image

pytestmark = pytest.mark.browser
sync_api = pytest.importorskip("playwright.sync_api")

from tests.serve.fake_realtime import ANSWER, PICTURE_SIDE, RATE, WORDS, Fake, running

CHROMIUM = "/usr/bin/chromium"
FLAGS = ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream", "--no-sandbox",
         "--headless=new", "--disable-gpu", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--no-first-run"]
ANSWER_MS = 80 * ANSWER
PITCH = 300.0  # Hz of the microphone's bursts
# Of the microphone, in seconds: silence, a question, silence, an interruption, silence.
BURSTS = ((1.0, 0), (0.8, 1), (2.0, 0), (0.8, 1), (9.0, 0))


def bursts(path) -> None:
  """Bursts with the rhythm of syllables, or the browser would take them for noise."""
  parts = []
  for seconds, loud in BURSTS:
    time_L = np.arange(int(seconds * 48000)) / 48000
    swell_L = 0.6 + 0.4 * np.sin(2 * np.pi * 4 * time_L)
    parts.append(0.4 * loud * swell_L * np.sin(2 * np.pi * PITCH * time_L))
  soundfile.write(path, np.concatenate(parts), 48000, subtype="PCM_16")


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
  path = tmp_path_factory.mktemp("microphone") / "bursts.wav"
  bursts(path)
  with sync_api.sync_playwright() as playwright:
    flags = [*FLAGS, f"--use-file-for-fake-audio-capture={path}%noloop"]
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
    yield browser
    browser.close()


@pytest.fixture
def fake():
  return Fake()


@pytest.fixture
def page(chromium, fake):
  """The page; in the end: it asked nobody but this machine, and complained about nothing.

  `page.expected`: patterns of complaints that the test provokes.
  """
  with running(fake) as url:
    context = chromium.new_context(accept_downloads=True)
    context.grant_permissions(["microphone", "clipboard-read", "clipboard-write"], origin=url)
    page = context.new_page()
    page.set_default_timeout(8000)
    asked, complaints, page.expected = [], [], []
    context.on("request", lambda request: asked.append(request.url))
    page.on("websocket", lambda socket: asked.append(socket.url))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda line: complaints.append(line.text)
            if line.type in ("error", "warning") else None)
    page.goto(url)
    page.wait_for_selector("body[data-server]")
    yield page
    page.wait_for_timeout(50)
    context.close()
  hosts = {urllib.parse.urlsplit(address).hostname for address in asked
           if not address.startswith(("data:", "blob:"))}
  assert hosts == {"127.0.0.1"}
  unforeseen = [c for c in complaints if not any(re.search(p, c) for p in page.expected)]
  assert not unforeseen


def data(page, name):
  return page.evaluate("name => document.body.dataset[name]", name)


def wait_for(page, found):
  """Waits until something is so."""
  for _ in range(500):
    if found():
      return
    page.wait_for_timeout(20)
  raise AssertionError("it did not happen")


def wait(page, condition):
  # Not the browser's own waiting: it evaluates strings, which the page's policy forbids.
  wait_for(page, lambda: page.evaluate(condition))


def tab_to(page, wanted):
  """Presses Tab until the element of this id has the focus, and shows that it has."""
  for _ in range(20):
    page.keyboard.press("Tab")
    if page.evaluate("document.activeElement.id") == wanted:
      return
  raise AssertionError(f"Tab never comes to {wanted}")


def turns(page, who):
  """What the page shows of one side's turns, each without its heading."""
  found = page.query_selector_all(f".{who}.turn")
  return [turn.inner_text().split("\n", 1)[1].strip() for turn in found]


def test_a_conversation_with_an_interruption_by_the_space_bar_alone(page, fake):
  page.keyboard.press("Space")
  wait(page, "document.querySelectorAll('.turn.model').length === 2")
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


def test_a_model_that_takes_turns_is_silenced_by_speech(page, fake):
  fake.native = False
  page.click("#talk")
  wait_for(page, lambda: fake.of("conversation.item.truncate"))
  assert fake.of("session.update")[0]["session"]["audio"]["input"]["turn_detection"] == {
    "type": "server_vad"}
  [cut] = fake.of("conversation.item.truncate")
  # All of it had been sent long ago: nothing to cancel. Played: 1.6 s, less what it took to begin.
  assert fake.sent["said_1"] * 1000 / RATE == ANSWER_MS and not fake.of("response.cancel")
  assert 1200 < cut["audio_end_ms"] < 1700
  wait(page, "document.querySelectorAll('.turn.model').length === 2")
  assert "interrupted" in turns(page, "model")[0]


def test_escape_silences_and_typing_goes_into_the_conversation(page, fake):
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
  assert not data(page, "latencyMs")  # nobody had spoken
  page.keyboard.press("Escape")
  wait_for(page, lambda: fake.of("conversation.item.truncate"))
  assert [event["event_id"] for event in fake.of("response.cancel")] == ["cancel_0"]
  assert 0 < fake.of("conversation.item.truncate")[0]["audio_end_ms"] < 1000
  page.keyboard.press("Escape")  # there is nothing to silence: nothing more is sent
  assert turns(page, "user")[0] == "what is this" and not fake.bodies
  assert page.evaluate("document.activeElement.id") == "text"


def test_the_keyboard_alone_writes_and_has_each_kind_of_answer(page, fake):
  tab_to(page, "text")
  page.keyboard.type("hello")
  page.keyboard.press("Shift+Enter")
  page.keyboard.type("there")
  page.keyboard.press("Enter")
  wait(page, "document.querySelector('.turn.model')?.ariaBusy === 'false'")
  path, body = fake.bodies.pop()
  assert path == "/v1/chat/completions" and body == {
    "model": "tiny-omni", "stream": True, "messages": [{"role": "user", "content": "hello\nthere"}]}
  assert turns(page, "model") == [" ".join(WORDS[:6])]

  page.keyboard.press("Tab")
  page.keyboard.press("Tab")
  page.keyboard.press("ArrowRight")  # of the kinds of answers: speech
  page.keyboard.press("Tab")
  page.keyboard.press("Space")  # remember
  assert data(page, "state") == "idle"  # the space bar was the box's
  for _ in range(3):
    page.keyboard.press("Shift+Tab")
  page.keyboard.type("say it")
  page.keyboard.press("Enter")
  wait(page, "document.querySelector('.turn audio')?.duration > 0")
  _, body = fake.bodies.pop()
  assert body["modalities"] == ["text", "audio"] and body["audio"]["format"] == "pcm16"
  assert [message["content"] for message in body["messages"]] == [
    "hello\nthere", " ".join(WORDS[:6]) + " ", "say it"]
  assert abs(page.evaluate("document.querySelector('.turn audio').duration") - 0.32) < 1e-3
  wait(page, "Number(document.body.dataset.playedMs) === 320")
  assert turns(page, "model")[1] == " ".join(WORDS[:4])

  page.focus("[value=speech]")
  page.keyboard.press("ArrowRight")
  tab_to(page, "text")
  page.keyboard.type("a seven")
  page.keyboard.press("Enter")
  wait(page, "document.querySelector('.turn.model img')?.classList.contains('tiny')")
  path, body = fake.bodies.pop()
  assert path == "/v1/images/generations" and body["prompt"] == "a seven"
  size = page.evaluate("(({width, naturalWidth}) => [width, naturalWidth])"
                       "(document.querySelector('.turn.model img'))")
  assert size == [168, PICTURE_SIDE]
  page.focus(".turn.model a")
  with page.expect_download() as download:
    page.keyboard.press("Enter")
  assert download.value.suggested_filename == "picture-1.png"
  with Image.open(download.value.path()) as image:
    assert image.size == (PICTURE_SIDE, PICTURE_SIDE)

  tab_to(page, "send")
  tab_to(page, "clear")
  page.keyboard.press("Enter")
  assert page.is_visible("#empty") and not turns(page, "model")
  assert page.evaluate("document.activeElement.id") == "text"


def sent_picture(fake):
  _, body = fake.bodies.pop()
  [message] = body["messages"]
  kinds = [part["type"] for part in message["content"]]
  url = message["content"][-1]["image_url"]["url"]
  head, body = url.split(",")
  assert head == "data:image/png;base64"
  return kinds, Image.open(io.BytesIO(base64.b64decode(body)))


def file(width, height, form="PNG"):
  """The bytes of a picture: its left half red, its right half blue."""
  pixels = np.zeros((height, width, 3), np.uint8)
  pixels[:, :width // 2, 0] = pixels[:, width // 2:, 2] = 255
  out = io.BytesIO()
  Image.fromarray(pixels).save(out, form)
  return out.getvalue()


def test_pictures_are_chosen_pasted_and_dropped(page, fake):
  choosers = []
  page.on("filechooser", lambda chooser: choosers.append(chooser))
  tab_to(page, "choose")
  page.keyboard.press("Enter")
  wait_for(page, lambda: choosers)
  choosers[0].set_files({"name": "wide.jpg", "mimeType": "image/jpeg",
                         "buffer": file(1024, 512, "JPEG")})
  page.wait_for_selector("#preview:not([hidden])")
  assert page.evaluate("document.activeElement.id") == "text"
  page.keyboard.type("what is it")
  page.keyboard.press("Enter")
  wait_for(page, lambda: fake.bodies)
  kinds, image = sent_picture(fake)
  assert kinds == ["text", "image_url"] and image.size == (512, 256) and image.format == "PNG"
  assert image.convert("RGB").getpixel((100, 100))[0] > 240
  assert image.convert("RGB").getpixel((400, 100))[2] > 240
  assert page.is_hidden("#preview")
  wait(page, "document.querySelector('#send').textContent === 'Send'")

  # By the real clipboard, small: it stays as it is.
  page.evaluate("""async (bytes) => navigator.clipboard.write([new ClipboardItem({
    "image/png": new Blob([new Uint8Array(bytes)], {type: "image/png"})})])""",
                list(file(28, 28)))
  page.keyboard.press("Control+V")
  page.wait_for_selector("#preview:not([hidden])")
  assert "tiny" in (page.get_attribute("#thumbnail", "class") or "")
  page.keyboard.press("Enter")  # no words
  wait_for(page, lambda: fake.bodies)
  kinds, image = sent_picture(fake)
  assert kinds == ["image_url"] and image.size == (28, 28)
  wait(page, "document.querySelector('#send').textContent === 'Send'")

  drop = """([bytes, type]) => {
    const transfer = new DataTransfer();
    transfer.items.add(new File([new Uint8Array(bytes)], "dropped", {type}));
    for (const kind of ["dragover", "drop"]) {
      document.querySelector("#log").dispatchEvent(
        new DragEvent(kind, {dataTransfer: transfer, bubbles: true, cancelable: true}));
    }
  }"""
  page.evaluate(drop, [list(file(300, 600)), "image/png"])
  page.wait_for_selector("#preview:not([hidden])")
  tab_to(page, "send")
  page.keyboard.press("Enter")
  wait_for(page, lambda: fake.bodies)
  assert sent_picture(fake)[1].size == (256, 512)
  page.evaluate(drop, [list(b"no picture"), "image/png"])
  wait(page, "document.querySelector('#notice-text').textContent.includes('is no picture')")
  assert page.is_hidden("#preview")


def test_pictures_go_into_the_conversation(page, fake):
  page.click("#talk")
  wait(page, "document.body.dataset.state === 'live'")
  page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": file(40, 40)})
  page.wait_for_selector("#preview:not([hidden])")
  page.click("#send")
  wait_for(page, lambda: fake.of("conversation.item.create"))
  [part] = fake.of("conversation.item.create")[0]["item"]["content"]
  assert part["type"] == "input_image" and part["image_url"].startswith("data:image/png;base64,")


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


def test_a_server_that_is_gone_is_told_and_the_message_is_kept(page, fake):
  page.expected.append("ERR_CONNECTION_REFUSED|ERR_FAILED|ERR_INTERNET_DISCONNECTED")
  page.context.set_offline(True)
  page.fill("#text", "are you there")
  page.keyboard.press("Enter")
  page.wait_for_selector("#notice:not([hidden])")
  assert "does not answer" in page.inner_text("#notice-text")
  assert page.input_value("#text") == "are you there" and not turns(page, "user")
  page.context.set_offline(False)
  page.keyboard.press("Enter")
  wait(page, "document.querySelector('.turn.model')?.ariaBusy === 'false'")
  assert page.is_hidden("#notice")


def test_what_the_server_refuses_is_told_in_its_words(page, fake):
  page.expected.append("400")
  page.fill("#text", "too long")
  page.keyboard.press("Enter")
  page.wait_for_selector("#notice:not([hidden])")
  assert page.inner_text("#notice-text") == "The conversation does not fit."


def test_a_key_is_asked_for_only_where_one_is_wanted(page, fake):
  assert page.is_hidden("#key-form")
  page.expected += ["401"]
  fake.key = "sk-right"
  page.reload()
  page.wait_for_selector("#key-form:not([hidden])")
  assert page.evaluate("document.activeElement.id") == "key"
  page.keyboard.type("sk-wrong")
  page.keyboard.press("Enter")
  wait(page, "document.querySelector('#key-help').textContent.includes('not accept')")
  page.wait_for_selector("#key-form:not([hidden])")
  page.fill("#key", "sk-right")
  page.keyboard.press("Enter")
  wait(page, "document.body.dataset.server === 'up'")
  assert page.is_hidden("#key-form") and "1 of 4 places" in page.inner_text("footer")
  page.keyboard.press("Enter")  # the focus is on Talk
  wait(page, "document.body.dataset.state === 'live'")


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
