"""`omnijax prepare --engine ray` on a real Ray: what processes here write, killed or not."""

import pathlib
import subprocess
import sys
import time

import fakes
import pytest
from test_prepare import SHARD, digest, run

import omnijax
from omnijax import vocab as v
from omnijax.data import prepare, ray_engine, records
from omnijax.data.prepare import Choices

_SLOW = """
import pathlib, sys
sys.path[:0] = {path!r}
import fakes
from omnijax.data import prepare, ray_engine
if __name__ == "__main__":
  import ray
  ray.init(num_cpus=2, include_dashboard=False, runtime_env={{"env_vars": {{
    "PYTHONPATH": {python_path!r}}}}})
  t = fakes.encode.Tokenizers(fakes.Text(), fakes.Image(), fakes.SlowAudio())
  prepare.prepare({source!r}, pathlib.Path({out!r}), tokenizers=t, shard={shard!r}, processes=2,
                  engine=ray_engine.Ray, progress=False)
"""


def test_without_ray_it_says_what_to_install(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "ray", None)
  with pytest.raises(ValueError, match="install the extra `ray`"):
    run(fakes.manifest(tmp_path, [{"text": "a"}]), tmp_path / "out", engine=ray_engine.Ray)
  assert not (tmp_path / "out").exists()


def alive(pattern):
  out = subprocess.run(["pgrep", "-f", pattern], capture_output=True, text=True, check=False)
  return [int(pid) for pid in out.stdout.split()]


@pytest.mark.ray
@pytest.mark.parametrize("victim", ["none", "a worker", "all"])
def test_ray_and_this_machine_write_the_same_bytes(tmp_path, victim):
  source, out = fakes.mixed(tmp_path, 60), tmp_path / "out"
  shard = {**SHARD, v.AUDIO: 1}
  path = [str(pathlib.Path(__file__).parent), str(pathlib.Path(omnijax.__file__).parents[1])]
  script = tmp_path / "prepare_with_ray.py"
  script.write_text(_SLOW.format(path=path, python_path=":".join(path), source=str(source),
                                 out=str(out), shard=shard))
  command = [sys.executable, str(script)]
  process = subprocess.Popen(command)
  deadline = time.monotonic() + 120
  while victim != "none" and not (out / "audio-00000.json").exists():
    assert process.poll() is None and time.monotonic() < deadline
    time.sleep(0.01)
  if victim == "a worker":
    workers = alive("ray::Worker")
    assert workers
    subprocess.run(["kill", "-9", str(workers[0])], check=True)
  elif victim == "all":
    process.kill()
    process.wait()
    assert records.Meta.read(out) is None
    while alive("ray::Worker"):
      assert time.monotonic() < deadline, "workers outlived their driver"
      time.sleep(0.1)
    process = subprocess.Popen(command)
  assert process.wait(timeout=240) == 0
  run(source, tmp_path / "here", shard=shard)
  assert digest(out) == digest(tmp_path / "here")


@pytest.mark.ray
def test_every_choice_is_the_same_under_ray(tmp_path):
  import ray
  source = fakes.mixed(tmp_path, 90)
  choices = Choices(image_size=8, heldout=0.3, dedup=True)
  path = str(pathlib.Path(__file__).parent)
  ray.init(num_cpus=2, include_dashboard=False, runtime_env={"env_vars": {"PYTHONPATH": path}})
  try:
    run(source, tmp_path / "a", choices=choices, engine=ray_engine.Ray, shard=SHARD)
  finally:
    ray.shutdown()
  run(source, tmp_path / "b", choices=choices, shard=SHARD)
  assert digest(tmp_path / "a") == digest(tmp_path / "b")
  assert records.Meta.read(tmp_path / "a" / prepare.HELDOUT).counts["documents"]
