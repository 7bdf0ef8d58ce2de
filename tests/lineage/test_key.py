"""key: everything that determines a model changes its key, and nothing else does."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from sft.files import flatten
from sft.hashing import value_digest
from sft.lineage.key import NUMERIC_PACKAGES, PACKAGE, Lineage, code_digest, import_closure
from sft.params.check import Params
from sft.params.read import load_training

STAGE = "sft.stages.train"

ONE = Lineage(
    data="d" * 64,
    base_model="b" * 64,
    params={"optimizer": {"lr": 1e-5}, "rng": {"seed": 1}},
    code="c" * 64,
    numeric_packages={"torch": "2.13.0"},
)


@pytest.mark.parametrize(
    "change",
    [
        {"data": "e" * 64},
        {"base_model": "e" * 64},
        {"params": {"optimizer": {"lr": 2e-5}, "rng": {"seed": 1}}},
        {"code": "e" * 64},
        {"numeric_packages": {"torch": "2.14.0"}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whatever_determines_the_model_changes_the_key(change):
    assert replace(ONE, **change).key != ONE.key


def test_the_key_does_not_depend_on_the_order_of_params():
    assert replace(ONE, params={"rng": {"seed": 1}, "optimizer": {"lr": 1e-5}}).key == ONE.key
    assert len(ONE.key) == 16


def test_every_package_that_computes_is_in_the_key():
    assert set(NUMERIC_PACKAGES) == {
        "torch", "megatron-core", "megatron-bridge", "transformers", "tokenizers", "numpy", "pyarrow",
    }  # fmt: skip


# --- Code -----------------------------------------------------------------------------------------------

COMPUTES = (
    *("stages/train.py", "params/training.py", "planning/checks.py", "planning/facts.py", "planning/estimate.py"),
    *("files.py", "hashing.py", "ledger.py"),
)
DOES_NOT_COMPUTE = (
    *("cli.py", "cluster", "experiments", "inspect", "lineage", "pages", "tracking", "stages/eval.py"),
    *(
        "params/base.py",
        "params/check.py",
        "params/explain.py",
        "params/read.py",
        "planning/preflight.py",
        "run_stage.py",
    ),
    *("training/export.py", "evaluation", "filters", "formats", "packing", "sources", "tokens", "conversation.py"),
)


@pytest.fixture
def source_tree(tmp_path):
    """A copy of src/sft."""
    return shutil.copytree(PACKAGE, tmp_path / "sft", ignore=shutil.ignore_patterns("__pycache__"))


def edit(path: Path) -> str:
    """Add a statement to a module; return what it was."""
    text = path.read_text()
    path.write_text(text + "EDITED = 1\n")
    return text


def test_an_edit_of_a_module_that_computes_changes_the_key_unless_it_is_a_comment_or_a_docstring(source_tree):
    before = code_digest(STAGE, source_tree)
    assert before == code_digest(STAGE)
    training = [path for path in sorted((source_tree / "training").glob("*.py")) if path.name[0] != "_"]
    computes = [path for path in training if path.name != "export.py"]
    assert len(computes) > 3
    for path in (*(source_tree / name for name in COMPUTES), *computes):
        text = edit(path)
        assert code_digest(STAGE, source_tree) != before, path
        path.write_text("# A comment.\n\n" + re.sub(r'""".*?"""', '"""A docstring."""', text, flags=re.DOTALL))
    assert code_digest(STAGE, source_tree) == before


def test_code_in_another_encoding_is_read_as_python_reads_it(source_tree):
    before = code_digest(STAGE, source_tree)
    path = source_tree / "files.py"
    text = path.read_text()
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert code_digest(STAGE, source_tree) == before
    path.write_bytes(b"# coding: latin-1\n" + text.encode() + b"# \xe9\n")
    assert code_digest(STAGE, source_tree) == before
    path.write_bytes(b"# coding: latin-1\n" + text.encode() + b"NAME = '\xe9'\n")
    assert code_digest(STAGE, source_tree) != before


def test_an_edit_of_code_that_cannot_change_a_weight_does_not_change_the_key(source_tree):
    before = code_digest(STAGE, source_tree)
    for name in DOES_NOT_COMPUTE:
        path = source_tree / name
        modules = sorted(path.rglob("*.py")) if path.is_dir() else [path]
        assert modules, name
        for module in modules:
            edit(module)
        assert code_digest(STAGE, source_tree) == before, name


def test_the_closure_holds_what_a_module_imports_at_any_depth_and_inside_functions():
    closure = import_closure(STAGE)
    assert {STAGE, "sft.training.bridge", "sft.training.cpu", "sft.params.training", "sft.files"} <= closure.keys()
    assert all(path.is_file() for path in closure.values())


# --- Params ---------------------------------------------------------------------------------------------

# Sections of params.yaml: those of the training are in the key by value, those of the data by the digest of the packed
# data, and those of the evaluation not at all.
IN_KEY = {
    "fetch": False, "filter": False, "prep": False, "pack": False, "model": True, "mixed_precision": True, "peft": True,
    "optimizer": True, "scheduler": True, "train": True, "validation": True, "checkpoint": True, "rng": True,
    "bridge": True,
    "eval": False,
}  # fmt: skip


def test_the_table_says_of_every_section_whether_it_is_in_the_key():
    assert list(IN_KEY) == list(Params.model_fields)
    assert [name for name, is_in_key in IN_KEY.items() if is_in_key] == list(load_training().model_dump())


def test_every_param_of_a_section_in_the_key_changes_it_but_how_many_checkpoints_are_kept():
    """When a run is validated and saved decides which checkpoint is exported only if that is the best one.

    `export` itself counts: after a run that exports the last checkpoint, the best one may be removed.
    """
    training = load_training().model_dump()
    names = list(flatten(training))
    declared = [name for name in flatten(YAML(typ="safe").load(Path("params.yaml"))) if IN_KEY[name.partition(".")[0]]]
    assert set(declared) <= set(names)
    kept = {"checkpoint.most_recent_k", "checkpoint.save_retain_interval", "checkpoint.async_save"}
    saved = {"checkpoint.save_interval", "checkpoint.save_minutes"}
    validated = {name for name in names if name.startswith("validation.")}
    assert validated
    for export, changes_nothing in (("last", kept | saved | validated), ("best", kept)):
        params = {**training, "checkpoint": {**training["checkpoint"], "export": export}}
        before = replace(ONE, params=params).key
        for name in set(names) - {"checkpoint.export"}:
            section, _, param = name.partition(".")
            other = {**params, section: {**params[section], param: "another value"}}
            assert (replace(ONE, params=other).key == before) == (name in changes_nothing), name
    assert replace(ONE, params={**training, "checkpoint": {**training["checkpoint"], "export": "best"}}).key != (
        replace(ONE, params={**training, "checkpoint": {**training["checkpoint"], "export": "last"}}).key
    )


def test_keys_of_0_1_0_are_known():
    params = {"checkpoint": {"export": "last", "most_recent_k": 2}}
    lineage = replace(ONE, params=params)
    assert lineage.has_key(lineage.key)
    assert not lineage.has_key(ONE.key)
    assert lineage.key == replace(ONE, params={"checkpoint": {"export": "last"}}).key
    assert lineage.has_key(
        value_digest(
            {
                "data": ONE.data,
                "base_model": ONE.base_model,
                "params": params,
                "code": ONE.code,
                "decisive_packages": ONE.numeric_packages,
            }
        )[:16]
    )
