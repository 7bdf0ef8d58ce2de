"""Flags that say whether a turn is trained: read exactly, or the row is rejected with the name of the flag."""

from collections.abc import Mapping
from typing import Any

from sft.conversation import Rejection, excerpt
from sft.formats.spellings import AMBIGUOUS_FLAG, FLAG_LISTS, FLAG_TEXTS, NEVER_STATISTICS, OTHER_FLAG_TEXTS

UNCLEAR = "unclear-train-flag"


class UnfitRowError(ValueError):
    """A row that cannot be a conversation; `rejection` says why."""

    def __init__(self, reason: str, evidence: str) -> None:
        super().__init__(f"{reason}: {evidence}")
        self.rejection = Rejection(reason, evidence)


def is_trained(message: Mapping[str, Any]) -> bool | None:
    """Return what the flags of a message say; None if it has none.

    Raises:  UnfitRowError: a flag that is neither true nor false (a weight of 0.5), or two that contradict.
    """
    found = {name: read_flag(name, message[name]) for name in message if name in FLAG_LISTS}
    given = {name: flag for name, flag in found.items() if flag is not None}
    if message.get(AMBIGUOUS_FLAG) is not None:
        name, value = AMBIGUOUS_FLAG, message[AMBIGUOUS_FLAG]
        raise UnfitRowError(
            UNCLEAR, f"{name} is {excerpt(value)}, which some mean as trained and some as not; use loss"
        )
    if len(set(given.values())) > 1:
        raise UnfitRowError(UNCLEAR, " but ".join(f"{name} is {excerpt(message[name])}" for name in sorted(given)))
    return next(iter(given.values()), None)


def read_flag(name: str, value: Any) -> bool | None:
    """Return whether a flag says that a turn is trained: true or false, 1 or 0, also as text; None for null.

    Raises:  UnfitRowError: another value.
    """
    flag = FLAG_TEXTS.get(value.strip().lower()) if type(value) is str else bool(value) if value in (0, 1) else None
    if flag is None and value is not None and value != "":
        raise UnfitRowError(UNCLEAR, f"{name}: expected true or false, 1 or 0, found {excerpt(value)}")
    return flag if flag is None else flag == FLAG_LISTS[name]


def is_statistic(name: str, value: Any) -> bool:
    """Return whether a value that is no flag is a number that many rows have under this name, as a loss of 2.31."""
    try:
        read_flag(name, value)
    except UnfitRowError:
        is_text = type(value) is str and value.strip().lower() in OTHER_FLAG_TEXTS
        return name not in NEVER_STATISTICS and not is_text
    return False
