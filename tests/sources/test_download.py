"""Downloads: pinned, verified, continued, and errors that name the uri."""

import io
import itertools
import os
import shutil
import stat
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from sft.cli import InputError
from sft.params.data import Download
from sft.sources import remote_files
from sft.sources.archives import extract_zip
from sft.sources.download import FetchedFile, fetch_files
from sft.sources.patterns import match_paths
from sft.sources.redact import redact
from tests.support.loopback_hub import BODY, Web, sha256, web

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


@pytest.mark.parametrize(
    ("path", "chosen"),
    [
        ("a", {"a/b.json": "b.json", "a/c/d.json": "c/d.json"}),
        ("a/b.json", {"a/b.json": "b.json"}),
        ("a/*.json", {"a/b.json": "b.json"}),
        ("a/**/*.json", {"a/b.json": "b.json", "a/c/d.json": "c/d.json"}),
        ("**/d.json", {"a/c/d.json": "a/c/d.json"}),
        ("a/{,c/}?.json", {"a/b.json": "b.json", "a/c/d.json": "c/d.json"}),
        ("e,f.txt", {"e,f.txt": "e,f.txt"}),
        ("", {"a/b.json": "a/b.json", "a/c/d.json": "a/c/d.json", "aa/x": "aa/x", "e,f.txt": "e,f.txt"}),
    ],
)
def test_a_path_names_a_file_a_folder_or_a_pattern(path: str, chosen: dict[str, str]) -> None:
    assert match_paths(["a/b.json", "a/c/d.json", "aa/x", "e,f.txt"], path, "there") == chosen


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


# https:// (http:// on this machine)


def test_a_download_is_verified_and_leaves_no_part(here: Path, web: Web) -> None:
    assert fetch(f"{web.url}/a.bin?token=x", here, sha256=sha256(BODY)) == [
        FetchedFile("a.bin", len(BODY), sha256(BODY))
    ]
    assert not (here / ".fetch-partial").exists()


def test_an_interrupted_download_continues_on_a_rerun(here: Path, web: Web) -> None:
    web.cut_at = 1 << 20
    with pytest.raises(InputError, match="interrupted"):
        fetch(f"{web.url}/a.bin", here, sha256=sha256(BODY))
    assert list((here / "target").iterdir()) == []
    (here / "target").rmdir()
    web.cut_at = None
    assert fetch(f"{web.url}/a.bin", here, sha256=sha256(BODY))[0].sha256 == sha256(BODY)
    first, second = web.ranges
    assert first is None
    assert second is not None
    assert int(second.removeprefix("bytes=").rstrip("-")) > 0


def test_a_part_that_is_longer_than_the_file_is_dropped(here: Path, web: Web) -> None:
    (here / ".fetch-partial").mkdir()
    (here / ".fetch-partial" / sha256(BODY)).write_bytes(BODY + b"more")
    assert fetch(f"{web.url}/a.bin", here, sha256=sha256(BODY))[0].sha256 == sha256(BODY)
    assert web.ranges == [f"bytes={len(BODY) + 4}-", None]


def test_two_downloads_of_one_file_at_once_both_have_it(here: Path, web: Web) -> None:
    source = Download(uri=f"{web.url}/a.bin#sha256={sha256(BODY)}")
    folders = [here / str(number) for number in range(4)]
    for folder in folders:
        folder.mkdir()
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda folder: fetch_files(source, folder), folders))
    assert found == [[FetchedFile("a.bin", len(BODY), sha256(BODY))]] * 4
    assert not (here / ".fetch-partial").exists()


