"""The sections of params.yaml that determine the training, named as in Megatron-Bridge's ConfigContainer."""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from sft.params.base import MAX_INT, Positive, Section, Seed, Share


class Model(Section):
    """Parallel layout and computation. The weights of fetch.model determine the geometry."""

    recipe: Annotated[str, Field(pattern=r"^megatron\.bridge\.recipes(\.\w+)+$")] | None
    """Recipe function of Bridge, by dotted name, that all other params override; null = none."""
    tensor_model_parallel_size: Positive
    """GPUs that share each matrix (TP)."""
    pipeline_model_parallel_size: Positive
    """GPUs that share the layers (PP)."""
    context_parallel_size: Positive
    """GPUs that share each pack (CP)."""
    expert_model_parallel_size: Positive
    """GPUs that share the experts of a layer (EP); 1 for a model without experts."""
    sequence_parallel: bool
    """Share activations over the TP GPUs too. Required with experts and TP > 1."""
    attention_dropout: Share
    """Dropout of attention weights."""
    hidden_dropout: Share
    """Dropout of hidden states."""
    recompute_granularity: Literal["full", "selective"] | None
    """Gradient checkpointing: activations that are recomputed instead of stored; null = the recipe's value, or none."""
    recompute_method: Literal["uniform", "block"] | None
    """With full: uniform (groups of layers) or block (the first layers)."""
    recompute_num_layers: Positive | None
    """With full: layers per group (uniform), or number of recomputed layers (block)."""
    recompute_modules: list[str] | None
    """With selective: recomputed parts of a layer: core_attn, moe, moe_act, layernorm, mlp, ..."""
    moe_aux_loss_coeff: Annotated[float, Field(ge=0)] | None
    """Weight of the loss that balances experts; null = the value of model or recipe."""
    moe_token_dispatcher_type: Literal["allgather", "alltoall", "flex"] | None
    """How tokens are sent to experts (flex: DeepEP); null = the value of model or recipe."""
    moe_permute_fusion: bool | None
    """Sort tokens by expert in one kernel of Transformer Engine; null = the value of model or recipe."""

    @model_validator(mode="after")
    def _recompute_is_complete(self) -> "Model":
        of_full = {self.recompute_method, self.recompute_num_layers} - {None}
        if self.recompute_granularity == "full" and (None in (self.recompute_method, self.recompute_num_layers)):
            raise ValueError("recompute_granularity full needs recompute_method and recompute_num_layers")
        if self.recompute_granularity != "full" and of_full:
            raise ValueError("recompute_method and recompute_num_layers go with recompute_granularity full")
        if self.recompute_granularity != "selective" and self.recompute_modules is not None:
            raise ValueError("recompute_modules goes with recompute_granularity selective")
        return self


class MixedPrecision(Section):
    """Number formats."""

    name: Literal["fp32", "bf16_mixed"]
    """Recipe of Bridge. A CPU trains in fp32."""
    grad_reduce_in_fp32: bool
    """Store and reduce gradients in fp32; false halves their memory."""


class Peft(Section):
    """Adapters that are trained instead of the weights."""

    name: Literal["lora"] | None
    """Kind of adapter; null = train all weights. No DoRA: Bridge 0.6.2 exports it without its magnitudes. No QLoRA."""
    dim: Positive
    """Rank of an adapter."""
    alpha: Positive
    """The output of an adapter is multiplied by alpha / dim."""
    dropout: Share
    """Dropout of an adapter's input."""
    target_modules: Annotated[list[str], Field(min_length=1)]
    """Matrices with an adapter, by Megatron's names or wildcards. Those of a Mamba layer: in_proj, out_proj."""

    export: Literal["merged", "adapter", "both"] = "merged"
    """What models/final has: the merged weights; the adapter alone, for the package peft; or both (adapter/)."""

    @field_validator("name", mode="before")
    @classmethod
    def _is_supported(cls, name: object) -> object:
        if name == "qlora":
            raise ValueError("qlora trains on 4-bit weights, which Megatron-Bridge 0.6.2 cannot import. Use lora")
        if name == "dora":
            raise ValueError("dora is exported without its magnitudes by Megatron-Bridge 0.6.2. Use lora")
        return name


