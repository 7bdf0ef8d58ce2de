"""Checks before a training: what would crash, hang or train something else than params.yaml says.

    facts = gather_facts(...)            sft.planning.facts: ranks, packs, tokenizers, shapes of the model, free disk
    run_checks(params, facts)            the result of every check: passed, failed with a message, or not known
    check_training(params, facts)        raises InputError with the messages of all failed checks

A check is a pure function of params and facts, so a dry run on a login node and the train stage agree. It returns a
message, or "" where it passes. Numbers with a # are issues of the projects named.
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

from sft.cli import InputError
from sft.params import training as p
from sft.params.check import too_few_packs, too_long_warmup
from sft.planning import estimate
from sft.planning.estimate import Geometry
from sft.planning.facts import Facts

INT32 = 2**31
"""Mamba's kernels count positions in 32 bits (docs/known-issues.md, positions)."""
COLLATED_TO = 16
"""Bridge pads a pack to a multiple of this, or to the pack size if that is smaller."""


@dataclass(frozen=True)
class Check:
    """A check and the facts that it needs."""

    name: str
    """Kebab case, stable."""
    about: str
    """What is true where the check passes."""
    find_failure: Callable[[p.TrainParams, Facts], str]
    needs: tuple[str, ...]


@dataclass(frozen=True)
class Result:
    """The result of one check."""

    check: str
    about: str
    failed: bool
    message: str
    """Why the check failed, or which facts are missing; empty if it passed."""


CHECKS: list[Check] = []


def check[F: Callable[[p.TrainParams, Facts], str]](name: str, *needs: str) -> Callable[[F], F]:
    """Add a function to CHECKS; the first line of its docstring becomes `about`."""

    def add(find_failure: F) -> F:
        about = (find_failure.__doc__ or "").split("\n")[0].rstrip(".")
        CHECKS.append(Check(name, about, find_failure, needs))
        return find_failure

    return add


def run_checks(params: p.TrainParams, facts: Facts) -> list[Result]:
    """Return the results of all checks, in order."""
    return [_run_check(each, params, facts) for each in CHECKS]


def _run_check(each: Check, params: p.TrainParams, facts: Facts) -> Result:
    missing = [name for name in each.needs if getattr(facts, name) is None]
    if missing:
        return Result(each.name, each.about, False, f"not known here: {', '.join(missing).replace('_', ' ')}")
    message = each.find_failure(params, facts)
    return Result(each.name, each.about, bool(message), message)


def check_training(params: p.TrainParams, facts: Facts) -> None:
    """Raise InputError with the messages of all failed checks."""
    messages = [result.message for result in run_checks(params, facts) if result.failed]
    if messages:
        raise InputError("\n".join(messages))


# Machine and layout.


@check("cpu-precision")
def cpu_precision(params: p.TrainParams, facts: Facts) -> str:
    """A CPU trains in fp32."""
    if facts.on_gpu or params.mixed_precision.name == "fp32":
        return ""
    return (
        f"params.yaml: mixed_precision.name: {params.mixed_precision.name} takes minutes a step on a CPU, and this "
        "machine has no GPU. Set it to fp32."
    )


@check("cpu-experts")
def cpu_experts(params: p.TrainParams, facts: Facts) -> str:
    """A CPU sends tokens to experts without GPU kernels."""
    model = params.model
    fused, dispatcher = model.moe_permute_fusion, model.moe_token_dispatcher_type
    if facts.on_gpu or not (fused or dispatcher == "flex"):
        return ""
    key, instead = ("moe_permute_fusion: true", "false") if fused else ("moe_token_dispatcher_type: flex", "alltoall")
    return f"params.yaml: model.{key} needs a GPU, and this machine has none. Set it to {instead}."


@check("gpu-packages", "missing_packages")
def gpu_packages(params: p.TrainParams, facts: Facts) -> str:
    """The packages that this model needs on GPUs are installed."""
    lacking = _known(facts.missing_packages)
    if not lacking:
        return ""
    reasons = ", ".join(f"{package} (for {reason})" for package, reason in lacking.items())
    return (
        f"models/base: training needs {reasons}, which this machine lacks. Run make setup GPU=full, or train "
        "in a container: docs/gpu-machine.md."
    )


