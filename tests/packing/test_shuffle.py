"""Shuffle: every token arrives at its place, however the data is cut and whoever does the work."""

import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest

from sft.cli import InputError
from sft.hashing import folder_digests
from sft.packing import shuffle
from sft.packing.bins import plan_bins
from sft.packing.plan import Order
from sft.packing.samples import join, list_groups, measure, read_group
from sft.packing.shuffle import Layout, plan_shuffle, write_packs
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
    """Pack all samples but those that do not fit, the first three twice, in two splits and an empty one."""
    groups = list_groups({source: folder / source for source in "ab"})
    batches = [
        measure(batch, group.source, params(multiple)) for group in groups for batch in read_group(group, COLUMNS)
    ]
    rows = {source: sum(group.rows for group in groups if group.source == source) for source in "ab"}
    samples, conversations = join(lambda name: [batch.column(name) for batch in batches], rows)
    own = np.flatnonzero(samples.kept > 0).astype("int32")[::-1]
    copies = np.concatenate([own, own[:3]])
    repeats = (np.arange(len(copies)) >= len(own)).astype("int32")
    bins = plan_bins(padded(samples.kept[copies], multiple), SIZE)
    half = len(bins) // 2
    middle = bins.starts[half]
    orders = {}
    for split, place, starts in (
        ("training", slice(0, middle), bins.starts[: half + 1]),
        ("validation", slice(middle, None), bins.starts[half:] - middle),
        ("test", slice(0, 0), bins.starts[:1]),
    ):
        members = bins.members[place]
        orders[split] = Order(copies[members], repeats[members], starts)
    spool = folder / f"spool-{name}"
    for made in (spool, folder / name):
        made.mkdir()
    layout = Layout(SIZE, multiple, pad_id=0, stop_id=EOS)
    write_packs(folder / name, plan_shuffle(orders, samples, conversations, groups, layout, spool))
    return len(copies)


@pytest.mark.parametrize("multiple", [1, 8])
@pytest.mark.parametrize(("tokens", "shards"), [(1 << 24, 1), (100, 7), (1, 60)])
def test_every_sample_arrives_whole_once_per_copy_however_the_data_is_cut(made, monkeypatch, tokens, shards, multiple):
    for name in ("RUN_TOKENS", "BLOCK_TOKENS", "GROUP_TOKENS"):
        monkeypatch.setattr(shuffle, name, tokens)
    monkeypatch.setattr(shuffle, "SHARD_TOKENS", 3 * tokens)
    folder, expected = made
    copies = write(folder, "packed", multiple)
    found = []
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
                found.append((key, pack["repeat"][place]))
    assert len(found) == len(set(found)) == copies > 180
    (empty,) = shard_paths(folder / "packed/test")
    assert pq.read_table(empty).num_rows == 0
    assert pq.read_schema(empty).equals(PACKS)


def test_who_does_the_work_and_how_data_is_cut_on_the_way_change_no_byte(made, monkeypatch):
    folder, _ = made
    monkeypatch.setattr(shuffle, "SHARD_TOKENS", 900)
    digests = []
    for workers, tokens in (("1", 1 << 24), ("1", 200), ("2", 1000)):
        monkeypatch.setenv("SFT_WORKERS", workers)
        monkeypatch.setattr(shuffle, "RUN_TOKENS", tokens)
        write(folder, f"packed-{workers}-{tokens}")
        digests.append(folder_digests(folder / f"packed-{workers}-{tokens}"))
    assert digests[0] == digests[1] == digests[2]
    assert len(digests[0]) > 5


def test_how_many_row_groups_are_joined_at_once_changes_no_byte(made, monkeypatch):
    folder, _ = made
    for name, tokens in (("SHARD_TOKENS", 3000), ("BLOCK_TOKENS", 900), ("GROUP_TOKENS", 200)):
        monkeypatch.setattr(shuffle, name, tokens)
    monkeypatch.setenv("SFT_WORKERS", "1")
    digests = []
    for number in (1, 3, 100):
        monkeypatch.setattr(shuffle, "GROUPS_AT_ONCE", number)
        write(folder, f"packed-{number}")
        digests.append(folder_digests(folder / f"packed-{number}"))
    assert digests[0] == digests[1] == digests[2]
    assert pq.read_metadata(shard_paths(folder / "packed-3/training")[0]).num_row_groups > 6


def test_workers_do_not_load_the_compiler_that_only_the_plan_needs():
    loaded = "import sys, sft.packing.samples, sft.packing.shuffle; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", loaded], check=False).returncode == 0


def test_a_pack_outside_the_contract_stops_and_is_named(made):
    folder, _ = made
    with ShardWriter(folder / "b", "samples", SAMPLES) as shards:
        wrong = made_up(121)[0]
        shards.write({**wrong, "mask": [1] * len(wrong["mask"])})
    with pytest.raises(
        InputError, match=r"packs-00000.parquet: pack with conversation c121: a trained token follows a stop"
    ):
        write(folder, "packed")


def test_ids_and_mask_of_different_lengths_stop(made):
    folder, _ = made
    with ShardWriter(folder / "b", "samples", SAMPLES) as shards:
        wrong = made_up(121)[0]
        shards.write({**wrong, "ids": wrong["ids"][:-1]})
    with pytest.raises(InputError, match="data/prepared/b: ids and mask of a sample differ in length"):
        write(folder, "packed")
