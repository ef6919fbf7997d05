"""What `omnijax serve` takes."""

import argparse
from pathlib import Path

from omnijax.serve.settings import Settings

SERVICE = ("slots", "queue", "positions", "int8")  # of the model's service
_LIMITS = ("rate", "max_upload_mb", "max_audio_s", "max_megapixels", "image_size", "drain_s")


def settings(args: argparse.Namespace) -> Settings:
  """What clients may do.

  Raises:
    ValueError: a limit is out of range, or a key can't be sent.
  """
  return Settings(api_keys=tuple(args.api_key), **{name: getattr(args, name) for name in _LIMITS})


def add(p: argparse.ArgumentParser) -> None:
  """Adds them to a parser."""
  default = Settings()
  shown = "(default: %(default)s)"
  p.add_argument("run", metavar="RUN", type=Path, help="directory of a run")
  p.add_argument("--host", default="127.0.0.1", help=f"address to listen on; 0.0.0.0: all {shown}")
  p.add_argument("--port", type=int, default=8000, help=f"0: any that is free {shown}")
  p.add_argument("--api-key", action="append", default=[], metavar="KEY",
                 help="that clients must have (default: those of OMNIJAX_API_KEY, else none)")
  p.add_argument("--slots", type=int, default=4, metavar="N", help="answers written, and talks "
                 f"held, at a time {shown}")
  p.add_argument("--queue", type=int, default=64, metavar="N",
                 help=f"answers that may wait {shown}")
  p.add_argument("--positions", type=int, default=512, metavar="N", help="of a prompt and its "
                 f"answer together, or that a talk remembers {shown}")
  p.add_argument("--int8", action="store_true", help="weights and caches of 8 bits")
  p.add_argument("--rate", type=int, default=default.rate, metavar="N", help="requests a minute of "
                 "each key, or of each address without keys (default: any)")
  for name, text in (("max-upload-mb", "of a request"), ("max-audio-s", "of the sounds in it"),
                     ("max-megapixels", "of the pictures in it")):
    p.add_argument(f"--{name}", type=float, default=getattr(default, name.replace("-", "_")),
                   metavar="X", help=f"{text} {shown}")
  p.add_argument("--image-size", type=int, default=default.image_size, metavar="N",
                 help="scale larger pictures down to N pixels of their longer side: what the model "
                 "was trained with (default: an eighth of the positions)")
  p.add_argument("--drain-s", type=float, default=default.drain_s, metavar="S",
                 help=f"seconds that running requests have after SIGTERM {shown}")
