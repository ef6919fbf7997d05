"""The loss against a statement of it in numpy, target by target."""

import jax
import numpy as np
import tiny
from flax import nnx

from omnijax import config, sharding
from omnijax import vocab as vocab_lib
from omnijax.model.transformer import Omni
from omnijax.train import loss as loss_lib
from omnijax.train import metrics


def log_softmax(x):
  x = x - x.max(-1, keepdims=True)
  return x - np.log(np.exp(x).sum(-1, keepdims=True))


def test_loss_is_the_weighted_sum_over_targets(mesh):
  model = Omni(tiny.MODEL, tiny.VOCAB, sharding.RULES, rngs=nnx.Rngs(0))
  batch = tiny.batch(3, rows=8)
  cfg = config.Loss(text=1.0, monologue_pad=0.5, image=0.7, first_codebook=3.0, acoustic=0.2,
                    z=0.0)
  logits = jax.jit(lambda m, b: m(b))(model, sharding.place(batch))
  main, frames = (np.asarray(x, np.float64) for x in logits)
  nats, weight, seen = 0.0, 0.0, set()
  for b in range(8):
    for t in range(1, tiny.DATA.positions):
      if batch["segment"][b, t] == 0 or batch["segment"][b, t] != batch["segment"][b, t - 1]:
        continue
      modality, token = batch["modality"][b, t], batch["main"][b, t]
      if modality == vocab_lib.IMAGE:
        part = 0.7
      else:
        part = 0.5 if modality == vocab_lib.AUDIO and token == vocab_lib.PAD else 1.0
      seen.add((int(modality), part))
      w = part * batch["weight"][b, t]
      nats -= w * log_softmax(main[b, t - 1])[token]
      weight += w
    for f, at in enumerate(batch["frame_at"][b]):
      for q in range(3):
        w = batch["frame_weight"][b, f, q] * (3.0 if q == 0 else 0.2)
        if w:
          nats -= w * log_softmax(frames[q, b * tiny.DATA.frames + f])[batch["frames"][b, f, q]]
          weight += w
          seen.add(("codebook", q))
        assert at < tiny.DATA.positions or w == 0
  assert len(seen) == 7  # text, image, monologue word and pad, three codebooks
  placed = sharding.place(batch)
  loss, sums = jax.jit(lambda m: loss_lib.loss(m, placed, loss_lib.denominators(placed, cfg), cfg))(
    model)
  np.testing.assert_allclose(loss, nats / weight, rtol=1e-5)
  dens = loss_lib.denominators(placed, config.Loss())
  mean = loss_lib.mean(*jax.device_get((sums, dens)), cfg)
  np.testing.assert_allclose(mean, nats / weight, rtol=1e-5)
  w = loss_lib.part_weights(cfg, 3)
  np.testing.assert_allclose(sum(np.sum(w[k] * sums[k]) for k in w), nats, rtol=1e-5)


def test_each_source_has_the_mean_of_its_own_targets(mesh):
  model = Omni(tiny.MODEL, tiny.VOCAB, sharding.RULES, rngs=nnx.Rngs(0))
  batch, cfg = tiny.batch(3, rows=8), config.Loss(text=2.0, image=0.7, acoustic=0.2, z=0.0)
  batch["source"] = (batch["segment"] % 3).astype(np.int16)
  at_BF = np.minimum(batch["frame_at"], tiny.DATA.positions - 1)
  batch["frame_source"] = np.take_along_axis(batch["source"], at_BF, 1)
  placed = sharding.place(batch)
  score = jax.jit(lambda m, b: (dens := loss_lib.denominators(b, cfg, 3),
                                loss_lib.loss(m, b, dens, cfg)[1]))
  dens, sums = jax.device_get(score(model, placed))
  found = metrics.by_source(sums, dens, ["x/a", "y/a", "z"])
  assert list(found) == ["loss/source/x/a", "loss/source/y/a", "loss/source/z"]
  for i, value in enumerate(found.values()):
    mine = batch["source"] == i
    alone = batch | {"weight": np.where(mine, batch["weight"], 0), "frame_weight": np.where(
      (batch["frame_source"] == i)[..., None], batch["frame_weight"], 0).astype(np.float32)}
    d, s = jax.device_get(score(model, sharding.place(alone)))
    np.testing.assert_allclose(value, loss_lib.mean(s, d, cfg), rtol=1e-5)
  assert len({round(v, 4) for v in found.values()}) == 3
  np.testing.assert_allclose(sums["sources"].sum() / dens["sources"].sum(),
                             loss_lib.mean(sums, dens, cfg), rtol=1e-5)


def test_sources_are_called_by_what_tells_them_apart():
  assert metrics.labels(["data/a", "data/b"]) == ["a", "b"]
  assert metrics.labels(["x/train", "y/train"]) == ["x/train", "y/train"]
  assert metrics.labels(["/one"]) == ["one"] and metrics.labels(["a", "a"]) == ["a", "a"]


def test_frames_without_targets_need_no_depth_transformer(mesh):
  model = Omni(tiny.MODEL, tiny.VOCAB, sharding.RULES, rngs=nnx.Rngs(0))
  batch = tiny.batch(3, rows=8)
  spoken_BF = batch["frame_weight"].any(-1)
  order_BF = np.argsort(~spoken_BF, 1, kind="stable")
  P = int(spoken_BF.sum(1).max())
  assert P < tiny.DATA.frames and (spoken_BF != spoken_BF[:, :1]).any()
  first = {k: np.take_along_axis(batch[k], order_BF.reshape(order_BF.shape + (1,) * extra), 1)
           for k, extra in (("frame_at", 0), ("frames", 1), ("frame_weight", 1))}
  few = batch | first | {"frame_weight": first["frame_weight"][:, :P]}
  whole = lambda m, b: loss_lib.loss(m, b, loss_lib.denominators(b, config.Loss()), config.Loss())
  both = [jax.jit(whole)(model, sharding.place(b)) for b in (batch, few)]
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), *both)


def test_z_loss_is_the_squared_log_partition(mesh):
  model = Omni(tiny.MODEL, tiny.VOCAB, sharding.RULES, rngs=nnx.Rngs(0))
  batch = tiny.batch(4, rows=2)
  placed = sharding.place(batch)
  dens = loss_lib.denominators(placed, config.Loss())
  score = jax.jit(lambda m, z: loss_lib.loss(m, placed, dens, config.Loss(z=z))[0],
                  static_argnums=1)
  plain, with_z = (float(score(model, z)) for z in (0.0, 0.1))
  logits = np.asarray(jax.jit(lambda m: m(placed)[0])(model), np.float64)
  t = loss_lib.targets(placed)
  every = np.asarray(t["text"] + t["monologue_pad"] + t["image"])
  log_z = np.log(np.exp(logits).sum(-1))
  weight = float(dens["text"] + 0.5 * dens["monologue_pad"] + dens["image"] + dens["audio"].sum())
  np.testing.assert_allclose(with_z - plain, 0.1 * (log_z**2 * every).sum() / weight, rtol=1e-4)
