"""A run, described by frozen dataclasses: everything that decides what is computed.

An experiment is a Python file with `run() -> Run`; a variant is `dataclasses.replace`. Values
below this file have no defaults: a field that nobody reads is a bug that a test looks for.
"""

import dataclasses
import json
import typing
from typing import Literal

from omnijax.config_json import build
from omnijax.config_json import fingerprint as fingerprint
from omnijax.config_json import flat as flat

PACKAGED = "packaged"

# What a layer of the trunk makes, by the names that `Model.saved` and `Model.offloaded` take.
ACTIVATIONS = ("input", "query", "key", "value", "attention", "attended", "gate", "up")

# Fields by which the same is computed in another way, or more of it kept.
INCIDENTAL = ("mesh.data", "mesh.fsdp", "mesh.context", "mesh.expert", "mesh.tensor",
              "data.workers", "data.read_threads", "data.prefetch", "train.log_every",
              "train.save_every", "train.keep", "train.keep_every", "train.keep_best",
              "train.replicas_every", "train.sample_every", "train.stuck_after_s")


def _positive(owner: object, *names: str) -> None:
  for name in names:
    value = getattr(owner, name)
    if value <= 0:
      raise ValueError(f"{type(owner).__name__}.{name} is {value}; it must be greater than 0.")