@check("world-size")
def world_size(params: p.TrainParams, facts: Facts) -> str:
    """The number of ranks is a multiple of one copy of the model."""
    copy = _ranks_per_copy(params)
    if facts.ranks % copy == 0:
        return ""
    return (
        f"params.yaml: model: one copy of the model takes {copy} ranks (tensor x pipeline x context parallel size), "
        f"found {facts.ranks}. Start a multiple of {copy}."
    )


@check("expert-parallel", "geometry")
def expert_parallel(params: p.TrainParams, facts: Facts) -> str:
    """The experts of a layer can be divided over the expert-parallel ranks."""
    size, experts = params.model.expert_model_parallel_size, _known(facts.geometry).experts
    stages = params.model.pipeline_model_parallel_size
    key = f"params.yaml: model.expert_model_parallel_size: {size}"
    if size == 1:
        return ""
    if not experts:
        return f"{key}, but the model has no experts. Set it to 1."
    if experts % size:
        return f"{key} does not divide the model's {experts} experts. Set it to a divisor."
    if facts.ranks % (size * stages):
        return f"{key} takes a multiple of {size * stages} ranks with {stages} pipeline stages, found {facts.ranks}."
    return ""


@check("global-batch-size")
def global_batch_size(params: p.TrainParams, facts: Facts) -> str:
    """A step is a whole number of packs for each data-parallel rank."""
    copies = max(1, facts.ranks // _ranks_per_copy(params))
    at_once = copies * params.train.micro_batch_size
    if params.train.global_batch_size % at_once == 0:
        return ""
    return (
        f"params.yaml: train.global_batch_size: {params.train.global_batch_size} is not a multiple of the {at_once} "
        f"packs that {copies} data-parallel ranks take at a time."
    )


@check("sequence-parallel")
def sequence_parallel(params: p.TrainParams, facts: Facts) -> str:
    """Sequence parallel goes with tensor parallel, and experts need it."""
    tensor, sequence = params.model.tensor_model_parallel_size, params.model.sequence_parallel
    if sequence and tensor == 1:
        return "params.yaml: model.sequence_parallel: true needs model.tensor_model_parallel_size > 1."
    if tensor > 1 and not sequence and facts.geometry is not None and facts.geometry.experts:
        return (
            f"params.yaml: model.sequence_parallel: false, but Megatron-Core trains experts with "
            f"model.tensor_model_parallel_size {tensor} only if it is on. Set it to true."
        )
    return ""


@check("tensor-parallel", "geometry")
def tensor_parallel(params: p.TrainParams, facts: Facts) -> str:
    """The tensor-parallel size divides every matrix."""
    tensor, g = params.model.tensor_model_parallel_size, _known(facts.geometry)
    sizes = {
        "heads": g.heads,
        "vocabulary": g.vocabulary,
        "ffn width": g.ffn if "-" in g.pattern else 0,
        "shared expert's width": g.shared_ffn,
        "Mamba heads": g.mamba_heads,
        "Mamba groups": g.mamba_groups,
    }
    not_divided = [f"{name} {size}" for name, size in sizes.items() if size % tensor]
    if g.query_groups % tensor and tensor % g.query_groups:
        not_divided.append(f"query groups {g.query_groups}")
    if not not_divided:
        return ""
    return (
        f"params.yaml: model.tensor_model_parallel_size: {tensor} does not divide the model's {', '.join(not_divided)}."
    )


@check("mamba-context-parallel", "geometry")
def mamba_context_parallel(params: p.TrainParams, facts: Facts) -> str:
    """The context-parallel size divides the heads and groups of Mamba layers."""
    g, model = _known(facts.geometry), params.model
    tensor, context = model.tensor_model_parallel_size, model.context_parallel_size
    if context == 1 or "M" not in g.pattern or g.mamba_heads % tensor or g.mamba_groups % tensor:
        return ""
    heads, groups = g.mamba_heads // tensor, g.mamba_groups // tensor
    if heads % context == 0 and (groups % context == 0 or context % groups == 0):
        return ""
    return (
        f"params.yaml: model.context_parallel_size: {context} does not divide the {heads} heads in {groups} groups "
        f"that a Mamba layer has on a GPU (tensor parallel {tensor})."
    )


@check("pipeline-parallel", "geometry")
def pipeline_parallel(params: p.TrainParams, facts: Facts) -> str:
    """The layers can be divided into pipeline stages."""
    stages, layers = params.model.pipeline_model_parallel_size, _known(facts.geometry).layers
    if layers % stages == 0:
        return ""
    return f"params.yaml: model.pipeline_model_parallel_size: {stages} does not divide the model's {layers} layers."


# Data.


@check("pack-size", "pack_size")
def pack_size(params: p.TrainParams, facts: Facts) -> str:
    """Context and sequence parallel can divide a pack."""
    model, size = params.model, _known(facts.pack_size)
    context, tensor = model.context_parallel_size, model.tensor_model_parallel_size
    message = f"data/packed: packs of {size} tokens, but {{}}. Set pack.pack_size to a multiple and run: dvc repro pack"
    if context > 1 and size % (2 * context):
        return message.format(f"model.context_parallel_size {context} divides a pack by {2 * context}")
    if model.sequence_parallel and (
        size % (context * tensor) or (COLLATED_TO % tensor and not has_fixed_length(model))
    ):
        return message.format(f"sequence parallel divides a pack by {context * tensor} (context x tensor parallel)")
    return ""


@check("padding", "pad_segments_to")
def padding(params: p.TrainParams, facts: Facts) -> str:
    """The samples of the packs are padded for this layout."""
    found, expected = _known(facts.pad_segments_to), segment_multiple(params.model)
    if found % expected == 0:
        return ""
    return (
        f"data/packed: samples are padded to a multiple of {found}, but this layout needs {expected}: lcm(2 x context "
        "parallel size if > 1, context x tensor parallel size if sequence parallel). Otherwise parts of a sample reach "
        f"the wrong GPUs without an error (docs/known-issues.md, split-sample). Set pack.pad_segments_to to {expected} "
        "and run: dvc repro pack"
    )


@check("mamba-positions", "geometry", "pack_size")
def mamba_positions(params: p.TrainParams, facts: Facts) -> str:
    """Mamba's kernels can count the positions of a pack."""
    g = _known(facts.geometry)
    share = params.model.tensor_model_parallel_size * params.model.context_parallel_size
    if "M" not in g.pattern or _known(facts.pack_size) * g.mamba_projection // share < INT32:
        return ""
    most = INT32 * share // g.mamba_projection
    return (
        f"data/packed: packs of {facts.pack_size} tokens, but Mamba's kernels count in 32 bits: beyond {most} tokens "
        "they compute wrong numbers with this layout (docs/known-issues.md, positions). Raise the context or tensor "
        "parallel size, or lower pack.pack_size."
    )


@check("training-packs", "training_packs")
def training_packs(params: p.TrainParams, facts: Facts) -> str:
    """There are packs for one step."""
    return too_few_packs("training", _known(facts.training_packs), params)


@check("validation-packs", "validation_packs")
def validation_packs(params: p.TrainParams, facts: Facts) -> str:
    """There are packs for one batch of validation."""
    return too_few_packs("validation", _known(facts.validation_packs), params)


@check("tokenizer", "data_tokenizer", "model_tokenizer")
def tokenizer(params: p.TrainParams, facts: Facts) -> str:
    """The model's tokenizer prepared the data."""
    if facts.data_tokenizer == facts.model_tokenizer:
        return ""
    return (
        "models/base: its tokenizer is not the one that prepared data/packed, so token ids mean other words. Prepare "
        "the data with this model: dvc repro prep pack"
    )


@check("mamba-boundaries", "geometry")
def mamba_boundaries(params: p.TrainParams, facts: Facts) -> str:
    """Mamba layers get the boundaries of packed samples."""
    if _known(facts.geometry).sample_boundaries:
        return ""
    return (
        "models/base: it has Mamba layers, but is_hybrid_model is off in its Megatron config, so each sample "
        "of a pack would read the samples before it, without an error (docs/known-issues.md, leak). Use a model or a "
        "model.recipe that sets it."
    )


@check("untrained-embeddings", "untrained_tokens")
def untrained_embeddings(params: p.TrainParams, facts: Facts) -> str:
    """Adapters do not leave a control token of the template with an embedding that was never trained."""
    zero, new = _known(facts.untrained_tokens)
    if not (zero or new) or params.peft.name is None:
        return ""
    how = [f"of {', '.join(zero)} is zero"] if zero else []
    how += [f"of {', '.join(new)} is new (the model had no chat template)"] if new else []
    return (
        f"models/base: the embedding {' and '.join(how)}, the chat template writes it in every sample, and "
        "adapters do not train embeddings (docs/known-issues.md, zero-embedding). Set peft.name to null, or fetch a "
        "model that was trained with these tokens."
    )


# Schedule, checkpoints, adapters.


@check("warmup")
def warmup(params: p.TrainParams, facts: Facts) -> str:
    """The warm-up ends before the schedule does."""
    return too_long_warmup(params)


@check("seed")
def seed(params: p.TrainParams, facts: Facts) -> str:
    """Megatron accepts the seed."""
    return "" if params.rng.seed > 0 else f"params.yaml: rng.seed: {params.rng.seed}, expected 1 or more."


@check("start-checkpoint", "geometry", "start_geometry")
def start_checkpoint(params: p.TrainParams, facts: Facts) -> str:
    """The checkpoint to start from has the model's shapes."""
    differences = geometry_differences(_known(facts.start_geometry), _known(facts.geometry))
    if not differences:
        return ""
    return (
        f"params.yaml: checkpoint.pretrained_checkpoint: {params.checkpoint.pretrained_checkpoint} has other shapes "
        f"than models/base: {'; '.join(differences)}. Name a checkpoint of this model."
    )


@check("best-checkpoint")
def best_checkpoint(params: p.TrainParams, facts: Facts) -> str:
    """A saved step has a validation loss, if the best checkpoint is exported."""
    c, v = params.checkpoint, params.validation
    if c.export != "best":
        return ""
    if not v.eval_iters:
        return "params.yaml: checkpoint.export: best needs validation losses, but validation.eval_iters is 0. Raise it."
    step = math.lcm(c.save_interval, v.eval_interval)
    if params.train.train_iters is None or step <= params.train.train_iters:
        return ""
    return (
        f"params.yaml: checkpoint.export: best, but the first step that is both saved and validated is {step} "
        f"(save_interval {c.save_interval}, eval_interval {v.eval_interval}), and the last step is "
        f"{params.train.train_iters}. Make one interval a multiple of the other."
    )


@check("adapter-modules", "geometry")
def adapter_modules(params: p.TrainParams, facts: Facts) -> str:
    """The model has every matrix that gets an adapter."""
    if params.peft.name is None:
        return ""
    g = _known(facts.geometry)
    known = {"linear_qkv", "linear_proj"} | ({"linear_fc1", "linear_fc2"} if set(g.pattern) & {"-", "E"} else set())
    known |= {"in_proj", "out_proj"} if "M" in g.pattern else set()
    unknown = [name for name in params.peft.target_modules if "*" not in name and name not in known]
    if not unknown:
        return ""
    return f"params.yaml: peft.target_modules: {', '.join(unknown)}: the model only has {', '.join(sorted(known))}."


# Memory and disk.


@check("gpu-memory", "geometry", "gpu_memory")
def gpu_memory(params: p.TrainParams, facts: Facts) -> str:
    """Weights, gradients and optimizer states fit into a GPU."""
    g, size = _known(facts.geometry), _known(facts.gpu_memory)
    needed = estimate.memory(
        g, params, estimate.layout_of(params.model, facts.ranks), facts.pack_size or 1, sharded=facts.on_gpu
    )
    exact = needed.weights + needed.gradients + needed.optimizer
    if exact <= size:
        return ""
    return (
        f"params.yaml: model: weights, gradients and optimizer states take {exact / 1e9:.0f} GB on a GPU with "
        f"{size / 1e9:.0f} GB, before any activation. Use more GPUs (their copies share optimizer states), a larger "
        "tensor, pipeline or expert parallel size, or adapters (peft.name)."
    )


@check("disk", "geometry", "free_disk")
def disk(params: p.TrainParams, facts: Facts) -> str:
    """One checkpoint, the imported model and the result fit on the disk."""
    needed = _estimate(params, facts)
    least = needed.disk - needed.checkpoint * (needed.checkpoints - 1) - facts.done_disk
    if least <= _known(facts.free_disk):
        return ""
    return (
        f"runs/: {_known(facts.free_disk) / 1e9:.0f} GB free, expected {least / 1e9:.0f} GB: one checkpoint "
        f"({needed.checkpoint / 1e9:.0f} GB), the imported model ({needed.imported / 1e9:.0f} GB), models/final "
        f"({needed.exported / 1e9:.0f} GB), less what this run has already written. Make runs/ a link to a larger disk."
    )


@check("kept-checkpoints", "geometry", "free_disk")
def kept_checkpoints(params: p.TrainParams, facts: Facts) -> str:
    """The checkpoints of the whole run fit on the disk."""
    needed, free = _estimate(params, facts), _known(facts.free_disk)
    if needed.disk - facts.done_disk <= free or disk(params, facts):
        return ""
    fits = int((free + facts.done_disk - needed.imported - needed.exported) // needed.checkpoint)
    c = params.checkpoint
    return (
        f"params.yaml: checkpoint: save_interval {c.save_interval}, most_recent_k {c.most_recent_k} and "
        f"save_retain_interval {c.save_retain_interval} keep {needed.checkpoints} checkpoints of "
        f"{needed.checkpoint / 1e9:.0f} GB at a time, but {free / 1e9:.0f} GB free have space for {fits}. Keep fewer."
    )


def warnings(params: p.TrainParams, facts: Facts) -> list[str]:
    """Return what is not wrong with a training, and still changes what it learns; a line each."""
    lines = []
    if facts.untrained_tokens and facts.untrained_tokens.zero and params.peft.name is None:
        lines.append(
            f"models/base: the embedding of {', '.join(facts.untrained_tokens.zero)} is zero: pretraining never saw "
            "it, and the chat template writes it in every sample. The first steps have large gradients "
            "(docs/known-issues.md, zero-embedding)."
        )
    if facts.geometry is not None and facts.geometry.experts and facts.packing_efficiency is not None:
        share = 1 - facts.packing_efficiency if has_fixed_length(params.model) else 0.0
        lines.append(
            f"experts route padding too: {share:.2%} of the tokens of a step"
            + (" (all packs are padded to the pack size)" if share else f" and at most {COLLATED_TO - 1} of a pack")
            + "; it moves the expert bias and the loss that balances experts (docs/known-issues.md, routed-padding)."
        )
    return lines


def geometry_differences(found: Geometry | None, expected: Geometry | None) -> list[str]:
    """Return every shape that differs, as in `hidden 1344 instead of 2688`; nothing if neither is known."""
    if found is None or expected is None:
        return [] if found is expected else ["latent attention (MLA) in one of them only"]
    return [
        f"{field.name} {getattr(found, field.name)} instead of {getattr(expected, field.name)}"
        for field in dataclasses.fields(Geometry)
        if getattr(found, field.name) != getattr(expected, field.name)
    ]


def segment_multiple(model: p.Model) -> int:
    """Return what the length of each sample of a pack must be a multiple of for this layout."""
    context, tensor = model.context_parallel_size, model.tensor_model_parallel_size
    return math.lcm(2 * context if context > 1 else 1, context * tensor if model.sequence_parallel else 1)


def has_fixed_length(model: p.Model) -> bool:
    """Whether every pack is padded to the pack size: ranks that share samples, layers or experts expect one length."""
    return max(model.context_parallel_size, model.pipeline_model_parallel_size, model.expert_model_parallel_size) > 1


def _ranks_per_copy(params: p.TrainParams) -> int:
    model = params.model
    return model.tensor_model_parallel_size * model.pipeline_model_parallel_size * model.context_parallel_size


def _estimate(params: p.TrainParams, facts: Facts) -> estimate.Estimate:
    g = _known(facts.geometry)
    return estimate.estimate(g, params, facts.ranks, facts.pack_size or 1, on_gpu=facts.on_gpu)


def _known[T](value: T | None) -> T:
    """Return a fact that the check lists in `needs`."""
    if value is None:
        raise AssertionError("a check uses a fact that it does not list in `needs`")
    return value
