"""The shape of the repository, held by reading its files.

A stage has one name in every place, declares exactly the code and the params that it uses, and each outside
world (Megatron, MLflow, params.yaml) is entered through one module or one package. Each rule is a function from
sources to faults, shown to find a fault in a small example before it is applied to the repository.
"""

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from sft.params.check import Params
from sft.params.read import SCHEMA, TRAINING
from sft.params.training import TrainParams

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src"
STAGES = ["fetch", "filter", "prep", "pack", "train", "eval"]
PER_SOURCE = {"fetch", "filter", "prep"}
EXTRA = {"fetch-model", "fetch-benchmarks"}
LINEAGE_PROGRAMS = ("compare", "graph", "reproduce", "resolve")
# The parts of the package in the order of the data flow: imports point from later to earlier ones.
ORDER = (
    *(
        "hashing",
        "cli",
        "endpoint",
        "files",
        "batches",
        "ledger",
        "chat_files",
        "weight_files",
        "strict_json",
        "domains",
        "metric_labels",
        "params",
        "dataset_card",
    ),
    *("raw_folders", "sources"),
    *("conversation", "formats", "parquet", "workers", "tool_schemas", "filters", "tokens", "packing", "planning"),
    *("data_plan", "mamba", "training"),
    *("evaluation", "lineage", "tracking", "cluster", "pages", "inspect", "experiments", "run_stage", "stages"),
    "rehearse",
)
# Programs for people that look at all of it.
PROGRAMS = {"sft.planning.preflight", "sft.tracking.cli", *(f"sft.lineage.{name}" for name in LINEAGE_PROGRAMS)}
# What a class of import is for, and the only modules that may do it.
ONLY_HERE = {
    "megatron": {
        f"sft.training.{name}"
        for name in ("config", "bridge", "callbacks", "processes", "cpu", "cpu_attention", "cpu_hybrid", "cpu_parallel")
    },
    "mlflow": {"sft.tracking.sync", "sft.tracking.store", "sft.tracking.upload"},
    "ruamel": {"sft.dataset_card", "sft.experiments.pin", *(f"sft.params.{name}" for name in ("read", "explain"))},
    "yaml": set(),
}
# Code that a stage imports and that cannot change what it makes: where it runs, tracking, how it looks, and what
# checks the params (whose values dvc.yaml declares). It is no dep of a stage, and neither is what only it imports.
NOT_DEPS = (
    "sft.cli",
    "sft.cluster",
    "sft.experiments",
    "sft.inspect",
    "sft.pages",
    "sft.params.base",
    "sft.params.check",
    "sft.params.explain",
    "sft.params.read",
    "sft.params.recorded",
    "sft.run_stage",
    "sft.tracking",
)
# What runs in these stages only; others import it with what they use.
ONLY_FOR = {
    "sft.formats.benchmarks": {"fetch-benchmarks", "eval"},
    "sft.sources.base_model": {"fetch-model"},
    "sft.weight_files": {"fetch-model", "train", "eval"},
}
# Pinned packages: those of the data stages, and those that only training and models need.
DATA_PINS, TRAIN_PINS = "requirements/data.txt", "requirements/train.txt"
TASK_PINS = "requirements/lm-eval.txt"
NEEDS_TRAIN_PINS = {"fetch-model", "train", "eval"}


# What the repository holds.


@functools.cache
def modules() -> dict[str, ast.Module]:
    """Every module below src/, by dotted name; a package by its own name."""
    found = {}
    for path in sorted((SRC / "sft").rglob("*.py")):
        parts = path.relative_to(SRC).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
    assert len(found) > 10
    return found


def pipeline() -> dict[str, dict]:
    """The stages of dvc.yaml without `check`; what a foreach group does stands in place of the group."""
    stages = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    return {name: stage.get("do", stage) for name, stage in stages.items() if name != "check"}


# Rules: from sources to faults.


