#!/usr/bin/env bash
# A real Slurm on this machine: one controller and two nodes, for trying `make train CLUSTER=loopback` and for tests.
#
#   slurm/loopback.sh up      packages if missing (requirements/debian.txt), daemons; milliseconds when it is up
#   slurm/loopback.sh down    cancel its jobs, end its daemons by their pids
#   slurm/loopback.sh purge   down, and remove the state folder
#
# All it writes is in one folder (SFT_SLURM, default runs/slurm); it listens on loopback only, from SFT_SLURM_PORT.
# Needs root: each node gets its own host name (unshare). Nodes claim 8 CPUs, and 8 GPUs, which are /dev/null.
# Where the machine has memory control groups of version 1, a job that takes more than it asked for is ended by them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

state=$(readlink -m "${SFT_SLURM:-runs/slurm}")
port=${SFT_SLURM_PORT:-16817}
nodes=(n1 n2)
cpus=8 gpus=8 memory_mb=800000 # claims, that none of the programs here comes near
export SLURM_CONF=$state/etc/slurm.conf

say() { echo "slurm: $*" >&2; }
fail() {
    say "error: $*"
    exit 1
}

# A pid file can outlive its process, and another process can have its number.
alive() { [[ -s "$state/run/$1.pid" ]] && grep -qs "^${1%%-*}" "/proc/$(<"$state/run/$1.pid")/comm"; }

within() { # SECONDS COMMAND…
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
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A requeued job starts when its old credential has expired: 120 s by default.
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
        # --force: the state folder may be in a home that others may not enter; nobody else is to use this cluster.
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
        say "already up ($state)"
        return
    fi
    [[ $EUID == 0 ]] || fail "needs root: each node gets a host name of its own. sudo make slurm-up"
    unshare --mount --uts true || fail "this machine does not allow host names of one's own (unshare --mount --uts)"
    write_configuration
    start_daemons
    within 10 timeout 5 scontrol ping || fail "the controller did not start: $(tail -n 3 "$state/log/slurmctld.log")"
    local node
    for node in "${nodes[@]}"; do scontrol update nodename="$node" state=resume 2>/dev/null || true; done
    within 90 all_idle || fail "nodes did not come up; logs in $state/log"
    # A resumed node is "idle" before it has registered: a step on both of them proves it.
    timeout 60 srun -Q -N"${#nodes[@]}" -t1 true || fail "a step on both nodes did not run; logs in $state/log"
    say "up: ${nodes[*]} ($state)"
}

end() { # PID-FILE-NAME…: all are told at once, since a slurmd takes 4 s
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

# Steps of this cluster that outlived their node's daemon, as where the controller was lost before they ended.
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
    end "${nodes[@]/#/slurmd-}"
    end slurmctld munged
    local step
    for step in $(orphans); do kill -KILL "$step" 2>/dev/null || true; done
    say "down"
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
