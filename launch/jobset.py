"""A job of TPU slices on Google Kubernetes Engine: a JobSet as YAML.

  python -m launch jobset --topology v5p:4x4x4 --image IMAGE --volume CLAIM:/data \\
    -- /app/exp.py --run-dir /data/runs/first | kubectl apply -f -

What follows `--` is what `omnijax train` takes, as seen in a container of IMAGE, which has omnijax
installed with its extra `tpu`. CLAIM is a PersistentVolumeClaim that all hosts may write to
(ReadWriteMany, as of Filestore); the run directory and the records lie in it.

A host that is to be emptied is told by SIGTERM: all hosts save the same step and stop, and the job
is started again, as often as need be. What ends otherwise is started again, too, --restarts times
in all; exit codes 2, 42 and 130 end the job for good. Needs JobSet 0.10 or later, and Kubernetes
1.31 or later. To stop: kubectl delete jobset NAME.
"""

import argparse
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

import yaml

from launch import arguments, tpu
from omnijax.job import exits

# The code of a run that was stopped: that of a process which SIGTERM ends before it can save.
STOPPED_CODE = 143
_FOR_GOOD = [exits.BAD_INPUT, exits.NEVER, exits.INTERRUPTED]  # in rising order, for Kubernetes


def jobset(*, name: str, image: str, command: Sequence[str], tpus: tpu.Slice,
           volumes: Sequence[tuple[str, str]] = (), env: Sequence[tuple[str, str]] = (),
           nodes: Sequence[tuple[str, str]] = (), queue: str | None = None, grace: int = 300,
           restarts: int = 10) -> dict[str, Any]:
  """The JobSet: a Job for each slice, a pod for each host.

  GKE tells each pod its place (TPU_WORKER_ID, TPU_WORKER_HOSTNAMES, MEGASCALE_*), and jax asks for
  that.

  Args:
    name: of the job: lower case letters, digits and dashes.
    image: of the container.
    command: `omnijax train ...`, word by word.
    tpus: the slices.
    volumes: claims, and where they are mounted.
    env: variables beside ours.
    nodes: labels, beside those of the TPUs, that a node must have.
    queue: of Kueue that the job waits in.
    grace: seconds to save and stop.
    restarts: of the whole job, other than after being stopped.
  """
  variables = {exits.STOPPED: str(STOPPED_CODE), "PYTHONUNBUFFERED": "1"} | dict(env)
  container: dict[str, Any] = {
    "name": "train", "image": image, "command": list(command),
    "env": [{"name": k, "value": v} for k, v in variables.items()],
    "securityContext": {"privileged": True},  # the chips' devices
    "resources": {"limits": {"google.com/tpu": tpus.chips}}}
  pod: dict[str, Any] = {
    "restartPolicy": "Never", "terminationGracePeriodSeconds": grace,
    "hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet",
    "nodeSelector": {"cloud.google.com/gke-tpu-accelerator": tpus.kind.gke,
                     "cloud.google.com/gke-tpu-topology": tpus.topology} | dict(nodes),
    "containers": [container]}
  if volumes:
    names = [f"volume-{i}" for i in range(len(volumes))]
    container["volumeMounts"] = [{"name": n, "mountPath": path}
                                 for n, (_, path) in zip(names, volumes, strict=True)]
    pod["volumes"] = [{"name": n, "persistentVolumeClaim": {"claimName": claim}}
                      for n, (claim, _) in zip(names, volumes, strict=True)]
  job = {"parallelism": tpus.hosts, "completions": tpus.hosts, "completionMode": "Indexed",
         "backoffLimit": 0, "template": {"spec": pod},
         "podFailurePolicy": {"rules": [_fail(_FOR_GOOD), _fail([STOPPED_CODE])]}}
  return {
    "apiVersion": "jobset.x-k8s.io/v1alpha2", "kind": "JobSet",
    "metadata": {
      "name": name,
      **({"labels": {"kueue.x-k8s.io/queue-name": queue}} if queue else {}),
      # A slice is a node pool of its own.
      "annotations": {"alpha.jobset.sigs.k8s.io/exclusive-topology":
                      "cloud.google.com/gke-nodepool"}},
    "spec": {
      "failurePolicy": {
        "maxRestarts": restarts,
        # What no rule names is restarted, and counted.
        "rules": [_after("for_good", "FailJobSet", _FOR_GOOD),
                  _after("stopped", "RestartJobSetAndIgnoreMaxRestarts", [STOPPED_CODE])]},
      "replicatedJobs": [{"name": "slice", "replicas": tpus.slices,
                          "template": {"spec": job}}]}}


def _fail(codes: list[int]) -> dict[str, Any]:
  """A pod that ends with one of them ends its Job with a message that names it."""
  return {"action": "FailJob",
          "onExitCodes": {"containerName": "train", "operator": "In", "values": codes}}


def _after(name: str, action: str, codes: list[int]) -> dict[str, Any]:
  """What becomes of the JobSet after a Job ended with such a message."""
  return {"name": name, "action": action, "onJobFailureReasons": ["PodFailurePolicy"],
          "onJobFailureMessagePatterns": [f"exit code ({'|'.join(map(str, codes))}) "]}


def text(spec: dict[str, Any]) -> str:
  """As YAML."""
  return yaml.safe_dump(spec, sort_keys=False, width=100)


def main(argv: Sequence[str]) -> int:
  """Prints or writes the JobSet; returns an exit code."""
  parser = arguments.parser("jobset", __doc__ or "")
  tpu.add(parser)
  parser.add_argument("--chips-per-host", type=int, metavar="N", help="8 where a slice of 8 chips "
                      "is one machine of the kind -8t (default: 4, or 1 of a slice of one)")
  parser.add_argument("--image", required=True, help="of the container")
  for option, value, help in (
      ("volume", "CLAIM:PATH", "a PersistentVolumeClaim, and where it is mounted"),
      ("env", "NAME=VALUE", "a variable of the container"),
      ("node", "LABEL=VALUE", "that a node must have, such as cloud.google.com/gke-spot=true")):
    parser.add_argument(f"--{option}", action="append", default=[], metavar=value,
                        type=_pair(":" if option == "volume" else "="),
                        help=help + "; may be repeated")
  parser.add_argument("--queue", metavar="NAME", help="of Kueue that the job waits in")
  parser.add_argument("--grace", type=int, default=300, metavar="SECONDS",
                      help="to save and stop (default: %(default)s)")
  parser.add_argument("--restarts", type=int, default=10, metavar="N",
                      help="in all, other than after being stopped (default: %(default)s)")
  args = parser.parse_args(argv)
  try:
    run_dir = arguments.run_dir(args.train)
    if not any(PurePosixPath(path) in run_dir.parents for _, path in args.volume):
      raise ValueError(f"--run-dir is {run_dir}, which is in no --volume: every host would have "
                       "one of its own. Wanted --volume CLAIM:PATH with PATH above it.")
    spec = jobset(
      name=arguments.label(args.name or run_dir.name), image=args.image,
      command=["omnijax", "train", *args.train],
      tpus=tpu.parse(args.topology, args.slices, args.chips_per_host), volumes=args.volume,
      env=args.env, nodes=args.node, queue=args.queue, grace=args.grace, restarts=args.restarts)
    arguments.put(text(spec), args.out)
  except (ValueError, OSError) as error:
    parser.error(str(error))
  return 0


def _pair(separator: str) -> Any:
  def pair(value: str) -> tuple[str, str]:
    first, found, second = value.partition(separator)
    if not (first and found and second):
      raise argparse.ArgumentTypeError(f"{value!r} has no {separator!r} between two parts")
    return first, second

  return pair
