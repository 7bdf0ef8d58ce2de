"""Lineage: what determines a model, and one key for it.

The key is a hash over the packed data, the base model, the train sections of params.yaml, the code that the
train stage imports, and the versions of the packages that compute. Same key: the same model, so a run is
resumed or reused. Another key: another run, in a folder of its own; nothing is ever mixed.
"""

import ast
import hashlib
import importlib.metadata
import platform
import re
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft.files import read_json
from sft.hashing import file_digest, value_digest

if TYPE_CHECKING:
    from sft.params.data import Download

PACKAGE = Path(__file__).parents[1]
KEY_DIGITS = 16
# Packages whose version can change a number in the model.
NUMERIC_PACKAGES = (
    "torch",
    "megatron-core",
    "megatron-bridge",
    "transformers",
    "tokenizers",
    "numpy",
    "pyarrow",
)
# Code that the train stage imports and that cannot change a weight: an edit there starts no other run.
NOT_IN_KEY = (
    "sft.cli",
    "sft.cluster",
    "sft.lineage",
    "sft.pages",
    "sft.planning.preflight",
    "sft.tracking",
)
# What of the reports says where the data of a source comes from, and what became of it.
ORIGIN = ("uri", "revision", "sha256", "license", "origin", "domain")
# The texts that tell of a training and of an evaluation; a run in MLflow keeps them.
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
# What the pipeline itself writes while it runs: a change there does not make the code dirty.
OWN_OUTPUTS = (":(exclude)reports", ":(exclude)dvc.lock", ":(exclude,glob)**/.gitignore")


@dataclass(frozen=True)
class Lineage:
    """Everything that determines a model; digests are sha256."""

    data: str
    """Digest of the packed data."""
    base_model: str
    """Digest of models/base, or of the checkpoint that replaces it."""
    params: dict[str, Any]
    """The train sections of params.yaml."""
    code: str
    """Digest of the modules that the train stage imports."""
    numeric_packages: dict[str, str]
    """Versions of DECISIVE_PACKAGES."""

    @property
    def key(self) -> str:
        """The lineage key: it names the run's folder and tags the run in MLflow."""
        return value_digest(asdict(self))[:KEY_DIGITS]

    def determining(self) -> dict[str, Any]:
        """What determines the model, as the store of runs shows it: params, and digests of what they apply to."""
        digests = {"data": self.data, "base_model": self.base_model, "code": self.code}
        return {**self.params, **digests, "packages": self.numeric_packages}


def package_versions(names: tuple[str, ...] = NUMERIC_PACKAGES) -> dict[str, str]:
    """Return the installed versions of packages, by name."""
    return {name: importlib.metadata.version(name) for name in names}


def all_packages() -> dict[str, str]:
    """Return the versions of everything that is installed, in order of name."""
    found = {dist.metadata["Name"].lower(): dist.version for dist in importlib.metadata.distributions()}
    return dict(sorted(found.items()))


def environment_text() -> str:
    """Return what is installed as lines of pins, for whoever wants to install the same."""
    pins = [f"{name}=={version}" for name, version in all_packages().items()]
    return "\n".join([f"# Python {platform.python_version()}, {platform.machine()}", *pins]) + "\n"


def parent_key(params: dict[str, Any], folder: Path) -> str | None:
    """Return the lineage key of the model that the training started from, where that is one of ours."""
    start = params.get("checkpoint", {}).get("pretrained_checkpoint")
    if start:
        found = re.search(r"(?:^|/)runs/([0-9a-f]{16})/", start)
        return found[1] if found else None
    base = folder / "models/base/lineage.json"
    return str(read_json(base)["lineage_key"]) if base.exists() else None


def base_model_from(folder: Path, base: "Download") -> dict[str, Any]:
    """Return where the base model was fetched from: uri and pin as the report says, licence and origin as params do."""
    report = folder / "reports/fetch/model.json"
    found = {"license": base.license, "origin": base.origin} | (read_json(report) if report.exists() else {})
    return {name: found[name] for name in ORIGIN if found.get(name)}


def code_digest(module: str) -> str:
    """Return the digest of a module and of all `sft` modules that it imports, at any depth, without NOT_IN_KEY."""
    closure = sorted(import_closure(module).items())
    return value_digest({name: file_digest(path) for name, path in closure if not name.startswith(NOT_IN_KEY)})