def imports(tree: ast.AST) -> Iterator[str]:
    """Dotted names that a module imports when it runs, anywhere in it; `from a import b` gives a and a.b."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, "relative imports are not used here"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        else:
            yield from imports(node)


@functools.cache
def imported_names(tree: ast.Module) -> tuple[str, ...]:
    return tuple(imports(tree))


def closure(start: str, sources: dict[str, ast.Module], but: tuple[str, ...] = ()) -> set[str]:
    """`start` and every module of `sources` that it imports, directly or not, without those in packages `but`."""
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        name = waiting.pop()
        if name not in seen and not is_in(name, but):
            seen.add(name)
            waiting += [imported for imported in imported_names(sources[name]) if imported in sources]
    return seen


def is_in(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def code_deps(stage: str, sources: dict[str, ast.Module]) -> set[str]:
    """What a stage must declare of src/: packages, and the modules that are in none. `filters/dedup` is a package."""
    module = f"sft.stages.{stage.partition('-')[0]}"
    others = tuple(name for name, stages in ONLY_FOR.items() if stage not in stages)
    used = closure(module, sources, NOT_DEPS + others) - packages(sources)
    used |= {f"sft.params.{SCHEMA[name.partition('.')[0]][0]}" for name in loaded_sections(sources[module])}
    found = set()
    for name in used:
        parts = name.split(".")[1:]
        if len(parts) == 1 or parts[0] in ("stages", "params"):
            found.add(f"src/sft/{'/'.join(parts)}.py")
        else:
            found.add(f"src/sft/{'/'.join(parts[:-1])}")
    return {dep for dep in found if not any(dep.startswith(f"{other}/") for other in found)}


def packages(sources: dict[str, ast.Module]) -> set[str]:
    return {name for name in sources if any(other.startswith(f"{name}.") for other in sources)}


def loaded_sections(tree: ast.AST) -> set[str]:
    """Params that a module reads: load("pack"), load("fetch.model"), load_source(name, "uri"), load_training()."""
    found: set[str] = set()
    for node in ast.walk(tree):
        called = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
        if called == "load":
            found.add(ast.literal_eval(node.args[0]))
        elif called == "load_source":
            found.add(f"fetch.sources.${{key}}.{ast.literal_eval(node.args[1])}")
        elif called == "load_training":
            found.update(TRAINING)
    return found


def backward_imports(sources: dict[str, ast.Module]) -> list[str]:
    """Imports of a part of the package that comes later in ORDER, except those of PROGRAMS."""
    return [
        f"{name} imports {imported}"
        for name, tree in sources.items()
        for imported in imported_names(tree)
        if imported in sources and "sft" not in (name, imported) and name not in PROGRAMS
        if ORDER.index(imported.split(".")[1]) > ORDER.index(name.split(".")[1])
    ]


def foreign_imports(sources: dict[str, ast.Module]) -> list[str]:
    return [
        f"{name} imports {package}"
        for name, tree in sources.items()
        for package, allowed in ONLY_HERE.items()
        if name not in allowed and any(imported.split(".")[0] == package for imported in imported_names(tree))
    ]


def forbidden(sources: dict[str, ast.Module]) -> list[str]:
    """Catching everything, printing, unpickling, running a model's code."""
    return [
        f"{name}:{node.lineno}: {fault}"
        for name, tree in sources.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ExceptHandler | ast.Call) and (fault := handler_or_call_fault(node))
    ]


def handler_or_call_fault(node: ast.ExceptHandler | ast.Call) -> str:
    if isinstance(node, ast.ExceptHandler):
        everything = node.type is None or re.search(r"\b(Base)?Exception\b", ast.unparse(node.type))
        return "catches everything" if everything else ""
    called = ast.unparse(node.func)
    options = {word.arg: ast.unparse(word.value) for word in node.keywords}
    if called == "print":
        return "prints"
    if re.search(r"\bpickle\.loads?$", called) or options.get("weights_only") == "False":
        return "unpickles"
    if options.get("allow_pickle", "False") != "False" and called != "np.save":
        return "may unpickle"
    if options.get("trust_remote_code", "False") != "False":
        return "runs code that a model brings"
    return ""


def make_targets(makefile: str) -> list[str]:
    return re.findall(r"^([a-z-]+):(?!=).*## ", makefile, re.MULTILINE)


# The rules find faults.


def parsed(**sources: str) -> dict[str, ast.Module]:
    return {name.replace("_", "."): ast.parse(source) for name, source in sources.items()}


def test_the_closure_follows_imports_in_functions_and_through_other_modules():
    sources = parsed(
        sft="'doc'",
        sft_a="def f():\n    from sft import b",
        sft_b="import sft.c",
        sft_c="from sft.d import x",
        sft_d="import json",
        sft_unused="import sft.a",
    )
    assert closure("sft.a", sources) == {"sft", "sft.a", "sft.b", "sft.c", "sft.d"}
    assert packages(sources) == {"sft"}


