"""`omnijax generate`: a run, any mix of inputs, and a file."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from omnijax.generate import decode
from omnijax.generate.sample import Sampling

_SUFFIX = {"image": ".png", "audio": ".wav"}


def run(run_dir: Path, inputs: Sequence[tuple[str, str]], *, to: Literal["text", "image", "audio"],
        out: Path | None = None, seed: int = 0, sampling: Sampling = Sampling(),
        image_size: tuple[int, int] | None = None, max_new: int = 256, guidance: float = 1.0
        ) -> None:
  """Answers one prompt from a run's newest checkpoint.

  Args:
    run_dir: directory of a run.
    inputs: (kind, value) in the order given; the value is a text, or the path of a file.
    to: text is printed, or written to `out`; an image becomes a PNG, audio a 16-bit WAV. Both
      files carry the prompt, the run, the step and the seed; words that go with them are printed.
    out: the file; without it out.png or out.wav.
    seed, sampling, image_size, max_new, guidance: see decode.Generator.generate.

  Raises:
    ValueError: as generate; or the file can't be written there.
  """
  if not inputs:
    raise ValueError("there is no input; give at least one of --text, --image, --audio.")
  if out is None and to != "text":
    out = Path("out" + _SUFFIX[to])
  if out is not None:
    _check_out(out, to)
  generator = decode.Generator.load(run_dir, max_batch=2)
  answer = generator.generate([[{kind: value} for kind, value in inputs]], to=to, seed=seed,
                              sampling=sampling, image_size=image_size, max_new=max_new,
                              guidance=guidance)[0]
  if out is None:
    print(answer.text)
    return
  about = {"prompt": " ".join(f"{kind}: {value}" for kind, value in inputs),
           "run": run_dir.absolute().name, "step": str(_step(run_dir)), "seed": str(seed)}
  part = out.with_name(out.name + ".part")
  try:
    if to == "text":
      part.write_text(f"{answer.text}\n", encoding="utf-8")
    elif answer.image is not None:
      write_png(part, answer.image, about)
    elif answer.audio is not None:
      write_wav(part, answer.audio, generator.tokenizers.audio.sample_rate, about)
    part.replace(out)
  finally:
    part.unlink(missing_ok=True)
  words = answer.monologue or answer.text
  said = f": {words}" if words else ""
  print(f"{out}{said}", file=sys.stderr)


def write_png(path: Path, pixels_HWC: np.ndarray, about: dict[str, str]) -> None:
  """Writes uint8 pixels of 1 or 3 channels as PNG, `about` as its text chunks."""
  from PIL import Image, PngImagePlugin
  info = PngImagePlugin.PngInfo()
  for key, value in about.items():
    info.add_text(key, value)  # tEXt, or iTXt where the value isn't Latin-1
  flat = pixels_HWC[..., 0] if pixels_HWC.shape[2] == 1 else pixels_HWC
  Image.fromarray(flat).save(path, format="PNG", pnginfo=info)


def write_wav(path: Path, wave_L: np.ndarray, sample_rate: int, about: dict[str, str]) -> None:
  """Writes float samples as 16-bit PCM WAV, clipped to [-1, 1], `about` as its comment."""
  import soundfile
  with soundfile.SoundFile(path, "w", sample_rate, 1, "PCM_16", format="WAV") as file:
    file.comment = "; ".join(f"{key}: {value}" for key, value in about.items())
    file.software = "omnijax"
    file.write(np.clip(wave_L, -1.0, 1.0))


def _check_out(out: Path, to: str) -> None:
  wanted = _SUFFIX.get(to)
  if wanted and out.suffix.lower() != wanted:
    raise ValueError(f"--out is {out}, and {to} is written as {wanted[1:].upper()}; give a file "
                     f"name that ends in {wanted}.")
  if out.is_dir() or not out.parent.is_dir() or not os.access(out.parent, os.W_OK):
    raise ValueError(f"--out is {out}, which can't be written; give a file in an existing "
                     "directory that you may write to.")


def _step(run_dir: Path) -> Any:
  from omnijax import checkpoint
  return checkpoint.read_identity(Path(run_dir) / "checkpoints")[0]
