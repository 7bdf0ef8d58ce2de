"""Push data, models and finished stages to a DVC remote, so that nobody runs them again.

DVC's cache and run cache  ->  the remote (--remote NAME; else the default one)

`dvc push --run-cache` pushes the inputs and outputs of finished stages, but not the reports that git keeps. Without
them, DVC on another machine does not take a stage from the run cache but runs it (seen with DVC 3.67). So the reports
of every run in the run cache are pushed too; they are small. `dvc repro --pull` then takes finished stages.
"""

import subprocess
import sys
from pathlib import Path

from sft.cli import InputError, echo, make_parser, run_or_exit
from sft.lineage import locked_params

REPORTS = "reports/"
REMEDY = "Check address, bucket and keys (docs/sharing.md), then run it again: only missing files are pushed."


def reports(cache: Path) -> dict[str, str]:
    """Return the reports of all runs in DVC's run cache: path by digest."""
    from dvc.utils.serialize import load_yaml

    entries = [load_yaml(path) for path in sorted((cache / "runs").glob("*/*/*"))]
    outs = [out for entry in entries for out in entry.get("outs", [])]
    return {out["md5"]: out["path"] for out in outs if out["path"].startswith(REPORTS)}


def main(remote: str | None) -> None:
    """Push data, models, finished stages and their reports.

    Raises:  InputError: dvc.lock has other params for the model, or the remote refuses or does not answer.
    """
    locked_params.refuse_differing(Path.cwd())
    from botocore.exceptions import BotoCoreError, ClientError
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc_data.hashfile.hash_info import HashInfo

    with Repo() as repo:
        objects = {HashInfo("md5", md5) for md5 in reports(Path(repo.cache.legacy.path))}
        cached = {entry for entry in objects if repo.cache.local.exists(entry.value)}
        try:
            place = repo.cloud.get_remote(remote).path
            if not repo.cloud.get_remote(remote).config.get("verify"):
                name = remote or repo.config["core"].get("remote")
                echo(f"[yellow]{name}: downloads are not verified. Run: dvc remote modify {name} verify true[/]")
            pushed = repo.cloud.push(cached, remote=remote)
        except (DvcException, BotoCoreError, ClientError, OSError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise InputError(f"DVC remote {remote or '(the default one)'}: {reason}. {REMEDY}") from error
        if pushed.failed:
            raise InputError(f"{place}: {len(pushed.failed)} of {len(cached)} reports were not pushed. {REMEDY}")
    named = ["--remote", remote] if remote else []
    if subprocess.run([sys.executable, "-m", "dvc", "push", "--run-cache", *named], check=False).returncode:
        raise InputError(f"{place}: dvc push failed; see its message above. {REMEDY}")
    echo(f"{place}: pushed, with {len(cached)} reports. To take finished stages from it: dvc repro --pull")


if __name__ == "__main__":
    parser = make_parser(__name__, __doc__)
    parser.add_argument("--remote", metavar="NAME", help="default: DVC's default remote")
    options = parser.parse_args()
    run_or_exit(lambda: main(options.remote))
