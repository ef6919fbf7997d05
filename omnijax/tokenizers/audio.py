"""Streaming speech codec: waves in, residual codes at 12.5 Hz, waves out.

Every learned layer works on magnitudes at 12.5 Hz (or, narrow, at 125 Hz), so the codec is made of
matrix products; phases come from a deterministic block algorithm (`spectral.invert_block`).

Shapes: B batch, L samples, T codec frames, S spectral frames of a codec frame, F = T * S,
K frequency bins, D dim, Q codebooks, q <= Q of them, V samples of history.
"""

import dataclasses
import functools
import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from omnijax.tokenizers import spectral
from omnijax.tokenizers.codec import AudioConfig, Codec

DEFAULT = Path(__file__).parent / "pretrained" / "audio"


# Streaming: state in, state out. Whole clips go through the same functions in chunks.


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=["history_BV", "encoder", "semantic", "decoder", "phase"],
  meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class State:
  """What `encode_step` and `decode_step` carry; one may use either half or both."""

  history_BV: jax.Array  # newest samples that the next window still covers
  encoder: tuple[jax.Array, jax.Array]
  semantic: tuple[tuple[jax.Array, ...], jax.Array]
  decoder: tuple[jax.Array, jax.Array]
  phase: spectral.PhaseState


def init_state(codec: Codec, batch: int) -> State:
  stft = codec.config.stft
  return State(
    history_BV=jnp.zeros((batch, stft.overlap)),
    encoder=codec.encoder.init_state(batch),
    semantic=codec.semantic.init_state(batch),
    decoder=codec.decoder.init_state(batch),
    phase=spectral.init_phase(batch, stft),
  )


@jax.jit
def _encode(codec: Codec, state: State, wave_BL: jax.Array) -> tuple[State, jax.Array]:
  c = codec.config
  heard_BL = jnp.concatenate([state.history_BV, wave_BL], 1)
  logmag_BFK = spectral.log_magnitude(heard_BL, c.stft)
  sound_BTD, encoder = codec.encoder(logmag_BFK, state.encoder)
  meaning_BTD, semantic = codec.semantic(spectral.log_mel(logmag_BFK, c.stft), state.semantic)
  B, T, _ = sound_BTD.shape
  flat = (x.reshape(B * T, x.shape[2]) for x in (meaning_BTD, sound_BTD))
  codes_NQ = codec.quantizer.encode(*flat)
  history_BV = heard_BL[:, -c.stft.overlap :]
  state = dataclasses.replace(state, history_BV=history_BV, encoder=encoder,
                              semantic=semantic)
  return state, codes_NQ.reshape(B, T, c.codebooks)


@jax.jit
def _decode(codec: Codec, state: State, codes_Bq: jax.Array):
  """New state and the next samples [B, frame_size]."""
  c = codec.config
  z_BTD = codec.quantizer.decode(codes_Bq)[:, None]
  logmag_BSK, decoder = codec.decoder(z_BTD, state.decoder)
  mag_BSK = jnp.maximum(jnp.exp(logmag_BSK) - spectral.FLOOR, 0.0)
  phase, wave_BL = spectral.invert_block(
    state.phase, mag_BSK, c.stft, c.phase_iterations, c.phase_momentum
  )
  return dataclasses.replace(state, decoder=decoder, phase=phase), wave_BL


def _where(mask_B: jax.Array, new: State, old: State) -> State:
  """The masked conversations of one state, the others of another."""

  def choose(fresh, old, dim):
    shape = [1] * old.ndim
    shape[dim] = -1
    return jnp.where(mask_B.reshape(shape), fresh, old)

  layers = functools.partial(jax.tree.map, lambda a, b: choose(a, b, 1))  # [layer, batch, ...]
  first = functools.partial(jax.tree.map, lambda a, b: choose(a, b, 0))
  return State(
    first(new.history_BV, old.history_BV),
    layers(new.encoder, old.encoder),
    layers(new.semantic, old.semantic),
    layers(new.decoder, old.decoder),
    first(new.phase, old.phase),
  )


@jax.jit
def _reset(codec: Codec, state: State, mask_B: jax.Array) -> State:
  return _where(mask_B, init_state(codec, mask_B.shape[0]), state)


@jax.jit
def _encode_some(codec: Codec, state: State, wave_BL: jax.Array, mask_B: jax.Array):
  new, codes_BTQ = _encode(codec, state, wave_BL)
  return _where(mask_B, new, state), codes_BTQ


@jax.jit
def _decode_some(codec: Codec, state: State, codes_Bq: jax.Array, mask_B: jax.Array):
  new, wave_BL = _decode(codec, state, codes_Bq)
  return _where(mask_B, new, state), wave_BL


_CHUNKS = (16, 64)  # codec frames that whole clips are encoded by: few shapes, few compilations


def _rows(batch: int) -> int:
  """Batches are padded to powers of two, again for few shapes."""
  return 1 << (batch - 1).bit_length()


