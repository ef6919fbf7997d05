"""Writing through the web page, with pictures, in a real Chromium."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from tests.serve.fake_realtime import PICTURE_SIDE, WORDS
from tests.serve.page.browser import data, tab_to, turns, wait, wait_for

pytestmark = pytest.mark.browser


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


def test_the_transcript_follows_its_end_until_one_scrolls_up(page, fake):
  gap = """(({scrollHeight, scrollTop, clientHeight}) => scrollHeight - scrollTop - clientHeight)(
    document.querySelector("#log"))"""
  for i in range(9):
    page.fill("#text", f"{i}\n" * 4)
    page.keyboard.press("Enter")
    wait(page, f"document.querySelectorAll('.turn.model[aria-busy=false]').length === {i + 1}")
    page.wait_for_timeout(60)
    assert page.evaluate(gap) < 24
    if i == 4:
      assert page.evaluate("document.querySelector('#log').scrollTop") > 100
  page.focus("#log")
  page.keyboard.press("Home")
  wait(page, "document.querySelector('#log').scrollTop === 0")
  page.fill("#text", "and so on")
  page.focus("#text")
  page.keyboard.press("Enter")
  wait(page, "document.querySelectorAll('.turn.model[aria-busy=false]').length === 10")
  page.wait_for_timeout(60)
  assert page.evaluate("document.querySelector('#log').scrollTop") == 0


@pytest.mark.parametrize("width, height", [(1280, 720), (1000, 420), (390, 844), (320, 568)])
def test_nothing_overlaps_or_sticks_out(page, fake, width, height):
  page.set_viewport_size({"width": width, "height": height})
  page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": file(40, 40)})
  page.wait_for_selector("#preview:not([hidden])")
  page.evaluate("() => { navigator.mediaDevices.getUserMedia = () => { throw new Error('x'); } }")
  page.click("#talk")
  page.wait_for_selector("#notice:not([hidden])")
  boxes = page.evaluate("""['header', '.stage', '#notice', '#log', '#composer', 'footer'].map(
    (name) => document.querySelector(name).getBoundingClientRect().toJSON())""")
  for above, below in zip(boxes, boxes[1:], strict=False):
    assert above["bottom"] <= below["top"] + 0.5 and below["height"] > 30
  inside = page.evaluate("""[...document.querySelectorAll('body *')].every(
    (one) => one.getBoundingClientRect().right <= innerWidth + 0.5)""")
  assert inside and page.evaluate("document.documentElement.scrollWidth <= innerWidth")


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
