"""Omni 1B, 2.1 B with tables and heads: for a slice of TPU v5e.

Purpose: ablations whose answers hold for the large ones. Budget: 300 G positions, 60 % text, 25 %
images, 15 % speech. Hardware: v5e:8x8. Planned (experiments/results/plans): 11.3 GiB of a chip,
0.96 s a step, 42.1 % MFU.
"""

import dataclasses

from experiments import omni_8b
from omnijax import config


def run() -> config.Run:
  large = omni_8b.run()
  return dataclasses.replace(
    large, name="omni_1b",
    model=dataclasses.replace(large.model, layers=20, dim=2048, heads=16, kv_heads=8, mlp=6144,
                              depth_layers=4, depth_dim=768, depth_heads=12, depth_mlp=2048),
    data=dataclasses.replace(large.data, rows=128, positions=4096, frames=640),
    loss=config.Loss(),
    optim=dataclasses.replace(large.optim, peak_lr=4e-4),
    mesh=config.Mesh(fsdp=64),
    train=dataclasses.replace(large.train, steps=570_000),
  )
