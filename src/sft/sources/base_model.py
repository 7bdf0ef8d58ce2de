"""The base model: what was fetched -> one folder in Hugging Face's layout.

Taken are a GGUF file, whose weights are dequantised to fp32 safetensors, or a folder that has Hugging Face's
layout already (config.json, tokenizer.json, *.safetensors). Pickled weights (.bin, .pt, ...) are refused, and
so is code that a model brings. Same input, same bytes.

A marker of structure that the vocabulary has no token for (`<think>`, `<tool_call>`, ...) is cut out of the
text before it is split into tokens, so that the text on both sides becomes the same ids whether the marker
was written by a template or by the model. The vocabulary does not change, nor do the ids of any text
without a marker.
"""

import contextlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sft.cli import InputError

MARKERS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".h5", ".msgpack", ".npz"}
# Names that GGUF gives to pre-tokenizers which part numbers into digits before they split words; what
# transformers makes of a GGUF file leaves that out, and blanks before a digit get other ids.
DIGITS_APART = {"smollm", "starcoder", "refact", "command-r", "codeshell"}
SAID_CHARS = 200  # of what a library says about a file
# Keys of tokenizer_config.json that say how it was loaded, not what it is.
LOADING_KEYS = ("is_local", "local_files_only", "name_or_path", "_commit_hash")


def make_base(source_folder: Path, target: Path) -> None:
    """Write the model that was fetched into `target`, an empty folder, in Hugging Face's layout.

    Raises:  InputError: neither layout, pickled weights, weights and tokenizer that do not fit together.
    """
    found = sorted(path for path in source_folder.rglob("*") if path.is_file())
    pickled = [path.name for path in found if path.suffix in PICKLES]
    if pickled:
        raise InputError(
            f"fetch.model: {', '.join(pickled[:5])}: pickled weights can run code when they are loaded. "
            "Choose the safetensors by a pattern in the uri, or a revision that has them."
        )
    ggufs = [path for path in found if path.suffix == ".gguf"]
    if len(ggufs) == 1:
        _from_gguf(ggufs[0], target)
    elif not ggufs and (source_folder / "config.json").is_file():
        shutil.copytree(source_folder, target, dirs_exist_ok=True)
    else:
        names = ", ".join(path.relative_to(source_folder).as_posix() for path in found[:10])
        raise InputError(
            "fetch.model: expected one .gguf file, or config.json with *.safetensors; "
            f"found {names or 'nothing'}. Name the folder or the file in fetch.model.uri."
        )
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        if not (target / name).is_file():
            raise InputError(f"fetch.model: {name} is missing: this is not Hugging Face's layout of a model")
    tokenizer = _read(target / "tokenizer.json")
    with _read_as("tokenizer.json"):
        tokenizer = isolate_markers(tokenizer)
    _write(target / "tokenizer.json", tokenizer)
    check_base(target)


