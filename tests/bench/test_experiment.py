"""Every command of experiments/bench.py is one that can be run."""

import shlex

import pytest

from experiments import bench
from omnijax import cli, experiment
from omnijax.bench import batch, command
from omnijax.tokenizers import load

COMMANDS = {name: line for part in bench.PARTS.values() for name, line in part.items()}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_can_be_run(name):
  args, fields = cli._parser().parse_known_args(["bench", "step", *shlex.split(COMMANDS[name])])
  run = experiment.override(experiment.load(bench.HERE / args.experiment), fields, "bench")
  if args.against:
    command.check_twin(run)
  vocab = load.planned_vocab(run.tokenizers)
  made = batch.make(run.data, vocab, mix=args.mix, document=args.document or 32)
  shares = batch.shares(made)
  assert shares["padding"] < 0.1
  for kind, share in zip(("text", "image", "audio"), args.mix, strict=True):
    assert shares[kind] == pytest.approx(share / sum(args.mix), abs=0.1)
  assert name.startswith(("quickstart", "omni_1b")) or made["main"].size == 4096
