"""Spoken dialogues about digits in five languages, full duplex, beside what the quickstart does.

Purpose: a small model that hears while it speaks: it answers questions at once, waits through
pauses, stops when it is interrupted and goes on through back-channels and noise; see
experiments/duplex/SOURCES.md for the recordings. Hardware: 2 CPU cores, 3 GB. Cost and result:
README.md, "Talk to it".

Records of the quickstart and of the dialogues are made before:

  omnijax quickstart --dir quickstart_run
  python -m experiments.duplex.manifest dialogue_run/dialogues
  omnijax prepare dialogue_run/dialogues/train.jsonl --out dialogue_run/records
"""

from omnijax import config


def run() -> config.Run:
  return config.Run(
    name="dialogue",
    # The quickstart's size. It remembers 10 s; longer dialogues teach it to go on for ever.
    model=config.Model(layers=4, dim=192, heads=8, kv_heads=8, head_dim=16, mlp=384,
                       depth_layers=1, depth_dim=128, depth_heads=8, depth_mlp=256, rope_theta=10.0,
                       attention_window=128, unroll=4),
    tokenizers=config.Tokenizers(codebooks=4),
    # Without delays: an answer, and silence after an interruption, come as soon as they can.
    data=config.Data(
      sources=("dialogue_run/records", "quickstart_run/records/train"),
      weights=(0.75, 0.25), weights_by="tokens", rows=4, positions=640, frames=600,
      depth_frames=64, acoustic_delay=0, prompt_weight=0.3, listen_dropout=0.2, prefetch=8),
    # Of a dialogue's positions one in fifty is a word, and those are what is to be learnt.
    loss=config.Loss(text=6.0, image=1.0, first_codebook=1.0, acoustic=0.3),
    optim=config.Optim(kind="muon", peak_lr=3e-3, muon_lr=0.02, warmup_steps=20, schedule="wsd",
                       decay_fraction=0.4, final_lr=0.05, weight_decay=0.01),
    mesh=config.Mesh(data=1, fsdp=1),
    train=config.Train(steps=5000, log_every=20, save_every=250),
  )
