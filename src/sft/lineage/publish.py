"""publish: models/final -> a repository on the Hugging Face hub, after showing what would go.

    make publish REPO=owner/name                   list the files, their bytes and licenses; ask; upload
    make publish REPO=owner/name MODEL=models/x    another model, such as one of make export
    make publish REPO=owner/name YES=1             without the question, where nobody can be asked

Uploaded are the files that lineage.json lists, lineage.json itself, and as README.md the card with the evaluation
(reports/card.md) if it is of this model. Nothing else in the folder goes. A file that has changed since training stops
it. The repository is private if it is new; it is one commit. HF_ENDPOINT and HF_TOKEN work as everywhere.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sft.cli import InputError, confirm, echo, make_parser, run_or_exit
from sft.files import read_json
from sft.hashing import file_digest
from sft.params.data import Download
from sft.sources import hub

FINAL = Path("models/final")
CARD, LINEAGE = "README.md", "lineage.json"
EVALUATED = Path("reports/card.md")
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


def find_files(folder: Path) -> tuple[dict[str, Path], Mapping[str, Any]]:
    """Return what is uploaded, by its path in the repository, and lineage.json.

    Raises:  InputError: the folder is no trained model, or a file is missing or has changed.
    """
    if not (folder / LINEAGE).is_file():
        raise InputError(
            f"{folder / LINEAGE}: not found: {folder} is no trained model. Run make train, or make export."
        )
    lineage = read_json(folder / LINEAGE)
    for name, digest in lineage["files"].items():
        if not (folder / name).is_file():
            raise InputError(f"{folder / name}: not found, but {LINEAGE} lists it. Restore it: dvc checkout {folder}")
        if (found := file_digest(folder / name)) != digest:
            raise InputError(
                f"{folder / name}: sha256 is {found}, but {LINEAGE} has {digest}: it changed since training."
            )
    files = {name: folder / name for name in (*lineage["files"], LINEAGE)}
    if folder == FINAL and EVALUATED.is_file() and lineage["lineage_key"] in EVALUATED.read_text(encoding="utf-8"):
        files[CARD] = EVALUATED
    return dict(sorted(files.items())), lineage


def describe(files: Mapping[str, Path], lineage: Mapping[str, Any], repository: str) -> list[str]:
    """Return the lines that are shown before anything is sent."""
    lines = [f"{path.stat().st_size / 1e6:10,.1f} MB  {name}" for name, path in files.items()]
    lines.append(f"{sum(path.stat().st_size for path in files.values()) / 1e6:10,.1f} MB  in all, to {repository}")
    sources = lineage.get("sources", {}).values()
    licenses = {str(entry.get("license") or "unknown") for entry in (*sources, lineage.get("base_model_from") or {})}
    lines.append(f"licenses of the data and the base model: {'; '.join(sorted(licenses))}")
    lines.append(f"{LINEAGE} names the uri of every source, the params and the commit {lineage.get('git_commit')}")
    if CARD not in files:
        lines.append(f"no {CARD}: the repository gets no card")
    elif files[CARD] != EVALUATED:
        lines.append(f"{CARD} has no evaluation: to add it, run make eval first")
    return lines


def upload(files: Mapping[str, Path], repository: str, message: str) -> str:
    """Send the files in one commit; return its address.

    Raises:  InputError: the hub refuses, or cannot be reached.
    """
    import huggingface_hub

    target = Download(uri=f"hf://models/{repository}")
    operations = [huggingface_hub.CommitOperationAdd(name, str(path)) for name, path in files.items()]
    api = huggingface_hub.HfApi()
    with hub.named_errors(target, "upload to"):
        api.create_repo(repository, private=True, exist_ok=True)
        return str(api.create_commit(repository, operations, commit_message=message).commit_url)


def main(repository: str, folder: Path, *, yes: bool) -> None:
    """Show, ask and upload. Raises InputError: nobody can be asked."""
    if REPOSITORY.fullmatch(repository) is None:
        raise InputError(f"REPO={repository}: expected a model repository: REPO=owner/name")
    files, lineage = find_files(folder)
    for line in describe(files, lineage, repository):
        echo(line)
    if not (yes or confirm(f"Upload {len(files)} files to {repository}?", f"Add YES=1 to upload to {repository}.")):
        echo("nothing was uploaded")
        return
    echo(f"uploaded: {upload(files, repository, f'Trained by run {lineage["lineage_key"]}')}")


if __name__ == "__main__":
    parser = make_parser(__name__, __doc__)
    parser.add_argument("--repo", required=True, metavar="OWNER/NAME", help="a model repository on the hub")
    parser.add_argument("--model", type=Path, default=FINAL, help=f"a trained model; default: {FINAL}")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    arguments = parser.parse_args()
    run_or_exit(lambda: main(arguments.repo, arguments.model, yes=arguments.yes))
