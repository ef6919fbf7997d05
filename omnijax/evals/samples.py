"""Samples of every modality from a model in training: files in the run, and TensorBoard.

For each modality the first few held-out documents in which the assistant writes that modality:
the prompt is what comes before its turn. Greedy, so that samples of two steps compare.
"""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from omnijax import config as config_lib
from omnijax import vocab as vocab_lib
from omnijax.data import documents, fit
from omnijax.data.prompts import Prompts
from omnijax.data.records import Records
from omnijax.generate import command, decode, parse
from omnijax.generate.sample import GREEDY
from omnijax.generate.turns import Goal, To
from omnijax.model.transformer import Omni

EACH = 2  # samples of each modality
_LOOK = 2000  # documents looked through for them, spread over all
_LONGEST = 512  # positions of a sample, its prompt included


def write(run: config_lib.Run, vocab: vocab_lib.Vocab, tokenizers: Any, model: Omni, step: int,
          run_dir: Path, board: Any) -> Path:
  """Writes run_dir/samples/STEP/{text.txt, image_0.png, audio_0.wav, ...}; returns the folder.

  Args:
    model: the weights to sample from, on the current mesh.
    step: finished steps, in the folder's name.
    board: a TensorBoard writer.
  """
  out = run_dir / "samples" / f"{step:07d}"
  out.mkdir(parents=True, exist_ok=True)
  (out / "text.txt").unlink(missing_ok=True)  # of the same step, before the run was resumed
  asked = [(name, i, prompt) for name, prompts in _prompts(run, tokenizers.text.encode).items()
           for i, prompt in enumerate(prompts)]
  generator = decode.Generator(model, vocab, run.data, tokenizers, max_batch=max(len(asked), 1),
                               max_positions=min(run.data.positions, _LONGEST))
  render = lambda parts: documents.render(parts, documents.PLAIN, False, run.data, vocab)
  # All in one batch: another batch would compile once more.
  streams = generator.engine.write([render(prompt) for *_, prompt in asked],
                                   [Goal(to=name) for name, *_ in asked], sampling=GREEDY, seed=0)
  answers = generator.decode([parse.parts(s, generator.engine.layout) for s in streams])
  for (name, i, prompt), answer in zip(asked, answers, strict=True):
    about = {"prompt": _describe(prompt, tokenizers.text), "step": str(step)}
    _store(out, board, f"{name}_{i}", answer, about, tokenizers.audio.sample_rate, step)
  return out


def _prompts(run: config_lib.Run, encode: Callable[[str], list[int]]
             ) -> dict[To, list[list[documents.Part]]]:
  """By modality, prompts that end where the assistant's turn begins."""
  found: dict[To, list[list[documents.Part]]] = {"text": [], "image": [], "audio": []}
  kinds: list[To] = list(found)  # in the order of the modality tags
  turn = documents.Part(vocab_lib.TEXT, documents.ASSISTANT, np.zeros(0, np.int32))
  for parts in _documents(run, Prompts(run.data.prompts, encode)):
    first = next((i for i, p in enumerate(parts) if p.role == documents.ASSISTANT), None)
    if first:
      mine = found[kinds[parts[first].kind]]
      if len(mine) < EACH:
        mine.append([*parts[:first], turn])
  return found


def _documents(run: config_lib.Run, asked: Prompts) -> Iterator[list[documents.Part]]:
  """Held-out documents where there are some, otherwise those of training, for each of their tasks.

  Those that fit no row, or are longer than samples may be, are left out.
  """
  S = min(run.data.positions, _LONGEST)
  room = dataclasses.replace(run.data, positions=S, frames=min(run.data.frames, S), depth_frames=0)
  for name in run.data.heldout or run.data.sources:
    records = Records(name)
    for i in np.linspace(0, len(records) - 1, min(len(records), _LOOK)).astype(int).tolist():
      tasks = np.flatnonzero(fit.usable(records.lengths[i : i + 1], room, asked)[0])
      tasks = tasks[tasks != documents.FOLLOW]  # nobody answers there
      # Plain only where nothing else is possible.
      for task in tasks[len(tasks) > 1 :].tolist():
        yield documents.arrange(records.read(i), task, False, asked.of(task, 0))


def _describe(parts: list[documents.Part], text: Any) -> str:
  said = [text.decode(p.codes.tolist()) if p.kind == vocab_lib.TEXT
          else f"({vocab_lib.MODALITIES[p.kind]})" for p in parts]
  return " ".join(s for s in said if s)


def _store(out: Path, board: Any, name: str, answer: decode.Output, about: dict[str, str],
           sample_rate: int, step: int) -> None:
  told = answer.monologue or answer.text
  if told is not None:
    with (out / "text.txt").open("a", encoding="utf-8") as file:
      file.write(f"{name}: {about['prompt']} -> {told}\n")
    board.add_text(name, f"{about['prompt']} -> {told}", step)
  if answer.image is not None:
    command.write_png(out / f"{name}.png", answer.image, about)
    board.add_image(name, answer.image, step, dataformats="HWC")
  if answer.audio is not None:
    command.write_wav(out / f"{name}.wav", answer.audio, sample_rate, about)
    board.add_audio(name, answer.audio[:, None], step, sample_rate)
