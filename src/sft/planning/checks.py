"""What would crash, hang, or train something else than was meant, refused with the reason before a GPU is spent.

    facts = gather(...)              what is known: ranks, packs, tokenizers, shapes of the model, free disk
    verdicts(params, facts)          every rule's verdict: fine, refused with the reason, or not known
    check(params, facts)             raises InputError with all that is refused

The rules are pure functions of params and facts, so that a dry run on a login node and the train stage say the
same. Each gives the reason, or an empty text. Numbers with a # are issues of the projects named; "fixed" says
that the pinned Bridge 0.6.2 or Megatron-Core 0.19.2 was read and has the repair.
"""

import dataclasses
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from sft.cli import InputError
from sft.files import read_json
from sft.hashing import file_digest
from sft.params import training as p
from sft.planning import estimate
from sft.planning.estimate import Geometry

INT32 = 2**31
"""Mamba's kernels count positions in 32 bits (state-spaces/mamba #1015)."""
COLLATED_TO = 16
"""Bridge pads a pack to a multiple of this, or to the pack size where that is less."""


@dataclass(frozen=True)
class Facts:
    """What the rules know besides params.yaml; None: not known here."""

    ranks: int
    """Processes that train: one for each GPU."""
    on_gpu: bool
    pack_size: int | None = None
    pad_segments_to: int | None = None
    """What the samples of the packs are padded to a multiple of."""
    training_packs: int | None = None
    validation_packs: int | None = None
    data_tokenizer: str | None = None
    """Digest of the tokenizer that the packs were made with."""
    model_tokenizer: str | None = None
    """Digest of the model's."""
    geometry: Geometry | None = None
    """Shapes of the model."""
    start_geometry: Geometry | None = None
    """Shapes of the checkpoint that training starts from, where it is not made of the model."""
    gpu_memory: float | None = None
    """Bytes."""
    free_disk: float | None = None
    """Bytes where runs/ lies."""
    done_disk: float = 0.0
    """Bytes that this training has already written there."""


@dataclass(frozen=True)
class Verdict:
    """What one rule says."""

    rule: str
    about: str
    refused: bool
    reason: str
    """Why it is refused, or which facts are missing; empty where all is fine."""


def gather(
    *,
    packed: Path,
    base: Path,
    runs: Path,
    ranks: int,
    on_gpu: bool,
    geometry: Geometry | None = None,
    start_geometry: Geometry | None = None,
    gpu_memory: float | None = None,
    done_disk: float = 0.0,
) -> Facts:
    """Read the facts that lie on this machine; what is not there stays unknown."""
    metadata: dict[str, Any] = {}
    if (packed / "metadata.json").exists():
        metadata = read_json(packed / "metadata.json")
    tokenizer = base / "tokenizer.json"
    place = next((folder for folder in (runs, *runs.absolute().parents) if folder.exists()), None)
    return Facts(
        ranks=ranks,
        on_gpu=on_gpu,
        pack_size=metadata.get("pack_size"),
        pad_segments_to=metadata.get("pad_segments_to"),
        training_packs=count_packs(packed / "training"),
        validation_packs=count_packs(packed / "validation"),
        data_tokenizer=metadata.get("tokenizer_sha256"),
        model_tokenizer=file_digest(tokenizer) if tokenizer.exists() else None,
        geometry=geometry,
        start_geometry=start_geometry,
        gpu_memory=gpu_memory,
        free_disk=None if place is None else float(shutil.disk_usage(place).free),
        done_disk=done_disk,
    )


def count_packs(folder: Path) -> int | None:
    """Count the packs of a split; None where the pack stage has not run."""
    if not folder.parent.is_dir():
        return None
    counts: list[int] = [pq.read_metadata(shard).num_rows for shard in sorted(folder.glob("*.parquet"))]
    return sum(counts)


def verdicts(params: p.TrainParams, facts: Facts) -> list[Verdict]:
    """Apply every rule, in order."""
    return [_verdict(rule, params, facts) for rule in RULES]


def _verdict(rule: "Rule", params: p.TrainParams, facts: Facts) -> Verdict:
    name = rule.fault.__name__.strip("_").replace("_", "-")
    about = (rule.fault.__doc__ or "").split("\n")[0].rstrip(".")
    missing = [need for need in rule.needs if getattr(facts, need) is None]
    if missing:
        return Verdict(name, about, False, f"not known here: {', '.join(missing).replace('_', ' ')}")
    reason = rule.fault(params, facts)
    return Verdict(name, about, bool(reason), reason)


