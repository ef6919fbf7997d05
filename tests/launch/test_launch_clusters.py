"""What the engines of clusters write: as it was read by people, as schemas want it, as it runs."""

import copy
import json
import os
import re
import shlex
import signal
import subprocess
import time
from pathlib import Path

import jsonschema
import pytest
import yaml

from launch import __main__ as launch
from launch import jobset, tpu

HERE = Path(__file__).parent
TRAIN = ["--", "/data/my exp.py", "--run-dir", "/data/runs/first", "--optim.peak-lr", "3e-4"]
GKE = ["--image", "gcr.io/p/omnijax:1"]
GOLDENS = {
  "slurm.sh": ["slurm", "--nodes", "2", "--time", "1-00:00:00", "--python", "python"],
  "slurm_gpus.sh": ["slurm", "--nodes", "4", "--gpus", "8", "--cpus", "12", "--python", "python",
                    "--sbatch", "partition=gpu", "--setup", "module load cuda", "--restarts", "3",
                    "--grace", "600", "--name", "big"],
  "jobset.yaml": ["jobset", "--topology", "v5p:4x4x4", *GKE, "--volume", "runs:/data"],
  "jobset_slices.yaml": ["jobset", "--topology", "v6e:16x16", "--slices", "4", *GKE, "--volume",
                         "runs:/data", "--volume", "raw:/raw", "--env", "LIBTPU_INIT_ARGS=--a=b",
                         "--node", "cloud.google.com/gke-spot=true", "--queue", "team",
                         "--grace", "600", "--restarts", "3", "--name", "Big_run"],
  "xpk.sh": ["xpk", "--topology", "v6e:16x16", "--slices", "2", "--cluster", "c", *GKE,
             "--storage", "runs", "--zone", "us-east5-a"],
  "tpu_vm.sh": ["tpu-vm", "--topology", "v5p:4x4x8", "--zone", "us-east5-a"],
  "tpu_vm_slices.sh": ["tpu-vm", "--topology", "v5e:4x4", "--slices", "2", "--zone", "us-west4-a",
                       "--setup", "pip install 'omnijax[tpu]'", "--gcloud", "spot"],
}


def text(capsys, *argv):
  assert launch.ENGINES[argv[0]].main(argv[1:]) == 0
  return capsys.readouterr().out


def error(capsys, *argv):
  with pytest.raises(SystemExit) as stop:
    launch.ENGINES[argv[0]].main(argv[1:])
  out, err = capsys.readouterr()
  assert stop.value.code == 2 and out == "" and err.count("\n") == 1
  return err


@pytest.mark.parametrize("name", GOLDENS)
def test_it_is_what_it_was(name, capsys):
  path = HERE / "goldens" / name
  got = text(capsys, *GOLDENS[name], *TRAIN)
  if os.environ.get("UPDATE_GOLDEN"):
    path.write_text(got)
  assert got == path.read_text()
  if name.endswith(".sh"):
    assert subprocess.run(["bash", "-n"], input=got, text=True).returncode == 0


def test_it_is_written_or_printed(tmp_path, capsys):
  argv = [*GOLDENS["slurm.sh"], "--out", str(tmp_path / "x"), *TRAIN]
  assert text(capsys, *argv) == ""
  assert (tmp_path / "x").read_text() == (HERE / "goldens" / "slurm.sh").read_text()


def test_it_is_submitted(tmp_path, capsys, monkeypatch):
  monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
  (tmp_path / "sbatch").write_text(f"#!/bin/bash\ncat > {tmp_path / 'got'}; echo 17")
  (tmp_path / "sbatch").chmod(0o755)
  assert text(capsys, *GOLDENS["slurm.sh"], "--submit", *TRAIN) == "17\n"
  assert (tmp_path / "got").read_text() == (HERE / "goldens" / "slurm.sh").read_text()


