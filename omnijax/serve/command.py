"""`omnijax serve`: a run, a port, and a server between them until it is told to stop."""

import dataclasses
import importlib
import logging
import os
from pathlib import Path

from omnijax.serve.settings import Settings

_log = logging.getLogger("omnijax")
KEY_VARIABLE = "OMNIJAX_API_KEY"


def run(run_dir: Path, settings: Settings, *, host: str, port: int, slots: int, queue: int,
        positions: int, int8: bool) -> None:
  """Serves a run's newest checkpoint until SIGTERM or SIGINT.

  Args:
    run_dir: directory of a run.
    host, port: where to listen; port 0 takes any that is free.
    settings: who may come, and limits; without keys, those of OMNIJAX_API_KEY hold.
    slots, queue, positions, int8: of Service.load.

  Raises:
    ValueError: there is no such run, or the port is taken.
    ModuleNotFoundError: the extra `serve` is not installed.
  """
  if not settings.api_keys and (keys := os.environ.get(KEY_VARIABLE, "")).strip(","):
    settings = dataclasses.replace(settings, api_keys=tuple(keys.split(",")))
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
