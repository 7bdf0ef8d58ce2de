"""The estimate of a training before it starts: layout, memory, time, disk, and every check.

    make estimate                                          params.yaml on this machine
    make estimate PROFILE=nemotron3-nano NODES=2 GPUS=8    a profile on 2 x 8 GPUs (GPU=H100, GPU=H200, GPU=96e9 bytes)
    make estimate CLUSTER=mine                             params.yaml on the GPUs of slurm/clusters/mine.yaml

--json prints JSON.

The shapes of the model come from models/base/config.json, or from profiles/models/<its name>/config.json if the model
is not downloaded. A dry run of a job shows the same, and every value that Bridge would train with (`resolve`).
"""

import dataclasses
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sft.cli import InputError, add_json_option, at_least, echo, make_parser, print_facts, run_or_exit
from sft.cluster.cluster_file import read_cluster_file
from sft.files import project_root
from sft.params.check import Params, read
from sft.params.read import PARAMS, params_file
from sft.params.training import TrainParams
from sft.planning import checks, estimate
from sft.planning.estimate import GPUS, MEMORY_ERROR, RESERVE
from sft.planning.facts import Facts, count_packs, gather_facts

BASE = Path("models/base")
GPU = "H100"  # of an estimate, if none is named
PACKED = Path("data/packed")
KNOWN_MODELS = Path("profiles/models")
UNKNOWN = "unknown: there is no estimate for latent attention (MLA); nothing is refused for want of memory"


@dataclass(frozen=True)
class Gpu:
    """What computes: a GPU, or this machine's CPU."""

    name: str
    memory: float | None
    """Bytes. None: a CPU, or not known."""
    flops: float
    """Operations a second, dense, in the number format of the training. 0: not known."""


@dataclass(frozen=True)
class Preflight:
    """The estimate of a training and the results of all checks."""

    params: TrainParams
    facts: Facts
    estimate: estimate.Estimate | None
    """None: there is no estimate for this architecture (MLA)."""
    results: list[checks.Result]
    gpu: Gpu
    model: Path
    """Folder of the config.json that gave the shapes."""


def examine(params: Params, ranks: int, gpu: Gpu | None, *, has_inputs: bool = True) -> Preflight:
    """Estimate a training and run all checks.

    Args:
        params: All of params.yaml.
        ranks: Processes that train.
        gpu: What each rank trains on; None: this machine's CPU.
        has_inputs: Whether data/packed and models/base, if there, belong to these params; those of a profile do not.

    Raises:  InputError: the shapes of the model are not known here.
    """
    from sft.training import config

    training = params.training
    model = model_folder(params, has_inputs)
    with config.quiet():
        geometry = config.geometry_of(config.model_of(model, weights=False, on_gpu=gpu is not None)[1])
    known = Facts(
        ranks=ranks,
        on_gpu=gpu is not None,
        geometry=geometry,
        start_geometry=None if training.checkpoint.pretrained_checkpoint else geometry,
        gpu_memory=gpu.memory if gpu else None,
    )
    nowhere = Path("none")
    packed, base = (PACKED, BASE) if has_inputs else (nowhere, nowhere)
    facts = gather_facts(known, packed=packed, base=base, run=project_root() / "runs")
    if facts.training_packs:
        training = training.with_steps(facts.training_packs)
    if facts.pack_size is None:  # the pack stage has not run: take what it is going to do
        facts = dataclasses.replace(facts, pack_size=params.pack.pack_size, pad_segments_to=params.pack.pad_segments_to)
    return Preflight(
        params=training,
        facts=facts,
        estimate=None
        if geometry is None
        else estimate.estimate(geometry, training, ranks, facts.pack_size or 1, on_gpu=gpu is not None),
        results=checks.run_checks(training, facts),
        gpu=gpu or Gpu("CPU", None, 0.0),
        model=model,
    )


