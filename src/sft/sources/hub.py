"""The Hugging Face hub: what a uri names there, at which commit, and what the hub lists.

HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE work as everywhere. huggingface_hub is imported late: few sources need it.
"""

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from sft.cli import InputError
from sft.params.data import Download
from sft.sources.model_files import is_taken
from sft.sources.redact import redact

COMMIT = re.compile("[0-9a-f]{40}")


@dataclass(frozen=True)
class Place:
    """Files of a repository on the hub."""

    repository: str
    """owner/name."""
    is_model: bool
    path: str
    """A file, a folder or a pattern; empty = all files."""
    revision: str | None
    """A commit; a branch, a tag or None, which fetch refuses."""

    @property
    def remote(self) -> dict[str, Any]:
        """The arguments that huggingface_hub takes everywhere."""
        kind = "model" if self.is_model else "dataset"
        return {"repo_id": self.repository, "repo_type": kind, "revision": self.revision}

    def check_commit(self, source: Download) -> None:
        """Raise InputError unless the uri has a commit."""
        if self.revision is None or COMMIT.fullmatch(self.revision) is None:
            raise InputError(
                f"{source.address}: revision {self.revision!r}: expected a commit of 40 hex digits: "
                "hf://owner/name@<commit>/path. A branch or tag can move, and the same params would then name other "
                "data. To ask the hub for the commit and write it: make pin (in a profile: make pin PROFILE=...)."
            )


def parse(source: Download, is_model: bool = False) -> Place:
    """Return what an hf:// uri names. `is_model`: `hf://owner/name` is a model, not a data set.

    Raises:  InputError: it has another shape.
    """
    named = re.fullmatch(r"hf://(datasets/|models/)?([\w.-]+/[\w.-]+)(?:/(.*))?", source.address, re.ASCII)
    if named is None:
        raise InputError(f"{redact(source.address)}: expected hf://owner/name[/path] or hf://models/owner/name[/path]")
    kind, repository, path = named.groups()
    return Place(repository, kind == "models/" or (kind is None and is_model), path or "", source.revision)


def list_files(place: Place) -> dict[str, Any]:
    """Return the files of a repository by path, as the hub lists them: path, size, blob_id, lfs.

    Of a model, without a path, only those that are fetched.
    """
    import huggingface_hub

    entries = huggingface_hub.HfApi().list_repo_tree(recursive=True, **place.remote)
    files = {entry.path: entry for entry in entries if isinstance(entry, huggingface_hub.RepoFile)}
    if place.is_model and not place.path:
        files = {name: file for name, file in files.items() if is_taken(PurePosixPath(name).name)}
    return files


@contextlib.contextmanager
def named_errors(source: Download, action: str = "download from") -> Iterator[None]:
    """Turn errors of the hub and of the network into an InputError that names the uri."""
    import httpx
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        yield
    except (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        httpx.HTTPError,
        ConnectionError,  # of hf_xet
    ) as error:
        place = f"{source.address} at {source.revision}" if source.revision else source.address
        raise InputError(
            f"{redact(place)}: cannot {action} the hub: {redact(str(error))} "
            "Check the name, the commit, the network, and HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE."
        ) from error
