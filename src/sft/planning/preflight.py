"""Before a GPU is spent: what a training needs, and what stands against it.

    make estimate                                          params.yaml on this machine
    make estimate PROFILE=nemotron3-nano NODES=2 GPUS=8    a profile on 2 x 8 GPUs (GPU=H100; GPU=H200, 96e9 bytes...)
    make estimate CLUSTER=mine                             params.yaml on the GPUs of a cluster's profile

Shown are the layout and the arithmetic of the batch, memory of the GPU that needs most, disk, time, and the verdict
of every rule of sft.planning.checks. The shapes of the model are those of models/base/config.json; while the model is
not downloaded, those of profiles/models/<its name>/config.json. A dry run of a cluster's job shows the same, and
every value that Bridge would train with (`resolved`).
"""

import dataclasses
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sft.cli import InputError, echo, make_parser, run_or_exit
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
PARTS = {
    "weights": "exact",
    "gradients": "exact",
    "optimizer": "exact",
    "activations": "a model",
    "logits": "at the loss",
}


@dataclass(frozen=True)
class Gpu:
    """What computes: a GPU, or this machine's processor."""

    name: str
    memory: float | None
    """Bytes; None: a processor, whose memory is shared."""
    flops: float
    """Operations a second, dense, in the format of the training."""


@dataclass(frozen=True)
class Preflight:
    """What is said of a training before it starts."""

    params: TrainParams
    facts: checks.Facts
    estimate: estimate.Estimate
    verdicts: list[checks.Verdict]
    gpu: Gpu
    model: Path
    """The folder whose config.json gave the shapes."""


def look(params: Params, ranks: int, gpu: Gpu | None, *, own: bool = True) -> Preflight:
    """Gather facts, estimate, and apply the rules for so many ranks.

    `gpu`: None on this machine's processor. `own`: whether data/packed and models/base are those of these params;
    another profile's are left out.

    Raises:  InputError: the shapes of the model are not known here.
    """
    from sft.training import config

    trained = params.training
    model = model_folder(params, own)
    with config.quiet():
        geometry = config.geometry_of(config.model_of(model, weights=False, on_gpu=gpu is not None)[1])
    facts = checks.gather(
        packed=PACKED if own else Path("none"),
        base=BASE if own else Path("none"),
        runs=project_root() / "runs",
        ranks=ranks,
        on_gpu=gpu is not None,
        geometry=geometry,
        start_geometry=None if trained.checkpoint.pretrained_checkpoint else geometry,
        gpu_memory=gpu.memory if gpu else None,
    )
    if facts.pack_size is None:
        facts = _planned(facts, params)
    found = estimate.estimate(geometry, trained, ranks, facts.pack_size or 1, on_gpu=gpu is not None)
    return Preflight(
        trained, facts, found, checks.verdicts(trained, facts), gpu or Gpu("this processor", None, 0.0), model
    )


def _planned(facts: checks.Facts, params: Params) -> checks.Facts:
    """Take pack size and padding from the params of the pack stage, which has not run."""
    return dataclasses.replace(facts, pack_size=params.pack.pack_size, pad_segments_to=params.pack.pad_segments_to)


def model_folder(params: Params, own: bool) -> Path:
    """Return the folder whose config.json has the shapes of the model. Raises InputError: none is here."""
    name = params.fetch.model.address.partition("://")[2].removeprefix("models/").split("/")
    known = KNOWN_MODELS / (name[1] if len(name) > 1 else name[0])
    for folder in ([BASE] if own else []) + [known]:
        if (folder / "config.json").is_file():
            return folder
    raise InputError(
        f"the shapes of {params.fetch.model.uri} are not known here: neither {BASE}/config.json (make fetch) nor "
        f"{known}/config.json is there. Put the config.json that the model is published with into {known}/."
    )


def gpu_of(name: str) -> Gpu:
    """Return a GPU by its name, or one of so many bytes. Raises InputError."""
    if name in GPUS:
        return Gpu(name, *GPUS[name])
    try:
        return Gpu(f"GPU with {float(name) / 1e9:.0f} GB", float(name), GPUS["H100"][1])
    except ValueError as error:
        raise InputError(f"GPU={name}: expected one of {', '.join(GPUS)}, or its memory in bytes, as 96e9") from error


