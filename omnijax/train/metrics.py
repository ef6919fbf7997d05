"""What a step tells about itself: losses, honest FLOPs, rates; and where it is written."""

import functools
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tensorboardX import SummaryWriter

from omnijax import config as config_lib
from omnijax import vocab as vocab_lib

# Dense bfloat16 peaks in FLOP/s per device, from the vendors' data sheets.
_PEAK = {"TPU v4": 275e12, "TPU v5 lite": 197e12, "TPU v5e": 197e12, "TPU v5": 459e12,
         "TPU v5p": 459e12, "TPU v6 lite": 918e12, "TPU v6e": 918e12,
         "NVIDIA A100": 312e12, "NVIDIA H100": 989e12, "NVIDIA H200": 989e12}


def losses(sums: dict[str, Any], dens: dict[str, Any], prefix: str = "loss/"
           ) -> dict[str, float | None]:
  """Mean nats per target of each modality; None for a modality without targets."""
  text = (sums["text"], dens["text"])
  out = {"text": text, "image": (sums["image"], dens["image"]),
         "audio": (np.sum(sums["audio"]), np.sum(dens["audio"])),
         "first_codebook": (sums["audio"][0], dens["audio"][0]),
         "monologue_pad": (sums["monologue_pad"], dens["monologue_pad"])}
  return {prefix + k: float(n / d) if d > 0 else None for k, (n, d) in out.items()}


def by_source(sums: dict[str, Any], dens: dict[str, Any], names: Sequence[str],
              prefix: str = "loss/") -> dict[str, float | None]:
  """Weighted nats per weighted target of each source, as the loss is; nothing of a single one."""
  if "sources" not in sums:
    return {}
  return {f"{prefix}source/{name}": float(n / d) if d > 0 else None for name, n, d in zip(
    labels(names), sums["sources"], dens["sources"], strict=True)}


def labels(names: Sequence[str]) -> list[str]:
  """Short names of directories of records: their last parts that tell them apart."""
  parts = [Path(name).parts for name in names]
  depth = next(n for n in range(1, 1 + max(map(len, parts))) if n == max(map(len, parts)) or len(
    {p[-n:] for p in parts}) == len(parts))
  return ["/".join(p[-depth:]).lstrip("/") for p in parts]


def physical(values: dict[str, float | None], *, codebooks: int, frame_rate: float,
             bytes_per_piece: float, pixels_per_code: int, prefix: str = "loss/"
             ) -> dict[str, float]:
  """The losses in bits per byte of text, per pixel, and per second of audio."""
  scales = {"text": ("bits_per_byte", 1 / bytes_per_piece),
            "image": ("bits_per_pixel", 1 / pixels_per_code),
            "audio": ("bits_per_second", codebooks * frame_rate)}
  base = prefix.removesuffix("loss/")
  return {base + unit: values[prefix + k] / np.log(2) * scale
          for k, (unit, scale) in scales.items() if values[prefix + k] is not None}


def bytes_per_piece(text: Any, vocab: vocab_lib.Vocab, batch: dict[str, np.ndarray] | None
                    ) -> float:
  """Mean UTF-8 bytes of the text pieces in a batch, or of the whole vocabulary without one."""
  table = _piece_bytes(text)
  if batch is None:
    return float(table.mean())
  ids = batch["main"][vocab_lib.block_of(vocab, batch["main"]) == 1] - vocab.text_start
  return float(table[ids].mean()) if ids.size else float(table.mean())


@functools.lru_cache(maxsize=4)
def _piece_bytes(text: Any) -> np.ndarray:
  return np.array([max(len(text.decode([i]).encode()), 1) for i in range(text.size)])


def model_flops(cfg: config_lib.Model, vocab: vocab_lib.Vocab, batch: dict[str, np.ndarray]
                ) -> dict[str, float]:
  """FLOPs that a step on this batch must do, forward and backward, by component; see `flops_of`.

  Padding counts not at all, attention once per causal pair within a segment, the depth transformer
  once per frame with targets.
  """
  segment_BS = batch["segment"]
  width = int(segment_BS.max()) + 1
  flat = segment_BS.astype(np.int64) + width * np.arange(len(segment_BS))[:, None]
  lengths = np.bincount(flat[segment_BS > 0])
  return flops_of(cfg, vocab, positions=int((segment_BS > 0).sum()),
                  pairs=float((lengths * (lengths + 1) / 2).sum()),
                  frames=int(batch["frame_weight"].any(-1).sum()))


