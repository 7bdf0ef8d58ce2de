"""params.yaml and a Hugging Face folder -> Megatron-Bridge's ConfigContainer, also as Bridge resolves it.

`build` starts from what AutoBridge reads from the model's config, or from a recipe function of Bridge (`model.recipe`).
A recipe's kernels, overlaps and optimizer precision stay wherever params.yaml has no param for them. Shapes always come
from models/base: a recipe asks the hub for the config of a model and gets that folder instead, so no hub is needed.

`resolve` lets Bridge complete and validate a config for any number of ranks, also on a machine without a GPU. Dry runs
print its result, and the tests compare it.
"""

import contextlib
import dataclasses
import difflib
import enum
import functools
import importlib
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException

from sft.cli import InputError
from sft.params import training as p
from sft.planning import checks
from sft.planning.estimate import Geometry
from sft.training import overrides

NOISY_LOGGERS = ("megatron.bridge.utils.import_utils", "torch.utils.cpp_extension")  # "FP8… failed", "No CUDA"
# What ends in one message, by sft.cli or sft.training.bridge.
ONE_MESSAGE = (KeyboardInterrupt, SystemExit, InputError, OSError, MemoryError, CheckpointException)
# Keys of `model` in params.yaml that are not fields of a provider.
NOT_PROVIDER_FIELDS = {"recipe"}
# Bridge cannot validate these without Transformer Engine and a driver: the values while it validates.
RELAXED = {
    "apply_rope_fusion": False,
    "moe_permute_fusion": False,
    "moe_token_dispatcher_type": "alltoall",
    "moe_flex_dispatcher_backend": None,
}


def on_cpu() -> bool:
    """Whether this machine trains on its CPU."""
    return not torch.cuda.is_available()


def prepare_imports() -> None:
    """Make megatron.bridge importable on this machine, without its harmless warnings."""
    from transformers.utils import logging as transformers_logging

    for name in NOISY_LOGGERS:
        logging.getLogger(name).disabled = True
    transformers_logging.set_verbosity_error()  # Bridge uses deprecated arguments
    if on_cpu():
        from sft.training import cpu

        cpu.install()
    else:
        from sft.training import gpu

        gpu.install()
    _skip_helper_build()


@contextlib.contextmanager
def quiet(log: Path = Path(os.devnull)) -> Iterator[None]:
    """Send Bridge's output and warnings to a file, or nowhere; errors also go to the terminal.

    The traceback that Bridge logs of what ends in one message of ours goes to the file only.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    root = logging.getLogger()
    with log.open("a", encoding="utf-8") as file, contextlib.redirect_stdout(file):
        to_file, to_terminal = logging.StreamHandler(file), logging.StreamHandler(sys.stderr)
        to_terminal.setLevel(logging.ERROR)
        to_terminal.addFilter(lambda record: not (record.exc_info and isinstance(record.exc_info[1], ONE_MESSAGE)))
        before = root.handlers
        root.handlers = [to_file, to_terminal]
        root.setLevel(logging.WARNING)
        logging.captureWarnings(True)
        try:
            yield
        finally:
            logging.captureWarnings(False)
            root.handlers = before


def _skip_helper_build() -> None:
    """Keep Bridge from running `make` for a helper that the wheel has compiled, without its Makefile."""
    from megatron.bridge.training import initialize
    from megatron.core import datasets

    if not (Path(datasets.__path__[0]) / "Makefile").exists():
        initialize.compile_helpers = lambda: None


def model_of(base: Path, *, weights: bool, on_gpu: bool | None = None) -> tuple[Any, Any]:
    """Return (AutoBridge of a Hugging Face folder, provider of the same model in Megatron).

    Raises:  InputError: AutoBridge does not know the architecture.
    """
    prepare_imports()
    from megatron.bridge import AutoBridge

    if not AutoBridge.can_handle(str(base)):
        raise InputError(
            f"{base}/config.json: Megatron-Bridge does not support this architecture, expected one of: "
            f"{', '.join(sorted(AutoBridge.list_supported_models()))}"
        )
    bridge = AutoBridge.from_hf_pretrained(str(base), dtype=torch.float32)
    provider = bridge.to_megatron_provider(load_weights=weights)
    _configure(provider, on_gpu if on_gpu is not None else not on_cpu())
    return bridge, provider


def _configure(provider: Any, on_gpu: bool) -> None:
    """Let a provider make a model in fp32, for GPUs or for this machine's CPU."""
    provider.bf16 = provider.fp16 = False
    provider.params_dtype = provider.pipeline_dtype = provider.autocast_dtype = torch.float32
    if not on_gpu:
        from sft.training import cpu

        cpu.configure(provider)
    elif not on_cpu():  # not for a cluster, whose nodes may have other packages
        from sft.training import gpu

        gpu.configure(provider)


