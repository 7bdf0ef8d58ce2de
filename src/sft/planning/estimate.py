"""The estimate of memory, time and disk of a training, from params.yaml and the shapes of the model. Pure arithmetic.

Parameters are counted exactly. Weights, gradients and optimizer states follow exactly from them and the parallel
layout. Activations are a model of what a backward pass keeps, the uncertain part.

Measured errors:
- parameters: none. Counts equal those of transformers for Nemotron 3 Nano and every model tried.
- memory of a CPU run (fp32): 0.93 to 1.34 times the estimate with SmolLM2-135M in packs of 512 (bench/estimate.py:
  all kept, recomputed, adapters), hence MEMORY_ERROR. Not measured on a GPU.
- checkpoints: 12 bytes a parameter in fp32, as a CPU run writes; 14 under BF16 by the same arithmetic.
- time: not measured. It is a range between two values of UTILIZATION.

Bytes are decimal in messages (1 GB = 1e9). Not counted: CUDA context, NCCL buffers, fragmentation. RESERVE of a GPU is
left for them.

Sources: activations of attention and MLP after Korthikanti et al. 2022 (arXiv 2205.05198), with attention that keeps
no scores; optimizer states after Megatron-Core's distributed optimizer; Mamba-2 after megatron.core 0.19.2
ssm/mamba_mixer.py.
"""

import dataclasses
import itertools
from dataclasses import dataclass

from sft.params import training as p

RESERVE = 0.1
"""Share of a GPU's memory that stays free."""
UTILIZATION = (0.15, 0.40)
"""Shares of a GPU's dense BF16 FLOP/s that training reaches: pessimistic, optimistic."""
MEMORY_ERROR = 0.35
"""Share by which the memory of a step can differ from the estimate."""
GPUS = {
    "A100-40GB": (40e9, 312e12),
    "A100-80GB": (80e9, 312e12),
    "H100": (80e9, 989e12),
    "H200": (141e9, 989e12),
    "B200": (180e9, 2250e12),
}
"""Memory in bytes, dense BF16 FLOP per second, as the vendor states them."""
MAMBA_CONVOLUTION, MAMBA_CHUNK = 4, 128


def peak_flops(name: str) -> float | None:
    """Return the dense BF16 FLOP per second of a GPU by the name that its driver gives it; None: not known.

    >>> [peak_flops(f"NVIDIA {name}") for name in ("H100 80GB HBM3", "H100 PCIe", "H200 MIG 1g.18gb", "V100")]
    [989000000000000.0, None, None, None]
    """
    words = name.replace("-", " ").split()
    if {"PCIe", "NVL", "MIG"} & set(words):  # slower than those of GPUS, or a part of one
        return None
    return next((flops for known, (_, flops) in GPUS.items() if known.partition("-")[0] in words), None)


@dataclass(frozen=True)
class Geometry:
    """Shapes of a model. `pattern` has a letter for each layer: * attention, - MLP, E experts, M Mamba-2."""

    vocabulary: int
    hidden: int
    pattern: str
    heads: int
    query_groups: int
    head_dim: int
    ffn: int
    gated: bool
    tied: bool
    """Whether embedding and output layer share their weights."""
    layers: int
    """As Megatron counts them: attention and its MLP are one layer, except in a hybrid model."""
    linear_bias: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False
    experts: int = 0
    expert_ffn: int = 0
    experts_per_token: int = 0
    shared_ffn: int = 0
    mamba_heads: int = 0
    mamba_head_dim: int = 0
    mamba_state: int = 0
    mamba_groups: int = 0
    sample_boundaries: bool = True
    """Whether Mamba layers, if any, get the boundaries of packed samples."""

    @property
    def mamba_inner(self) -> int:
        """Width inside a Mamba layer."""
        return self.mamba_heads * self.mamba_head_dim

    @property
    def mamba_projection(self) -> int:
        """Width of the input projection of a Mamba layer: z, x, B, C and dt."""
        return 2 * self.mamba_inner + 2 * self.mamba_groups * self.mamba_state + self.mamba_heads