def _one_of_its_choices(owner: object) -> None:
  for name, hint in typing.get_type_hints(type(owner)).items():
    value = getattr(owner, name)
    if typing.get_origin(hint) is Literal and value not in typing.get_args(hint):
      raise ValueError(f"{type(owner).__name__}.{name} is {value!r}; wanted one of "
                       f"{', '.join(map(repr, typing.get_args(hint)))}.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
  """The Transformer over positions (trunk) and the depth transformer over codebooks."""

  layers: int
  dim: int
  heads: int
  kv_heads: int
  head_dim: int
  mlp: int  # of each expert where there are experts
  # 0 is one dense feed-forward layer. Otherwise every position goes to so many of the experts.
  experts: int = 0
  experts_per_token: int = 2
  # Experts kept for text, for images and for audio; the rest are everybody's.
  modality_experts: tuple[int, int, int] = (0, 0, 0)
  depth_layers: int
  depth_dim: int
  depth_heads: int
  depth_mlp: int
  # Shares of the rotary pairs of a head that turn with time, row and column (M-RoPE). A small head
  # has few pairs for each: rows and columns hardly turn unless rope_theta is small, too.
  rope_split: tuple[int, int, int] = (2, 1, 1)
  rope_theta: float = 10_000.0
  norm_eps: float = 1e-6
  # none: keep all activations. minimal: keep outputs of matmuls and attention. full: keep layer
  # inputs. names: keep the activations named below; the depth transformer keeps layer inputs.
  remat: Literal["none", "minimal", "full", "names"] = "none"
  saved: tuple[str, ...] = ()  # of ACTIVATIONS, kept in the accelerator's memory
  offloaded: tuple[str, ...] = ()  # of ACTIVATIONS, kept in the host's memory meanwhile
  # Queries and keys that the attention kernel of a TPU holds at once.
  attention_blocks: tuple[int, int] = (1024, 1024)
  # Documents of a row for which attention on a GPU has room: the fewer, the faster. At least
  # data.documents. 0: data.documents may be any, and rows of more than 64 go a slow way.
  attention_documents: int = 0
  # Positions that each sees, itself included (sliding window); 0 is all before it.
  attention_window: int = 0
  # Layers compiled as one: saves copies of activations (a quarter of the gradient of the
  # quickstart's trunk on a CPU), costs time to compile.
  unroll: int = 1
  # Computation in this type; parameters, norms, softmax and logits stay in float32.
  dtype: Literal["float32", "bfloat16"] = "float32"
  # Numbers that the trunk's dense layers multiply, forward and for the gradient of activations, in
  # training: as dtype says, or rounded to 8 bits, by which TPUs are up to twice as fast. Not in
  # experts, the depth transformer and heads.
  matmuls: Literal["dtype", "int8", "fp8"] = "dtype"

  def __post_init__(self) -> None:
    _positive(self, "layers", "dim", "heads", "kv_heads", "head_dim", "mlp", "depth_layers",
              "depth_dim", "depth_heads", "depth_mlp", "unroll", "rope_theta", "norm_eps")
    if self.heads % self.kv_heads:
      raise ValueError(f"Model.heads is {self.heads}, which is not a multiple of "
                       f"Model.kv_heads {self.kv_heads}; change one of them.")
    self._check_names()
    if self.attention_window < 0:
      raise ValueError(f"Model.attention_window is {self.attention_window}; wanted 0 or more.")
    if self.experts:
      _positive(self, "experts_per_token")
      shared = self.experts - sum(self.modality_experts)
      least = shared + min(self.modality_experts)
      if min(self.modality_experts) < 0 or shared < 0 or least < self.experts_per_token:
        raise ValueError(f"Model.experts is {self.experts}, of which {self.modality_experts} are "
                         f"kept for modalities: one is left {least} to choose from, and "
                         f"Model.experts_per_token is {self.experts_per_token}; raise experts.")
    if self.depth_dim % self.depth_heads:
      raise ValueError(f"Model.depth_dim is {self.depth_dim}, which is not a multiple of "
                       f"Model.depth_heads {self.depth_heads}; change one of them.")
    pairs, parts = self.head_dim // 2, sum(self.rope_split)
    if self.head_dim % 2 or pairs % parts:
      raise ValueError(f"Model.head_dim {self.head_dim} has {self.head_dim / 2} rotary pairs, "
                       f"which Model.rope_split {self.rope_split} can't share out; make "
                       f"head_dim a multiple of {2 * parts} or change rope_split.")

  def _check_names(self) -> None:
    names = [*self.saved, *self.offloaded]
    if bool(names) != (self.remat == "names"):
      raise ValueError(f"Model.remat is {self.remat!r}, saved {self.saved} and offloaded "
                       f"{self.offloaded}; remat 'names' wants some of {ACTIVATIONS} there, "
                       "and any other none.")
    if unknown := sorted(set(names) - set(ACTIVATIONS)):
      raise ValueError(f"Model.saved or offloaded has {unknown}; wanted some of {ACTIVATIONS}.")
    if twice := sorted(n for n in set(names) if names.count(n) > 1):
      raise ValueError(f"Model.saved and offloaded name {twice} twice; keep each in one place.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokenizers:
  """Directories of trained tokenizers; "packaged" is the one that ships with omnijax."""

  text: str = PACKAGED
  image: str = PACKAGED
  audio: str = PACKAGED
  # The model reads and writes this many of the codec's codebooks, coarsest first.
  codebooks: int = 8
  # What the tokenizers must have: pieces of text, codes of images, codes of a codebook of audio.
  # A run that says it can be planned before they are trained; 0 takes them as they are.
  text_size: int = 0
  image_size: int = 0
  audio_size: int = 0

  def __post_init__(self) -> None:
    _positive(self, "codebooks")
    if min(self.text_size, self.image_size, self.audio_size) < 0:
      raise ValueError(f"Tokenizers.text_size, image_size and audio_size are {self.text_size}, "
                       f"{self.image_size} and {self.audio_size}; wanted 0 (any) or more.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tasks:
  """Relative odds with which a document that allows several tasks is rendered to each."""

  plain: float = 1.0  # parts in the order given
  caption: float = 1.0  # image, then text
  draw: float = 1.0  # text, then image
  transcribe: float = 1.0  # audio that is listened to, then its transcript
  speak: float = 1.0  # transcript, then audio that is spoken
  follow: float = 1.0  # audio that is listened to, its timed words written meanwhile

  def __post_init__(self) -> None:
    odds = dataclasses.asdict(self)
    if min(odds.values()) < 0 or not any(odds.values()):
      raise ValueError(f"Tasks are {odds}; odds must be >= 0 and at least one above 0.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
  """Prepared records, how documents are rendered to streams, and the packed batch."""

  # Directories written by `omnijax prepare`.
  sources: tuple[str, ...]
  # One for each source; then, for each of the stages, one for each source again. None are the
  # sources' sizes. 0 is none of it in that stage.
  weights: tuple[float, ...] = ()
  weights_by: Literal["documents", "tokens"] = "documents"
  stages: tuple[int, ...] = ()  # steps at which the next weights begin
  epochs: tuple[float, ...] = ()  # most passes over each source; none, or 0, is any number
  heldout: tuple[str, ...] = ()
  rows: int  # global batch size, in packed rows
  positions: int  # S, the length of a row
  frames: int  # F, the most audio frames a row can hold
  documents: int = 0  # most in a row; 0 is any number
  # Of those that the model speaks, the most in a row whose codes are learned in one step, drawn
  # at random from more (Sesame's CSM); 0 is all. The depth transformer runs on no others.
  depth_frames: int = 0
  window: int = 65_536  # documents planned together
  tasks: Tasks = Tasks()
  # Acoustic codebooks (all but the first) lag the first by this many frames.
  acoustic_delay: int = 1
  # Frames by which spoken audio lags its text (the inner monologue).
  text_delay: int = 0
  # Frames by which words that are written while they are heard lag their beginning.
  follow_delay: int = 6
  # Share of drawings made without any words and speech, for classifier-free guidance.
  caption_dropout: float = 0.1
  # Share of the codes of what is heard hidden in training, lest voices be learned by heart.
  listen_dropout: float = 0.0
  # What tasks are asked with, in any languages: "caption: What is this?", "draw: Dessine : ".
  prompts: tuple[str, ...] = ()
  # Loss weight of what the user says: 1 trains on whole documents, 0 on answers only.
  prompt_weight: float = 1.0
  workers: int = 0  # grain worker processes per host
  read_threads: int = 0  # grain read threads in each process
  prefetch: int = 4  # batches made ahead

  def __post_init__(self) -> None:
    _positive(self, "rows", "positions", "frames", "window")
    self._check_mixture()
    asked = [f.name for f in dataclasses.fields(Tasks) if f.name != "plain"]
    for entry in self.prompts:
      task, colon, words = entry.partition(":")
      if task not in asked or not colon or not words.strip():
        raise ValueError(f"Data.prompts has {entry!r}; wanted \"TASK: WORDS\", TASK one of "
                         f"{', '.join(asked)}.")
    for name in ("caption_dropout", "listen_dropout"):
      if not 0 <= getattr(self, name) < 1:
        raise ValueError(f"Data.{name} is {getattr(self, name)}; wanted 0 <= x < 1.")
    if not 0 <= self.depth_frames <= self.frames:
      raise ValueError(f"Data.depth_frames is {self.depth_frames}; wanted at least 1 and at most "
                       f"Data.frames {self.frames}, or 0 for all frames.")
    if self.frames > self.positions:
      raise ValueError(f"Data.frames is {self.frames}, more than Data.positions "
                       f"{self.positions}: a frame needs a position; lower frames.")
    names = ("documents", "acoustic_delay", "text_delay", "follow_delay", "workers",
             "read_threads")
    if below := {name: getattr(self, name) for name in names if getattr(self, name) < 0}:
      raise ValueError(f"Data has {below}; none of them may be below 0.")

  def _check_mixture(self) -> None:
    n, times = len(self.sources), 1 + len(self.stages)
    if len(self.weights) != n * times and (self.weights or self.stages):
      each = f", {times} times over for its stages" if self.stages else ""
      raise ValueError(f"Data.weights has {len(self.weights)} entries for {n} sources; give one "
                       f"for each{each}" + ("." if self.stages else ", or none."))
    for i in range(0, len(self.weights), max(n, 1)):
      if min(self.weights[i : i + n]) < 0 or not any(self.weights[i : i + n]):
        raise ValueError(f"Data.weights are {self.weights[i : i + n]}; wanted 0 or more, and at "
                         "least one above 0.")
    for k, name in enumerate(self.sources if self.weights else ()):
      if not any(self.weights[k::n]):
        raise ValueError(f"Data.weights of {name} is 0: leave out the source instead.")
    if list(self.stages) != sorted(set(self.stages)) or min(self.stages, default=1) < 1:
      raise ValueError(f"Data.stages are {self.stages}; wanted steps from 1 on, each later than "
                       "the one before.")
    if self.epochs and (len(self.epochs) != n or min(self.epochs) < 0):
      raise ValueError(f"Data.epochs is {self.epochs} for {n} sources; wanted the most passes over "
                       "each, 0 for any number.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss:
  """Weights of the parts of the loss; each part is a sum over weighted targets."""

  text: float = 1.0
  monologue_pad: float = 0.5  # the PAD of a monologue position, relative to text
  image: float = 1.0
  first_codebook: float = 1.0
  acoustic: float = 1.0  # each further codebook
  z: float = 1e-5  # squared log-partition of the main logits (PaLM, Chameleon)
  balance: float = 0.01  # of the choices of experts (Switch Transformer)
  chunk: int = 2048  # positions of a device whose main logits exist together, in float32

  def __post_init__(self) -> None:
    _positive(self, "chunk")
    for name, value in dataclasses.asdict(self).items():
      if value < 0:
        raise ValueError(f"Loss.{name} is {value}; it must be 0 or more.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optim:
  """The optimizer: AdamW, or Muon for matrices with AdamW for everything else."""

  kind: Literal["adamw", "muon"] = "adamw"
  peak_lr: float = 3e-4
  muon_lr: float = 0.02  # learning rate of the matrices under Muon
  schedule: Literal["cosine", "wsd"] = "cosine"
  warmup_steps: int = 100
  decay_fraction: float = 0.2  # the last share of a WSD schedule, falling to final_lr
  final_lr: float = 0.1  # relative to peak_lr
  b1: float = 0.9
  b2: float = 0.95
  eps: float = 1e-8
  weight_decay: float = 0.1
  # Of AdamW's first moment; its second stays in float32.
  moment_dtype: Literal["float32", "bfloat16"] = "float32"
  clip_norm: float = 1.0
  # Gradients that aren't finite change nothing, nor those whose norm is this many times what is
  # usual; 0 is any number of times.
  spike: float = 20.0
  skips: int = 5  # steps in a row that change nothing, until a run goes back and leaves them out
  accumulate: int = 1  # micro-batches per step
  ema: float = 0.0  # decay of an average of the weights used for evaluation; 0 is off

  def __post_init__(self) -> None:
    _positive(self, "peak_lr", "muon_lr", "accumulate", "clip_norm", "eps", "skips")
    if self.spike < 0:
      raise ValueError(f"Optim.spike is {self.spike}; wanted 0 or more.")
    if not 0 <= self.ema < 1:
      raise ValueError(f"Optim.ema is {self.ema}; wanted 0 (off) <= ema < 1.")
    if not 0 < self.decay_fraction <= 1:
      raise ValueError(f"Optim.decay_fraction is {self.decay_fraction}; wanted 0 < x <= 1.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mesh:
  """Devices along each mesh axis; at most one may be -1, meaning all that are left."""

  data: int = 1
  fsdp: int = -1
  context: int = 1
  expert: int = 1
  tensor: int = 1

  def __post_init__(self) -> None:
    shape = dataclasses.asdict(self)
    bad = {k: v for k, v in shape.items() if v < 1 and v != -1}
    if bad or sum(v == -1 for v in shape.values()) > 1:
      raise ValueError(f"Mesh is {shape}; axes must be 1 or more, and at most one -1.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train:
  """Length, seed and rhythm of the training loop."""

  steps: int
  seed: int = 0
  log_every: int = 10  # steps between printed lines; metrics.jsonl has every step
  save_every: int = 500
  keep: int = 2  # newest checkpoints kept
  keep_every: int = 0  # steps between checkpoints that are kept for ever; 0 is none
  keep_best: int = 0  # checkpoints of the lowest held-out loss kept
  # Steps between comparisons of what several devices hold copies of, lest one computes wrongly
  # without a word. Then also before each save. 0 is never.
  replicas_every: int = 0
  stuck_after_s: float = 1800.0  # without progress, until the process ends; 0 is never
  sample_every: int = 0  # steps between written samples; 0 is only at the end

  def __post_init__(self) -> None:
    _positive(self, "steps", "log_every", "save_every", "keep")
    names = ("keep_every", "keep_best", "replicas_every", "sample_every", "stuck_after_s")
    if below := {name: getattr(self, name) for name in names if getattr(self, name) < 0}:
      raise ValueError(f"Train has {below}; none of them may be below 0.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Eval:
  """Loss on held-out records during training."""

  every: int = 0  # steps between evaluations, with one after the last step; 0 is never
  batches: int = 8

  def __post_init__(self) -> None:
    _positive(self, "batches")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
  """One training run, whole."""

  name: str
  model: Model
  tokenizers: Tokenizers = Tokenizers()
  data: Data
  loss: Loss = Loss()
  optim: Optim = Optim()
  mesh: Mesh = Mesh()
  train: Train
  eval: Eval = Eval()

  def __post_init__(self) -> None:
    for field in dataclasses.fields(self):
      _one_of_its_choices(getattr(self, field.name))
    if self.data.rows % self.optim.accumulate:
      raise ValueError(f"Data.rows {self.data.rows} is not a multiple of Optim.accumulate "
                       f"{self.optim.accumulate}; change one of them.")
    if self.train.keep_best and not (self.eval.every
                                     and self.train.save_every % self.eval.every == 0):
      raise ValueError(f"Train.keep_best is {self.train.keep_best}, but not every saved step has a "
                       f"held-out loss: Eval.every is {self.eval.every}, Train.save_every "
                       f"{self.train.save_every}; make every divide save_every.")
    room, most = self.model.attention_documents, self.data.documents
    if room < 0 or room and not 0 < most <= room:
      raise ValueError(f"Model.attention_documents is {room} and Data.documents {most or 'any'}; "
                       "wanted 0, or room for all documents of a row: set Data.documents to "
                       f"{max(room, 1)} or less.")


def to_json(run: Run) -> str:
  """The run as indented JSON, stable under re-reading."""
  return json.dumps(dataclasses.asdict(run), indent=2) + "\n"


def from_json(text: str) -> Run:
  """Reads what `to_json` wrote.

  Raises:
    ValueError: an unknown or missing field, named with its path.
  """
  return build(Run, json.loads(text), "run")
