"""The twin is our model: `pytest -m torch`, with the extra `bench` installed."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny

from omnijax import checkpoint, config, sharding
from omnijax.bench import batch as batch_lib
from omnijax.train import loss as loss_lib
from omnijax.train import state as state_lib
from omnijax.train import step as step_lib

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]

LOSS = config.Loss(text=3.0, image=0.5, first_codebook=1.0, acoustic=0.3, z=1e-3)
BASE = {"mesh": config.Mesh(data=1, fsdp=1), "loss": LOSS, "model": {"layers": 2,
        "depth_layers": 2}, "optim": {"warmup_steps": 1, "clip_norm": 0.5}}
RUNS = {
  "adamw": BASE,
  "muon": BASE | {"optim": {"kind": "muon", "schedule": "wsd", "warmup_steps": 1,
                            "weight_decay": 0.05}},
  "chunks": BASE | {"loss": dataclasses.replace(LOSS, chunk=96), "data": {"depth_frames": 12}},
  "remat": BASE | {"model": {"remat": "full", "kv_heads": 4}},
}


@pytest.fixture(params=RUNS)
def run(request):
  return tiny.run(**RUNS[request.param])


def ours(run, batch, path, steps=2):
  """Weights to begin with (also in a file), the loss, gradients, and weights after some steps."""
  with jax.set_mesh(sharding.make_mesh(run.mesh)):
    state = state_lib.init(run, tiny.VOCAB, vectors=tiny.VECTORS)
    numbers = lambda tree: {k: np.asarray(v) for k, v in checkpoint.named(tree).items()}
    before = numbers(state.model)
    np.savez(path, **before)
    placed = sharding.place(batch)
    (loss, sums), grads = jax.value_and_grad(
      lambda m: loss_lib.loss(m, placed, loss_lib.denominators(placed, run.loss), run.loss),
      has_aux=True)(state.model)
    grads, sums = numbers(grads), {k: np.asarray(v) for k, v in sums.items()}
    step = step_lib.make_train_step(run)
    norms = []
    for _ in range(steps):
      state, metrics = step(state, placed)
      norms.append(float(metrics["grad_norm"]))
    return before, float(loss), sums, grads, norms, numbers(state.model)


def packed(run):
  made = tiny.batch(0)
  if run.data.depth_frames:
    made = batch_lib.make(run.data, tiny.VOCAB, mix=(50, 20, 30), document=16)
  return made


def test_loss_gradients_and_steps_agree(run, tmp_path):
  from omnijax.bench import theirs, twin, twin_optim

  batch = packed(run)
  before, loss, sums, grads, norms, after = ours(run, batch, tmp_path / "w.npz")
  params, b = theirs.parameters(tmp_path / "w.npz", "cpu"), theirs.tensors(batch, "cpu")
  attend = twin.plain_attention if run.optim.kind == "muon" else twin.fused_attention
  model = twin.Twin(run.model, tiny.VOCAB, run.loss, attend)
  optimizer = twin_optim.Optimizer(run.optim, run.train.steps, params)
  optimizer._muon = optimizer._muon_step  # compiling it takes longer than all the rest
  for i in range(2):
    for p in params.values():
      p.grad = None
    total, parts = model.loss(params, b, twin.masked(b["segment"]))
    total.backward()
    if i == 0:
      assert float(total) == pytest.approx(loss, abs=1e-4)
      for k, v in sums.items():
        np.testing.assert_allclose(parts[k].detach().numpy(), v, rtol=1e-5)
      for k, g in grads.items():
        if params[k].requires_grad:
          got = np.zeros_like(g) if params[k].grad is None else params[k].grad.numpy()
          np.testing.assert_allclose(got, g, atol=1e-4 * max(1, np.abs(g).max()), err_msg=k)
          assert k.endswith("image_AD") or np.abs(g).max() > 1e-6, k
    assert float(optimizer.step()) == pytest.approx(norms[i], rel=1e-4)
  moved = 0.0
  for k, v in after.items():
    np.testing.assert_allclose(params[k].detach().numpy(), v, atol=2e-4, err_msg=k)
    moved = max(moved, np.abs(v - before[k]).max())
  assert moved > 5e-3


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
def test_rates_are_ours(schedule):
  from omnijax.bench import twin_optim
  from omnijax.train import optim

  cfg = config.Optim(schedule=schedule, warmup_steps=4)
  want = optim.schedule(cfg, 30, 0.3)
  got = [twin_optim.rate(cfg, 30, 0.3, i) for i in range(35)]
  np.testing.assert_allclose(got, [want(i) for i in range(35)], rtol=1e-5)


def test_in_bfloat16_losses_are_near(tmp_path):
  from omnijax.bench import theirs, twin

  run = tiny.run(**BASE | {"model": {"dtype": "bfloat16"}})
  batch = tiny.batch(0)
  _, loss, _, _, _, _ = ours(run, batch, tmp_path / "w.npz", steps=0)
  params, b = theirs.parameters(tmp_path / "w.npz", "cpu"), theirs.tensors(batch, "cpu")
  total, _ = twin.Twin(run.model, tiny.VOCAB, run.loss, twin.fused_attention).loss(
    params, b, twin.masked(b["segment"]))
  assert float(total) == pytest.approx(loss, rel=2e-3)
  assert float(total) != loss


def test_the_command_end_to_end(tmp_path):
  import json
  import pathlib

  from omnijax.bench import command

  run = tiny.run(**BASE | {"tokenizers": {"text_size": 200, "image_size": 100, "audio_size": 48,
                                          "codebooks": 3}})
  command.run(run, against="torch", repeats=2, steps=2, document=16, mix=(60, 25, 15),
              json=pathlib.Path(tmp_path / "j"), html=None)
  f = json.loads((tmp_path / "j").read_text())
  assert f["torch"]["attention"] in ("plain", "sdpa") and f["ratio"] > 0
  assert f["torch"]["first_loss"] == pytest.approx(f["ours"]["first_loss"], abs=1e-4)