class Optimizer(Section):
    """AdamW with decoupled weight decay."""

    lr: Annotated[float, Field(gt=0)]
    """Peak learning rate."""
    min_lr: Annotated[float, Field(ge=0)]
    """Learning rate at the end of the decay."""
    weight_decay: Annotated[float, Field(ge=0)]
    """Weight decay."""
    adam_beta1: Annotated[float, Field(ge=0, lt=1)]
    """Decay of the mean of gradients."""
    adam_beta2: Annotated[float, Field(ge=0, lt=1)]
    """Decay of the mean of squared gradients."""
    adam_eps: Annotated[float, Field(gt=0)]
    """Added to the denominator of an update."""
    clip_grad: Annotated[float, Field(ge=0)]
    """Largest norm of the gradient; 0 = no clipping."""

    @model_validator(mode="after")
    def _lr_does_not_rise(self) -> "Optimizer":
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr {self.min_lr} is above lr {self.lr}. The learning rate falls from lr to min_lr")
        return self


class Scheduler(Section):
    """Learning rate by step."""

    lr_decay_style: Literal["cosine", "linear", "constant"]
    """Shape of the decay after the warm-up."""
    lr_warmup_iters: Annotated[int, Field(ge=0, le=MAX_INT)]
    """Steps of linear warm-up."""
    lr_decay_iters: Positive | None
    """Steps until min_lr; null = all steps of the run."""


class Train(Section):
    """Length of the run: a number of steps, or of epochs."""

    train_iters: Annotated[int, Field(gt=0, lt=1 << 31)] | None = None
    """Optimizer steps; null = by epochs."""
    epochs: Annotated[float, Field(gt=0)] | None = None
    """Instead of train_iters: how often the packs of the training split are seen, such as 0.5 or 3."""
    global_batch_size: Positive
    """Packs per step, over all GPUs."""
    micro_batch_size: Literal[1]
    """Packs at a time on a GPU. Bridge requires 1 for packed sequences."""

    @model_validator(mode="after")
    def _one_length(self) -> "Train":
        if self.train_iters is not None and self.epochs is not None:
            raise ValueError(
                f"train_iters {self.train_iters} and epochs {self.epochs:g} both set the length of the run. Set one "
                "of them to null"
            )
        if self.train_iters is None and self.epochs is None:
            raise ValueError("train_iters and epochs are both null. Set one of them: train_iters: 1000, or epochs: 1")
        return self

    @property
    def steps(self) -> int:
        """The optimizer steps of params that `TrainParams.with_steps` returned."""
        assert self.train_iters is not None
        return self.train_iters


class Validation(Section):
    """Loss on the validation split during training."""

    eval_interval: Positive
    """Steps between two validations."""
    eval_iters: Annotated[int, Field(ge=0, le=MAX_INT)]
    """Batches per validation, the same each time and at most the whole split; 0 = no validation."""


class Checkpoint(Section):
    """Checkpoints: how many are saved, which one is exported, and where training starts."""

    save_interval: Positive
    """Steps between two checkpoints."""
    most_recent_k: Positive
    """Number of latest checkpoints to keep."""
    save_retain_interval: Positive | None
    """Keep the checkpoint of every such step for good; null = none. A multiple of save_interval."""
    async_save: bool
    """Continue training while a checkpoint is written."""
    export: Literal["last", "best"]
    """Checkpoint that becomes models/final: the last one, or the best by validation loss."""
    pretrained_checkpoint: str | None
    """Megatron checkpoint to start from; null = import models/base."""
    save_minutes: Annotated[float, Field(gt=0)] | None = None
    """Save also when this many minutes have passed since the last checkpoint; null = by save_interval only."""
    pretrained_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """Digest of its files, if another program made it: the training prints it. Loading a checkpoint can run code."""

    @model_validator(mode="after")
    def _a_digest_has_its_checkpoint(self) -> "Checkpoint":
        if self.pretrained_sha256 and not self.pretrained_checkpoint:
            raise ValueError("pretrained_sha256 goes with pretrained_checkpoint")
        return self

    @model_validator(mode="after")
    def _retained_are_saved(self) -> "Checkpoint":
        if self.save_retain_interval is not None and self.save_retain_interval % self.save_interval:
            raise ValueError(
                f"save_retain_interval {self.save_retain_interval} is not a multiple of save_interval "
                f"{self.save_interval}, so there is nothing to keep"
            )
        return self


