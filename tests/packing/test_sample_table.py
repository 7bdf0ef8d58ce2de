"""Sample table: the measures of each sample, what fits, and that every loss is counted once."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft.cli import InputError
from sft.packing import sample_table as module
from sft.packing.accounting import add_losses, count_by_source, count_losses
from sft.packing.sample_table import (
    FITS,
    RowGroup,
    batch_row_groups,
    build_tables,
    check_lengths,
    list_row_groups,
    measure_row_groups,
    measure_rows,
    read_row_group,
)
from sft.params.data import Pack
from sft.parquet import SAMPLES, ShardWriter

STOP = 2


def params(over_length="drop", pack_size=12, multiple=1):
    fixed = {"near_duplicates": None, "precedence": [], "validation": 0.1, "test": 0.1, "npy_max_tokens": 0, "seed": 1}
    return Pack(pack_size=pack_size, over_length=over_length, pad_segments_to=multiple, **fixed)


def prepared(*turns: tuple[int, int], number: int = 0) -> dict:
    """Return a row of data/prepared; a turn is (tokens of the prompt, trained tokens)."""
    ids, mask, ends = [], [], []
    for prompt, answer in turns:
        ids += [5] * prompt + [7] * (answer - 1) + [STOP] * bool(answer)
        mask += [0] * prompt + [1] * answer
        ends += [len(ids)] if answer else []
    return {"conversation_id": f"c{number}", "sample": 0, "ids": ids, "mask": mask, "turn_ends": ends}


def measured(rows, pack, source="s"):
    batch = pa.RecordBatch.from_pylist(rows, schema=SAMPLES)
    return build_tables(columns_of([measure_rows(batch, source, pack)]), {source: len(rows)})


def columns_of(batches):
    """Return a column of measured rows, as `build_tables` reads them."""
    return lambda name: [batch.column(name) for batch in batches]


def losses(samples):
    return count_losses(samples, slice(None))


def test_a_long_sample_is_cut_behind_the_last_trained_turn_that_fits():
    samples, _ = measured([prepared((3, 2), (2, 3), (4, 4))], params("cut-at-turn"))
    assert (samples.length[0], samples.kept[0], samples.trained[0], samples.trained_kept[0]) == (18, 10, 9, 5)
    assert samples.reason[0] == FITS
    assert losses(samples) == {"cut": {"samples": 1, "tokens": 8, "trained_tokens": 4}}


def test_the_padding_that_a_cut_sample_needs_counts_as_well():
    samples, _ = measured([prepared((3, 2), (2, 3), (4, 4))], params("cut-at-turn", 12, multiple=4))
    assert samples.kept[0] == 5, "10 tokens are padded to 13"


def test_a_sample_longer_than_a_pack_at_its_first_trained_turn_is_over_length_under_either_policy():
    for policy in ("drop", "cut-at-turn"):
        samples, _ = measured([prepared((9, 4), (1, 1)), prepared((2, 2), number=1)], params(policy))
        assert losses(samples) == {"over-length": {"samples": 1, "tokens": 15, "trained_tokens": 5}}
        assert samples.kept.tolist() == [0, 4]


def test_error_names_the_first_sample_that_is_too_long_its_length_and_what_to_do():
    rows = [prepared((2, 2)), prepared((9, 4), number=1), prepared((90, 4), number=2)]
    with pytest.raises(InputError, match=r"^data/prepared/s: conversation c1, sample 0: .* 13 .*pack\.pack_size 12"):
        check_lengths(*measured(rows, params("error")), params("error"))


def test_a_sample_without_a_trained_token_that_anything_predicts_is_lost_as_untrained():
    first_only = {**prepared((2, 0), number=1), "mask": [1, 0]}
    samples, _ = measured([prepared((5, 0)), first_only], params())
    assert losses(samples) == {"untrained": {"samples": 2, "tokens": 7, "trained_tokens": 0}}


@pytest.mark.parametrize("lacking", ["value", "column"])
def test_a_sample_without_turn_ends_cannot_be_cut(lacking):
    rows = [prepared((2, 2)), {**prepared((9, 4), number=7), "turn_ends": None}]
    schema = SAMPLES if lacking == "value" else SAMPLES.remove(SAMPLES.get_field_index("turn_ends"))
    batch = pa.RecordBatch.from_pylist([{name: row.get(name) for name in schema.names} for row in rows], schema=schema)
    with pytest.raises(InputError, match=r"^data/prepared/s: conversation c7, sample 0: turn_ends .*prep@s"):
        measure_rows(batch, "s", params("cut-at-turn"))
    measure_rows(batch, "s", params("drop"))


def test_a_slice_of_rows_is_measured_as_the_rows_themselves():
    rows = [prepared((number + 1, 2), (3, 9), number=number) for number in range(6)]
    whole = pa.RecordBatch.from_pylist(rows, schema=SAMPLES)
    part = pa.RecordBatch.from_pylist(rows[2:5], schema=SAMPLES)
    assert measure_rows(whole.slice(2, 3), "s", params("cut-at-turn")).equals(
        measure_rows(part, "s", params("cut-at-turn"))
    )


def test_conversations_are_numbered_by_source_and_the_same_id_is_the_same_everywhere():
    rows = [prepared((2, 2), number=number) for number in (3, 3, 1, 1, 3, 2)]
    batch = pa.RecordBatch.from_pylist(rows, schema=SAMPLES)
    measured = [measure_rows(batch.slice(0, 3), "a", params()), measure_rows(batch.slice(3, 3), "b", params())]
    samples, conversations = build_tables(columns_of(measured), {"a": 3, "b": 3})
    assert samples.conversation.tolist() == [0, 0, 1, 2, 3, 4]
    assert conversations.source.tolist() == [0, 0, 1, 1, 1]
    assert conversations.ids_of(np.arange(5)).to_pylist() == ["c3", "c1", "c1", "c3", "c2"]
    assert conversations.id_number.tolist() == [2, 0, 0, 2, 1]
    assert conversations.sources_of(np.array([4, 0])).to_pylist() == ["b", "a"]
    assert len(set(samples.key.tolist())) == 5, "of source, id and number"


@given(
    st.lists(
        st.lists(st.tuples(st.integers(1, 9), st.integers(0, 6)), min_size=1, max_size=5), min_size=1, max_size=12
    ),
    st.sampled_from(["drop", "cut-at-turn"]),
    st.sampled_from([1, 4]),
)
def test_tokens_in_are_tokens_kept_and_tokens_lost(turns, policy, multiple):
    rows = [prepared(*conversation, number=number) for number, conversation in enumerate(turns)]
    samples, conversations = measured(rows, params(policy, 16, multiple))
    fitting = np.flatnonzero(samples.reason == FITS).astype(np.int32)
    kept, lost = count_by_source(samples, conversations, fitting)["s"], losses(samples)
    for unit, column in (("tokens", "ids"), ("trained_tokens", "mask")):
        prepared_tokens = sum(len(row["ids"]) if column == "ids" else sum(row["mask"][1:]) for row in rows)
        assert prepared_tokens == kept[unit] + sum(counts[unit] for counts in lost.values())
    assert len(rows) == kept["samples"] + sum(counts["samples"] for name, counts in lost.items() if name != "cut")
    for sample in fitting:
        assert -(-(samples.kept[sample] - 1) // multiple) * multiple + 1 <= 16
        assert samples.kept[sample] in {*rows[sample]["turn_ends"], len(rows[sample]["ids"])}


def test_losses_of_parts_add_up_to_those_of_the_whole():
    rows = [prepared((9, 4)), prepared((3, 2), (2, 3), (4, 4), number=1), prepared((4, 0), number=2)] * 3
    samples, _ = measured(rows, params("cut-at-turn"))
    assert add_losses(count_losses(samples, slice(n, n + 3)) for n in (0, 3, 6)) == losses(samples)
    assert list(losses(samples)) == ["cut", "over-length", "untrained"]


def test_row_groups_are_read_in_batches_of_few_tokens(tmp_path, monkeypatch):
    rows = [prepared((n % 7 + 1, 2), number=n) for n in range(2500)]
    with ShardWriter(tmp_path / "s", "samples", SAMPLES) as shards:
        for row in rows:
            shards.write(row)
    groups = list_row_groups({"s": tmp_path / "s"})
    assert [(group.source, group.rows) for group in groups] == [("s", 1000), ("s", 1000), ("s", 500)]
    assert sum(group.tokens for group in groups) == sum(len(row["ids"]) for row in rows)
    monkeypatch.setattr(module, "BATCH_TOKENS", 100)
    batches = [batch for group in groups for batch in read_row_group(group, ["ids"])]
    assert len(batches) > 100
    assert [ids for batch in batches for ids in batch.column("ids").to_pylist()] == [row["ids"] for row in rows]
    shard = {"groups": groups, "pack": params().model_dump(), "spool": str(tmp_path)}
    samples, _ = build_tables(module.column_reader([measure_row_groups(shard)]), {"s": 2500})
    assert samples.length.tolist() == [len(row["ids"]) for row in rows]


def test_row_groups_are_batched_by_tokens():
    groups = [RowGroup("s", "", number, 1, tokens) for number, tokens in enumerate((5, 5, 9, 1, 30, 2))]
    assert [[group.group for group in part] for part in batch_row_groups(groups, 10)] == [[0, 1], [2, 3], [4], [5]]
    assert batch_row_groups([], 10) == []
