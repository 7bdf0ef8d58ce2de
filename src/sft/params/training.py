"""The sections of params.yaml that determine the training, with the names of Megatron-Bridge's ConfigContainer."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from sft.params.base import Positive, Section, Share


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
