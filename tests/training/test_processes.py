"""processes: a group of one rank. tests/training/test_bridge.py trains in groups of two and four."""

from pathlib import Path

import torch.distributed as dist

from sft.hashing import folder_digests
from sft.training import processes


def test_a_rank_that_is_alone_decides_and_hashes_all(tmp_path: Path) -> None:
    (tmp_path / "b").write_text("b")
    (tmp_path / "a").write_text("a")
    for _ in range(2):
        with processes.process_group():
            assert dist.get_world_size() == 1
            assert processes.broadcast(lambda: "decided") == "decided"
            digests = processes.digests_on_every_rank(tmp_path)
        assert digests == folder_digests(tmp_path)
        assert list(digests) == ["a", "b"]
        assert not dist.is_initialized()
