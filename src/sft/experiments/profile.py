"""A profile, a full param set of profiles/, becomes params.yaml.

    make profile                          which there are, and what they say of themselves
    make profile NAME=nemotron3-nano      params.yaml becomes profiles/nemotron3-nano.yaml, and what changed is shown

A profile is checked by the same schema as params.yaml before anything is written. Changes to params.yaml that are
in no commit are never overwritten.
"""

import subprocess
from pathlib import Path
from typing import Any

from sft.cli import InputError, echo, make_parser, run_or_exit
from sft.files import publish_file
from sft.params.check import read
from sft.params.read import PARAMS

PROFILES = Path("profiles")


def known() -> list[str]:
    """Return the names of the profiles."""
    return sorted(path.stem for path in PROFILES.glob("*.yaml"))


def title(name: str) -> str:
    """Return the first sentence of a profile's head."""
    lines = (PROFILES / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    head = " ".join(line.removeprefix("# ") for line in lines[:4] if line.startswith("# "))
    return head.split(". ")[0].split(": ")[0].rstrip(".")


def apply(name: str) -> list[str]:
    """Make a profile params.yaml; return what changed, a line for each key.

    Raises:  InputError: no such profile, a fault in it, changes to params.yaml that are in no commit.
    """
    source = PROFILES / f"{name}.yaml"
    if not source.is_file():
        raise InputError(f"{source}: not found. Profiles: {', '.join(known()) or f'none in {PROFILES}/'}")
    wanted = read(source)
    if PARAMS.exists() and PARAMS.read_bytes() != source.read_bytes():
        _refuse_to_lose_changes()
    before = flat(read(PARAMS).model_dump()) if PARAMS.exists() else {}
    with publish_file(PARAMS) as partial:
        partial.write_bytes(source.read_bytes())
    return changes(before, flat(wanted.model_dump()))


def _refuse_to_lose_changes() -> None:
    asked = subprocess.run(
        ["git", "status", "--porcelain", "--", str(PARAMS)], capture_output=True, text=True, check=False
    )
    if asked.returncode or asked.stdout.strip():
        raise InputError(
            f"{PARAMS}: has changes that are in no commit, and a profile would overwrite them. Commit them, or let go "
            f"of them: git checkout {PARAMS}"
        )


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested params with dotted names; a source of the blend is one value.

    >>> flat({"optimizer": {"lr": 1.0}, "fetch": {"sources": {"mine": {"uri": "file://x"}}}})
    {'optimizer.lr': 1.0, 'fetch.sources.mine': {'uri': 'file://x'}}
    """
    found: dict[str, Any] = {}
    for name, value in values.items():
        whole = prefix in ("fetch.sources.", "fetch.benchmarks.")
        if isinstance(value, dict) and value and not whole:
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Say what differs, in the order of the new params: `optimizer.lr: 0.0002 -> 1e-05`.

    >>> changes({"a.x": 1, "fetch.sources.one": {"uri": "u"}}, {"a.x": 2, "fetch.sources.two": {"uri": "v"}})
    ['a.x: 1 -> 2', 'fetch.sources.two: added', 'fetch.sources.one: removed']
    """
    said = []
    for name, value in after.items():
        if name not in before:
            said.append(f"{name}: added")
        elif before[name] != value:
            told = isinstance(value, dict) or isinstance(before[name], dict)
            said.append(f"{name}: changed" if told else f"{name}: {before[name]} -> {value}")
    return said + [f"{name}: removed" for name in before if name not in after]


def show(name: str | None) -> None:
    """Apply a profile, or list them."""
    if not name:
        for one in known():
            echo(f"{one:24} {title(one)}")
        return
    changed = apply(name)
    for line in changed:
        echo(f"  {line}".replace("[", r"\["))
    if changed:
        echo(f"params.yaml is now profiles/{name}.yaml: {len(changed)} keys changed. Back: git checkout params.yaml")
    else:
        echo(f"params.yaml is profiles/{name}.yaml already")


if __name__ == "__main__":
    parser = make_parser(__name__, __doc__)
    parser.add_argument("--name", metavar="PROFILE", help="a file of profiles/, without .yaml; none: list them")
    chosen = parser.parse_args().name
    run_or_exit(lambda: show(chosen))
