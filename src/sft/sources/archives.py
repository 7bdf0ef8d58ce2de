"""Zip archives from anywhere: only regular files are extracted, and to computed paths only."""

import re
import shutil
import stat
import unicodedata
import zipfile
from pathlib import Path

from sft.cli import InputError
from sft.hashing import BLOCK_BYTES
from sft.sources.patterns import match_paths

# Largest ratio of a member to its compressed size (in the default wheels at most 127), unless the member is small.
BOMB_RATIO, BOMB_BYTES = 200, 10 << 20
MAX_MEMBERS = 100_000
COMPRESSIONS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}


def extract_zip(archive: Path, path: str, folder: Path, package: str) -> None:
    """Extract the members of a zip archive that a path or pattern matches, to computed paths in a folder.

    One unsafe member, whether it matches or not, makes the whole archive an error.

    Raises:  InputError: names the unsafe member and its fault, or the most similar members if none matches.
    """
    try:
        with zipfile.ZipFile(archive) as wheel:
            members = _safe_members(wheel, archive.stat().st_size, package)
            for name, inner in match_paths(members, path, package).items():
                target = folder / inner
                target.parent.mkdir(parents=True, exist_ok=True)
                with wheel.open(members[name]) as member, target.open("xb") as file:
                    shutil.copyfileobj(member, file, BLOCK_BYTES)
    except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, UnicodeDecodeError) as error:
        raise InputError(f"{package}: damaged archive: {error}. Nothing was kept.") from error


def _safe_members(archive: zipfile.ZipFile, size: int, package: str) -> dict[str, zipfile.ZipInfo]:
    """Return the files of an archive by name. Raises InputError: a member that is not safe to extract."""
    members: dict[str, zipfile.ZipInfo] = {}
    seen: set[str] = set()
    infos = archive.infolist()
    if len(infos) > MAX_MEMBERS or sum(info.compress_size for info in infos) > size:
        raise InputError(f"{package}: {len(infos)} members overlap, or are more than {MAX_MEMBERS}. Nothing was kept.")
    for info in infos:
        name, kind = info.orig_filename, stat.S_IFMT(info.external_attr >> 16)
        folded = unicodedata.normalize("NFC", name).casefold()
        faults = {
            "leaves its folder": ".." in name.split("/"),
            "has an absolute path": name.startswith("/") or re.match("[A-Za-z]:", name) is not None,
            "has a backslash or control character": re.search(r"[\\\x00-\x1f]", name) is not None,
            "has an empty part in its path": not name or "//" in name or "." in name.split("/"),
            "is neither file nor folder": kind not in (0, stat.S_IFREG, stat.S_IFDIR),
            "exists twice": folded in seen,
            "is encrypted": bool(info.flag_bits & 1),
            "has an unknown compression": info.compress_type not in COMPRESSIONS,
            "is suspiciously large when extracted": info.file_size > max(BOMB_BYTES, BOMB_RATIO * info.compress_size),
        }
        for fault, is_present in faults.items():
            if is_present:
                raise InputError(f"{package}: unsafe archive: member {name[:200]!r} {fault}. Nothing was kept.")
        seen.add(folded)
        if not info.is_dir():
            members[name] = info
    return members
