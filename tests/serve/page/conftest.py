"""A real Chromium with the web page, its microphone, and a server of tests."""

from __future__ import annotations

import re
import urllib.parse

import pytest

from tests.serve.fake_realtime import Fake, running
from tests.serve.page.browser import bursts

CHROMIUM = "/usr/bin/chromium"
FLAGS = ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream", "--no-sandbox",
         "--headless=new", "--disable-gpu", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--no-first-run"]


@pytest.fixture(scope="module")
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