def check(params: p.TrainParams, facts: Facts) -> None:
    """Raise InputError with every reason for which a training is refused."""
    refused = [verdict.reason for verdict in verdicts(params, facts) if verdict.refused]
    if refused:
        raise InputError("\n".join(refused))


# Rules: params and facts -> the reason, or nothing.


def precision_of_a_cpu(params: p.TrainParams, facts: Facts) -> str:
    """A CPU trains in fp32."""
    if facts.on_gpu or params.mixed_precision.name == "fp32":
        return ""
    return (
        f"params.yaml: mixed_precision.name is {params.mixed_precision.name}, and this machine has no GPU: a step of "
        "bf16 does not finish in minutes on a CPU. Use fp32."
    )


def layout_of_a_cpu(params: p.TrainParams, facts: Facts) -> str:
    """A CPU does not split a sample over ranks."""
    if facts.on_gpu or params.model.context_parallel_size == 1:
        return ""
    return (
        f"params.yaml: model.context_parallel_size is {params.model.context_parallel_size}, and this machine has no "
        "GPU: only Transformer Engine splits a sample over ranks. Use 1."
    )


def model_of_a_cpu(params: p.TrainParams, facts: Facts) -> str:
    """A CPU trains dense attention models."""
    geometry = _known(facts.geometry)
    if facts.on_gpu or not set(geometry.pattern) & {"M", "E"}:
        return ""
    kinds = " and ".join(
        name for letter, name in (("M", "Mamba layers"), ("E", "experts")) if letter in geometry.pattern
    )
    return f"models/base has {kinds}, which exist as GPU kernels only. Train it on GPUs, or choose a dense model here."


def world_size(params: p.TrainParams, facts: Facts) -> str:
    """The ranks are a multiple of a copy of the model."""
    copy = _copy(params)
    if facts.ranks % copy == 0:
        return ""
    return (
        f"{facts.ranks} ranks were started, and one copy of the model takes {copy} (params.yaml: model, tensor x "
        f"pipeline x context parallel size). Start a multiple of {copy}."
    )


def expert_parallel(params: p.TrainParams, facts: Facts) -> str:
    """The experts of a layer can be spread so."""
    mix64, geometry = params.model.expert_model_parallel_size, _known(facts.geometry)
    key = f"params.yaml: model.expert_model_parallel_size is {mix64}"
    if mix64 == 1:
        return ""
    if not geometry.experts:
        return f"{key}, and the model has no experts. Use 1."
    if geometry.experts % mix64:
        return f"{key}, and the model's {geometry.experts} experts cannot be divided so. Use a divisor of them."
    stages = params.model.pipeline_model_parallel_size
    if facts.ranks % (mix64 * stages):
        return f"{key}: with {stages} pipeline stages it takes a multiple of {mix64 * stages} ranks, not {facts.ranks}."
    return ""


