"""Compiling in a process of its own: a compiler that finds itself in error takes its process down.
"""

import multiprocessing
import os
import re
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Refused(ValueError):
  """The compiler crashed on a program, or gave it back."""


def call(work: Callable[..., Any], *arguments: Any, what: str,
         stage: Callable[[str], None] = lambda name: None) -> Any:
  """work(*arguments, stage), in a process that ends with this one at the latest.

  What it says on stderr after its first stage, in which the compiler starts, is passed on.

  Args:
    work: a function of a module; it, its arguments and its result are pickled.
    what: is compiled, for messages.
    stage: told how far it is.

  Raises:
    ValueError, ModuleNotFoundError: as raised by it.
    Refused: the compiler crashed or gave up; its last words, and what to change.
    RuntimeError: anything else went wrong in it.
  """
  context = multiprocessing.get_context("spawn")
  with tempfile.TemporaryDirectory(prefix="omnijax_") as folder:
    said = Path(folder, "stderr")
    said.touch()
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(theirs, said, work, arguments), daemon=True)
    process.start()
    theirs.close()
    starts = []  # where on stderr a stage begins
    try:
      while True:
        kind, value = ours.recv()
        if kind != "stage":
          break
        starts.append(value[1])
        stage(value[0])
    except EOFError:
      process.join()
      kind, value = "crashed", None
    finally:
      process.kill()
      process.join()
      ours.close()
    words = said.read_bytes()
  if kind == "crashed":
    value = f"{_ending(process.exitcode)}: {_last_words(words.decode('utf-8', 'replace'))}"
  else:
    begun = starts[1] if len(starts) > 1 else len(words)
    sys.stderr.write(words[begun:].decode("utf-8", "replace"))
  if kind == "done":
    return value
  if kind == "raised":
    raise value
  if kind == "broken":
    raise RuntimeError(f"{what} was not compiled:\n{value}")
  raise Refused(f"the compiler failed on {what}: {value}. Change the mesh, data.rows, model.remat "
                "or model.attention_blocks, or try another version of the compiler.")


def _child(out: Any, said: Path, work: Callable[..., Any], arguments: tuple) -> None:
  """Runs in the process; stderr goes to a file, since a crash is explained there only."""
  threading.Thread(target=_follow_parent, daemon=True).start()
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
  with said.open("wb") as file:
    os.dup2(file.fileno(), 2)
  import jax
  stage = lambda name: out.send(("stage", (name, os.fstat(2).st_size)))
  try:
    result = "done", work(*arguments, stage)
  except (ValueError, ModuleNotFoundError) as error:
    result = "raised", error
  except jax.errors.JaxRuntimeError as error:
    result = "gave up", " ".join(str(error).split())
  except Exception:  # Raised again in the parent, with where it happened here.
    result = "broken", traceback.format_exc()
  out.send(result)


def _follow_parent() -> None:
  parent = multiprocessing.parent_process()
  assert parent is not None
  parent.join()
  os._exit(1)


def _ending(code: int | None) -> str:
  if code is None or code >= 0:
    return f"it ended with exit code {code}"
  return f"it was ended by {signal.Signals(-code).name}"


def _last_words(text: str) -> str:
  """The failed check that a crash is about, or the last line that isn't part of a stack trace."""
  checks = re.findall(r"^F\d{4} [^\]]*\] *(.*)$", text, re.MULTILINE)
  lines = [line.strip() for line in text.splitlines()]
  others = [line for line in lines if line and not re.match(r"@|#|\*\*\*|0x|PC:", line)]
  return (checks or others[-1:] or ["no word"])[0].rstrip(".")
