"""clean: remove what the pipeline wrote: the outputs that dvc.yaml names, and runs/. Your own files stay.

    make clean          list what is there, ask, remove
    make clean YES=1    without a question, where nobody can be asked

The DVC cache stays: `dvc checkout` restores the outputs. Checkpoints and the local MLflow store in runs/ are gone.
"""

import shutil
from pathlib import Path

from sft.cli import confirm, echo, make_parser, run_or_exit

RUNS = Path("runs")


def find_outputs() -> list[Path]:
    """Return the outputs of dvc.yaml that exist and are not in git, and runs/, relative to this folder."""
    from dvc.repo import Repo

    with Repo() as repo:
        outputs = {Path(out.fs_path) for out in repo.index.outs if out.use_cache and out.is_in_repo}
    here = Path.cwd()
    return [path for path in [*sorted(path.relative_to(here) for path in outputs), RUNS] if path.exists()]


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files below a folder; links count as nothing."""
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file() and not file.is_symlink())


def remove(path: Path) -> None:
    """Remove a file, a folder, or a link but not what it leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def main(*, yes: bool) -> None:
    """List, ask and remove. Raises InputError: nobody can be asked."""
    outputs = find_outputs()
    if not outputs:
        echo("nothing to remove")
        return
    for path in outputs:
        echo(f"{size_of(path) / 1e6:10,.1f} MB  {path}")
    if not (yes or confirm(f"Remove these {len(outputs)}?", "Run: make clean YES=1")):
        echo("nothing was removed")
        return
    for path in outputs:
        remove(path)
    echo(f"removed {len(outputs)}. The DVC cache stays; to get the outputs back: dvc checkout")


if __name__ == "__main__":
    parser = make_parser(__name__, __doc__)
    parser.add_argument("--yes", action="store_true", help="do not ask")
    arguments = parser.parse_args()
    run_or_exit(lambda: main(yes=arguments.yes))