def batch(params: p.TrainParams, facts: Facts) -> str:
    """A step is a whole number of rounds."""
    copies = max(1, facts.ranks // _copy(params))
    at_once = copies * params.train.micro_batch_size
    if params.train.global_batch_size % at_once == 0:
        return ""
    return (
        f"params.yaml: train.global_batch_size is {params.train.global_batch_size}, not a multiple of the {at_once} "
        f"packs that {copies} data-parallel ranks take at a time"
    )


def sequence_parallel(params: p.TrainParams, facts: Facts) -> str:
    """Sequence parallel goes with tensor parallel, and with experts it must."""
    tensor, sequence = params.model.tensor_model_parallel_size, params.model.sequence_parallel
    if sequence and tensor == 1:
        return "params.yaml: model.sequence_parallel needs model.tensor_model_parallel_size > 1"
    if tensor > 1 and not sequence and facts.geometry is not None and facts.geometry.experts:
        return (
            f"params.yaml: model.tensor_model_parallel_size is {tensor} on a model with experts: Megatron-Core refuses "
            "to train that without model.sequence_parallel, after the model is built. Set it to true."
        )
    return ""


def tensor_parallel(params: p.TrainParams, facts: Facts) -> str:
    """Every matrix can be divided by the tensor-parallel size."""
    tensor, g = params.model.tensor_model_parallel_size, _known(facts.geometry)
    sizes = {
        "heads": g.heads,
        "vocabulary": g.vocabulary,
        "ffn width": g.ffn if "-" in g.pattern else 0,
        "shared expert's width": g.shared_ffn,
        "Mamba heads": g.mamba_heads,
        "Mamba groups": g.mamba_groups,
    }
    faults = [f"{name} {size}" for name, size in sizes.items() if size % tensor]
    if g.query_groups % tensor and tensor % g.query_groups:
        faults.append(f"query groups {g.query_groups}")
    if not faults:
        return ""
    return (
        f"params.yaml: model.tensor_model_parallel_size is {tensor}, which does not divide the model's "
        f"{', '.join(faults)}"
    )


def context_parallel_of_mamba(params: p.TrainParams, facts: Facts) -> str:
    """Mamba's heads and groups can be divided by the context-parallel size."""
    g, model = _known(facts.geometry), params.model
    tensor, context = model.tensor_model_parallel_size, model.context_parallel_size
    if context == 1 or "M" not in g.pattern or g.mamba_heads % tensor or g.mamba_groups % tensor:
        return ""
    heads, groups = g.mamba_heads // tensor, g.mamba_groups // tensor
    if heads % context == 0 and (groups % context == 0 or context % groups == 0):
        return ""
    return (
        f"params.yaml: model.context_parallel_size is {context}: a Mamba layer divides its heads by it, and has "
        f"{heads} in {groups} groups on a GPU (tensor parallel {tensor})"
    )


def pipeline(params: p.TrainParams, facts: Facts) -> str:
    """The layers can be divided into stages."""
    stages, layers = params.model.pipeline_model_parallel_size, _known(facts.geometry).layers
    if layers % stages == 0:
        return ""
    return (
        f"params.yaml: model.pipeline_model_parallel_size is {stages}, and the model has {layers} layers: not divisible"
    )


def pack_size(params: p.TrainParams, facts: Facts) -> str:
    """A pack can be divided as context and sequence parallel do."""
    model, size = params.model, _known(facts.pack_size)
    context, tensor = model.context_parallel_size, model.tensor_model_parallel_size
    if context > 1 and size % (2 * context):
        return (
            f"data/packed: packs of {size} tokens, and model.context_parallel_size {context} divides a pack by "
            f"{2 * context}. Set pack.pack_size to a multiple of it and run: dvc repro pack"
        )
    if model.sequence_parallel and (
        size % (context * tensor) or (COLLATED_TO % tensor and not has_fixed_length(model))
    ):
        return (
            f"data/packed: packs of {size} tokens, and sequence parallel divides a pack by {context * tensor} "
            f"(context x tensor parallel size). Set pack.pack_size to a multiple of it and run: dvc repro pack"
        )
    return ""


def padding(params: p.TrainParams, facts: Facts) -> str:
    """The samples of the packs are padded for this layout."""
    found, wanted = _known(facts.pad_segments_to), segment_multiple(params.model)
    if found % wanted == 0:
        return ""
    return (
        f"data/packed: samples are padded to a multiple of {found}, and this layout needs {wanted}: lcm(2 x context "
        "parallel size if > 1, context x tensor parallel size if sequence parallel). Without it, parts of a sample "
        f"land on the wrong GPUs unseen (Megatron-Bridge #5080). Set pack.pad_segments_to to {wanted} and run: "
        "dvc repro pack"
    )


def mamba_positions(params: p.TrainParams, facts: Facts) -> str:
    """Mamba's kernels can count the positions of a pack."""
    g = _known(facts.geometry)
    share = params.model.tensor_model_parallel_size * params.model.context_parallel_size
    if "M" not in g.pattern or _known(facts.pack_size) * g.mamba_projection // share < INT32:
        return ""
    most = INT32 * share // g.mamba_projection
    return (
        f"data/packed: packs of {facts.pack_size} tokens: a Mamba layer's kernels count in 32 bits and give wrong "
        f"numbers beyond {most} tokens with this layout (state-spaces/mamba #1015). Spread a pack over more GPUs "
        "(context or tensor parallel size), or make packs smaller."
    )


def schedule(params: p.TrainParams, facts: Facts) -> str:
    """The warm-up ends before the schedule does."""
    decay = params.scheduler.lr_decay_iters or params.train.train_iters
    if params.scheduler.lr_warmup_iters < decay:
        return ""
    return (
        f"params.yaml: scheduler.lr_warmup_iters is {params.scheduler.lr_warmup_iters}, not below the {decay} steps of "
        "the schedule (scheduler.lr_decay_iters, or train.train_iters)"
    )


def seed(params: p.TrainParams, facts: Facts) -> str:
    """Megatron takes the seed."""
    return "" if params.rng.seed > 0 else f"params.yaml: rng.seed is {params.rng.seed}: Megatron wants 1 or more"


def training_packs(params: p.TrainParams, facts: Facts) -> str:
    """There are packs for a step."""
    return _too_few("training", _known(facts.training_packs), params, "train.global_batch_size")


def validation_packs(params: p.TrainParams, facts: Facts) -> str:
    """There are packs for a batch of validation."""
    if not params.validation.eval_iters:
        return ""
    reason = "train.global_batch_size; Bridge would wait forever. Or set validation.eval_iters to 0"
    return _too_few("validation", _known(facts.validation_packs), params, reason)


def _too_few(split: str, packs: int, params: p.TrainParams, reason: str) -> str:
    batch_size = params.train.global_batch_size
    if not packs:
        return f"data/packed/{split}: no packs (*.parquet). Run the pack stage, or hold more out."
    if packs < batch_size:
        return f"data/packed/{split}: {packs} packs, fewer than the {batch_size} of one step (params.yaml: {reason})"
    return ""


def tokenizer(params: p.TrainParams, facts: Facts) -> str:
    """The data was made with the model's tokenizer."""
    if facts.data_tokenizer == facts.model_tokenizer:
        return ""
    return (
        "models/base: its tokenizer is not the one that data/packed was made with, so the ids would mean other words. "
        "Prepare the data with this model: dvc repro prep pack"
    )


def start(params: p.TrainParams, facts: Facts) -> str:
    """The checkpoint to start from has the model's shapes."""
    faults = geometry_faults(_known(facts.start_geometry), _known(facts.geometry))
    if not faults:
        return ""
    return (
        f"params.yaml: checkpoint.pretrained_checkpoint {params.checkpoint.pretrained_checkpoint} is another model "
        f"than models/base: {'; '.join(faults)}. Its weights cannot be loaded."
    )


def best(params: p.TrainParams, facts: Facts) -> str:
    """The best checkpoint can be told."""
    if params.checkpoint.export != "best":
        return ""
    if not params.validation.eval_iters:
        return "params.yaml: checkpoint.export is best, and validation.eval_iters 0: nothing tells which is best"
    step = math.lcm(params.checkpoint.save_interval, params.validation.eval_interval)
    if step <= params.train.train_iters:
        return ""
    return (
        f"params.yaml: checkpoint.export is best, and no step before {step} is both saved and validated "
        f"(save_interval {params.checkpoint.save_interval}, eval_interval {params.validation.eval_interval}); the last "
        f"is {params.train.train_iters}. Make one interval a multiple of the other."
    )


def adapters(params: p.TrainParams, facts: Facts) -> str:
    """Every matrix that is to get an adapter is there."""
    if params.peft.name is None:
        return ""
    g = _known(facts.geometry)
    known = {"linear_qkv", "linear_proj"} | ({"linear_fc1", "linear_fc2"} if set(g.pattern) & {"-", "E"} else set())
    known |= {"in_proj", "out_proj"} if "M" in g.pattern else set()
    unknown = [name for name in params.peft.target_modules if "*" not in name and name not in known]
    if not unknown:
        return ""
    return f"params.yaml: peft.target_modules: {', '.join(unknown)}: the model has {', '.join(sorted(known))}"


def gpu_memory(params: p.TrainParams, facts: Facts) -> str:
    """Weights, gradients and optimizer states fit a GPU."""
    g, size = _known(facts.geometry), _known(facts.gpu_memory)
    needed = estimate.memory(
        g, params, estimate.layout_of(params.model, facts.ranks), facts.pack_size or 1, sharded=facts.on_gpu
    )
    certain = needed.weights + needed.gradients + needed.optimizer
    if certain <= size:
        return ""
    return (
        f"weights, gradients and optimizer states take {certain / 1e9:.0f} GB on a GPU with {size / 1e9:.0f} GB, "
        "before any activation. Use more GPUs (their copies share optimizer states), a larger tensor, pipeline or "
        "expert parallel size, or adapters (peft.name)."
    )


def disk(params: p.TrainParams, facts: Facts) -> str:
    """One checkpoint, the imported model and the result fit the disk."""
    needed = _estimate(params, facts)
    least = needed.disk - needed.checkpoint * (needed.checkpoints - 1) - facts.done_disk
    if least <= _known(facts.free_disk):
        return ""
    return (
        f"runs/: {_known(facts.free_disk) / 1e9:.0f} GB free, and one checkpoint ({needed.checkpoint / 1e9:.0f} GB), "
        f"the imported model ({needed.imported / 1e9:.0f} GB) and models/final ({needed.exported / 1e9:.0f} GB) take "
        f"{least / 1e9:.0f} GB more. Put runs/ on a larger disk (a link is fine)."
    )


def checkpoints_kept(params: p.TrainParams, facts: Facts) -> str:
    """The checkpoints of the whole run fit the disk."""
    needed, free = _estimate(params, facts), _known(facts.free_disk)
    if needed.disk - facts.done_disk <= free or disk(params, facts):
        return ""
    room = int((free + facts.done_disk - needed.imported - needed.exported) // needed.checkpoint)
    c = params.checkpoint
    return (
        f"params.yaml: checkpoint: save_interval {c.save_interval}, most_recent_k {c.most_recent_k} and "
        f"save_retain_interval {c.save_retain_interval} come to {needed.checkpoints} checkpoints of "
        f"{needed.checkpoint / 1e9:.0f} GB, one of them being written; {free / 1e9:.0f} GB are free, room for {room}. "
        "Keep fewer."
    )


def geometry_faults(found: Geometry, expected: Geometry) -> list[str]:
    """Name every shape that differs: `hidden 1344 instead of 2688`."""
    return [
        f"{field.name} {getattr(found, field.name)} instead of {getattr(expected, field.name)}"
        for field in dataclasses.fields(Geometry)
        if getattr(found, field.name) != getattr(expected, field.name)
    ]


def segment_multiple(model: p.Model) -> int:
    """Return what the samples of a pack must be padded to a multiple of for this layout."""
    context, tensor = model.context_parallel_size, model.tensor_model_parallel_size
    return math.lcm(2 * context if context > 1 else 1, context * tensor if model.sequence_parallel else 1)


def has_fixed_length(model: p.Model) -> bool:
    """Whether every pack is padded to the pack size: ranks that share samples, layers or experts expect one length."""
    return max(model.context_parallel_size, model.pipeline_model_parallel_size, model.expert_model_parallel_size) > 1


def _copy(params: p.TrainParams) -> int:
    model = params.model
    return model.tensor_model_parallel_size * model.pipeline_model_parallel_size * model.context_parallel_size


def _estimate(params: p.TrainParams, facts: Facts) -> estimate.Estimate:
    g = _known(facts.geometry)
    return estimate.estimate(g, params, facts.ranks, facts.pack_size or 1, on_gpu=facts.on_gpu)


def _known[T](value: T | None) -> T:
    """Return a fact that the rule said it needs."""
    if value is None:
        raise AssertionError("a rule needs a fact that it does not list")
    return value


@dataclass(frozen=True)
class Rule:
    """A rule and the facts without which it has nothing to say."""

    fault: Callable[[p.TrainParams, Facts], str]
    needs: tuple[str, ...] = ()


RULES = (
    Rule(precision_of_a_cpu),
    Rule(layout_of_a_cpu),
    Rule(model_of_a_cpu, ("geometry",)),
    Rule(world_size),
    Rule(expert_parallel, ("geometry",)),
    Rule(batch),
    Rule(sequence_parallel),
    Rule(tensor_parallel, ("geometry",)),
    Rule(context_parallel_of_mamba, ("geometry",)),
    Rule(pipeline, ("geometry",)),
    Rule(pack_size, ("pack_size",)),
    Rule(padding, ("pad_segments_to",)),
    Rule(mamba_positions, ("geometry", "pack_size")),
    Rule(schedule),
    Rule(seed),
    Rule(training_packs, ("training_packs",)),
    Rule(validation_packs, ("validation_packs",)),
    Rule(tokenizer, ("data_tokenizer", "model_tokenizer")),
    Rule(start, ("geometry", "start_geometry")),
    Rule(best),
    Rule(adapters, ("geometry",)),
    Rule(gpu_memory, ("geometry", "gpu_memory")),
    Rule(disk, ("geometry", "free_disk")),
    Rule(checkpoints_kept, ("geometry", "free_disk")),
)
