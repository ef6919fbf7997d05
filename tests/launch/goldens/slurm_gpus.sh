#!/bin/bash
#SBATCH --job-name=big
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@600
#SBATCH --partition=gpu

export OMNIJAX_STOPPED_CODE=75 PYTHONUNBUFFERED=1
module load cuda
set -- python -m omnijax.cli train '/data/my exp.py' --run-dir /data/runs/first --optim.peak-lr 3e-4
run_dir= before=
for word; do
  [ "$before" = --run-dir ] && run_dir=$word
  case $word in --run-dir=*) run_dir=${word#--run-dir=};; esac
  before=$word
done
if [ -z "$run_dir" ]; then echo "launch: no --run-dir in: $*" >&2; exit 2; fi
newest() {
  ls "$run_dir/checkpoints" 2>/dev/null | grep -Ex '[0-9]+' | sort -n | tail -n 1
}

before=$(newest)
# SIGTERM goes to all processes of a task: this shell waits while the other one saves.
srun --kill-on-bad-exit=0 --wait=60 --cpus-per-task=12 bash -c '
  trap : TERM
  "$@"
  code=$?
  case $code in 2) code=202;; 130) code=230;; 42) code=242;; esac
  exit $code' task "$@"
code=$?
case $code in 202) code=2;; 230) code=130;; 242) code=42;; esac

# Starts in a row without a new checkpoint are counted in a file, since this script begins anew.
count=$run_dir/starts.$SLURM_JOB_ID
tries=$(($(cat "$count" 2>/dev/null || echo 0) + 1))
after=$(newest)
[ "${after:--1}" -gt "${before:--1}" ] && tries=1
told="launch: start ${SLURM_RESTART_COUNT:-0} of job $SLURM_JOB_ID ended with $code"
case $code in
  0|2|130|42) echo "$told";;
  *)
    if [ "$tries" -le 3 ]; then
      echo "$told; again (start $tries of 3 without a new checkpoint)"
      mkdir -p "$run_dir" && echo "$tries" > "$count"
      scontrol requeue "$SLURM_JOB_ID" && sleep 60  # SLURM ends this script meanwhile
    else
      echo "$told; $tries starts brought no new checkpoint"
    fi;;
esac
rm -f "$count"
exit "$code"
