"""The command: what it prints, how it ends, and what it hands to the code behind it."""

import dataclasses
import importlib.util
import inspect
import json
import re
import resource
import shlex
import subprocess
import sys
import types
from pathlib import Path

import pytest
import tiny

import launch.__main__ as launch
import omnijax.train
from omnijax import cli, config, experiment
from omnijax.sweep import command as sweep

EXPERIMENT = f'''
from omnijax import config
def run():
  return config.from_json({config.to_json(tiny.run())!r})
'''


@pytest.fixture
def path(tmp_path):
  file = tmp_path / "one.py"
  file.write_text(EXPERIMENT)
  return file


@pytest.fixture
def trained(monkeypatch):
  """What `omnijax train` would train, without training it or importing what would."""
  calls = []
  loop = types.SimpleNamespace(train=lambda run, run_dir, **_: not calls.append((run, run_dir)))
  monkeypatch.setattr(omnijax.train, "loop", loop, raising=False)
  monkeypatch.setitem(sys.modules, "omnijax.train.loop", loop)
  monkeypatch.setattr("omnijax.job.processes.join", lambda: None)
  return calls


def error_of(capfd, *argv) -> str:
  """The one line that a command with bad input ends with."""
  try:
    code = cli.main([str(a) for a in argv])
  except SystemExit as stop:  # argparse
    code = stop.code
  out, err = capfd.readouterr()
  assert code == 2 and out == ""
  assert err.startswith("omnijax: error: ") and err.endswith("\n") and err.count("\n") == 1, err
  return err


def test_help_is_quick():
  seconds = []
  for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    out = subprocess.run([sys.executable, "-m", "omnijax.cli", "--help"], check=True,
                         capture_output=True, text=True).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
  # Of computing, as other work on the machine is not its fault; without JAX it is a tenth of it.
  assert min(seconds) < 0.7, seconds
  for command in ("quickstart", "prepare", "tokenizer", "train", "eval", "generate"):
    assert command in out


@pytest.mark.parametrize("command", [
  ("quickstart",), ("prepare",), ("train",), ("eval",), ("generate",), ("bench", "step"),
  ("bench", "voice"), ("sweep",), ("serve",), ("data", "show"),
  ("tokenizer", "eval"), ("tokenizer", "train"), ("tokenizer", "train", "text"),
])
def test_every_command_teaches_by_example(command, capfd):
  try:
    assert cli.main([*command, "--help"]) == 0
  except SystemExit as stop:
    assert stop.code == 0
  assert f"\n  omnijax {' '.join(command[:2])}" in capfd.readouterr().out


def test_train_takes_fields_by_name(path, trained, tmp_path):
  given = ["--train.steps", "3", "--optim.peak-lr", "3e-4", "--mesh.data=2", "--mesh.fsdp", "-1",
           "--data.sources", "b", "c", "--model.remat", "full"]
  assert cli.main(["train", str(path), "--run-dir", str(tmp_path / "r"), *given]) == 0
  want = tiny.run(train={"steps": 3}, optim={"peak_lr": 3e-4}, mesh={"data": 2, "fsdp": -1},
                  data={"sources": ("b", "c")}, model={"remat": "full"})
  assert trained == [(want, tmp_path / "r")]
  assert want != tiny.run()


def test_train_without_fields_is_the_experiment(path, trained, tmp_path):
  assert cli.main(["train", str(path), "--run-dir", str(tmp_path)]) == 0
  assert trained == [(tiny.run(), tmp_path)]


def test_train_help_lists_every_field(path, capfd):
  with pytest.raises(SystemExit, match="0"):
    cli.main(["train", str(path), "--help"])
  out = capfd.readouterr().out
  missing = [flag for flag in experiment.flags(tiny.run()) if flag not in out]
  assert missing == [] and "(default: 64)" in out


