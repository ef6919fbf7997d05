"""`omnijax checkpoint`: lists, verifies and compares, and never writes."""

import shutil

import pytest
from test_integrity import files, flip, saved  # noqa: F401

from omnijax import cli


def said(capfd, *argv):
  code = cli.main(["checkpoint", *map(str, argv)])
  out, err = capfd.readouterr()
  return code, out, err


def test_lists_and_verifies(saved, tmp_path, capfd):  # noqa: F811
  before = files(saved)
  code, out, _ = said(capfd, "ls", saved)
  assert code == 0 and " 1 " in out and " 2 " in out and "tiny" in out
  code, out, _ = said(capfd, "verify", saved)
  assert code == 0 and out.count(": good") == 2
  assert files(saved) == before
  run_dir = tmp_path / "run"
  shutil.copytree(saved, run_dir)
  largest = max(files(run_dir), key=lambda p: (run_dir / p).stat().st_size)
  flip(run_dir / largest)
  code, out, err = said(capfd, "verify", run_dir)
  assert code == 2 and out.count(": good") == 1 and "another checksum" in out
  assert "1 of the checkpoints are damaged (2)" in err
  for path in run_dir.rglob("omnijax_files.*"):  # and without checksums, by its arrays
    path.unlink()
  code, out, _ = said(capfd, "verify", run_dir / "checkpoints" / "2")
  assert code == 2 and ("other bits" in out or "can't be read" in out)


def test_tells_what_differs(saved, capfd):  # noqa: F811
  one, two = (saved / "checkpoints" / s for s in "12")
  code, out, _ = said(capfd, "diff", one, two)
  assert code == 0 and "training.step" in out and "model." not in out
  assert said(capfd, "diff", two, saved)[:2] == (0, "no difference\n")


@pytest.mark.parametrize("action", ["ls", "verify"])
def test_where_there_is_none(action, tmp_path, capfd):
  code, _, err = said(capfd, action, tmp_path)
  assert code == 2 and f"no checkpoint in {tmp_path}" in err
