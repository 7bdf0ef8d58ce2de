"""Downloads: pinned, verified, continued, and errors that name the uri."""

import os
import zipfile
from pathlib import Path

import pytest

from sft.cli import InputError
from sft.params.data import Download
from sft.sources.download import FetchedFile, fetch_files
from sft.sources.patterns import match_paths
from sft.sources.redact import redact
from tests.support.loopback_hub import sha256, web

__all__ = ["web"]


def fetch(uri: str, folder: Path, sha256: str | None = None) -> list[FetchedFile]:
    """Fetch what a uri names, pinned by a digest if one is given, into folder/target."""
    target = folder / "target"
    target.mkdir()
    return fetch_files(Download(uri=f"{uri}#sha256={sha256}" if sha256 else uri), target)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: partial downloads and relative paths are below it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


# Paths and messages


def test_a_missing_member_names_the_nearest(here: Path) -> None:
    with pytest.raises(InputError, match=r"no file 'data/train.json'.* data/training.json"):
        match_paths(["data/training.json", "LICENSE"], "data/train.json", "there")


@pytest.mark.parametrize(
    "secret",
    [
        "https://user:hunter2@host/file failed",
        "at https://host/file?X-Amz-Signature=hunter2&b=c",
        "GET 'https://host/file#hunter2' and s3://hunter2:x@bucket/key",
    ],
)
def test_secrets_of_a_url_are_never_shown(secret: str) -> None:
    assert "hunter2" not in redact(secret)
    assert "://" in redact(secret)


def test_an_unknown_scheme_lists_the_known_ones(here: Path) -> None:
    with pytest.raises(InputError, match=r"^ftp://host/file: .*pypi://, hf://, https://"):
        fetch("ftp://host/file", here)


def test_the_message_about_a_path_without_a_scheme_shows_its_uri(here: Path) -> None:
    with pytest.raises(InputError, match=r"^data/mine.jsonl: .*file://data/mine.jsonl$"):
        fetch("data/mine.jsonl", here)


# file://


def test_files_are_copied_not_linked(here: Path) -> None:
    (here / "mine.jsonl").write_bytes(b"{}\n")
    (here / "link.jsonl").symlink_to("mine.jsonl")
    assert fetch("file://link.jsonl", here) == [FetchedFile("link.jsonl", 3, sha256(b"{}\n"))]
    assert not (here / "target/link.jsonl").is_symlink()


def test_a_folder_or_pattern_of_files_keeps_their_places(here: Path) -> None:
    for name in ("in/a.jsonl", "in/deep/b.jsonl", "in/c.txt"):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text(name)
    assert [file.path for file in fetch("file://in/**/*.jsonl", here)] == ["a.jsonl", "deep/b.jsonl"]
    (here / "target").rename(here / "other")
    assert [file.path for file in fetch(f"file://{here}/in", here)] == ["a.jsonl", "c.txt", "deep/b.jsonl"]


def test_links_lead_to_what_is_behind_them_once_and_never_to_nothing_in_silence(here: Path) -> None:
    for name in ("in/a.jsonl", "elsewhere/b.jsonl"):
        (here / name).parent.mkdir()
        (here / name).write_text(name)
    (here / "in/deep").symlink_to("../elsewhere")
    (here / "in/round").symlink_to(".")
    assert [file.path for file in fetch("file://in", here)] == ["a.jsonl", "deep/b.jsonl"]
    (here / "in/lost.jsonl").symlink_to("nowhere.jsonl")
    (here / "target").rename(here / "other")
    with pytest.raises(FileNotFoundError, match=r"in/lost\.jsonl"):
        fetch("file://in", here)
    (here / "target").rename(here / "another")
    assert [file.path for file in fetch("file://in/**/b.jsonl", here)] == ["deep/b.jsonl"]


def test_a_name_that_no_report_can_hold_is_refused(here: Path) -> None:
    (here / "in").mkdir()
    (here / "in" / os.fsdecode(b"caf\xe9.jsonl")).write_bytes(b"{}\n")
    with pytest.raises(InputError, match="UTF-8"):
        fetch("file://in", here)


def test_a_wrong_digest_keeps_nothing_and_says_both(here: Path) -> None:
    (here / "a.jsonl").write_bytes(b"{}\n")
    with pytest.raises(InputError, match=f"^file://a.jsonl: .*{'0' * 64}.*{sha256(b'{}' + bytes([10]))}"):
        fetch("file://a.jsonl", here, sha256="0" * 64)
    assert list((here / "target").iterdir()) == []
    assert (here / "a.jsonl").exists()


def test_a_file_that_does_not_exist_is_named(here: Path) -> None:
    with pytest.raises(InputError, match=r"^file://absent/x.jsonl: "):
        fetch("file://absent/x.jsonl", here.parent / here.name)


# pypi://


@pytest.fixture
def wheel(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel made by hand, which pip finds without any index."""
    path = here / "links/tiny_data-1.0-py3-none-any.whl"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("tiny_data/rows/a.jsonl", "{}\n")
        archive.writestr("tiny_data/rows/b.jsonl", "{}\n{}\n")
        archive.writestr("tiny_data-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-data\nVersion: 1.0\n")
        archive.writestr(
            "tiny_data-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("tiny_data-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(path.parent))
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    return path


def test_members_of_a_wheel_are_extracted_below_the_fixed_part_of_the_path(here: Path, wheel: Path) -> None:
    pin = sha256(wheel.read_bytes())
    files = fetch("pypi://tiny-data==1.0/tiny_data/rows/*.jsonl", here, sha256=pin)
    assert [(file.path, file.bytes) for file in files] == [("a.jsonl", 3), ("b.jsonl", 6)]
    assert not (here / ".fetch-partial").exists()


def test_a_wheel_with_another_digest_is_not_opened(here: Path, wheel: Path) -> None:
    found = sha256(wheel.read_bytes())
    with pytest.raises(InputError, match=f"{'0' * 64}.*{found}"):
        fetch("pypi://tiny-data==1.0/tiny_data/rows", here, sha256="0" * 64)
    assert list((here / "target").iterdir()) == []


def test_a_version_that_is_not_there_says_what_pip_says(here: Path, wheel: Path) -> None:
    with pytest.raises(InputError, match=r"^pypi://tiny-data==2.0/tiny_data: .*tiny-data==2.0"):
        fetch("pypi://tiny-data==2.0/tiny_data", here, sha256="0" * 64)


@pytest.mark.parametrize("uri", ["pypi://tiny-data/x", "pypi://--index-url==1/x", "pypi://a==1", "pypi://a>=1/x"])
def test_a_uri_of_another_shape_is_refused(here: Path, uri: str) -> None:
    with pytest.raises(InputError, match="pypi://name==version/path"):
        fetch(uri, here, sha256="0" * 64)


def test_a_base_model_may_be_a_file(here: Path) -> None:
    (here / "m.gguf").write_bytes(b"GGUF")
    (here / "target").mkdir()
    assert fetch_files(Download(uri="file://m.gguf"), here / "target")[0].path == "m.gguf"
