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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sft.cli import InputError, add_json_option, echo, make_parser, print_facts, run_or_exit
from sft.cluster.cluster_file import read_cluster_file
from sft.files import project_root
from sft.params.check import Params, read
from sft.params.read import PARAMS
from sft.params.training import TrainParams
from sft.planning import checks, estimate
from sft.planning.estimate import GPUS, MEMORY_ERROR, RESERVE

BASE = Path("models/base")
PACKED = Path("data/packed")
KNOWN_MODELS = Path("profiles/models")
UNKNOWN = "unknown: there is no estimate for latent attention (MLA); nothing is refused for want of memory"
MEMORY_PARTS = ("weights", "gradients", "optimizer", "activations", "logits")


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
    facts: checks.Facts
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
    facts = checks.gather_facts(
        packed=PACKED if has_inputs else Path("none"),
        base=BASE if has_inputs else Path("none"),
        run=project_root() / "runs",
        ranks=ranks,
        on_gpu=gpu is not None,
        geometry=geometry,
        start_geometry=None if training.checkpoint.pretrained_checkpoint else geometry,
        gpu_memory=gpu.memory if gpu else None,
    )
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


def report_lines(report: Preflight) -> list[str]:
    """Return the whole report, line by line."""
    warnings = [f"note       {line}" for line in checks.warnings(report.params, report.facts)]
    return [*layout_lines(report), *warnings, "", *need_lines(report), "", *check_lines(report.results)]


def layout_lines(report: Preflight) -> list[str]:
    """Return the lines about model, layout, step and run."""
    model, train, needs = report.params.model, report.params.train, report.estimate
    layout = estimate.layout_of(model, report.facts.ranks)
    sizes = f"tensor {layout.tensor} x pipeline {layout.pipeline} x context {layout.context} x data {layout.data}"
    if layout.expert > 1:
        sizes += f", experts over {layout.expert}"
    if model.sequence_parallel:
        sizes += ", sequence parallel"
    tokens = tokens_per_step(report)
    rounds = train.global_batch_size / max(1, layout.data * train.micro_batch_size)
    counts = f"{needs.parameters:,} parameters, {needs.active:,} per token" if needs else "parameters unknown"
    lines = [f"model      {counts}; shapes from {report.model}"]
    if needs and needs.trained != needs.parameters:
        lines.append(f"trained    {needs.trained:,} parameters of adapters")
    if train.train_iters is None:
        run = f"run        {train.epochs:g} epochs: their steps follow from the packs. Run: dvc repro pack"
    else:
        run = f"run        {train.train_iters:,} steps, at most {tokens * train.train_iters:,} tokens"
        if report.facts.training_packs:
            epochs = train.train_iters * train.global_batch_size / report.facts.training_packs
            run += f", {epochs:.2f} epochs of {report.facts.training_packs:,} packs"
    return [
        *lines,
        f"layout     {layout.ranks} x {report.gpu.name}: {sizes}",
        f"step       {train.global_batch_size} packs of at most {report.facts.pack_size:,} tokens = "
        f"{tokens:,}; {rounds:g} in turn on each data-parallel rank",
        run,
    ]


def need_lines(report: Preflight) -> list[str]:
    """Return the lines about memory, time and disk, each with its uncertainty."""
    needs, facts = report.estimate, report.facts
    if needs is None:
        return [f"memory     {UNKNOWN}", f"time       {UNKNOWN}", f"disk       {UNKNOWN}"]
    parts = ", ".join(f"{name} {size(getattr(needs.memory, name))}" for name in MEMORY_PARTS)
    lines = [
        f"memory     {size(needs.memory.total)} on the {'GPU' if facts.on_gpu else 'process'} that needs most: {parts}",
        f"           weights, gradients and optimizer are exact; the rest is within {MEMORY_ERROR:.0%} as measured on "
        "a CPU, not measured on a GPU",
    ]
    if report.gpu.memory:
        reserve = f"{RESERVE:.0%} of it reserved for CUDA, NCCL and fragmentation"
        lines.append(
            f"           {'fits' if fits(report) else 'DOES NOT FIT'} on {report.gpu.name}: "
            f"{size(report.gpu.memory)}, {reserve}"
        )
    if step := step_seconds(report):
        lines.append(time_line(report, *step))
    free = "" if facts.free_disk is None else f"; {size(facts.free_disk)} free at runs/"
    return [
        *lines,
        f"disk       {size(needs.disk)}: at most {needs.checkpoints} checkpoints of {size(needs.checkpoint)}, the "
        f"imported model {size(needs.imported)} (importing takes as much memory), models/final "
        f"{size(needs.exported)}{free}",
    ]


def time_line(report: Preflight, least: float, most: float) -> str:
    """Return the line about time, a range: least and most seconds of a step."""
    flops, steps = report.gpu.flops, report.params.train.train_iters
    if report.facts.on_gpu:
        slow, fast = estimate.UTILIZATION
        basis = f"at {slow:.0%} to {fast:.0%} of {flops / 1e12:.0f} TFLOP/s, longer for small batches"
    else:
        basis = f"at this CPU's {flops / 1e9:.0f} GFLOP/s, just measured, or half of it"
    whole = f", {duration(least * steps)} to {duration(most * steps)} in all" if steps else ""
    return (
        f"time       {duration(least)} to {duration(most)} a step{whole}, {basis}; without validations and checkpoints"
    )