@pytest.mark.parametrize("given, message", [
  (["--optim.peak-lrr", "1"], "unknown field --optim.peak-lrr; did you mean --optim.peak-lr?"),
  (["--steps=3"], "unknown field --steps; did you mean --train.steps?"),
  (["--train.steps", "ten"], "Error parsing --train.steps: invalid literal"),
  (["--train.steps", "0"], "Train.steps is 0; it must be greater than 0"),
  (["--optim.kind", "sgd"], "invalid choice 'sgd' for argument '--optim.kind'"),
  (["--model.rope-split", "1", "2"], "'--model.rope-split'. Expected 3 values"),
  (["--optim.accumulate", "3"], "Data.rows 8 is not a multiple of Optim.accumulate 3"),
  (["stray"], "Unrecognized options: stray"),
])
def test_bad_fields(given, message, path, trained, tmp_path, capfd):
  assert message in error_of(capfd, "train", path, "--run-dir", tmp_path / "r", *given)
  assert trained == [] and not (tmp_path / "r").exists()


@pytest.mark.parametrize("text, message", [
  (None, "there is no experiment file"),
  ("x = 1", "has no function `run`"),
  ("def run(): return 3", "returned int; wanted omnijax.config.Run"),
])
def test_bad_experiments(text, message, tmp_path, capfd):
  file = tmp_path / "bad.py"
  if text is not None:
    file.write_text(text)
  error = error_of(capfd, "train", file, "--run-dir", tmp_path / "r")
  assert message in error and str(file) in error


def test_a_resolved_run_is_an_experiment_too(trained, tmp_path):
  file = tmp_path / "run.json"
  file.write_text(config.to_json(tiny.run(train={"seed": 5})))
  assert cli.main(["train", str(file), "--run-dir", str(tmp_path / "r"), "--train.steps", "3"]) == 0
  assert trained == [(tiny.run(train={"seed": 5, "steps": 3}), tmp_path / "r")]


@pytest.mark.parametrize("text, message", [
  ("{", "does not describe a run: Expecting property name"),
  ("[]", "does not describe a run: it is a list and no object; wanted what training writes"),
  ('{"name": "x", "speed": 3}', "unknown field(s) ['speed']"),
  ('{"name": "x"}', "missing 3 required keyword-only arguments"),
  ('{"name": "x", "train": {"steps": 0}}', "Train.steps is 0")])
def test_bad_resolved_runs(text, message, tmp_path, capfd):
  (tmp_path / "run.json").write_text(text)
  error = error_of(capfd, "train", tmp_path / "run.json", "--run-dir", tmp_path / "r")
  assert message in error and "run.json" in error


def test_an_experiment_may_import_the_ones_beside_it(path, tmp_path):
  (tmp_path / "two.py").write_text(
    "import dataclasses, one\ndef run(): return dataclasses.replace(one.run(), name='two')\n")
  assert experiment.load(tmp_path / "two.py") == tiny.run(name="two")