def model_folder(params: Params, has_inputs: bool) -> Path:
    """Return the folder whose config.json has the shapes of the model. Raises InputError: there is none."""
    name = params.fetch.model.address.partition("://")[2].removeprefix("models/").split("/")
    known = KNOWN_MODELS / (name[1] if len(name) > 1 else name[0])
    for folder in ([BASE] if has_inputs else []) + [known]:
        if (folder / "config.json").is_file():
            return folder
    raise InputError(
        f"fetch.model.uri: {params.fetch.model.uri}: its shapes are not known here. Run make fetch, or put the model's "
        f"config.json into {known}/."
    )


def gpu_of(name: str) -> Gpu:
    """Return a GPU by its name, or one with as many bytes. Raises InputError."""
    if name in GPUS:
        return Gpu(name, *GPUS[name])
    try:
        return Gpu(f"GPU with {float(name) / 1e9:.0f} GB", float(name), GPUS["H100"][1])
    except ValueError as error:
        raise InputError(f"GPU={name}: expected one of {', '.join(GPUS)}, or its bytes, as in 96e9") from error


def values(report: Preflight) -> dict[str, Any]:
    """Return what the report says and --json prints, in parameters, tokens, bytes and seconds."""
    needs, facts, train, gpu = report.estimate, report.facts, report.params.train, report.gpu
    layout = estimate.layout_of(report.params.model, facts.ranks)
    steps, epochs = train.train_iters, train.epochs
    if steps and facts.training_packs:
        epochs = steps * train.global_batch_size / facts.training_packs
    tokens = train.global_batch_size * (facts.pack_size or 1)  # at most: of full packs
    step = None
    if needs and gpu.flops:
        on_cpu = (needs.flops_per_step / gpu.flops, needs.flops_per_step / gpu.flops * 2)
        least, most = needs.seconds_per_step(gpu.flops, facts.ranks) if facts.on_gpu else on_cpu
        step = {"least": least, "most": most}
    return {
        "model": {
            "shapes_from": report.model,
            "parameters": needs and needs.parameters,
            "active_parameters": needs and needs.active,
            "trained_parameters": needs and needs.trained,
        },
        "gpu": gpu,
        "layout": {**dataclasses.asdict(layout), "data": layout.data},
        "step": {
            "packs": train.global_batch_size,
            "pack_size": facts.pack_size,
            "tokens": tokens,
            "flops": needs and needs.flops_per_step,
        },
        "run": {
            "steps": steps,
            "tokens": steps and tokens * steps,
            "training_packs": facts.training_packs,
            "epochs": epochs,
        },
        "memory": needs
        and {
            "total": needs.memory.total,
            **dataclasses.asdict(needs.memory),
            "error": MEMORY_ERROR,
            "fits": needs.memory.total <= gpu.memory * (1 - RESERVE) if gpu.memory else None,
        },
        "time": step
        and {"step_seconds": step, "run_seconds": steps and {name: each * steps for name, each in step.items()}},
        "disk": needs
        and {
            "total": needs.disk,
            "checkpoints": needs.checkpoints,
            "checkpoint": needs.checkpoint,
            "imported_model": needs.imported,
            "final_model": needs.exported,
            "free": facts.free_disk,
        },
        "checks": [
            {
                "check": result.check,
                "state": "FAILED" if result.failed else "unknown" if result.message else "ok",
                "message": result.message or result.about,
            }
            for result in report.results
        ],
    }


def report_lines(report: Preflight) -> list[str]:
    """Return the whole report, line by line."""
    found = values(report)
    notes = [f"note       {line}" for line in checks.warnings(report.params, report.facts)]
    return [*layout_lines(report, found), *notes, "", *need_lines(report, found), "", *check_lines(found["checks"])]