def check_lines(results: list[checks.Result]) -> list[str]:
    """Return a line for each check, and the counts."""
    lines = []
    for result in results:
        lines.append(f"{state(result):8} {result.check:24} {result.message or result.about}")
    failed = sum(result.failed for result in results)
    unknown = sum(bool(result.message) and not result.failed for result in results)
    return [*lines, f"{len(results) - failed - unknown} ok, {unknown} not known here, {failed} failed"]


def resolve(params: Params, ranks: int, *, on_gpu: bool, has_inputs: bool = True) -> tuple[dict[str, Any], list[str]]:
    """Return every value that Bridge would train with, validated by Bridge, and the names that it cannot validate here.

    Raises:  InputError: Bridge rejects a value, the recipe cannot be used, the model's shapes are not known here, or
             `train.epochs` is set and there are no packs.
    """
    from sft.training import config

    training = params.training
    if training.train.epochs is not None:
        packs = checks.count_packs(PACKED / "training") if has_inputs else None
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


def values(report: Preflight) -> dict[str, Any]:
    """Return what --json prints: what the report has, in parameters, tokens, bytes and seconds."""
    needs, facts, train = report.estimate, report.facts, report.params.train
    layout = estimate.layout_of(report.params.model, facts.ranks)
    steps, epochs = train.train_iters, train.epochs
    if steps and facts.training_packs:
        epochs = steps * train.global_batch_size / facts.training_packs
    memory = needs and {name: getattr(needs.memory, name) for name in ("total", *MEMORY_PARTS)}
    step = step_seconds(report)
    return {
        "model": {
            "shapes_from": report.model,
            "parameters": needs and needs.parameters,
            "active_parameters": needs and needs.active,
            "trained_parameters": needs and needs.trained,
        },
        "gpu": report.gpu,
        "layout": {**dataclasses.asdict(layout), "data": layout.data},
        "step": {
            "packs": train.global_batch_size,
            "pack_size": facts.pack_size,
            "tokens": tokens_per_step(report),
            "flops": needs and needs.flops_per_step,
        },
        "run": {
            "steps": steps,
            "tokens": steps and tokens_per_step(report) * steps,
            "training_packs": facts.training_packs,
            "epochs": epochs,
        },
        "memory": memory and {**memory, "error": MEMORY_ERROR, "fits": fits(report)},
        "time": step
        and {
            "step_seconds": dict(zip(("least", "most"), step, strict=True)),
            "run_seconds": steps and {"least": step[0] * steps, "most": step[1] * steps},
        },
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
            {"check": result.check, "state": state(result), "message": result.message or result.about}
            for result in report.results
        ],
    }


def tokens_per_step(report: Preflight) -> int:
    """Return the tokens of a step, at most: of full packs."""
    return report.params.train.global_batch_size * (report.facts.pack_size or 1)


def fits(report: Preflight) -> bool | None:
    """Return whether the memory suffices. None: that of the training, or of what computes, is not known."""
    needs, memory = report.estimate, report.gpu.memory
    return needs.memory.total <= memory * (1 - RESERVE) if needs and memory else None


def step_seconds(report: Preflight) -> tuple[float, float] | None:
    """Return the least and most seconds of a step. None: the speed of what computes is not known."""
    needs, flops = report.estimate, report.gpu.flops
    if not flops or needs is None:
        return None
    if report.facts.on_gpu:
        return needs.seconds_per_step(flops, report.facts.ranks)
    return needs.flops_per_step / flops, needs.flops_per_step / flops * 2


def state(result: checks.Result) -> str:
    """Return the state of a check as a word."""
    return "FAILED" if result.failed else "unknown" if result.message else "ok"


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
    profile: str | None, nodes: int, gpus: int | None, gpu_name: str, cluster_name: str | None
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
    params = read(Path("profiles", f"{profile}.yaml") if profile else PARAMS)
    is_applied = profile is None or (PARAMS.exists() and read(PARAMS) == params)
    if gpus is None:
        gpus = torch.cuda.device_count() or (8 if profile else 0)
    report = examine(params, max(1, gpus) * nodes, gpu_of(gpu_name) if gpus else None, has_inputs=is_applied)
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
    parser.add_argument("--nodes", type=int, default=1, metavar="N")
    parser.add_argument("--gpus", type=int, metavar="N", help="GPUs of a node; 0: the CPU")
    parser.add_argument("--gpu", default="H100", metavar="NAME", help=f"{', '.join(GPUS)}, or its memory in bytes")
    parser.add_argument("--cluster", metavar="NAME", help="nodes and GPUs of slurm/clusters/NAME.yaml")
    add_json_option(parser)
    options = parser.parse_args()
    asked = (options.profile, options.nodes, options.gpus, options.gpu, options.cluster)
    run_or_exit(lambda: print_facts(lambda: estimate_training(*asked), show, as_json=options.json, values=values))
