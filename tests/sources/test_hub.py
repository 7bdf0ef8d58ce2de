"""hub: files of a commit, as the hub lists them, and errors that name the uri."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from sft.cli import InputError
from sft.hashing import value_digest
from sft.params.data import Download
from sft.sources import hub
from tests.support.loopback_hub import COMMIT, Web, web

__all__ = ["web"]


@pytest.fixture
def here(tmp_path: Path) -> Path:
    return tmp_path


def from_hub(here: Path, web: Web, uri: str, free: int = 1 << 40, **more: str) -> subprocess.CompletedProcess[str]:
    """Fetch from the loopback hub in another process: huggingface_hub reads HF_ENDPOINT when imported."""
    program = f"""
        import shutil
        from pathlib import Path
        from types import SimpleNamespace
        from sft.cli import InputError
        from sft.sources.download import fetch_files
        from sft.sources.remote_files import FREE_BYTES
        from sft.params.data import Download
        Path("target").mkdir(exist_ok=True)
        shutil.disk_usage = lambda path: SimpleNamespace(free=FREE_BYTES + {free})
        try:
            for file in fetch_files(Download(uri={uri!r}), Path("target")):
                print(file.path, file.bytes)
        except InputError as error:
            print("InputError", error)
    """
    environment = {
        **os.environ,
        "HF_ENDPOINT": web.url,
        "HF_HOME": str(here / "home"),
        "PYTHONPATH": os.pathsep.join(sys.path),
        **more,
    }
    command = [sys.executable, "-c", textwrap.dedent(program)]
    return subprocess.run(command, env=environment, cwd=here, capture_output=True, text=True, check=False)


def test_files_of_a_commit_are_fetched_from_the_hub_and_checked(here: Path, web: Web) -> None:
    web.hub = {"README.md": b"# Set\n", "data/a.parquet": b"PAR1" * 100, "data/[b].jsonl": b"{}\n"}
    done = from_hub(here, web, f"hf://own/set@{COMMIT}/data/*")
    assert done.stdout.splitlines() == ["[b].jsonl 3", "a.parquet 400"], done.stderr
    assert sorted(path.name for path in here.iterdir() if path.name != "home") == ["target"]


def test_a_download_fits_that_has_a_part_on_the_disk_already(here: Path, web: Web) -> None:
    web.hub = {"a.parquet": b"PAR1" * 100}
    source = Download(uri=f"hf://own/set@{COMMIT}/a.parquet")
    assert "400 bytes or more are missing" in from_hub(here, web, str(source.uri), free=300).stdout
    part = here / ".fetch-partial" / value_digest([source.address, source.revision]) / "b.incomplete"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"PAR1" * 25)
    done = from_hub(here, web, str(source.uri), free=300)
    assert done.stdout == "a.parquet 400\n", done.stderr


def test_a_file_that_the_hub_does_not_have_names_the_nearest(here: Path, web: Web) -> None:
    web.hub = {"data/train.jsonl": b"{}\n"}
    assert (
        ": no file 'train.jsonl'. Most similar: data/train.jsonl"
        in from_hub(here, web, f"hf://own/set@{COMMIT}/train.jsonl").stdout
    )


def test_a_hub_that_gives_another_file_than_its_commit_says_is_caught(here: Path, web: Web) -> None:
    web.hub = {"a.jsonl": b"{}\n"}
    web.files = {f"/datasets/own/set/resolve/{COMMIT}/a.jsonl": b"[]\n"}
    done = from_hub(here, web, f"hf://own/set@{COMMIT}/a.jsonl")
    assert "InputError" in done.stdout, done.stderr
    assert list((here / "target").iterdir()) == []


def test_offline_and_unknown_repositories_are_errors_of_the_input(here: Path, web: Web) -> None:
    assert "InputError hf://own/other at " in from_hub(here, web, f"hf://own/other@{COMMIT}").stdout
    (here / "target").rmdir()
    assert "HF_HUB_OFFLINE" in from_hub(here, web, f"hf://own/set@{COMMIT}", HF_HUB_OFFLINE="1").stdout


@pytest.mark.parametrize("revision", ["", "@main", "@v1.0", f"@{COMMIT[:12]}"])
def test_a_branch_or_tag_is_refused(revision: str) -> None:
    source = Download(uri=f"hf://own/set{revision}")
    with pytest.raises(InputError, match=r"hf://own/set: .*40 hex digits.*make pin"):
        hub.parse(source).check_commit(source)