def load_recipe(name: str, base: Path) -> Any:
    """Return the config of a recipe function of Bridge, named by its dotted path, for the model in `base`.

    Raises:  InputError: no such function (with the nearest one), it needs arguments, or returns no ConfigContainer.
    """
    prepare_imports()
    from megatron.bridge.training.config import ConfigContainer

    module_name, _, function = name.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise InputError(
            f"params.yaml: model.recipe: {name}: no module {error.name}. Expected "
            "megatron.bridge.recipes.<family>.<model>.<function>, as in "
            "megatron.bridge.recipes.nemotronh.nemotron_3_nano.nemotron_3_nano_sft_config"
        ) from error
    recipe = getattr(module, function, None)
    if not callable(recipe):
        known = [recipe for recipe in dir(module) if recipe.endswith("_config") and not recipe.startswith("_")]
        near = difflib.get_close_matches(function, known, n=1, cutoff=0.0)
        raise InputError(
            f"params.yaml: model.recipe: {module_name} has no function {function}. "
            f"{f'Did you mean {module_name}.{near[0]}? ' if near else ''}It has: {', '.join(known) or 'no recipe'}."
        )
    with _hub_replaced_by(base):
        try:
            config = recipe()
        except TypeError as error:
            raise InputError(f"params.yaml: model.recipe: {name} needs arguments, expected none: {error}") from error
    if not isinstance(config, ConfigContainer):
        raise InputError(f"params.yaml: model.recipe: {name} returns {type(config).__name__}, expected ConfigContainer")
    return config


@contextlib.contextmanager
def _hub_replaced_by(base: Path) -> Iterator[None]:
    """Let AutoBridge read `base` for every model name."""
    from megatron.bridge import AutoBridge

    original = AutoBridge.__dict__["from_hf_pretrained"]

    def from_base(cls: Any, path: Any, /, **options: Any) -> Any:
        return original.__func__(cls, str(base), dtype=torch.float32)

    AutoBridge.from_hf_pretrained = classmethod(from_base)
    try:
        yield
    finally:
        AutoBridge.from_hf_pretrained = original


