# shellcheck shell=bash
# The start of an attempt, which the scripts of jobs source first. Variables: see train.sbatch.
#
# Argument: the script's name, for `log`. Sets `restarts` and `logs`, the folder of this attempt, to which logs/latest then points.
restarts=${SLURM_RESTART_COUNT:-0}
logs=$SFT_RUN/logs/$SLURM_JOB_ID-$restarts
script=$1
log() { echo "$script: $*"; }

rm -rf "$logs" # of an earlier job with this number: a new cluster counts from 1
mkdir -p "$logs"
ln -sfn "$SLURM_JOB_ID-$restarts" "$SFT_RUN/logs/latest"
rm -f "$SFT_RUN/complete"
log "job $SLURM_JOB_ID, attempt $((restarts + 1)), run ${SFT_RUN##*/}, nodes $SLURM_JOB_NODELIST, code $SFT_CODE"

# In the grace time of a preemption the steps get SIGTERM. Slurm ends that time: it requeues the job, or not. A script that
# ends before leaves a failed job.
await_preemption() {
    [[ ! "$(timeout 10 scontrol show job "$SLURM_JOB_ID")" =~ JobState=RUNNING.*PreemptTime=[1-9] ]] || sleep infinity
}

# Slurm requeues after preemption and node failure without limit. train.sbatch sets its traps before: they record the end.
end_if_requeued_too_often() {
    ((restarts > SFT_REQUEUES)) || return 0
    log "error: requeued $restarts times, the cluster file allows $SFT_REQUEUES (requeues)"
    exit 1
}
