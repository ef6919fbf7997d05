"""Quantisers: codes and vectors agree, residuals shrink, dead codes come back, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import omnijax.tokenizers  # noqa: F401  (tree mode)
from omnijax.tokenizers import quantize

RVQ = quantize.QuantizerConfig(dim=12, semantic_dim=8, codebooks=4, codes=32, code_dim=6)
GROUPED = quantize.QuantizerConfig(dim=12, semantic_dim=8, codebooks=4, codes=24, code_dim=3,
                                   fsq_levels=(4, 3, 2))


MEANING = jax.random.normal(jax.random.key(9), (200, 8))


def learned(z_ND, batches: int) -> quantize.ResidualVQ:
  """An RVQ whose codebooks have followed some batches of the given vectors."""
  rvq = quantize.ResidualVQ(RVQ, rngs=nnx.Rngs(0))
  books = quantize.init_codebooks(RVQ)
  levels_N = jnp.full(z_ND.shape[0], RVQ.codebooks)

  @jax.jit
  def batch(rvq, books, first, key):
    quantized = rvq(MEANING[: len(z_ND)], z_ND, levels_N)
    return quantize.learn_codebooks(books, quantized, first, 0.05, key)

  for i in range(batches):
    args = (jnp.bool_(i == 0), jax.random.key(i))
    books, rvq.codebook_QKE[...] = batch(rvq, books, *args)
  return rvq


@pytest.mark.parametrize("levels", [(2,), (5,), (8, 5, 5, 5), (3, 2, 4)])
def test_fsq_codes_round_trip(levels):
  fsq = quantize.FSQ(levels)
  codes = jnp.arange(fsq.codes)
  vectors = fsq.vectors(codes)
  assert vectors.shape == (fsq.codes, len(levels))
  assert len(np.unique(np.asarray(vectors), axis=0)) == fsq.codes
  values, again = fsq(jnp.arctanh(vectors))
  np.testing.assert_array_equal(again, codes)
  np.testing.assert_allclose(values, vectors, atol=1e-6)


def test_fsq_passes_the_gradient_of_tanh():
  fsq = quantize.FSQ((4, 5))
  z = jax.random.normal(jax.random.key(0), (7, 2))
  grad = jax.grad(lambda z: jnp.sum(fsq(z)[0]))(z)
  np.testing.assert_allclose(grad, 1 - jnp.tanh(z) ** 2, atol=1e-6)


def test_residual_shrinks_with_every_codebook_that_has_learned():
  z_ND = jax.random.normal(jax.random.key(1), (200, 12))
  rvq = learned(z_ND, 20)
  codes_NQ = rvq.encode(MEANING, z_ND)
  meaning_NE, sound_NE = rvq._latents(MEANING, z_ND)
  first_ND = rvq.decode(codes_NQ[:, :1])
  exact_ND = first_ND + sound_NE @ rvq.w_out_ED[...]
  errors = [
    float(jnp.mean((exact_ND - rvq.decode(codes_NQ[:, :q])) ** 2)) for q in range(1, 5)
  ]
  meant_NE = rvq.codebook_QKE[...][0][codes_NQ[:, 0]]
  assert float(jnp.mean((meant_NE - meaning_NE) ** 2)) < 0.5
  assert errors == sorted(errors, reverse=True) and errors[-1] < 0.2 * errors[0], errors
  fresh = quantize.ResidualVQ(RVQ, rngs=nnx.Rngs(0))
  untrained = fresh.decode(fresh.encode(MEANING, z_ND))
  assert float(jnp.mean((exact_ND - untrained) ** 2)) > 2 * errors[-1]


@pytest.mark.parametrize("config", [RVQ, GROUPED])
def test_training_encoding_and_decoding_agree(config):
  quantizer = quantize.quantizer(config, rngs=nnx.Rngs(0))
  z_ND = jax.random.normal(jax.random.key(2), (10, 12))
  codes_NQ = quantizer.encode(MEANING[:10], z_ND)
  assert codes_NQ.shape == (10, 4) and codes_NQ.dtype == jnp.int32
  assert 0 <= codes_NQ.min() and codes_NQ.max() < config.codes
  for q in (1, 2, 4):
    result = quantizer(MEANING[:10], z_ND, jnp.full(10, q))
    np.testing.assert_array_equal(result.codes_NQ, codes_NQ)
    np.testing.assert_allclose(result.z_ND, quantizer.decode(codes_NQ[:, :q]), atol=1e-5)
  assert not np.allclose(quantizer.decode(codes_NQ[:, :1]), quantizer.decode(codes_NQ))
  firsts_KE = quantizer.vectors(1)[0]
  np.testing.assert_allclose(result.first_NE, firsts_KE[codes_NQ[:, 0]], atol=1e-5)


@pytest.mark.parametrize("config", [RVQ, GROUPED])
def test_each_vector_may_use_its_own_number_of_codebooks(config):
  quantizer = quantize.quantizer(config, rngs=nnx.Rngs(0))
  z_ND = jax.random.normal(jax.random.key(3), (3, 12))
  mixed = quantizer(MEANING[:3], z_ND, jnp.array([1, 2, 4])).z_ND
  for i, q in enumerate((1, 2, 4)):
    alone = quantizer(MEANING[:3], z_ND, jnp.full(3, q)).z_ND
    np.testing.assert_allclose(mixed[i], alone[i], atol=1e-5)
  assert not np.allclose(mixed[0], alone[0], atol=1e-3)


def test_gradient_reaches_the_vectors_through_the_quantiser():
  rvq = quantize.ResidualVQ(RVQ, rngs=nnx.Rngs(0))
  z_ND = jax.random.normal(jax.random.key(4), (5, 12))
  both = lambda m, z: rvq(m, z, jnp.full(5, 2))
  sound = jax.grad(lambda m, z: jnp.sum(both(m, z).z_ND ** 2), (0, 1))(MEANING[:5], z_ND)
  assert float(jnp.abs(sound[1]).min(-1).max()) > 0 and not sound[0].any()
  words = jax.grad(lambda m, z: jnp.sum(both(m, z).first_NE ** 3), (0, 1))(MEANING[:5], z_ND)
  assert float(jnp.abs(words[0]).min(-1).max()) > 0 and not words[1].any()


def test_dead_codes_are_restarted_at_latents_of_the_batch_and_others_kept():
  z_ND = jax.random.normal(jax.random.key(5), (64, 12))
  rvq = learned(z_ND, 3)
  books = quantize.resume_codebooks(rvq.codebook_QKE[...], 64)
  uses = books.uses_QK.at[0, :5].set(0.0)
  books = quantize.Codebooks(uses, books.sums_QKE.at[0, :5].set(0.0))
  far = rvq.codebook_QKE[...].at[0, :5].set(100.0)  # nothing is near: these stay unused
  rvq.codebook_QKE[...] = far
  quantized = rvq(MEANING[:64], z_ND, jnp.full(64, 4))
  key = jax.random.key(0)
  _, kept = quantize.learn_codebooks(books, quantized, jnp.bool_(False), 0.05, key)
  _, restarted = quantize.learn_codebooks(books, quantized, jnp.bool_(True), 0.05, key)
  norm = jnp.sqrt(jnp.sum(restarted[0, :5] ** 2, -1))
  np.testing.assert_allclose(norm, 6**0.5, rtol=0.15)  # latents have unit mean square
  np.testing.assert_allclose(restarted[0, 5:], kept[0, 5:])
  assert not np.allclose(restarted[0, :5], kept[0, :5])


def test_bad_settings_are_named():
  with pytest.raises(ValueError, match="levels="):
    quantize.FSQ((8, 1))
  with pytest.raises(ValueError, match="last dim is 3"):
    quantize.FSQ((8, 8))(jnp.zeros((2, 3)))
  with pytest.raises(ValueError, match="codebooks=0"):
    quantize.QuantizerConfig(dim=4, semantic_dim=4, codebooks=0, codes=4, code_dim=2)
  with pytest.raises(ValueError, match="give codes=16"):
    quantize.QuantizerConfig(dim=4, semantic_dim=4, codebooks=1, codes=15, code_dim=2,
                             fsq_levels=(4, 4))
