"""The twin's optimizer: AdamW, or Muon for matrices, in the steps of `train.optim`."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from omnijax import config as config_lib

_MOMENTUM, _STEPS = 0.95, 4
_A, _B, _C = 3.4445, -4.7750, 2.0315


def role(name: str) -> str:
  """matrix, table, gain or fixed."""
  last = name.split(".")[-1]
  if last.startswith("fixed_"):
    return "fixed"
  if "gain" in last:
    return "gain"
  return "matrix" if last.startswith("w_") and "blocks" in name.split(".") else "table"


def rate(cfg: config_lib.Optim, steps: int, peak: float, step: int) -> float:
  """The learning rate of a step: linear warm-up, then cosine or warm-up-stable-decay."""
  warm = min(cfg.warmup_steps, max(steps - 1, 0))
  if step < warm:
    return peak * (1 / (warm + 1) + step / warm * (1 - 1 / (warm + 1)))
  if cfg.schedule == "cosine":
    done = min((step - warm) / max(steps - warm, 1), 1.0)
    return peak * (cfg.final_lr + (1 - cfg.final_lr) * 0.5 * (1 + math.cos(math.pi * done)))
  decay = max(int(steps * cfg.decay_fraction), 1)
  done = min(max(step - max(steps - decay, warm), 0) / decay, 1.0)
  return peak * (1 - done * (1 - cfg.final_lr))


def as_matrices(name: str, x: Tensor) -> Tensor:
  """[batch, inputs, outputs] of a stacked weight; see `train.optim.muon_dims`."""
  last = name.split(".")[-1]
  first = 1 + last.split("_")[-1].startswith("Q")
  inputs = 2 if last.startswith("w_o_") else 1
  shape = x.shape
  return x.reshape(math.prod(shape[:first]), math.prod(shape[first : first + inputs]), -1)


def orthogonalize(x: Tensor) -> Tensor:
  """Newton-Schulz after almost-orthogonal scaling, of matrices with no more rows than columns."""
  for i in range(_STEPS):
    a = x @ x.mT
    if i == 0:
      s = a.abs().sum(-1).clamp(min=1e-8).rsqrt()[..., None]
      x, a = x * s, a * s * s.mT
    x = torch.baddbmm(x, torch.baddbmm(a, a, a, beta=_B, alpha=_C), x, beta=_A)
  return x


class Optimizer:
  """All parameters' updates. State is made for the parameters given."""

  def __init__(self, cfg: config_lib.Optim, steps: int, params: Mapping[str, Tensor]):
    self.cfg, self.steps, self.step_number = cfg, steps, 0
    self.params = {k: v for k, v in params.items() if role(k) != "fixed"}
    by = {r: [v for k, v in params.items() if role(k) == r] for r in ("matrix", "table", "gain")}
    muon = cfg.kind == "muon"
    decayed = by["table"] + ([] if muon else by["matrix"])
    self.adamw = torch.optim.AdamW(
      [{"params": decayed, "weight_decay": cfg.weight_decay},
       {"params": by["gain"], "weight_decay": 0.0}],
      lr=cfg.peak_lr, betas=(cfg.b1, cfg.b2), eps=cfg.eps, fused=True)
    self.momenta = {k: torch.zeros_like(v) for k, v in params.items()
                    if muon and role(k) == "matrix"}
    self._muon = torch.compile(self._muon_step)

  def step(self) -> Tensor:
    """Updates every parameter from its .grad; returns the gradients' norm before clipping."""
    grads = [v.grad for v in self.params.values()]
    norm = torch.nn.utils.get_total_norm(grads)
    torch._foreach_mul_(grads, (self.cfg.clip_norm / norm).clamp(max=1.0))
    i = self.step_number
    for group in self.adamw.param_groups:
      group["lr"] = rate(self.cfg, self.steps, self.cfg.peak_lr, i)
    self.adamw.step()
    if self.momenta:
      # As tensors: numbers would be compiled in.
      lr = torch.tensor(rate(self.cfg, self.steps, self.cfg.muon_lr, i))
      now, after = (torch.tensor(1 - _MOMENTUM ** (i + n)) for n in (1, 2))
      self._muon({k: self.params[k] for k in self.momenta},
                 {k: self.params[k].grad for k in self.momenta}, self.momenta, lr, now, after)
    self.step_number += 1
    return norm

  @torch.no_grad()
  def _muon_step(self, params, grads, momenta, lr, now, after) -> None:
    """Muon, matrices of one shape together."""
    groups: dict[tuple[int, int], list[tuple[str, Tensor]]] = {}
    for k, mu in momenta.items():
      mu.lerp_(grads[k], 1 - _MOMENTUM)
      x = as_matrices(k, mu * (_MOMENTUM / after) + grads[k] * ((1 - _MOMENTUM) / now))
      groups.setdefault(tuple(sorted(x.shape[1:])), []).append((k, x))
    for members in groups.values():
      wide = [x.mT if x.shape[1] > x.shape[2] else x for _, x in members]
      made = orthogonalize(torch.cat(wide)).split([len(x) for x in wide])
      for (k, x), y in zip(members, made, strict=True):
        y = y.mT if x.shape[1] > x.shape[2] else y
        gain = max(1.0, x.shape[2] / x.shape[1]) ** 0.5
        p = params[k]
        p.mul_(1 - lr * self.cfg.weight_decay).sub_((lr * gain) * y.reshape(p.shape))