@pytest.mark.parametrize(("argv", "message"), [
  (["slurm", "--", "exp.py"], "no --run-dir DIR in 'exp.py'"),
  (["slurm", "--", "exp.py", "--run-dir"], "no --run-dir DIR"),
  (["jobset", "--topology", "v5p:4x4", *GKE, "--volume", "c:/data", *TRAIN], "wired in 3"),
  (["jobset", "--topology", "h100:8", *GKE, "--volume", "c:/data", *TRAIN], "wanted TPUs: v5e"),
  (["jobset", "--topology", "v5p:4x4x4", *GKE, *TRAIN], "/data/runs/first, which is in no --vol"),
  (["jobset", "--topology", "v5p:4x4x4", *GKE, "--volume", "c:/dat", *TRAIN], "in no --volume"),
  (["jobset", "--topology", "v5p:4x4x4", *GKE, "--volume", "c", *TRAIN], "'c' has no ':'"),
  (["jobset", "--topology", "v5p:4x4x4", *GKE, "--volume", "c:/data", "--name", "7", *TRAIN],
   "--name is '7'"),
  (["xpk", "--topology", "v5p:4x4x4", *GKE, *TRAIN], "--cluster"),
  (["tpu-vm", "--topology", "tpu7x:2x2x2", "--zone", "z", *TRAIN], "with Kubernetes only")])
def test_what_does_not_fit_is_refused(argv, message, capsys):
  assert message in error(capsys, *argv)


@pytest.mark.parametrize(("name", "label", "topology", "hosts", "chips"), [
  ("v5e:1x1", "tpu-v5-lite-podslice", "1x1", 1, 1),
  ("v5e:2x4", "tpu-v5-lite-podslice", "2x4", 2, 4),
  ("v5e:16x16", "tpu-v5-lite-podslice", "16x16", 64, 4),
  ("v6e:2x2", "tpu-v6e-slice", "2x2", 1, 4),
  ("v5p:2x2x1", "tpu-v5p-slice", "2x2x1", 1, 4), ("v5p:8x8x16", "tpu-v5p-slice", "8x8x16", 256, 4),
  ("tpu7x:4x4x4", "tpu7x", "4x4x4", 16, 4)])
def test_hosts_of_a_slice(name, label, topology, hosts, chips):
  found = tpu.parse(name)
  assert (found.kind.gke, found.topology, found.hosts, found.chips) == (label, topology, hosts,
                                                                        chips)


def test_slices_that_nobody_rents_out_are_refused():
  assert tpu.parse("v6e:2x4", chips_per_host=8).hosts == 1
  for wrong, message in ((("v6e:4x2",), "wanted 1x1, 2x2, 2x4"), (("v5p:4x8x4",), "rising order"),
                         (("v5p:2x2x3",), "rising order"), (("v5e:2x2", 2), "which is one host"),
                         (("v5e:4x4", 1, 3), "divisor of v5e:4x4's 16"), (("v5e:4x4", 0), "is 0")):
    with pytest.raises(ValueError, match=message):
      tpu.parse(*wrong)


@pytest.fixture
def specs(capsys):
  """Of one slice, and of several with every option."""
  return [yaml.safe_load(text(capsys, *GOLDENS[f"{name}.yaml"], *TRAIN))
          for name in ("jobset", "jobset_slices")]


def broken(spec):
  """The same with one mistake: what it is, and the spec."""
  job = ["spec", "replicatedJobs", 0, "template", "spec"]
  pod = [*job, "template", "spec"]
  for value, *where in ((4, *job, "paralelism"),
                        ("Explode", "spec", "failurePolicy", "rules", 0, "action"),
                        ("two", "spec", "replicatedJobs", 0, "replicas"),
                        ({}, *pod, "nodeSelctor"),
                        (4, *pod, "containers", 0, "env", 0, "value")):
    wrong = inner = copy.deepcopy(spec)
    for key in where[:-1]:
      inner = inner[key]
    inner[where[-1]] = value
    yield f"{where[-1]} is {value!r}", wrong


def faults(validator, spec):
  return [f"{'/'.join(map(str, e.absolute_path))}: {e.message}"
          for e in validator.iter_errors(spec)]


