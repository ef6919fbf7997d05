#!/bin/bash
# A SLURM of two nodes, n1 and n2, on this machine, for `pytest -m slurm`; as root, on Debian after
#   apt-get install -y --no-install-recommends slurm-wlm munge
# `slurm.sh start DIR` starts it, with what it writes in DIR, and prints what the tests need to know;
# `slurm.sh stop DIR` ends it.
set -eu
dir=$(mkdir -p "$2" && cd "$2" && pwd)
case $1 in
  start)
    mkdir -p "$dir/state" "$dir/log"
    # A job that was requeued waits until its credential is void: 5 s here instead of 2 minutes.
    cat > "$dir/slurm.conf" <<CONF
ClusterName=tests
SlurmctldHost=localhost(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$dir/munge.socket,cred_expire=5
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool.%n
SlurmctldPort=16817
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.%n.pid
SlurmctldLogFile=$dir/log/slurmctld
SlurmdLogFile=$dir/log/slurmd.%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=1,sched_interval=5
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
KillWait=30
NodeName=n[1-2] NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=[17001-17002] CPUs=2
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
    if [ ! -f "$dir/munge.key" ]; then head -c 1024 /dev/urandom > "$dir/munge.key"; fi
    chmod 600 "$dir/munge.key"
    munged --force --socket="$dir/munge.socket" --key-file="$dir/munge.key" \
      --pid-file="$dir/munge.pid" --log-file="$dir/log/munge" --seed-file="$dir/munge.seed"
    export SLURM_CONF=$dir/slurm.conf
    slurmctld
    slurmd -N n1
    slurmd -N n2
    echo "export SLURM_CONF=$SLURM_CONF";;
  stop)
    export SLURM_CONF=$dir/slurm.conf
    scancel --user="$(id -un)"
    while [ -n "$(squeue --noheader)" ]; do sleep 0.5; done
    for pid in "$dir"/slurmd.*.pid "$dir"/slurmctld.pid "$dir"/munge.pid; do
      kill "$(cat "$pid")"
    done;;
esac
