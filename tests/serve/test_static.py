"""The page as files: what a browser is told about them, and that they are whole."""

import re

import pytest

pytest.importorskip("starlette")

from starlette.applications import Starlette
from starlette.testclient import TestClient

from omnijax.serve.static import FOLDER, page

FILES = sorted(FOLDER.iterdir())
KINDS = {".html": "text/html", ".css": "text/css", ".js": "javascript", ".svg": "image/svg+xml"}


@pytest.fixture(scope="module")
def client():
  with TestClient(Starlette(routes=page())) as client:
    yield client


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_each_file_is_served_and_may_load_nothing_from_elsewhere(client, path):
  answer = client.get(f"/{path.name}")
  assert answer.status_code == 200 and answer.content == path.read_bytes()
  assert KINDS[path.suffix] in answer.headers["content-type"]
  rules = answer.headers["content-security-policy"]
  assert "default-src 'self'" in rules and "unsafe" not in rules and "http" not in rules
  assert answer.headers["x-content-type-options"] == "nosniff"
  assert "microphone=(self)" in answer.headers["permissions-policy"]


def test_the_root_is_the_page_and_what_is_not_there_is_not_found(client):
  assert client.get("/").content == (FOLDER / "index.html").read_bytes()
  assert client.get("/../static.py").status_code == client.get("/none.js").status_code == 404
  again = client.get("/app.js", headers={"If-None-Match": client.get("/app.js").headers["etag"]})
  assert again.status_code == 304


def test_sources_keep_to_the_rules():
  for path in FILES:
    text = path.read_text("utf-8")
    assert text.isascii() and text.count("\n") < 400, path
    assert max(map(len, text.splitlines())) <= 100, path
  html = (FOLDER / "index.html").read_text("utf-8")
  assert "//" not in html and " style=" not in html and not re.search(r"\son[a-z]+=", html)
  assert re.findall(r"<script[^>]*>([^<]*)</script>", html) == [""]


def test_every_part_that_is_named_exists():
  html = (FOLDER / "index.html").read_text("utf-8")
  ids = set(re.findall(r'\sid="([^"]+)"', html))
  named = set(re.findall(r'(?:href|src)="([^"#]+)"', html))
  for path in FOLDER.glob("*.js"):
    text = path.read_text("utf-8")
    named |= set(re.findall(r'from "\./([^"]+)"', text))
    named |= set(re.findall(r'new URL\("([^"]+)", import', text))
    assert set(re.findall(r'\$\("([^"]+)"\)', text)) <= ids, path
  # All but the page itself, by which everything begins.
  assert named == {path.name for path in FILES} - {"index.html"}