@pytest.mark.parametrize("free", [len(BODY) - 1, 3 << 19])
def test_what_does_not_fit_on_the_disk_is_not_kept(here: Path, web: Web, monkeypatch, free: int) -> None:
    """At the start by its size, or while it comes: others fill the disk too."""
    usage = shutil._ntuple_diskusage(0, 0, remote_files.FREE_BYTES + free)
    full = usage._replace(free=remote_files.FREE_BYTES)
    seen = itertools.chain([usage] if free > len(BODY) // 2 else [], itertools.repeat(full))
    monkeypatch.setattr(remote_files.shutil, "disk_usage", lambda path: next(seen))
    monkeypatch.setattr(remote_files, "CHECK_BYTES", 0)
    with pytest.raises(InputError, match=r"has .* free\. Free some"):
        fetch(f"{web.url}/a.bin", here, sha256=sha256(BODY))
    assert list((here / ".fetch-partial").iterdir()) == []


def test_a_part_is_kept_if_the_rest_does_not_fit_yet(here: Path, web: Web) -> None:
    part = here / ".fetch-partial" / sha256(BODY)
    part.parent.mkdir()
    part.write_bytes(BODY[: 1 << 20])
    with pytest.MonkeyPatch.context() as patch:
        usage = shutil._ntuple_diskusage(0, 0, remote_files.FREE_BYTES + 1000)
        patch.setattr(remote_files.shutil, "disk_usage", lambda path: usage)
        with pytest.raises(InputError, match=r"1,048,576 bytes or more are missing"):
            fetch(f"{web.url}/a.bin", here, sha256=sha256(BODY))
    (here / "target").rmdir()
    assert fetch(f"{web.url}/a.bin", here, sha256=sha256(BODY))[0].sha256 == sha256(BODY)
    assert web.ranges == ["bytes=1048576-"] * 2


def test_the_disk_is_asked_now_and_then_and_not_with_each_block(here: Path, monkeypatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(remote_files, "check_fits", lambda uri, size: asked.append(size))
    blocks = [bytes(16 << 10)] * 4096  # 64 MiB, as TLS brings it
    assert sum(map(len, remote_files._in_bounds("https://a/b", 0, None, iter(blocks)))) == 64 << 20
    assert len(asked) == 4


def test_a_server_that_serves_no_range_of_an_empty_file_is_an_error(here: Path, web: Web) -> None:
    web.files["/a.bin"] = b""
    with pytest.raises(InputError, match="answers 416"):
        fetch(f"{web.url}/a.bin", here, sha256=sha256(b""))


def test_a_server_that_sends_a_byte_now_and_then_has_an_end(here: Path, web: Web, monkeypatch) -> None:
    monkeypatch.setattr(remote_files, "SLOW_SECONDS", 0.0)
    monkeypatch.setattr(remote_files, "SLOW_BYTES", 1 << 30)
    with pytest.raises(InputError, match=r"bytes in \d+ s. Rerun"):
        fetch(f"{web.url}/a.bin", here, sha256=sha256(BODY))


def test_wrong_content_is_removed_so_that_a_rerun_starts_afresh(here: Path, web: Web) -> None:
    with pytest.raises(InputError, match=f"{'0' * 64}.*{sha256(BODY)}"):
        fetch(f"{web.url}/a.bin", here, sha256="0" * 64)
    assert list((here / ".fetch-partial").iterdir()) == []


def test_the_answer_of_a_server_is_shown_without_the_query(here: Path, web: Web) -> None:
    with pytest.raises(InputError, match="404") as caught:
        fetch(f"{web.url}/b.bin?token=hunter2", here, sha256="0" * 64)
    assert "hunter2" not in str(caught.value)


def test_a_host_that_does_not_answer_is_shown_without_the_query(here: Path) -> None:
    with pytest.raises(InputError, match=r"^http://127.0.0.1:9/a.bin") as caught:
        fetch("http://127.0.0.1:9/a.bin?token=hunter2", here, sha256="0" * 64)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("http://example.org/a.bin", "only https"),
        ("http://169.254.169.254/a.bin", "only https"),
        ("http://2130706433/a.bin", "only https"),
        ("https://user:hunter2@example.org/a.bin", "user or password"),
        ("https://example.org/", "no file name"),
        ("https://example.org/..", "no file name"),
        ("https:///a.bin", "no file name"),
        ("https://[::1/a.bin", "not a URL"),
    ],
)
def test_a_url_that_is_not_safe_is_refused_before_anything_is_asked(here: Path, uri: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason) as caught:
        fetch(uri, here, sha256="0" * 64)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("target", ["http://example.org/a.bin", "file:///etc/passwd", "ftp://127.0.0.1/a.bin"])
def test_a_redirect_away_from_https_is_refused(here: Path, web: Web, target: str) -> None:
    web.redirects["/moved.bin"] = target
    with pytest.raises(InputError, match="only https"):
        fetch(f"{web.url}/moved.bin", here, sha256="0" * 64)


@pytest.mark.parametrize("target", ["http://[::1", "https://u:hunter2@host/f", "//[/x"])
def test_a_redirect_to_no_url_or_with_a_password_is_one_message(here: Path, web: Web, target: str) -> None:
    web.redirects["/moved.bin"] = target
    with pytest.raises(InputError, match=r"^http://127\.0\.0\.1:\d+/moved\.bin: redirects to ") as caught:
        fetch(f"{web.url}/moved.bin", here, sha256="0" * 64)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("host", ["10.0.0.1", "169.254.169.254", "[::1]", "localhost", "2130706433", "0x7f.1"])
def test_a_redirect_from_outside_to_an_inner_address_is_refused(host: str) -> None:
    from sft.sources.remote_files import check_url

    check_url(f"https://{host}/a", before=None)
    with pytest.raises(InputError, match=r"^https://example.org/a: .*internal"):
        check_url(f"https://{host}/a", before="https://example.org/a")


