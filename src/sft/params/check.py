"""Check all of params.yaml: every section, and what depends on several sections."""

from pathlib import Path

from sft.cli import InputError
from sft.params.read import PARAMS, read_yaml
from sft.params.schema import Params

__all__ = ["Params", "check_params", "read"]


def read(path: Path = PARAMS) -> Params:
    """Return all params of a params.yaml. Raises InputError: with line and key of every mistake."""
    if not path.exists():
        raise InputError(f"{path.absolute()}: not found. Run in the folder that holds params.yaml.")
    return read_yaml(path, Params)


def check_params(path: Path = PARAMS) -> None:
    """Raise InputError if there is a mistake in params.yaml."""
    read(path)
