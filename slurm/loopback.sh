#!/usr/bin/env bash
# Run a real Slurm on this machine: one controller and two nodes, to try `make train CLUSTER=loopback` and for tests.
#
#   slurm/loopback.sh up      install missing packages (requirements/debian.txt), start the daemons; does nothing if up
#   slurm/loopback.sh down    cancel its jobs, stop its daemons by pid
#   slurm/loopback.sh purge   down, then remove the state folder
#
# It writes to one folder only (SFT_SLURM, default runs/slurm) and listens on loopback only, from port SFT_SLURM_PORT.
# Needs root, because each node gets its own host name (unshare). Each node claims 8 CPUs and 8 GPUs (/dev/null).
# If the machine has version 1 memory control groups, they end a job that uses more memory than it requested.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

state=$(readlink -m "${SFT_SLURM:-runs/slurm}")
port=${SFT_SLURM_PORT:-16817}
nodes=(n1 n2)
cpus=8 gpus=8 memory_mb=800000 # claimed, not checked
export SLURM_CONF=$state/etc/slurm.conf

log() { echo "slurm: $*" >&2; }
fail() {
    log "error: $*"
    exit 1
}

# A pid file can outlive its process, and another process can reuse the pid.
alive() { [[ -s "$state/run/$1.pid" ]] && grep -qs "^${1%%-*}" "/proc/$(<"$state/run/$1.pid")/comm"; }

within() { # SECONDS COMMAND...
    local end=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < end)) || return 1
        sleep 0.1
    done
}

write_configuration() {
    mkdir -p "$state"/{etc,munge,ctld,spool,log,run,dev}
    chmod 711 "$state/munge"
    [[ -s "$state/munge/key" ]] || (umask 077 && head -c 1024 /dev/urandom >"$state/munge/key")
    local n
    for ((n = 0; n < gpus; n++)); do ln -sfn /dev/null "$state/dev/nvidia$n"; done
    {
        echo "127.0.0.1 localhost $(hostname -s)"
        for n in "${!nodes[@]}"; do echo "127.0.0.$((n + 2)) ${nodes[n]}"; done
    } >"$state/etc/hosts"
    echo "NodeName=n[1-2] Name=gpu File=$state/dev/nvidia[0-$((gpus - 1))]" >"$state/etc/gres.conf"
    local tasks=task/none
    if [[ -d /sys/fs/cgroup/memory ]]; then
        tasks=task/cgroup
        printf '%s\n' CgroupPlugin=cgroup/v1 ConstrainRAMSpace=yes >"$state/etc/cgroup.conf"
    fi
    {
        cat <<CONF
ClusterName=loopback
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=$port
# Two clusters on one machine have other job ids: a job's control group is named by its id.
FirstJobId=$port
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A requeued job waits until its old credential expires: 120 s by default.
AuthInfo=socket=$state/munge/socket,cred_expire=5
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=$tasks
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerNode=50000
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1,bf_resolution=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
SlurmdParameters=config_overrides
StateSaveLocation=$state/ctld
SlurmdSpoolDir=$state/spool/%n
SlurmctldPidFile=$state/run/slurmctld.pid
SlurmdPidFile=$state/run/slurmd-%n.pid
SlurmctldLogFile=$state/log/slurmctld.log
SlurmdLogFile=$state/log/slurmd-%n.log
KillWait=5
MinJobAge=3600
GresTypes=gpu
PartitionName=main Nodes=n[1-2] Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=0
PartitionName=urgent Nodes=n[1-2] MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
CONF
        for n in "${!nodes[@]}"; do
            echo "NodeName=${nodes[n]} NodeHostname=${nodes[n]} NodeAddr=127.0.0.$((n + 2)) Port=$((port + 101 + n))" \
                "CPUs=$cpus Sockets=1 CoresPerSocket=$cpus ThreadsPerCore=1 RealMemory=$memory_mb Gres=gpu:$gpus State=UNKNOWN"
        done
    } >"$SLURM_CONF"
}

