"""The MLflow run of a training: its data, params, code and packages, and each attempt to train it.

begin_attempt()  ->  entries in the run's journal (sft.tracking.journal), synced to the server
"""

import os
from pathlib import Path
from typing import Any

from sft.cli import InputError
from sft.files import project_root
from sft.hashing import file_digest, folder_digest
from sft.lineage.key import Lineage
from sft.lineage.record import git_state, records, sources
from sft.params.recorded import recorded_data_params
from sft.tracking import data_run, journal, sync

# Tag of an attempt -> the environment variable that holds it.
TAGS_FROM_ENVIRONMENT = {"dvc.experiment": "DVC_EXP_NAME", "sweep": "SFT_SWEEP"}


def begin_attempt(lineage: Lineage, metadata: dict[str, Any], run: Path, packed: Path) -> None:
    """Log a new attempt at the run in a folder, after its packed data and all that determines its model.

    Raises:  InputError: the server refuses the entries; the attempt is logged as failed.
    """
    run_journal = open_run(lineage, metadata, run, packed)
    try:
        sync.check_server(run)
    except InputError:
        run_journal.add("end", attempt=max(run_journal.attempts()), status=journal.FAILED)
        raise


def open_run(lineage: Lineage, metadata: dict[str, Any], run: Path, packed: Path) -> journal.Journal:
    """Return the journal of a run in which data, run and attempt are logged."""
    root, project = Path.cwd(), project_root()
    packed_set = journal.Dataset(
        "packed", lineage.data, (project / packed).as_uri(), "training", {"pack_size": str(metadata["pack_size"])}
    )
    datasets = [packed_set]
    for name, source in sources(root).items():
        prepared = Path("data/prepared", name)
        digest = folder_digest(prepared) if prepared.is_dir() else lineage.data
        described = {key: str(value) for key, value in source.items() if isinstance(value, str | int)}
        datasets.append(journal.Dataset(name, digest, (project / prepared).as_uri(), "source", described))
    sampled, data_params = metadata["sampled"], recorded_data_params()
    journal.add_data(
        run,
        lineage.data,
        data_params,
        data_run.counts(root),
        data_run.data_sets(root, packed_set),
        records(root, data_run.RECORDS),
        sampled=sampled,
    )
    return journal.open_run(
        run, {**lineage.determining(), **data_params}, attempt_tags(metadata), datasets, sampled=sampled
    )


def attempt_tags(metadata: dict[str, Any]) -> dict[str, str]:
    """Return the tags of an attempt: commit, lock, cluster, and the DVC experiment or sweep that it belongs to."""
    commit, dirty = git_state(Path.cwd())
    lock = Path("dvc.lock")
    return {
        "git.commit": str(commit),
        "git.dirty": str(dirty).lower(),
        "mlflow.source.git.commit": str(commit),
        "dvc.lock.sha256": file_digest(lock) if lock.exists() else "none",
        "data.sampled": str(metadata["sampled"]).lower(),
        "cluster": os.environ.get("CLUSTER") or journal.LOCAL,
        **{tag: os.environ[name] for tag, name in TAGS_FROM_ENVIRONMENT.items() if os.environ.get(name)},
    }