def build(
    params: p.TrainParams,
    *,
    base: Path,
    start: Path,
    packed: Path,
    run: Path,
    pack_size: int,
    load: Path | None = None,
    eval_iters: int = 0,
    on_gpu: bool,
) -> Any:
    """Return the ConfigContainer of a training: the recipe's, with the sections of params.yaml set on it.

    Args:
        params: The training sections of params.yaml.
        base: Hugging Face folder with config and tokenizer; config.json is enough.
        start: Folder of the weights to start from; it must exist.
        packed: Folder with training/*.parquet; without it, the config has no data.
        run: Folder of the run: checkpoints/, validation/.
        pack_size: Longest pack, in tokens.
        load: Checkpoint to resume from.
        eval_iters: Batches of one validation.
        on_gpu: Whether GPUs will train; this machine may have none.

    Raises:  InputError: the recipe or the model cannot be used.
    """
    prepare_imports()
    from megatron.bridge.data.packing.config import PackedSequenceSpecs
    from megatron.bridge.training import config as c
    from megatron.bridge.training.tokenizers.config import TokenizerConfig

    recipe = load_recipe(params.model.recipe, base) if params.model.recipe else None
    provider = _provider(params, base, recipe, pack_size, on_gpu)
    layout, steps = params.model, params.train
    context_parallel = layout.context_parallel_size
    grad_in_fp32 = params.mixed_precision.grad_reduce_in_fp32

    optimizer = recipe.optimizer if recipe else c.OptimizerConfig(optimizer="adam")
    ddp = recipe.ddp if recipe and on_gpu else c.DistributedDataParallelConfig()
    for name, value in params.optimizer:
        setattr(optimizer, name, value)
    optimizer.bf16 = optimizer.fp16 = False  # until Bridge applies mixed_precision
    optimizer.params_dtype = torch.float32
    optimizer.use_distributed_optimizer = ddp.use_distributed_optimizer = on_gpu
    ddp.grad_reduce_in_fp32 = grad_in_fp32
    ddp.average_in_collective = False  # the loss is a mean over tokens, not over ranks

    container = c.ConfigContainer(
        model=provider,
        mixed_precision=_precision(params.mixed_precision.name, grad_in_fp32),
        peft=None if params.peft.name is None else adapters(params.peft),
        comm_overlap=recipe.comm_overlap if recipe and on_gpu else None,
        env_vars=recipe.env_vars if recipe and on_gpu else {},
        train=c.TrainingConfig(
            train_iters=steps.steps,
            global_batch_size=steps.global_batch_size,
            micro_batch_size=steps.micro_batch_size,
            exit_signal_handler=True,  # of SIGTERM: all ranks save a checkpoint and exit
        ),
        validation=c.ValidationConfig(eval_interval=params.validation.eval_interval, eval_iters=eval_iters),
        optimizer=optimizer,
        ddp=ddp,
        scheduler=c.SchedulerConfig(
            lr_decay_style=params.scheduler.lr_decay_style,
            lr_warmup_iters=params.scheduler.lr_warmup_iters,
            lr_decay_iters=params.scheduler.lr_decay_iters or steps.steps,
            start_weight_decay=params.optimizer.weight_decay,
            end_weight_decay=params.optimizer.weight_decay,
            weight_decay_incr_style="constant",
            override_opt_param_scheduler=True,
        ),
        dataset=c.GPTSFTDatasetConfig(
            dataset_root=str(run),  # Bridge creates folders in it although every path is given
            seq_length=pack_size,
            seed=params.rng.seed,
            dataloader_type="batch",
            num_workers=2 if on_gpu else 0,
            memmap_workers=1,
            pin_memory=on_gpu,
            enable_offline_packing=True,
            offline_packing_specs=PackedSequenceSpecs(
                packed_sequence_size=pack_size,
                packed_train_data_path=str(packed / "training") if (packed / "training").is_dir() else None,
                packed_val_data_path=str(run / "validation") if eval_iters and (run / "validation").is_dir() else None,
                packed_metadata_path=str(packed / "metadata.json"),
                pad_seq_to_mult=2 * context_parallel if context_parallel > 1 else 1,
            ),
            dataset_kwargs={"pad_to_max_length": True} if checks.has_fixed_length(layout) else None,
            do_validation=eval_iters > 0,
            do_test=False,
        ),
        logger=c.LoggerConfig(
            skip_train_metrics_log=True,
            log_throughput=False,
            logging_level=logging.WARNING,
            tensorboard_dir=None,
        ),
        tokenizer=TokenizerConfig(tokenizer_type="HuggingFaceTokenizer", tokenizer_model=str(base)),
        checkpoint=c.CheckpointConfig(
            pretrained_checkpoint=str(start),
            load=None if load is None else str(load),
            save=str(run / "checkpoints"),
            save_interval=params.checkpoint.save_interval,
            most_recent_k=-1,  # sft.training.checkpoints removes old ones with their manifests
            ckpt_format="torch_dist",
            async_save=params.checkpoint.async_save,
            async_strategy="mcore",  # nvidia-resiliency-ext is not pinned
            ckpt_assume_constant_structure=False,  # with it, async_save writes the first weights again (NeMo-RL #3312)
            fully_parallel_save=on_gpu,
        ),
        dist=c.DistributedInitConfig(distributed_backend="nccl" if on_gpu else "gloo", disable_jit_fuser=not on_gpu),
        rng=c.RNGConfig(seed=params.rng.seed),
        rerun_state_machine=c.RerunStateMachineConfig(check_for_spiky_loss=True),  # read by sft.training.divergence
    )
    if params.bridge.fields:
        _refuse_shapes(params.bridge, base)
        before = geometry_of(provider)
        overrides.apply(container, params.bridge.fields)
        if geometry_of(provider) != before:
            raise InputError("params.yaml: bridge.model: changes the model's shapes, which fetch.model determines.")
    return container


