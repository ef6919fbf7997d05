"""Drawing tokens: temperature, top-k and top-p, each row with settings of its own.

Neither sorts: the lowest score that stays is found bit by bit, 32 passes over the scores, which
is exact and cheap on every backend.

B rows  V scores of a row  K kinds of token
"""

import dataclasses

import jax
import jax.numpy as jnp

from omnijax.kernels.attention import MASKED


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
  """How tokens of one kind are drawn; temperature 0 takes the most likely."""

  temperature: float = 1.0
  top_k: int = 0  # keep this many of the most likely; 0 keeps all
  top_p: float = 1.0  # keep the fewest most likely that have this share together

  def __post_init__(self) -> None:
    if not 0 <= self.temperature < float("inf"):
      raise ValueError(f"temperature is {self.temperature}; wanted 0 (most likely) or more.")
    if self.top_k < 0:
      raise ValueError(f"top_k is {self.top_k}; wanted 0 (keep all) or more.")
    if not 0 < self.top_p <= 1:
      raise ValueError(f"top_p is {self.top_p}; wanted 0 < top_p <= 1 (keep all).")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
  """A setting for each kind of token; text includes control tokens and the monologue."""

  text: Setting = Setting(temperature=0.7, top_p=0.95)
  image: Setting = Setting(temperature=1.0, top_p=0.98)
  first_codebook: Setting = Setting(temperature=0.8, top_k=250)
  acoustic: Setting = Setting(temperature=0.8, top_k=250)

  def table(self) -> list[list[float]]:
    """Rows TEXT, IMAGE, FIRST, ACOUSTIC of (temperature, top_k, top_p)."""
    kinds = (self.text, self.image, self.first_codebook, self.acoustic)
    return [[s.temperature, float(s.top_k), s.top_p] for s in kinds]


TEXT, IMAGE, FIRST, ACOUSTIC = range(4)
_MOST_LIKELY = Setting(temperature=0.0)
GREEDY = Sampling(text=_MOST_LIKELY, image=_MOST_LIKELY, first_codebook=_MOST_LIKELY,
                  acoustic=_MOST_LIKELY)


def draw(key_B: jax.Array, logits_BV: jax.Array, allowed_BV: jax.Array, setting_B3: jax.Array
         ) -> jax.Array:
  """Draws one token of each row, int32 [B].

  Args:
    key_B: a random key of each row; a row's draw depends on nothing of the other rows.
    logits_BV: float32 scores.
    allowed_BV: bool; others are never drawn.
    setting_B3: temperature, top_k, top_p: the temperature acts first, then top_k, then top_p
      among what top_k kept. Scores that tie with the last one kept stay, too.
  """
  # Sums and not indices: jax 0.12 forgets how a single row is sharded when it is indexed.
  temperature_B, top_k_B, top_p_B = (jnp.sum(setting_B3 * one_3[None], -1) for one_3 in jnp.eye(3))
  logits_BV = jnp.where(allowed_BV, logits_BV, MASKED)
  likely_B = jnp.argmax(logits_BV, -1)

  def random() -> jax.Array:
    warm_B = jnp.where(temperature_B > 0, temperature_B, 1.0)
    scores_BV = logits_BV / warm_B[:, None]
    scores_BV = jax.lax.cond(jnp.any(top_k_B > 0), _top_k, lambda s, _: s, scores_BV, top_k_B)
    scores_BV = jax.lax.cond(jnp.any(top_p_B < 1), _top_p, lambda s, _: s, scores_BV, top_p_B)
    noise_BV = jax.vmap(lambda key, like: jax.random.gumbel(key, like.shape))(key_B, scores_BV)
    picked_B = jnp.argmax(jnp.where(scores_BV > MASKED / 2, scores_BV + noise_BV, MASKED), -1)
    return jnp.where(temperature_B > 0, picked_B, likely_B)

  return jax.lax.cond(jnp.any(temperature_B > 0), random, lambda: likely_B).astype(jnp.int32)


def _top_k(scores_BV: jax.Array, k_B: jax.Array) -> jax.Array:
  """Masks all but the k highest scores of each row; k = 0 masks nothing."""
  kept_BV = _highest(scores_BV, jnp.ones_like(scores_BV), k_B)
  return jnp.where(kept_BV | (k_B == 0)[:, None], scores_BV, MASKED)


def _top_p(scores_BV: jax.Array, p_B: jax.Array) -> jax.Array:
  """Masks all but the fewest highest scores that together have probability p."""
  kept_BV = _highest(scores_BV, jax.nn.softmax(scores_BV, -1), p_B)
  return jnp.where(kept_BV | (p_B == 1)[:, None], scores_BV, MASKED)


def _highest(scores_BV: jax.Array, weight_BV: jax.Array, wanted_B: jax.Array) -> jax.Array:
  """Marks the fewest highest scores whose weights add up to what is wanted, ties included."""
  # Unsigned integers in the order of the floats: all bits of negative ones flip, else the sign.
  bits_BV = jax.lax.bitcast_convert_type(scores_BV, jnp.uint32)
  top = jnp.uint32(1 << 31)
  rank_BV = jnp.where(bits_BV >= top, ~bits_BV, bits_BV | top)

  def body(i: jax.Array, least_B: jax.Array) -> jax.Array:
    higher_B = least_B | (top >> i.astype(jnp.uint32))
    weight_B = jnp.sum(jnp.where(rank_BV >= higher_B[:, None], weight_BV, 0.0), -1)
    return jnp.where(weight_B >= wanted_B, higher_B, least_B)

  none_B = jnp.zeros_like(wanted_B, jnp.uint32)  # sharded as the rows are, also a single one
  least_B = jax.lax.fori_loop(0, 32, body, none_B)
  return rank_BV >= least_B[:, None]
