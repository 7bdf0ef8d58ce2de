"""Blend: how often a conversation of the training split is seen, so that the mixture is the one asked for.

A source asks for a share of the blend or for epochs. Both count trained tokens of the training split: the
loss is an average over them, so they are what a mixture means to the model. Held-out splits are as they
come, every conversation once.

epochs 2.5     every conversation twice, and a drawn half once more
epochs 0.3     a drawn part without replacement, 0.3 of the trained tokens
shares         for all sources or for none. The blend is the largest in which no source is used more than
               once: the scarcest source is used whole, of the others a part is drawn. Who wants the scarce
               one repeated says so in epochs.

Parts are drawn by keyed hash of the conversation, the same on every machine; a larger part of a source
contains its smaller ones. A part ends at a whole conversation, at the one that comes nearest.
"""

import math
from collections.abc import Mapping, Sequence

from sft.command import InputError
from sft.data.splits import keyed_hash

SHARES_TOLERANCE = 1e-6  # what adding decimal fractions in floating point costs, and a typo does not
SHARE_DIGITS = 6


def check_asked(shares: Mapping[str, float | None], epochs: Mapping[str, float | None]) -> None:
    """Raise unless all sources have a share and these add up to 1, or none has one.

    Raises:  InputError: names the sources, what was found, and what to do.
    """
    given = {source: share for source, share in shares.items() if share is not None}
    if not given:
        return
    if missing := sorted(shares.keys() - given.keys()):
        raise InputError(
            f"fetch.sources: {', '.join(sorted(given))} have a share, {', '.join(missing)} have none. "
            "Give one to every source, or to none and use epochs."
        )
    if both := sorted(source for source in given if epochs[source] is not None):
        raise InputError(f"fetch.sources: {', '.join(both)} have a share and epochs. Keep one of them.")
    total = math.fsum(given.values())
    if abs(total - 1) > SHARES_TOLERANCE:
        found = ", ".join(f"{source} {share}" for source, share in sorted(given.items()))
        raise InputError(f"fetch.sources: the shares add up to {total:.7g}, not to 1: {found}. Change one of them.")


def plan_epochs(
    trained_tokens: Mapping[str, int], shares: Mapping[str, float | None], epochs: Mapping[str, float | None]
) -> dict[str, float]:
    """Return how often each source is seen; shares are turned into epochs, at most 1.

    >>> plan_epochs({"a": 100, "b": 300}, {"a": 0.5, "b": 0.5}, {"a": None, "b": None})["b"]
    0.3333333333333333
    """
    check_asked(shares, epochs)
    asked = {source: share for source, share in shares.items() if share is not None}
    if not asked:
        return {source: 1.0 if (given := epochs[source]) is None else given for source in trained_tokens}
    if empty := sorted(source for source in asked if not trained_tokens[source]):
        raise InputError(
            f"fetch.sources: {', '.join(empty)} have a share, but nothing of them is left to train on "
            "(reports/pack.json of an earlier run, or pack.pack_size, says why). "
            "Raise pack.pack_size, or take them out of the blend."
        )
    whole = math.fsum(asked.values())
    total = min(trained_tokens[source] * whole / share for source, share in asked.items())
    return {source: min(1.0, share / whole * total / trained_tokens[source]) for source, share in asked.items()}


def plan_repeats(
    sizes: Mapping[str, Sequence[tuple[str, int]]],
    shares: Mapping[str, float | None],
    epochs: Mapping[str, float | None],
    seed: int,
) -> dict[str, dict[str, int]]:
    """Say how many times each conversation is seen: source -> conversation id -> times, 0 where not drawn.

    `sizes` has (conversation id, trained tokens) of the training split; shares and epochs are what
    params.yaml asks of each source, None where it asks nothing.

    >>> plan_repeats({"a": [("x", 10), ("y", 10)]}, {"a": None}, {"a": 2.0}, seed=1)
    {'a': {'x': 2, 'y': 2}}
    """
    totals = {source: sum(tokens for _, tokens in conversations) for source, conversations in sizes.items()}
    planned = plan_epochs(totals, shares, epochs)
    times = {}
    for source, conversations in sizes.items():
        whole = math.floor(planned[source])
        drawn = draw_part(conversations, (planned[source] - whole) * totals[source], seed, at_least_one=not whole)
        times[source] = {conversation: whole + (conversation in drawn) for conversation, _ in conversations}
    return times


def draw_part(
    conversations: Sequence[tuple[str, int]], trained_tokens: float, seed: int, at_least_one: bool
) -> set[str]:
    """Draw conversations whose trained tokens come nearest to a number; a small part may be none of them."""
    drawn: set[str] = set()
    missing = trained_tokens
    if missing <= 0:
        return drawn
    for conversation, tokens in sorted(conversations, key=lambda pair: keyed_hash(seed, f"blend:{pair[0]}")):
        if missing < tokens - missing and (drawn or not at_least_one):
            break
        drawn.add(conversation)
        missing -= tokens
        if missing <= 0:
            break
    return drawn


def describe_mixture(
    available: Mapping[str, int],
    packed: Mapping[str, Mapping[str, int]],
    domains: Mapping[str, str],
    epochs: Mapping[str, float],
) -> list[dict[str, str | int | float]]:
    """Compare, by source, the mixture that was asked for with the one that is in the training split.

    `available` has the trained tokens of one epoch, `packed` the tokens and trained tokens as written.
    """
    asked = {source: available[source] * epochs[source] for source in available}
    asked_total, packed_total = sum(asked.values()), sum(counts["trained_tokens"] for counts in packed.values())
    return [
        {
            "source": source,
            "domain": domains[source],
            "epochs": round(epochs[source], SHARE_DIGITS),
            "asked_share": _share(asked[source], asked_total),
            "tokens": packed[source]["tokens"],
            "trained_tokens": packed[source]["trained_tokens"],
            "achieved_share": _share(packed[source]["trained_tokens"], packed_total),
        }
        for source in sorted(available)
    ]


def mixture_by_domain(rows: Sequence[Mapping[str, str | int | float]]) -> dict[str, dict[str, int | float]]:
    """Add up the mixture of the sources of each domain."""
    domains: dict[str, dict[str, int | float]] = {}
    for row in rows:
        total = domains.setdefault(str(row["domain"]), {})
        for name in ("asked_share", "tokens", "trained_tokens", "achieved_share"):
            value = row[name]
            if not isinstance(value, str):
                total[name] = round(total.get(name, 0) + value, SHARE_DIGITS)
    return domains


def _share(part: float, total: float) -> float:
    return round(part / total, SHARE_DIGITS) if total else 0.0
