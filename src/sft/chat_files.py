"""Chat files: the chat template and the stop tokens in the folder of a model.

Hugging Face folders have a template in chat_template.jinja, and further ones in additional_chat_templates/NAME.jinja;
older folders have them in tokenizer_config.json, as a text or as a list of named texts. A template of an older folder
is found under the path that a newer one gives it.
"""

import re
from pathlib import Path
from typing import Any

import orjson

from sft.cli import InputError

DEFAULT_FILE, FOLDER_OF_OTHERS, SUFFIX = "chat_template.jinja", "additional_chat_templates", ".jinja"
NAME = re.compile(r"\w[\w.-]*")  # a file name: a config from anywhere names it
CONFIG, GENERATION = "tokenizer_config.json", "generation_config.json"


def read_template(path: Path) -> str:
    """Return the text of a template. Raises InputError: it is neither a file nor in tokenizer_config.json there."""
    if path.is_file():
        return path.read_text(encoding="utf-8")
    templates = {name: text for name, text in _templates_in_config(path).items() if isinstance(text, str)}
    if str(path) in templates:
        return templates[str(path)]
    found = f"This model has: {', '.join(sorted(templates))}. " if templates else ""
    raise InputError(
        f"{path}: not found. {found}Set prep.template to a .jinja file: templates/nano3.jinja, or the base model's, "
        "models/base/chat_template.jinja, if it has one."
    )


def _templates_in_config(path: Path) -> dict[str, Any]:
    """Return the templates of tokenizer_config.json in the folder of a path, by the path of each."""
    folder = path.parent.parent if path.parent.name == FOLDER_OF_OTHERS else path.parent
    stored = _read(folder / CONFIG).get("chat_template")
    if isinstance(stored, str):
        return {str(folder / DEFAULT_FILE): stored}
    templates = {}
    for entry in stored if isinstance(stored, list) else []:
        if isinstance(entry, dict) and NAME.fullmatch(name := str(entry.get("name"))):
            file = folder / DEFAULT_FILE if name == "default" else folder / FOLDER_OF_OTHERS / f"{name}{SUFFIX}"
            templates[str(file)] = entry.get("template")
    return templates


def write_missing(folder: Path, stops: list[int]) -> None:
    """Write templates of tokenizer_config.json as files, and generation_config.json with `stops` if there is none."""
    for name, text in _templates_in_config(folder / DEFAULT_FILE).items():
        if isinstance(text, str) and not Path(name).exists():
            Path(name).parent.mkdir(exist_ok=True)
            Path(name).write_text(text, encoding="utf-8")
    if (folder / GENERATION).exists():
        return
    if stops:
        write_stop_ids(folder, stops)
    else:  # an empty list would be no id for transformers
        (folder / GENERATION).write_text("{}\n", encoding="utf-8")


def write_stop_ids(folder: Path, stops: list[int]) -> None:
    """Write the ids at which the model stops into generation_config.json, and keep its other values."""
    stored, wanted = _read(folder / GENERATION), stops[0] if len(stops) == 1 else stops
    if stored.get("eos_token_id") == wanted:
        return
    stored["eos_token_id"] = wanted
    (folder / GENERATION).write_bytes(orjson.dumps(stored, option=orjson.OPT_INDENT_2) + b"\n")


def copy_chat_files(packed: Path, folder: Path) -> None:
    """Write the chat template of packed data, and the tokens that end its answers, into the folder of a model."""
    (folder / DEFAULT_FILE).write_bytes((packed / DEFAULT_FILE).read_bytes())
    if stops := _read(packed / "metadata.json").get("stop_ids"):
        write_stop_ids(folder, stops)


def stop_ids(folder: Path) -> list[int]:
    """Return the ids in generation_config.json at which the model stops; none if it does not say."""
    stored = _read(folder / GENERATION).get("eos_token_id")
    return [each for each in (stored if isinstance(stored, list) else [stored]) if isinstance(each, int)]


def _read(path: Path) -> dict[str, Any]:
    """Return a JSON object; an empty one if there is no such file. Raises InputError: it is not one."""
    if not path.is_file():
        return {}
    try:
        value = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        raise InputError(f"{path}: not JSON: {error}. Run: dvc repro --force fetch-model") from error
    if not isinstance(value, dict):
        found = type(value).__name__
        raise InputError(f"{path}: found {found}, expected a JSON object. Run: dvc repro --force fetch-model")
    return value