def _pad(x: np.ndarray, rows: int, columns: int) -> np.ndarray:
  pads = [(0, rows - x.shape[0]), (0, columns - x.shape[1])] + [(0, 0)] * (x.ndim - 2)
  return np.pad(x, pads)


def _mask(mask_B: np.ndarray) -> np.ndarray:
  mask_B = np.asarray(mask_B, bool)
  return np.pad(mask_B, (0, _rows(len(mask_B)) - len(mask_B)))


@dataclasses.dataclass(frozen=True)
class AudioTokenizer:
  """A trained codec: waves in [-1, 1] at `sample_rate` to int32 codes and back."""

  config: AudioConfig
  codec: Codec
  fingerprint: str

  @property
  def sample_rate(self) -> int:
    return self.config.sample_rate

  @property
  def frame_size(self) -> int:
    """Samples of a frame."""
    return self.config.frame_size

  @property
  def frame_rate(self) -> float:
    """Frames per second."""
    return self.config.sample_rate / self.config.frame_size

  @property
  def codebooks(self) -> int:
    """Codes of a frame, at most; any prefix of them decodes."""
    return self.config.codebooks

  @property
  def codes(self) -> int:
    """Size of each codebook."""
    return self.config.codes

  def vectors(self, codebooks: int) -> np.ndarray:
    """What the codes of the first codebooks stand for, float32 [codebooks, codes, dim].

    Codes whose vectors are close sound alike; a frame's sound is a function of their sum.
    """
    return np.asarray(self.codec.quantizer.vectors(codebooks), np.float32)

  @property
  def delay(self) -> int:
    """Samples by which `decode_step`'s sound lags its codes."""
    return self.config.stft.overlap

  def encode(self, wave_BL: np.ndarray, sample_rate: int | None = None) -> np.ndarray:
    """Codes [B, T, Q] int32 of whole clips, T = ceil(L / frame_size).

    Args:
      wave_BL: float samples in [-1, 1], one channel.
      sample_rate: of the samples, if to be checked.
    """
    wave_BL = self._checked(wave_BL, sample_rate)
    B, L = wave_BL.shape
    T, size = -(-L // self.frame_size), self.frame_size
    step = _CHUNKS[T > _CHUNKS[0]]
    wave_BL = _pad(wave_BL, _rows(B), -(-T // step) * step * size)
    state, codes = self.init_state(B), []
    for t in range(0, T, step):
      state, codes_BTQ = _encode(self.codec, state, wave_BL[:, t * size : (t + step) * size])
      codes.append(np.asarray(codes_BTQ))
    return np.concatenate(codes, 1)[:B, :T]

  def decode(self, codes_BTq: np.ndarray) -> np.ndarray:
    """Samples [B, T * frame_size] float32 of the first q <= Q codebooks, without delay.

    It runs `decode_step` frame by frame: a rounding error in a magnitude is enough to lead phase
    recovery elsewhere, so only the same compiled step gives the same samples as streaming.
    """
    codes_BTq = self._checked_codes(codes_BTq, 3)
    B, T, _ = codes_BTq.shape
    codes_BTq = _pad(codes_BTq, _rows(B), T)
    state, waves = self.init_state(B), []
    for t in range(T):
      state, wave_BL = _decode(self.codec, state, codes_BTq[:, t])
      waves.append(wave_BL)
    # the last samples are not final, as no frame follows, but well guessed
    waves.append(state.phase.guess_BV)
    return np.concatenate([np.asarray(x) for x in waves], 1)[:B, self.delay :]

  def init_state(self, batch: int) -> State:
    """Streaming state of `batch` conversations, after silence."""
    return init_state(self.codec, _rows(batch))

  def reset(self, state: State, mask_B: np.ndarray) -> State:
    """The state with the masked conversations begun anew."""
    return _reset(self.codec, state, _mask(mask_B))

  def encode_step(self, state: State, wave_BL: np.ndarray, mask_B: np.ndarray | None = None
                  ) -> tuple[State, jax.Array]:
    """Next frame's codes [B, Q] from its `frame_size` samples.

    mask_B: conversations that have a frame; others stay as they are. None is all.
    """
    if wave_BL.ndim != 2 or wave_BL.shape[1] != self.frame_size:
      raise ValueError(f"wave has shape {wave_BL.shape}; want [batch, {self.frame_size}]")
    B = wave_BL.shape[0]
    wave_BL = _pad(np.asarray(wave_BL, np.float32), _rows(B), self.frame_size)
    if mask_B is None:
      state, codes_BTQ = _encode(self.codec, state, wave_BL)
    else:
      state, codes_BTQ = _encode_some(self.codec, state, wave_BL, _mask(mask_B))
    return state, codes_BTQ[:B, 0]

  def decode_step(self, state: State, codes_Bq: np.ndarray, mask_B: np.ndarray | None = None
                  ) -> tuple[State, jax.Array]:
    """Next `frame_size` samples [B, frame_size], `delay` samples late; mask_B as above."""
    codes_Bq = self._checked_codes(codes_Bq, 2)
    B, q = codes_Bq.shape
    codes_Bq = _pad(codes_Bq, _rows(B), q)
    if mask_B is None:
      state, wave_BL = _decode(self.codec, state, codes_Bq)
    else:
      state, wave_BL = _decode_some(self.codec, state, codes_Bq, _mask(mask_B))
    return state, wave_BL[:B]

  def _checked(self, wave_BL: np.ndarray, sample_rate: int | None) -> np.ndarray:
    wave_BL = np.asarray(wave_BL)
    if sample_rate is not None and sample_rate != self.sample_rate:
      raise ValueError(
        f"sound has {sample_rate} samples/s; this codec wants {self.sample_rate}; resample it"
      )
    if wave_BL.ndim != 2 or wave_BL.shape[1] <= 2 < wave_BL.shape[0]:
      raise ValueError(
        f"wave has shape {wave_BL.shape}; want [batch, samples] of one channel: mix stereo down"
        " and add a batch dimension"
      )
    if 0 in wave_BL.shape:
      raise ValueError(f"wave has shape {wave_BL.shape}; want at least one clip and one sample")
    if not np.issubdtype(wave_BL.dtype, np.floating):
      raise ValueError(f"wave is {wave_BL.dtype}; want float in [-1, 1] (int16: divide by 32768)")
    if not np.isfinite(wave_BL).all():
      raise ValueError("wave holds NaN or infinity; want finite samples in [-1, 1]")
    return wave_BL.astype(np.float32)

  def _checked_codes(self, codes: np.ndarray, ndim: int) -> np.ndarray:
    codes, wanted = np.asarray(codes), "batch, frames" if ndim == 3 else "batch"
    if codes.ndim != ndim or 0 in codes.shape or codes.shape[-1] > self.codebooks:
      raise ValueError(
        f"codes have shape {codes.shape}; want [{wanted},"
        f" 1..{self.codebooks} codebooks]"
      )
    if codes.min() < 0 or codes.max() >= self.codes:
      raise ValueError(f"codes lie in {codes.min()}..{codes.max()}; want 0..{self.codes - 1}")
    return codes.astype(np.int32)


def _named(codec: Codec) -> dict[str, jax.Array]:
  leaves = jax.tree_util.tree_leaves_with_path(codec)
  return {jax.tree_util.keystr(path, simple=True, separator="."): x for path, x in leaves}


def _fingerprint(config: dict, arrays: dict[str, np.ndarray]) -> str:
  digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
  for name in sorted(arrays):
    digest.update(name.encode() + np.ascontiguousarray(arrays[name]).tobytes())
  return digest.hexdigest()[:16]


def save(path: Path, codec: Codec) -> None:
  """Writes PATH/{config.json,params.npz}; parameters as float16."""
  path = Path(path)
  path.mkdir(parents=True, exist_ok=True)
  arrays: dict[str, Any] = {n: np.asarray(x, np.float16) for n, x in _named(codec).items()}
  config = dataclasses.asdict(codec.config)
  # json turns tuples into lists: fingerprint what `load` will read
  config = json.loads(json.dumps(config))
  part = path / "params.part.npz"
  np.savez(part, **arrays)
  part.rename(path / "params.npz")
  text = {"config": config, "fingerprint": _fingerprint(config, arrays)}
  (path / "config.json").write_text(json.dumps(text, indent=1) + "\n")


def load(path: Path | str) -> AudioTokenizer:
  """Reads what `save` wrote; ValueError if a file is missing or they do not belong together."""
  path = Path(path)
  for name in ("config.json", "params.npz"):
    if not (path / name).exists():
      raise ValueError(f"no {name} in {path}; want a directory of `omnijax tokenizer train audio`")
  text = json.loads((path / "config.json").read_text())
  with np.load(path / "params.npz") as file:
    arrays = {name: file[name] for name in file.files}
  found = _fingerprint(text["config"], arrays)
  if found != text["fingerprint"]:
    raise ValueError(
      f"fingerprint of {path}/params.npz is {found} but config.json has {text['fingerprint']};"
      " they are of different trainings: copy both files again"
    )
  fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v
                            for k, v in text["config"].items()}
  unlike = set(fields) ^ {f.name for f in dataclasses.fields(AudioConfig)}
  if unlike:
    raise ValueError(f"{path}/config.json is of another version of the codec: it and this one do "
                     f"not share {sorted(unlike)}; train it again, or use the version it is of")
  config = AudioConfig(**fields)
  shapes = jax.eval_shape(lambda: Codec(config, rngs=nnx.Rngs(0)))
  leaves = [jnp.asarray(arrays[name], jnp.float32) for name in _named(shapes)]
  codec = jax.tree.unflatten(jax.tree.structure(shapes), leaves)
  return AudioTokenizer(config, codec, found)
