"""What a script for sbatch does, with a `srun` and a `scontrol` that only pretend to be SLURM's."""

import os
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest

from omnijax.job import sbatch

FAKES = {
  # Both tasks, one after the other; the highest code.
  "srun": '''while [[ $1 == --* ]]; do shift; done
    most=0
    for i in 0 1; do
      SLURM_PROCID=$i setsid --wait "$@"; code=$?
      [ $code -gt $most ] && most=$code
    done
    exit $most''',
  "scontrol": 'echo "$@" >> requeued',
  "sleep": "kill $PPID",  # SLURM ends a script whose job it has requeued
}
# Ends with the codes given, one each start; "+" before a code is a new checkpoint.
PRETENDS = """
run_dir=$2; shift 2
n=$(cat "$run_dir/starts$SLURM_PROCID" 2>/dev/null || echo 0)
mkdir -p "$run_dir/checkpoints/scratch" && echo $((n + 1)) > "$run_dir/starts$SLURM_PROCID"
shift $((n < $# ? n : $# - 1))
case $1 in +*) mkdir "$run_dir/checkpoints/$((n + 1))$SLURM_PROCID";; esac
exit ${1#+}
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
  """Runs a script until it isn't requeued; returns all exit codes and what it said."""
  (tmp_path / "bin").mkdir()
  for name, text in FAKES.items():
    path = tmp_path / "bin" / name
    path.write_text("#!/bin/bash\n" + text)
    path.chmod(0o755)
  (tmp_path / "pretends").write_text(PRETENDS)
  monkeypatch.chdir(tmp_path)
  env = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "SLURM_JOB_ID": "17",
                      "SLURM_ARRAY_JOB_ID": "16"}

  def run(text, **more):
    codes, said = [], ""
    while True:
      Path("requeued").unlink(missing_ok=True)
      done = subprocess.run(["bash", "-c", text], env=env | more, text=True, capture_output=True,
                            timeout=60)
      said += done.stdout + done.stderr
      codes.append(done.returncode)
      if not Path("requeued").exists():
        return codes, said
      job = f"16_{more['SLURM_ARRAY_TASK_ID']}" if more else "17"
      assert Path("requeued").read_text() == f"requeue {job}\n"

  return run


def pretends(*codes):
  return ["bash", "pretends", "--run-dir", "a run", *codes]


@pytest.mark.parametrize(("codes", "restarts", "want", "starts"), [
  (["75", "76", "0"], 2, 0, 3),
  (["75", "75", "75", "0"], 2, 75, 3),
  (["75", "+75", "75", "0"], 2, 0, 4),  # a new checkpoint begins the count again
  (["+75", "75", "75", "0"], 2, 75, 3),
  (["1", "137", "42"], 5, 42, 3), (["2"], 5, 2, 1), (["130"], 5, 130, 1)])
def test_it_comes_back_while_that_helps(slurm, codes, restarts, want, starts):
  ended, said = slurm(sbatch.script(name="x", command=pretends(*codes), nodes=2,
                                    restarts=restarts))
  assert len(ended) == starts and ended[-1] == want, said
  assert all(code == -signal.SIGTERM for code in ended[:-1]), ended
  assert said.splitlines()[-1].partition(" ended with ")[2].split(";")[0] == str(want)
  assert not list(Path("a run").glob("starts.*"))


@pytest.mark.parametrize(("codes", "want", "starts"), [
  ((42, 75), 42, 1), ((137, 2), 2, 1), ((0, 130), 130, 1), ((0, 76), 76, 2), ((143, 1), 143, 2),
  ((143, 42), 42, 1)])
def test_no_task_hides_what_another_ended_for_good_with(slurm, codes, want, starts):
  command = ["bash", "-c", f"[ $SLURM_PROCID = 0 ] && exit {codes[0]}; exit {codes[1]}", "x",
             "--run-dir=r"]
  ended, said = slurm(sbatch.script(name="x", command=command, nodes=2, restarts=1))
  assert (ended[-1], len(ended)) == (want, starts), said