def layout_lines(report: Preflight, found: dict[str, Any]) -> list[str]:
    """Return the lines about model, layout, step and run; `found`: the `values` of the report."""
    model, layout, step, run = (found[name] for name in ("model", "layout", "step", "run"))
    sizes = " x ".join(f"{name} {layout[name]}" for name in ("tensor", "pipeline", "context", "data"))
    sizes += f", experts over {layout['expert']}" if layout["expert"] > 1 else ""
    sizes += ", sequence parallel" if layout["sequence_parallel"] else ""
    rounds = step["packs"] / max(1, layout["data"] * report.params.train.micro_batch_size)
    counts = "parameters unknown"
    if report.estimate:
        counts = f"{model['parameters']:,} parameters, {model['active_parameters']:,} per token"
    lines = [f"model      {counts}; shapes from {report.model}"]
    if model["trained_parameters"] != model["parameters"]:
        lines.append(f"trained    {model['trained_parameters']:,} parameters of adapters")
    if run["steps"] is None:
        steps = f"{run['epochs']:g} epochs: their steps follow from the packs. Run: dvc repro pack"
    else:
        steps = f"{run['steps']:,} steps, at most {run['tokens']:,} tokens"
        if run["training_packs"]:
            steps += f", {run['epochs']:.2f} epochs of {run['training_packs']:,} packs"
    return [
        *lines,
        f"layout     {layout['ranks']} x {report.gpu.name}: {sizes}",
        f"step       {step['packs']} packs of at most {step['pack_size']:,} tokens = {step['tokens']:,}; {rounds:g} in "
        "turn on each data-parallel rank",
        f"run        {steps}",
    ]


def need_lines(report: Preflight, found: dict[str, Any]) -> list[str]:
    """Return the lines about memory, time and disk, each with its uncertainty; `found`: the `values` of the report."""
    memory, seconds, disk = found["memory"], found["time"], found["disk"]
    if report.estimate is None:
        return [f"{name:10} {UNKNOWN}" for name in ("memory", "time", "disk")]
    gpu, on_gpu = report.gpu, report.facts.on_gpu
    parts = ", ".join(f"{name} {size(memory[name])}" for name in dataclasses.asdict(report.estimate.memory))
    lines = [
        f"memory     {size(memory['total'])} on the {'GPU' if on_gpu else 'process'} that needs most: {parts}",
        f"           weights, gradients and optimizer are exact; the rest is within {MEMORY_ERROR:.0%} as measured on "
        "a CPU, not measured on a GPU",
    ]
    if gpu.memory:
        fits = "fits" if memory["fits"] else "DOES NOT FIT"
        reserve = f"{RESERVE:.0%} of it reserved for CUDA, NCCL and fragmentation"
        lines.append(f"           {fits} on {gpu.name}: {size(gpu.memory)}, {reserve}")
    if seconds:
        basis = f"at this CPU's {gpu.flops / 1e9:.0f} GFLOP/s, just measured, or half of it"
        if on_gpu:
            slow, fast = estimate.UTILIZATION
            basis = f"at {slow:.0%} to {fast:.0%} of {gpu.flops / 1e12:.0f} TFLOP/s, longer for small batches"
        step, run = (each and " to ".join(map(duration, each.values())) for each in seconds.values())
        whole = f", {run} in all" if run else ""
        lines.append(f"time       {step} a step{whole}, {basis}; without validations and checkpoints")
    free = "" if disk["free"] is None else f"; {size(disk['free'])} free at runs/"
    return [
        *lines,
        f"disk       {size(disk['total'])}: at most {disk['checkpoints']} checkpoints of {size(disk['checkpoint'])}, "
        f"the imported model {size(disk['imported_model'])} (importing takes as much memory), models/final "
        f"{size(disk['final_model'])}{free}",
    ]


def check_lines(results: list[dict[str, str]]) -> list[str]:
    """Return a line for each check, and the counts."""
    states = Counter(result["state"] for result in results)
    return [
        *(f"{result['state']:8} {result['check']:24} {result['message']}" for result in results),
        f"{states['ok']} ok, {states['unknown']} not known here, {states['FAILED']} failed",
    ]


