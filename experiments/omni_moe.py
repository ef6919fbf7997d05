"""Omni MoE: 9.4 B of 49 B parameters at work, each position with 2 of 16 experts.

Purpose: what experts buy, shared ones (13) and one for each modality. Budget: 1.5 T positions, 60
% text, 25 % images, 15 % speech. Hardware: v5p:8x8x4. Planned (experiments/results/plans): 18.3
GiB of a chip, 3.54 s a step, 27.2 % MFU, with products of experts at an assumed 60 % of peak.
"""

import dataclasses

from experiments import omni_8b
from omnijax import config


def run() -> config.Run:
  dense = omni_8b.run()
  return dataclasses.replace(
    dense, name="omni_moe",
    model=dataclasses.replace(dense.model, mlp=7168, experts=16, experts_per_token=2,
                              modality_experts=(1, 1, 1), remat="full"),
    data=dataclasses.replace(dense.data, rows=256),
    loss=config.Loss(),
    mesh=config.Mesh(fsdp=32, expert=8),
    train=dataclasses.replace(dense.train, steps=715_000),
  )
