"""Experts: what they compute, who may use them, and that nothing is dropped."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from omnijax import sharding
from omnijax import vocab as vocab_lib
from omnijax.model.moe import Moe

CFG = dataclasses.replace(tiny.MODEL, experts=6, experts_per_token=2, mlp=16,
                          modality_experts=(1, 2, 1))


@pytest.fixture
def made(mesh):
  moe = Moe(CFG, sharding.RULES, out_std=1.0, rngs=nnx.Rngs(0))
  r = np.random.default_rng(0)
  x = r.normal(size=(2, 24, CFG.dim)).astype(np.float32)
  x[:, 12:] = x[:, 11:12]  # half of them alike, so that some expert gets far more than others
  modality = r.integers(0, 3, (2, 24)).astype(np.int8)
  return moe, x, modality, np.ones((2, 24), np.int32)


def probabilities(moe, x, modality):
  logits = x @ np.asarray(moe.router_DE[...]) + np.asarray(moe.router_ME[...])[modality]
  owner = np.repeat([0, 1, 2, -1], [*CFG.modality_experts, 2])
  logits = np.where((owner == modality[..., None]) | (owner == -1), logits, -np.inf)
  p = np.exp(logits - logits.max(-1, keepdims=True))
  return p / p.sum(-1, keepdims=True)


def test_every_position_gets_its_experts_whole(made):
  moe, x, modality, segment = made
  moe.router_ME[...] = jnp.asarray(np.random.default_rng(1).normal(size=(3, 6)), jnp.float32)
  y, balance = jax.jit(lambda m, *args: m(*args))(moe, x, modality, segment)
  p = probabilities(moe, x, modality)
  gate, up, down = (np.asarray(w[...], np.float64) for w in (
    moe.w_gate_EDF, moe.w_up_EDF, moe.w_down_EFD))
  counts = np.zeros(6)
  for b in range(2):
    for s in range(24):
      best = np.argsort(-p[b, s])[:2]
      counts[best] += 1
      share = p[b, s, best] / p[b, s, best].sum()
      want = 0
      for e, w in zip(best, share, strict=True):
        a = x[b, s] @ gate[e]
        want = want + w * ((a / (1 + np.exp(-a)) * (x[b, s] @ up[e])) @ down[e])
      np.testing.assert_allclose(y[b, s], want, atol=1e-4)
  assert counts.max() > 2 * counts.min()  # far from even, and nothing was dropped
  np.testing.assert_allclose(balance, 6 * np.sum(counts / counts.sum() * p.mean((0, 1))),
                             rtol=1e-4)


def test_nobody_uses_the_experts_of_another_modality(made):
  moe, x, modality, segment = made
  text = modality == vocab_lib.TEXT
  before = np.asarray(moe(x, modality, segment)[0])
  moe.w_down_EFD[...] = moe.w_down_EFD[...].at[1:3].set(0)  # the images' own
  after = np.asarray(moe(x, modality, segment)[0])
  np.testing.assert_array_equal(before[text], after[text])
  image = modality == vocab_lib.IMAGE
  assert np.abs(before[image] - after[image]).max() > 1e-3


def test_padding_does_not_count_for_the_balance(made):
  moe, x, modality, segment = made
  half = segment.copy()
  half[:, 12:] = 0
  alone = moe(x[:, :12], modality[:, :12], segment[:, :12])[1]
  np.testing.assert_allclose(moe(x, modality, half)[1], alone, rtol=1e-5)
  assert abs(float(moe(x, modality, segment)[1] - alone)) > 1e-3


def test_too_few_experts_to_choose_from_is_refused():
  with pytest.raises(ValueError, match=r"kept for modalities.*left 2.*experts_per_token is 3"):
    dataclasses.replace(CFG, experts_per_token=3, modality_experts=(2, 2, 1))
