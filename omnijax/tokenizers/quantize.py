"""Quantisers: finite scalar (FSQ), grouped FSQ and residual vector quantisation.

Shapes: N any number of vectors, D model dim, Q codebooks (levels), K codes per codebook, E dim
of a code, G groups, C scalar channels of an FSQ; `...` any leading dims.
"""

import dataclasses
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
    """Quantises [..., C] floats: the values [..., C] in (-1, 1), straight-through, and codes [...]."""
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
  codebooks: int
  codes: int
  code_dim: int
  fsq_levels: tuple[int, ...] = ()

  def __post_init__(self):
    for name in ("dim", "codebooks", "codes", "code_dim"):
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
  first_ND: jax.Array  # the first level alone
  codes_NQ: jax.Array  # int32
  latents_QNE: jax.Array  # what each level tried to code: candidates for dead codes
  loss: jax.Array  # commitment + codebook loss, mean over active levels


jax.tree_util.register_dataclass(
  Quantized, ["z_ND", "first_ND", "codes_NQ", "latents_QNE", "loss"], []
)


def _unit(x: jax.Array) -> jax.Array:
  return x * jax.lax.rsqrt(jnp.sum(x * x, -1, keepdims=True) + 1e-8)


class ResidualVQ(nnx.Module):
  """Residual vector quantiser whose levels look codes up in a low dimension by cosine.

  Source: factorised, l2-normalised codes of the Descript Audio Codec (Kumar et al. 2023).
  """

  def __init__(self, config: QuantizerConfig, *, rngs: nnx.Rngs):
    c, normal = config, jax.random.normal
    self.config = config
    self.w_in_QDE = nnx.Param(
      normal(rngs.params(), (c.codebooks, c.dim, c.code_dim)) / math.sqrt(c.dim)
    )
    self.codebook_QKE = nnx.Param(normal(rngs.params(), (c.codebooks, c.codes, c.code_dim)))
    self.w_out_QED = nnx.Param(
      normal(rngs.params(), (c.codebooks, c.code_dim, c.dim)) / math.sqrt(c.code_dim)
    )

  def __call__(self, z_ND: jax.Array, levels_N: jax.Array) -> Quantized:
    """Quantises vectors, each with its own number of levels (quantiser dropout).

    Args:
      z_ND: vectors.
      levels_N: int32, how many levels are summed for each vector; 1 <= levels <= Q.
    """

    def level(carry, weights):
      residual_ND, z_q_ND, loss_N = carry
      index, w_in_DE, codebook_KE, w_out_ED = weights
      code_N, latent_NE, value_NE = _nearest(residual_ND, w_in_DE, codebook_KE)
      stop = jax.lax.stop_gradient
      commit_N = jnp.mean((latent_NE - stop(value_NE)) ** 2, -1)
      learn_N = jnp.mean((stop(latent_NE) - value_NE) ** 2, -1)
      out_ND = (latent_NE + stop(value_NE - latent_NE)) @ w_out_ED
      active_N = (index < levels_N).astype(z_ND.dtype)
      z_q_ND = z_q_ND + active_N[:, None] * out_ND
      loss_N = loss_N + active_N * (0.25 * commit_N + learn_N)
      # the residual keeps its gradient: with it the levels' straight-through gradients to z sum to
      # about one identity instead of Q of them
      return (residual_ND - out_ND, z_q_ND, loss_N), (code_N, stop(latent_NE), out_ND)

    start = (z_ND, jnp.zeros_like(z_ND), jnp.zeros(z_ND.shape[0], z_ND.dtype))
    xs = (jnp.arange(self.config.codebooks), *self._weights())
    (_, z_q_ND, loss_N), (codes_QN, latents_QNE, out_QND) = jax.lax.scan(level, start, xs)
    return Quantized(
      z_ND=z_q_ND,
      first_ND=out_QND[0],
      codes_NQ=codes_QN.T,
      latents_QNE=latents_QNE,
      loss=jnp.sum(loss_N) / jnp.sum(levels_N),
    )

  def encode(self, z_ND: jax.Array) -> jax.Array:
    """Codes [N, Q] int32 of vectors."""

    def level(residual_ND, weights):
      w_in_DE, codebook_KE, w_out_ED = weights
      code_N, _, value_NE = _nearest(residual_ND, w_in_DE, codebook_KE)
      return residual_ND - value_NE @ w_out_ED, code_N

    return jax.lax.scan(level, z_ND, self._weights())[1].T

  def decode(self, codes_Nq: jax.Array) -> jax.Array:
    """Vectors [N, D] of the first q <= Q codebooks' codes."""
    q = codes_Nq.shape[1]
    _, codebook_QKE, w_out_QED = self._weights()
    value_NqE = jax.vmap(lambda b, c: b[c], (0, 1), 1)(codebook_QKE[:q], codes_Nq)
    return jnp.einsum("nqe,qed->nd", value_NqE, w_out_QED[:q])

  def restart(self, latents_QNE: jax.Array, dead_QK: jax.Array, key: jax.Array) -> jax.Array:
    """New codebook [Q, K, E]: dead codes are replaced by random latents of this batch."""
    shape = self.codebook_QKE[...].shape[:2]
    pick_QK = jax.random.randint(key, shape, 0, latents_QNE.shape[1])
    new_QKE = jax.vmap(lambda x, i: x[i])(latents_QNE, pick_QK)
    return jnp.where(dead_QK[:, :, None], new_QKE, self.codebook_QKE[...])

  def _weights(self):
    return self.w_in_QDE[...], self.codebook_QKE[...], self.w_out_QED[...]


