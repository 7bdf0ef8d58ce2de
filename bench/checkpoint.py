"""Measure what the save of a checkpoint adds to a training step after Megatron has written it.

    PYTHONPATH=src:. python -m bench.checkpoint [--gigabytes 20] [--ranks 8] [--folder FOLDER]

Writes a made-up checkpoint, one shard for each rank, then has all ranks begin to hash it as a training does. Prints the
seconds until they continue (`held`), until the manifest is written (`hashed`), and of hashing it in one process while
all wait (`in the save`, as versions before did). The ranks are threads of one process here.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

from sft.files import write_json
from sft.hashing import file_digest
from sft.training import manifests

BLOCK = os.urandom(1 << 24)


def write_checkpoint(folder: Path, gigabytes: float, ranks: int) -> None:
    """Write shards of random bytes."""
    folder.mkdir(parents=True)
    for rank in range(ranks):
        with (folder / f"__{rank}_0.distcp").open("wb") as file:
            for _ in range(int(gigabytes * 1e9 / ranks / len(BLOCK))):
                file.write(BLOCK)
            os.fsync(file.fileno())
    (folder / "metadata.json").write_text("{}")


def main(gigabytes: float, ranks: int, folder: Path) -> None:
    """Print the seconds of one save."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        checkpoint, manifest = Path(scratch, "checkpoints/iter_0000001"), Path(scratch, "manifests/iter_0000001.json")
        manifest.parent.mkdir()
        write_checkpoint(checkpoint, gigabytes, ranks)
        size = sum(file.stat().st_size for file in checkpoint.iterdir()) / 1e9
        hashing = [manifests.Background(rank, ranks) for rank in range(ranks)]
        start, held = time.perf_counter(), 0.0
        for rank in hashing:  # on a cluster they do this at the same time
            begun = time.perf_counter()
            rank.begin(checkpoint, manifest, lambda digests: write_json(manifest, digests))
            held = max(held, time.perf_counter() - begun)
        for rank in hashing:
            rank.wait()
        hashed = time.perf_counter() - start
        start = time.perf_counter()
        for file in sorted(checkpoint.iterdir()):
            os.utime(file)  # else its digest is known
            file_digest(file)
        before = time.perf_counter() - start
    print(f"{size:.1f} GB, {ranks} ranks, {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}")
    print(f"held {held:.3f} s, hashed {hashed:.1f} s, in the save {before:.1f} s ({size / before:.2f} GB/s)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=20)
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--folder", type=Path, default=Path("."), help="on the file system to measure")
    options = parser.parse_args()
    main(options.gigabytes, options.ranks, options.folder)
