"""manifests: ranks hash their own shards in the background, and the first one writes the manifest."""

import errno
from pathlib import Path

import pytest

from sft import files
from sft.hashing import folder_digests
from sft.training import manifests


def write_shards(folder: Path, ranks: int) -> Path:
    """Write a checkpoint as torch_dist lays it out: shards of each rank, and files of the first one."""
    folder.mkdir(parents=True)
    for rank in range(ranks):
        (folder / f"__{rank}_0.distcp").write_bytes(b"w" * rank)
    (folder / "metadata.json").write_bytes(b"{}")
    return folder


def test_ranks_hash_their_own_shards_and_the_first_writes_the_manifest(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "checkpoints/iter_0000002", ranks=3)
    manifest = tmp_path / "manifests/iter_0000002.json"
    manifest.parent.mkdir()
    ranks = [manifests.Background(rank, 3) for rank in range(3)]
    for number in (0, 2):
        ranks[number].begin(folder, manifest, lambda digests: files.write_json(manifest, digests))
    ranks[2].wait()
    assert not manifest.exists()
    assert list(files.read_json(manifest.with_suffix(".rank-2.json"))) == ["__2_0.distcp"]
    ranks[1].begin(folder, manifest, lambda digests: None)
    for rank in ranks:
        rank.wait()
    assert files.read_json(manifest) == folder_digests(folder)
    assert [path.name for path in manifest.parent.iterdir()] == [manifest.name]


def test_a_disk_that_is_full_while_a_checkpoint_is_hashed_is_an_error_of_the_training(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "checkpoints/iter_0000002", ranks=1)

    def full(digests: dict[str, str]) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    hashing = manifests.Background(0, 1)
    hashing.begin(folder, tmp_path / "iter_0000002.json", full)
    with pytest.raises(OSError, match="No space left"):
        hashing.wait()