class Rng(Section):
    """Random numbers of the training."""

    seed: Seed
    """Seed of data order and dropout."""


# Fields of Megatron-Bridge's ConfigContainer that follow from params with another name.
SET_BY = {
    "dataset.offline_packing_specs": "pack.pack_size",
    "dataset.seed": "rng.seed",
    "dataset.seq_length": "pack.pack_size",
    "ddp.grad_reduce_in_fp32": "mixed_precision.grad_reduce_in_fp32",
    "scheduler.end_weight_decay": "optimizer.weight_decay",
    "scheduler.start_weight_decay": "optimizer.weight_decay",
    "model.seq_length": "pack.pack_size",
    "tokenizer": "fetch.model",
    **{
        f"{section}.{field}": "mixed_precision.name"
        for section in ("model", "optimizer", "ddp", "mixed_precision")
        for field in ("bf16", "fp16", "params_dtype", "pipeline_dtype", "autocast_dtype")
    },
}
# Those on which the order of packs, the loss, resuming and the export rely.
FIXED = {
    "checkpoint": ("load", "save", "ckpt_format", "async_strategy", "ckpt_assume_constant_structure", "save_optim"),
    "dataset": (
        *("dataset_root", "dataset_kwargs", "dataloader_type", "do_test", "do_validation"),
        "enable_offline_packing",
    ),
    "ddp": ("average_in_collective",),
    "dist": ("distributed_backend",),
    "logger": ("skip_train_metrics_log",),
    "model": ("calculate_per_token_loss", "expert_tensor_parallel_size", "transformer_layer_spec"),
    "optimizer": ("optimizer",),
    "scheduler": ("weight_decay_incr_style", "override_opt_param_scheduler"),
}


class Bridge(Section):
    """Any other field of Megatron-Bridge's ConfigContainer, by its own names: `{ddp: {overlap_grad_reduce: true}}`.

    They are set last, on top of the recipe's and of the sections above; a field that another section sets is an error
    there. `make repro bridge.ddp.overlap_grad_reduce=true` sets one (with `dvc exp run -S`: `+bridge.ddp...`).
    """

    model_config = ConfigDict(extra="allow")

    @property
    def fields(self) -> dict[str, dict[str, Any]]:
        """Values by section and field of ConfigContainer."""
        return dict(self.model_extra or {})

    @model_validator(mode="after")
    def _no_section_sets_it(self) -> "Bridge":
        messages = []
        for section, values in self.fields.items():
            if not isinstance(values, dict):
                raise ValueError(f"{section}: expected its fields, as in {{ddp: {{overlap_grad_reduce: true}}}}")
            same = TrainParams.model_fields.get(section)
            if unnamed := [field for field in values if not isinstance(field, str)]:
                raise ValueError(
                    f"{section}.{unnamed[0]}: expected the name of a field, found a {type(unnamed[0]).__name__}"
                )
            for field in values:
                key = f"{section}.{field}"
                setter = SET_BY.get(key) or SET_BY.get(section)
                if section == "peft" or (same and field in same.annotation.model_fields):  # type: ignore[union-attr]
                    setter = key
                if setter:
                    messages.append(f"{key} is set by another section: set {setter} instead")
                elif field in FIXED.get(section, ()):
                    messages.append(f"{key} cannot be changed: the order of packs, the loss or the export rely on it")
        if messages:
            raise ValueError("; ".join(messages))
        return self


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
    bridge: Bridge

    def with_steps(self, packs: int) -> "TrainParams":
        """Return these params with `train.train_iters` instead of `train.epochs`, for a number of packs.

        In each epoch Megatron-Bridge leaves out the last packs that do not fill a step.
        """
        if self.train.epochs is None:
            return self
        steps = max(1, round(self.train.epochs * (packs // self.train.global_batch_size)))
        return self.model_copy(update={"train": self.train.model_copy(update={"train_iters": steps, "epochs": None})})
