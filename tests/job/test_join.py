"""How a process finds the others of its job: what jax is asked, and for how long."""

import os
import subprocess
import sys

import jax
import pytest

from omnijax.job import exits, processes

ALONE = ("TPU_WORKER_HOSTNAMES", "MEGASCALE_COORDINATOR_ADDRESS", "JOB_COMPLETION_INDEX",
         "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "TPU_SKIP_MDS_QUERY",
         "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


@pytest.fixture
def asked(monkeypatch):
  """What jax.distributed.initialize is called with by `join`."""
  calls = []
  for name in ALONE:
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setattr(jax.distributed, "initialize",
                      lambda *args, **more: calls.append(args + (more["initialization_timeout"],)))
  monkeypatch.setattr(processes, "_leave_on_abort", lambda missing: None)
  monkeypatch.setattr(processes, "_JOINED", [])
  return calls


def given(**env):
  with pytest.MonkeyPatch.context() as patch:
    for name, value in env.items():
      patch.setenv(name, value)
    processes.join()


def test_by_address_by_engine_or_alone(asked):
  given(JAX_COORDINATOR_ADDRESS="h:1", JAX_NUM_PROCESSES="2", JAX_PROCESS_ID="1")
  given(SLURM_NTASKS="2")
  given(JOB_COMPLETION_INDEX="0")
  assert asked == [("h:1", 2, 1, 45), (None, None, None, 300), (None, None, None, 300)]
  given(SLURM_NTASKS="1")
  assert asked[-1][1:] == (1, 0, 45)


def test_a_host_with_tpus_asks_for_the_slice(asked):
  before = jax.config.values["jax_platforms"]
  try:
    jax.config.update("jax_platforms", "tpu,cpu")
    given()
    assert asked == [(None, None, None, 300)]
    given(TPU_SKIP_MDS_QUERY="1")  # jax would find nothing
    assert asked[-1][1:] == (1, 0, 45)
  finally:
    jax.config.update("jax_platforms", before)
  assert before == "cpu"
  given()
  assert asked[-1][1:] == (1, 0, 45)


def test_jax_names_no_platform_where_there_are_no_tpus():
  # Else every host with libtpu would ask for a slice.
  env = {k: v for k, v in os.environ.items() if k != "JAX_PLATFORMS"}
  code = "import jax; print(jax.config.values['jax_platforms'])"
  done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
  assert done.stdout == "None\n"


def test_the_code_of_what_was_stopped_is_the_engines(monkeypatch):
  monkeypatch.delenv(exits.STOPPED, raising=False)
  assert exits.stopped() == exits.DONE
  monkeypatch.setenv(exits.STOPPED, "75")
  assert exits.stopped() == exits.AGAIN
  for wrong in ("", "-1", "256", "yes"):
    monkeypatch.setenv(exits.STOPPED, wrong)
    with pytest.raises(ValueError, match=f"OMNIJAX_STOPPED_CODE is '{wrong}'; wanted"):
      exits.stopped()
