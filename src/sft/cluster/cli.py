"""Show, follow and cancel the jobs of this project on a cluster.

runs/*/job.json, Slurm  ->  the terminal

    python -m sft.cluster.cli status --cluster NAME [--json]     every run submitted there, with its state
    python -m sft.cluster.cli logs --cluster NAME [--run KEY]    the log of the newest job, until it ends
    python -m sft.cluster.cli cancel --cluster NAME [--run KEY]  cancel the active job

These commands record nothing. The stage's own command (`make train CLUSTER=NAME`) records how a job ended.
"""

from dataclasses import dataclass
from pathlib import Path

from sft.cli import InputError, add_json_option, echo, make_parser, print_facts, run_or_exit
from sft.cluster import jobs, slurm
from sft.cluster.cluster_file import Cluster, read_cluster_file
from sft.files import project_root
from sft.tracking.journal import Journal
from sft.training.steps import last_by_step


def jobs_on(cluster: str, key: str = "") -> list[jobs.Job]:
    """Return the last job on a cluster of each run whose name begins with `key`, newest job last."""
    runs = sorted(path.parent for path in (project_root() / "runs").glob(f"{key}*/job.json"))
    listed = [job for run in runs if (job := jobs.last_job(run)) and job.cluster == cluster]
    return sorted(listed, key=lambda job: int(job.id))


@dataclass(frozen=True)
class Status:
    """The last job of a run."""

    run: str
    """Name of its folder in runs/: the lineage key."""
    stage: str
    job: str
    """Its number in Slurm."""
    outcome: str | None
    """How it ended: complete, or Slurm's state. None: not known yet."""
    state: str | None
    """What Slurm says of a job whose outcome is not known. None: Slurm does not know it."""
    steps: int | None
    """Training steps done."""


def status_of(job: jobs.Job, cluster: Cluster) -> Status:
    """Return the status of a job."""
    outcome = jobs.outcome(job.run)
    state = None if outcome else slurm.state(cluster, job.id, job.name)
    return Status(job.run.name, job.stage, job.id, outcome, str(state) if state else None, steps_done(job.run))


def steps_done(run: Path) -> int:
    """Return how many training steps a run has logged, each counted once."""
    return len(last_by_step(Journal(run).entries("step"), "step"))


def show_status(listed: list[Status]) -> None:
    """Print a line per job: run, stage, job, state, steps."""
    for job in listed:
        state = f"ended: {job.outcome}" if job.outcome else job.state or "not known to Slurm"
        echo(f"{job.run}  {job.stage}  job {job.job}  {state}" + (f"  step {job.steps}" if job.steps else ""))
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


def run_command(command: str, name: str, key: str, *, as_json: bool = False) -> None:
    """Run one of status, logs and cancel."""
    cluster, listed = read_cluster_file(name), jobs_on(name, key)
    if command == "status":
        print_facts(lambda: [status_of(job, cluster) for job in listed], show_status, as_json=as_json)
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
    add_json_option(parser)
    args = parser.parse_args()
    if args.json and args.command != "status":
        parser.error(f"--json: {args.command} prints no facts, status does")
    run_or_exit(lambda: run_command(args.command, args.cluster, args.run, as_json=args.json))


if __name__ == "__main__":
    main()
