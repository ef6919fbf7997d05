"""The twin's side: its compiled step on a batch that stays on its device."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from omnijax import config as config_lib
from omnijax import vocab as vocab_lib
from omnijax.bench import cores, host_memory, twin_optim
from omnijax.bench import twin as twin_lib

_CANDIDATES = {"plain": twin_lib.plain_attention, "sdpa": twin_lib.fused_attention}
_SCORES = 2**30  # most bytes of plain attention's scores


class Side:
  """The twin of a run, compiled and run twice: the second step's memory is the first one's.

  Args:
    run, vocab, batch: as our side's.
    weights: what our side wrote.
  """

  def __init__(self, run: config_lib.Run, vocab: vocab_lib.Vocab, batch: Mapping[str, np.ndarray],
               weights: Path):
    torch.set_num_threads(cores())
    self._cuda = torch.cuda.is_available()
    if self._cuda:
      torch.set_float32_matmul_precision("high")  # as XLA does
    self.params = parameters(weights, "cuda" if self._cuda else "cpu")
    self._batch = tensors(batch, "cuda" if self._cuda else "cpu")
    self._optimizer = twin_optim.Optimizer(run.optim, run.train.steps, self.params)
    begun = time.perf_counter()
    self._attention, attend, self._mask = self._choose(run, vocab)
    twin = twin_lib.Twin(run.model, vocab, run.loss, attend)
    self._loss: Any = torch.compile(twin.loss)
    self._losses = [self._once(), self._once()]
    self._wait()
    self._compile_s = time.perf_counter() - begun
    self._graphs = self._compiled()

  def _choose(self, run: config_lib.Run, vocab: vocab_lib.Vocab
              ) -> tuple[str, twin_lib.Attend, Callable[[Tensor], Any]]:
    """The name, the function and the mask of the attention that is fastest here."""
    if self._cuda:
      return "flex", twin_lib.flexible_attention, twin_lib.block_mask
    m, (B, S) = run.model, self._batch["segment"].shape
    draw = lambda heads: torch.randn(B, S, heads, m.head_dim, dtype=getattr(torch, m.dtype),
                                     requires_grad=True)
    q_BSNH, k_BSKH, v_BSKH = draw(m.heads), draw(m.kv_heads), draw(m.kv_heads)
    mask = twin_lib.masked(self._batch["segment"])
    seconds = {}
    for name, attend in _CANDIDATES.items():
      if name == "plain" and 4 * B * S * S * m.heads > _SCORES:
        continue
      compiled = torch.compile(attend)
      for _ in range(8):
        start = time.perf_counter()
        compiled(q_BSNH, k_BSKH, v_BSKH, mask).float().sum().backward()
        seconds[name] = min(seconds.get(name, float("inf")), time.perf_counter() - start)
    best = min(seconds, key=lambda name: seconds[name])
    return best, _CANDIDATES[best], twin_lib.masked

  def _once(self) -> Tensor:
    for p in self.params.values():
      p.grad = None
    total, _ = self._loss(self.params, self._batch, self._mask(self._batch["segment"]))
    total.backward()
    self._optimizer.step()
    return total.detach()

  def _wait(self) -> None:
    if self._cuda:
      torch.cuda.synchronize()

  def steps(self, count: int) -> float:
    """Seconds of so many steps, waited for once."""
    begun = time.perf_counter()
    for _ in range(count):
      loss = self._once()
    self._wait()
    seconds = time.perf_counter() - begun
    self._losses.append(loss)
    assert self._compiled() == self._graphs, "the twin was compiled again"
    return seconds

  def _compiled(self) -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]

  def about(self) -> dict[str, Any]:
    """What compiling took, and losses of the first two steps and after each block."""
    memory = torch.cuda.max_memory_allocated() if self._cuda else host_memory()
    return {"torch": torch.__version__, "attention": self._attention,
            "compile_s": self._compile_s, "losses": [float(x) for x in self._losses],
            "peak_memory_gib": memory / 2**30}


def parameters(weights: Path, device: str) -> dict[str, Tensor]:
  """Parameters by our names, those that are learned wanting gradients."""
  with np.load(weights) as arrays:
    params = {k: torch.from_numpy(arrays[k]).to(device) for k in arrays.files}
  return {k: v.requires_grad_(twin_optim.role(k) != "fixed") for k, v in params.items()}


def tensors(batch: Mapping[str, np.ndarray], device: str) -> dict[str, Tensor]:
  """A packed batch, with integers as PyTorch's lookups want them."""
  wide = {k: v.astype(np.int64) if v.dtype.kind == "i" else v for k, v in batch.items()}
  return {k: torch.from_numpy(v).to(device) for k, v in wide.items()}