def test_params_are_read_from_the_calls_that_load_them():
    assert loaded_sections(ast.parse("a, b = load('pack'), load('fetch.sources')")) == {"pack", "fetch.sources"}
    assert loaded_sections(ast.parse("load_source(name, 'uri')")) == {"fetch.sources.${key}.uri"}
    assert loaded_sections(ast.parse("load_training()")) == set(TrainParams.model_fields)
    assert loaded_sections(ast.parse("json.load('pack')")) == set()


def test_an_import_of_a_later_part_is_found():
    sources = parsed(sft_files="import sft.training.config", sft_training_config="import sft.files")
    assert backward_imports(sources) == ["sft.files imports sft.training.config"]


def test_an_import_of_megatron_or_mlflow_elsewhere_is_found():
    sources = parsed(sft_training_bridge="import megatron.bridge", sft_other="def f():\n    from mlflow.data import x")
    assert foreign_imports(sources) == ["sft.other imports mlflow"]


@pytest.mark.parametrize(
    "source",
    [
        "try:\n    f()\nexcept Exception:\n    pass",
        "try:\n    f()\nexcept (OSError, BaseException):\n    pass",
        "try:\n    f()\nexcept:\n    pass",
        "print(1)",
        "pickle.load(file)",
        "torch.load(file, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "AutoModel.from_pretrained(path, trust_remote_code=True)",
    ],
)
def test_what_is_forbidden_is_found(source: str):
    assert len(forbidden(parsed(sft_a=source))) == 1


def test_what_is_allowed_is_not_reported():
    assert forbidden(parsed(sft_a="try:\n    np.save(p, a, allow_pickle=True)\nexcept OSError:\n    say('x')")) == []


# The repository follows the rules.


def test_a_stage_has_the_same_name_in_every_place_in_the_same_order():
    in_dvc = [name for name in pipeline() if name not in EXTRA]
    in_params = [name for name in YAML(typ="safe").load(ROOT / "params.yaml") if name in STAGES]
    in_make = [name for name in make_targets((ROOT / "Makefile").read_text()) if name in STAGES]
    in_src = {path.stem for path in (SRC / "sft/stages").glob("*.py")} - {"__init__"}
    in_tests = {path.stem.removeprefix("test_") for path in (ROOT / "tests/stages").glob("test_*.py")}
    assert in_dvc == STAGES
    assert in_params == STAGES
    assert in_make == STAGES
    assert in_src == set(STAGES)
    assert in_tests >= set(STAGES)


def test_params_yaml_holds_the_sections_of_the_schema_in_its_order():
    assert list(YAML(typ="safe").load(ROOT / "params.yaml")) == list(Params.model_fields)


def test_a_stage_is_called_by_its_module_with_this_checkout_s_code():
    stages = pipeline()
    for name, stage in stages.items():
        module, _, extra = name.partition("-")
        source = f" --source {extra}" if extra else ""
        assert stage["cmd"] == f"PYTHONPATH=src python -m sft.stages.{module}{source}", "no param reaches a shell"
    assert len(stages) == len(STAGES) + len(EXTRA)


def test_every_stage_follows_the_check_of_params_yaml():
    """All others follow the fetch stages: DVC removes no output before the check has passed."""
    check = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]["check"]
    assert check["cmd"] == "PYTHONPATH=src python -m sft.experiments.check --mark data/checked"
    assert check["deps"] == ["params.yaml"]
    assert check["outs"] == [{"data/checked": {"persist": True}}], "a check that fails removes nothing either"
    following = {name for name, stage in pipeline().items() if "data/checked" in stage["deps"]}
    assert following == {name for name in pipeline() if name.startswith("fetch")}


def test_the_deps_of_a_stage_are_the_packages_that_it_imports_and_the_pins():
    sources = modules()
    for name, stage in pipeline().items():
        needed = code_deps(name, sources)
        declared = {dep for dep in stage["deps"] if dep.startswith("src/")}
        assert len(needed) > 3, name
        assert declared == needed, name
        pins = {DATA_PINS, TRAIN_PINS} if name in NEEDS_TRAIN_PINS else {DATA_PINS}
        pins |= {TASK_PINS} if name == "eval" else set()
        assert {dep for dep in stage["deps"] if dep.startswith("requirements/")} == pins, name
        assert stage["deps"] == sorted(stage["deps"], key=lambda dep: dep.replace("$", " ")), name


