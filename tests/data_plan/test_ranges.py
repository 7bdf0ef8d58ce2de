"""ranges: parts of files by their bytes, from servers of both kinds, and errors that name the address."""

from pathlib import Path

import pytest

from sft.cli import InputError
from sft.data_plan.ranges import RangeReader, list_source
from sft.params.data import Download
from tests.support.loopback_hub import BODY, Web, web

__all__ = ["web"]


@pytest.mark.parametrize("has_ranges", [True, False])
def test_bytes_of_a_url(web: Web, tmp_path: Path, has_ranges: bool) -> None:
    web.has_ranges = has_ranges
    (file,) = list_source(Download(uri=f"{web.url}/a.bin"), tmp_path)
    assert (file.name, file.size, file.has_ranges) == ("a.bin", len(BODY), has_ranges)
    assert file.read(0, 1000) == BODY[:1000]
    if has_ranges:
        assert file.read(1000, 1500) == BODY[1000:1500]
        assert web.ranges[-1] == "bytes=1000-1499"


def test_an_answer_of_another_length_or_kind_is_an_error(web: Web, tmp_path: Path) -> None:
    (file,) = list_source(Download(uri=f"{web.url}/a.bin?secret=1"), tmp_path)
    web.cut_at = 10
    with pytest.raises(InputError, match=r"/a\.bin") as caught:
        file.read(0, 100)
    assert "secret" not in str(caught.value)
    web.cut_at, web.has_ranges = None, False
    with pytest.raises(InputError, match="answers 200, expected 206"):
        file.read(5, 100)


def test_a_missing_file_and_an_unsafe_url(web: Web, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="answers 404"):
        list_source(Download(uri=f"{web.url}/b.bin"), tmp_path)
    with pytest.raises(InputError, match="only https"):
        list_source(Download(uri="http://example.org/b.bin"), tmp_path)


def test_a_busy_server_is_asked_again(web: Web, tmp_path: Path) -> None:
    web.busy = 2
    (file,) = list_source(Download(uri=f"{web.url}/a.bin"), tmp_path)
    web.busy = 1
    assert file.read(7, 9) == BODY[7:9]


def test_an_object_without_credentials_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(InputError, match=r"s3://bucket/a\.jsonl: cannot download: .*credentials"):
        list_source(Download(uri="s3://bucket/a.jsonl"), tmp_path)


def test_local_files_and_a_file_object(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")
    (file,) = list_source(Download(uri=f"file://{tmp_path}/a"), tmp_path)
    reader = RangeReader(file)
    assert (reader.seek(-4, 2), reader.read(3), reader.tell(), reader.read()) == (6, b"678", 9, b"9")
    assert reader.bytes_read == 4
