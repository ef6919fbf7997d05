"""Who is let in: keys, rates, how many at once, and nobody at the end."""

import pytest

from omnijax.serve.access import Access, presented
from omnijax.serve.errors import Refused
from omnijax.serve.settings import Settings


class Clock:
  now = 0.0

  def __call__(self):
    return self.now


def refused(access, key=None, address="a"):
  with pytest.raises(Refused) as caught:
    access.check(key, address)
  return caught.value.status_code, caught.value.code


def test_keys():
  access = Access(Settings(api_keys=("one", "two")))
  for key in ("one", "two"):
    access.check(key, "a")
  for key in (None, "", "three", "onetwo", "on", "\u00e9"):
    assert refused(access, key) == (401, "invalid_api_key")
  Access(Settings()).check(None, "a")


@pytest.mark.parametrize("header, key", [
  (None, None), ("", None), ("Bearer abc", "abc"), ("bearer abc ", "abc"), ("Basic abc", None),
  ("Bearer", None), ("Bearer ", None)])
def test_the_key_of_a_header(header, key):
  assert presented(header) == key


def test_the_key_of_a_page():
  offered = ["realtime", "openai-insecure-api-key.abc"]
  assert presented(None, offered) == "abc" and presented("Bearer x", offered) == "x"
  assert presented(None, ["realtime"]) is None


def test_each_client_has_its_rate():
  clock = Clock()
  access = Access(Settings(rate=3), clock)
  for _ in range(3):
    access.check(None, "a")
  assert refused(access) == (429, "rate_limit_exceeded")
  access.check(None, "b")
  with pytest.raises(Refused) as caught:
    access.check(None, "a")
  assert caught.value.headers == {"Retry-After": "20"}
  clock.now = 19.9
  refused(access)
  clock.now = 20.1
  access.check(None, "a")
  refused(access)
  clock.now = 1e6
  for _ in range(3):  # no more is saved up than a minute's
    access.check(None, "a")
  refused(access)


def test_with_keys_the_address_does_not_matter():
  access = Access(Settings(rate=1, api_keys=("x", "y")), Clock())
  access.check("x", "a")
  assert refused(access, "x", "b")[0] == 429
  access.check("y", "a")


def test_rates_of_many_addresses_do_not_pile_up(monkeypatch):
  monkeypatch.setattr("omnijax.serve.access._MOST_KNOWN", 10)
  access = Access(Settings(rate=1), Clock())
  for i in range(50):
    access.check(None, str(i))
  assert len(access._left) == 10
  assert refused(access, None, "49")[0] == 429


def test_how_many_at_once_and_the_end():
  access = Access(Settings(requests=2))
  access.inside = 2
  assert refused(access) == (429, "queue_full")
  access.inside = 1
  access.check(None, "a")
  access.stopping = True
  assert refused(access) == (503, "stopping")


@pytest.mark.parametrize("wrong, message", [
  ({"rate": -1}, "rate is -1; wanted 0 or more"), ({"max_audio_s": 0}, "more than 0"),
  ({"drain_s": float("nan")}, "drain_s is nan"), ({"api_keys": ("a", "")}, "an API key is empty"),
  ({"api_keys": (" a",)}, "blanks"), ({"api_keys": ("\u00e9",)}, "ASCII")])
def test_limits_that_make_no_sense(wrong, message):
  with pytest.raises(ValueError, match=message):
    Settings(**wrong)
