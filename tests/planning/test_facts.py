"""facts: they come from files, and are unknown without them."""

from pathlib import Path

from sft.files import write_json
from sft.hashing import file_digest
from sft.planning.facts import Facts, gather_facts
from tests.support import tiny_model as tiny


def test_facts_come_from_files_and_are_unknown_without_them(tmp_path: Path) -> None:
    places = {name: tmp_path / name for name in ("packed", "base", "run", "start")}
    empty = gather_facts(Facts(ranks=2, on_gpu=False), **places)
    assert empty.ranks == 2
    assert empty.free_disk is not None
    assert (empty.pack_size, empty.training_packs, empty.model_tokenizer, empty.done_disk) == (None, None, None, 0)

    tiny.write_packs(tmp_path / "packed" / "training", tiny.make_packs(7, 32, seed=1), shards=2)
    write_json(
        tmp_path / "packed" / "metadata.json", {"pack_size": 32, "pad_segments_to": 4, "tokenizer_sha256": "a" * 64}
    )
    write_json(tmp_path / "base" / "tokenizer.json", {})
    known = gather_facts(Facts(ranks=1, on_gpu=False), **places)
    assert (known.pack_size, known.pad_segments_to, known.data_tokenizer) == (32, 4, "a" * 64)
    assert (known.training_packs, known.validation_packs) == (7, 0)
    assert known.model_tokenizer == file_digest(tmp_path / "base" / "tokenizer.json")


def test_checkpoints_and_the_imported_model_of_a_resumed_run_are_already_written(tmp_path: Path) -> None:
    places = {name: tmp_path / name for name in ("packed", "base", "run", "start")}
    for file, size in (("run/checkpoints/iter_2/a", 500), ("start/iter_0/b", 30), ("run/logs/c", 7)):
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).write_bytes(b"x" * size)
    assert gather_facts(Facts(ranks=1, on_gpu=False), **places).done_disk == 530
