"""What is measured: the held-out conversations of data/packed, and their messages in data/filtered."""

import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from sft.cli import InputError
from sft.evaluation.prompts import Prompt, Segment, choose_prompts, choose_segments, split_packs
from sft.params.evaluation import Eval

PACKED, FILTERED = Path("data/packed"), Path("data/filtered")
SPLITS = ("validation", "test")


class HeldOut(NamedTuple):
    """What both models are asked."""

    ids: dict[str, set[str]]
    """The held-out conversations of each source."""
    segments: dict[str, list[Segment]]
    """Samples whose loss is measured, by domain."""
    groups: dict[tuple[str, str], int]
    """The split group of each held-out conversation, by source and id. Conversations of one group are alike."""
    prompts: list[Prompt]
    left_out: Counter[str]
    """Prompts that were left out, by reason."""


def choose_held_out(metadata: Mapping[str, Any], params: Eval, chat: Any) -> HeldOut:
    """Return the held-out samples and prompts; `metadata` is data/packed/metadata.json.

    Raises:  InputError: nothing is held out, or data/filtered does not hold the conversations of data/packed.
    """
    from sft.parquet import read_rows  # not at the top: `--help` of the stage needs no Arrow
    from sft.tokens.prepare import group_number

    held_out: dict[str, set[str]] = {source: set() for source in sorted(metadata["sources"])}
    packs = itertools.chain.from_iterable(read_rows(PACKED / split) for split in SPLITS if (PACKED / split).is_dir())

    def held_out_segments() -> Iterator[Segment]:
        for segment in split_packs(packs, params.seed):
            held_out[segment.source].add(segment.conversation_id)
            yield segment

    domains = {source: entry["domain"] for source, entry in metadata["sources"].items()}
    segments = choose_segments(held_out_segments(), domains, params.samples_per_domain)
    if not segments:
        raise InputError(
            f"{PACKED}: {' and '.join(SPLITS)} hold no samples, so there is nothing to measure. "
            "Raise pack.validation or pack.test."
        )
    groups: dict[tuple[str, str], int] = {}
    unseen = {(source, identity) for source, ids in held_out.items() for identity in ids}

    def held_out_rows() -> Iterator[tuple[str, dict[str, Any]]]:
        for source, ids in held_out.items():
            for row in read_rows(FILTERED / source, "kept-") if ids else ():
                if row["id"] in ids:
                    unseen.discard((source, row["id"]))
                    groups[source, row["id"]] = group_number(row["id"], json.loads(row["messages"]), row["meta"])
                    yield source, row

    chosen, left_out = choose_prompts(held_out_rows(), chat, params)
    if unseen:
        source, identity = min(unseen)
        raise InputError(
            f"{FILTERED / source}: {len(unseen)} held-out conversations of {PACKED} are missing, such as {identity}. "
            "The data changed between stages. Rerun them: dvc repro pack"
        )
    return HeldOut(held_out, segments, groups, chosen["tool"] + chosen["chat"], left_out)
