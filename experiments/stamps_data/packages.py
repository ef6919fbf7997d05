"""Debian packages by name: downloaded, unpacked without root, and what is in them.

A folder holds `packages/NAME.deb` and everything unpacked in `root/`. What is there stays, so that
an interrupted run goes on. Wanted are apt-get and dpkg-deb, as Debian, Ubuntu and their kin have.
"""

from __future__ import annotations

import pathlib
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator, Sequence


def fetch(names: Sequence[str], folder: pathlib.Path) -> pathlib.Path:
  """Downloads and unpacks packages; returns the folder that stands for the root directory.

  Raises:
    ValueError: a program is missing, or a package can't be downloaded or unpacked.
  """
  packages, root = folder / "packages", folder / "root"
  packages.mkdir(parents=True, exist_ok=True)
  for i, name in enumerate(names, 1):
    deb, done = packages / f"{name}.deb", packages / f"{name}.unpacked"
    if not deb.exists():
      print(f"[{i}/{len(names)}] downloading {name}", flush=True)
      _download(name, deb)
    if not done.exists():
      print(f"[{i}/{len(names)}] unpacking {name}", flush=True)
      _run("dpkg-deb", "-x", str(deb.resolve()), str(root.resolve()),
           hint=f"delete {deb} and try again")
      done.touch()
  return root


def _download(name: str, deb: pathlib.Path) -> None:
  part = deb.with_suffix(".part")  # a folder: apt-get chooses the name of the file
  shutil.rmtree(part, ignore_errors=True)
  part.mkdir()
  # As root, apt-get would rather download as a user that can't write here, and says so at length.
  _run("apt-get", "-o", "APT::Sandbox::User=root", "download", name, cwd=part,
       hint="see that this machine has network, and that its lists of packages are there "
       "(apt-get update)")
  found = list(part.glob("*.deb"))
  if len(found) != 1:
    raise ValueError(f"apt-get download {name} left {len(found)} packages in {part}; wanted one.")
  found[0].replace(deb)
  part.rmdir()


def _run(*command: str, hint: str, cwd: pathlib.Path | None = None) -> None:
  """Runs a program, whose progress goes to the terminal."""
  program = _found(command[0])
  done = subprocess.run([program, *command[1:]], cwd=cwd, stderr=subprocess.PIPE, text=True)
  if done.returncode:
    said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
    raise ValueError(f"{' '.join(command)} failed: {said}; {hint}.")


def _found(program: str) -> str:
  path = shutil.which(program)
  if path is None:
    raise ValueError(f"there is no {program} here; wanted Debian, Ubuntu or the like, whose "
                     "packages these are.")
  return path


def members(folder: pathlib.Path, name: str) -> Iterator[tuple[str, Callable[[], bytes]]]:
  """The files of a downloaded package, each as its path and what reads it before the next.

  Raises:
    ValueError: the package is damaged.
  """
  deb = folder / "packages" / f"{name}.deb"
  with subprocess.Popen([_found("dpkg-deb"), "--fsys-tarfile", str(deb)],
                        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
    try:
      with tarfile.open(fileobj=process.stdout, mode="r|") as tar:
        for member in tar:
          if member.isfile():
            yield member.name.removeprefix("./"), lambda m=member: tar.extractfile(m).read()
    except tarfile.TarError as error:
      raise ValueError(f"{deb} can't be read: {error}; delete it and try again.") from error
