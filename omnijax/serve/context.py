"""What the endpoints of one server share."""

import dataclasses
import os
from collections.abc import Callable
from typing import Any, TypeVar

import anyio
import anyio.to_thread

from omnijax.serve.access import Access
from omnijax.serve.errors import Refused
from omnijax.serve.memory import Memory
from omnijax.serve.metrics import Metrics
from omnijax.serve.settings import Settings

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Context:
  """One server: the model's service, and what belongs to serving it."""

  service: Any  # omnijax.generate.service.Service
  settings: Settings
  access: Access
  metrics: Metrics
  memory: Memory
  threads: anyio.CapacityLimiter

  @classmethod
  def of(cls, service: Any, settings: Settings) -> "Context":
    """A server's, with nothing in it yet."""
    return cls(service, settings, Access(settings), Metrics(service), Memory(),
               anyio.CapacityLimiter(max(2, os.cpu_count() or 2)))

  async def in_thread(self, function: Callable[..., T], *args: Any) -> T:
    """Runs what would hold up the event loop: decoding, encoding, resampling."""
    return await anyio.to_thread.run_sync(function, *args, limiter=self.threads)

  @property
  def image_size(self) -> int:
    """Pixels of the longer side that pictures are scaled down to.

    Where no size is set, such that a square of it takes an eighth of the positions.
    """
    step = self.service.image_step
    return self.settings.image_size or step * max(1, int((self.service.max_positions / 8) ** 0.5))

  def check_model(self, name: str | None) -> None:
    """None is the only model that there is.

    Raises:
      Refused: there is no such model here.
    """
    if name is not None and name != self.service.name:
      raise Refused(404, f"There is no model {name[:80]!r} here; this server has "
                    f"{self.service.name!r}.", code="model_not_found", param="model")

  def check_modality(self, kind: str, what: str, param: str | None) -> None:
    """Whether the model reads and writes a modality.

    Raises:
      Refused: it doesn't.
    """
    if kind not in self.service.modalities:
      raise Refused(400, f"{self.service.name} knows {', '.join(sorted(self.service.modalities))}, "
                    f"and {what} needs {kind}; ask for something else, or serve a run that was "
                    f"trained with {kind}.", code="unsupported_modality", param=param)
