"""Omni 70B: the shape of Llama 3.1 70B with a depth transformer, on 1,024 chips of TPU v5p.

Purpose: what the code must carry at most. Budget: 4 T positions, 60 % text, 25 % images, 15 %
speech. Hardware: v5p:8x8x16. Planned (experiments/results/plans): 39.8 GiB of a chip, 27.2 s a
step, 59.7 % MFU.
"""

import dataclasses

from experiments import omni_8b
from omnijax import config


def run() -> config.Run:
  small = omni_8b.run()
  return dataclasses.replace(
    small, name="omni_70b",
    model=dataclasses.replace(small.model, layers=80, dim=8192, heads=64, kv_heads=8, mlp=28672,
                              depth_dim=2048, depth_heads=32, depth_mlp=5632, remat="full"),
    # Two rows a chip: with one, libtpu 0.0.50 crashes.
    data=dataclasses.replace(small.data, rows=2048),
    loss=config.Loss(),
    optim=dataclasses.replace(small.optim, peak_lr=1.5e-4),
    mesh=config.Mesh(data=8, fsdp=128),
    train=dataclasses.replace(small.train, steps=240_000),
  )
