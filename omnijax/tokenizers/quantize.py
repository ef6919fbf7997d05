"""Quantisers: finite scalar (FSQ), grouped FSQ and residual vector quantisation.

Shapes: N any number of vectors, D model dim, Q codebooks (levels), K codes per codebook, E dim
of a code, G groups, C scalar channels of an FSQ; `...` any leading dims.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx


@dataclasses.dataclass(frozen=True)
class FSQ:
  """Finite scalar quantisation: each channel is squashed by tanh and cut into equal bins.

  No parameters and no codebook to collapse. Source: Mentzer et al. 2023, "Finite Scalar
  Quantization"; here bins are of equal width in tanh's range, so odd and even levels need no
  special case.
  """

  levels: tuple[int, ...]

  def __post_init__(self):
    if not self.levels or min(self.levels) < 2:
      raise ValueError(f"levels={self.levels}: want one or more channels of at least 2 levels")
    if math.prod(self.levels) > 2**31 - 1:
      raise ValueError(f"levels={self.levels} make {math.prod(self.levels)} codes; want < 2**31")

  @property
  def dim(self) -> int:
    """Channels of the vector it quantises."""
    return len(self.levels)

  @property
  def codes(self) -> int:
    """Number of different codes."""
    return math.prod(self.levels)

  def __call__(self, z: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Values [..., C] in (-1, 1), straight-through, and codes [...] of [..., C] floats."""
    if z.shape[-1] != self.dim:
      raise ValueError(f"last dim is {z.shape[-1]}; levels={self.levels} want {self.dim}")
    levels, base = self._tables(z.ndim)
    t = jnp.tanh(z)
    bins = jax.lax.stop_gradient(jnp.clip(jnp.floor((t + 1) / 2 * levels), 0, levels - 1))
    values = (2 * bins + 1) / levels - 1
    return t + jax.lax.stop_gradient(values - t), jnp.sum(bins.astype(jnp.int32) * base, -1)

  def vectors(self, codes: jax.Array) -> jax.Array:
    """The values [..., C] that codes [...] stand for; the inverse of `__call__`'s codes."""
    levels, base = self._tables(codes.ndim + 1)
    bins = codes[..., None] // base % levels.astype(jnp.int32)
    return (2.0 * bins + 1) / levels - 1

  def _tables(self, ndim: int) -> tuple[jax.Array, jax.Array]:
    shape = (1,) * (ndim - 1) + (self.dim,)
    base = [math.prod(self.levels[:i]) for i in range(self.dim)]
    return (
      jnp.asarray(self.levels, jnp.float32).reshape(shape),
      jnp.asarray(base, jnp.int32).reshape(shape),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantizerConfig:
  """A frame quantiser: RVQ of `codebooks` x `codes`, or grouped FSQ when `fsq_levels` is given."""

  dim: int
  semantic_dim: int
  codebooks: int
  codes: int
  code_dim: int
  fsq_levels: tuple[int, ...] = ()

  def __post_init__(self):
    for name in ("dim", "semantic_dim", "codebooks", "codes", "code_dim"):
      if getattr(self, name) < 1:
        raise ValueError(f"{name}={getattr(self, name)}; want at least 1")
    if self.fsq_levels:
      fsq = FSQ(self.fsq_levels)
      if (fsq.codes, fsq.dim) != (self.codes, self.code_dim):
        raise ValueError(
          f"fsq_levels={self.fsq_levels} give codes={fsq.codes}, code_dim={fsq.dim}; "
          f"got codes={self.codes}, code_dim={self.code_dim}; make them equal"
        )


@dataclasses.dataclass(frozen=True)
class Quantized:
  """What training needs of one quantisation; a pytree."""

  z_ND: jax.Array  # sum of the active levels, straight-through
  first_NE: jax.Array  # the first level alone, what it means to a reader
  codes_NQ: jax.Array  # int32
  latents_QNE: jax.Array  # what each level tried to code: what its codebook learns from
  loss: jax.Array  # commitment, mean over active levels


jax.tree_util.register_dataclass(
  Quantized, ["z_ND", "first_NE", "codes_NQ", "latents_QNE", "loss"], []
)


class ResidualVQ(nnx.Module):
  """Vector quantiser of meaning, beside a residual vector quantiser of sound.

  The first codebook codes the semantic vectors alone, and what is reconstructed pulls neither at
  them nor at it; the others code the acoustic vectors, each what its predecessors left. All are
  summed. Codebooks are no business of the optimizer: they follow the latents, in a projected
  space of bounded vectors, by moving averages (`Codebooks`), which stays stable at learning rates
  where codebooks trained by gradient ran away (experiments/LOG.md). Sources: SoundStream
  (Zeghidour et al. 2021); the split, Mimi (Defossez et al. 2024).
  """

  def __init__(self, config: QuantizerConfig, *, rngs: nnx.Rngs):
    c, normal = config, jax.random.normal
    self.config = config
    weight = lambda i, o: nnx.Param(normal(rngs.params(), (i, o)) / math.sqrt(i))
    self.w_semantic_in = weight(c.semantic_dim, c.code_dim)
    self.w_semantic_out = weight(c.code_dim, c.dim)
    self.w_in_DE = weight(c.dim, c.code_dim)
    self.codebook_QKE = nnx.Param(normal(rngs.params(), (c.codebooks, c.codes, c.code_dim)))
    self.w_out_ED = weight(c.code_dim, c.dim)

  def __call__(self, meaning_ND: jax.Array, sound_ND: jax.Array, levels_N: jax.Array) -> Quantized:
    """Quantises vectors, each with its own number of levels (quantiser dropout).

    Args:
      meaning_ND: semantic vectors, of semantic_dim.
      sound_ND: acoustic vectors of the same frames.
      levels_N: int32, how many levels are summed for each frame; 1 <= levels <= Q.
    """
    stop = jax.lax.stop_gradient
    latent_2NE = self._latents(meaning_ND, sound_ND)
    codes_QN, residual_QNE, value_QNE = self._levels(stop(latent_2NE))
    active_QN = (jnp.arange(self.config.codebooks)[:, None] < levels_N[None]).astype(jnp.float32)
    through_NE = lambda latent_NE, value_NE: latent_NE + stop(value_NE - latent_NE)
    # Level q > 0 commits the sum of the levels up to it to the acoustic latent.
    target_QNE = jnp.concatenate([value_QNE[:1], jnp.cumsum(value_QNE[1:], 0)])
    latent_QNE = latent_2NE[jnp.minimum(jnp.arange(self.config.codebooks), 1)]
    commit_QN = jnp.mean((latent_QNE - stop(target_QNE)) ** 2, -1)
    sound_NE = jnp.sum(value_QNE[1:] * active_QN[1:, :, None], 0)
    sound_NE = through_NE(latent_2NE[1], sound_NE) * (levels_N > 1)[:, None]
    return Quantized(
      z_ND=stop(value_QNE[0]) @ self.w_semantic_out[...] + sound_NE @ self.w_out_ED[...],
      first_NE=through_NE(latent_2NE[0], value_QNE[0]),
      codes_NQ=codes_QN.T,
      latents_QNE=residual_QNE,
      loss=jnp.sum(commit_QN * active_QN) / jnp.sum(active_QN),
    )

  def encode(self, meaning_ND: jax.Array, sound_ND: jax.Array) -> jax.Array:
    """Codes [N, Q] int32 of vectors."""
    return self._levels(self._latents(meaning_ND, sound_ND))[0].T

  def decode(self, codes_Nq: jax.Array) -> jax.Array:
    """Vectors [N, D] of the first q <= Q codebooks' codes."""
    q = codes_Nq.shape[1]
    value_qNE = jax.vmap(lambda b, c: b[c], (0, 1))(self.codebook_QKE[...][:q], codes_Nq)
    sound_NE = jnp.sum(value_qNE[1:], 0)
    return value_qNE[0] @ self.w_semantic_out[...] + sound_NE @ self.w_out_ED[...]

  def vectors(self, q: int) -> jax.Array:
    """What each code of the first q codebooks stands for, [q, K, E]."""
    return self.codebook_QKE[...][:q]

  def _latents(self, meaning_ND, sound_ND):
    latents = meaning_ND @ self.w_semantic_in[...], sound_ND @ self.w_in_DE[...]
    latent_2NE = jnp.stack(latents)
    return latent_2NE * jax.lax.rsqrt(jnp.mean(latent_2NE**2, -1, keepdims=True) + 1e-6)

  def _levels(self, latent_2NE):
    """Codes [Q, N], what each level saw [Q, N, E] and what it answered [Q, N, E]."""

    def level(residual_NE, codebook_KE):
      norm_K = jnp.sum(codebook_KE**2, -1)
      distance_NK = norm_K[None] - 2 * residual_NE @ codebook_KE.T
      code_N = jnp.argmin(distance_NK, -1).astype(jnp.int32)
      value_NE = codebook_KE[code_N]
      return residual_NE - value_NE, (code_N, residual_NE, value_NE)

    codebook_QKE = jax.lax.stop_gradient(self.codebook_QKE[...])
    meaning = level(latent_2NE[0], codebook_QKE[0])[1]
    sound = jax.lax.scan(level, latent_2NE[1], codebook_QKE[1:])[1]
    return jax.tree.map(lambda m, s: jnp.concatenate([m[None], s]), meaning, sound)


@functools.partial(
  jax.tree_util.register_dataclass, data_fields=["uses_QK", "sums_QKE"], meta_fields=[]
)
@dataclasses.dataclass(frozen=True)
class Codebooks:
  """Moving averages from which the codebooks of a `ResidualVQ` are learned."""

  uses_QK: jax.Array  # times each code was used by a batch
  sums_QKE: jax.Array  # sum of the latents it was used for


def init_codebooks(config: QuantizerConfig) -> Codebooks:
  """Nothing seen yet: at the first restart every code is dead, so takes a latent of the batch."""
  shape = (config.codebooks, config.codes)
  return Codebooks(jnp.zeros(shape), jnp.zeros((*shape, config.code_dim)))


def resume_codebooks(codebook_QKE: jax.Array, batch: int) -> Codebooks:
  """Averages as if `batch` vectors had always been spread evenly over these codebooks."""
  uses_QK = jnp.full(codebook_QKE.shape[:2], batch / codebook_QKE.shape[1])
  return Codebooks(uses_QK, codebook_QKE * uses_QK[:, :, None])


def learn_codebooks(
  old: Codebooks, quantized: Quantized, restart: jax.Array, below: float, key: jax.Array
) -> tuple[Codebooks, jax.Array]:
  """New averages and codebooks [Q, K, E] after a batch.

  Args:
    old: averages before the batch.
    quantized: the batch's codes and latents.
    restart: bool scalar; whether dead codes are replaced now, by random latents of the batch.
    below: a code is dead if used less than this share of uniform use.
    key: for the choice of latents.
  """
  Q, K = old.uses_QK.shape
  N, keep = quantized.codes_NQ.shape[0], 0.99
  zeros_KE = jnp.zeros_like(old.sums_QKE[0])
  count = lambda code_N, x_NE: (
    jnp.zeros(K).at[code_N].add(1.0), zeros_KE.at[code_N].add(x_NE)
  )
  uses_QK, sums_QKE = jax.vmap(count, (1, 0))(quantized.codes_NQ, quantized.latents_QNE)
  uses_QK = keep * old.uses_QK + (1 - keep) * uses_QK
  sums_QKE = keep * old.sums_QKE + (1 - keep) * sums_QKE
  dead_QK = restart & (uses_QK < below * N / K)
  pick_key, jitter_key = jax.random.split(key)
  pick_QK = jax.random.randint(pick_key, (Q, K), 0, N)
  fresh_QKE = jax.vmap(lambda x, i: x[i])(quantized.latents_QNE, pick_QK)
  fresh_QKE *= 1 + 0.02 * jax.random.normal(jitter_key, fresh_QKE.shape)
  # a restarted code starts with a light weight, so that it moves quickly to where it is needed
  light = 0.2 * N / K
  uses_QK = jnp.where(dead_QK, light, uses_QK)
  sums_QKE = jnp.where(dead_QK[:, :, None], light * fresh_QKE, sums_QKE)
  return Codebooks(uses_QK, sums_QKE), sums_QKE / jnp.maximum(uses_QK, 1e-9)[:, :, None]


class GroupedFSQ(nnx.Module):
  """Q independent FSQs of projected channels, behind the interface of `ResidualVQ`."""

  def __init__(self, config: QuantizerConfig, *, rngs: nnx.Rngs):
    c, normal = config, jax.random.normal
    if not c.fsq_levels:
      raise ValueError("fsq_levels=() given to GroupedFSQ; want the levels of each channel")
    self.config = config
    weight = lambda *shape: nnx.Param(normal(rngs.params(), shape) / math.sqrt(shape[-2]))
    self.w_semantic_in = weight(c.semantic_dim, c.code_dim)
    self.w_in_QDE = weight(c.codebooks - 1, c.dim, c.code_dim)
    self.w_out_QED = weight(c.codebooks, c.code_dim, c.dim)

  def __call__(self, meaning_ND: jax.Array, sound_ND: jax.Array, levels_N: jax.Array) -> Quantized:
    """As `ResidualVQ.__call__`; FSQ needs no loss of its own."""
    stop = jax.lax.stop_gradient
    latents_QNE = self._latents(meaning_ND, sound_ND)
    value_QNE, codes_QN = FSQ(self.config.fsq_levels)(latents_QNE)
    w_out_QED = self.w_out_QED[...]
    out_QND = jnp.concatenate([stop(value_QNE[:1]), value_QNE[1:]]) @ w_out_QED
    active_QN = jnp.arange(self.config.codebooks)[:, None] < levels_N[None, :]
    return Quantized(
      z_ND=jnp.sum(out_QND * active_QN[:, :, None], 0),
      first_NE=value_QNE[0],
      codes_NQ=codes_QN.T,
      latents_QNE=stop(latents_QNE),
      loss=jnp.zeros(()),
    )

  def vectors(self, q: int) -> jax.Array:
    """What each code of a group stands for, [q, K, E]; the same for every group."""
    value_KE = FSQ(self.config.fsq_levels).vectors(jnp.arange(self.config.codes))
    return jnp.broadcast_to(value_KE[None], (q, *value_KE.shape))

  def encode(self, meaning_ND: jax.Array, sound_ND: jax.Array) -> jax.Array:
    """Codes [N, Q] int32 of vectors."""
    return FSQ(self.config.fsq_levels)(self._latents(meaning_ND, sound_ND))[1].T

  def decode(self, codes_Nq: jax.Array) -> jax.Array:
    """Vectors [N, D] of the first q <= Q groups' codes."""
    value_NqE = FSQ(self.config.fsq_levels).vectors(codes_Nq)
    return jnp.einsum("nqe,qed->nd", value_NqE, self.w_out_QED[...][: codes_Nq.shape[1]])

  def _latents(self, meaning_ND, sound_ND):
    meaning_NE = meaning_ND @ self.w_semantic_in[...]
    return jnp.concatenate([meaning_NE[None], sound_ND @ self.w_in_QDE[...]])


def quantizer(config: QuantizerConfig, *, rngs: nnx.Rngs) -> ResidualVQ | GroupedFSQ:
  """The quantiser that the config asks for."""
  return (GroupedFSQ if config.fsq_levels else ResidualVQ)(config, rngs=rngs)
