"""The loss: a sum over weighted targets of every modality, divided once by the global weight.

B batch  S positions  V vocabulary  P frames with targets  Q codebooks  C codes
L = B * P
"""

import jax
import jax.numpy as jnp
import numpy as np

from omnijax import config as config_lib
from omnijax import vocab as vocab_lib
from omnijax.kernels.cross_entropy import cross_entropy
from omnijax.model.transformer import Omni

Batch = dict[str, jax.Array]
_MAIN = ("text", "monologue_pad", "image")  # parts of the main stream


def targets(batch: Batch) -> dict[str, jax.Array]:
  """What each position must predict: the main token of the next position of its segment.

  Returns:
    main int32 [B, S], and float32 weights [B, S] of each part: text, monologue_pad, image; a
    target belongs to one part. frames float32 [B, P, Q]: the weights of the speak codes.
  """
  after = lambda x: jnp.pad(x[:, 1:], ((0, 0), (0, 1)))
  main_BS, modality_BS = after(batch["main"]), after(batch["modality"])
  segment_BS = after(batch["segment"])
  inside_BS = (segment_BS == batch["segment"]) & (segment_BS > 0)
  weight_BS = jnp.where(inside_BS, after(batch["weight"]), 0.0)
  image_BS = modality_BS == vocab_lib.IMAGE
  pad_BS = (modality_BS == vocab_lib.AUDIO) & (main_BS == vocab_lib.PAD)
  part = lambda keep_BS: jnp.where(keep_BS, weight_BS, 0.0)
  return {"main": main_BS, "text": part(~image_BS & ~pad_BS), "monologue_pad": part(pad_BS),
          "image": part(image_BS), "frames": batch["frame_weight"]}


def denominators(batch: Batch, cfg: config_lib.Loss, sources: int = 0) -> dict[str, jax.Array]:
  """Total target weight of each part of the batch; audio is [Q], one for each codebook.

  With several `sources`, also of each of them, its parts weighted by `cfg`: [sources].
  """
  t = targets(batch)
  out = {"text": jnp.sum(t["text"]), "monologue_pad": jnp.sum(t["monologue_pad"]),
         "image": jnp.sum(t["image"]), "audio": jnp.sum(t["frames"], (0, 1))}
  if sources > 1:
    w = part_weights(cfg, t["frames"].shape[2])
    main_BS = sum((w[k] * t[k] for k in _MAIN), jnp.float32(0))
    out["sources"] = _by_source(batch["source"], main_BS, sources)
    out["sources"] += _by_source(batch["frame_source"], t["frames"] @ w["audio"], sources)
  return out


def _by_source(source_BX: jax.Array, values_BX: jax.Array, sources: int) -> jax.Array:
  """Sums of values over the positions or frames of each source: [sources]."""
  return jnp.stack([jnp.sum(jnp.where(source_BX == i, values_BX, 0.0)) for i in range(sources)])


def part_weights(cfg: config_lib.Loss, codebooks: int) -> dict[str, jax.Array]:
  """The configured weight of each part, in the shapes of `denominators`."""
  audio_Q = jnp.where(jnp.arange(codebooks) == 0, cfg.first_codebook, cfg.acoustic)
  return {"text": jnp.float32(cfg.text), "image": jnp.float32(cfg.image),
          "monologue_pad": jnp.float32(cfg.text * cfg.monologue_pad), "audio": audio_Q}


def mean(sums: dict[str, np.ndarray], dens: dict[str, np.ndarray], cfg: config_lib.Loss) -> float:
  """Weighted nats per weighted target, as `loss` without what it adds for z and for balance."""
  w = jax.device_get(part_weights(cfg, len(dens["audio"])))
  total = lambda values: sum(float(np.sum(w[k] * values[k])) for k in w)
  return total(sums) / max(total(dens), 1.0)


def nll(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Negative log-likelihood, shaped as labels.

  Compares with an iota instead of gathering: a gather over a sharded vocabulary is ambiguous.
  """
  iota = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
  hit = labels[..., None] == iota
  return jax.nn.logsumexp(logits, -1) - jnp.sum(jnp.where(hit, logits, 0.0), -1)


def loss(model: Omni, batch: Batch, dens: dict[str, jax.Array], cfg: config_lib.Loss
         ) -> tuple[jax.Array, dict[str, jax.Array]]:
  """The scalar to minimise, weighted nats per weighted target, and its parts.

  Args:
    model: under the current mesh.
    batch: a micro-batch.
    dens: `denominators` of the whole global batch, so that micro-batches add up exactly.
    cfg: weights of the parts.

  Returns:
    float32 [], and the weighted sums of nats of each part in the shapes of `denominators`.
  """
  t, w = targets(batch), part_weights(cfg, dens["audio"].shape[0])
  scale = 1 / jnp.maximum(sum(jnp.sum(w[k] * dens[k]) for k in w), 1.0)
  hidden_BSD, tokens_BSD, balance = model.hidden(batch)
  # Laid out over devices as the hidden states are.
  at_BS = {k: model.rules.lay(t[k]) for k in ("main", *_MAIN)}
  main = cross_entropy(hidden_BSD, model.head(), at_BS["main"],
                       scale * sum(w[k] * at_BS[k] for k in _MAIN),
                       scale * cfg.z * sum(at_BS[k] for k in _MAIN), chunk=cfg.chunk)
  frame_logits_QLC = model.frame_logits(hidden_BSD, tokens_BSD, batch)
  P, Q = t["frames"].shape[1:]
  spread = lambda x_BPQ: jax.reshard(x_BPQ.reshape(-1, Q).T, model.rules(None, "flat"))
  frame_nll_QL = nll(frame_logits_QLC, spread(batch["frames"][:, :P, :Q]))
  sums = {k: jnp.sum(main.nll_BS * at_BS[k]) for k in _MAIN}
  sums["audio"] = jnp.sum(frame_nll_QL * spread(t["frames"]), 1)
  total = main.total + scale * jnp.sum(w["audio"] * sums["audio"])
  if "sources" in dens:
    n = len(dens["sources"])
    sums["sources"] = _by_source(model.rules.lay(batch["source"]), main.nll_BS * sum(
      w[k] * at_BS[k] for k in _MAIN), n)
    told_QL = frame_nll_QL * spread(t["frames"]) * w["audio"][:, None]
    source_L = jax.reshard(batch["frame_source"].reshape(-1), model.rules("flat"))
    sums["sources"] += _by_source(source_L, jnp.sum(told_QL, 0), n)
  if model.cfg.experts:
    here = denominators(batch, cfg)
    share = scale * sum(jnp.sum(w[k] * here[k]) for k in w)  # of the batch, in this micro-batch
    total += cfg.balance * share * (balance - 1)
  return total, sums