def _refuse_shapes(bridge: p.Bridge, base: Path) -> None:
    """Raise InputError if `bridge` has a field that AutoBridge reads from the model's config.json."""
    from megatron.bridge import AutoBridge

    mapped = {name: key for key, name in AutoBridge.from_hf_pretrained(str(base))._model_bridge.CONFIG_MAPPING}
    for name in bridge.fields.get("model", {}):
        if name in mapped:
            raise InputError(
                f"params.yaml: bridge.model.{name}: {base}/config.json sets it ({mapped[name]}), so that the exported "
                "model is the trained one. Choose another model in fetch.model."
            )


def check_bridge(bridge: p.Bridge) -> None:
    """Raise InputError if ConfigContainer has no such fields, or of another type; the model may not be known yet."""
    prepare_imports()
    from megatron.bridge.training.config import ConfigContainer

    overrides.check(bridge.fields, overrides.section_classes(ConfigContainer))


def check_bridge_is_used(params: p.TrainParams, base: Path, pack_size: int, ranks: int, *, on_gpu: bool) -> None:
    """Raise InputError if a field of `bridge` is rejected, or gets another value when Bridge completes the config."""
    if not params.bridge.fields:
        return
    with tempfile.TemporaryDirectory() as scratch:  # Bridge requires that the folder of the weights exists
        folder = Path(scratch)
        container = build(
            params, base=base, start=folder, packed=folder, run=folder, pack_size=pack_size, on_gpu=on_gpu
        )
        resolve(container, ranks)
    if messages := overrides.ignored(container, params.bridge.fields):
        raise InputError("\n".join(messages))


def _provider(params: p.TrainParams, base: Path, recipe: Any, pack_size: int, on_gpu: bool) -> Any:
    """Return the provider of the recipe, or of AutoBridge, with `model` of params.yaml set on it."""
    _, plain = model_of(base, weights=False, on_gpu=on_gpu)
    provider = plain
    if recipe is not None:
        provider = recipe.model
        found, expected = geometry_of(provider), geometry_of(plain)
        if differences := checks.geometry_differences(found, expected):
            raise InputError(
                f"params.yaml: model.recipe: {params.model.recipe} has other shapes than {base}/config.json: "
                f"{'; '.join(differences)}. Choose the recipe of this model."
            )
        _configure(provider, on_gpu)
    for name, value in params.model:
        if name not in NOT_PROVIDER_FIELDS and value is not None:
            setattr(provider, name, value)
    provider.seq_length = pack_size
    if not on_gpu:
        from sft.training import cpu

        cpu.check_window(provider)
    provider.calculate_per_token_loss = True
    if getattr(provider, "num_moe_experts", None):
        provider.expert_tensor_parallel_size = 1  # as in all recipes (docs/known-issues.md, expert-adapters)
        if params.peft.name is not None:
            provider.moe_shared_expert_overlap = False  # the same issue for the shared expert
            provider.moe_router_bias_update_rate = 0.0  # docs/known-issues.md, frozen-bias
    if params.model.moe_token_dispatcher_type not in (None, "flex"):
        provider.moe_flex_dispatcher_backend = None
    return provider


def _precision(name: str, grad_reduce_in_fp32: bool) -> Any:
    from megatron.bridge.training.mixed_precision import get_mixed_precision_config

    if name == "fp32":
        return None
    precision = get_mixed_precision_config(name)
    precision.grad_reduce_in_fp32 = grad_reduce_in_fp32
    return precision


def adapters(peft: p.Peft) -> Any:
    """Return Bridge's config of the adapters that `peft` of params.yaml describes."""
    from megatron.bridge.peft.lora import LoRA

    return LoRA(target_modules=list(peft.target_modules), dim=peft.dim, alpha=peft.alpha, dropout=peft.dropout)


