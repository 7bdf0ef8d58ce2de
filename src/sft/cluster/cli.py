"""queue: the jobs of this project on a cluster, for people: status, logs, cancel.

runs/*/job.json, Slurm  ->  the terminal

    python -m sft.cluster.cli status --cluster NAME           every run that went there, and what became of it
    python -m sft.cluster.cli logs --cluster NAME [--run KEY]    the newest job's log, to its end
    python -m sft.cluster.cli cancel --cluster NAME [--run KEY]  the living job

They change no record: the stage's own command (`make train CLUSTER=…`) collects what became of a job.
"""

from pathlib import Path

from sft.cli import InputError, echo, make_parser, run_or_exit
from sft.cluster import jobs, slurm
from sft.cluster.cluster_file import Cluster, read_cluster_file
from sft.files import project_root


def jobs_on(cluster: str, key: str = "") -> list[jobs.Job]:
    """Return the last job of each run on a cluster whose name begins with `key`, the newest job last."""
    runs = sorted(path.parent for path in (project_root() / "runs").glob(f"{key}*/job.json"))
    found = [job for run in runs if (job := jobs.last(run)) and job.cluster == cluster]
    return sorted(found, key=lambda job: int(job.id))


def status(found: list[jobs.Job], cluster: Cluster) -> None:
    """List the jobs: run, stage, job, state, how far."""
    for job in found:
        fate = jobs.fate(job.run)
        state = f"ended: {fate}" if fate else str(slurm.state(cluster, job.id, job.name) or "not known to Slurm")
        steps = jobs.steps_done(job.run)
        echo(f"{job.run.name}  {job.stage}  job {job.id}  {state}" + (f"  step {steps}" if steps else ""))
    if not found:
        echo("no run went there from here")


def newest(found: list[jobs.Job], name: str) -> jobs.Job:
    """Return the newest job. Raises InputError: there is none."""
    if not found:
        raise InputError(f"no run of that name went to {name} from here: make status CLUSTER={name} lists them")
    return found[-1]


def the_living(found: list[jobs.Job], name: str) -> jobs.Job:
    """Return the one job that may still run. Raises InputError: there is none, or several."""
    living = [job for job in found if jobs.living(job.run)]
    if len(living) != 1:
        listed = ", ".join(f"{job.run.name} (job {job.id})" for job in living) or "none"
        which = f". Say which: make cancel CLUSTER={name} RUN=<the first digits of its name>" if living else ""
        raise InputError(f"living jobs on {name}: {listed}{which}")
    return living[0]


def do(command: str, name: str, key: str) -> None:
    """Do what is asked."""
    cluster, found = read_cluster_file(name), jobs_on(name, key)
    if command == "status":
        status(found, cluster)
    elif command == "logs":
        jobs.follow(newest(found, name), cluster)
    else:
        job = the_living(found, name)
        slurm.cancel(cluster, job.id)
        echo(f"{job}: cancelled; checkpoints and logs are kept in {Path('runs', job.run.name)}")


def main() -> None:
    """Read the command and do it."""
    parser = make_parser(__name__, __doc__)
    parser.add_argument("command", choices=["status", "logs", "cancel"])
    parser.add_argument("--cluster", required=True, metavar="NAME", help="a profile: slurm/clusters/NAME.yaml")
    parser.add_argument("--run", default="", metavar="KEY", help="a run: the first digits of its name in runs/")
    asked = parser.parse_args()
    run_or_exit(lambda: do(asked.command, asked.cluster, asked.run))


if __name__ == "__main__":
    main()
