"""Pictures, captions and voices of two real corpora: one model that reads, draws, hears and speaks.

Purpose: every task on data that nobody made for it: captions in 78 languages, spoken captions in
13, noises, and telephone prompts in five; see experiments/stamps_data/SOURCES.md. Data: first

  python -m experiments.stamps_data.build stamps --dir corpora
  python -m experiments.stamps_data.build asterisk --dir corpora

Hardware: one GPU of 24 GB or more. Expected cost: under 30 minutes on a H100, most of the data seen
some fifteen times. Smoke test on two CPU cores, 300 steps:

  omnijax train experiments/stamps.py --run-dir stamps_smoke --train.steps 300 --data.rows 4
    --model.layers 3 --model.dim 192 --model.heads 4 --model.kv-heads 2 --model.head-dim 48
    --model.mlp 512 --model.depth-layers 1 --model.depth-dim 96 --model.depth-heads 4
    --model.depth-mlp 256 --model.dtype float32
"""

from omnijax import config

RECORDS = ("corpora/stamps/records/captions", "corpora/stamps/records/speech",
           "corpora/asterisk/records/speech")


def run() -> config.Run:
  return config.Run(
    name="stamps",
    model=config.Model(layers=8, dim=512, heads=8, kv_heads=4, head_dim=64, mlp=1408,
                       depth_layers=2, depth_dim=256, depth_heads=4, depth_mlp=704,
                       rope_theta=1000.0, attention_documents=40, dtype="bfloat16"),
    # Sizes are said so that the run can be planned before its text tokenizer is there.
    tokenizers=config.Tokenizers(text="corpora/text", codebooks=8, text_size=8192, image_size=1000,
                                 audio_size=1024),
    # Captions are most of the documents and the least of the hours: weighted down.
    data=config.Data(sources=RECORDS, weights=(0.35, 0.45, 0.2),
                     heldout=tuple(f"{path}/heldout" for path in RECORDS),
                     rows=32, positions=1024, frames=640, documents=40, prompt_weight=0.3,
                     listen_dropout=0.2, prefetch=8),
    loss=config.Loss(text=2.0, image=0.5, first_codebook=1.0, acoustic=0.3),
    optim=config.Optim(kind="muon", peak_lr=1e-3, muon_lr=0.02, warmup_steps=100, schedule="wsd",
                       decay_fraction=0.3, final_lr=0.05, weight_decay=0.05),
    mesh=config.Mesh(data=1, fsdp=1),
    train=config.Train(steps=3000, log_every=20, save_every=500),
    eval=config.Eval(every=250, batches=16),
  )
