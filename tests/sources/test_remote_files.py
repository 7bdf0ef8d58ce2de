"""One remote file: pinned, verified, continued, within bounds, and never by a detour."""

import itertools
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from sft.cli import InputError
from sft.params.data import Download
from sft.sources import remote_files
from sft.sources.download import FetchedFile, fetch_files
from tests.sources.test_download import fetch, here
from tests.support.loopback_hub import BODY, Web, sha256, web

__all__ = ["here", "web"]


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
