"""The loss: a sum over weighted targets of every modality, divided once by the global weight.

B batch  S positions  V vocabulary  P frames with targets  Q codebooks  C codes
"""

import jax
import jax.numpy as jnp

from omnijax import config as config_lib
from omnijax import vocab as vocab_lib
from omnijax.model.transformer import Omni

Batch = dict[str, jax.Array]


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


def denominators(batch: Batch) -> dict[str, jax.Array]:
  """Total target weight of each part of the batch; audio is [Q], one for each codebook."""
  t = targets(batch)
  return {"text": jnp.sum(t["text"]), "monologue_pad": jnp.sum(t["monologue_pad"]),
          "image": jnp.sum(t["image"]), "audio": jnp.sum(t["frames"], (0, 1))}


def part_weights(cfg: config_lib.Loss, codebooks: int) -> dict[str, jax.Array]:
  """The configured weight of each part, in the shapes of `denominators`."""
  audio_Q = jnp.where(jnp.arange(codebooks) == 0, cfg.first_codebook, cfg.acoustic)
  return {"text": jnp.float32(cfg.text), "image": jnp.float32(cfg.image),
          "monologue_pad": jnp.float32(cfg.text * cfg.monologue_pad), "audio": audio_Q}


def nll(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Negative log-likelihood and log-partition, shaped as labels.

  Compares with an iota instead of gathering: a gather over a sharded vocabulary is ambiguous.
  """
  log_z = jax.nn.logsumexp(logits, -1)
  iota = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
  hit = labels[..., None] == iota
  return log_z - jnp.sum(jnp.where(hit, logits, 0.0), -1), log_z


def numerators(model: Omni, batch: Batch) -> dict[str, jax.Array]:
  """Weighted sums of nats of each part, in the shapes of `denominators`; `z` is log Z squared."""
  main_logits_BSV, frame_logits_QBPC = model(batch)
  t = targets(batch)
  nll_BS, log_z_BS = nll(main_logits_BSV, t["main"])
  Q, _, P, _ = frame_logits_QBPC.shape
  codes_QBP = jnp.moveaxis(batch["frames"][:, :P, :Q], 2, 0)
  frame_nll_QBP, _ = nll(frame_logits_QBPC, codes_QBP)
  every_BS = t["text"] + t["monologue_pad"] + t["image"]
  out = {k: jnp.sum(nll_BS * t[k]) for k in ("text", "monologue_pad", "image")}
  out["audio"] = jnp.sum(frame_nll_QBP * jnp.moveaxis(t["frames"], 2, 0), (1, 2))
  out["z"] = jnp.sum(log_z_BS**2 * every_BS)
  return out


def total(sums: dict[str, jax.Array], dens: dict[str, jax.Array], cfg: config_lib.Loss
          ) -> jax.Array:
  """The scalar to minimise: weighted nats per weighted target of the whole global batch.

  Args:
    sums: `numerators` of this micro-batch.
    dens: `denominators` of the whole batch, so that micro-batches add up exactly.
  """
  w = part_weights(cfg, dens["audio"].shape[0])
  weight = sum(jnp.sum(w[k] * dens[k]) for k in w)
  nats = sum(jnp.sum(w[k] * sums[k]) for k in w)
  return (nats + cfg.z * sums["z"]) / jnp.maximum(weight, 1.0)
