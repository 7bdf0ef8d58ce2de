"""The train stage as a job of a cluster: what it reads, and what DRY_RUN=1 shows of it."""

import json
from collections.abc import Callable
from dataclasses import replace

from sft.cluster import jobs
from sft.cluster.cluster_file import Cluster
from sft.files import flatten, project_root
from sft.params.check import Params
from sft.planning import preflight
from sft.training.launch import Run


def copy_inputs(run: Run) -> None:
    """Copy what the job reads into the run's folder."""
    inputs = run.folder / "inputs"
    for folder in (run.base, run.packed):
        jobs.publish_copy(folder, inputs / folder.name)
    replace(run, base=inputs / run.base.name, packed=inputs / run.packed.name).write()


def show(params: Params, cluster: Cluster, key: str | None, check_inputs: Callable[[], object]) -> None:
    """Print the job that would be submitted, every value that Bridge would train with, the estimate and all checks.

    `key` is the lineage key; None before data and model are there: then the plan of params.yaml stands in for the
    packs. Raises InputError: a check fails.
    """
    on_gpu, has_inputs = cluster.gpus > 0, key is not None
    gpu = None
    if on_gpu:
        gpu = preflight.gpu_of(cluster.gpu) if cluster.gpu else preflight.Gpu("GPU", None, 0.0)

    def resolve() -> str:
        values, relaxed = preflight.resolve(params, cluster.ranks, on_gpu=on_gpu, has_inputs=has_inputs)
        lines = [f"  {name}: {json.dumps(value)}" for name, value in flatten(values).items()]
        not_validated = f"; not validated on this machine: {', '.join(relaxed)}" if relaxed else ""
        return f"ok: {len(lines)} values{not_validated}\n" + "\n".join(lines)

    def estimate() -> str:
        report = preflight.examine(params, cluster.ranks, gpu, has_inputs=has_inputs)
        return "\n".join(["ok", *preflight.report_lines(report)])

    jobs.print_verdict(
        [
            *jobs.dry_run(project_root() / "runs" / (key or "not-known-yet"), "train", cluster),
            jobs.verdict("Megatron-Bridge", resolve),
            jobs.verdict("estimate and checks", estimate),
            jobs.verdict("data and model", lambda: check_inputs() and None),
        ]
    )