@dataclass(frozen=True)
class Count:
    """Numbers of parameters, by how a layout divides them."""

    split: int = 0
    """Divided over the tensor-parallel GPUs."""
    copied: int = 0
    """Whole on each tensor-parallel GPU."""
    expert: int = 0
    """Of routed experts: divided over the expert-parallel GPUs."""

    def __add__(self, other: "Count") -> "Count":
        return Count(self.split + other.split, self.copied + other.copied, self.expert + other.expert)

    @property
    def total(self) -> int:
        """All of them."""
        return self.split + self.copied + self.expert


@dataclass(frozen=True)
class Layout:
    """The parallel layout: how many GPUs divide what."""

    ranks: int
    tensor: int
    pipeline: int
    context: int
    expert: int
    sequence_parallel: bool

    @property
    def data(self) -> int:
        """Groups of GPUs that take different packs."""
        return self.ranks // (self.tensor * self.pipeline * self.context)

    @property
    def dense_copies(self) -> int:
        """GPUs with the same dense weights; they share optimizer states."""
        return self.ranks // (self.tensor * self.pipeline)

    @property
    def expert_copies(self) -> int:
        """GPUs with the same experts."""
        return max(1, self.ranks // (self.pipeline * self.expert))


@dataclass(frozen=True)
class Memory:
    """Bytes on the GPU that needs most."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float

    @property
    def total(self) -> float:
        """Sum, without RESERVE."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits


@dataclass(frozen=True)
class Estimate:
    """What a training needs in memory, arithmetic and disk."""

    parameters: int
    active: int
    """Parameters that one token uses."""
    trained: int
    """Parameters that training changes: all, or those of adapters."""
    memory: Memory
    flops_per_step: float
    """Of one optimizer step over all GPUs, including recomputation."""
    tokens_per_step: int
    """At most, with full packs."""
    checkpoint: float
    """Bytes of one checkpoint of the run."""
    checkpoints: int
    """Most checkpoints that exist at a time."""
    imported: float
    """Bytes of the base model as a Megatron checkpoint. Importing it takes as much host memory."""
    exported: float
    """Bytes of models/final."""

    @property
    def disk(self) -> float:
        """Most bytes in runs/ and models/final at a time."""
        return self.checkpoint * self.checkpoints + self.imported + self.exported

    def seconds_per_step(self, flops: float, ranks: int) -> tuple[float, float]:
        """Return (least, most) seconds of a step; `flops` are those of one GPU per second."""
        slow, fast = UTILIZATION
        return self.flops_per_step / (ranks * flops * fast), self.flops_per_step / (ranks * flops * slow)


def layer_count(g: Geometry, kind: str) -> Count:
    """Return the parameters of one layer with its norm."""
    h, gates = g.hidden, 2 if g.gated else 1
    if kind == "*":
        qkv = (g.heads + 2 * g.query_groups) * g.head_dim
        biases = qkv * g.qkv_bias
        norms = h + 2 * g.head_dim * g.qk_norm
        return Count(h * qkv + biases + g.heads * g.head_dim * h, norms + h * g.linear_bias)
    if kind == "-":
        return Count(_mlp(h, g.ffn, gates) + gates * g.ffn * g.linear_bias, h + h * g.linear_bias)
    if kind == "E":
        shared = _mlp(h, g.shared_ffn, gates)
        return Count(shared, h + h * g.experts, g.experts * _mlp(h, g.expert_ffn, gates))
    if kind == "M":
        convolved = g.mamba_inner + 2 * g.mamba_groups * g.mamba_state
        split = h * g.mamba_projection + convolved * (MAMBA_CONVOLUTION + 1) + 3 * g.mamba_heads
        return Count(split + g.mamba_inner + g.mamba_inner * h, h)
    raise ValueError(f"unknown kind of layer {kind!r}: expected one of * - E M")


def _mlp(hidden: int, ffn: int, gates: int) -> int:
    return hidden * ffn * (gates + 1)


def count(g: Geometry, layers: str | None = None, *, first: bool = True, last: bool = True) -> Count:
    """Return the parameters of a model, or of a pipeline stage with these layers."""
    table = Count(g.vocabulary * g.hidden)
    total = Count()
    for kind in g.pattern if layers is None else layers:
        total += layer_count(g, kind)
    if first:
        total += table
    if last:
        total += Count(copied=g.hidden)
        if not (g.tied and first):
            total += table
    return total


def active(g: Geometry) -> int:
    """Return the number of parameters that one token uses: of the experts, those it is routed to."""
    whole = count(g)
    share = g.experts_per_token / g.experts if g.experts else 0.0
    return whole.split + whole.copied + round(whole.expert * share)


def stages(pattern: str, pipeline: int) -> list[str]:
    """Return the layers of each pipeline stage, as equal as possible."""
    cuts = [round(index * len(pattern) / pipeline) for index in range(pipeline + 1)]
    return [pattern[begin:end] for begin, end in itertools.pairwise(cuts)]


def adapter_count(g: Geometry, peft: p.Peft) -> int:
    """Return the parameters of adapters: rank x (inputs + outputs) of each matrix with one."""
    if peft.name is None:
        return 0
    h, gates = g.hidden, 2 if g.gated else 1
    attended = g.heads * g.head_dim
    matrices = {
        "*": {"linear_qkv": (h, attended + 2 * g.query_groups * g.head_dim), "linear_proj": (attended, h)},
        "-": {"linear_fc1": (h, gates * g.ffn), "linear_fc2": (g.ffn, h)},
        # Bridge adds one adapter for all experts of a GPU, and one for the shared expert.
        "E": {"linear_fc1": (h, gates * (g.expert_ffn + g.shared_ffn)), "linear_fc2": (g.expert_ffn + g.shared_ffn, h)},
        "M": {"in_proj": (h, g.mamba_projection), "out_proj": (g.mamba_inner, h)},
    }
    wanted = [matrices[kind].get(name) for kind in g.pattern for name in peft.target_modules]
    return sum(peft.dim * (inputs + outputs) for inputs, outputs in filter(None, wanted))


def kept_per_token(g: Geometry, kind: str, layout: Layout) -> float:
    """Return how many numbers one layer keeps of each token for its backward pass, on one GPU."""
    shared = layout.tensor if layout.sequence_parallel else 1
    around = 2 * g.hidden / shared  # input of the layer and output of its norm
    gates = 2 if g.gated else 1
    if kind == "*":
        return around + (2 * g.heads + 2 * g.query_groups) * g.head_dim / layout.tensor
    if kind == "-":
        return around + (gates + 1) * g.ffn / layout.tensor
    if kind == "E":
        sent = g.experts_per_token * (2 * g.hidden + (gates + 1) * g.expert_ffn) / shared
        return around + sent + (gates + 1) * g.shared_ffn / layout.tensor + 2 * g.experts / shared
    return around + (g.mamba_projection + 2 * g.mamba_inner) / layout.tensor  # states: once per MAMBA_CHUNK


def activations(g: Geometry, model: p.Model, layout: Layout, tokens: float, layers: str, width: int) -> float:
    """Return the bytes that a pipeline stage keeps of one pack, with `tokens` on a GPU and `width` bytes a number."""
    kept = [kept_per_token(g, kind, layout) for kind in layers]
    only_input = g.hidden / (layout.tensor if layout.sequence_parallel else 1)
    if model.recompute_granularity == "full":
        every = min(model.recompute_num_layers or 1, len(layers)) or 1
        if model.recompute_method == "block":
            return tokens * width * (only_input * every + sum(kept[every:]) + max(kept[:every], default=0))
        group = max((sum(kept[at : at + every]) for at in range(0, len(kept), every)), default=0)
        return tokens * width * (only_input * -(-len(layers) // every) + group)
    if model.recompute_granularity == "selective":
        modules = model.recompute_modules or ["core_attn"]
        dropped = {kind for kind, module in {"E": "moe", "-": "mlp"}.items() if module in modules}
        again = max((part for kind, part in zip(layers, kept, strict=True) if kind in dropped), default=0)
        kept = [only_input if kind in dropped else part for kind, part in zip(layers, kept, strict=True)]
        return tokens * width * (sum(kept) + again)
    return tokens * width * sum(kept)


def memory(g: Geometry, params: p.TrainParams, layout: Layout, pack_size: int, *, sharded: bool) -> Memory:
    """Return the memory of the GPU that needs most. `sharded`: copies share optimizer states, as on GPUs."""
    whole = params.mixed_precision.name == "fp32"
    width = 4 if whole else 2
    gradient = 4 if whole or params.mixed_precision.grad_reduce_in_fp32 else 2
    states = 8 if whole else 12  # two moments; under BF16 also the weight in fp32
    tokens = pack_size / layout.context
    cut = stages(g.pattern, layout.pipeline)
    by_stage = []
    for number, layers in enumerate(cut):
        first, last = number == 0, number == len(cut) - 1
        weights = count(g, layers, first=first, last=last)
        dense, experts = weights.split / layout.tensor + weights.copied, weights.expert / layout.expert
        trained_dense, trained_experts = dense, experts
        if params.peft.name is not None:
            trained_dense, trained_experts = adapter_count(dataclasses.replace(g, pattern=layers), params.peft), 0.0
        dense_share, expert_share = (layout.dense_copies, layout.expert_copies) if sharded else (1, 1)
        in_flight = packs_in_flight(layout, number, params.train.global_batch_size)
        logits = tokens * g.vocabulary / layout.tensor * (width + 8) if last else 0.0  # fp32 for the loss
        by_stage.append(
            Memory(
                weights=width * (dense + experts),
                gradients=gradient * (trained_dense + trained_experts),
                optimizer=states * (trained_dense / dense_share + trained_experts / expert_share),
                activations=activations(g, params.model, layout, tokens, layers, width) * in_flight,
                logits=logits,
            )
        )
    return max(by_stage, key=lambda stage: stage.total)


def packs_in_flight(layout: Layout, stage: int, global_batch_size: int) -> int:
    """Return of how many packs a pipeline stage keeps activations at a time (1F1B): the first stage of the most."""
    packs_per_copy = max(1, global_batch_size // max(1, layout.data))
    return min(layout.pipeline - stage, packs_per_copy)


def layout_of(model: p.Model, ranks: int) -> Layout:
    """Return the layout of params.yaml over a number of GPUs, or processes of a CPU."""
    return Layout(
        ranks=ranks,
        tensor=model.tensor_model_parallel_size,
        pipeline=model.pipeline_model_parallel_size,
        context=model.context_parallel_size,
        expert=model.expert_model_parallel_size,
        sequence_parallel=model.sequence_parallel,
    )


def most_checkpoints(checkpoint: p.Checkpoint, iterations: int | None) -> int:
    """Return the most checkpoints at a time: the newest, those kept for good, the best, one being written.

    Without a number of steps, those that are kept for good are not counted.
    """
    if iterations is None:
        return checkpoint.most_recent_k + int(checkpoint.export == "best") + 1
    saved = -(-iterations // checkpoint.save_interval)
    retained = iterations // checkpoint.save_retain_interval if checkpoint.save_retain_interval else 0
    best = int(checkpoint.export == "best")
    return min(saved, checkpoint.most_recent_k + retained + best + 1)


def estimate(g: Geometry, params: p.TrainParams, ranks: int, pack_size: int, *, on_gpu: bool) -> Estimate:
    """Estimate a training over a number of GPUs, or processes of a CPU."""
    layout = layout_of(params.model, ranks)
    total, trained = count(g).total, count(g).total
    if params.peft.name is not None:
        trained = adapter_count(g, params.peft)
    whole = params.mixed_precision.name == "fp32"
    tokens = params.train.global_batch_size * pack_size
    # A multiplication and an addition a weight forward, twice that backward, and forward again if recomputed.
    passes = 8 if params.model.recompute_granularity == "full" else 6
    attention = g.pattern.count("*") * g.heads * g.head_dim * pack_size  # causal: half of all pairs, two products
    table = g.vocabulary * g.hidden  # looked up, not multiplied
    multiplied = active(g) - (0 if g.tied else table)
    return Estimate(
        parameters=total,
        active=active(g),
        trained=trained,
        memory=memory(g, params, layout, pack_size, sharded=on_gpu),
        flops_per_step=float(passes * tokens * (multiplied + attention)),
        tokens_per_step=tokens,
        checkpoint=float(trained * (12 if whole else 14)),
        checkpoints=most_checkpoints(params.checkpoint, params.train.train_iters),
        imported=float(total * 4),
        exported=float(total * 4),  # half if the base model's weights have 16 bits
    )