def isolate_markers(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """Return a tokenizer.json in which MARKERS without a token of their own are pieces of their own.

    Unchanged if every marker is a token, or if the tokenizer changes text before it cuts it (a space put in
    front of each piece would appear at each marker).
    """
    added = {token["content"] for token in tokenizer.get("added_tokens", [])}
    vocabulary = tokenizer["model"].get("vocab", {})
    missing = [marker for marker in MARKERS if marker not in added and marker not in vocabulary]
    present = tokenizer.get("pre_tokenizer")
    steps = [] if not present else present["pretokenizers"] if present["type"] == "Sequence" else [present]
    if not missing or any(step.get("add_prefix_space") or step["type"] == "Metaspace" for step in steps):
        return tokenizer
    split = {
        "type": "Split",
        "pattern": {"Regex": "|".join(re.escape(marker) for marker in missing)},
        "behavior": "Isolated",
        "invert": False,
    }
    steps = [split, *(step for step in steps if step != split)]
    return {**tokenizer, "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}}


def digits_apart(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """Return a tokenizer.json whose pre-tokenizer starts by making every digit a piece of its own."""
    digits = {"type": "Digits", "individual_digits": True}
    return {
        **tokenizer,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, tokenizer["pre_tokenizer"]]},
    }


def check_base(folder: Path) -> None:
    """Check that the weights of a model folder are safetensors and fit its tokenizer. Raises InputError."""
    from transformers import AutoConfig, AutoTokenizer

    with _read_as("config.json"):
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    with _read_as("tokenizer.json with tokenizer_config.json"):
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    rows = _embedding_rows(folder)
    eos = config.get_text_config().eos_token_id
    if len(tokenizer) > rows:
        raise InputError(
            f"fetch.model: the tokenizer has {len(tokenizer)} tokens, the model's embedding {rows} rows: "
            "they do not belong together"
        )
    for token in eos if isinstance(eos, list) else [eos]:
        if not isinstance(token, int) or not 0 <= token < len(tokenizer):
            raise InputError(f"fetch.model: eos_token_id {token!r} of config.json is no token of the tokenizer")


def count_parameters(folder: Path) -> int:
    """Count the numbers in the weight files of a model folder; tied weights stand there once."""
    return sum(_product(shape) for shape in _tensor_shapes(folder).values())


@contextlib.contextmanager
def _read_as(name: str) -> Iterator[None]:
    """Say of a file that transformers or we make nothing of, whose fault it is. Raises InputError."""
    from huggingface_hub.errors import StrictDataclassError

    try:
        yield
    except (AttributeError, LookupError, TypeError, ValueError, StrictDataclassError) as error:
        said = " ".join(str(error).split())[:SAID_CHARS]
        raise InputError(
            f"fetch.model: {name}: cannot be read as this model's: {type(error).__name__}: {said}. It is damaged, or "
            "of a model that the installed transformers does not know."
        ) from error


def _from_gguf(file: Path, target: Path) -> None:
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # read when tqdm is imported
    import gguf
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        reader = gguf.GGUFReader(file)
    except (IndexError, KeyError, OverflowError, ValueError) as error:
        raise InputError(f"fetch.model: {file.name}: damaged GGUF: {error}") from error
    place = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name, "local_files_only": True}
    tokenizer = AutoTokenizer.from_pretrained(**place, trust_remote_code=False)
    loaded = AutoModelForCausalLM.from_pretrained(**place, trust_remote_code=False, dtype=torch.float32)
    config = loaded.config
    if hasattr(config, "quantization_config"):  # says that the weights are still quantised, and forbids to save
        del config.quantization_config
    config.name_or_path = ""
    model = type(loaded)(config)
    # assign: take the tensors instead of copying them, one model in memory
    model.load_state_dict(loaded.state_dict(), assign=True)
    model.tie_weights()
    model.generation_config = loaded.generation_config
    del loaded
    model.save_pretrained(target)
    for weights in target.glob("*.safetensors"):
        weights.chmod(0o644)  # written for their owner alone, while a cluster's jobs may run as others
    # The import takes the end of a turn from the wrong field: the model's own config has it right.
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(config.eos_token_id)
    if isinstance(config.pad_token_id, int):
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(config.pad_token_id)
    tokenizer.model_max_length = config.max_position_embeddings
    tokenizer.save_pretrained(target)
    field = reader.fields.get("tokenizer.ggml.pre")
    if field is not None and field.contents() in DIGITS_APART:
        _write(target / "tokenizer.json", digits_apart(_read(target / "tokenizer.json")))
    settings = _read(target / "tokenizer_config.json")
    _write(target / "tokenizer_config.json", {key: settings[key] for key in settings if key not in LOADING_KEYS})


def _embedding_rows(folder: Path) -> int:
    shapes = _tensor_shapes(folder)
    found = [shape for name, shape in shapes.items() if re.search(r"(embed_tokens|embeddings?|wte)\.weight$", name)]
    if not found:
        raise InputError(f"fetch.model: no embedding among the {len(shapes)} tensors of *.safetensors")
    return max(shape[0] for shape in found)


def _tensor_shapes(folder: Path) -> dict[str, list[int]]:
    """Return the shape of every tensor by name; reads the headers of the safetensors only."""
    from safetensors import SafetensorError, safe_open

    shapes: dict[str, list[int]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                shapes.update({name: file.get_slice(name).get_shape() for name in file.keys()})
        except SafetensorError as error:
            raise InputError(f"fetch.model: {path.name}: damaged safetensors: {error}") from error
    return shapes


def _product(shape: list[int]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"fetch.model: {path.name}: not valid JSON: {error}") from error


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
