"""Makes the tokenizers that ship with the package, from named, installable data.

Speech: recordings and synthesisers from Debian packages, unpacked without root. Nothing of the
data is kept in the repository; see the list of sources and licences below. Run as

    python -m experiments.tokenizers gather WORK     # packages -> WORK/{train,...}.jsonl
    python -m experiments.tokenizers train WORK      # WORK/train.jsonl -> WORK/audio
    python -m experiments.tokenizers judge WORK      # figures on held-out speech
    python -m experiments.tokenizers ship WORK       # WORK/audio -> omnijax/tokenizers/pretrained

`gather` needs apt-get, dpkg, ffmpeg, espeak-ng and flite (all Debian packages), and pyworld (PyPI).
"""

import collections
import gzip
import hashlib
import itertools
import json
import re
import subprocess
import sys
import unicodedata
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
from rich.progress import track

from experiments.digits import revoice
from experiments.digits import unpack as digits_files
from experiments.digits import voices as digits_voices
from experiments.digits.train_judges import disguised
from omnijax.evals import codec
from omnijax.tokenizers import audio, recipes, train_audio

PACKAGES = {
  # Debian package: licence of its recordings
  **{f"asterisk-core-sounds-{lang}-g722": "CC-BY-SA-3.0" for lang in ("en", "es", "fr")},
  **{f"asterisk-core-sounds-{lang}-g722": "CC-BY-3.0" for lang in ("it", "ru")},
  **{f"asterisk-core-sounds-{lang}": "transcripts of the above" for lang in ("en", "es", "fr")},
  **{f"asterisk-core-sounds-{lang}": "transcripts of the above" for lang in ("it", "ru")},
  "asterisk-prompt-es-co": "GPL-2",
  "asterisk-prompt-it-menardi-wav": "CC-BY-SA-3.0; Marco Menardi, Paola Dal Zot; for tests only",
  "tuxpaint-stamps-default": "GPL-2",
  "klettres-data": "GPL-2+",
  "ktuberling-data": "GPL-2+",
}
VOICES = {"en": "en_US_f_Allison", "es": "es_MX_f_Allison", "fr": "fr_CA_f_June"}
VOICES |= {"it": "it_IT_m_Carlo", "ru": "ru_RU_f_IvrvoiceRU"}
DIGITS = {
  "en": "zero one two three four five six seven eight nine",
  "es": "cero uno dos tres cuatro cinco seis siete ocho nueve",
  "fr": "zéro un deux trois quatre cinq six sept huit neuf",
  "it": "zero uno due tre quattro cinque sei sette otto nove",
}
ESPEAK = {"en": ("en-us", "en-gb", "en-gb-scotland"), "es": ("es", "es-419")}
ESPEAK |= {"fr": ("fr-fr", "fr-be"), "it": ("it",)}
VARIANTS = ("", "+f1", "+f2", "+f3", "+f4", "+m1", "+m3", "+m5", "+Annie", "+Denis", "+Gene")
VARIANTS += ("+Linda", "+Steph", "+Tweaky", "+quincy", "+steph2")
FLITE = ("rms", "awb", "kal16")
# Voices of experiments/digits that are held out there. Of Allison there is other speech enough:
# it teaches sound (no transcripts) and holds no digits. The others are left out whole, above too.
HELD_OUT = ("en_US_f_Allison", "es_MX_f_Allison")
# Of the digits' training recordings, by kind of voice: disguises, and voices made of each. Blends
# are many voices as they are.
DISGUISES = collections.defaultdict(lambda: 6, person=23, espeak=3, blend=0)
REVOICED = collections.defaultdict(lambda: 3, person=12, espeak=2, blend=0)


def unpack(work: Path) -> Path:
  """Downloads the packages with apt-get and unpacks them under WORK/x, without root."""
  root = work / "x"
  for package in track(PACKAGES, "unpack"):
    if not (root / "usr/share/doc" / package).exists():
      subprocess.run(["apt-get", "download", "-q", package], cwd=work, check=True)
      for deb in work.glob(f"{package}_*.deb"):
        subprocess.run(["dpkg", "-x", str(deb), str(root)], check=True)
  return root / "usr/share"


def held_out(key: str) -> bool:
  """Every 10th prompt, by a hash of its name."""
  return zlib.crc32(key.encode()) % 10 == 0


def asterisk(share: Path, lang: str) -> Iterator[dict]:
  """Prompts of one professional voice with their transcripts."""
  text = gzip.open(share / f"doc/asterisk-core-sounds-{lang}/core-sounds-{lang}.txt.gz").read()
  words = {}
  for line in text.decode("utf-8-sig").splitlines():
    if not line.startswith(";") and ": " in line:
      key, words[key] = (part.strip() for part in line.split(": ", 1))
  base = share / "asterisk/sounds" / VOICES[lang]
  for path in sorted(base.rglob("*.g722")):
    key = str(path.relative_to(base).with_suffix(""))
    spoken = words.get(key, "")
    if spoken and not set(spoken) & set("[]()<>?"):
      yield {"audio": path, "key": key, "lang": lang, "transcript": spoken, "voice": VOICES[lang]}


