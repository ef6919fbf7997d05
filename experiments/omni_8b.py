"""Omni 8B: the shape of Llama 3.1 8B with a depth transformer, on 64 chips of TPU v5p.

Purpose: the size that teams train for weeks. Budget: 1.5 T positions, 60 % text, 25 % images, 15 %
speech. Hardware: v5p:4x4x4. Planned (experiments/results/plans): 54.0 GiB of a chip, 3.10 s a step,
62.0 % MFU; on v6e:16x16 29.2 GiB and 46.2 %, on 4 slices of v5e:16x16 8.9 GiB and 49.6 %.
"""

from omnijax import config


def run() -> config.Run:
  return config.Run(
    name="omni_8b",
    model=config.Model(layers=32, dim=4096, heads=32, kv_heads=8, head_dim=128, mlp=14336,
                       depth_layers=6, depth_dim=1024, depth_heads=16, depth_mlp=2816,
                       rope_theta=500_000.0, remat="minimal", dtype="bfloat16"),
    # With the control ids 196,608 in all, which every mesh divides.
    tokenizers=config.Tokenizers(text="tokenizers/text_128k", image="tokenizers/image_64k",
                                 audio="tokenizers/audio_24k", codebooks=8, text_size=130_816,
                                 image_size=65_536, audio_size=2048),
    data=config.Data(sources=("data/text", "data/images", "data/speech"), weights=(60, 25, 15),
                     rows=128, positions=8192, frames=1280),
    loss=config.Loss(chunk=1024),  # half a GiB less than 2,048, at the same estimated speed
    optim=config.Optim(peak_lr=3e-4, warmup_steps=2000, schedule="wsd"),
    mesh=config.Mesh(fsdp=64),
    train=config.Train(steps=1_430_000, save_every=1000, log_every=20),
  )