def resolve(params: Params, ranks: int, *, on_gpu: bool, has_inputs: bool = True) -> tuple[dict[str, Any], list[str]]:
    """Return every value that Bridge would train with, validated by Bridge, and the names that it cannot validate here.

    Raises:  InputError: Bridge rejects a value, the recipe cannot be used, the model's shapes are not known here, or
             `train.epochs` is set and there are no packs.
    """
    from sft.training import config

    training = params.training
    if training.train.epochs is not None:
        packs = count_packs(PACKED / "training") if has_inputs else None
        if not packs:
            raise InputError("train.epochs: the steps follow from the packs. Run: dvc repro pack")
        training = training.with_steps(packs)
    # Bridge requires that the folder of the weights exists.
    with tempfile.TemporaryDirectory() as scratch, config.quiet():
        container = config.build(
            training,
            base=model_folder(params, has_inputs).absolute(),
            start=Path(scratch),
            packed=PACKED.absolute() if has_inputs else Path(scratch, "packed"),
            run=Path(scratch, "run"),
            pack_size=params.pack.pack_size,
            eval_iters=training.validation.eval_iters,
            on_gpu=on_gpu,
        )
        return config.resolve(container, ranks)


def size(number: float) -> str:
    """Return a number of bytes as text.

    >>> size(1_500_000_000), size(23e6), size(442e9)
    ('1.5 GB', '23 MB', '442 GB')
    """
    if number < 1e9:
        return f"{number / 1e6:.0f} MB"
    return f"{number / 1e9:.1f} GB" if number < 100e9 else f"{number / 1e9:,.0f} GB"


def duration(seconds: float) -> str:
    """Return a time as text.

    >>> duration(0.25), duration(90), duration(7200), duration(400_000)
    ('0.25 s', '90 s', '2.0 h', '4.6 days')
    """
    if seconds < 10:
        return f"{seconds:.2g} s"
    if seconds < 600:
        return f"{seconds:.0f} s"
    if seconds < 2 * 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 3 * 86400 else f"{seconds / 86400:.1f} days"


def cpu_flops() -> float:
    """Measure how many operations a second this CPU multiplies matrices with, in fp32."""
    import torch

    matrix, rounds = torch.ones(1024, 1024), 10
    matrix @ matrix
    began = time.perf_counter()
    for _ in range(rounds):
        matrix @ matrix
    return rounds * 2 * 1024**3 / (time.perf_counter() - began)


def estimate_training(
    profile: str | None, nodes: int, gpus: int | None, gpu_name: str | None, cluster_name: str | None
) -> Preflight:
    """Return the report for params.yaml or a profile."""
    import torch

    if cluster_name:
        cluster = read_cluster_file(cluster_name)
        nodes, gpus, gpu_name = cluster.nodes, cluster.gpus, cluster.gpu or gpu_name
        if not gpus:
            raise InputError(
                f"CLUSTER={cluster_name}: has no GPUs. See its dry run: make train DRY_RUN=1 CLUSTER={cluster_name}"
            )
    params = read(params_file(profile))
    is_applied = profile is None or (PARAMS.exists() and read(PARAMS) == params)
    if gpus is None:
        gpus = torch.cuda.device_count() or (8 if profile or gpu_name else 0)
    if gpu_name and not gpus:
        raise InputError(f"GPUS=0: the CPU has no GPU={gpu_name}. Leave one of them out.")
    report = examine(params, max(1, gpus) * nodes, gpu_of(gpu_name or GPU) if gpus else None, has_inputs=is_applied)
    if not gpus:
        report = dataclasses.replace(report, gpu=Gpu("CPU", None, cpu_flops()))
    return report


def show(report: Preflight) -> None:
    """Print the whole report."""
    for line in report_lines(report):
        echo(line.replace("[", r"\["))


if __name__ == "__main__":
    parser = make_parser(__name__, __doc__)
    parser.add_argument("--profile", metavar="NAME", help="a file of profiles/; default: params.yaml")
    parser.add_argument("--nodes", type=at_least(1), default=1, metavar="N")
    parser.add_argument("--gpus", type=at_least(0), metavar="N", help="GPUs of a node; 0: the CPU")
    parser.add_argument("--gpu", metavar="NAME", help=f"{', '.join(GPUS)}, or its memory in bytes; default: {GPU}")
    parser.add_argument("--cluster", metavar="NAME", help="nodes and GPUs of slurm/clusters/NAME.yaml")
    add_json_option(parser)
    options = parser.parse_args()
    asked = (options.profile, options.nodes, options.gpus, options.gpu, options.cluster)
    run_or_exit(lambda: print_facts(lambda: estimate_training(*asked), show, as_json=options.json, values=values))