def import_closure(module: str) -> dict[str, Path]:
    """Return {name: file} of a module and of every `sft` module that it imports, directly or not.

    Read from the source, so that nothing is imported; imports inside functions count.
    """
    closure: dict[str, Path] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        file = PACKAGE.joinpath(*name.split(".")[1:]).with_suffix(".py")
        if name in closure or not file.is_file():
            continue
        closure[name] = file
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "sft":
                waiting += [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Import):
                waiting += [alias.name for alias in node.names if alias.name.startswith("sft.")]
    return closure


def git_state(folder: Path) -> tuple[str | None, bool | None]:
    """Return (commit, whether the work tree differs from it); (None, None) outside a git repository."""
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        return commit, bool(_git(folder, "status", "--porcelain", "--", ".", *OWN_OUTPUTS))
    except (subprocess.CalledProcessError, FileNotFoundError):
        return None, None


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def hardware() -> dict[str, Any]:
    """Return what of this machine can change a sum: processor, threads, GPUs. Not part of the key."""
    import torch

    cpuinfo = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*: (.*)", cpuinfo.read_text(encoding="utf-8")) if cpuinfo.exists() else None
    return {
        "machine": platform.machine(),
        "processor": named[1].strip() if named else platform.processor(),
        "threads": torch.get_num_threads(),
        "gpus": _gpus(),
    }


def _gpus() -> list[str]:
    """Return the names of the GPUs, by their driver: on a CPU, training makes torch tell of one that is not there."""
    asked = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        return subprocess.run(asked, check=True, capture_output=True, text=True).stdout.splitlines()
    except (subprocess.CalledProcessError, FileNotFoundError):
        return []


def records(folder: Path, patterns: tuple[str, ...] = TRAIN_RECORDS) -> dict[str, Path]:
    """Return the texts that tell of a run, by their place below `folder`, those that are there."""
    found = {path.relative_to(folder).as_posix(): path for pattern in patterns for path in folder.glob(pattern)}
    return dict(sorted(found.items()))


def sources(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the sources of the packed data by name: where each comes from, its licence, rows at every stage."""
    packed = read_json(folder / "data/packed/metadata.json")["sources"]
    return {name: _source(folder, name, counts) for name, counts in packed.items()}


def benchmarks(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the evaluation sets that the data was held against, by name: where each comes from, texts in it."""
    report = folder / "reports/fetch/benchmarks.json"
    sets = read_json(report)["benchmarks"] if report.exists() else {}
    return {name: {key: told[key] for key in (*ORIGIN, "texts") if key in told} for name, told in sets.items()}


def _source(folder: Path, name: str, counts: dict[str, Any]) -> dict[str, Any]:
    found = {key: counts[key] for key in ("domain", "license", "conversations", "tokens", "trained_tokens")}
    fetched, filtered = (folder / "reports" / stage / f"{name}.json" for stage in ("fetch", "filter"))
    packed = folder / "reports/pack.json"
    if packed.exists() and (origin := read_json(packed).get("origins", {}).get(name)):
        found["origin"] = origin
    if fetched.exists():
        found |= {key: value for key, value in read_json(fetched).items() if key in ORIGIN}
    if filtered.exists():
        report = read_json(filtered)
        found |= {"rows": report["rows_found"], "kept": report["rows_out"], "rejected": report["rejected"]}
    return found


def lineage_json(
    lineage: Lineage, run_id: str | None, folder: Path, base: "Download", patch: bytes | None = None
) -> dict[str, Any]:
    """Return what stands in models/final/lineage.json: the way from the model back to data, code and run.

    `patch` is what `sft.lineage.patch` says of the work tree, taken when training began. The stage that exports
    adds `files`: the digests of all other files of the model. `mlflow_run_id` is null where MLflow could not be
    reached from the start of the training to its end; its run is found by the lineage key.
    """
    commit, dirty = git_state(folder)
    made = {
        path: file for path, file in records(folder, DATA_RECORDS).items() if path.startswith(("data/", "reports/"))
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
        "sources": sources(folder),
        "benchmarks": benchmarks(folder),
        "records": {path: file_digest(file) for path, file in made.items()},
        "mlflow_run_id": run_id,
    }