@pytest.mark.parametrize("argv, message", [
  ((), "the following arguments are required: COMMAND"),
  (("trian",), "invalid choice: 'trian'"),
  (("train",), "EXPERIMENT is missing"),
  (("prepare", "m", "--out", "o", "--bogus"), "unknown argument --bogus"),
  (("prepare", "m", "--out", "o", "--tokenizers.text", "nowhere"),
   "omnijax tokenizer train text --data FILE --out nowhere"),
  (("tokenizer", "train", "video"), "invalid choice: 'video'"),
  (("tokenizer", "train", "text", "--out", "o"), "--data is missing"),
  (("tokenizer", "eval", "image", "nowhere", "--data", "m"), "no image tokenizer in nowhere"),
  (("generate", "run", "--text", "a"), "the following arguments are required: --to"),
  (("generate", "run", "--text", "a", "--to", "video"), "invalid choice: 'video'"),
])
def test_bad_commands(argv, message, capfd, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert message in error_of(capfd, *argv)
  assert list(tmp_path.iterdir()) == []


def test_train_needs_a_directory(path, capfd):
  assert "--run-dir is missing" in error_of(capfd, "train", path)


def ends_with(error, monkeypatch, *argv) -> int:
  def fail(args, fields):
    raise error

  monkeypatch.setattr(cli, "_quickstart", fail)
  return cli.main(["quickstart", *argv])


def test_exit_codes(monkeypatch, capfd):
  assert ends_with(ValueError("size is 3;\n  wanted 4"), monkeypatch) == 2
  # Not raised by omnijax itself, so it says by what: such a message may not be meant for people.
  assert capfd.readouterr().err == ("omnijax: error: size is 3; wanted 4 (from test_cli.py; "
                                    "--debug shows where)\n")
  assert ends_with(PermissionError(13, "Permission denied", "/x"), monkeypatch) == 2
  assert "Permission denied: '/x'" in capfd.readouterr().err
  assert ends_with(KeyboardInterrupt(), monkeypatch) == 130
  assert capfd.readouterr().err == "omnijax: interrupted\n"
  with pytest.raises(ZeroDivisionError):  # a bug: Python prints it and exits with 1
    ends_with(ZeroDivisionError(), monkeypatch)


@pytest.mark.parametrize("how", ["--debug", "OMNIJAX_TRACEBACK"])
def test_traceback_on_demand(how, monkeypatch, capfd):
  if how != "--debug":
    monkeypatch.setenv(how, "1")
  assert ends_with(ValueError("x"), monkeypatch, *[a for a in (how,) if a == "--debug"]) == 2
  err = capfd.readouterr().err
  assert "Traceback" in err and err.endswith("\nomnijax: error: x (from test_cli.py; --debug "
                                             "shows where)\n")


def test_a_missing_extra_is_named(monkeypatch, capfd):
  error = ModuleNotFoundError("No module named 'pystoi'", name="pystoi")
  assert ends_with(error, monkeypatch) == 2
  assert 'pip install "omnijax[eval]"' in capfd.readouterr().err
  with pytest.raises(ModuleNotFoundError):
    ends_with(ModuleNotFoundError("No module named 'x'", name="x"), monkeypatch)


def test_generate_takes_inputs_in_order(monkeypatch, tmp_path):
  from omnijax.generate import command, sample

  calls = []
  monkeypatch.setattr(command, "run", lambda *a, **k: calls.append((a, k)))
  argv = ["generate", str(tmp_path), "--text", "a", "--image", "b.png", "--text", "c", "--to",
          "audio", "--out", "d.wav", "--seed", "5", "--image-size", "32", "64",
          "--text.temperature", "0", "--acoustic.top-k", "9"]
  assert cli.main(argv) == 0
  (args, kwargs), = calls
  assert args == (tmp_path, [("text", "a"), ("image", "b.png"), ("text", "c")])
  base = sample.Sampling()
  want = dataclasses.replace(base, text=dataclasses.replace(base.text, temperature=0.0),
                             acoustic=dataclasses.replace(base.acoustic, top_k=9))
  assert kwargs == {"to": "audio", "out": Path("d.wav"), "seed": 5, "image_size": (32, 64),
                    "max_new": 256, "guidance": 1.0, "sampling": want}


def test_commands_call_what_exists():
  # The calls themselves are faked here: hold the names and parameters that they rely on.
  from omnijax.data import prepare
  from omnijax.evals import codec, images
  from omnijax.generate import command
  from omnijax.tokenizers import train_audio, train_image

  calls = ((prepare.prepare, 2, ("tokenizers", "strict", "processes")),
           (train_audio.train, 3, ()), (train_image.train, 3, ()), (images.evaluate, 2, ()),
           (codec.evaluate, 3, ()), (codec.whisper, 1, ()),
           (command.run, 2, ("to", "out", "seed", "image_size", "sampling", "max_new",
                             "guidance")))
  for function, count, names in calls:
    inspect.signature(function).bind(*range(count), **dict.fromkeys(names))
  assert cli.main(["generate", "none", "--to", "text", "--text.temprature", "0"]) == 2


def test_tokenizer_eval_of_text(tmp_path, capfd):
  words = "one two three four five six seven eight nine ten red bus blue sky".split()
  (tmp_path / "corpus.txt").write_text("\n".join(" ".join(words[i:]) for i in range(len(words))))
  made = tmp_path / "tok"
  assert cli.main(["tokenizer", "train", "text", "--data", str(tmp_path / "corpus.txt"), "--out",
                   str(made), "--size", "280"]) == 0
  manifest = tmp_path / "heldout.jsonl"
  manifest.write_text(json.dumps({"parts": [{"text": "seven red"}, {"image": "x.png"}]}) + "\n"
                      + json.dumps({"audio": "x.wav", "transcript": "blue bus \u00e9"}) + "\n")
  capfd.readouterr()
  assert cli.main(["tokenizer", "eval", "text", str(made), "--data", str(manifest),
                   "--json"]) == 0
  values = json.loads(capfd.readouterr().out)
  assert values["n"] == 2 and values["exact"] == 1.0 and values["bytes_per_piece"] > 1
  assert "no.txt is not a file" in error_of(capfd, "tokenizer", "eval", "text", made, "--data",
                                            "no.txt")
  pictures = tmp_path / "pictures.jsonl"
  pictures.write_text('{"image": "x.png"}\n')
  assert "pictures.jsonl has no text" in error_of(capfd, "tokenizer", "eval", "text", made,
                                                  "--data", pictures)


README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")


def test_the_readme_tells_the_truth(tmp_path):
  examples = re.findall(r"```python\n(.*?)```", README, re.S)
  client, = (e for e in examples if "openai" in e)
  compile(client, "README", "exec")
  examples.remove(client)
  assert len(examples) == 2  # run() and sweep(), of one file
  (tmp_path / "captions.py").write_text("".join(examples))
  run = experiment.load(tmp_path / "captions.py")
  assert len(list(sweep.load(tmp_path / "captions.py"))) == 6
  shell = "".join(re.findall(r"```bash\n(.*?)```", README, re.S))
  lines = re.findall(r"^(?:.*\.venv/bin/)?omnijax (.+)$", shell, re.M)
  assert {line.split()[0] for line in lines} == {"quickstart", "prepare", "train", "eval", "data",
                                                 "generate", "plan", "bench", "sweep", "report",
                                                 "serve"}
  for line in lines:
    args, fields = cli._parser().parse_known_args(shlex.split(line, comments=True))
    assert fields == [] or args.takes_fields
    if line.startswith(("train", "plan", "bench", "sweep")):
      experiment.override(run, fields, line)
  jobs = re.findall(r"^python -m launch (\S+) (.+)$", shell, re.M)
  assert [name for name, _ in jobs] == list(launch.ENGINES)
  for name, words in jobs:
    if name in ("jobset", "xpk", "tpu-vm"):  # they only write
      assert launch.ENGINES[name].main(shlex.split(words.split(" | ")[0])) == 0
  root = Path(__file__).parents[1]
  linked = re.findall(r"\]\(([\w./-]+)\)", README)
  assert len(linked) > 6 and [p for p in linked if not (root / p).exists()] == []
  # .ci/run runs the README's line: one line, that makes its own virtual environment.
  line, = re.findall(r"^python3 -m venv \.venv && .*pytest.*$", README, re.M)
  assert "ruff" in line and "mypy" in line


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's mallopt")
@pytest.mark.skipif(bool(importlib.util.find_spec("libtpu")), reason="not beside an accelerator's")
def test_freed_memory_is_used_again():
  code = """if True:
    import resource, sys, threading
    from omnijax import host
    if sys.argv[1] == "keep":
      host.keep_memory()
    def touch():
      b"x" * (64 << 20)
    def faults():
      before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
      thread = threading.Thread(target=touch)
      thread.start()
      thread.join()
      return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    faults()
    print(faults())
  """
  counts = {how: int(subprocess.run([sys.executable, "-c", code, how], check=True,
                                    capture_output=True, text=True).stdout)
            for how in ("keep", "not")}
  assert counts["keep"] < 1000 < counts["not"], counts
