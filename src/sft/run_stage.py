"""How a stage starts: `python -m sft.stages.<stage> [--source NAME]`, in the folder that holds params.yaml.

    run_stage(main, __doc__)          checks params.yaml, then runs main()
    run_source_stage(main, __doc__)   the same for a stage that works on one source: main(source)

It ends as sft.cli says: with complete outputs, or with a message and no output.
"""

import argparse
import os
import sys
from collections.abc import Callable

from sft.cli import InputError, end_with_dvc, make_parser, run_or_exit


def run_stage(main: Callable[[], None], doc: str | None, *, remote: bool = False) -> None:
    """Run a stage; its only option is --help, which prints `doc`.

    `remote`: where CLUSTER is set, a Slurm job runs the whole stage (sft.cluster.remote_stage).
    """
    parser = make_parser(main.__module__, doc)
    parser.parse_args()
    if remote:
        _run_on_cluster(parser)
    run_or_exit(lambda: _run_checked(main))


def run_source_stage(main: Callable[[str], None], doc: str | None, *, remote: bool = False) -> None:
    """Run a stage on the source that --source names, or else DVC's stage, `filter@NAME`; `remote` as in run_stage.

    DVC passes its stage in DVC_STAGE, so that no name from params.yaml is in a command that a shell reads.
    """
    parser = make_parser(main.__module__, doc)
    stage_source = os.environ.get("DVC_STAGE", "").partition("@")[2]
    parser.add_argument(
        "--source",
        required=not stage_source,
        default=stage_source,
        metavar="NAME",
        help="a source of fetch.sources in params.yaml",
    )
    source = parser.parse_args().source
    if remote:
        _run_on_cluster(parser, "--source", source)
    run_or_exit(lambda: _run_checked(lambda: main(source)))


def _run_checked(main: Callable[[], None]) -> None:
    """Check all of params.yaml before a stage, so that the first stage shows every mistake in it."""
    from sft.params.check import check_params  # needs all schemas; workers, which import the stage, do not

    if "DVC_STAGE" in os.environ and "RANK" not in os.environ:
        end_with_dvc()
    check_python()
    check_params()
    main()


def check_python() -> None:
    """Check that a stage that DVC runs has the python of the project's .venv, if there is one.

    DVC runs `python`, the first one on PATH: another one if .venv is not activated and this dvc is not its dvc.
    """
    environment = os.path.join(os.environ.get("DVC_ROOT", ""), ".venv")
    if "DVC_STAGE" in os.environ and os.path.isdir(environment) and not os.path.samefile(environment, sys.prefix):
        raise InputError(
            f"python on PATH is {sys.executable}, not the one of {environment}. "
            "Activate it: source .venv/bin/activate. Or use make, which does."
        )


def _run_on_cluster(parser: argparse.ArgumentParser, *arguments: str) -> None:
    """Replace this process by the one that runs the stage on a cluster, where CLUSTER is set."""
    if os.environ.get("CLUSTER"):
        stage = parser.prog.rpartition(".")[2]
        os.execv(sys.executable, [sys.executable, "-m", "sft.cluster.remote_stage", stage, *arguments])
