"""The lineage key: one hash over everything that determines a model.

It covers the packed data, the base model, the training params, the code that the train stage imports and the versions
of the packages that compute. Same key, same model: a run is resumed or reused. Another key gets its own folder, so two
trainings never mix. Comments, docstrings, and how many checkpoints are kept change nothing: a run continues after such
an edit. When it is validated and saved counts only where that chooses the checkpoint to export (`export: best`).
"""

import ast
import importlib.metadata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sft.hashing import value_digest

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
# Code that the train stage imports and that cannot change a weight: where and how it starts, how it is recorded, and
# how params are read and checked (their values are in the key). Neither is what only this code imports.
NOT_IN_KEY = (
    "sft.cli",
    "sft.cluster",
    "sft.inspect",
    "sft.lineage",
    "sft.pages",
    "sft.params.base",
    "sft.params.check",
    "sft.params.explain",
    "sft.params.read",
    "sft.params.recorded",
    "sft.planning.preflight",
    "sft.run_stage",
    "sft.tracking",
)


# Params of `checkpoint` that cannot change a weight. The last two, and `validation`, decide which step is the best one.
KEEPING = ("most_recent_k", "save_retain_interval", "async_save")
SAVING = ("save_interval", "save_minutes")


@dataclass(frozen=True)
class Lineage:
    """Everything that determines a model; digests are sha256."""

    data: str
    """Digest of the packed data."""
    base_model: str
    """Digest of models/base, or of the checkpoint that training starts from instead."""
    params: dict[str, Any]
    """The training sections of params.yaml."""
    code: str
    """Digest of the modules that the train stage imports, without NOT_IN_KEY."""
    numeric_packages: dict[str, str]
    """Versions of NUMERIC_PACKAGES."""

    @property
    def key(self) -> str:
        """The lineage key: it names the run's folder and tags the run in MLflow."""
        checkpoint = self.params.get("checkpoint", {})
        is_best = checkpoint.get("export") == "best"
        left_out = KEEPING if is_best else (*KEEPING, *SAVING)
        kept = {name: value for name, value in checkpoint.items() if name not in left_out}
        sections = {name: value for name, value in self.params.items() if is_best or name != "validation"}
        return self._key({**sections, "checkpoint": kept})

    def has_key(self, key: str) -> bool:
        """Whether this is its key, or was in 0.1.0, which hashed all params."""
        return key in (self.key, self._key(self.params))

    def _key(self, params: dict[str, Any]) -> str:
        """Return the hash of all that determines the model; the names in it are those of 0.1.0."""
        hashed = {
            "data": self.data,
            "base_model": self.base_model,
            "params": params,
            "code": self.code,
            "decisive_packages": self.numeric_packages,
        }
        return value_digest(hashed)[:KEY_DIGITS]

    def determining(self) -> dict[str, Any]:
        """Return what determines the model as MLflow shows it: params, and digests of what they apply to."""
        digests = {"data": self.data, "base_model": self.base_model, "code": self.code}
        return {**self.params, **digests, "packages": self.numeric_packages}


def package_versions(names: tuple[str, ...] = NUMERIC_PACKAGES) -> dict[str, str]:
    """Return the installed versions of packages, by name."""
    return {name: importlib.metadata.version(name) for name in names}


def code_digest(module: str, package: Path = PACKAGE) -> str:
    """Return one digest of a module and of all `sft` modules that it imports, at any depth, without NOT_IN_KEY.

    Of what Python runs: neither comments and docstrings nor the layout of lines are in it.
    """
    return value_digest({name: _statements(path) for name, path in sorted(import_closure(module, package).items())})


def _statements(file: Path) -> str:
    """Return the syntax tree of a module as text, without docstrings and other texts that stand alone."""
    tree = ast.parse(file.read_bytes())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [each for each in node.body if not _is_text(each)]
    return ast.dump(tree)


def _is_text(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def import_closure(module: str, package: Path = PACKAGE) -> dict[str, Path]:
    """Return {name: file} of a module and of every `sft` module that it imports, directly or not.

    Does not follow NOT_IN_KEY. Read from the source in `package`, so that nothing is imported; imports inside functions
    count.
    """
    closure: dict[str, Path] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        file = package.joinpath(*name.split(".")[1:]).with_suffix(".py")
        if name in closure or f"{name}.".startswith(tuple(f"{left_out}." for left_out in NOT_IN_KEY)):
            continue
        if not file.is_file():
            continue
        closure[name] = file
        for node in ast.walk(ast.parse(file.read_bytes())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "sft":
                waiting += [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Import):
                waiting += [alias.name for alias in node.names if alias.name.startswith("sft.")]
    return closure