def flops_of(cfg: config_lib.Model, vocab: vocab_lib.Vocab, *, positions: int, pairs: float,
             frames: int) -> dict[str, float]:
  """FLOPs of a step forward and backward, by component.

  Counts a multiply and an add as two, matmuls only. Recomputation is not counted (model FLOPs, as
  in PaLM's MFU).

  Args:
    cfg: the model.
    vocab: its id space.
    positions: of all rows, without padding.
    pairs: of a position and one that it attends to.
    frames: with targets.
  """
  heads = cfg.heads * cfg.head_dim
  active = cfg.experts_per_token if cfg.experts else 1
  layer = cfg.dim * (2 * heads + 2 * cfg.kv_heads * cfg.head_dim + 3 * active * cfg.mlp
                     + cfg.experts)
  Q, E = vocab.codebooks, cfg.depth_dim
  depth_layer = Q * E * (4 * E + 3 * cfg.depth_mlp) + Q * Q * E  # the last: causal pairs
  depth = (Q * cfg.dim * E + cfg.dim * E + cfg.depth_layers * depth_layer + Q * E * vocab.audio)
  return {"trunk": 6.0 * positions * cfg.layers * layer,
          "attention": 12.0 * pairs * cfg.layers * heads,
          "head": 6.0 * positions * cfg.dim * vocab.size,
          "depth": 6.0 * frames * depth}


def shares(values: dict[str, float]) -> dict[str, float]:
  """Each value's part of their sum."""
  return {k: v / sum(values.values()) for k, v in values.items()}


def peak_flops() -> float:
  """Peak FLOP/s of this host's devices: from data sheets, or measured by a matmul on a CPU.

  All CPU "devices" of a process share its cores, so a CPU is counted once.
  """
  kind = jax.local_devices()[0].device_kind
  known = [v for k, v in sorted(_PEAK.items(), key=lambda kv: -len(kv[0])) if kind.startswith(k)]
  if known:
    return known[0] * jax.local_device_count()
  n = 1024
  with jax.default_device(jax.local_devices()[0]), jax.set_mesh(jax.make_mesh(
      (1,), ("one",), devices=jax.local_devices()[:1])):
    a = jnp.ones((n, n), jnp.float32)
    f = jax.jit(lambda a: a @ a)
    best = float("inf")
    f(a).block_until_ready()
    for _ in range(8):
      start = time.perf_counter()
      f(a).block_until_ready()
      best = min(best, time.perf_counter() - start)
  return 2 * n**3 / best


class Writer:
  """Appends a run's figures to metrics.jsonl, eval.jsonl and TensorBoard event files."""

  def __init__(self, run_dir: Path, resume_step: int):
    self._run_dir = run_dir
    self._open(resume_step)

  def go_back(self, step: int) -> None:
    """Forgets this step and all later ones, which will be run again."""
    self.close()
    self._open(step)

  def _open(self, resume_step: int) -> None:
    self._files = {}
    # A line of metrics is about the step that is next when it is written, one of held-out figures
    # about the steps that are done.
    for name, kept in (("metrics", resume_step), ("eval", resume_step + 1)):
      path = self._run_dir / f"{name}.jsonl"
      _forget_from(path, kept)
      self._files[name] = path.open("a")
    self._board = SummaryWriter(str(self._run_dir / "tensorboard"), flush_secs=10,
                                purge_step=resume_step)

  def write(self, step: int, values: dict[str, Any]) -> None:
    """One line per step in metrics.jsonl; the file is readable at any time."""
    self._line("metrics", step, values)

  def write_eval(self, step: int, values: dict[str, Any]) -> None:
    """Held-out figures after so many steps, in eval.jsonl."""
    self._line("eval", step, values)

  def _line(self, name: str, step: int, values: dict[str, Any]) -> None:
    self._files[name].write(json.dumps({"step": step, **values}) + "\n")
    self._files[name].flush()
    for key, value in values.items():
      if value is not None:
        self._board.add_scalar(key, value, step)

  @property
  def board(self) -> SummaryWriter:
    """For texts, images and sounds."""
    return self._board

  def close(self) -> None:
    for file in self._files.values():
      file.close()
    self._board.close()


def _forget_from(path: Path, step: int) -> None:
  """Drops lines of this step and later ones, and a last line cut by a crash."""
  if not path.exists():
    return
  keep = []
  for line in path.read_text().splitlines():
    try:
      if json.loads(line)["step"] < step:
        keep.append(line)
    except json.JSONDecodeError:
      continue
  part = path.with_suffix(".part")
  part.write_text("".join(line + "\n" for line in keep))
  part.replace(path)


def read(run_dir: Path) -> list[dict[str, Any]]:
  """All lines of a run's metrics."""
  return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
