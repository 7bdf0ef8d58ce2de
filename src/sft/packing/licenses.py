"""Licenses: that of each conversation, which ones are not packed, and what is packed under each.

The license is the one that a row states, or else that of its source. One that names several, "MIT and CC-BY-4.0", is
excluded if one of them is; a choice, "MIT OR GPL-3.0", if all are.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sft.packing.sample_table import EXCLUDED, ConversationTable, SampleTable
from sft.params.base import is_under, license_choices
from sft.params.data import Source

Int32s = npt.NDArray[np.int32]


class Licenses(NamedTuple):
    """The licenses of all conversations."""

    names: list[str]
    of_conversation: Int32s
    """(conversations,) Index into `names`."""


def licenses_of(conversations: ConversationTable, sources: Mapping[str, Source]) -> Licenses:
    """Return the license of each conversation."""
    number = len(conversations.licenses)
    pairs, place = np.unique(
        conversations.source.astype(np.int64) * number + conversations.license, return_inverse=True
    )
    names: dict[str, int] = {}
    of_pair = [
        names.setdefault(
            conversations.licenses[pair % number] or sources[conversations.sources[pair // number]].license, len(names)
        )
        for pair in pairs.tolist()
    ]
    return Licenses(list(names), np.array(of_pair, np.int32)[place])


def exclude(samples: SampleTable, licenses: Licenses, excluded: Sequence[str]) -> list[str]:
    """Set the reason of all samples under the licenses in `excluded`; return those that no conversation names."""
    is_excluded = np.array([is_under(name, excluded) for name in licenses.names], np.bool_)
    samples.reason[is_excluded[licenses.of_conversation[samples.conversation]] & ~samples.has_windows] = EXCLUDED
    named = [{license} | {each for choice in license_choices(license) for each in choice} for license in licenses.names]
    return [name for name in excluded if not any(is_under(each, [name]) for names in named for each in names)]


def count_licenses(samples: SampleTable, licenses: Licenses, members: Int32s) -> dict[str, dict[str, int]]:
    """Return samples, tokens and trained tokens of some samples by license."""
    of_member, number = licenses.of_conversation[samples.conversation[members]], len(licenses.names)
    columns = {
        "samples": np.bincount(of_member, minlength=number),
        "tokens": np.bincount(of_member, samples.kept[members], number),
        "trained_tokens": np.bincount(of_member, samples.trained_kept[members], number),
    }
    return {
        name: {unit: int(column[place]) for unit, column in columns.items()}
        for name, place in sorted(zip(licenses.names, range(number), strict=True))
        if columns["samples"][place]
    }