def test_packages_hold_nothing_but_a_docstring_of_one_line():
    """So that they need not be deps of every stage, and `ls` of the source tree is its table of contents.

    The first of all, sft itself, also ends a program that gets a signal while it imports: no output depends on it.
    """
    sources = modules()
    assert len(packages(sources)) > 15
    for name in set(packages(sources)) - {"sft"}:
        assert [type(node) for node in sources[name].body] == [ast.Expr], name
        assert len((ast.get_docstring(sources[name]) or "").splitlines()) == 1, name


def test_a_stage_module_fits_in_250_lines():
    for name in STAGES:
        assert len((SRC / f"sft/stages/{name}.py").read_text().splitlines()) <= 250, name


def test_imports_point_from_later_to_earlier_in_the_data_flow():
    assert backward_imports(modules()) == []


def test_no_module_imports_itself_through_others():
    """Explain knows the whole schema after an error, and is imported late."""
    sources = modules()
    for name in sources.keys() - packages(sources):
        direct = [
            other for other in imported_names(sources[name]) if other in sources and other not in packages(sources)
        ]
        circles = [other for other in direct if name in closure(other, sources, ("sft.params.explain",))]
        assert circles == [], name


def test_a_stage_declares_the_params_that_its_module_loads():
    sources = modules()
    for name, stage in pipeline().items():
        module, _, extra = name.partition("-")
        loaded = loaded_sections(sources[f"sft.stages.{module}"])
        assert loaded, name
        if module == "fetch":  # each of the three loads its own part
            loaded = {key for key in loaded if key.startswith(f"fetch.{extra or 'sources.${key}'}")}
        assert set(stage["params"]) == loaded, name


def test_every_out_belongs_to_one_stage_and_is_read_later_or_is_the_end():
    stages = pipeline()
    outs = [out if isinstance(out, str) else next(iter(out)) for stage in stages.values() for out in stage["outs"]]
    deps = [dep for stage in stages.values() for dep in stage["deps"]]
    assert len(outs) == len(set(outs)) > 5
    for out in outs:
        place = out.removesuffix("/${key}")
        assert place.startswith("reports/") or any(dep.startswith(place) for dep in deps), out


def test_reports_are_kept_in_git_and_everything_else_in_dvc():
    looked_at = 0
    for name, stage in pipeline().items():
        for out in stage["metrics"] + stage.get("plots", []):
            ((path, options),) = out.items()
            assert path.startswith("reports/"), name
            assert options["cache"] is False, name
            looked_at += 1
    assert looked_at >= len(STAGES)


def test_megatron_mlflow_and_yaml_are_entered_where_it_is_said():
    sources = modules()
    assert foreign_imports(sources) == []
    entered = {imported.split(".")[0] for tree in sources.values() for imported in imported_names(tree)}
    assert set(ONLY_HERE) - {"yaml"} <= entered


def test_slurm_is_asked_by_one_module():
    commands = {"sbatch", "squeue", "scontrol", "scancel", "sacct", "srun"}
    named = {
        name: {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
        for name, tree in modules().items()
    }
    assert {name for name, values in named.items() if values & commands} == {"sft.cluster.slurm"}


def test_nothing_forbidden_is_done():
    assert forbidden(modules()) == []


def test_every_module_says_what_it_is():
    for name, tree in modules().items():
        assert ast.get_docstring(tree), name


def test_no_module_has_a_name_that_says_nothing():
    for name in modules():
        assert not re.search(r"util|helper|common|manager|misc", name), name


def test_every_module_has_a_test_file_in_the_same_place():
    sources = modules()
    looked_at = 0
    for name in sources.keys() - packages(sources):
        *folders, last = name.split(".")[1:]
        path = ROOT.joinpath("tests", *folders, f"test_{last}.py")
        assert path.exists(), path
        looked_at += 1
    assert looked_at > 10


def test_make_help_lists_every_target():
    makefile = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", makefile.replace("\\\n", ""), re.MULTILINE)
    assert phony
    assert sorted(make_targets(makefile)) == sorted(phony[1].split())