def test_a_task_of_an_array_runs_its_line(slurm):
  write = "bash -c 'mkdir -p \"$2\"; echo \"$3\" > \"$2/got\"' x --run-dir {} {}\n"
  Path("my commands").write_text(write.format("'run 0'", "zero")
                                 + write.format("'run 1'", shlex.quote("it's $HOME")))
  text = sbatch.script(name="x", command=Path("my commands"), array=(2, 1))
  assert "#SBATCH --array=0-1%1\n" in text
  assert slurm(text, SLURM_ARRAY_TASK_ID="1")[0] == [0]
  assert Path("run 1/got").read_text() == "it's $HOME\n" and not Path("run 0").exists()
  Path("my commands").write_text(
    "false\nbash -c 'mkdir r || exit 0; exit 75' x --run-dir r\n")
  assert slurm(text, SLURM_ARRAY_TASK_ID="1")[0] == [-signal.SIGTERM, 0]
  codes, said = slurm(text, SLURM_ARRAY_TASK_ID="2")
  assert codes == [2] and "no --run-dir in" in said


def test_a_task_that_is_asked_to_stop_is_waited_for(slurm, tmp_path):
  # To the whole process group of a task, as SLURM does.
  saves = ("trap 'python3 -c \"import time; time.sleep(0.5)\"; touch saved; exit 75' TERM; "
           "ps -o pgid= $$ > pgid; while :; do python3 -c 'import time; time.sleep(0.1)'; done")
  text = sbatch.script(name="x", command=["bash", "-c", saves, "x", "--run-dir", "r"], restarts=0)
  env = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "SLURM_JOB_ID": "17"}
  (tmp_path / "bin" / "srun").write_text(
    '#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done; setsid --wait "$@"')
  script = subprocess.Popen(["bash", "-c", text], env=env, stdout=subprocess.PIPE, text=True)
  while not (Path("pgid").exists() and Path("pgid").read_text().strip()):
    assert script.poll() is None
    time.sleep(0.05)
  time.sleep(0.3)  # the trap comes first, yet the shell around it has its own
  os.killpg(int(Path("pgid").read_text()), signal.SIGTERM)
  said, _ = script.communicate(timeout=30)
  assert script.returncode == 75 and Path("saved").exists(), said


def test_the_run_says_that_it_was_stopped(slurm):
  command = ["bash", "-c", "exit $OMNIJAX_STOPPED_CODE", "x", "--run-dir", "r"]
  assert slurm(sbatch.script(name="x", command=command, restarts=0))[0] == [75]


def test_what_sbatch_is_asked_for():
  text = sbatch.script(name="x", command=["a", "--run-dir", "r"], nodes=3, gpus=4, cpus=6,
                       time="1:00:00", grace=90, setup=["module load cuda"],
                       options=["partition=gpu", "exclusive"])
  asked = [line.removeprefix("#SBATCH ") for line in text.splitlines() if line[:3] == "#SB"]
  assert asked == ["--job-name=x", "--nodes=3", "--ntasks-per-node=4", "--gpus-per-node=4",
                   "--cpus-per-task=6", "--time=1:00:00", "--requeue", "--open-mode=append",
                   "--signal=TERM@90", "--partition=gpu", "--exclusive"]
  assert "\nmodule load cuda\n" in text.partition("srun")[0]
  assert " --cpus-per-task=6 " in text.partition("\nsrun")[2].partition("\n")[0]


def test_it_is_submitted_or_refused(tmp_path, monkeypatch):
  monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
  fake = tmp_path / "sbatch"
  fake.write_text('#!/bin/bash\n[ "$*" = --parsable ] && [ "$(cat)" = text ] && echo "17;there"')
  fake.chmod(0o755)
  assert sbatch.submit("text") == "17"
  fake.write_text("#!/bin/bash\necho 'invalid partition' >&2; exit 1")
  with pytest.raises(ValueError, match="refused the script: invalid partition"):
    sbatch.submit("text")
  monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
  with pytest.raises(ValueError, match="no sbatch here"):
    sbatch.submit("text")
