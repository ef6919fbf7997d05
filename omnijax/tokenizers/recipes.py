"""Where `omnijax tokenizer train` starts: the settings of the tokenizers that ship.

The shipped codec was trained with them in several legs, which experiments/LOG.md tells.
"""

from omnijax.tokenizers import image, train_audio, train_image

IMAGE = train_image.ImageTrainConfig(
  model=image.ImageConfig(channels=3, downsample=8, levels=(8, 5, 5, 5), widths=(64, 192),
                          encoder_blocks=(1, 2), decoder_blocks=(2, 3)),
  steps=2400, batch=64, crop=32, shift=2, peak_lr=2e-3, warmup=100, cycles=2, weight_decay=0.01,
  ema=0.998, l1=0.5, l2=4.0, ssim=0.1, gradient=0.25, seed=0, save_every=200)
AUDIO = train_audio.AudioTrainConfig()
