"""profile: copy a full param set of profiles/ to params.yaml, and show what changed.

    make profile                            list the profiles
    make profile PROFILE=nemotron3-nano     copy profiles/nemotron3-nano.yaml to params.yaml

The profile is checked first. Uncommitted changes of params.yaml are never overwritten.
"""

import shutil
import subprocess
import sys

from sft.cli import InputError, echo, make_parser, run_or_exit
from sft.files import publish_file
from sft.params.check import is_committed, read
from sft.params.read import PARAMS, PROFILES, params_file, profiles


def first_sentence(name: str) -> str:
    """Return the first sentence of the comment that a profile starts with."""
    lines = params_file(name).read_text(encoding="utf-8").splitlines()
    comment = " ".join(line.removeprefix("# ") for line in lines[:4] if line.startswith("# "))
    return comment.split(". ")[0].split(": ")[0].rstrip(".")


def copy(name: str) -> None:
    """Copy a profile to params.yaml and print `dvc params diff`.

    Raises:  InputError: there is no such profile, it has a fault, params.yaml has uncommitted changes.
    """
    profile = params_file(name)
    read(profile)
    if PARAMS.exists() and PARAMS.read_bytes() != profile.read_bytes():
        if not is_committed(PARAMS):
            raise InputError(f"{PARAMS}: git does not have it. Commit it, or move it away.")
        if not is_committed(PARAMS, unchanged=True):
            raise InputError(f"{PARAMS}: has uncommitted changes. Commit them, or drop them: git checkout {PARAMS}")
    with publish_file(PARAMS) as partial:
        shutil.copyfile(profile, partial)
    subprocess.run([sys.executable, "-m", "dvc", "params", "diff"], check=True)
    undo = f" To undo: git checkout {PARAMS}" if is_committed(PARAMS) else ""
    echo(f"{PARAMS} is now {profile}.{undo}")


def main(name: str | None) -> None:
    """Copy a profile, or list the profiles."""
    if name:
        copy(name)
        return
    if not profiles():
        raise InputError(f"{PROFILES.absolute()}: no profiles (*.yaml) here. Run in the folder of the project.")
    for known in profiles():
        echo(f"{known:24} {first_sentence(known)}")


if __name__ == "__main__":
    parser = make_parser(__name__, __doc__)
    parser.add_argument("--profile", metavar="NAME", help="a file of profiles/, without .yaml; default: list them")
    arguments = parser.parse_args()
    run_or_exit(lambda: main(arguments.profile))
