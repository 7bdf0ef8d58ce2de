"""Check all of params.yaml: every section, and what depends on several sections."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sft.cli import InputError
from sft.params.explain import explain
from sft.params.read import PARAMS, change, read_yaml
from sft.params.schema import Params

__all__ = ["Params", "check_params", "check_settings", "read"]


def read(path: Path = PARAMS) -> Params:
    """Return all params of a params.yaml. Raises InputError: with line and key of every mistake."""
    if not path.exists():
        raise InputError(f"{path.absolute()}: not found. Run in the folder that holds params.yaml.")
    return read_yaml(path, Params)


def check_params(path: Path = PARAMS) -> None:
    """Raise InputError if there is a mistake in params.yaml."""
    read(path)


def check_settings(settings: Sequence[str], path: Path = PARAMS) -> dict[str, Any]:
    """Return the value in params.yaml of each key that settings, `optimizer.lr=1e-5`, would change.

    Raises:  InputError: an unknown key, with the nearest one; a value that its schema does not allow.
    """
    text, values, old = change(settings, path)
    try:
        Params.model_validate(values)
    except ValidationError as error:
        raise InputError(explain(path, text, error, Params)) from error
    return old