def other_recordings(share: Path) -> Iterator[dict]:
  """All recordings without a transcript of their own, Russian left out."""
  sounds = share / "asterisk/sounds"
  for path in sorted((sounds / "es").rglob("*.gsm")):
    yield {"audio": path, "lang": "es", "voice": "es-co"}
  for path in sorted((share / "klettres").rglob("*.ogg")):
    lang = path.relative_to(share / "klettres").parts[0]
    yield {"audio": path, "lang": lang, "voice": f"klettres-{lang}"}
  for path in sorted((share / "ktuberling/sounds").rglob("*")):
    lang = path.relative_to(share / "ktuberling/sounds").parts[0]
    if path.suffix in (".ogg", ".wav", ".opus"):
      yield {"audio": path, "lang": lang, "voice": f"ktuberling-{lang}"}


def tuxpaint(share: Path) -> Iterator[dict]:
  """Spoken descriptions of pictures by volunteers, with captions where the language has one."""
  for path in sorted((share / "tuxpaint/stamps").rglob("*_desc*.ogg")):
    stem, _, lang = path.stem.partition("_desc")
    lang = lang.strip("_") or "en"
    captions = {}
    text = path.with_name(stem + ".txt")
    if text.exists():
      lines = text.read_text("utf-8", "replace").splitlines()
      captions = dict(line.split(".utf8=", 1) for line in lines if ".utf8=" in line)
      captions["en"] = lines[0] if lines else ""
    item = {"audio": path, "lang": lang, "voice": f"tuxpaint-{lang}"}
    yield item | ({"transcript": captions[lang]} if captions.get(lang) else {})


def without_digits(item: dict) -> dict:
  """A held-out voice's recording without its transcript, or nothing if it says a digit."""
  words = set(re.findall(r"\w+", item["transcript"].lower()))
  if words & set(DIGITS[item["lang"]].split()):
    return {}
  return {k: v for k, v in item.items() if k != "transcript"}


def digits(work: Path) -> Iterator[dict]:
  """The training recordings of experiments/digits, all five languages, and what is made of them."""
  rng = np.random.default_rng(5)
  for entry, wave in track(digits_files.speech("train"), "digits"):
    kind, person = entry["kind"], entry["kind"] == "person"
    seed = zlib.crc32(entry["id"].encode())
    versions = [(wave, 30.0 if person else 7.5)]
    versions += [(disguised(wave, rng), 1.5 if person else 1.0) for _ in range(DISGUISES[kind])]
    revoiced = revoice.revoiced(wave, np.random.default_rng(seed), REVOICED[kind])
    versions += [(sound, 2.0) for sound in revoiced]
    for take, (sound, weight) in enumerate(versions):
      path = work / "digits" / f"{entry['id']}.{take}.flac"
      if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, sound / max(1.0, np.abs(sound).max() / 0.99), digits_files.RATE)
      word = digits_voices.WORDS[entry["language"]][entry["digit"]]
      yield {"audio": path, "lang": entry["language"], "voice": entry["voice"],
             "transcript": word, "semantic_weight": weight}


