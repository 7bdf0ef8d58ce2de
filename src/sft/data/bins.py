"""Bins: which samples share a pack.

Pure functions over lengths. Best-fit decreasing: the longest sample first, each into the bin where it
leaves the least room. One pass after a sort, whatever the pack size: bins are kept by the room left in
them, and a bit for each room says whether there is one. Two copies of a conversation never share a bin.
"""

from collections.abc import Mapping, Sequence

QUANTILES = (0.0, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)


def length_quantiles(lengths: Sequence[int]) -> dict[str, int]:
    """Return quantiles of lengths by the nearest rank; none of nothing.

    >>> length_quantiles([3, 1, 2])["p50"]
    2
    """
    ordered = sorted(lengths)
    return {f"p{round(q * 100)}": ordered[round(q * (len(ordered) - 1))] for q in QUANTILES} if ordered else {}


def plan_bins(
    lengths: Sequence[int], capacity: int, copies: Mapping[int, tuple[str, int]] | None = None
) -> list[list[int]]:
    """Return bins as lists of indices into `lengths`; every index in exactly one bin.

    `copies` has, for samples of a repeated conversation, the conversation and which copy of it they are:
    samples of different copies are kept apart, at the price of a fuller bin or of a new one.

    Units:   lengths and capacity in tokens, 1 <= length <= capacity.
    Raises:  ValueError: a length outside that range.
    Source:  Johnson 1973, best-fit decreasing: at most 11/9 OPT + 6/9 bins; in practice within 0.01 %.

    >>> plan_bins([3, 5, 2, 4], capacity=7)
    [[1, 2], [3, 0]]
    >>> plan_bins([2, 2], capacity=7, copies={0: ("a", 0), 1: ("a", 1)})
    [[0], [1]]
    """
    copies = copies or {}
    bins: list[list[int]] = []
    by_room: list[list[int]] = [[] for _ in range(capacity + 1)]
    rooms = 0  # bit r is set where a bin has exactly r tokens of room
    copy_in: dict[tuple[int, str], int] = {}  # bin, conversation -> the copy that is there
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[index]
        if not 1 <= length <= capacity:
            raise ValueError(f"sample {index}: {length} tokens do not fit into a pack of {capacity}")
        room, chosen = capacity, len(bins)
        fitting = rooms >> length
        while fitting:
            least = length + (fitting & -fitting).bit_length() - 1
            place = len(by_room[least]) - 1
            if index in copies:
                conversation, copy = copies[index]
                while place >= 0 and copy_in.get((by_room[least][place], conversation), copy) != copy:
                    place -= 1
            if place >= 0:
                room, chosen = least, by_room[least].pop(place)
                if not by_room[least]:
                    rooms ^= 1 << least
                break
            fitting &= fitting - 1
        if chosen == len(bins):
            bins.append([])
        bins[chosen].append(index)
        if index in copies:
            conversation, copy = copies[index]
            copy_in[chosen, conversation] = copy
        if room > length:
            by_room[room - length].append(chosen)
            rooms |= 1 << (room - length)
    return bins


def lower_bound(lengths: Sequence[int], capacity: int) -> int:
    """Return the fewest bins that any packing could need by volume.

    >>> lower_bound([3, 5, 2, 4], capacity=7)
    2
    """
    return -(-sum(lengths) // capacity)
