"""Read params.yaml: the sections that a stage declares in dvc.yaml, each checked against its schema.

The file is YAML 1.2, because `dvc exp run -S optimizer.lr=1e-5` writes `1e-05`, which YAML 1.1 readers take for text.
`sft.params.check` checks the whole file, `sft.params.explain` explains mistakes.

    load("pack")                     a section
    load("fetch.sources")            a part of one
    load_source("chats", "read")     one key of one source
    load_training()                  all sections of the train stage
"""

import copy
import difflib
import functools
import importlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from sft.cli import InputError

if TYPE_CHECKING:
    from sft.params.training import TrainParams

PARAMS, PROFILES = Path("params.yaml"), Path("profiles")
MISSING = "missing"
NO_PARAMS = "Run in the folder that holds params.yaml. To start from a profile: make profile"
# Section -> module and class of its schema. A stage imports those of its own sections only.
SCHEMA = {
    "fetch": ("data", "Fetch"),
    "filter": ("data", "Filter"),
    "prep": ("data", "Prep"),
    "pack": ("data", "Pack"),
    "model": ("training", "Model"),
    "mixed_precision": ("training", "MixedPrecision"),
    "peft": ("training", "Peft"),
    "optimizer": ("training", "Optimizer"),
    "scheduler": ("training", "Scheduler"),
    "train": ("training", "Train"),
    "validation": ("training", "Validation"),
    "checkpoint": ("training", "Checkpoint"),
    "rng": ("training", "Rng"),
    "bridge": ("training", "Bridge"),
    "eval": ("evaluation", "Eval"),
}
TRAINING = tuple(name for name, (module, _) in SCHEMA.items() if module == "training")


def profiles() -> list[str]:
    """Return the names of the profiles."""
    return sorted(path.stem for path in PROFILES.glob("*.yaml"))


def params_file(profile: str | None) -> Path:
    """Return profiles/<profile>.yaml, or params.yaml without a name. Raises InputError: there is no such profile."""
    if profile is None:
        return PARAMS
    path = PROFILES / f"{profile}.yaml"
    if profile not in profiles():
        raise InputError(f"PROFILE={profile}: {path} not found. Profiles: {', '.join(profiles()) or 'none'}")
    return path


def load(name: str, path: Path = PARAMS) -> Any:
    """Return a section, `pack`, or a part of one: `fetch.sources`, `fetch.model.uri`.

    Raises:  InputError: missing file, broken YAML, unknown or missing key, wrong type or value.
    """
    section, *parts = name.split(".")
    return functools.reduce(getattr, parts, _section(section, path))


def load_source(source: str, key: str, path: Path = PARAMS) -> Any:
    """Return one key of one source: its `uri`, or its `read`.

    Raises:  InputError: as load; no such source.
    """
    sources = _section("fetch", path).sources
    if source not in sources:
        near = difflib.get_close_matches(source, sources, n=1)
        suggestion = f"Did you mean {near[0]!r}? " if near else ""
        raise InputError(f"--source {source}: not in fetch.sources. {suggestion}Known: {', '.join(sources)}.")
    return getattr(sources[source], key)


def load_training(path: Path = PARAMS) -> "TrainParams":
    """Return the sections of the train stage. Raises InputError, as load."""
    schema = importlib.import_module("sft.params.training")
    return schema.TrainParams(**{name: _section(name, path) for name in TRAINING})  # type: ignore[no-any-return]


def parse_setting(setting: str) -> tuple[str, Any]:
    """Return key and value of `optimizer.lr=1e-5`, the value read as YAML. Raises InputError: no key, not YAML.

    >>> parse_setting("optimizer.lr=1e-5")
    ('optimizer.lr', 1e-05)
    """
    key, equals, text = setting.partition("=")
    if not key or not equals:
        raise InputError(f"{setting}: expected KEY=VALUE, as in optimizer.lr=1e-5")
    try:
        return key, YAML(typ="safe", pure=True).load(text)
    except (YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{key}: {text[:80]!r} is not YAML") from error


def change(settings: Iterable[str], path: Path = PARAMS) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Return the text of params.yaml, its values with some changed, and the old value of each; the file stays.

    An old value is MISSING if params.yaml has no such key. Raises InputError: a setting has no place in the file.
    """
    text, parsed = read_text(path)
    values = copy.deepcopy(parsed)
    old: dict[str, Any] = {}
    for key, value in map(parse_setting, settings):
        *parents, last = key.split(".")
        section = values
        for depth, parent in enumerate(parents):
            section = section.setdefault(parent, {})
            if not isinstance(section, dict):
                place = ".".join(parents[: depth + 1])
                raise InputError(f"{path}: {place}: is {section!r}, without keys. Set all of it: {place}=...")
        old.setdefault(key, section.get(last, MISSING))
        section[last] = value
    return text, values, old


def read_yaml[M: BaseModel](path: Path, model: type[M]) -> M:
    """Return the values of a YAML file in a schema. Raises InputError: with line and key of every mistake."""
    text, values = read_text(path)
    if not isinstance(values, dict):
        kind = "sections" if set(model.model_fields) == set(SCHEMA) else "keys"
        raise InputError(f"{path}: expected {kind} ({', '.join(model.model_fields)}), found {type(values).__name__}")
    return validate(path, text, values, model)


def validate[M: BaseModel](path: Path, text: str, values: Any, model: type[M], section: tuple[str, ...] = ()) -> M:
    """Return values of a YAML text in a schema, that of the whole file or of a section.

    Raises:  InputError: with line and key of every mistake.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        from sft.params.explain import explain

        raise InputError(explain(path, text, error, model, section)) from error


def _section(name: str, path: Path) -> Any:
    """Return one section of params.yaml; the others are not checked."""
    if not path.exists():
        raise InputError(f"{path.absolute()}: not found. {NO_PARAMS}")
    text, values = read_text(path)
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected sections ({', '.join(SCHEMA)}), found {type(values).__name__}")
    if name not in values:
        raise InputError(f"{path}: {name}: missing. docs/reference/params.md has its keys and defaults.")
    module, section = SCHEMA[name]
    schema = getattr(importlib.import_module(f"sft.params.{module}"), section)
    return validate(path, text, values[name], schema, (name,))


def read_text(path: Path) -> tuple[str, Any]:
    """Return the text of a YAML file and its values. Raises InputError: with the line."""
    try:
        text = path.read_text(encoding="utf-8")
        return text, _parse(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else "?"
        raise InputError(f"{path}:{line}: not valid YAML: {error.problem or error.context}") from error
    except (YAMLError, ValueError, RecursionError) as error:  # invalid characters, numbers, dates; too deep
        raise InputError(f"{path}: not valid YAML: {error}") from error


@functools.lru_cache(maxsize=4)
def _parse(text: str) -> Any:
    """Return the values of a YAML text, parsed once for all sections that a stage loads; they are not to be changed."""
    return YAML(typ="safe", pure=True).load(text)
