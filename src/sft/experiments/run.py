"""run: an experiment with params that are set on the command line.

    make train optimizer.lr=1e-5 train.train_iters=500      one experiment in this folder: dvc exp run -S ...
    make repro ROWS=50                                      the same with filter.max_rows=50

Everything that sft.experiments.check looks at, these values among it, is checked before DVC removes an output. DVC
writes the values to params.yaml; the program prints what was set, and how to go back.

    python -m sft.experiments.run --set optimizer.lr=1e-5 [--force] [STAGE ...]
"""

import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from sft.cli import echo, make_parser, run_child, run_or_exit
from sft.experiments.check import require_no_problem
from sft.params.check import check_settings, is_committed
from sft.params.read import MISSING, PARAMS, parse_setting

PLAIN = re.compile(r"[\w./:@+-]+")  # a text that Hydra takes as it is


def hydra_override(setting: str, *, is_new: bool) -> str:
    """Return a setting in the grammar of `dvc exp run --set-param`: `+` before a new key, quotes around a text.

    >>> hydra_override("optimizer.lr=1e-5", is_new=False), hydra_override("fetch.model.uri=file://a b", is_new=True)
    ('optimizer.lr=1e-5', "+fetch.model.uri='file://a b'")
    """
    key, value = parse_setting(setting)
    text = setting.partition("=")[2]
    if isinstance(value, str) and not PLAIN.fullmatch(text):
        # Hydra reads \\ and \' as escapes only before a quote.
        text = "'" + re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + (found[2] and "\\'"), value) + "'"
    return f"{'+' if is_new else ''}{key}={text}"


def describe(settings: Sequence[str], old: Mapping[str, Any], *, was_committed: bool) -> list[str]:
    """Return lines that say what params.yaml has now, what it had, and how to go back."""
    lines = [f"{PARAMS}: {setting} (was {old[setting.partition('=')[0]]})" for setting in settings]
    if was_committed:
        return [*lines, f"To go back: git checkout {PARAMS}"]
    earlier = [f"remove {key}" if value == MISSING else f"set {key}={value}" for key, value in old.items()]
    return [*lines, f"To go back in {PARAMS}: {', '.join(earlier)}"]


def main(settings: Sequence[str], stages: Sequence[str], *, force: bool) -> None:
    """Check the settings, run DVC, print what was set. Exits as DVC does."""
    require_no_problem(stages, settings)
    old = check_settings(settings).old
    was_committed = is_committed(PARAMS, unchanged=True)
    command = [sys.executable, "-m", "dvc", "exp", "run"]
    for setting in settings:
        is_new = old[setting.partition("=")[0]] == MISSING
        command += ["--set-param", hydra_override(setting, is_new=is_new)]
    status = run_child([*command, *(["--force"] if force else []), *stages])
    for line in describe(settings, old, was_committed=was_committed):
        echo(line)
    if status:
        raise SystemExit(status)


if __name__ == "__main__":
    parser = make_parser(__name__, __doc__)
    parser.add_argument("--set", action="append", required=True, metavar="KEY=VALUE", help="a param and its value")
    parser.add_argument("--force", action="store_true", help="rerun stages that have not changed, too")
    parser.add_argument("stages", nargs="*", metavar="STAGE", help="up to these; default: all")
    options = parser.parse_args()
    run_or_exit(lambda: main(options.set, options.stages, force=options.force))
