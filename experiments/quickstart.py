"""Spoken and written digits in five languages, each modality to each, in minutes on a laptop.

Purpose: the whole path on small real data; see experiments/digits/SOURCES.md for the data.
Hardware: 2 CPU cores, 2 GB. Cost: 5 to 13 minutes, by the machine. Result: README.md, which says
of which commit.

`sweep()` is over the learning rates of both optimizers and the rotary angle, on the records that
`omnijax quickstart` makes in quickstart_run: 12 trials of 200 steps, each about a minute and a half
on two cores.
"""

import dataclasses
import json
from pathlib import Path

from experiments.digits import manifest, unpack, voices
from omnijax import config
from omnijax.evals import directions
from omnijax.generate.sample import Sampling, Setting
from omnijax.sweep import space

WORDS = voices.WORDS
SOURCES = Path(__file__).parent / "digits" / "SOURCES.md"
DOCUMENTS = 48_000
TAKES = 4  # of each recording, as if by other speakers: voices are what there is least of
PICTURE_TAKES = 3
GUIDANCE = 2.0
ANSWERS = 200
# Near the most likely: an answer is right or wrong, variety is worth little here.
_SHARP = Setting(temperature=0.2)
SAMPLING = Sampling(text=Setting(temperature=0.0), image=Setting(temperature=0.5, top_p=0.95),
                    first_codebook=_SHARP, acoustic=_SHARP)


def run() -> config.Run:
  return config.Run(
    name="quickstart",
    # A small rope_theta: with 8 rotary pairs a head, rows and columns would hardly turn otherwise,
    # and a picture would be a bag of codes.
    model=config.Model(layers=4, dim=192, heads=8, kv_heads=8, head_dim=16, mlp=384,
                       depth_layers=1, depth_dim=128, depth_heads=8, depth_mlp=256, rope_theta=10.0,
                       unroll=4),
    # 4 of the codec's 12 codebooks: speech stays intelligible, and each costs a softmax.
    tokenizers=config.Tokenizers(codebooks=4),
    # Short rows: a document has some 22 positions, and attention pays for the row.
    data=config.Data(sources=("quickstart_run/records/train",), rows=8, positions=128, frames=40,
                     prompt_weight=0.3, listen_dropout=0.3, prefetch=8),
    # One word of text says as much as a picture of 16 codes or a second of speech.
    loss=config.Loss(text=3.0, image=0.5, first_codebook=1.0, acoustic=0.3),
    optim=config.Optim(kind="muon", peak_lr=3e-3, muon_lr=0.02, warmup_steps=20, schedule="wsd",
                       decay_fraction=0.4, final_lr=0.05, weight_decay=0.01),
    mesh=config.Mesh(data=1, fsdp=1),
    train=config.Train(steps=1200, log_every=20, save_every=200),
  )


def sweep() -> space.Space:
  base = run()
  base = dataclasses.replace(
    base, data=dataclasses.replace(base.data, heldout=("quickstart_run/records/heldout",)),
    train=dataclasses.replace(base.train, steps=200, save_every=100),
    eval=config.Eval(every=20, batches=8))
  return space.random(base, {"optim.muon_lr": space.LogUniform(0.002, 0.2),
                             "optim.peak_lr": space.LogUniform(3e-4, 3e-2),
                             "model.rope_theta": (10.0, 10_000.0)}, trials=12)


def manifests(folder: Path) -> None:
  """Unpacks the data into a folder and writes its train.jsonl and heldout.jsonl."""
  manifest.write(folder, seed=0, docs=DOCUMENTS, takes=TAKES, picture_takes=PICTURE_TAKES)


def judges() -> tuple[Path, Path]:
  """The judge of pictures and the judge of speech."""
  folder = Path(__file__).parent / "digits" / "judges"
  return folder / "image.npz", folder / "speech.npz"


def cases(folder: Path) -> list[directions.Case]:
  """What is asked of the model: the user's parts of every held-out document."""
  kinds = {entry["voice"]: entry["kind"] for entry in unpack.index()}
  out = []
  for line in (folder / "heldout.jsonl").read_text("utf-8").splitlines():
    item = json.loads(line)
    about = item["digits"]
    heard = about["direction"].startswith("speech")
    prompt = tuple(_absolute(p, folder) for p in item["parts"] if p["role"] == "user")
    out.append(directions.Case(
      direction=about["direction"], prompt=prompt, digit=about["digit"],
      language=about["language"], voice=about["voice"] if heard else "",
      kind=kinds[about["voice"]] if heard else ""))
  return out


def _absolute(part: dict[str, str], folder: Path) -> dict[str, str]:
  return {k: str(folder / v) if k in ("image", "audio") else v for k, v in part.items()}
