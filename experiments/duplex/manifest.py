"""Writes the dialogues as files: manifests for `omnijax prepare`, and scenarios for live tests.

  python -m experiments.duplex.manifest FOLDER --dialogues 4000

A document is {"id", "parts": [{"audio", "role", "listen", "words"}, ...], "duplex": {...}}. Events
in "duplex" have seconds from the start of the dialogue; "cuts" are the seconds at which its parts
of audio after the first begin.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import multiprocessing
import os
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import soundfile
from PIL import Image
from rich.progress import track

from experiments.duplex import dialogues, recordings, scenarios
from experiments.duplex.recordings import FRAME, RATE

_IN_SAMPLES = ("start", "end", "answer_start", "answer_end", "stop")
# A word's time lies this far within its frame, lest rounding put it into the one before.
WITHIN = 0.001
KINDS = scenarios.KINDS
Job = tuple[Callable[..., dict[str, Any]], tuple[Any, ...]]


def seconds(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
  """Events with times in seconds."""
  return [{k: round(v / RATE, 4) if k in _IN_SAMPLES else v for k, v in event.items()}
          for event in events]


def document(folder: pathlib.Path, split: str, seed: int, number: int) -> dict[str, Any]:
  """Writes the files of one dialogue and returns its document; one that exists is left alone."""
  name = f"{split}-{seed}-{number:05d}"
  done = folder / split / f"{name}.json"
  if done.exists():
    return json.loads(done.read_text("utf-8"))
  made = dialogues.dialogue(seed, split, number)
  line = {"id": name, "parts": _parts(made, folder, f"{split}/{name}"),
          "duplex": {"seconds": len(made.user_T) / RATE, "cuts": [c * FRAME / RATE for c, _ in
                                                                made.cuts],
                     "events": seconds(made.events)}}
  _finish(done, line)
  return line


def _finish(path: pathlib.Path, line: dict[str, Any]) -> None:
  part = path.with_suffix(".part")
  part.write_text(json.dumps(line, ensure_ascii=False), "utf-8")
  part.rename(path)


def _parts(made: dialogues.Dialogue, folder: pathlib.Path, stem: str) -> list[dict[str, Any]]:
  """The parts of a document, its files written: audio, cut where something comes in between."""
  bounds = [0, *(frame for frame, _ in made.cuts), len(made.user_T) // FRAME]
  parts: list[dict[str, Any]] = []
  for i, (first, last) in enumerate(zip(bounds, bounds[1:], strict=False)):
    for given in made.cuts[i - 1][1] if i else ():
      if "image" in given:
        Image.fromarray(given["image"]).save(folder / f"{stem}.{i}.png", compress_level=1)
        given = given | {"image": f"{stem}.{i}.png"}
      parts.append(given)
    for side, wave_T in (("user", made.user_T), ("assistant", made.assistant_T)):
      _write(folder / f"{stem}.{i}.{side}.flac", wave_T[first * FRAME : last * FRAME])
    words = [[round((w.frame - first) * FRAME / RATE + WITHIN, 3),
              recordings.word(w.language, w.digit)] for w in made.words if first <= w.frame < last]
    parts.append({"audio": f"{stem}.{i}.assistant.flac", "role": "assistant",
                  "listen": f"{stem}.{i}.user.flac", "words": words})
  return parts


def _write(path: pathlib.Path, wave_T: np.ndarray) -> None:
  soundfile.write(path, np.round(wave_T * 32767).astype(np.int16), RATE)


def scenario(folder: pathlib.Path, seed: int, kind: str, number: int) -> dict[str, Any]:
  """Writes the user's stream of one scenario and returns its line."""
  name = f"{kind}-{seed}-{number:03d}"
  done = folder / "scenarios" / f"{name}.json"
  if done.exists():
    return json.loads(done.read_text("utf-8"))
  made = scenarios.scenario(seed, kind, number)
  soundfile.write(folder / "scenarios" / f"{name}.wav", made.user_T, RATE, subtype="PCM_16")
  line = {"id": name, "kind": kind, "audio": f"scenarios/{name}.wav",
          "seconds": len(made.user_T) / RATE, "background": made.background,
          "events": seconds(made.events)}
  _finish(done, line)
  return line


def write(folder: pathlib.Path, *, seed: int, dialogues: int, heldout: int, scenarios: int,
          processes: int | None = None) -> None:
  """Writes train.jsonl, heldout.jsonl and scenarios.jsonl, and their files beside them.

  Args:
    folder: where.
    seed: of everything; the held-out dialogues and scenarios have numbers of their own.
    dialogues: to train on.
    heldout: of voices that are never trained on.
    scenarios: of each kind.
    processes: as many as there are processors by default; 0 is this one.

  Raises:
    ValueError: a number is negative, and nothing has been written.
  """
  numbers = {"seed": seed, "dialogues": dialogues, "heldout": heldout, "scenarios": scenarios}
  for name, number in numbers.items():
    if number < 0:
      raise ValueError(f"{name} is {number}; wanted 0 or more.")
  folder = pathlib.Path(folder)
  manifests: dict[str, list[Job]] = {
    "train": [(document, (folder, "train", seed, i)) for i in range(dialogues)],
    "heldout": [(document, (folder, "heldout", seed, i)) for i in range(heldout)],
    "scenarios": [(scenario, (folder, seed, kind, i)) for kind in KINDS for i in range(scenarios)],
  }
  for name in manifests:
    (folder / name).mkdir(parents=True, exist_ok=True)
  jobs = [job for some in manifests.values() for job in some]
  lines = dict(zip(map(str, (args for _, args in jobs)), _run(jobs, processes), strict=True))
  for name, some in manifests.items():
    with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as out:
      out.writelines(json.dumps(lines[str(args)], ensure_ascii=False) + "\n" for _, args in some)


def _run(jobs: list[Job], processes: int | None) -> list[dict[str, Any]]:
  if processes == 0:
    return [_call(job) for job in jobs]
  context = multiprocessing.get_context("spawn")
  with concurrent.futures.ProcessPoolExecutor(processes or os.cpu_count(), context) as pool:
    return list(track(pool.map(_call, jobs, chunksize=8), "dialogues", len(jobs)))


def _call(job: Job) -> dict[str, Any]:
  return job[0](*job[1])


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("folder", type=pathlib.Path)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--dialogues", type=int, default=4000)
  parser.add_argument("--heldout", type=int, default=150)
  parser.add_argument("--scenarios", type=int, default=80, help="of each kind")
  args = parser.parse_args()
  try:
    write(args.folder, seed=args.seed, dialogues=args.dialogues, heldout=args.heldout,
          scenarios=args.scenarios)
  except (ValueError, OSError) as error:
    parser.error(str(error))


if __name__ == "__main__":
  main()
