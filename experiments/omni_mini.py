"""Omni mini, 0.5 B, half of it in the trunk: the cheap tier, for a small slice of TPU v5e.

Purpose: the model that answers fast. Budget: 100 G positions, 60 % text, 25 % images, 15 %
speech. Hardware: v5e:4x4. Planned (experiments/results/plans): 8.2 GiB of a chip, 0.89 s a step,
22.7 % MFU: narrow layers wait for memory.
"""

import dataclasses

from experiments import omni_8b
from omnijax import config


def run() -> config.Run:
  large = omni_8b.run()
  return dataclasses.replace(
    large, name="omni_mini",
    model=dataclasses.replace(large.model, layers=20, dim=1024, heads=8, kv_heads=4, mlp=2816,
                              depth_layers=4, depth_dim=512, depth_heads=8, depth_mlp=1408),
    # With the control ids 65,536 in all.
    tokenizers=dataclasses.replace(large.tokenizers, text="tokenizers/text_48k",
                                   image="tokenizers/image_16k", text_size=48_896,
                                   image_size=16_384),
    data=dataclasses.replace(large.data, rows=64, positions=4096, frames=640),
    loss=config.Loss(),
    optim=dataclasses.replace(large.optim, peak_lr=6e-4),
    mesh=config.Mesh(fsdp=16),
    train=dataclasses.replace(large.train, steps=380_000),
  )
