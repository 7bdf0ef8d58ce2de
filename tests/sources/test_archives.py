"""Archives: what is not safe in one makes all of it an error."""

import io
import os
import stat
import zipfile
from pathlib import Path

import pytest

from sft.cli import InputError
from sft.sources.archives import extract_zip


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
