"""What the rows of a source say and nobody reads: columns, and keys of messages, parts, calls and tools.

Readers name the keys that they read; `NotRead` counts every other key that has a value, with the location of the first
row. null, "", [] and {} say nothing. Counts appear in the ledger of the filter stage.
"""

from collections import Counter
from collections.abc import Container, Mapping
from typing import Any

MAX_NAMES = 200  # counted apart; a source may use ids as keys
NAME_CHARS = 80
OTHERS = "(other names)"
SHOWN_NAMES = 6
EMPTY: tuple[Any, ...] = (None, "", [], {})


def says_something(value: Any) -> bool:
    """Return whether a value is more than an empty field.

    >>> [says_something(value) for value in (None, "", [], {}, 0, False, [None])]
    [False, False, False, False, True, True, True]
    """
    return value not in EMPTY


def holds_something(value: Any) -> bool:
    """Return whether a value, or anything in it, is more than an empty field; false is empty, too.

    >>> [holds_something(value) for value in ([None], [[]], {"bytes": None, "path": None}, False, [{"path": "a.jpg"}])]
    [False, False, False, False, True]
    """
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, list | dict):
            waiting += item.values() if isinstance(item, dict) else item
        elif item is not False and says_something(item):
            return True
    return False


class NotRead:
    """Counts by name, such as `source` (a column) or `messages[].name`; rows that cannot be read do not count."""

    def __init__(self, counts: Mapping[str, tuple[int, str]] | None = None) -> None:
        self._counts = dict(counts or {})
        self._row: list[str] = []

    def add_keys(self, path: str, value: Mapping[str, Any], read: Container[str]) -> None:
        """Count the keys of an object that are not in `read`; `path` is its place, with a dot at the end."""
        for key, item in value.items():
            if key not in read and says_something(item):
                self._row.append(path + key)

    def add(self, name: str) -> None:
        """Count one value."""
        self._row.append(name)

    def end_row(self, location: str, is_read: bool) -> None:
        """End a row: its values count if it could be read."""
        if self._row and is_read:
            counts = Counter(name[:NAME_CHARS] for name in self._row)
            self.merge({name: (count, location) for name, count in counts.items()})
        self._row.clear()

    def merge(self, later: Mapping[str, tuple[int, str]]) -> None:
        """Add the counts of the rows that follow."""
        for name, (count, location) in later.items():
            known = name if name in self._counts or len(self._counts) < MAX_NAMES else OTHERS
            before, first = self._counts.get(known, (0, location))
            self._counts[known] = (before + count, first)

    @property
    def counts(self) -> dict[str, tuple[int, str]]:
        """Number of values, and location of the first, by name."""
        return self._counts

    def report(self) -> dict[str, dict[str, Any]]:
        """Return the counts as in `reports/`, sorted by name."""
        return {name: {"values": count, "first": first} for name, (count, first) in sorted(self._counts.items())}

    def line(self) -> str:
        """Return the most frequent names with their counts; empty if everything is read."""
        ranked = sorted(self._counts.items(), key=lambda item: (-item[1][0], item[0]))
        shown = [f"{repr(name)[1:-1]} ({count:,}, first {first})" for name, (count, first) in ranked[:SHOWN_NAMES]]
        return ", ".join(shown) + (f" and {len(ranked) - SHOWN_NAMES} more" if len(ranked) > SHOWN_NAMES else "")