def lines(seen: Preflight) -> list[str]:
    """Return what is to be said, line by line."""
    return [*layout_lines(seen), "", *need_lines(seen), "", *verdict_lines(seen.verdicts)]


def layout_lines(seen: Preflight) -> list[str]:
    """Say the layout and the arithmetic of the batch."""
    model, train, found = seen.params.model, seen.params.train, seen.estimate
    layout = estimate.layout_of(model, seen.facts.ranks)
    mix64 = f"tensor {layout.tensor} x pipeline {layout.pipeline} x context {layout.context} x data {layout.data}"
    if layout.expert > 1:
        mix64 += f", experts over {layout.expert}"
    rounds = train.global_batch_size / max(1, layout.data * train.micro_batch_size)
    said = [
        f"model      {found.parameters:,} parameters, {found.active:,} for a token; shapes of {seen.model}",
        f"layout     {layout.ranks} x {seen.gpu.name}: {mix64}" + (", sequence parallel" * model.sequence_parallel),
        f"step       {train.global_batch_size} packs of at most {seen.facts.pack_size:,} tokens = "
        f"{found.tokens_per_step:,}; {rounds:g} in turn on each data-parallel rank",
        f"run        {train.train_iters:,} steps, {found.tokens_per_step * train.train_iters:,} tokens at most",
    ]
    if found.trained != found.parameters:
        said.insert(1, f"trained    {found.trained:,} parameters of adapters")
    if seen.facts.training_packs:
        epochs = train.train_iters * train.global_batch_size / seen.facts.training_packs
        said[-1] += f", {epochs:.2f} epochs of {seen.facts.training_packs:,} packs"
    return said


def need_lines(seen: Preflight) -> list[str]:
    """Say what a training needs of memory, time and disk, and how sure that is."""
    found, memory = seen.estimate, seen.estimate.memory
    parts = ", ".join(f"{name} {size(getattr(memory, name))}" for name in PARTS)
    each = "GPU" if seen.facts.on_gpu else "process"
    said = [
        f"memory     {size(memory.total)} on the {each} that needs most: {parts}",
        f"           the first three are exact, the rest within {MEMORY_ERROR:.0%} of what a CPU was measured to take;"
        " no GPU was measured",
    ]
    if seen.gpu.memory:
        usable = seen.gpu.memory * (1 - RESERVE)
        fits = "fits" if memory.total <= usable else "DOES NOT FIT"
        left = f"{size(seen.gpu.memory)}, {RESERVE:.0%} of it left to CUDA, NCCL and gaps"
        said.append(f"           {fits} a {seen.gpu.name}: {left}")
    steps = seen.params.train.train_iters
    if seen.gpu.flops:
        if seen.facts.on_gpu:
            least, most = found.seconds_per_step(seen.gpu.flops, seen.facts.ranks)
            slow, fast = estimate.UTILISATION
            how = f"at {slow:.0%} to {fast:.0%} of {seen.gpu.flops / 1e12:.0f} TFLOP/s, longer where little is at once"
        else:
            least, most = found.flops_per_step / seen.gpu.flops, found.flops_per_step / seen.gpu.flops * 2
            how = f"at this processor's {seen.gpu.flops / 1e9:.0f} GFLOP/s, just measured, or half of them"
        said.append(
            f"time       {duration(least)} to {duration(most)} a step, {duration(least * steps)} to "
            f"{duration(most * steps)} in all, {how}; validations and checkpoints come on top"
        )
    free = "" if seen.facts.free_disk is None else f"; {size(seen.facts.free_disk)} are free below runs/"
    said.append(
        f"disk       {size(found.disk)}: {found.checkpoints} checkpoints of {size(found.checkpoint)} at most, the "
        f"imported model {size(found.imported)} (as much memory to make it), models/final {size(found.exported)}{free}"
    )
    return said


