"""What a training needs on each GPU: memory, time and disk, from params.yaml and the shapes of the model.

Pure arithmetic. Parameters are counted exactly. Weights, gradients and optimizer states follow exactly from
them and the parallel layout; activations are a model of what a backward pass keeps and are the uncertain part.

What is known of the error:
- parameters: equal to those of transformers for Nemotron 3 Nano and every model tried, to the last one;
- memory of a CPU run (fp32): bench/estimate.py saw 0.93 to 1.34 times the estimate with SmolLM2-135M (packs of 512;
  all kept, recomputed, adapters), hence MEMORY_ERROR; on a GPU nothing was measured here.
- checkpoints: 12 bytes a parameter in fp32, as a CPU run writes; 14 under BF16 by the same arithmetic.
- time: a range, between the shares of a GPU's arithmetic in UTILISATION; nothing was measured here.

Bytes are decimal in messages (1 GB = 1e9). Not counted: CUDA context, NCCL buffers, fragmentation; leave
RESERVE of a GPU for them.

Sources: activations of attention and MLP after Korthikanti et al. 2022 (arXiv 2205.05198) with attention that
keeps no scores; optimizer states after Megatron-Core's distributed optimizer; Mamba-2 layer after megatron.core
0.19.2 ssm/mamba_mixer.py.
"""

import dataclasses
import itertools
from dataclasses import dataclass

from sft.params import training as p

RESERVE = 0.1
"""Share of a GPU's memory that the estimate leaves free."""
UTILISATION = (0.15, 0.40)
"""Shares of a GPU's dense BF16 arithmetic that training reaches, pessimistic and optimistic."""
MEMORY_ERROR = 0.35
"""Share by which the memory of a step may be larger or smaller than estimated."""
GPUS = {
    "A100-40GB": (40e9, 312e12),
    "A100-80GB": (80e9, 312e12),
    "H100": (80e9, 989e12),
    "H200": (141e9, 989e12),
    "B200": (180e9, 2250e12),
}
"""Memory in bytes, dense BF16 FLOP per second, as the vendor states them."""
MAMBA_CONVOLUTION, MAMBA_CHUNK = 4, 128


@dataclass(frozen=True)
class Geometry:
    """The shapes of a model. `pattern` has a letter for each layer: * attention, - MLP, E experts, M Mamba-2."""

    vocabulary: int
    hidden: int
    pattern: str
    heads: int
    query_groups: int
    head_dim: int
    ffn: int
    gated: bool
    tied: bool
    """Whether embedding and output share their weights."""
    layers: int
    """Layers as Megatron counts them: attention and the MLP behind it are one, but not in a hybrid model."""
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

    @property
    def mamba_inner(self) -> int:
        """Width inside a Mamba layer."""
        return self.mamba_heads * self.mamba_head_dim

    @property
    def mamba_projection(self) -> int:
        """Width of what a Mamba layer computes of its input: z, x, B, C and dt."""
        return 2 * self.mamba_inner + 2 * self.mamba_groups * self.mamba_state + self.mamba_heads


@dataclass(frozen=True)
class Count:
    """Numbers of parameters by how a layout spreads them."""

    split: int = 0
    """Spread over the tensor-parallel GPUs."""
    copied: int = 0
    """Whole on each of them."""
    expert: int = 0
    """Of routed experts: spread over the expert-parallel GPUs."""

    def __add__(self, other: "Count") -> "Count":
        return Count(self.split + other.split, self.copied + other.copied, self.expert + other.expert)

    @property
    def total(self) -> int:
        """All of them."""
        return self.split + self.copied + self.expert


