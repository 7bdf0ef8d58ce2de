"""The base model: the fetched files -> one folder in Hugging Face layout.

The input is a GGUF file, whose weights are dequantized to fp32 safetensors, or a folder in Hugging Face layout
(config.json, tokenizer.json, *.safetensors), of which only the files that sft.sources.model_files lists are taken: no
code, no pickle. The weights must be those that config.json describes (sft.sources.base_weights). The same input gives
the same bytes.

A structure marker (`<think>`, `<tool_call>`, ...) that is no token of the vocabulary becomes a piece of its own before
tokenization, so that the text around it has the same ids whether a template or the model wrote the marker. The
vocabulary does not change, nor do the ids of text without a marker.
"""

import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from sft.chat_files import DEFAULT_FILE, FOLDER_OF_OTHERS, write_missing
from sft.cli import InputError, echo, one_line
from sft.files import link_or_copy
from sft.hashing import files_below
from sft.sources.add_template import add_template
from sft.sources.base_weights import LIBRARY_FAULTS, check_weights, embedding_rows
from sft.sources.model_files import read_config, remove_code_keys, taken_files, write_config
from sft.weight_files import stored_tensors

MARKERS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
# GGUF's names of pre-tokenizers that split numbers into digits first. transformers drops this step when it loads a
# GGUF file, and spaces before a digit get other ids.
SPLIT_DIGITS = {"smollm", "starcoder", "refact", "command-r", "codeshell"}
# Keys of tokenizer_config.json about how it was loaded.
LOADING_KEYS = ("is_local", "local_files_only", "name_or_path", "_commit_hash")


def make_base(source_folder: Path, target: Path) -> dict[str, Any]:
    """Write the fetched model into `target`, an empty folder, in Hugging Face layout.

    Weights in this layout may be the same files in both folders, which is why nothing changes them.

    Returns:  what a model without a chat template got (sft.sources.add_template); nothing for others.

    Raises:  InputError: unknown layout, pickled weights, or weights and tokenizer of different models.
    """
    paths = files_below(source_folder)
    ggufs = [path for path in paths if path.suffix == ".gguf"]
    if len(ggufs) == 1:
        with _NamingFile(ggufs[0].name):
            _from_gguf(ggufs[0], target)
    elif not ggufs and (source_folder / "config.json").is_file():
        _copy_folder(source_folder, target)
    else:
        taken_files(source_folder)
        names = ", ".join(path.relative_to(source_folder).as_posix() for path in paths[:10])
        raise InputError(
            "fetch.model: expected one .gguf file, or config.json with *.safetensors; "
            f"found {names or 'nothing'}. Set fetch.model.uri to such a folder or file."
        )
    _check_files(target)
    tokenizer = read_config(target / "tokenizer.json")
    with _NamingFile("tokenizer.json"):
        tokenizer = isolate_markers(tokenizer)
    write_config(target / "tokenizer.json", tokenizer)
    check_base(target)
    eos = read_config(target / "config.json").get("eos_token_id")
    write_missing(target, eos if isinstance(eos, list) else [] if eos is None else [eos])
    has_template = (target / DEFAULT_FILE).is_file() or (target / FOLDER_OF_OTHERS).is_dir()
    added = {} if has_template else add_template(target)
    check_weights(target)
    return added


def _check_files(folder: Path) -> None:
    """Raise InputError unless config and tokenizer of a model are there; say how to convert another tokenizer."""
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            continue
        message = f"fetch.model: {name} is missing; expected a model in Hugging Face layout."
        for other in sorted(path.name for path in folder.iterdir() if path.suffix in (".model", ".tiktoken")):
            message += (
                f" {other} is not read. Convert it in a copy of the folder and set fetch.model.uri to file://FOLDER:\n"
                '    python -c "from transformers import AutoTokenizer as T; '
                "T.from_pretrained('FOLDER').save_pretrained('FOLDER')\""
            )
            break
        raise InputError(message)


def _copy_folder(source_folder: Path, target: Path) -> None:
    """Copy the files of a model that are taken, without the classes of code that its configs name."""
    taken, left_out = taken_files(source_folder)
    for path in taken:
        copy = target / path.relative_to(source_folder)
        copy.parent.mkdir(exist_ok=True)
        if path.suffix == ".safetensors":
            link_or_copy(path, copy)
        else:
            shutil.copyfile(path, copy)
        if path.suffix == ".json" and remove_code_keys(copy):
            echo(f"fetch.model: {path.name}: auto_map removed: code of a model is never run")
    if left_out:
        names = ", ".join(path.relative_to(source_folder).as_posix() for path in left_out[:10])
        echo(f"fetch.model: {len(left_out)} other files left out: {names}")
    if "quantization_config" in read_config(target / "config.json"):
        raise InputError(
            "fetch.model: config.json: quantization_config: quantized weights cannot be trained here: Megatron-Bridge "
            "0.6.2 neither imports them nor trains adapters on them (QLoRA). Fetch the model in BF16 or FP32."
        )


