"""The manifest of a new checkpoint, written in the background: each rank hashes its shards while training continues.

checkpoints/iter_0000012/  ->  manifests/iter_0000012.saved.json     sizes and times of its files, once it is whole
                               manifests/iter_0000012.rank-3.json    digests by one rank, until all have theirs
                               manifests/iter_0000012.json           the manifest; the other two are removed

No step waits for a digest, unless the one before is still being hashed when the next checkpoint is saved. If the
process ends first, `saved.json` shows that the checkpoint is whole: it is hashed when training resumes.
"""

import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from sft.files import read_json, write_json
from sft.hashing import file_digest, files_below

POLL_SECONDS = 0.2  # while the first rank waits for the digests of the others
SHARD = re.compile(r"__(\d+)_\d+\.distcp$")


def rank_of(file: Path, ranks: int) -> int:
    """Return the rank that hashes a file: the one that wrote it, if as many ranks train as then.

    >>> [rank_of(Path(name), 4) for name in ("__3_0.distcp", "__6_1.distcp", "metadata.json")]
    [3, 2, 0]
    """
    match = SHARD.match(file.name)
    return int(match[1]) % ranks if match else 0


def digests_of_rank(checkpoint: Path, rank: int, ranks: int) -> dict[str, str]:
    """Return the sha256 of the files of a checkpoint that are a rank's, by relative path."""
    return {name: file_digest(file) for name, file in _files(checkpoint) if rank_of(file, ranks) == rank}


def stamps(checkpoint: Path) -> dict[str, list[int]]:
    """Return size and time of change of every file of a checkpoint, without reading it."""
    return {name: [file.stat().st_size, file.stat().st_mtime_ns] for name, file in _files(checkpoint)}


def _files(checkpoint: Path) -> Iterator[tuple[str, Path]]:
    for file in files_below(checkpoint):
        yield file.relative_to(checkpoint).as_posix(), file


def record_of_save(manifest: Path) -> Path:
    """Return the file that says, until a checkpoint has its manifest, that it is whole."""
    return manifest.with_suffix(".saved.json")


class Background:
    """Hashes one checkpoint after the other, in a thread of every rank."""

    def __init__(self, rank: int, ranks: int) -> None:
        self._rank, self._ranks = rank, ranks
        self._thread: threading.Thread | None = None
        self._error: OSError | None = None

    def begin(self, checkpoint: Path, manifest: Path, finish: Callable[[dict[str, str]], None]) -> None:
        """Begin to hash a checkpoint that is whole; the first rank calls `finish` with the digests of all files.

        Raises:  OSError: the checkpoint before could not be hashed, as when the disk is full.
        """
        self.wait()
        if self._rank == 0:
            write_json(record_of_save(manifest), stamps(checkpoint))
        arguments = (checkpoint, manifest, finish)
        self._thread = threading.Thread(target=self._work, args=arguments, name="manifest", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Wait until the checkpoint is hashed."""
        if self._thread is not None:
            self._thread.join()
        self._thread = None
        if self._error is not None:
            raise self._error

    def _work(self, checkpoint: Path, manifest: Path, finish: Callable[[dict[str, str]], None]) -> None:
        try:
            digests = digests_of_rank(checkpoint, self._rank, self._ranks)
            if self._rank:
                write_json(_part(manifest, self._rank), digests)
                return
            parts = [_part(manifest, rank) for rank in range(1, self._ranks)]
            pause = threading.Event()
            for part in parts:
                while not part.exists():
                    pause.wait(POLL_SECONDS)
                digests |= read_json(part)
            finish(digests)
            for file in (*parts, record_of_save(manifest)):
                file.unlink()
        except OSError as error:
            self._error = error


def _part(manifest: Path, rank: int) -> Path:
    return manifest.with_suffix(f".rank-{rank}.json")
