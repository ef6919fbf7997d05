"""Damage to a checkpoint's files is noticed or does no harm, whatever it is and wherever."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from test_checkpoints import IDENTITY, MESHES, initial, on, rest, wanted

from omnijax import checkpoint
from omnijax.checkpoint import arrays, manifest
from omnijax.job import exits


def flip(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


def zero(path):
  data = bytearray(path.read_bytes())
  start = len(data) // 3
  data[start : start + 64] = bytes(len(data[start : start + 64]))
  path.write_bytes(data)


DAMAGE = {"flip": flip, "zero": zero, "cut": lambda p: p.write_bytes(
  p.read_bytes()[: p.stat().st_size // 2]), "empty": lambda p: p.write_bytes(b""),
  "delete": lambda p: p.unlink()}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """A run directory with checkpoints of steps 1 and 2, alike but for the step."""
  run_dir = tmp_path_factory.mktemp("saved")
  with on(MESHES[0]):
    state = initial(MESHES[0])
    writer = checkpoint.Checkpoints(run_dir / "checkpoints", IDENTITY, keep=5)
    for step in (1, 2):
      training = rest(state) | {"step": jnp.int32(step)}
      writer.save(step, state.model, training, [{"step": step}])
    writer.close()
  return run_dir


def restored(run_dir):
  """The step, the events and the arrays' bits that a trainer goes on from."""
  with on(MESHES[0]):
    like = wanted(MESHES[0], tiny.run())
    writer = checkpoint.Checkpoints(run_dir / "checkpoints", IDENTITY, keep=5)
    try:
      model, training, events, _ = writer.restore(like.model, rest(like))
    finally:
      writer.close()
    bits = {k: np.asarray(v).tobytes() for k, v in checkpoint.named(model).items()}
    return int(training["step"]), events, bits


@pytest.fixture(scope="module")
def whole(saved):
  return restored(saved)


def files(run_dir, step=2):
  return sorted(p.relative_to(run_dir) for p in (run_dir / "checkpoints" / str(step)).rglob("*")
                if p.is_file())


def one_of_each_kind(run_dir):
  """Of "model" and "training", which have the same files, the first one's largest is enough."""
  largest = max((p for p in files(run_dir) if "model" in p.parts),
                key=lambda p: (run_dir / p).stat().st_size)
  return [largest, *(p for p in files(run_dir) if "model" not in p.parts)]


def test_what_is_whole_is_restored(saved, whole):
  step, events, bits = whole
  assert step == 2 and events == [{"step": 2}] and len(bits) > 20
  assert not (saved / "quarantine").exists()
  assert manifest.problems(saved / "checkpoints" / "2") == []


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_of_any_file_is_noticed_or_harmless(saved, whole, tmp_path, kind):
  outcomes = {}
  for name in one_of_each_kind(saved):
    run_dir = tmp_path / str(len(outcomes))
    shutil.copytree(saved, run_dir)
    DAMAGE[kind](run_dir / name)
    if kind in ("flip", "zero") and (run_dir / name).read_bytes() == (saved / name).read_bytes():
      continue  # it was all zeros, or empty
    step, events, bits = restored(run_dir)
    assert bits == whole[2], name
    assert events == [{"step": step}]
    outcomes[str(name)] = step
    # What was damaged is out of the way, and nothing is lost.
    assert step == 2 or (run_dir / "quarantine" / "2").is_dir()
    shutil.rmtree(run_dir)
  noticed = [name for name, step in outcomes.items() if step == 1]
  # Without the list of files itself the fingerprints are enough.
  assert len(noticed) >= len(outcomes) - 1, outcomes
  assert len(outcomes) > 6, outcomes


def test_where_none_is_good_nothing_begins_from_nothing(saved, tmp_path):
  run_dir = tmp_path / "run"
  shutil.copytree(saved, run_dir)
  for step in (1, 2):
    flip(run_dir / max(files(run_dir, step), key=lambda p: (run_dir / p).stat().st_size))
  with pytest.raises(exits.Never, match=r"no checkpoint in .* is good: 2 \(.*checksum.*1 \("):
    restored(run_dir)
  # Nor the next time, when they are out of the way.
  with pytest.raises(exits.Never, match="all are in quarantine"):
    restored(run_dir)
  assert sorted(p.name for p in (run_dir / "quarantine").iterdir()) == ["1", "2"]


def test_without_a_list_of_files_fingerprints_tell(saved, whole, tmp_path):
  """As after a process was killed when its checkpoint was whole and not yet listed."""
  for damaged in (False, True):
    run_dir = tmp_path / str(damaged)
    shutil.copytree(saved, run_dir)
    step_dir = run_dir / "checkpoints" / "2"
    for path in step_dir.glob("omnijax_files.*"):
      path.unlink()
    if damaged:
      flip(max((p for p in step_dir.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size))
    assert restored(run_dir)[0] == (1 if damaged else 2)


def test_a_reader_takes_the_newest_good_one_and_moves_nothing(saved, tmp_path, caplog):
  run_dir = tmp_path / "run"
  shutil.copytree(saved, run_dir)
  path = run_dir / max(files(run_dir), key=lambda p: (run_dir / p).stat().st_size)
  flip(path)
  before = files(run_dir)
  assert checkpoint.read_identity(run_dir / "checkpoints")[0] == 1
  assert files(run_dir) == before and not (run_dir / "quarantine").exists()
  with on(MESHES[0]), pytest.raises(ValueError, match="other bits than were saved|unreadable|read"):
    checkpoint.read_arrays(run_dir / "checkpoints", 2, "model",
                           wanted(MESHES[0], tiny.run()).model)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int8, jnp.bool_])
def test_fingerprints_know_every_bit_and_no_mesh(dtype):
  r = np.random.default_rng(0)
  x = np.asarray(jnp.asarray(r.integers(0, 2, (16, 8))).astype(dtype))
  prints = set()
  for shape in MESHES:
    with on(shape):
      for spec in (jax.P(), jax.P("data"), jax.P(None, "fsdp"), jax.P("fsdp", "tensor")):
        put = jax.device_put(x, jax.NamedSharding(jax.sharding.get_mesh(), spec))
        prints.add(arrays.fingerprints({"x": put})["x"])
  assert len(prints) == 1
  with on(MESHES[0]):
    of = lambda a: arrays.fingerprints({"x": jnp.asarray(a)})["x"]
    other = [x[::-1], x.T.copy(), np.roll(x, 1, 1)]
    for _ in range(20):
      changed = x.copy()
      raw = changed.view(np.uint8)
      raw.flat[r.integers(raw.size)] ^= 1
      other.append(changed)
    assert prints.isdisjoint({of(a) for a in other})
