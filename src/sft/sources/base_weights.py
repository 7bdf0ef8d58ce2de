"""The weights of a base model are those that its config.json describes: names, shapes, and finite numbers.

Names and shapes are compared by transformers on the meta device, which loads nothing; numbers are read a tensor at a
time.
"""

from pathlib import Path
from typing import Any

from sft.cli import InputError, one_line
from sft.weight_files import EMBEDDING, stored_tensors

EXAMPLES = 3  # named in a message
# What libraries raise of values in the files of a model that they do not expect.
LIBRARY_FAULTS = (
    *(ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, OSError, RuntimeError),
    *(TypeError, ValueError),
)


def check_weights(folder: Path) -> None:
    """Raise InputError unless the *.safetensors of a folder are the whole model of its config.json, and finite."""
    import torch
    from torch.overrides import TorchFunctionMode
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    class EqualOnMeta(TorchFunctionMode):
        """Let transformers tie an output layer that is stored beside its embedding: meta tensors have no values."""

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return True if func is torch.equal else func(*args, **(kwargs or {}))

    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(transformers_logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    try:
        with EqualOnMeta():
            _, report = AutoModelForCausalLM.from_pretrained(
                folder,
                device_map=torch.device("meta"),
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
            )
    except LIBRARY_FAULTS as error:
        raise InputError(f"fetch.model: *.safetensors do not fit config.json: {one_line(str(error))}") from error
    finally:
        transformers_logging.set_verbosity(level)
        transformers_logging.enable_progress_bar()
    faults = [
        *_fault("missing", report["missing_keys"]),
        *_fault("not in the architecture", report["unexpected_keys"]),
        *_fault(
            "of another shape",
            [
                f"{name} {list(found)} instead of {list(expected)}"
                for name, found, expected in report["mismatched_keys"]
            ],
        ),
    ]
    if faults:
        raise InputError(
            f"fetch.model: *.safetensors do not fit config.json: {'; '.join(faults)}. A shard or a file is missing, or "
            "they belong to different models. Check the pattern in the uri."
        )
    check_finite(folder)


def check_finite(folder: Path) -> None:
    """Raise InputError if a tensor of a folder has a number that is infinite or none (NaN)."""
    from safetensors import safe_open

    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():
                tensor = file.get_tensor(name)
                tensor = tensor.float() if tensor.itemsize == 1 else tensor  # isfinite knows no FP8
                if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                    count = int((~tensor.isfinite()).sum())
                    raise InputError(f"fetch.model: {path.name}: {name}: {count} of {tensor.numel()} are not finite")


def _fault(kind: str, names: Any) -> list[str]:
    """Return what is wrong with some tensors, or nothing."""
    names = sorted(names)
    more = f" and {len(names) - EXAMPLES} more" if len(names) > EXAMPLES else ""
    return [f"{kind}: {', '.join(names[:EXAMPLES])}{more}"] if names else []


def embedding_rows(folder: Path) -> int:
    """Return the size of the vocabulary that the weights have. Raises InputError: there is no embedding."""
    tensors = stored_tensors(folder, "fetch.model: ")
    rows = [tensor.shape[0] for name, tensor in tensors.items() if EMBEDDING.search(name)]
    if not rows:
        raise InputError(f"fetch.model: no embedding among the {len(tensors)} tensors of *.safetensors")
    return max(rows)