def resolve(config: Any, ranks: int) -> tuple[dict[str, Any], list[str]]:
    """Return (values, relaxed) after Bridge resolved and validated a config for a number of ranks, as in its set-up.

    `values` has every value of every section as plain JSON. On a machine without a GPU, the fields of RELAXED are off
    while Bridge validates, because Transformer Engine and DeepEP look for a driver. `relaxed` names those whose value
    was not validated.

    Raises:  InputError: Bridge rejects a value; has its message.
    """
    from megatron.bridge.training.config import runtime_config_update

    model, values_to_restore = config.model, {}
    if on_cpu():
        moe = bool(getattr(model, "num_moe_experts", None))
        values_to_restore = {
            name: getattr(model, name)
            for name, off in RELAXED.items()
            if (moe or not name.startswith("moe_")) and getattr(model, name, off) != off
        }
        for name in values_to_restore:
            setattr(model, name, RELAXED[name])
    before = dict(os.environ)
    os.environ.update(WORLD_SIZE=str(ranks), RANK="0", LOCAL_RANK="0")
    try:
        runtime_config_update(config)
    except (AssertionError, ValueError) as error:
        raise InputError(f"params.yaml: Megatron-Bridge rejects these params for {ranks} ranks: {error}") from error
    finally:
        os.environ.clear()
        os.environ.update(before)
    for name, value in values_to_restore.items():
        setattr(model, name, value)
    return plain_values(config), sorted(values_to_restore)


def plain_values(value: Any) -> Any:
    """Return a config as plain JSON: sections and fields by name, types and functions by their names."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, torch.dtype | Path):
        return str(value)
    if isinstance(value, dict):
        return {str(key): plain_values(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain_values(part) for part in value]
    if isinstance(value, set | frozenset):
        return sorted(str(part) for part in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value) if not field.name.startswith("_")]
        return {name: plain_values(getattr(value, name, None)) for name in names}
    if isinstance(value, functools.partial):
        return plain_values(value.func)
    named = value if callable(value) and hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"


def geometry_of(provider: Any) -> Geometry | None:
    """Return the shapes of a provider's model, for the estimate and the checks.

    None: Geometry does not describe the architecture (latent attention, MLA, as in DeepSeek, Kimi and GLM 5).
    """
    if getattr(provider, "multi_latent_attention", False):
        return None
    layers = provider.num_layers or len(getattr(provider, "hybrid_layer_pattern", None) or "")
    experts = getattr(provider, "num_moe_experts", None) or 0
    pattern = getattr(provider, "hybrid_layer_pattern", None)
    if pattern is None:
        frequency = getattr(provider, "moe_layer_freq", 1)
        has_experts = frequency if isinstance(frequency, list) else [index % frequency == 0 for index in range(layers)]
        pattern = "".join("*E" if experts and has_experts[index] else "*-" for index in range(layers))
    heads = provider.num_attention_heads
    return Geometry(
        vocabulary=provider.vocab_size,
        hidden=provider.hidden_size,
        pattern=pattern.split("/")[0].replace("|", ""),
        heads=heads,
        query_groups=provider.num_query_groups or heads,
        head_dim=provider.kv_channels or provider.hidden_size // heads,
        ffn=provider.ffn_hidden_size or 4 * provider.hidden_size,
        gated=bool(provider.gated_linear_unit),
        tied=bool(provider.share_embeddings_and_output_weights),
        layers=layers,
        linear_bias=bool(provider.add_bias_linear),
        qkv_bias=bool(provider.add_bias_linear or getattr(provider, "add_qkv_bias", False)),
        qk_norm=bool(getattr(provider, "qk_layernorm", False)),
        experts=experts,
        expert_ffn=getattr(provider, "moe_ffn_hidden_size", None) or 0,
        experts_per_token=getattr(provider, "moe_router_topk", 0) if experts else 0,
        shared_ffn=getattr(provider, "moe_shared_expert_intermediate_size", None) or 0,
        mamba_heads=getattr(provider, "mamba_num_heads", None) or 0 if "M" in pattern else 0,
        mamba_head_dim=getattr(provider, "mamba_head_dim", 0) if "M" in pattern else 0,
        mamba_state=getattr(provider, "mamba_state_dim", 0) if "M" in pattern else 0,
        mamba_groups=getattr(provider, "mamba_num_groups", 0) if "M" in pattern else 0,
        sample_boundaries="M" not in pattern or bool(getattr(provider, "is_hybrid_model", False)),
    )


def geometry_of_checkpoint(checkpoint: Path) -> Geometry | None:
    """Return the shapes of the model in a Megatron checkpoint. Check its manifest first."""
    prepare_imports()
    from megatron.bridge.training.model_load_save import load_model_config
    from megatron.bridge.utils.instantiate_utils import register_allowed_target_prefix

    register_allowed_target_prefix("sft.")
    return geometry_of(load_model_config(str(checkpoint))[0])
