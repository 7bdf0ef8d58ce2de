"""deliver: tell MLflow what waits for it, after a server was away, or when another store is to have the runs.

runs/*/mlflow/outbox.jsonl  ->  the store that MLFLOW_TRACKING_URI names, else runs/mlflow.db

Attempts whose process on this machine is gone without a word are ended as KILLED. Told twice, nothing changes.
Ends with status 0 where nothing waits any more.
"""

from sft.command import InputError, guard, parser_of, say
from sft.files import project_root
from sft.run import tracking
from sft.run.outbox import Outbox, end_dead_attempts


def main() -> None:
    """Tell the store of every run.

    Raises:  InputError: the store refuses, or does not answer.
    """
    folders = sorted(path.parents[1] for path in (project_root() / "runs").glob("*/mlflow/outbox.jsonl"))
    for run in folders:
        for attempt in end_dead_attempts(Outbox(run)):
            say(f"runs/{run.name}: attempt {attempt} is gone without a word: KILLED")
        before = Outbox(run).waiting(tracking.store_name())
        told = tracking.deliver(run)
        say(f"runs/{run.name}: {before - told.waiting} told, {told.waiting} wait, run {told.run_id}")
        if told.reason:
            raise InputError(told.reason)
    say(f"{tracking.store_name()} has been told all of {len(folders)} runs")


if __name__ == "__main__":
    parser_of(__name__, __doc__).parse_args()
    guard("deliver", main)