start_daemons() {
    local node
    alive munged || {
        rm -f "$state"/munge/socket*
        # --force: the state folder may be in a private home folder; only this user needs it.
        munged --force --key-file="$state/munge/key" --socket="$state/munge/socket" --pid-file="$state/run/munged.pid" \
            --log-file="$state/log/munged.log" --seed-file="$state/munge/seed" --num-threads=2 2>>"$state/log/munged.log"
    }
    alive slurmctld || slurmctld
    for node in "${nodes[@]}"; do
        mkdir -p "$state/spool/$node"
        # shellcheck disable=SC2016 # $1 and $2 are the inner shell's
        alive "slurmd-$node" || unshare --mount --uts sh -c \
            'hostname "$1" && mount --bind "$2" /etc/hosts && exec slurmd -N "$1"' sh "$node" "$state/etc/hosts"
    done
}

all_alive() {
    local name
    for name in munged slurmctld "${nodes[@]/#/slurmd-}"; do alive "$name" || return 1; done
}

all_idle() { [[ "$(sinfo -h -N -p main -o '%T' | grep -cE '^(idle|mixed|allocated)$')" == "${#nodes[@]}" ]]; }

up() {
    requirements/debian.sh
    if all_alive && timeout 5 scontrol ping >/dev/null && all_idle; then
        log "already up ($state)"
        return
    fi
    [[ $EUID == 0 ]] || fail "needs root, because each node gets its own host name: sudo make slurm-up"
    unshare --mount --uts true || fail "this machine does not allow private host names (unshare --mount --uts)"
    write_configuration
    start_daemons
    within 10 timeout 5 scontrol ping || fail "the controller did not start: $(tail -n 3 "$state/log/slurmctld.log")"
    local node
    for node in "${nodes[@]}"; do scontrol update nodename="$node" state=resume 2>/dev/null || true; done
    within 90 all_idle || fail "nodes did not come up; logs in $state/log"
    # A resumed node reports "idle" before it has registered, so run a step on both.
    timeout 60 srun -Q -N"${#nodes[@]}" -t1 true || fail "a step on both nodes did not run; logs in $state/log"
    log "up: ${nodes[*]} ($state)"
}

stop() { # PID-FILE-NAME...: signals all at once, because a slurmd takes 4 s
    local name pids=()
    for name in "$@"; do
        ! alive "$name" || pids+=("$(<"$state/run/$name.pid")")
    done
    ((${#pids[@]})) || return 0
    kill "${pids[@]}" 2>/dev/null || true
    within 15 gone "${pids[@]}" || kill -KILL "${pids[@]}" 2>/dev/null || true
}

no_jobs() { [[ -z "$(timeout 5 squeue -h)" ]]; }

gone() { ! kill -0 "$@" 2>/dev/null; }

# Steps of this cluster that outlived their node's daemon, for example after the controller died.
orphans() {
    local process
    for process in /proc/[0-9]*; do
        [[ "$(cat "$process/comm" 2>/dev/null)" != slurmstepd ]] ||
            ! tr '\0' '\n' <"$process/environ" 2>/dev/null | grep -qxF "SLURM_CONF=$SLURM_CONF" || echo "${process#/proc/}"
    done
}

down() {
    if alive slurmctld; then
        timeout 10 scancel --state=PENDING --user=root 2>/dev/null || true
        timeout 10 scancel --full --signal=KILL --user=root 2>/dev/null || true
        timeout 10 scancel --user=root 2>/dev/null || true
        within 15 no_jobs || true
    fi
    stop "${nodes[@]/#/slurmd-}"
    stop slurmctld munged
    local step
    for step in $(orphans); do kill -KILL "$step" 2>/dev/null || true; done
    log "down"
}

case "${1:-}" in
up) up ;;
down) down ;;
purge)
    down
    rm -rf "$state"
    ;;
*) fail "usage: slurm/loopback.sh up | down | purge" ;;
esac
