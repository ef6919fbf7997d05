"""A real Chromium with the web page, its microphone, and a server of tests."""

from __future__ import annotations

import pytest

from tests.serve.fake_realtime import Fake, running
from tests.serve.page.browser import bursts, opened

CHROMIUM = "/usr/bin/chromium"
FLAGS = ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream", "--no-sandbox",
         "--headless=new", "--disable-gpu", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--no-first-run"]


@pytest.fixture(scope="session")
def chromium(tmp_path_factory):
  sync_api = pytest.importorskip("playwright.sync_api")
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
  with running(fake) as url, opened(chromium, url) as page:
    yield page
