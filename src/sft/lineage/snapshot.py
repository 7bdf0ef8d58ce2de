"""What a training began with, kept until its model is recorded: hours later the folder may hold something else.

runs/<lineage key>/begun/    the texts that describe the data, and begun.json: params, code, commit, inputs

DVC reads params.yaml and the code again when a stage ends, and so would record an edit for a model that was trained
without it. `check_unchanged` compares them first.
"""

import shutil
from pathlib import Path
from typing import Any

from sft.cli import InputError
from sft.files import flatten, publish_folder, read_json, write_json
from sft.hashing import file_digest, files_below, folder_digest
from sft.lineage.key import PACKAGE, import_closure
from sft.lineage.record import DATA_RECORDS, git_state, records

BEGUN = "begun"
FACTS = "begun.json"
TEXTS = (*DATA_RECORDS, "dvc.lock", "reports/mixture.csv", "models/base/lineage.json")
INPUTS = ("data/packed", "models/base")
MAX_NAMED = 5  # changes in a message


def take(run: Path, root: Path, params: dict[str, Any], digests: dict[str, str]) -> Path:
    """Keep what a training in the folder `root` begins with; return the folder of the texts.

    `params`: the sections that DVC records for the train stage. `digests`: of INPUTS.
    """
    with publish_folder(run / BEGUN) as folder:
        for path, file in records(root, TEXTS).items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, folder / path)
        inputs = {path: {"digest": digests[path], "files": _stamps(root / path)} for path in INPUTS}
        facts = {"params": flatten(params), "code": code(root), "inputs": inputs, "git": git_state(root)}
        write_json(folder / FACTS, facts)
    return run / BEGUN


def check_unchanged(run: Path, root: Path, params: dict[str, Any]) -> None:
    """Raise InputError if params, code or inputs are no longer those that the training began with."""
    begun = read_json(run / BEGUN / FACTS)
    now, code_now = flatten(params), code(root)
    changed = [
        f"params.yaml: {name}: {before!r} became {now.get(name)!r}"
        for name, before in begun["params"].items()
        if before != now.get(name)
    ]
    changed += [f"params.yaml: {name}: {now[name]!r} is new" for name in now.keys() - begun["params"].keys()]
    changed += [path for path in sorted(begun["code"] | code_now) if begun["code"].get(path) != code_now.get(path)]
    for path, known in begun["inputs"].items():
        if _stamps(root / path) != known["files"] and folder_digest(root / path) != known["digest"]:
            changed.append(path)
    if not changed:
        return
    more = f", and {len(changed) - MAX_NAMED} more" if changed[MAX_NAMED:] else ""
    raise InputError(
        f"changed while runs/{run.name} trained: {', '.join(changed[:MAX_NAMED])}{more}. DVC would record the change "
        "for a model that was trained without it: nothing is recorded, and the run is kept. "
        "To get this model: undo the change and rerun, which exports it without training. "
        "To train with the change: rerun."
    )


def begun_at(run: Path) -> tuple[str | None, bool | None]:
    """Return the commit and whether the work tree differed from it, when the training began."""
    commit, dirty = read_json(run / BEGUN / FACTS)["git"]
    return commit, dirty


def code(root: Path) -> dict[str, str]:
    """Return the digests of the code and the pins that the train stage declares as its dependencies."""
    files = set(import_closure("sft.stages.train").values()) | set((PACKAGE / "lineage").glob("*"))
    digests = {file.relative_to(PACKAGE.parent).as_posix(): file_digest(file) for file in files if file.is_file()}
    return digests | {path: file_digest(file) for path, file in records(root, ("requirements/*.txt",)).items()}


def _stamps(folder: Path) -> dict[str, list[int]]:
    """Return size and time of change of every file, which show most changes without reading it."""
    files = files_below(folder)
    return {path.relative_to(folder).as_posix(): [path.stat().st_size, path.stat().st_mtime_ns] for path in files}
