"""Who may come in, how often, and whether the server still takes anybody."""

import collections
import hmac
import time
from collections.abc import Callable, Iterable

from omnijax.serve.errors import Refused, Stopping
from omnijax.serve.settings import Settings

_PREFIX = "openai-insecure-api-key."  # begins the subprotocol by which pages give their key
_MOST_KNOWN = 10_000  # addresses whose rates are remembered, those that came last


class Access:
  """Decides about every request and every session before anything of it is read.

  Args:
    settings: its keys, its rate and how many may be inside at once.
    clock: seconds that only go forward.
  """

  def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic):
    self._settings, self._clock = settings, clock
    self._left: collections.OrderedDict[str, tuple[float, float]] = collections.OrderedDict()
    self.stopping = False  # once it is true, nobody is let in any more
    self.inside = 0  # requests and sessions that have been let in and have not left

  def check(self, key: str | None, address: str) -> None:
    """Lets somebody in, or not.

    Args:
      key: that was presented, such as `presented` finds it.
      address: of the client.

    Raises:
      Refused: 401, 429 or 503.
    """
    if self.stopping:
      raise Stopping
    keys = self._settings.api_keys
    if keys:
      # All are compared, each in a time that tells nothing.
      good = [hmac.compare_digest((key or "").encode(), k.encode()) for k in keys]
      if not any(good):
        got = "an API key that is not known here" if key else "no API key"
        raise Refused(401, f"There came {got}; send the header Authorization: Bearer KEY (pages: "
                      f"the WebSocket subprotocol {_PREFIX}KEY) with one that this server was "
                      "started with.", code="invalid_api_key")
    if self.inside >= self._settings.requests:
      raise Refused(429, f"{self.inside} requests are under way, which is all that this server "
                    "takes; ask again later.", code="queue_full", retry_after=1)
    if self._settings.rate:
      self._count(f"key {key}" if keys else address)

  def _count(self, who: str) -> None:
    """A bucket of a minute's requests for each, which fills evenly."""
    now, rate = self._clock(), self._settings.rate
    left, at = self._left.get(who, (float(rate), now))
    left = min(rate, left + (now - at) * rate / 60)
    self._left[who] = (left - 1 if left >= 1 else left, now)
    self._left.move_to_end(who)
    if len(self._left) > _MOST_KNOWN:
      self._left.popitem(last=False)
    if left < 1:
      raise Refused(429, f"This server takes {rate} requests a minute from each client; slow "
                    "down.", code="rate_limit_exceeded", retry_after=(1 - left) * 60 / rate)


def presented(authorization: str | None, subprotocols: Iterable[str] = ()) -> str | None:
  """The key in an Authorization header or, as pages open WebSockets, in a subprotocol."""
  kind, _, key = (authorization or "").partition(" ")
  if kind.lower() == "bearer" and key.strip():
    return key.strip()
  return next((p.removeprefix(_PREFIX) for p in subprotocols if p.startswith(_PREFIX)), None)
