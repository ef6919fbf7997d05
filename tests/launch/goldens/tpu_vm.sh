#!/bin/bash
set -eu
{  # a shell that gets this by a pipe reads all of it before ssh might
gcloud compute tpus queued-resources describe first --zone=us-east5-a > /dev/null 2>&1 ||
  gcloud compute tpus queued-resources create first --zone=us-east5-a \
    --type=v5p \
    --topology=4x4x8 \
    --runtime-version=v2-alpha-tpuv5 \
    --node-id=first
while :; do
  state=$(gcloud compute tpus queued-resources describe first --zone=us-east5-a --format='value(state.state)')
  echo "$state"
  case $state in ACTIVE) break;; FAILED|SUSPENDED) exit 1;; esac
  sleep 30
done
# What every host runs from here on.
job=$(cat << 'JOB'
run_dir=/data/runs/first
newest() {
  ls "$run_dir/checkpoints" 2>/dev/null | grep -Ex '[0-9]+' | sort -n | tail -n 1
}
tries=0
while :; do
  before=$(newest)
  python3 -m omnijax.cli train '/data/my exp.py' --run-dir /data/runs/first --optim.peak-lr 3e-4
  code=$?
  case $code in 0|2|42|130) break;; esac
  after=$(newest)
  [ "${after:--1}" -gt "${before:--1}" ] && tries=0
  tries=$((tries + 1))
  [ "$tries" -gt 5 ] && break
  echo "launch: ended with $code; again (start $tries of 5 without a new checkpoint)"
  sleep 10
done
echo "launch: ended with $code"
JOB
)
gcloud compute tpus queued-resources ssh first --zone=us-east5-a --node=all --worker=all \
  --command="nohup bash -c $(printf %q "$job") >> omnijax-first.log 2>&1 < /dev/null &"
cat << 'TOLD'
To look at it, to stop it with everything saved, and to give the TPUs back:
  gcloud compute tpus queued-resources ssh first --zone=us-east5-a --node=all --worker=all --command='tail omnijax-first.log'
  gcloud compute tpus queued-resources ssh first --zone=us-east5-a --node=all --worker=all --command="pkill -TERM -f '^python3 -m omnijax.cli'"
  gcloud compute tpus queued-resources delete first --zone=us-east5-a --force
TOLD
} < /dev/null