def test_a_redirect_on_the_same_machine_is_followed(here: Path, web: Web) -> None:
    web.redirects["/moved.bin"] = "/a.bin"
    assert fetch(f"{web.url}/moved.bin", here, sha256=sha256(BODY))[0].path == "moved.bin"


@pytest.mark.parametrize("uri", ["https://example.org/a.bin", "s3://bucket/key", "pypi://a==1/b"])
def test_a_download_without_a_digest_is_refused(here: Path, uri: str) -> None:
    with pytest.raises(InputError, match="sha256="):
        fetch(uri, here)


# s3://


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    import boto3
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3fs.S3FileSystem.clear_instance_cache()
    client = boto3.client("s3")
    client.create_bucket(Bucket="data")
    client.put_object(Bucket="data", Key="deep/a.bin", Body=BODY)
    yield client
    server.stop()
    s3fs.S3FileSystem.clear_instance_cache()


def test_an_object_of_a_store_is_fetched_resumed_and_missed(here: Path, bucket: Any) -> None:
    (here / ".fetch-partial").mkdir()
    (here / ".fetch-partial" / sha256(BODY)).write_bytes(BODY[: 1 << 20])
    assert fetch("s3://data/deep/a.bin", here, sha256=sha256(BODY)) == [FetchedFile("a.bin", len(BODY), sha256(BODY))]
    (here / "target/a.bin").unlink()
    (here / "target").rmdir()
    with pytest.raises(InputError, match=r"^s3://data/absent.bin: "):
        fetch("s3://data/absent.bin", here, sha256=sha256(BODY))


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


# Hostile archives


def archive_with(*members: tuple[str | zipfile.ZipInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in (("data/good.txt", b"good"), *members):
            archive.writestr(name, content)
    return buffer.getvalue()


def special(name: str, mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


HOSTILE = {
    "leaves its folder": archive_with(("data/../../evil", b"x")),
    "leaves its folder ": archive_with(("..", b"x")),
    "has an absolute path": archive_with(("/etc/evil", b"x")),
    "has an absolute path ": archive_with(("C:/evil", b"x")),
    "has a backslash": archive_with(("data\\..\\evil", b"x")),
    "control character": archive_with(("data/aXb", b"x")).replace(b"data/aXb", b"data/a\x00b"),
    "has an empty part": archive_with(("data//evil", b"x")),
    "has an empty part ": archive_with(("data/./evil", b"x")),
    "is neither file nor folder": archive_with((special("data/link", stat.S_IFLNK | 0o777), b"/etc/passwd")),
    "is neither file nor folder ": archive_with((special("data/pipe", stat.S_IFIFO | 0o600), b"")),
    "is neither file nor folder  ": archive_with((special("data/disk", stat.S_IFBLK | 0o600), b"")),
    "exists twice": archive_with(("data/a", b"1"), ("data/A", b"2")),
    "exists twice ": archive_with(("data/e\u0301", b"1"), ("data/\u00e9", b"2")),
    "is suspiciously large": archive_with(("data/bomb", bytes(32 << 20))),
    "damaged archive": archive_with()[:-10],
    "damaged archive ": b"not a zip",
}


@pytest.mark.parametrize("reason", list(HOSTILE))
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_hostile_archive_is_refused_whole(tmp_path: Path, reason: str) -> None:
    archive, folder = tmp_path / "a.whl", tmp_path / "inside"
    archive.write_bytes(HOSTILE[reason])
    folder.mkdir()
    with pytest.raises(InputError, match=reason.strip()):
        extract_zip(archive, "data", folder, "evil==1")
    assert list(folder.iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.whl", "inside"]


def test_members_that_overlap_are_refused(tmp_path: Path) -> None:
    content = bytearray(archive_with(("data/big", os.urandom(4000))))
    # The directory's entry of the small member claims to be as long as the whole archive.
    entry = content.index(b"PK\x01\x02")
    content[entry + 20 : entry + 24] = len(content).to_bytes(4, "little")
    (tmp_path / "a.whl").write_bytes(content)
    with pytest.raises(InputError, match="overlap"):
        extract_zip(tmp_path / "a.whl", "data", tmp_path / "inside", "evil==1")


def test_a_sound_archive_is_extracted(tmp_path: Path) -> None:
    (tmp_path / "a.whl").write_bytes(archive_with(("data/deep/", b""), ("data/deep/b", b"b")))
    extract_zip(tmp_path / "a.whl", "data", tmp_path / "inside", "good==1")
    assert {path.name for path in (tmp_path / "inside").rglob("*")} == {"good.txt", "deep", "b"}


def test_a_base_model_may_be_a_file(here: Path) -> None:
    (here / "m.gguf").write_bytes(b"GGUF")
    (here / "target").mkdir()
    assert fetch_files(Download(uri="file://m.gguf"), here / "target")[0].path == "m.gguf"