@dataclass(frozen=True)
class Layout:
    """How many GPUs share what."""

    ranks: int
    tensor: int
    pipeline: int
    context: int
    expert: int
    sequence_parallel: bool

    @property
    def data(self) -> int:
        """Groups of GPUs that each take packs of their own."""
        return self.ranks // (self.tensor * self.pipeline * self.context)

    @property
    def dense_copies(self) -> int:
        """GPUs that have the same dense weights, and so share their optimizer states."""
        return self.ranks // (self.tensor * self.pipeline)

    @property
    def expert_copies(self) -> int:
        """GPUs that have the same experts."""
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
        """All of it, without RESERVE."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits


@dataclass(frozen=True)
class Estimate:
    """What a training needs."""

    parameters: int
    active: int
    """Parameters that a token passes through."""
    trained: int
    """Parameters that change: all, or those of adapters."""
    memory: Memory
    flops_per_step: float
    """Arithmetic of one optimizer step, over all GPUs, with what is computed again."""
    tokens_per_step: int
    """At most: packs that are full."""
    checkpoint: float
    """Bytes of one checkpoint of the run."""
    checkpoints: int
    """How many there are at most at a time."""
    imported: float
    """Bytes of the base model as a Megatron checkpoint; so much host memory is needed to make it, too."""
    exported: float
    """Bytes of models/final."""

    @property
    def disk(self) -> float:
        """Bytes below runs/ and models/final at the fullest moment."""
        return self.checkpoint * self.checkpoints + self.imported + self.exported

    def seconds_per_step(self, flops: float, ranks: int) -> tuple[float, float]:
        """Return the seconds of a step on so many GPUs of so many FLOP per second: at least, at most."""
        slow, fast = UTILISATION
        return self.flops_per_step / (ranks * flops * fast), self.flops_per_step / (ranks * flops * slow)


def layer_count(g: Geometry, kind: str) -> Count:
    """Count the parameters of one layer, with the norm in front of it."""
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
    """Count parameters: of a whole model, or of a stage of a pipeline with these layers."""
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
    """Count the parameters that a token passes through: of the experts, those that it is sent to."""
    whole = count(g)
    share = g.experts_per_token / g.experts if g.experts else 0.0
    return whole.split + whole.copied + round(whole.expert * share)


def stages(pattern: str, pipeline: int) -> list[str]:
    """Cut the layers into stages of a pipeline, as equal as they go."""
    cuts = [round(index * len(pattern) / pipeline) for index in range(pipeline + 1)]
    return [pattern[begin:end] for begin, end in itertools.pairwise(cuts)]


def adapter_count(g: Geometry, peft: p.Peft) -> int:
    """Count the parameters of adapters: rank x (inputs + outputs) of each matrix that gets one."""
    if peft.name is None:
        return 0
    h, gates = g.hidden, 2 if g.gated else 1
    attended = g.heads * g.head_dim
    matrices = {
        "*": {"linear_qkv": (h, attended + 2 * g.query_groups * g.head_dim), "linear_proj": (attended, h)},
        "-": {"linear_fc1": (h, gates * g.ffn), "linear_fc2": (g.ffn, h)},
        # Bridge gives the experts of a GPU one adapter together, and the shared expert one of its own.
        "E": {"linear_fc1": (h, gates * (g.expert_ffn + g.shared_ffn)), "linear_fc2": (g.expert_ffn + g.shared_ffn, h)},
        "M": {"in_proj": (h, g.mamba_projection), "out_proj": (g.mamba_inner, h)},
    }
    wanted = [matrices[kind].get(name) for kind in g.pattern for name in peft.target_modules]
    return sum(peft.dim * (inputs + outputs) for inputs, outputs in filter(None, wanted))


def kept_per_token(g: Geometry, kind: str, layout: Layout) -> float:
    """Count the numbers that one layer keeps of each token of a pack for its backward pass, on one GPU."""
    shared = layout.tensor if layout.sequence_parallel else 1
    around = 2 * g.hidden / shared  # input of the layer, and of its matrices behind the norm
    gates = 2 if g.gated else 1
    if kind == "*":
        return around + (2 * g.heads + 2 * g.query_groups) * g.head_dim / layout.tensor
    if kind == "-":
        return around + (gates + 1) * g.ffn / layout.tensor
    if kind == "E":
        sent = g.experts_per_token * (2 * g.hidden + (gates + 1) * g.expert_ffn) / shared
        return around + sent + (gates + 1) * g.shared_ffn / layout.tensor + 2 * g.experts / shared
    return around + (g.mamba_projection + 2 * g.mamba_inner) / layout.tensor  # its states once per MAMBA_CHUNK


def activations(g: Geometry, model: p.Model, layout: Layout, tokens: float, layers: str, width: int) -> float:
    """Return the bytes that a stage keeps of one pack of so many tokens per GPU, numbers of `width` bytes."""
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
    """Return the memory of the GPU that needs most; `sharded`: copies share optimizer states, as on GPUs."""
    whole = params.mixed_precision.name == "fp32"
    width = 4 if whole else 2
    gradient = 4 if whole or params.mixed_precision.grad_reduce_in_fp32 else 2
    states = 8 if whole else 12  # two moments; under BF16 the weight itself in fp32 as well
    tokens = pack_size / layout.context
    cut = stages(g.pattern, layout.pipeline)
    found = []
    for number, layers in enumerate(cut):
        first, last = number == 0, number == len(cut) - 1
        own = count(g, layers, first=first, last=last)
        dense, experts = own.split / layout.tensor + own.copied, own.expert / layout.expert
        trained_dense, trained_experts = dense, experts
        if params.peft.name is not None:
            trained_dense, trained_experts = adapter_count(dataclasses.replace(g, pattern=layers), params.peft), 0.0
        dense_share, expert_share = (layout.dense_copies, layout.expert_copies) if sharded else (1, 1)
        waiting = min(layout.pipeline - number, max(1, params.train.global_batch_size // max(1, layout.data)))
        kept = activations(g, params.model, layout, tokens, layers, width) * waiting
        scores = tokens * g.vocabulary / layout.tensor * (width + 8) if last else 0.0  # logits; fp32 for the loss
        found.append(
            Memory(
                weights=width * (dense + experts),
                gradients=gradient * (trained_dense + trained_experts),
                optimizer=states * (trained_dense / dense_share + trained_experts / expert_share),
                activations=kept,
                logits=scores,
            )
        )
    return max(found, key=lambda stage: stage.total)


def layout_of(model: p.Model, ranks: int) -> Layout:
    """Return the layout of params.yaml over so many GPUs (or processes of a CPU)."""
    return Layout(
        ranks=ranks,
        tensor=model.tensor_model_parallel_size,
        pipeline=model.pipeline_model_parallel_size,
        context=model.context_parallel_size,
        expert=model.expert_model_parallel_size,
        sequence_parallel=model.sequence_parallel,
    )


def most_checkpoints(checkpoint: p.Checkpoint, iterations: int) -> int:
    """Return how many checkpoints of a run there are at most: the newest, those kept for good, the best, a new one."""
    saved = -(-iterations // checkpoint.save_interval)
    retained = iterations // checkpoint.save_retain_interval if checkpoint.save_retain_interval else 0
    best = int(checkpoint.export == "best")
    return min(saved, checkpoint.most_recent_k + retained + best + 1)


def estimate(g: Geometry, params: p.TrainParams, ranks: int, pack_size: int, *, on_gpu: bool) -> Estimate:
    """Estimate a training with these params over so many GPUs (or processes of a CPU)."""
    layout = layout_of(params.model, ranks)
    total, trained = count(g).total, count(g).total
    if params.peft.name is not None:
        trained = adapter_count(g, params.peft)
    whole = params.mixed_precision.name == "fp32"
    tokens = params.train.global_batch_size * pack_size
    # A multiplication and an addition for each weight forward, twice that backward, and forward once more.
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
        exported=float(total * 4),  # half, where all weights of the base model are in 16 bits
    )
