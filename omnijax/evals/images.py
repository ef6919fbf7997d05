"""Figures of an image tokenizer: PSNR, SSIM, use of the codes.

Shapes: B pictures, H W pixels, C channels, h w codes.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from omnijax.tokenizers import image, train_image

_WINDOW = 11


def psnr(a_BHWC: np.ndarray, b_BHWC: np.ndarray) -> np.ndarray:
  """Peak signal-to-noise ratio in dB of each pair of pictures in [0, 1]; equal ones give 100."""
  _same(a_BHWC, b_BHWC)
  mse = np.mean((np.asarray(a_BHWC, np.float64) - b_BHWC) ** 2, (1, 2, 3))
  return -10 * np.log10(np.maximum(mse, 1e-10))


def ssim(a_BHWC: np.ndarray, b_BHWC: np.ndarray) -> np.ndarray:
  """Structural similarity of each pair of pictures in [0, 1], mean over pixels and channels.

  Gaussian window of 11 x 11, sigma 1.5, no padding. Source: Wang et al. 2004.
  """
  _same(a_BHWC, b_BHWC)
  if min(a_BHWC.shape[1:3]) < _WINDOW:
    raise ValueError(f"pictures of {a_BHWC.shape[1]}x{a_BHWC.shape[2]} pixels; SSIM wants at "
                     f"least {_WINDOW} a side")
  a, b = np.asarray(a_BHWC, np.float64), np.asarray(b_BHWC, np.float64)
  mean_a, mean_b = _blur(a), _blur(b)
  var_a, var_b = _blur(a * a) - mean_a**2, _blur(b * b) - mean_b**2
  cov = _blur(a * b) - mean_a * mean_b
  c1, c2 = 0.01**2, 0.03**2
  top = (2 * mean_a * mean_b + c1) * (2 * cov + c2)
  return np.mean(top / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)), (1, 2, 3))


def code_usage(codes: np.ndarray, size: int) -> dict[str, float]:
  """Use of a codebook of `size` codes: the share seen at all, entropy in bits, perplexity."""
  flat = np.asarray(codes).reshape(-1)
  if not flat.size or flat.min() < 0 or flat.max() >= size:
    raise ValueError(f"{flat.size} codes; want at least one, all in 0..{size - 1}")
  share = np.bincount(flat, minlength=size) / flat.size
  seen = share[share > 0]
  bits = float(-np.sum(seen * np.log2(seen)))
  return {"used": len(seen) / size, "entropy_bits": bits, "perplexity": 2.0**bits}


def evaluate(tokenizer: image.ImageTokenizer, files: Sequence[Path]) -> dict[str, Any]:
  """PSNR, SSIM and code use over picture files.

  A side that the down-sampling doesn't divide is cropped about the centre to the largest that it
  does; pictures too small for that or for SSIM, and unreadable ones, are counted as skipped.
  """
  by_size: dict[tuple[int, int], list[np.ndarray]] = {}
  skipped = 0
  for file in files:
    try:
      x_HWC = _centre(train_image.read(file, tokenizer.channels), tokenizer.downsample)
    except (OSError, ValueError):
      skipped += 1
      continue
    if min(x_HWC.shape[:2]) < _WINDOW:
      skipped += 1
    else:
      by_size.setdefault(x_HWC.shape[:2], []).append(x_HWC)
  if not by_size:
    raise ValueError(f"none of {len(files)} pictures can be used; want readable ones of at least "
                     f"{max(_WINDOW, tokenizer.downsample)} pixels a side")
  psnrs, ssims, codes = [], [], []
  for same in by_size.values():
    for i in range(0, len(same), 64):
      x_BHWC = np.stack(same[i : i + 64]).astype(np.float32) / 255
      codes_Bhw = tokenizer.encode(x_BHWC)
      y_BHWC = tokenizer.decode(codes_Bhw)
      psnrs.append(psnr(x_BHWC, y_BHWC))
      ssims.append(ssim(x_BHWC, y_BHWC))
      codes.append(codes_Bhw.reshape(-1))
  return {
    "n": sum(map(len, psnrs)),
    "skipped": skipped,
    "psnr": float(np.mean(np.concatenate(psnrs))),
    "ssim": float(np.mean(np.concatenate(ssims))),
    "bits_per_pixel": math.log2(tokenizer.codes) / tokenizer.downsample**2,
    "codes": code_usage(np.concatenate(codes), tokenizer.codes) | {"size": tokenizer.codes},
  }


def _same(a: np.ndarray, b: np.ndarray) -> None:
  if a.shape != b.shape or a.ndim != 4:
    raise ValueError(f"shapes {list(a.shape)} and {list(b.shape)}; want the same [B, H, W, C]")


def _centre(x_HWC: np.ndarray, n: int) -> np.ndarray:
  H, W = x_HWC.shape[:2]
  top, left = H % n // 2, W % n // 2
  return x_HWC[top : top + H // n * n, left : left + W // n * n]


def _blur(x_BHWC: np.ndarray) -> np.ndarray:
  taps = np.exp(-0.5 * ((np.arange(_WINDOW) - _WINDOW // 2) / 1.5) ** 2)
  taps /= taps.sum()
  H, W = x_BHWC.shape[1] - _WINDOW + 1, x_BHWC.shape[2] - _WINDOW + 1
  x = sum(t * x_BHWC[:, i : i + H] for i, t in enumerate(taps))
  return sum(t * x[:, :, i : i + W] for i, t in enumerate(taps))
