"""Every parameter has one role, and schedules have the shape they are named after."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from flax import nnx

from omnijax import checkpoint, config, sharding
from omnijax.model.transformer import Omni
from omnijax.train import optim


def test_roles_of_all_parameters(mesh):
  model = jax.eval_shape(lambda: Omni(tiny.MODEL, tiny.VOCAB, sharding.RULES, rngs=nnx.Rngs(0)))
  by_role = collections.defaultdict(set)
  for name, role in checkpoint.named(optim.roles(model)).items():
    by_role[role].add(name)
  assert by_role.keys() == {"matrix", "table", "gain", "fixed"}
  assert {n.rsplit(".", 1)[-1] for n in by_role["table"]} == {
    "main_VD", "tag_MD", "code_QCD", "listen_QAD", "image_AD", "head_DV", "w_in_QDE", "w_main_DE",
    "code_QCE", "w_out_QEC"}
  assert {n.rsplit(".", 1)[-1] for n in by_role["fixed"]} == {"fixed_VA", "fixed_QCA"}
  assert all("gain" in n for n in by_role["gain"]) and len(by_role["gain"]) == 10
  assert len(by_role["matrix"]) == 14


def test_muon_sees_matrices_as_inputs_by_outputs(mesh):
  model = jax.eval_shape(lambda: Omni(tiny.MODEL, tiny.VOCAB, sharding.RULES, rngs=nnx.Rngs(0)))
  attn = model.blocks.attn
  dims = optim.muon_dims({"w_q_DNH": attn.w_q_DNH, "w_o_NHD": attn.w_o_NHD,
                          "w_o_QNHE": model.depth.blocks.w_o_QNHE,
                          "w_down_EFD": jax.ShapeDtypeStruct((2, 8, 64, 32), np.float32)})
  assert tuple(dims["w_q_DNH"]) == ((1,), (2, 3))
  assert tuple(dims["w_o_NHD"]) == ((1, 2), (3,))
  assert tuple(dims["w_o_QNHE"]) == ((2, 3), (4,))
  assert tuple(dims["w_down_EFD"]) == ((2,), (3,))


@pytest.mark.parametrize("kind,middle,end", [("cosine", 0.55, 0.1), ("wsd", 1.0, 0.1)])
def test_schedules(kind, middle, end):
  cfg = config.Optim(schedule=kind, warmup_steps=10, decay_fraction=0.2, final_lr=0.1)
  lr = optim.schedule(cfg, 110, 1.0)
  values = np.array([float(lr(i)) for i in range(111)])
  assert (np.diff(values[:11]) > 0).all() and 0 < values[0] < values[10] == 1.0
  np.testing.assert_allclose(values[60], middle, atol=0.01)
  np.testing.assert_allclose(values[110], end, atol=0.01)


def test_spikes_and_what_is_not_finite_change_nothing(mesh):
  tx = optim._guarded(optax.trace(0.9), 10.0)
  params = {"w": jnp.ones(4)}
  update = jax.jit(lambda g, s: tx.update({"w": g}, s, params))
  state = tx.init(params)
  for _ in range(60):
    step, state = update(jnp.full(4, 0.5), state)
    assert float(step["w"][0]) > 0
  for bad in (jnp.full(4, 6.0), jnp.full(4, jnp.nan), jnp.array([0, 0, jnp.inf, 0])):
    before = state
    step, state = update(bad, state)
    assert not np.any(np.asarray(step["w"]))
    np.testing.assert_array_equal(state.inner.trace["w"], before.inner.trace["w"])
    assert int(state.skipped) == int(before.skipped) + 1 and int(state.taken) == 60
    assert float(state.usual) == float(before.usual)
  step, state = update(jnp.full(4, 4.5), state)  # nine times what is usual
  assert float(step["w"][0]) > 0 and int(state.skipped) == 0 and int(state.taken) == 61


def test_before_it_is_known_what_is_usual_only_what_is_not_finite_is_skipped(mesh):
  tx = optim._guarded(optax.identity(), 10.0)
  state = tx.init({"w": jnp.ones(1)})
  for value, skipped in ((1e-3, 0), (1e3, 0), (jnp.nan, 1), (jnp.inf, 2), (1.0, 0)):
    _, state = tx.update({"w": jnp.full(1, value)}, state, {"w": jnp.ones(1)})
    assert int(state.skipped) == skipped
