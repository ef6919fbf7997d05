"""The page and the server as they are, in a real Chromium; only the model is pretended."""

from __future__ import annotations

import pytest
import voices
from fake_service import FakeService
from serving import serving

from tests.serve.page.browser import data, opened, turns, wait, wait_for

pytestmark = pytest.mark.browser
WORDS = [f"w{i}" for i in range(40)]  # one a frame


class Model(FakeService):
  """Writes as FakeService does, and talks as `voices` do."""

  def __init__(self):
    super().__init__()
    self.voices = voices.Service(words=" ".join(WORDS))

  def talk(self, *, seed, emit):
    return self.voices.talk(seed=seed, emit=emit)

  def active(self):
    return {**super().active(), "talk": len(self.voices.talks)}


@pytest.fixture
def model():
  model = Model()
  yield model
  model.voices.close()


@pytest.fixture
def page(chromium, model):
  with serving(model) as server, opened(chromium, f"{server.url}/") as page:
    yield page


def test_a_conversation_is_held_and_interrupted(page, model):
  page.keyboard.press("Space")
  wait(page, "document.querySelectorAll('.turn.model[aria-busy=false]').length === 2")
  wait(page, "document.body.dataset.phase === 'listening'")
  first, second = turns(page, "model")
  assert "interrupted after" in first and first.split()[0] == "w0" and "w39" not in first
  assert second.split() == WORDS
  assert [turn[:10] for turn in turns(page, "user")] == ["spoke for "] * 2
  assert 100 < float(data(page, "latencyMs")) < 1500
  assert float(data(page, "playedMs")) > len(WORDS) * 80 + 1000
  assert page.is_hidden("#notice")

  page.fill("#text", "look here")
  page.keyboard.press("Enter")
  wait(page, "document.querySelectorAll('.turn.model').length === 3")
  [talk] = model.voices.talks
  inserted = [asked[1] for asked in talk.asked if asked[0] == "insert" and asked[1]]
  assert [[part["text"] for part in parts] for parts in inserted] == [["look here"]]
  page.click("#talk")
  wait_for(page, lambda: not model.voices.talks)  # its place is free


def test_silence_is_what_the_model_learns_of_too(page, model):
  page.click("#talk")
  wait(page, "Number(document.body.dataset.playedMs) > 400")
  page.keyboard.press("Escape")
  wait_for(page, lambda: any(kind == "truncate" for kind, *_ in model.voices.all_talks[0].asked))
  assert "interrupted after" in turns(page, "model")[0] and page.is_hidden("#notice")
  assert ("hush",) in model.voices.all_talks[0].asked


def test_a_model_that_cannot_hear_while_it_speaks_takes_turns(page, model):
  model.voices.speechless = True
  page.click("#talk")
  wait(page, "document.body.dataset.state === 'turns'")
  wait(page, "document.querySelector('.turn.model')?.innerText.includes('sound')")
  assert page.is_hidden("#notice") and model.calls[0]["to"] == "audio"


def test_messages_have_each_kind_of_answer(page, model):
  for i, (kind, there) in enumerate([("text", ".words"), ("speech", "audio"), ("picture", "img")]):
    page.check(f"[value={kind}]", force=True)
    page.fill("#text", "hello there")
    page.keyboard.press("Enter")
    wait(page, f"document.querySelectorAll('.turn.model[aria-busy=false]').length === {i + 1}")
    assert page.query_selector(f".turn.model:last-child {there}")
  assert turns(page, "model")[0] == turns(page, "model")[1] == "hello there"
  assert [call["to"] for call in model.calls] == ["text", "audio", "image"]
  assert "fake" in page.inner_text("footer") and "of 4 places" in page.inner_text("footer")


def test_what_does_not_fit_is_told(page, model):
  page.expected.append("400")
  page.fill("#text", "word " * 600)
  page.keyboard.press("Enter")
  page.wait_for_selector("#notice:not([hidden])")
  assert "positions" in page.inner_text("#notice-text")
