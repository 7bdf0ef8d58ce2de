"""Show, follow and cancel the jobs of this project on a cluster.

runs/*/job.json, Slurm  ->  the terminal

    python -m sft.cluster.cli status --cluster NAME              every run submitted there, with its state
    python -m sft.cluster.cli logs --cluster NAME [--run KEY]    the log of the newest job, until it ends
    python -m sft.cluster.cli cancel --cluster NAME [--run KEY]  cancel the active job

These commands record nothing. The stage's own command (`make train CLUSTER=NAME`) records how a job ended.
"""

from pathlib import Path

from sft.cli import InputError, echo, make_parser, run_or_exit
from sft.cluster import jobs, slurm
from sft.cluster.cluster_file import Cluster, read_cluster_file
from sft.files import project_root


def jobs_on(cluster: str, key: str = "") -> list[jobs.Job]:
    """Return the last job on a cluster of each run whose name begins with `key`, newest job last."""
    runs = sorted(path.parent for path in (project_root() / "runs").glob(f"{key}*/job.json"))
    listed = [job for run in runs if (job := jobs.last_job(run)) and job.cluster == cluster]
    return sorted(listed, key=lambda job: int(job.id))


def print_status(listed: list[jobs.Job], cluster: Cluster) -> None:
    """Print a line per job: run, stage, job, state, steps."""
    for job in listed:
        outcome = jobs.outcome(job.run)
        state = f"ended: {outcome}" if outcome else str(slurm.state(cluster, job.id, job.name) or "not known to Slurm")
        steps = jobs.steps_done(job.run)
        echo(f"{job.run.name}  {job.stage}  job {job.id}  {state}" + (f"  step {steps}" if steps else ""))
    if not listed:
        echo("no run of this project was submitted there")


def newest(listed: list[jobs.Job], name: str) -> jobs.Job:
    """Return the newest job. Raises InputError: there is none."""
    if not listed:
        raise InputError(f"CLUSTER={name}: no such run was submitted there. To list runs: make status CLUSTER={name}")
    return listed[-1]


def the_active_job(listed: list[jobs.Job], name: str) -> jobs.Job:
    """Return the one active job. Raises InputError: there is none, or several."""
    active = [job for job in listed if jobs.active_job(job.run)]
    if not active:
        raise InputError(f"CLUSTER={name}: no active job")
    if len(active) > 1:
        names = ", ".join(f"{job.run.name} (job {job.id})" for job in active)
        raise InputError(
            f"CLUSTER={name}: {len(active)} active jobs: {names}. "
            f"Choose one: make cancel CLUSTER={name} RUN=<first digits of its name>"
        )
    return active[0]


def run_command(command: str, name: str, key: str) -> None:
    """Run one of status, logs and cancel."""
    cluster, listed = read_cluster_file(name), jobs_on(name, key)
    if command == "status":
        print_status(listed, cluster)
    elif command == "logs":
        jobs.follow(newest(listed, name), cluster)
    else:
        job = the_active_job(listed, name)
        slurm.cancel(cluster, job.id)
        echo(f"{job}: cancelled. Its checkpoints and logs stay in {Path('runs', job.run.name)}")


def main() -> None:
    """Parse the command line and run the command."""
    parser = make_parser(__name__, __doc__)
    parser.add_argument("command", choices=["status", "logs", "cancel"])
    parser.add_argument("--cluster", required=True, metavar="NAME", help="a cluster file: slurm/clusters/NAME.yaml")
    parser.add_argument("--run", default="", metavar="KEY", help="the first digits of a run's name in runs/")
    args = parser.parse_args()
    run_or_exit(lambda: run_command(args.command, args.cluster, args.run))


if __name__ == "__main__":
    main()
