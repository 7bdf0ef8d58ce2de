"""Licenses: that of each conversation, which ones are not packed, and what is packed under each.

The license is the one that a row states, or else that of its source. A text that names several, "MIT and CC-BY-4.0", is
excluded if one of them is.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sft.packing.sample_table import EXCLUDED, ConversationTable, SampleTable
from sft.params.base import license_names
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


def is_under(license: str, excluded: str) -> bool:
    """Whether a license names all of those that an excluded one names, in any case of letters.

    >>> is_under("MIT and GPL-3.0", "gpl-3.0"), is_under("MIT", "MIT, GPL-3.0")
    (True, False)
    """
    names = license_names(excluded.casefold())
    return bool(names) and names <= license_names(license.casefold())


def exclude(samples: SampleTable, licenses: Licenses, excluded: Iterable[str]) -> list[str]:
    """Set the reason of all samples under the licenses in `excluded`; return those that no conversation has.

    One that names several, as reports write it, is the license of conversations under all of them.
    """
    is_excluded, unused = np.zeros(len(licenses.names), np.bool_), []
    for name in excluded:
        found = [is_under(each, name) for each in licenses.names]
        is_excluded |= found
        if not any(found):
            unused.append(name)
    samples.reason[is_excluded[licenses.of_conversation[samples.conversation]] & ~samples.has_windows] = EXCLUDED
    return unused


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
