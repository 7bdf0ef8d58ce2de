"""Parity of Megatron and transformers: the same weights give the same logits, measured at import and at export.

A Megatron model and a Hugging Face folder -> a certificate, which lineage.json keeps:

    {"logits": 8e-07, "losses": {"megatron": 6.1374, "transformers": 6.1374}, "tolerance": 0.0001, "tokens": [50, 200]}

`logits` is the largest difference, relative to the largest logit. The prompts are fixed token ids; the longer one is
longer than a chunk of a Mamba layer, at whose borders implementations differ. Both compute in fp32. Where less memory
is free than a second copy of the model needs, the certificate is {"skipped": the reason, "needed_bytes": how much}.
"""

import gc
import sys
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import torch
import torch.nn.functional as F  # noqa: N812

from sft.cli import InputError
from sft.training.conversion import FORMATS
from sft.weight_files import stored_tensors

FILE = "parity.json"
SHORT, BEYOND_CHUNK = 50, 72
"""Tokens of the first prompt; tokens of the second behind a chunk."""
CHUNK = 128
"""Tokens of a chunk of a Mamba layer, where the model names none."""
TOLERANCES = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 3e-2}
"""Largest difference by the format of the folder's weights: rounding to 16 bits at export is part of it."""
GPU_TOLERANCE = TOLERANCES[torch.float16]
"""Least tolerance on a GPU: Transformer Engine multiplies fp32 matrices as TF32, which has fp16's 10 bits."""
CONTROL_GROUPS = {
    "": ("memory.max", "memory.current", "inactive_file"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
"""Files with the limit and the use of a control group, and the line of memory.stat with what it caches of files, by the
controller that /proc/self/cgroup names: version 2, and version 1."""
MARGIN = 1.25
"""Memory that must be free, in copies of the model in fp32: the second copy, and what it computes."""
STEP = 1_000_003
"""Distance of successive ids of a prompt, modulo the vocabulary: a prime, so that ids do not repeat soon."""


def prompts(vocabulary: int, chunk: int = CHUNK) -> list[torch.Tensor]:
    """Return the ids of both prompts [1, tokens].

    >>> [ids[0, :3].tolist() for ids in prompts(400)]
    [[17, 20, 23], [34, 37, 40]]
    """
    lengths = (SHORT, chunk + BEYOND_CHUNK)
    return [
        ((torch.arange(length) * STEP + 17 * number) % vocabulary)[None] for number, length in enumerate(lengths, 1)
    ]


def certify(model: Any, provider: Any, folder: Path, *, exact: bool, base: Path | None = None) -> dict[str, Any]:
    """Return the certificate of a Megatron model and a Hugging Face folder with the same weights.

    Args:
        model: The Megatron model, in one process.
        provider: Its provider.
        folder: config.json and *.safetensors; they are computed in fp32.
        exact: Whether the folder has every bit of the model's weights: not after an export to 16 bits.
        base: Folder of the base model, if `folder` may have an adapter alone.

    Raises:  InputError: the logits differ by more than the tolerance.
    """
    needed = 4 * MARGIN * sum(parameter.numel() for parameter in model.parameters())
    device = next(model.parameters()).device.type if not torch.cuda.is_available() else "cuda"
    free = free_memory()
    if device == "cuda":
        free = min(free, torch.cuda.mem_get_info()[0])
    if needed > free:
        reason = f"a second copy of the model needs {needed / 1e9:.1f} GB, and less was free on the machine"
        return {"skipped": reason, "needed_bytes": int(needed)}
    ids = prompts(provider.vocab_size, getattr(provider, "mamba_chunk_size", None) or CHUNK)
    found = megatron_logits(model.to(device), ids, provider.vocab_size)
    model.to("cpu")
    expected = transformers_logits(folder, ids, device, base)
    if device == "cuda":  # torchrun's first rank needs the memory that this process would keep
        gc.collect()
        torch.cuda.empty_cache()
    formats = {"F32"} if exact else {tensor.format for tensor in stored_tensors(folder).values()}
    tolerance = max(TOLERANCES[FORMATS.get(each, torch.float32)] for each in formats)
    return compare(ids, found, expected, max(tolerance, GPU_TOLERANCE) if device == "cuda" else tolerance, folder)


def free_memory(groups: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> int:
    """Return the bytes that this process can still take: of the machine, and of its control groups of both versions."""
    free: int = psutil.virtual_memory().available
    for entry in membership.read_text(encoding="utf-8").splitlines():
        _, controllers, path = entry.split(":", 2)
        for controller, (limit, used, files) in CONTROL_GROUPS.items():
            if controller in controllers.split(","):
                root = groups / controller
                folder = root / path.strip("/")  # in a container, root itself may be the group
                for group in (folder, *folder.parents):
                    if root in (group, *group.parents) and (group / limit).exists():
                        free = min(free, _left(group, limit, used, files))
    return free


def _left(group: Path, limit: str, used: str, files: str) -> int:
    """Return the bytes that a control group may still take; what it only caches of files can be taken."""
    most = (group / limit).read_text(encoding="ascii").strip()
    if most == "max":
        return sys.maxsize
    stat = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
    return max(0, int(most) - int((group / used).read_text(encoding="ascii")) + int(stat[files]))


def compare(
    ids: list[torch.Tensor], found: list[torch.Tensor], expected: list[torch.Tensor], tolerance: float, folder: Path
) -> dict[str, Any]:
    """Return the certificate of Megatron's and transformers' logits [tokens, vocabulary] of some prompts [1, tokens].

    Raises:  InputError: they differ by more than the tolerance, or are not finite.
    """
    pairs = list(zip(found, expected, strict=True))
    # torch's max keeps a NaN, Python's does not
    difference = float(torch.stack([(ours - theirs).abs().max() / theirs.abs().max() for ours, theirs in pairs]).max())
    losses = {"megatron": mean_loss(ids, found), "transformers": mean_loss(ids, expected)}
    if not difference <= tolerance:
        raise InputError(
            f"{folder}: Megatron and transformers differ: logits by {difference:.1e} of the largest, expected at most "
            f"{tolerance:.0e}; losses {losses['megatron']:.4f} and {losses['transformers']:.4f}. The model was not "
            "converted right, or one of them computes it wrongly (docs/known-issues.md)."
        )
    return {
        "logits": float(f"{difference:.1e}"),
        "losses": {name: round(loss, 4) for name, loss in losses.items()},
        "tolerance": tolerance,
        "tokens": [each.shape[1] for each in ids],
    }


def mean_loss(ids: list[torch.Tensor], logits: list[torch.Tensor]) -> float:
    """Return the mean loss of predicting each next token of the prompts."""
    pairs = list(zip(ids, logits, strict=True))
    losses = torch.cat([F.cross_entropy(rows[:-1], each[0, 1:], reduction="none") for each, rows in pairs])
    return float(losses.double().mean())


@torch.no_grad()
def megatron_logits(model: Any, ids: list[torch.Tensor], vocabulary: int) -> list[torch.Tensor]:
    """Return Megatron's logits [tokens, vocabulary] of each prompt; its own vocabulary is padded."""
    device, was_training = next(model.parameters()).device, model.training
    model.eval()
    logits = []
    for each in ids:
        positions = torch.arange(each.shape[1], device=device)[None]
        output = model(input_ids=each.to(device), position_ids=positions, attention_mask=None)
        logits.append(output[0, :, :vocabulary].float().cpu())
    model.train(was_training)
    return logits


@torch.no_grad()
def transformers_logits(folder: Path, ids: list[torch.Tensor], device: str, base: Path | None) -> list[torch.Tensor]:
    """Return transformers' logits [tokens, vocabulary] of each prompt; `base`: as in `certify`."""
    from sft.mamba.load import load_folder

    model = load_folder(folder, torch.float32, base).to(device).eval()
    return [model(each.to(device), use_cache=False).logits[0].float().cpu() for each in ids]
