"""Drawing under temperature, top-k and top-p against a plain statement in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omnijax.generate import sample
from omnijax.generate.sample import Sampling, Setting

V = 40
DRAWS = 4000


def kept(logits_V, allowed_V, setting: Setting) -> np.ndarray:
  """Probabilities [V] from which a token is drawn, by sorting."""
  scores_V = np.where(allowed_V, logits_V / (setting.temperature or 1.0), -np.inf)
  order = np.argsort(-scores_V, kind="stable")[: allowed_V.sum()]
  if setting.temperature == 0:
    order = order[:1]
  if setting.top_k:
    order = order[: setting.top_k]
  p = np.exp(scores_V[order] - scores_V[order[0]])
  p /= p.sum()
  before = np.cumsum(p) - p
  order, p = order[before < setting.top_p], p[before < setting.top_p]
  out_V = np.zeros(V)
  out_V[order] = p / p.sum()
  return out_V


def draws(logits_V, allowed_V, setting: Setting, seed: int = 0) -> np.ndarray:
  rows = lambda x: jnp.broadcast_to(jnp.asarray(x)[None], (DRAWS, len(x)))
  setting_B3 = rows(np.float32([setting.temperature, setting.top_k, setting.top_p]))
  keys = jax.random.split(jax.random.key(seed), DRAWS)
  return np.asarray(DRAW(keys, rows(np.float32(logits_V)), rows(allowed_V), setting_B3))


DRAW = jax.jit(sample.draw)
SETTINGS = [Setting(), Setting(temperature=0.0), Setting(top_k=1), Setting(top_k=5),
            Setting(top_k=100), Setting(top_p=0.5), Setting(top_p=1e-6),
            Setting(temperature=2.0, top_k=9, top_p=0.7), Setting(temperature=0.3, top_p=0.9)]


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_draws_are_those_of_the_sorted_statement(setting):
  r = np.random.default_rng(1)
  logits_V, allowed_V = r.normal(0, 2, V) - 3, r.random(V) < 0.6
  want_V = kept(logits_V, allowed_V, setting)
  got_V = np.bincount(draws(logits_V, allowed_V, setting), minlength=V) / DRAWS
  assert not got_V[want_V == 0].any()
  # Five deviations of a count; the statement and a uniform draw are further apart than that.
  assert np.abs(got_V - want_V).max() < 5 * 0.5 / DRAWS**0.5
  if (want_V > 0).sum() > 1:
    uniform_V = allowed_V / allowed_V.sum()
    assert np.abs(uniform_V - want_V).max() > 5 * 0.5 / DRAWS**0.5


def test_scores_that_tie_with_the_last_one_kept_stay():
  got = draws(np.repeat([3.0, 2.0], V // 2), np.ones(V, bool), Setting(top_k=3))
  assert set(got) == set(range(V // 2))


def test_rows_have_settings_and_keys_of_their_own():
  r = np.random.default_rng(2)
  logits_BV = jnp.asarray(r.normal(0, 1, (4, V)), jnp.float32)
  keys = jax.random.split(jax.random.key(3), 4)
  table = jnp.asarray([[0, 0, 1], [1, 0, 1], [1, 2, 1], [1, 0, 0.2]], jnp.float32)
  whole = DRAW(keys, logits_BV, jnp.ones((4, V), bool), table)
  for i in range(4):
    one = DRAW(keys[i : i + 1], logits_BV[i : i + 1], jnp.ones((1, V), bool), table[i : i + 1])
    assert one[0] == whole[i]


def test_draws_are_a_function_of_the_key():
  logits_V, allowed_V = np.zeros(V), np.ones(V, bool)
  one, same, other = (draws(logits_V, allowed_V, Setting(), seed) for seed in (0, 0, 1))
  assert (one == same).all() and (one != other).any()


@pytest.mark.parametrize("wrong", [{"temperature": -1.0}, {"top_k": -2}, {"top_p": 0.0},
                                   {"top_p": 1.5}, {"temperature": float("nan")}])
def test_bad_settings_name_what_they_got(wrong):
  ((name, value),) = wrong.items()
  with pytest.raises(ValueError, match=f"{name} is {value}"):
    Setting(**wrong)


def test_the_table_has_a_row_for_each_kind():
  table = Sampling(first_codebook=Setting(temperature=0.25, top_k=3)).table()
  assert table[sample.FIRST] == [0.25, 3.0, 1.0]
  assert len({tuple(row) for row in sample.GREEDY.table()}) == 1
