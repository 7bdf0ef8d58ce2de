"""The address of the MLflow store: MLFLOW_TRACKING_URI, else one SQLite file of the repository, runs/mlflow.db.

Nothing is asked and MLflow is not loaded, so that a wrong address can be refused before anything else runs.
"""

import os
import re
from pathlib import Path
from urllib.parse import quote, urlsplit

from sft.cli import InputError
from sft.files import project_root
from sft.sources.redact import redact

DATABASES = {"sqlite", "postgresql", "mysql", "mssql"}
HOSTED = {"databricks", "databricks-uc"}


class StoreError(InputError):
    """The store does not answer, or cannot be used as it is."""


def store_uri() -> str:
    """Return the address of the store: MLFLOW_TRACKING_URI, or runs/mlflow.db of the repository.

    A relative SQLite file is one of the repository, also in a copy of it. Raises StoreError: no address of a store.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or _local_uri()
    scheme, _, rest = uri.partition("://")
    if uri == _local_uri():
        return uri
    if scheme == "sqlite" and rest.startswith("/") and not rest.startswith(("//", "/:")):
        return sqlite_uri(project_root() / rest[1:])
    is_database = scheme.partition("+")[0] in DATABASES and rest and (scheme != "sqlite" or rest.startswith("/"))
    if is_database or scheme in HOSTED or _names_server(uri):
        return uri
    is_host = re.fullmatch(r"[\w.-]+:\d+(/.*)?", uri)
    advice = f"Write http://{redact(uri)}." if is_host else "To keep runs in a file of this project, unset it."
    raise StoreError(
        f"MLFLOW_TRACKING_URI={redact(uri)}: expected http://..., https://..., sqlite:///file or postgresql://... "
        f"(MLflow no longer keeps runs in folders). {advice}"
    )


def _local_uri() -> str:
    return sqlite_uri(project_root() / "runs" / "mlflow.db")


def sqlite_uri(path: Path) -> str:
    """Return the address of a SQLite file.

    Where the path has a character that means something in an address, it is quoted and relative to this folder: MLflow
    also makes the folder of an address as it is written.
    """
    absolute = str(path.absolute())
    return "sqlite:///" + (quote(os.path.relpath(path)) if set(absolute) & set("?#%") else absolute)


def store_name() -> str:
    """Return the address of the store without secrets."""
    uri = os.environ.get("MLFLOW_TRACKING_URI")  # MLflow sets the variable itself when it is pointed somewhere
    return redact(uri) if uri and uri != _local_uri() else "runs/mlflow.db"


def is_local() -> bool:
    """Whether the store is runs/mlflow.db."""
    return store_name() == "runs/mlflow.db"


def has_store() -> bool:
    """Whether there is a store: MLFLOW_TRACKING_URI is set, or runs/mlflow.db exists."""
    return not is_local() or (project_root() / "runs" / "mlflow.db").exists()


def _names_server(uri: str) -> bool:
    """Whether a text is an http address with a host and, if there is one, a port of digits."""
    try:
        parts = urlsplit(uri)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, a broken IPv6 address
        return False
