"""Image tokenizer: a convolutional autoencoder around finite scalar quantisation.

A directory holds `params.npz` (float16) and `config.json` (ImageConfig, fingerprint over both).

Shapes: B pictures, H W pixels, C channels of a pixel, h w codes (H / downsample), D features of a
layer, E channels of the quantiser, K codes. Convolutions run at a quarter of the picture's size
and below: pixels enter and leave as 4 x 4 patches, which costs far less than full-size layers.
"""

import dataclasses
import hashlib
import io
import json
import math
import zipfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from omnijax.tokenizers.quantize import FSQ

DEFAULT = Path(__file__).parent / "pretrained" / "image"
PATCH = 4
_MOST = 256  # pictures in one call of the network


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageConfig:
  """Shape of the autoencoder; one entry of the tuples per size: 1/4, 1/8, ... 1/downsample."""

  channels: int
  downsample: int
  levels: tuple[int, ...]
  widths: tuple[int, ...]
  encoder_blocks: tuple[int, ...]
  decoder_blocks: tuple[int, ...]

  def __post_init__(self):
    if self.channels not in (1, 3):
      raise ValueError(f"channels={self.channels}; want 1 (grey) or 3 (RGB)")
    if self.downsample not in (4, 8, 16):
      raise ValueError(f"downsample={self.downsample}; want 4, 8 or 16")
    FSQ(self.levels)  # raises what is wrong with them
    sizes = int(math.log2(self.downsample // PATCH)) + 1
    for name in ("widths", "encoder_blocks", "decoder_blocks"):
      if len(getattr(self, name)) != sizes:
        raise ValueError(f"{name}={getattr(self, name)}; downsample={self.downsample} wants "
                         f"{sizes} entries")
    if min(self.widths) < 1 or min(*self.encoder_blocks, *self.decoder_blocks, 0) < 0:
      raise ValueError(f"widths={self.widths}, encoder_blocks={self.encoder_blocks}, "
                       f"decoder_blocks={self.decoder_blocks}; want widths >= 1, blocks >= 0")


class Conv(nnx.Module):
  """Convolution of stride 1 that keeps the size."""

  def __init__(self, size: int, inputs: int, outputs: int, *, gain: float = 1.0, rngs: nnx.Rngs):
    std = gain / math.sqrt(size * size * inputs)
    self.w_HWIO = nnx.Param(std * jax.random.normal(rngs.params(), (size, size, inputs, outputs)))
    self.b_1110 = nnx.Param(jnp.zeros((1, 1, 1, outputs)))

  def __call__(self, x_BHWD: jax.Array) -> jax.Array:
    dims = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(
      x_BHWD, self.w_HWIO[...], (1, 1), "SAME", dimension_numbers=dims
    )
    return y + self.b_1110[...]


class Block(nnx.Module):
  """Residual block: norm, 3 x 3 convolution, gelu, 1 x 1 convolution."""

  def __init__(self, width: int, *, rngs: nnx.Rngs):
    self.scale_111D = nnx.Param(jnp.ones((1, 1, 1, width)))
    self.mix = Conv(3, width, width, rngs=rngs)
    self.out = Conv(1, width, width, gain=0.1, rngs=rngs)  # starts close to the identity

  def __call__(self, x_BHWD: jax.Array) -> jax.Array:
    mean = jnp.mean(x_BHWD**2, -1, keepdims=True)
    h = x_BHWD * jax.lax.rsqrt(mean + 1e-6) * self.scale_111D[...]
    return x_BHWD + self.out(jax.nn.gelu(self.mix(h)))


class Autoencoder(nnx.Module):
  """Pixels to the quantiser's channels and back; holds the parameters."""

  def __init__(self, config: ImageConfig, *, rngs: nnx.Rngs):
    c = config
    self.config = config
    self.fsq = FSQ(c.levels)
    down: list[nnx.Module] = []
    up: list[nnx.Module] = []
    before = c.channels * PATCH**2
    for i, width in enumerate(c.widths):
      down.append(Conv(1, before, width, rngs=rngs))
      down += [Block(width, rngs=rngs) for _ in range(c.encoder_blocks[i])]
      up.append(Conv(1, width, before, rngs=rngs))
      up += [Block(width, rngs=rngs) for _ in range(c.decoder_blocks[i])]
      before = 4 * width  # the next size sees 2 x 2 patches
    self.down = nnx.List(down)
    self.up = nnx.List(up[::-1])
    self.into = Conv(1, c.widths[-1], len(c.levels), rngs=rngs)
    self.out_of = Conv(1, len(c.levels), c.widths[-1], rngs=rngs)

  def encode(self, x_BHWC: jax.Array) -> jax.Array:
    """Pixels in [0, 1] to the quantiser's input [B, h, w, E]."""
    x = 2 * x_BHWC - 1
    patch = PATCH
    for layer in self.down:
      if isinstance(layer, Conv):
        x, patch = _fold(x, patch), 2
      x = layer(x)
    return self.into(x)

  def decode(self, value_BhwE: jax.Array) -> jax.Array:
    """Quantised values to pixels, about [0, 1] but not clipped."""
    x = self.out_of(value_BhwE)
    convs = sum(isinstance(layer, Conv) for layer in self.up)
    for layer in self.up:
      x = layer(x)
      if isinstance(layer, Conv):
        convs -= 1
        x = _unfold(x, 2 if convs else PATCH)
    return (x + 1) / 2

  def __call__(self, x_BHWC: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Reconstruction (straight-through gradients) and codes [B, h, w]."""
    value_BhwE, codes_Bhw = self.fsq(self.encode(x_BHWC))
    return self.decode(value_BhwE), codes_Bhw


def _fold(x_BHWD: jax.Array, n: int) -> jax.Array:
  """Space to depth: n x n patches become features."""
  B, H, W, D = x_BHWD.shape
  x = x_BHWD.reshape(B, H // n, n, W // n, n, D)
  return x.transpose(0, 1, 3, 2, 4, 5).reshape(B, H // n, W // n, n * n * D)


def _unfold(x_BHWD: jax.Array, n: int) -> jax.Array:
  """The inverse of `_fold`."""
  B, H, W, D = x_BHWD.shape
  x = x_BHWD.reshape(B, H, W, n, n, D // n**2).transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(B, H * n, W * n, D // n**2)


@jax.jit
def _encode(model: Autoencoder, x_BHWC: jax.Array) -> jax.Array:
  return model.fsq(model.encode(x_BHWC))[1]


@jax.jit
def _decode(model: Autoencoder, codes_Bhw: jax.Array) -> jax.Array:
  return jnp.clip(model.decode(model.fsq.vectors(codes_Bhw)), 0, 1)


@dataclasses.dataclass(frozen=True)
class ImageTokenizer:
  """A loaded tokenizer; make one with `load`. Numpy in, numpy out."""

  model: Autoencoder
  fingerprint: str  # hex, over config and parameters

  @property
  def codes(self) -> int:
    """Number of different codes."""
    return math.prod(self.model.config.levels)

  def vectors(self) -> np.ndarray:
    """What the codes stand for: the level of every channel, one-hot, float32 [codes, sum(levels)].

    Codes that differ in one channel look alike.
    """
    levels = self.model.config.levels
    bins_CK = np.unravel_index(np.arange(self.codes), levels[::-1])[::-1]
    return np.concatenate([np.eye(n, dtype=np.float32)[bins_K]
                           for n, bins_K in zip(levels, bins_CK, strict=True)], 1)

  @property
  def downsample(self) -> int:
    """Pixels of a side per code."""
    return self.model.config.downsample

  @property
  def channels(self) -> int:
    """1 (grey) or 3 (RGB)."""
    return self.model.config.channels

  def encode(self, pixels_BHWC: np.ndarray) -> np.ndarray:
    """Codes [B, H / downsample, W / downsample] int32 of pictures in [0, 1].

    Grey pictures (C = 1) are repeated to the channels of an RGB tokenizer.

    Raises:
      ValueError: wrong shape, type or range, or a size that the down-sampling doesn't divide.
    """
    x = self._check(np.asarray(pixels_BHWC))
    codes = _bucketed(_encode, self.model, x)
    return codes.astype(np.int32)

  def decode(self, codes_Bhw: np.ndarray) -> np.ndarray:
    """Pictures [B, h * downsample, w * downsample, C] float32 in [0, 1] of codes.

    Raises:
      ValueError: codes of another shape or type, or outside 0 .. codes - 1.
    """
    codes = np.asarray(codes_Bhw)
    if codes.ndim != 3 or codes.dtype.kind not in "iu" or 0 in codes.shape[1:]:
      raise ValueError(f"codes are {codes.dtype}{list(codes.shape)}; want integers [B, h, w]")
    if codes.size and not (codes.min() >= 0 and codes.max() < self.codes):
      raise ValueError(f"codes are in {codes.min()}..{codes.max()}; this tokenizer's are in "
                       f"0..{self.codes - 1}; take the image block's offset off first")
    return _bucketed(_decode, self.model, codes.astype(np.int32))

  def _check(self, x_BHWC: np.ndarray) -> np.ndarray:
    C, f, shape = self.channels, self.downsample, list(x_BHWC.shape)
    if x_BHWC.ndim != 4 or x_BHWC.shape[3] not in (1, C) or 0 in x_BHWC.shape[1:3]:
      raise ValueError(f"pixels have shape {shape}; want [B, H, W, {C}]"
                       + (" (or one channel, for grey)" if C == 3 else "; convert to grey"))
    if x_BHWC.dtype.kind != "f":
      raise ValueError(f"pixels are {x_BHWC.dtype}; want float32 in [0, 1]: divide by 255")
    if x_BHWC.size and not (x_BHWC.min() >= -1e-3 and x_BHWC.max() <= 1 + 1e-3):
      raise ValueError(f"pixels are in {x_BHWC.min()}..{x_BHWC.max()}; want [0, 1], no NaN")
    check_size(x_BHWC.shape[1], x_BHWC.shape[2], f)
    x_BHWC = x_BHWC.astype(np.float32)
    return np.repeat(x_BHWC, C // x_BHWC.shape[3], -1)


def check_size(height: int, width: int, downsample: int) -> None:
  """Raises ValueError, naming the nearest sizes, unless the down-sampling divides both sides."""
  if height % downsample == 0 and width % downsample == 0:
    return
  low = [max(n // downsample, 1) * downsample for n in (height, width)]
  high = [-(-n // downsample) * downsample for n in (height, width)]
  near = " or ".join(dict.fromkeys(f"{h}x{w}" for h, w in (low, high)))
  raise ValueError(f"picture of {height}x{width} pixels; the tokenizer's down-sampling of "
                   f"{downsample} must divide height and width; resize, crop or pad to {near}")


def _bucketed(fn: Any, model: Autoencoder, batch: np.ndarray) -> np.ndarray:
  """Calls fn on power-of-two batches, so that few shapes are ever compiled."""
  outs = []
  for i in range(0, max(len(batch), 1), _MOST):
    part = batch[i : i + _MOST]
    bucket = 1 << max(len(part) - 1, 0).bit_length()
    padded = np.concatenate([part, np.zeros((bucket - len(part), *part.shape[1:]), part.dtype)])
    outs.append(np.asarray(fn(model, padded))[: len(part)])
  return np.concatenate(outs)


def init(config: ImageConfig, key: jax.Array) -> Autoencoder:
  """A new autoencoder with random parameters."""
  return jax.jit(lambda key: Autoencoder(config, rngs=nnx.Rngs(key)))(key)


def save(model: Autoencoder, out: Path) -> ImageTokenizer:
  """Writes the tokenizer's directory, parameters rounded to float16, and loads it back."""
  out = Path(out)
  out.mkdir(parents=True, exist_ok=True)
  file = io.BytesIO()
  leaves: dict[str, Any] = {k: np.asarray(v, np.float16) for k, v in _named(model).items()}
  np.savez_compressed(file, **leaves)
  config = dataclasses.asdict(model.config)
  fingerprint = _fingerprint(config, file.getvalue())
  (out / "config.json").unlink(missing_ok=True)  # whole or invisible: this file is written last
  (out / "params.npz").write_bytes(file.getvalue())
  (out / "config.json").write_text(
    json.dumps({"config": config, "fingerprint": fingerprint}, indent=2) + "\n"
  )
  return load(out)


def load(path: Path | str = DEFAULT) -> ImageTokenizer:
  """Loads a tokenizer's directory.

  Raises:
    ValueError: a file is missing or damaged, or config and parameters don't belong together.
  """
  path = Path(path)
  config_file, params_file = path / "config.json", path / "params.npz"
  for file in (config_file, params_file):
    if not file.is_file():
      raise ValueError(f"{path} is no image tokenizer: {file.name} is missing; train one with "
                       "`omnijax tokenizer train image`, or use the packaged one")
  try:
    told = json.loads(config_file.read_text())
    fields, want = told["config"], told["fingerprint"]
    values: dict[str, Any] = {
      k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()
    }
    config = ImageConfig(**values)
  except (ValueError, TypeError, KeyError) as e:
    raise ValueError(f"{config_file} describes no image tokenizer ({e}); restore it") from e
  data = params_file.read_bytes()
  got = _fingerprint(fields, data)
  if got != want:
    raise ValueError(f"{path} has fingerprint {got}, but its config.json says {want}: a file was "
                     "damaged or replaced; restore both, or train again")
  shapes = jax.eval_shape(lambda: Autoencoder(config, rngs=nnx.Rngs(0)))
  try:
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
      leaves = [jnp.asarray(arrays[k], jnp.float32) for k in _named(shapes)]
  except (zipfile.BadZipFile, KeyError) as e:
    raise ValueError(f"{params_file} does not hold this network's parameters ({e})") from e
  return ImageTokenizer(jax.tree.unflatten(jax.tree.structure(shapes), leaves), got)


def _named(model: Any) -> dict[str, Any]:
  """Leaves of the parameters by path, in the order of the tree."""
  paths = jax.tree_util.tree_flatten_with_path(model)[0]
  names = [jax.tree_util.keystr(p, simple=True, separator="/") for p, _ in paths]
  return {n.removesuffix("/value"): v for n, (_, v) in zip(names, paths, strict=True)}


def _fingerprint(config: dict[str, Any], params: bytes) -> str:
  text = json.dumps(config, sort_keys=True, separators=(",", ":"))
  return hashlib.sha256(text.encode() + b"\0" + params).hexdigest()[:16]
