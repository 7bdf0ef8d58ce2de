"""The record of a model: lineage.json, and the texts (params, locks, reports) that describe its data and training.

Reports and params in a folder, git, installed packages  ->  what models/final/lineage.json holds
"""

import hashlib
import importlib.metadata
import platform
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft.files import read_json, write_text
from sft.hashing import file_digest
from sft.lineage.hardware import machine
from sft.lineage.key import Lineage
from sft.lineage.work_tree import OWN_OUTPUTS, git, index_of_head, new_files

if TYPE_CHECKING:
    from sft.params.data import Download

# Keys of a report of fetch that say where something comes from.
ORIGIN = ("uri", "revision", "sha256", "license", "origin", "domain")
# Texts that describe the data, a training and an evaluation; the run in MLflow keeps them.
DATA_RECORDS = (
    "params.yaml",
    "dvc.yaml",
    "requirements/data.txt",
    "requirements/train.txt",
    "requirements/tools.txt",
    "data/packed/metadata.json",
    "reports/pack.json",
    *(f"reports/{stage}/*.json" for stage in ("fetch", "filter", "prep")),
)
TRAIN_RECORDS = (
    *DATA_RECORDS,
    "dvc.lock",
    "reports/train.json",
    "reports/train_loss.csv",
    "reports/validation_loss.csv",
    "models/final/lineage.json",
    "models/final/README.md",
)
EVAL_RECORDS = ("dvc.lock", "reports/eval.json", "reports/answers.jsonl", "reports/card.md")


def lineage_json(
    lineage: Lineage,
    run_id: str | None,
    folder: Path,
    base: "Download",
    patch: bytes | None,
    git: tuple[str | None, bool | None],
) -> dict[str, Any]:
    """Return what models/final/lineage.json holds: from the model back to data, code and run.

    `folder` has the texts that describe the data, `git` is (commit, whether the work tree differs), `patch` is that of
    `sft.lineage.patch`: all as they were when training began. The stage that exports adds `files`: the digests
    of all other files of the model. `mlflow_run_id` is null if MLflow did not answer during the whole training; the run
    is then found by the lineage key.
    """
    commit, dirty = git
    named = sources(folder)
    made = {
        path: file
        for path, file in records(folder, DATA_RECORDS).items()
        if path.startswith(("data/", "reports/")) and _is_of_blend(path, named)
    }
    return {
        "lineage_key": lineage.key,
        "git_commit": commit,
        "git_dirty": dirty,
        "patch": None if patch is None else hashlib.sha256(patch).hexdigest(),
        "data": lineage.data,
        "base_model": lineage.base_model,
        "base_model_from": base_model_from(folder, base),
        "parent": parent_key(lineage.params, folder),
        "params": lineage.params,
        "code": lineage.code,
        "packages": all_packages(),
        "hardware": hardware(),
        "sampled": read_json(folder / "data/packed/metadata.json").get("sampled", False),
        "sources": named,
        "benchmarks": benchmarks(folder),
        "records": {path: file_digest(file) for path, file in made.items()},
        "mlflow_run_id": run_id,
    }


def _is_of_blend(path: str, named: Iterable[str]) -> bool:
    """Whether a report is of the packed data: that of a source which has left the blend stays in its folder."""
    parts = Path(path).parts
    is_by_source = parts[0] == "reports" and len(parts) > 2
    return not is_by_source or Path(path).stem in {*named, *("model", "benchmarks")}


def records(folder: Path, patterns: tuple[str, ...] = TRAIN_RECORDS) -> dict[str, Path]:
    """Return the files of `folder` that match the patterns, by their path in it."""
    files = {path.relative_to(folder).as_posix(): path for pattern in patterns for path in folder.glob(pattern)}
    return dict(sorted(files.items()))


def git_state(folder: Path) -> tuple[str | None, bool | None]:
    """Return (commit, whether the code differs from it); (None, None) outside a git repository."""
    try:
        commit = git(folder, "rev-parse", "HEAD").decode().strip()
        with index_of_head(folder) as separate:
            changed = git(folder, "diff", "--name-only", "HEAD", "--", ".", *OWN_OUTPUTS, environ=separate)
            return commit, bool(changed or new_files(folder, separate))
    except (subprocess.CalledProcessError, FileNotFoundError):
        return None, None


def base_model_from(folder: Path, base: "Download") -> dict[str, Any]:
    """Return where the base model comes from: uri, pin and `added` of its report, license and origin of params.yaml."""
    report = folder / "reports/fetch/model.json"
    known = {"license": base.license, "origin": base.origin} | (read_json(report) if report.exists() else {})
    return {name: known[name] for name in (*ORIGIN, "added") if known.get(name)}


def parent_key(params: dict[str, Any], folder: Path) -> str | None:
    """Return the lineage key of the model that training started from, if this project made it."""
    start = params.get("checkpoint", {}).get("pretrained_checkpoint")
    if start:
        match = re.search(r"(?:^|/)runs/([0-9a-f]{16})/", start)
        return match[1] if match else None
    base = folder / "models/base/lineage.json"
    return str(read_json(base)["lineage_key"]) if base.exists() else None


def all_packages() -> dict[str, str]:
    """Return the versions of all installed packages, in order of name."""
    versions = {package.metadata["Name"].lower(): package.version for package in importlib.metadata.distributions()}
    return dict(sorted(versions.items()))


def environment_text() -> str:
    """Return all installed packages as pins, one a line: `uv pip install -r` takes them."""
    pins = [f"{name}=={version}" for name, version in all_packages().items()]
    return "\n".join([f"# Python {platform.python_version()}, {platform.machine()}", *pins]) + "\n"


def write_environment(folder: Path, checkpoint: Path) -> list[Path]:
    """Write the installed packages and Bridge's whole configuration into a run's folder; return the files."""
    texts = {
        folder / "environment.txt": environment_text(),
        folder / "effective_config.yaml": (checkpoint / "run_config.yaml").read_text(encoding="utf-8"),
    }
    for path, text in texts.items():
        write_text(path, text)
    return list(texts)


def hardware() -> dict[str, Any]:
    """Return what of this machine can change the last bits of a sum: processor, threads, GPUs. Not part of the key."""
    import torch

    return {**machine(), "threads": torch.get_num_threads()}


def sources(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the sources of the packed data by name: where each comes from, its license, rows at every stage."""
    packed = read_json(folder / "data/packed/metadata.json")["sources"]
    return {name: _source(folder, name, counts) for name, counts in packed.items()}


def _source(folder: Path, name: str, counts: dict[str, Any]) -> dict[str, Any]:
    source = {key: counts[key] for key in ("domain", "license", "conversations", "tokens", "trained_tokens")}
    fetched, filtered = (folder / "reports" / stage / f"{name}.json" for stage in ("fetch", "filter"))
    packed = folder / "reports/pack.json"
    if packed.exists() and (origin := read_json(packed).get("origins", {}).get(name)):
        source["origin"] = origin
    if fetched.exists():
        source |= {key: value for key, value in read_json(fetched).items() if key in ORIGIN}
    if filtered.exists():
        report = read_json(filtered)
        source |= {"rows": report["rows_found"], "kept": report["rows_out"], "rejected": report["rejected"]}
    return source


def benchmarks(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the evaluation sets that the data was checked against, by name: where each comes from, its texts."""
    report = folder / "reports/fetch/benchmarks.json"
    sets = read_json(report)["benchmarks"] if report.exists() else {}
    return {name: {key: facts[key] for key in (*ORIGIN, "texts") if key in facts} for name, facts in sets.items()}
