# shellcheck shell=bash
# What the scripts of jobs source.
#
# In the grace time of a preemption the steps get SIGTERM. Slurm ends that time: it requeues the job, or not. A script that
# ends before leaves a failed job.
await_preemption() {
    [[ ! "$(timeout 10 scontrol show job "$SLURM_JOB_ID")" =~ JobState=RUNNING.*PreemptTime=[1-9] ]] || sleep infinity
}