def test_a_jobset_has_only_what_there_is(specs):
  schema = json.loads((HERE / "jobset_schema.json").read_text())
  validator = jsonschema.Draft202012Validator(schema)
  for spec in specs:
    assert faults(validator, spec) == []
    for name, wrong in broken(spec):
      assert len(faults(validator, wrong)) == 1, name


def strict(schema):
  """A schema of Kubernetes as a plain one that allows nothing it does not name."""
  if isinstance(schema, dict):
    if schema.pop("x-kubernetes-int-or-string", False):
      schema.pop("type", None)
      schema["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
      schema.setdefault("additionalProperties", False)
  for inner in schema.values() if isinstance(schema, dict) else schema:
    if isinstance(inner, dict | list):
      strict(inner)


@pytest.mark.skipif("OMNIJAX_JOBSET_CRD" not in os.environ, reason="wants JobSet's own schema, "
                    "config/components/crd/bases/jobset.x-k8s.io_jobsets.yaml of its source")
def test_a_jobset_is_one_to_jobset_itself(specs):
  crd = yaml.safe_load(Path(os.environ["OMNIJAX_JOBSET_CRD"]).read_text())
  schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
  strict(schema)
  schema["properties"]["metadata"] = {"type": "object"}
  validator = jsonschema.Draft202012Validator(schema)
  for spec in specs:
    assert faults(validator, spec) == []
    for name, wrong in broken(spec):
      told = faults(validator, wrong)
      assert len(told) == 1, (name, told)
      print(name, "->", told[0][:160])


def test_exit_codes_of_a_jobset(specs):
  assert [s["spec"]["replicatedJobs"][0]["replicas"] for s in specs] == [1, 4]
  for spec in specs:
    job = spec["spec"]["replicatedJobs"][0]["template"]["spec"]
    named = [r["onExitCodes"]["values"] for r in job["podFailurePolicy"]["rules"]]
    assert named == [[2, 42, 130], [143]]  # Kubernetes wants them in order
    rules = spec["spec"]["failurePolicy"]["rules"]
    told = "Container train for pod d/p failed with exit code {} matching FailJob rule at index 0"
    for code, action in ((2, "FailJobSet"), (42, "FailJobSet"), (130, "FailJobSet"),
                         (143, "RestartJobSetAndIgnoreMaxRestarts"), (25, None), (14, None),
                         (1, None)):
      applies = [r["action"] for r in rules
                 if re.search(r["onJobFailureMessagePatterns"][0], told.format(code))]
      assert applies == ([action] if action else []), code
    env = {e["name"]: e["value"]
           for e in job["template"]["spec"]["containers"][0]["env"]}
    assert env["OMNIJAX_STOPPED_CODE"] == str(jobset.STOPPED_CODE) == "143"


FAKES = {
  "omnijax": """echo "$OMNIJAX_STOPPED_CODE $*" >> called
    trap 'sleep 0.3; touch saved; exit 143' TERM
    [ -e code ] && exit $(cat code)
    while :; do sleep 0.1; done""",
  # Does on this machine what would be done on each host.
  "gcloud": """echo "$*" >> called
    case "$*" in
      *"describe"*"--format"*) head -n 1 states; sed -i 1d states;;
      *"describe"*) [ -e there ];;
      *"create"*) touch there;;
      *"ssh"*) cat > /dev/null; for last; do :; done; bash -c "${last#--command=}";;
    esac""",
  # Ends with each line of codes in turn; one with + brings a new checkpoint.
  "python3": """echo "$*" >> trained
    code=$(head -n 1 codes); sed -i 1d codes
    case $code in +*) mkdir -p runs/checkpoints/$(wc -l < trained);; esac
    exit ${code#+}""",
}


@pytest.fixture
def fakes(tmp_path, monkeypatch):
  (tmp_path / "bin").mkdir()
  for name, body in FAKES.items():
    (tmp_path / "bin" / name).write_text("#!/bin/bash\n" + body)
    (tmp_path / "bin" / name).chmod(0o755)
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
  return tmp_path


@pytest.mark.parametrize(("code", "want"), [
  ("0", 0), ("2", 2), ("42", 2), ("130", 2), ("1", 1), ("75", 75), ("76", 76), ("137", 137),
  (None, 143)])
def test_what_xpk_makes_of_exit_codes(fakes, capsys, code, want):
  """Restarts of xpk leave out 0 and 2 only; SIGTERM it sends to the shell around the command."""
  words = shlex.split(text(capsys, *GOLDENS["xpk.sh"], *TRAIN).replace("\\\n", ""))
  options = dict(w.removeprefix("--").split("=", 1) for w in words[3:])
  again = {n for part in options["restart-on-exit-codes"].split(",")
           for n in range(int(part.split("-")[0]), int(part.split("-")[-1]) + 1)}
  assert {0, 2}.isdisjoint(again) and again | {0, 2} == set(range(127))
  around = (f"trap 'kill -TERM $!' TERM; ({options['command']}) & p=$!; "
            "while kill -0 $p 2>/dev/null; do sleep 0.2; done; wait $p")
  env = os.environ | {"OMNIJAX_STOPPED_CODE": "143"}
  if code is not None:
    Path("code").write_text(code)
  pod = subprocess.Popen(["bash", "-c", around], env=env, start_new_session=True)
  while not Path("called").exists():
    time.sleep(0.02)
  if code is None:
    time.sleep(0.2)
    pod.send_signal(signal.SIGTERM)
  assert pod.wait(timeout=30) == want
  assert Path("saved").exists() == (code is None)
  assert Path("called").read_text() == "143 train " + " ".join(TRAIN[1:]) + "\n"


@pytest.mark.parametrize(("codes", "last", "starts"), [
  (["75", "+1", "75", "0"], 0, 4), (["75", "75", "75", "0"], 75, 3), (["42", "0"], 42, 1)])
def test_hosts_of_tpu_vms_go_on_by_themselves(fakes, capsys, codes, last, starts):
  (fakes / "bin" / "sleep").write_text("#!/bin/bash")
  (fakes / "bin" / "sleep").chmod(0o755)
  Path("states").write_text("WAITING_FOR_RESOURCES\nPROVISIONING\nACTIVE\n")
  Path("codes").write_text("\n".join(codes) + "\n")
  script = text(capsys, "tpu-vm", "--topology", "v5e:4x4", "--zone", "z", "--setup",
                "echo 'a b' > s", "--restarts", "2", "--", "it's.py", "--run-dir", "runs")
  done = subprocess.run(["bash"], input=script, capture_output=True, text=True, timeout=60)
  assert done.returncode == 0 and "^python3 -m omnijax.cli'" in done.stdout, done.stderr
  assert Path("s").read_text() == "a b\n"
  log, deadline = Path("omnijax-runs.log"), time.monotonic() + 30
  while f"launch: ended with {last}\n" not in (log.read_text() if log.exists() else ""):
    assert time.monotonic() < deadline, log.read_text()
    time.sleep(0.05)
  trained = Path("trained").read_text().splitlines()
  assert trained == ["-m omnijax.cli train it's.py --run-dir runs"] * starts
  calls = [line.split()[3] for line in Path("called").read_text().splitlines() if "tpus" in line]
  assert calls[:5] == ["describe", "create", "describe", "describe", "describe"]


def test_tpu_vms_that_there_are_are_not_asked_for_again(fakes, capsys):
  Path("there").touch()
  Path("states").write_text("FAILED\n")
  script = text(capsys, *GOLDENS["tpu_vm.sh"], *TRAIN)
  done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60)
  assert done.returncode == 1 and done.stdout == "FAILED\n"
  assert "create" not in Path("called").read_text() and "ssh" not in Path("called").read_text()


def test_every_engine_teaches(capsys):
  for name, engine in launch.ENGINES.items():
    with pytest.raises(SystemExit) as stop:
      engine.main(["--help"])
    assert stop.value.code == 0 and f"python -m launch {name} --" in capsys.readouterr().out, name
