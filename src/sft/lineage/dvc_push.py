"""share: push results so that nobody with this remote computes them again.

DVC's cache and run cache  ->  the remote (--remote NAME; else the default one)

`dvc push --run-cache` pushes which stage made what of what, and the outs of this checkout, but not the reports
that git keeps: without them DVC does not take a stage from the run cache on another machine, and runs it again
(seen with DVC 3.67). Here they are pushed too, those of every run that the run cache knows: they are small.
Another user then takes finished stages with `dvc repro --pull`.
"""

import subprocess
import sys
from pathlib import Path

from sft.cli import InputError, echo, make_parser, run_or_exit

REPORTS = "reports/"
REMEDY = "Check address, bucket and keys (docs/sharing.md), then run it again: only missing files are pushed."


def reports(cache: Path) -> dict[str, str]:
    """Return the reports of all runs in DVC's run cache, digest -> path."""
    from dvc.utils.serialize import load_yaml

    entries = [load_yaml(path) for path in sorted((cache / "runs").glob("*/*/*"))]
    outs = [out for entry in entries for out in entry.get("outs", [])]
    return {out["md5"]: out["path"] for out in outs if out["path"].startswith(REPORTS)}


def main(remote: str | None) -> None:
    """Push.

    Raises:  InputError: the remote does not take it.
    """
    from botocore.exceptions import BotoCoreError, ClientError
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc_data.hashfile.hash_info import HashInfo

    with Repo() as repo:
        objects = {HashInfo("md5", md5) for md5 in reports(Path(repo.cache.legacy.path))}
        there = {one for one in objects if repo.cache.local.exists(one.value)}
        try:
            place = repo.cloud.get_remote(remote).path
            if not repo.cloud.get_remote(remote).config.get("verify"):
                name = remote or repo.config["core"].get("remote")
                echo(f"[yellow]What comes from {name} is not verified: dvc remote modify {name} verify true[/]")
            pushed = repo.cloud.push(there, remote=remote)
        except (DvcException, BotoCoreError, ClientError, OSError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise InputError(f"DVC remote {remote or '(the default one)'}: {reason}. {REMEDY}") from error
        if pushed.failed:
            raise InputError(f"{place}: {len(pushed.failed)} of {len(there)} reports were not pushed. {REMEDY}")
    named = ["--remote", remote] if remote else []
    if subprocess.run([sys.executable, "-m", "dvc", "push", "--run-cache", *named], check=False).returncode:
        raise InputError(f"{place}: dvc push did not push all; its message stands above. {REMEDY}")
    echo(f"{place}: with {len(there)} reports of finished stages, which others take by: dvc repro --pull")


if __name__ == "__main__":
    parser = make_parser(__name__, __doc__)
    parser.add_argument("--remote", metavar="NAME", help="default: DVC's default remote")
    given = parser.parse_args()
    run_or_exit(lambda: main(given.remote))