def isolate_markers(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """Return a tokenizer.json that splits text at all MARKERS that are not tokens.

    It is unchanged if every marker is a token, or if the tokenizer adds a space before each piece, because that space
    would appear at each marker.
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


def split_digits(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """Return a tokenizer.json whose pre-tokenizer splits off every digit first."""
    digits = {"type": "Digits", "individual_digits": True}
    return {
        **tokenizer,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, tokenizer["pre_tokenizer"]]},
    }


def without_byte_fallback(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """Return a tokenizer.json of byte-level BPE without what transformers adds as if it were SentencePiece.

    Ids and decoded texts stay the same, but converters to GGUF go by these fields, and llama.cpp then writes the
    letters that stand for bytes (`Ġ` for a space) into its answers.
    """
    steps = tokenizer.get("pre_tokenizer") or {"type": None}  # SentencePiece has none
    is_byte_level = any(step["type"] == "ByteLevel" for step in steps.get("pretokenizers", [steps]))
    if not is_byte_level or not tokenizer["model"].get("byte_fallback"):
        return tokenizer
    decoder = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    return {**tokenizer, "model": {**tokenizer["model"], "byte_fallback": False}, "decoder": decoder}


def check_base(folder: Path) -> None:
    """Raise InputError unless the weights of a model folder are safetensors that fit its tokenizer."""
    from transformers import AutoConfig, AutoTokenizer

    _check_layers(folder)
    with _NamingFile("config.json"):
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    with _NamingFile("tokenizer.json with tokenizer_config.json"):
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    rows = embedding_rows(folder)
    eos = config.get_text_config().eos_token_id
    if len(tokenizer) > rows:
        raise InputError(
            f"fetch.model: the tokenizer has {len(tokenizer)} tokens, but the embedding of the model only {rows} rows. "
            "They belong to different models."
        )
    for token in eos if isinstance(eos, list) else [eos]:
        if not isinstance(token, int) or not 0 <= token < len(tokenizer):
            raise InputError(f"fetch.model: config.json: eos_token_id {token!r} is not a token of the tokenizer")


def _check_layers(folder: Path) -> None:
    """Raise InputError if config.json has more layers than there are tensors: transformers would build them all."""
    config = read_config(folder / "config.json")
    tensors = len(stored_tensors(folder, "fetch.model: "))
    for section in (config, config.get("text_config")) if isinstance(config, dict) else ():
        layers = section.get("num_hidden_layers") if isinstance(section, dict) else None
        if isinstance(layers, int) and layers > tensors:
            raise InputError(
                f"fetch.model: config.json: num_hidden_layers: {layers:,}, but *.safetensors have {tensors:,} tensors. "
                "They belong to different models, or a shard is missing."
            )


class _NamingFile:
    """Turns what transformers and tokenizers raise for a bad file into an InputError that names the file."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _trace: object) -> None:
        from huggingface_hub.errors import StrictDataclassError

        known = *LIBRARY_FAULTS, StrictDataclassError
        is_of_system = isinstance(error, InputError) or (isinstance(error, OSError) and error.errno is not None)
        # tokenizers raises Exception itself.
        if isinstance(error, Exception) and not is_of_system and (kind is Exception or isinstance(error, known)):
            raise InputError(
                f"fetch.model: {self._name}: cannot be loaded: {type(error).__name__}: {one_line(str(error))}. The "
                "file is damaged, or the installed transformers does not know this model."
            ) from error


def _from_gguf(file: Path, target: Path) -> None:
    """Write the model of a GGUF file in Hugging Face layout, with fp32 weights."""
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # read when tqdm is imported
    import gguf
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        reader = gguf.GGUFReader(file)
    except (IndexError, KeyError, OverflowError, ValueError) as error:
        raise InputError(f"fetch.model: {file.name}: damaged GGUF: {error}") from error
    source = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name, "local_files_only": True}
    tokenizer = AutoTokenizer.from_pretrained(**source, trust_remote_code=False)
    loaded = AutoModelForCausalLM.from_pretrained(**source, trust_remote_code=False, dtype=torch.float32)
    config = loaded.config
    if hasattr(config, "quantization_config"):  # says that the weights are still quantized, and prevents saving
        del config.quantization_config
    config.name_or_path = ""
    model = type(loaded)(config)
    # assign: use the tensors instead of copying them, so that memory holds one model
    model.load_state_dict(loaded.state_dict(), assign=True)
    model.tie_weights()
    model.generation_config = loaded.generation_config
    del loaded
    model.save_pretrained(target)
    for weights in target.glob("*.safetensors"):
        weights.chmod(0o644)  # only their owner could read them; the jobs of a cluster may run as other users
    # transformers takes eos from the wrong field of a GGUF file; the config of the model has the right one.
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(config.eos_token_id)
    if isinstance(config.pad_token_id, int):
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(config.pad_token_id)
    tokenizer.model_max_length = config.max_position_embeddings
    tokenizer.save_pretrained(target)
    tokenizer_json = without_byte_fallback(read_config(target / "tokenizer.json"))
    field = reader.fields.get("tokenizer.ggml.pre")
    if field is not None and field.contents() in SPLIT_DIGITS:
        tokenizer_json = split_digits(tokenizer_json)
    write_config(target / "tokenizer.json", tokenizer_json)
    settings = read_config(target / "tokenizer_config.json")
    settings["clean_up_tokenization_spaces"] = False  # true would remove spaces before punctuation from answers
    write_config(target / "tokenizer_config.json", {key: settings[key] for key in settings if key not in LOADING_KEYS})
