"""Two real corpora from nothing to records, one command each.

  python -m experiments.stamps_data.build stamps --dir corpora
  python -m experiments.stamps_data.build asterisk --dir corpora

Downloads Debian packages by name (needs apt-get and dpkg-deb, not root), unpacks them into DIR,
writes manifests, holds their counts against what the packages hold, and prepares records. Resumes
what was interrupted. Recordings of Asterisk are read by the extra `av`. SOURCES.md has licences.

  DIR/text             a text tokenizer of both corpora: the one that ships with omnijax spells most
                       of the 78 languages in bytes, and then a quarter of what is spoken has more
                       pieces than frames
  DIR/stamps/*.jsonl   captions.jsonl, speech.jsonl; DIR/asterisk/speech.jsonl
  DIR/*/records/...    as `omnijax prepare` writes them, what is held out in `heldout` within;
                       each with a report.html

Cost: 216 MB to download, 0.6 GB on disk; about 4 minutes on one core.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import pathlib
import sys
import time

from experiments.stamps_data import asterisk, counts, packages, stamps
from omnijax import config
from omnijax.data import encode, merge, prepare
from omnijax.evals import source_report
from omnijax.tokenizers import load, text

PIECES = 8192
HELDOUT = 0.05
PIXELS = 64


def fetch_stamps(folder: pathlib.Path) -> list[stamps.Stamp]:
  """Downloads, unpacks and reads the stamps."""
  return stamps.read(packages.fetch(stamps.PACKAGES, folder / "stamps"))


def fetch_asterisk(folder: pathlib.Path) -> list[asterisk.Recording]:
  """Downloads, unpacks and reads the prompts."""
  return asterisk.read(packages.fetch(asterisk.PACKAGES, folder / "asterisk"))


def build_stamps(folder: pathlib.Path) -> list[pathlib.Path]:
  """Fetches the stamps and writes their manifests, which are returned."""
  found, home = fetch_stamps(folder), folder / "stamps"
  made = {name: counts.write(home / f"{name}.jsonl", lines) for name, lines in (
    ("captions", stamps.caption_documents(found)), ("speech", stamps.speech_documents(found)))}
  print(counts.compare(
    stamps.in_package(packages.members(home, *stamps.PACKAGES)),
    stamps.in_manifest(found, [line for lines in made.values() for line in lines])))
  for name, lines in made.items():
    _tell(home / f"{name}.jsonl", lines)
  return [home / f"{name}.jsonl" for name in made]


def build_asterisk(folder: pathlib.Path) -> list[pathlib.Path]:
  """Fetches the prompts and writes their manifest, which is returned."""
  try:
    import av  # noqa: F401
  except ImportError:
    raise ValueError("the prompts of Asterisk are G.722, which PyAV reads, and it is not "
                     "installed; install the extra `av`.") from None
  found, home = fetch_asterisk(folder), folder / "asterisk"
  lines = counts.write(home / "speech.jsonl", asterisk.documents(found))
  held = itertools.chain.from_iterable(packages.members(home, name) for name in asterisk.PACKAGES)
  print(counts.compare(asterisk.in_package(held), asterisk.in_manifest(found, lines)))
  _tell(home / "speech.jsonl", lines)
  for reason, number in collections.Counter(r.reason for r in found if r.reason).items():
    print(f"  left out, {reason}: {number}")
  return [home / "speech.jsonl"]


def _tell(path: pathlib.Path, lines: list[dict]) -> None:
  kinds = collections.Counter(line["about"]["kind"] for line in lines)
  languages = {line["about"]["language"] for line in lines} - {""}
  print(f"{path}: {len(lines):,} documents of {len({line['group'] for line in lines}):,} groups; "
        + ", ".join(f"{n:,} {kind}" for kind, n in kinds.items()) + f"; {len(languages)} languages")


def tokenizer(folder: pathlib.Path) -> pathlib.Path:
  """The text tokenizer of both corpora, trained if it is not there, on nothing that is held out."""
  out = folder / "text"
  if not (out / "config.json").exists():
    every = [*stamps.texts(fetch_stamps(folder)), *asterisk.texts(fetch_asterisk(folder))]
    mine = [line for group, line in every if not merge.held_out(group, HELDOUT)]
    print(f"training a text tokenizer of {PIECES:,} pieces on {len(mine):,} lines", flush=True)
    out.mkdir(parents=True, exist_ok=True)
    (out / "lines.txt").write_text("\n".join(mine), "utf-8")
    text.train([out / "lines.txt"], out, size=PIECES)
  return out


def main(argv: list[str] | None = None) -> None:
  parser = argparse.ArgumentParser(description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("corpus", choices=("stamps", "asterisk"))
  parser.add_argument("--dir", type=pathlib.Path, default=pathlib.Path("corpora"),
                      help="what all is written to (default: %(default)s)")
  parser.add_argument("--text", default="", metavar="DIR|packaged",
                      help="the text tokenizer (default: DIR/text, trained if need be)")
  parser.add_argument("--processes", type=int, metavar="N", help="that decode files")
  args = parser.parse_args(argv)
  folder = args.dir
  build = {"stamps": build_stamps, "asterisk": build_asterisk}[args.corpus]
  start = time.monotonic()
  manifests = build(folder)
  named = args.text or str(tokenizer(folder))
  tokenizers = load.load_all(config.Tokenizers(text=named))
  for path in manifests:
    out = path.parent / "records" / path.stem
    prepare.prepare(path, out, tokenizers=encode.Tokenizers(*tokenizers),
                    choices=prepare.Choices(PIXELS, HELDOUT), processes=args.processes)
    source_report.write(out, tokenizers, str(path))
  print(f"{time.monotonic() - start:.0f} s")


if __name__ == "__main__":
  try:
    main()
  except ValueError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
