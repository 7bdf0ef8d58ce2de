"""Plan: every sample is packed or has a reason, in one split, copies apart, independent of the order of rows."""

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from sft.packing.plan import plan_blend
from sft.packing.sample_table import FITS, REASONS, build_tables, measure_rows
from sft.packing.splits import SPLITS, NearDuplicates
from sft.params.data import Pack, Source
from sft.parquet import SAMPLES
from tests.support.tiny_model import made_up

NUMBERS = st.lists(st.integers(0, 39), min_size=3, max_size=15, unique=True)
POOL = {number: made_up(number) for number in range(40)}
SIZE = 64


def planned(sources: dict[str, list[int]], epochs: dict[str, float | None], pairs=False, group_size=None, **more):
    """Plan made-up sources; return samples, conversations and the plan.

    With `pairs`, 2n and 2n + 1 are near-duplicates; with `group_size`, so many numbers have one question.
    """
    described = {s: Source(uri="file://x.jsonl", read="openai", epochs=epochs[s]) for s in sources}
    fixed = {"near_duplicates": None, "precedence": [], "validation": 0.1, "test": 0.1, "npy_max_tokens": 0, "seed": 1}
    params = Pack(pack_size=SIZE, **fixed, **more)
    question = (lambda n: {"group": n // group_size}) if group_size else lambda n: {}
    rows = {s: [{**sample, **question(n)} for n in numbers for sample in POOL[n]] for s, numbers in sources.items()}
    batches = [
        measure_rows(pa.RecordBatch.from_pylist(samples, schema=SAMPLES), s, params) for s, samples in rows.items()
    ]
    columns = {name: [batch.column(name) for batch in batches] for name in batches[0].schema.names}
    samples, conversations = build_tables(columns.__getitem__, {s: len(r) for s, r in rows.items()})
    numbers = [int(name[1:]) for name in conversations.ids.texts(np.arange(len(conversations.ids))).to_pylist()]
    near_duplicates = NearDuplicates.none(len(numbers))
    for place, number in enumerate(numbers if pairs else ()):
        near_duplicates.together[place] = numbers.index(number // 2 * 2)
    return samples, conversations, plan_blend(samples, conversations, near_duplicates, described, params)


@given(
    st.dictionaries(st.sampled_from(["a", "b", "c"]), NUMBERS, min_size=1),
    st.sampled_from(["drop", "cut-at-turn"]),
    st.sampled_from([1, 8]),
    st.fixed_dictionaries({source: st.sampled_from([None, 0.4, 1.0, 2.3]) for source in "abc"}),
)
def test_every_sample_is_packed_or_has_a_reason_and_is_in_one_split(sources, policy, multiple, epochs):
    samples, conversations, plan = planned(sources, epochs, over_length=policy, pad_segments_to=multiple)
    names = conversations.ids_of(samples.conversation).to_pylist()
    sides: dict[str, set] = {}
    packed: list[int] = []
    for split in SPLITS:
        order = plan.splits[split]
        assert order.packs[-1] == len(order.samples)
        for begin, end in zip(order.packs[:-1], order.packs[1:], strict=True):
            members = order.samples[begin:end]
            assert 0 < sum(-(-(samples.kept[members] - 1) // multiple) * multiple + 1) <= SIZE
            copies = {(names[s], r) for s, r in zip(members, order.copies[begin:end], strict=True)}
            assert len(copies) == len({name for name, _ in copies})
        assert split == "training" or not order.copies.any()
        assert len({*zip(order.samples.tolist(), order.copies.tolist(), strict=True)}) == len(order.samples)
        for sample in order.samples:
            source = int(conversations.source[samples.conversation[sample]])
            sides.setdefault(names[sample], set()).add((split, source))
        packed += order.samples[order.copies == 0].tolist()
    assert sides
    assert all(len(side) == 1 for side in sides.values()), "one split, and one source"
    assert sorted(packed) == np.flatnonzero(samples.reason == FITS).tolist()


@given(st.permutations(range(40)), st.permutations("abc"))
def test_the_order_of_rows_and_sources_changes_nothing_without_duplicates(numbers, names):
    epochs, policy = {"a": None, "b": 1.5, "c": 0.5}, {"over_length": "cut-at-turn", "pad_segments_to": 1}
    seen = []
    for order, sources_in_order in ((range(40), "abc"), (numbers, names)):
        sources = {name: [n for n in order if n % 3 == "abc".index(name)] for name in sources_in_order}
        samples, conversations, plan = planned(sources, epochs, **policy)
        ids = conversations.ids_of(samples.conversation).to_pylist()
        named = [(ids[s], int(samples.number[s])) for s in range(len(samples))]
        packs = {
            split: (each.packs.tolist(), [named[s] for s in each.samples], each.copies.tolist())
            for split, each in plan.splits.items()
        }
        seen.append((packs, sorted(zip(named, samples.reason.tolist(), strict=True))))
    assert seen[0] == seen[1]
    assert len(seen[0][0]["training"][0]) > 4


def test_duplicates_are_dropped_from_later_sources_and_near_duplicates_stay_in_one_split_in_the_first():
    """Conversations 2n and 2n + 1 are near-duplicates; a has the first twenty, b every fourth of them and the rest."""
    sources = {"a": list(range(20)), "b": [*range(0, 20, 4), *range(20, 40)]}
    more = {"over_length": "cut-at-turn", "pad_segments_to": 1}
    samples, conversations, plan = planned(sources, {"a": None, "b": None}, pairs=True, **more)
    split_of = {}
    for split, order in plan.splits.items():
        split_of.update({name: split for name in conversations.iter_ids(samples.conversation[order.samples])})
    assert len(split_of) == 40
    assert all(split_of[f"c{2 * n}"] == split_of[f"c{2 * n + 1}"] for n in range(20))
    assert set(split_of.values()) == set(SPLITS)
    lost = np.flatnonzero(plan.kept_instead >= 0)
    assert conversations.ids_of(lost).to_pylist() == [f"c{n}" for n in range(0, 20, 4)]
    assert conversations.sources_of(plan.kept_instead[lost]).to_pylist() == ["a"] * 5
    assert {REASONS[reason] for reason in samples.reason} == {"cut", "duplicate"}, "cut: what fits, cut or not"


@settings(max_examples=20)
@given(st.permutations(range(40)))
def test_conversations_with_one_question_are_in_one_split_whatever_the_order_and_shares_are_within_a_group(numbers):
    more = {"over_length": "cut-at-turn", "pad_segments_to": 1, "group_size": 4}
    seen = []
    for order in (list(range(40)), numbers):
        samples, conversations, plan = planned({"a": order}, {"a": None}, **more)
        splits = {
            split: sorted(set(conversations.ids_of(samples.conversation[each.samples]).to_pylist()))
            for split, each in plan.splits.items()
        }
        groups = {split: {int(name[1:]) // 4 for name in names} for split, names in splits.items()}
        assert sum(map(len, groups.values())) == 10, "each group in one split"
        assert len(splits["validation"]) == len(splits["test"]) == 4
        held = {"conversations": 40, "validation": 4, "test": 4, "validation_asked": 4, "test_asked": 4}
        assert plan.groups == {"a": {"groups": 10, "largest": 4, "too_large": 0, **held}}
        seen.append(splits)
    assert seen[0] == seen[1]


def test_a_group_too_large_to_be_held_out_is_counted_and_trained():
    more = {"over_length": "cut-at-turn", "pad_segments_to": 1, "group_size": 20}
    _, _, plan = planned({"a": list(range(24))}, {"a": None}, **more)
    held = {"conversations": 24, "validation": 0, "test": 0, "validation_asked": 2, "test_asked": 2}
    assert plan.groups == {"a": {"groups": 2, "largest": 20, "too_large": 2, **held}}
