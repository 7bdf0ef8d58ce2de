"""External sort: every token arrives at its place, whatever the sizes of parts and the number of workers."""

import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest

from sft.cli import InputError
from sft.hashing import folder_digests
from sft.packing import external_sort
from sft.packing.bins import plan_bins
from sft.packing.external_sort import Layout, plan_sort, write_packs
from sft.packing.plan import PackOrder
from sft.packing.sample_table import build_tables, list_row_groups, measure_rows, read_row_group
from sft.packing.write import padded
from sft.params.data import Pack
from sft.parquet import PACKS, SAMPLES, ShardWriter, read_rows, shard_paths
from tests.support.tiny_model import EOS, made_up

COLUMNS = ["conversation_id", "sample", "mask", "turn_ends"]
SIZE = 48


def params(multiple):
    fixed = {"near_duplicates": None, "precedence": [], "validation": 0.1, "test": 0.1, "npy_max_tokens": 0, "seed": 1}
    return Pack(pack_size=SIZE, over_length="cut-at-turn", pad_segments_to=multiple, **fixed)


@pytest.fixture
def made(tmp_path):
    """Prepared samples of two sources, by (source, id, number)."""
    rows = {}
    for source, numbers in (("a", range(120)), ("b", range(120, 160))):
        with ShardWriter(tmp_path / source, "samples", SAMPLES) as shards:
            for number in numbers:
                for row in made_up(number):
                    shards.write(row)
                    rows[source, row["conversation_id"], row["sample"]] = row
    return tmp_path, rows


def write(folder, name, multiple=1):
    """Pack all samples that fit, the first three twice, in two splits and an empty one."""
    groups = list_row_groups({source: folder / source for source in "ab"})
    batches = [
        measure_rows(batch, group.source, params(multiple))
        for group in groups
        for batch in read_row_group(group, COLUMNS)
    ]
    rows = {source: sum(group.rows for group in groups if group.source == source) for source in "ab"}
    samples, conversations = build_tables(lambda name: [batch.column(name) for batch in batches], rows)
    fitting = np.flatnonzero(samples.kept > 0).astype("int32")[::-1]
    members = np.concatenate([fitting, fitting[:3]])
    copies = (np.arange(len(members)) >= len(fitting)).astype("int32")
    bins = plan_bins(padded(samples.kept[members], multiple), SIZE)
    half = len(bins) // 2
    middle = bins.starts[half]
    orders = {}
    for split, place, starts in (
        ("training", slice(0, middle), bins.starts[: half + 1]),
        ("validation", slice(middle, None), bins.starts[half:] - middle),
        ("test", slice(0, 0), bins.starts[:1]),
    ):
        packed = bins.members[place]
        orders[split] = PackOrder(members[packed], copies[packed], starts)
    spool = folder / f"spool-{name}"
    for made in (spool, folder / name):
        made.mkdir()
    layout = Layout(SIZE, multiple, pad_id=0, stop_id=EOS)
    write_packs(folder / name, plan_sort(orders, samples, conversations, groups, layout, spool))
    return len(members)


@pytest.mark.parametrize("multiple", [1, 8])
@pytest.mark.parametrize(("tokens", "shards"), [(1 << 24, 1), (100, 7), (1, 60)])
def test_every_sample_arrives_whole_once_per_copy_whatever_the_sizes_of_parts(
    made, monkeypatch, tokens, shards, multiple
):
    for name in ("PART_TOKENS", "BLOCK_TOKENS", "GROUP_TOKENS"):
        monkeypatch.setattr(external_sort, name, tokens)
    monkeypatch.setattr(external_sort, "SHARD_TOKENS", 3 * tokens)
    folder, expected = made
    copies = write(folder, "packed", multiple)
    packed = []
    for split in ("training", "validation"):
        assert len(shard_paths(folder / "packed" / split)) >= shards
        for pack in read_rows(folder / "packed" / split):
            assert len(pack["input_ids"]) <= SIZE
            ends = [*pack["seq_start_id"][1:], len(pack["input_ids"])]
            for place, (begin, end) in enumerate(zip(pack["seq_start_id"], ends, strict=True)):
                key = pack["source"][place], pack["conversation_id"][place], pack["sample"][place]
                whole = expected[key]
                length = max(length for length in (len(whole["ids"]), *whole["turn_ends"]) if length <= end - begin)
                assert end - begin - length < multiple
                assert pack["input_ids"][begin:end] == whole["ids"][:length] + [0] * (end - begin - length)
                assert pack["loss_mask"][begin:end] == [*whole["mask"][1:length], *[0] * (end - begin - length + 1)]
                packed.append((key, pack["repeat"][place]))
    assert len(packed) == len(set(packed)) == copies > 180
    (empty,) = shard_paths(folder / "packed/test")
    assert pq.read_table(empty).num_rows == 0
    assert pq.read_schema(empty).equals(PACKS)


