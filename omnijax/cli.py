"""The `omnijax` command. Nothing here imports JAX before a sub-command has work for it.

Exit codes: 0 done, 2 bad input (one line on stderr), 130 interrupted, 1 anything else; of training
also 42, 75 and 76, see `job/exits.py`.
"""

import argparse
import json
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omnijax import __version__, config, experiment, host, usage
from omnijax.arguments import Parser, command
from omnijax.bench import arguments as bench_arguments
from omnijax.data import arguments as data_arguments
from omnijax.generate import arguments as generate_arguments
from omnijax.job import exits
from omnijax.plan import arguments as plan_arguments
from omnijax.serve import arguments as serve_arguments
from omnijax.sweep import arguments as sweep_arguments

_MODALITIES = ("text", "image", "audio")

# Module -> the extra that brings it.
_EXTRAS = {"pystoi": "eval", "faster_whisper": "eval", "libtpu": "tpu",
           "jax_cuda13_plugin": "cuda", "torch": "bench", "optuna": "optuna", "ray": "ray",
           "py_nanotts": "voice", **dict.fromkeys(
             ("fastapi", "prometheus_client", "python_multipart", "uvicorn"), "serve")}
_FOR_PEOPLE = (ValueError, FileNotFoundError, PermissionError, NotADirectoryError,
               IsADirectoryError, ModuleNotFoundError)


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one command; returns its exit code."""
  try:
    code = _main(list(sys.argv[1:] if argv is None else argv))
  except Exception:
    if not _one_of_several():
      raise
    traceback.print_exc()
    code = exits.OTHER
  if code != exits.DONE and _one_of_several():
    from omnijax.job import processes

    processes.leave(code)  # an ordinary exit would wait for the others
  return code


def _one_of_several() -> bool:
  joined = sys.modules.get("omnijax.job.processes")
  return joined is not None and joined.several()


def _main(arguments: list[str]) -> int:
  debug = "--debug" in arguments or bool(os.environ.get("OMNIJAX_TRACEBACK"))
  try:
    host.die_with_launcher()
    args, fields = _parser().parse_known_args([a for a in arguments if a != "--debug"])
    if fields and not args.takes_fields:
      raise ValueError(f"unknown argument {fields[0]}; see `{args.parser.prog} --help`.")
    host.log_to_stderr()
    host.keep_memory()
    args.function(args, fields)
    return exits.DONE
  except KeyboardInterrupt:
    print("omnijax: interrupted", file=sys.stderr)
    return exits.INTERRUPTED
  except exits.ENDS as error:
    return _told(error, exits.NEVER if isinstance(error, exits.Never) else exits.AGAIN, debug)
  except _FOR_PEOPLE as error:
    if isinstance(error, ModuleNotFoundError) and error.name not in _EXTRAS:
      raise
    return _told(error, exits.BAD_INPUT, debug)


def _told(error: Exception, code: int, debug: bool) -> int:
  if debug:
    traceback.print_exc()
  print(f"omnijax: error: {_one_line(error)}", file=sys.stderr)
  return code


def _one_line(error: Exception) -> str:
  """The message of an error on one line; says so where the error is not one of ours."""
  if isinstance(error, ModuleNotFoundError):
    return (f"{error.name} is not installed; wanted for this command: "
            f'pip install "omnijax[{_EXTRAS[str(error.name)]}]"')
  text = " ".join(str(error).split()) or type(error).__name__
  frame = traceback.extract_tb(error.__traceback__)[-1]
  ours = Path(__file__).parent in Path(frame.filename).parents
  if ours or isinstance(error, OSError):
    return text
  return f"{text} (from {Path(frame.filename).name}; --debug shows where)"


def _parser() -> argparse.ArgumentParser:
  parser = Parser(prog="omnijax", description=usage.PATH, epilog=usage.EPILOG)
  parser.add_argument("--version", action="version", version=f"omnijax {__version__}")
  commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)

  p = command(commands, "quickstart", _quickstart, usage.QUICKSTART)
  p.add_argument("--dir", type=Path, default=Path("quickstart_run"),
                 help="directory to write (default: %(default)s)")

  p = command(commands, "prepare", _prepare, usage.PREPARE)
  data_arguments.add(p)

  data_arguments.add_actions(commands, _data_show)
  p = command(commands, "tokenizer", None, "Trains and evaluates tokenizers.\n")
  _tokenizer_commands(p.add_subparsers(metavar="ACTION", required=True, parser_class=Parser))

  p = command(commands, "checkpoint", None, usage.CHECKPOINT)
  actions = p.add_subparsers(metavar="ACTION", required=True, parser_class=Parser)
  for action, text in (("ls", "Lists them."), ("verify", "Checks files and arrays of each."),
                       ("diff", "Tells settings and arrays that differ.")):
    p = command(actions, action, _checkpoint, text + "\n\n" + usage.CHECKPOINT)
    p.set_defaults(action=action)
    p.add_argument("paths", type=Path, metavar="DIR", nargs=2 if action == "diff" else 1,
                   help="a run, its checkpoints, or one of them")

  p = command(commands, "train", _train, usage.TRAIN, fields=True)
  p.add_argument("experiment", metavar="EXPERIMENT", type=Path, nargs="?", help="Python file")
  p.add_argument("--run-dir", type=Path, metavar="DIR", help="directory of the run")
  p.add_argument("--change", action="store_true", help="go on with other data or optimizer")

  p = command(commands, "sweep", _sweep, usage.SWEEP, fields=True)
  sweep_arguments.add(p)

  p = command(commands, "plan", _plan, usage.PLAN, fields=True)
  plan_arguments.add(p)

  bench_arguments.add_actions(commands, step=_bench_step, data=_bench_data, voice=_bench_voice)

  p = command(commands, "goodput", _goodput, usage.GOODPUT)
  p.add_argument("run", metavar="RUN", type=Path, help="directory of a run")
  for name, text in (("json", "all figures"), ("html", "a page with a plot")):
    p.add_argument(f"--{name}", type=Path, metavar="FILE", help=f"writes {text}")

  p = command(commands, "report", _report, usage.REPORT)
  p.add_argument("run", metavar="RUN", type=Path, help="directory of a run")
  p.add_argument("--out", type=Path, metavar="FILE", help="default: RUN/report.html")

  p = command(commands, "eval", _eval, usage.EVAL)
  p.add_argument("run", metavar="RUN", type=Path, help="directory of a run")
  p.add_argument("--data", type=Path, metavar="DIR", help="prepared records (default: the "
                 "run's data.heldout)")
  p.add_argument("--batches", type=int, metavar="N", help="default: the run's eval.batches")
  p.add_argument("--json", action="store_true", help="one JSON object")

  generate_arguments.add(command(commands, "generate", _generate, usage.GENERATE))
  serve_arguments.add(command(commands, "serve", _serve, usage.SERVE))
  return parser


def _tokenizer_commands(actions: Any) -> None:
  p = command(actions, "train", None, usage.TOKENIZER_TRAIN)
  kinds = p.add_subparsers(metavar="{text,image,audio}", required=True, parser_class=Parser)
  for kind in _MODALITIES:
    k = command(kinds, kind, _tokenizer_train, usage.TOKENIZER_TRAIN, fields=kind != "text")
    k.set_defaults(kind=kind)
    k.add_argument("--data", type=Path, metavar="FILE", help="see above",
                   nargs="+" if kind == "text" else None)
    k.add_argument("--out", type=Path, metavar="DIR", help="directory to write")
    if kind == "text":
      k.add_argument("--size", type=int, default=8000, help="pieces (default: %(default)s)")
      k.add_argument("--type", choices=("unigram", "bpe"), default="unigram",
                     help="of model (default: %(default)s)")
  p = command(actions, "eval", _tokenizer_eval, usage.TOKENIZER_EVAL)
  p.add_argument("kind", choices=_MODALITIES)
  p.add_argument("path", metavar="PATH", help="directory of the tokenizer, or packaged")
  p.add_argument("--data", type=Path, required=True, metavar="MANIFEST", help="JSONL file")
  p.add_argument("--json", action="store_true", help="one JSON object")


def _show(values: dict[str, Any], as_json: bool) -> None:
  if as_json:
    print(json.dumps(values))
    return
  flat = {f"{k}/{j}": w for k, v in values.items() if isinstance(v, dict) for j, w in v.items()}
  flat = {k: v for k, v in values.items() if not isinstance(v, dict)} | flat
  width = max(map(len, flat), default=0)
  for key, value in flat.items():
    print(f"{key:{width}}  {value:.4g}" if isinstance(value, float) else f"{key:{width}}  {value}")


def _quickstart(args: argparse.Namespace, _: list[str]) -> None:
  from omnijax import quickstart

  quickstart.run(args.dir)


def _prepare(args: argparse.Namespace, _: list[str]) -> None:
  from omnijax.data import encode, local, prepare, ray_engine
  from omnijax.evals import source_report
  from omnijax.tokenizers import load

  found = load.load_all(config.Tokenizers(text=args.text, image=args.image, audio=args.audio))
  prepare.prepare(
    args.source, args.out, tokenizers=encode.Tokenizers(*found),
    choices=prepare.Choices(args.image_size, args.heldout, args.dedup), strict=args.strict,
    engine=ray_engine.Ray if args.engine == "ray" else local.Local, processes=args.processes)
  source_report.write(args.out, found, args.source)


def _data_show(args: argparse.Namespace, fields: list[str]) -> None:
  is_run = args.experiment is not None and args.experiment.is_dir() and not args.help
  if is_run and fields:
    raise ValueError(f"{fields[0]} has no effect on {args.experiment}: a run is shown as it was; "
                     "give fields to an experiment.")
  run = None if is_run else _experiment(args, fields, "step")
  _need(args, "step")
  os.environ.setdefault("JAX_PLATFORMS", "cpu")  # it may be looked at beside a run at work
  from omnijax.evals import show

  show.show(args.experiment, run, args.step, args.rows, args.out)


def _tokenizer_train(args: argparse.Namespace, fields: list[str]) -> None:
  prog = args.parser.prog
  if args.kind == "text":
    _need(args, "data", "out")
    from omnijax.tokenizers import text

    made = text.train(args.data, args.out, size=args.size, kind=args.type)
    print(f"{args.out}: {made.size} pieces, fingerprint {made.fingerprint}")
    return
  from omnijax.tokenizers import recipes, train_audio, train_image

  if args.help:
    print(args.parser.format_help())
    experiment.override(recipes.AUDIO if args.kind == "audio" else recipes.IMAGE, ["-h"], prog)
  _need(args, "data", "out")
  if args.kind == "image":
    train_image.train(experiment.override(recipes.IMAGE, fields, prog), args.data, args.out)
  else:
    train_audio.train(experiment.override(recipes.AUDIO, fields, prog), args.data, args.out)


def _tokenizer_eval(args: argparse.Namespace, _: list[str]) -> None:
  from omnijax.evals import command

  _show(command.tokenizer(args.kind, args.path, args.data), args.json)


def _experiment(args: argparse.Namespace, fields: list[str], *need: str) -> config.Run:
  """The run of an experiment with its fields changed; `--help` shows the command's, or those.

  Args:
    need: options that the command can't do without.
  """
  if args.experiment is None and args.help:
    args.parser.print_help()
    raise SystemExit(0)
  _need(args, "experiment")
  run = experiment.load(args.experiment)
  prog = f"{args.parser.prog} {args.experiment}"
  if args.help:
    given = "".join(f" --{name.replace('_', '-')} {name.upper()}" for name in need)
    experiment.override(run, ["-h"], prog + given)
  _need(args, *need)
  return experiment.override(run, fields, prog)


def _train(args: argparse.Namespace, fields: list[str]) -> None:
  from omnijax.job import preemption

  preemption.hold_early()
  run = _experiment(args, fields, "run_dir")
  from omnijax.job import goodput, processes

  stopped = exits.stopped()
  processes.join()
  from omnijax.train import loop

  if not loop.train(run, args.run_dir, change=args.change, begun=goodput.began()):
    sys.exit(stopped)  # an ordinary exit, for every process has saved


def _sweep(args: argparse.Namespace, fields: list[str]) -> None:
  _experiment(args, fields if args.help else [])
  from omnijax.sweep import command

  command.run(args.experiment, fields, command.Options(
    dir=args.dir or Path("sweeps") / args.experiment.stem,
    **{name: getattr(args, name) for name in sweep_arguments.NAMES}),
    f"{args.parser.prog} {args.experiment}")


def _checkpoint(args: argparse.Namespace, _: list[str]) -> None:
  from omnijax.checkpoint import command as does

  getattr(does, args.action)(*args.paths)


def _plan(args: argparse.Namespace, fields: list[str]) -> None:
  run = _experiment(args, fields, "topology")
  os.environ.setdefault("JAX_PLATFORMS", "cpu")  # the TPU is compiled for, not used
  from omnijax.plan import command

  files = {"json": args.json, "html": args.html, "hlo": args.hlo}
  if args.search is None:
    if args.tries is not None:
      raise ValueError("--tries has no effect without --search.")
    command.run(run, args.topology, args.slices, decode=args.decode, document=args.document,
                price=args.price, **files)
    return
  if args.decode:
    raise ValueError("--search ranks steps of training; leave --decode out.")
  name = f"{run.name}_{args.topology}".replace(":", "_").replace(".", "_") + ".py"
  fixed = [f.split("=")[0].removeprefix("--").replace("-", "_") for f in fields
           if f.startswith("--")]
  command.search(args.experiment, run, args.topology, args.slices, fixed=fixed,
                 out=Path(name) if args.search == Path() else args.search,
                 tries=6 if args.tries is None else args.tries, document=args.document,
                 price=args.price, **files)


def _bench_step(args: argparse.Namespace, fields: list[str]) -> None:
  run = _experiment(args, fields)
  from omnijax.bench import command

  command.run(run, against=args.against, repeats=args.repeats, steps=args.steps,
              document=args.document, mix=args.mix, json=args.json, html=args.html)


def _bench_data(args: argparse.Namespace, _: list[str]) -> None:
  from omnijax.bench import data_command

  data_command.run(args)


def _bench_voice(args: argparse.Namespace, _: list[str]) -> None:
  from omnijax.bench import voice_command

  voice_command.run(args)


def _goodput(args: argparse.Namespace, _: list[str]) -> None:
  from omnijax.evals import goodput

  goodput.show(args.run, json=args.json, html=args.html)


def _report(args: argparse.Namespace, _: list[str]) -> None:
  from omnijax.evals import run_report

  out = args.out or args.run / "report.html"
  run_report.write(args.run, out)
  print(f"Open {out}")


def _eval(args: argparse.Namespace, _: list[str]) -> None:
  from omnijax.train import loop

  given = {"data": args.data, "batches": args.batches}
  _show(loop.evaluate(args.run, **{k: v for k, v in given.items() if v is not None}), args.json)


def _generate(args: argparse.Namespace, fields: list[str]) -> None:
  from omnijax.generate import command, sample

  size = tuple(args.image_size) if args.image_size else None
  command.run(args.run, args.inputs, to=args.to, out=args.out, seed=args.seed, image_size=size,
              sampling=experiment.override(sample.Sampling(), fields, args.parser.prog),
              max_new=args.max_new, guidance=args.guidance)


def _serve(args: argparse.Namespace, _: list[str]) -> None:
  from omnijax.serve import command

  command.run(args.run, serve_arguments.settings(args), host=args.host, port=args.port,
              **{name: getattr(args, name) for name in serve_arguments.SERVICE})


def _need(args: argparse.Namespace, *names: str) -> None:
  for name in names:
    if getattr(args, name) is None:
      shown = name.upper() if name == "experiment" else f"--{name.replace('_', '-')}"
      raise ValueError(f"{shown} is missing; see `{args.parser.prog} --help`.")


if __name__ == "__main__":
  sys.exit(main())
