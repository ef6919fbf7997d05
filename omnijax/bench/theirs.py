"""The twin's side: its compiled step on a batch that stays on its device."""

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from omnijax import config as config_lib
from omnijax import vocab as vocab_lib
from omnijax.bench import twin as twin_lib
from omnijax.bench import twin_optim


class Side:
  """The twin of a run, from given weights."""

  def __init__(self, run, vocab, batch, weights):
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    arrays = np.load(weights)
    put = lambda x: torch.from_numpy(np.array(x)).to(self.device)
    self.params = {k: put(arrays[k]) for k in arrays.files}
    for k, v in self.params.items():
      v.requires_grad_(twin_optim.role(k) != "fixed")
    self.batch = {k: put(v.astype(np.int64) if v.dtype.kind == "i" else v) for k, v in batch.items()}
    attend = {"plain": twin_lib.plain_attention, "sdpa": twin_lib.fused_attention}[os.environ.get("ATT", "plain")]
    self.twin = twin_lib.Twin(run.model, vocab, run.loss, attend=attend, mask=twin_lib.masked)
    self.optimizer = twin_optim.Optimizer(run.optim, run.train.steps, self.params)
    def loss(p, b):
      return self.twin.loss(p, b, twin_lib.masked(b["segment"]))
    self._loss = torch.compile(loss, mode=os.environ.get("MODE") or None)
    begun = time.perf_counter()
    self._losses = [float(self._once())]
    self._losses = [float(self._once())]
    self._compile_s = time.perf_counter() - begun

  def _once(self):
    for v in self.params.values():
      v.grad = None
    total, sums = self._loss(self.params, self.batch)
    total.backward()
    self.optimizer.step()
    return total.detach()

  def steps(self, count):
    begun = time.perf_counter()
    for _ in range(count):
      loss = self._once()
    s = time.perf_counter() - begun
    self._losses.append(float(loss))
    return s

  def profile(self):
    def t(f, n=10):
      f(); b = time.perf_counter()
      for _ in range(n): f()
      return (time.perf_counter()-b)/n*1e3
    def fwd():
      return self._loss(self.params, self.batch)[0]
    def both():
      for v in self.params.values(): v.grad = None
      fwd().backward()
    both()
    def opt():
      self.optimizer.step()
    return {"fwd": t(fwd), "fwdbwd": t(both), "opt": t(opt)}

  def about(self):
    return {"losses": self._losses, "compile_s": self._compile_s}