def test_the_number_of_workers_and_the_size_of_parts_change_no_byte(made, monkeypatch):
    folder, _ = made
    monkeypatch.setattr(external_sort, "SHARD_TOKENS", 900)
    digests = []
    for workers, tokens in (("1", 1 << 24), ("1", 200), ("2", 1000)):
        monkeypatch.setenv("SFT_WORKERS", workers)
        monkeypatch.setattr(external_sort, "PART_TOKENS", tokens)
        write(folder, f"packed-{workers}-{tokens}")
        digests.append(folder_digests(folder / f"packed-{workers}-{tokens}"))
    assert digests[0] == digests[1] == digests[2]
    assert len(digests[0]) > 5


def test_no_more_tokens_are_in_memory_than_a_part_and_a_few_row_groups_have(made, monkeypatch):
    folder, _ = made
    monkeypatch.setenv("SFT_WORKERS", "1")
    for name, value in (("PART_TOKENS", 200), ("GROUP_TOKENS", 100), ("GROUPS_AT_ONCE", 2)):
        monkeypatch.setattr(external_sort, name, value)
    built, build_packs = [], external_sort.build_packs

    def counted(parts, lengths, *rest):
        built.append(int(lengths.sum()))
        return build_packs(parts, lengths, *rest)

    monkeypatch.setattr(external_sort, "build_packs", counted)
    write(folder, "packed")
    parts = [path.stat().st_size // 4 for path in folder.glob("spool-packed/part-*/ids")]
    assert len(parts) > 5
    assert max(parts) <= 200 + 2 * SIZE, "the last sample begins within the part; it is packed twice at most"
    assert len(built) > 5
    assert max(built) <= 2 * 100 + SIZE


def test_the_number_of_row_groups_built_at_once_changes_no_byte(made, monkeypatch):
    folder, _ = made
    for name, tokens in (("SHARD_TOKENS", 3000), ("BLOCK_TOKENS", 900), ("GROUP_TOKENS", 200)):
        monkeypatch.setattr(external_sort, name, tokens)
    monkeypatch.setenv("SFT_WORKERS", "1")
    digests = []
    for number in (1, 3, 100):
        monkeypatch.setattr(external_sort, "GROUPS_AT_ONCE", number)
        write(folder, f"packed-{number}")
        digests.append(folder_digests(folder / f"packed-{number}"))
    assert digests[0] == digests[1] == digests[2]
    assert pq.read_metadata(shard_paths(folder / "packed-3/training")[0]).num_row_groups > 6


def test_workers_do_not_load_the_compiler_that_only_the_plan_needs():
    loaded = "import sys, sft.packing.sample_table, sft.packing.external_sort; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", loaded], check=False).returncode == 0


def test_a_pack_outside_the_contract_stops_and_is_named(made):
    folder, _ = made
    with ShardWriter(folder / "b", "samples", SAMPLES) as shards:
        wrong = made_up(121)[0]
        shards.write({**wrong, "mask": [1] * len(wrong["mask"])})
    with pytest.raises(InputError, match=r"data/packed/training/packs-00000\.parquet: .*c121: .*stop token"):
        write(folder, "packed")


def test_ids_and_mask_of_different_lengths_stop(made):
    folder, _ = made
    with ShardWriter(folder / "b", "samples", SAMPLES) as shards:
        wrong = made_up(121)[0]
        shards.write({**wrong, "ids": wrong["ids"][:-1]})
    with pytest.raises(InputError, match=r"data/prepared/b: ids and mask .*prep@b"):
        write(folder, "packed")