def verdict_lines(verdicts: list[checks.Verdict]) -> list[str]:
    """Say every verdict, the reason behind a refusal, and how many there are."""
    said = []
    for verdict in verdicts:
        state = "REFUSED" if verdict.refused else "unknown" if verdict.reason else "ok"
        said.append(f"{state:8} {verdict.rule:26} {verdict.reason or verdict.about}")
    refused = sum(verdict.refused for verdict in verdicts)
    unknown = sum(bool(verdict.reason) and not verdict.refused for verdict in verdicts)
    return [*said, f"{len(verdicts) - refused - unknown} ok, {unknown} not known here, {refused} refused"]


def resolved(params: Params, ranks: int, *, on_gpu: bool, own: bool = True) -> tuple[dict[str, Any], list[str]]:
    """Return every value that Bridge would train with, after it validated them; and what it could not validate here.

    Raises:  InputError: Bridge refuses them, the recipe cannot be used, the shapes of the model are not known here.
    """
    from sft.training import config

    trained = params.training
    # Bridge wants the folder of the weights to be there.
    with tempfile.TemporaryDirectory() as scratch, config.quiet():
        built = config.build(
            trained,
            base=model_folder(params, own).absolute(),
            start=Path(scratch),
            packed=PACKED.absolute() if own else Path(scratch, "packed"),
            run=Path(scratch, "run"),
            pack_size=params.pack.pack_size,
            eval_iters=trained.validation.eval_iters,
            on_gpu=on_gpu,
        )
        return config.resolve(built, ranks)


def size(number: float) -> str:
    """Say a number of bytes.

    >>> size(1_500_000_000), size(23e6), size(442e9)
    ('1.5 GB', '23 MB', '442 GB')
    """
    if number < 1e9:
        return f"{number / 1e6:.0f} MB"
    return f"{number / 1e9:.1f} GB" if number < 100e9 else f"{number / 1e9:,.0f} GB"


def duration(seconds: float) -> str:
    """Say a time.

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


def processor_flops() -> float:
    """Measure how many operations a second this processor multiplies matrices with, in fp32."""
    import torch

    matrix, rounds = torch.ones(1024, 1024), 10
    matrix @ matrix
    began = time.perf_counter()
    for _ in range(rounds):
        matrix @ matrix
    return rounds * 2 * 1024**3 / (time.perf_counter() - began)


def show(profile: str | None, nodes: int, gpus: int | None, gpu: str, cluster: str | None) -> None:
    """Print the estimate of params.yaml or of a profile."""
    import torch

    if cluster:
        place = read_cluster_file(cluster)
        nodes, gpus, gpu = place.nodes, place.gpus_per_node, place.gpu or gpu
        if not gpus:
            raise InputError(f"CLUSTER={cluster}: has no GPUs; its dry run tells what each process needs: DRY_RUN=1")
    path = Path("profiles", f"{profile}.yaml") if profile else PARAMS
    params, applied = read(path), profile is None
    if profile and PARAMS.exists():
        applied = read(PARAMS) == params
    if gpus is None:
        gpus = torch.cuda.device_count() or (8 if profile else 0)
    seen = look(params, max(1, gpus) * nodes, gpu_of(gpu) if gpus else None, own=applied)
    if not gpus:
        processor = Gpu("this processor", None, processor_flops())
        seen = Preflight(seen.params, seen.facts, seen.estimate, seen.verdicts, processor, seen.model)
    for line in lines(seen):
        echo(line.replace("[", r"\["))


if __name__ == "__main__":
    parser = make_parser(__name__, __doc__)
    parser.add_argument("--profile", metavar="NAME", help="a file of profiles/; none: params.yaml")
    parser.add_argument("--nodes", type=int, default=1, metavar="N")
    parser.add_argument("--gpus", type=int, metavar="N", help="GPUs of a node; 0: this processor")
    parser.add_argument("--gpu", default="H100", metavar="NAME", help=f"{', '.join(GPUS)}, or its memory in bytes")
    parser.add_argument("--cluster", metavar="NAME", help="nodes and GPUs of slurm/clusters/NAME.yaml")
    asked = parser.parse_args()
    run_or_exit(lambda: show(asked.profile, asked.nodes, asked.gpus, asked.gpu, asked.cluster))