def synthesis(sentences: dict[str, list[str]]) -> Iterator[dict]:
  """What the synthesisers shall say: commands and transcripts, with a stable choice of voice."""
  for lang, texts in sentences.items():
    digits = DIGITS[lang].split()
    choice = (int(hashlib.sha256(f"{lang}{i}".encode()).hexdigest(), 16) for i in itertools.count())
    voices = [v + x for v in ESPEAK[lang] for x in VARIANTS]
    runs = [[d] for d in digits for _ in range(24)]
    runs += [[digits[next(choice) % 10] for _ in range(2 + i % 5)] for i in range(160)]
    spoken = [" ".join(run) for run in runs] + texts * 2
    for i, text in enumerate(spoken):
      n = next(choice)
      flags = ["-v", voices[i % len(voices)], "-p", str(20 + n % 61), "-s", str(120 + n % 91)]
      yield {"lang": lang, "transcript": text, "voice": flags[1], "command": ["espeak-ng", *flags]}
  digits = DIGITS["en"].split()
  for i, text in enumerate(digits * 8 + sentences["en"] * 2):
    voice = FLITE[(i + i // len(FLITE)) % len(FLITE)]
    stretch = f"duration_stretch={0.8 + i % 9 / 20:.2f}"
    command = ["flite", "-voice", voice, "--setf", stretch]
    yield {"lang": "en", "transcript": text, "voice": f"flite-{voice}", "command": command}


def to_wav(item: dict, wav: Path) -> None:
  """Decodes or synthesises one item, unless done before."""
  if wav.exists():
    return
  wav.parent.mkdir(parents=True, exist_ok=True)
  part = wav.with_suffix(".part.wav")
  quiet = {"check": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
  match item.get("command", ["ffmpeg"])[0]:
    case "espeak-ng":
      subprocess.run([*item["command"], "-w", part, item["transcript"]], **quiet)
    case "flite":
      subprocess.run([*item["command"], "-t", item["transcript"], "-o", part], **quiet)
    case _:
      source = ["-f", "g722"] if item["audio"].suffix == ".g722" else []
      source += ["-i", str(item["audio"]), "-ar", "16000", "-ac", "1"]
      subprocess.run(["ffmpeg", "-y", *source, part], **quiet)
  part.rename(wav)


def gather(work: Path) -> None:
  """Writes WORK/{train,test_en,test_ru,test_voice}.jsonl; Menardi and Russian prompts are tests."""
  share = unpack(work)
  prompts = {lang: list(asterisk(share, lang)) for lang in VOICES}
  test = {p["transcript"] for p in prompts["en"] if held_out(p["key"])}
  train = [p for lang in DIGITS for p in prompts[lang] if p["transcript"] not in test]
  train = [without_digits(p) if p["voice"] in HELD_OUT else p for p in train]
  train = [p for p in train if p]
  train += [i for i in other_recordings(share) if i["lang"] != "ru"]
  train += [*tuxpaint(share), *digits(work)]
  sentences = {
    lang: sorted({p["transcript"] for p in prompts[lang]} - test) for lang in DIGITS
  }
  menardi = sorted((share / "asterisk/sounds/it_IT_f_Menardi").rglob("*.wav"))
  italian = {p["key"]: p["transcript"] for p in prompts["it"]}
  voice = [{"audio": p, "lang": "it", "voice": "menardi"} for p in menardi]
  for item in voice:
    key = str(item["audio"].relative_to(share / "asterisk/sounds/it_IT_f_Menardi"))
    item["transcript"] = italian.get(re.sub(r"\.wav$", "", key), "")
  splits = {
    "test_en": [p for p in prompts["en"] if p["transcript"] in test],
    "test_ru": prompts["ru"],
    "test_voice": [i for i in voice if i["transcript"]],
    "train": train + list(synthesis(sentences)),
  }
  for name, items in splits.items():
    lines = []
    for item in track(items, name):
      tag = json.dumps({k: str(v) for k, v in item.items()}, sort_keys=True)
      wav = work / "wav" / f"{hashlib.sha256(tag.encode()).hexdigest()[:20]}.wav"
      if "command" in item or item["audio"].suffix in (".g722", ".gsm"):
        try:
          to_wav(item, wav)
        except subprocess.CalledProcessError as error:
          print(f"left out {item.get('audio', item.get('voice'))}: {error}", file=sys.stderr)
          continue
      else:
        wav = item["audio"]
      kept = {k: item[k] for k in ("lang", "voice", "transcript", "semantic_weight") if k in item}
      if kept["lang"] not in (*DIGITS, "ru"):
        kept.pop("transcript", None)  # more ways to spell a sound than there is speech to learn by
      if "transcript" in kept:
        kept["transcript"] = unicodedata.normalize("NFC", kept["transcript"])
      lines.append(json.dumps({"audio": str(wav.resolve())} | kept, ensure_ascii=False))
    (work / f"{name}.jsonl").write_text("\n".join(lines) + "\n")


def train(work: Path) -> None:
  """Trains a codec like the one shipped into WORK/audio; two hours on two cores. Resumes."""
  train_audio.train(recipes.AUDIO, work / "train.jsonl", work / "audio")


def judge(work: Path) -> None:
  """Prints the figures on prompts and on two voices, Russian and Italian, not trained on."""
  recogniser = codec.whisper(work / "whisper-base")
  tokenizer = audio.load(work / "audio")
  for split in ("test_en", "test_ru", "test_voice"):
    report = codec.evaluate(
      tokenizer, work / f"{split}.jsonl", recogniser, codebooks=(4, 6, 8, 12), limit=60
    )
    print(split, json.dumps(report, indent=1))


def ship(work: Path) -> None:
  """Copies the trained codec into the package."""
  audio.save(audio.DEFAULT, audio.load(work / "audio").codec)


def main(argv: list[str]) -> None:
  commands = {"gather": gather, "train": train, "judge": judge, "ship": ship}
  if len(argv) != 3 or argv[1] not in commands:
    raise SystemExit(f"usage: python -m experiments.tokenizers {{{','.join(commands)}}} WORK")
  commands[argv[1]](Path(argv[2]))


if __name__ == "__main__":
  main(sys.argv)
