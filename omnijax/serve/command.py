"""`omnijax serve`: a run, a port, and a server between them until it is told to stop."""

import importlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from omnijax.serve.settings import Settings

_log = logging.getLogger("omnijax")
KEY_VARIABLE = "OMNIJAX_API_KEY"


def run(run_dir: Path, *, host: str, port: int, api_keys: Sequence[str], slots: int, queue: int,
        positions: int, int8: bool, **limits: float) -> None:
  """Serves a run's newest checkpoint until SIGTERM or SIGINT.

  Args:
    run_dir: directory of a run.
    host, port: where to listen; port 0 takes any that is free.
    api_keys: that clients must have; without any, those of OMNIJAX_API_KEY.
    slots, queue, positions, int8: of Service.load.
    limits: other fields of Settings.

  Raises:
    ValueError: there is no such run, the port is taken, or a limit is out of range.
    ModuleNotFoundError: the extra `serve` is not installed.
  """
  keys = tuple(api_keys) or tuple(os.environ.get(KEY_VARIABLE, "").split(","))
  settings = Settings(api_keys=keys if any(keys) else (), **limits)  # type: ignore[arg-type]
  for name in ("fastapi", "prometheus_client", "python_multipart", "uvicorn"):
    importlib.import_module(name)  # those that are missing are told before a model is loaded
  from omnijax.serve import app, server

  bound = server.bind(host, port, settings.stall_s)
  from omnijax.generate.service import Service

  # It tells of every malformed upload.
  logging.getLogger("python_multipart").setLevel(logging.ERROR)
  service = Service.load(run_dir, slots=slots, positions=positions, queue=queue, int8=int8)
  name = f"[{host}]" if ":" in host else host
  url = f"http://{name}:{bound.getsockname()[1]}"
  if not settings.api_keys and host not in ("127.0.0.1", "::1", "localhost"):
    _log.warning("whoever reaches %s may use the model; with %s only those who have the key.",
                 url, KEY_VARIABLE)

  def ready() -> None:
    print(f"Serving {service.name} on {url}, {slots} slots", flush=True)

  server.Server(app.create(service, settings), ready).run([bound])
