"""Everything that the server counts, for Prometheus."""

from collections.abc import Iterator
from typing import Any

import prometheus_client as prometheus
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

CONTENT_TYPE = prometheus.CONTENT_TYPE_PLAIN_0_0_4
_WAITS = (0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 51.2)
# One frame is 80 ms: who takes longer than that falls behind.
_FRAMES = (0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.12, 0.16, 0.32, 0.64)


class _Active(Collector):
  """What the service works on at the time of a look."""

  def __init__(self, service: Any):
    self._service = service

  def collect(self) -> Iterator[GaugeMetricFamily]:
    names = {"write": "Answers being written.", "talk": "Full-duplex talks going on.",
             "queued": "Answers that wait for a slot.", "slots": "Slots, free or not."}
    active = self._service.active()
    for name, text in names.items():
      yield GaugeMetricFamily(f"omnijax_service_{name}", text, value=active[name])


class Metrics:
  """Counters and histograms in a registry of their own: several servers may live in a process."""

  def __init__(self, service: Any):
    self._registry = prometheus.CollectorRegistry()
    mine: Any = {"registry": self._registry}
    self._registry.register(_Active(service))
    self._requests = prometheus.Counter(
      "omnijax_requests", "Requests answered; status 499: the client left.",
      ("endpoint", "status"), **mine)
    self._seconds = prometheus.Histogram(
      "omnijax_request_seconds", "From a request's head to the end of its answer.", ("endpoint",),
      buckets=_WAITS, **mine)
    self._first = prometheus.Histogram(
      "omnijax_first_seconds", "From a request's head to the first text, sound or picture of its "
      "answer.", ("endpoint", "kind"), buckets=_WAITS, **mine)
    self._positions = prometheus.Counter(
      "omnijax_positions", "Positions of prompts and of answers.", ("endpoint", "of"), **mine)
    self._sessions = prometheus.Gauge(
      "omnijax_realtime_sessions", "Realtime sessions that are open.", **mine)
    self._opened = prometheus.Counter(
      "omnijax_realtime_opened", "Realtime sessions, since the start.", **mine)
    self._frames = prometheus.Histogram(
      "omnijax_frame_seconds", "From the last heard sample of a frame to the model's own frame.",
      buckets=_FRAMES, **mine)
    self._late = prometheus.Counter(
      "omnijax_frames_late", "Frames that came after their time.", **mine)

  def request(self, endpoint: str, status: int, seconds: float) -> None:
    """A request has been answered, or its client has left (499)."""
    self._requests.labels(endpoint, status).inc()
    self._seconds.labels(endpoint).observe(seconds)

  def first(self, endpoint: str, kind: str, seconds: float) -> None:
    """The first event of an answer has come."""
    self._first.labels(endpoint, kind).observe(seconds)

  def positions(self, endpoint: str, prompt: int, written: int) -> None:
    """An answer has ended."""
    self._positions.labels(endpoint, "prompt").inc(prompt)
    self._positions.labels(endpoint, "answer").inc(written)

  def session_opened(self) -> None:
    """A realtime session has begun."""
    self._sessions.inc()
    self._opened.inc()

  def session_closed(self) -> None:
    """A realtime session has ended."""
    self._sessions.dec()

  def observe_frame(self, took_s: float, late: bool) -> None:
    """A frame of a talk has come."""
    self._frames.observe(took_s)
    self._late.inc(late)

  def text(self) -> bytes:
    """All of it, as CONTENT_TYPE."""
    return prometheus.generate_latest(self._registry)