def _nearest(residual_ND, w_in_DE, codebook_KE):
  """The code nearest by cosine, the latent that was looked up, and the code's value."""
  latent_NE = residual_ND @ w_in_DE
  score_NK = _unit(jax.lax.stop_gradient(latent_NE)) @ _unit(codebook_KE).T
  code_N = jnp.argmax(score_NK, -1).astype(jnp.int32)
  return code_N, latent_NE, codebook_KE[code_N]


class GroupedFSQ(nnx.Module):
  """Q independent FSQs of projected channels, behind the interface of `ResidualVQ`."""

  def __init__(self, config: QuantizerConfig, *, rngs: nnx.Rngs):
    c, normal = config, jax.random.normal
    if not c.fsq_levels:
      raise ValueError("fsq_levels=() given to GroupedFSQ; want the levels of each channel")
    self.config = config
    self.w_in_QDE = nnx.Param(
      normal(rngs.params(), (c.codebooks, c.dim, c.code_dim)) / math.sqrt(c.dim)
    )
    self.w_out_QED = nnx.Param(
      normal(rngs.params(), (c.codebooks, c.code_dim, c.dim)) / math.sqrt(c.code_dim)
    )

  def __call__(self, z_ND: jax.Array, levels_N: jax.Array) -> Quantized:
    """As `ResidualVQ.__call__`; FSQ needs no loss of its own."""
    latents_QNE = jnp.einsum("nd,qde->qne", z_ND, self.w_in_QDE[...])
    value_QNE, codes_QN = FSQ(self.config.fsq_levels)(latents_QNE)
    out_QND = jnp.einsum("qne,qed->qnd", value_QNE, self.w_out_QED[...])
    active_QN = jnp.arange(self.config.codebooks)[:, None] < levels_N[None, :]
    return Quantized(
      z_ND=jnp.sum(out_QND * active_QN[:, :, None], 0),
      first_ND=out_QND[0],
      codes_NQ=codes_QN.T,
      latents_QNE=jax.lax.stop_gradient(latents_QNE),
      loss=jnp.zeros(()),
    )

  def encode(self, z_ND: jax.Array) -> jax.Array:
    """Codes [N, Q] int32 of vectors."""
    latents_NQE = jnp.einsum("nd,qde->nqe", z_ND, self.w_in_QDE[...])
    return FSQ(self.config.fsq_levels)(latents_NQE)[1]

  def decode(self, codes_Nq: jax.Array) -> jax.Array:
    """Vectors [N, D] of the first q <= Q groups' codes."""
    value_NqE = FSQ(self.config.fsq_levels).vectors(codes_Nq)
    return jnp.einsum("nqe,qed->nd", value_NqE, self.w_out_QED[...][: codes_Nq.shape[1]])


def quantizer(config: QuantizerConfig, *, rngs: nnx.Rngs) -> ResidualVQ | GroupedFSQ:
  """The quantiser that the config asks for."""
  return (GroupedFSQ if config.fsq_levels else ResidualVQ)(config, rngs=rngs)
