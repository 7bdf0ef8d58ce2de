"""Accounting: what is packed, what is lost and why, by split, source and domain; metadata.json and reports/pack.json.

Nothing is lost without a number: tokens in + tokens repeated + tokens that windows add = tokens packed + tokens
rejected. Windows add no trained tokens.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from sft.ledger import Ledger
from sft.packing.bins import lower_bound
from sft.packing.blend import COUNTS, describe_limits, mixture_by_domain, mixture_by_source
from sft.packing.licenses import count_licenses, licenses_of
from sft.packing.plan import BlendPlan, PackOrder
from sft.packing.sample_table import (
    DUPLICATE,
    EXCLUDED,
    FITS,
    IN_WINDOWS,
    NEAR_DUPLICATE,
    NO_SPACE,
    NOT_DRAWN,
    OVER_CAP,
    OVER_LENGTH,
    REASONS,
    UNTRAINED,
    ConversationTable,
    SampleTable,
)
from sft.packing.splits import SPLITS
from sft.params.data import Pack, Source

Int32s = npt.NDArray[np.int32]
Counts = dict[str, int]
Losses = dict[str, Counts]
Reports = Mapping[str, Mapping[str, Any]]

QUANTILES = (0.0, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)


def count_by_source(samples: SampleTable, conversations: ConversationTable, members: Int32s) -> dict[str, Counts]:
    """Return counts by source: distinct conversations, and samples and tokens as often as they are in `members`."""
    owner = samples.conversation[members]
    source, number = conversations.source[owner], len(conversations.sources)
    seen = np.zeros(len(conversations), np.bool_)
    seen[owner] = True
    columns = {
        "conversations": np.bincount(conversations.source[seen], minlength=number),
        "samples": np.bincount(source, minlength=number),
        "tokens": np.bincount(source, samples.kept[members], number),  # in float64: exact up to 2**53
        "trained_tokens": np.bincount(source, samples.trained_kept[members], number),
    }
    return {
        name: {unit: int(column[place]) for unit, column in columns.items()}
        for place, name in enumerate(conversations.sources)
    }


def count_losses(samples: SampleTable, rows: slice) -> Losses:
    """Return lost samples, tokens and trained tokens by reason; `cut` is what kept samples lost at their end."""
    reason = samples.reason[rows]
    before_plan = np.isin(reason, (OVER_LENGTH, UNTRAINED, EXCLUDED))
    units = {"tokens": (samples.length[rows], samples.kept[rows])}
    units["trained_tokens"] = samples.trained[rows], samples.trained_kept[rows]
    losses = {}
    for number, name in enumerate(REASONS):
        if number == IN_WINDOWS:
            continue  # they are cut as well
        if number == FITS:
            chosen = ~before_plan & (reason != NO_SPACE) & (samples.kept[rows] < samples.length[rows])
        else:
            chosen = reason == number
        is_part = number in (FITS, NO_SPACE)
        lost = {
            unit: (prepared - kept if is_part else np.where(before_plan, prepared, kept))[chosen].sum(dtype=np.int64)
            for unit, (prepared, kept) in units.items()
        }
        if chosen.any():
            losses[name] = {"samples": int(chosen.sum()), **{unit: int(count) for unit, count in lost.items()}}
    return dict(sorted(losses.items()))


def add_counts(counts: Iterable[Mapping[str, int]]) -> Counts:
    """Return the sum of some counts, unit by unit."""
    total: Counts = {}
    for each in counts:
        for unit, number in each.items():
            total[unit] = total.get(unit, 0) + number
    return total


def add_losses(losses: Iterable[Mapping[str, Counts]]) -> Losses:
    """Return the sum of what `count_losses` returned, reason by reason."""
    every = list(losses)
    return {
        reason: add_counts(each[reason] for each in every if reason in each)
        for reason in sorted({reason for each in every for reason in each})
    }


def length_quantiles(lengths: Int32s) -> Counts:
    """Return quantiles of lengths by the nearest rank; {} if there are no lengths.

    >>> length_quantiles(np.array([3, 1, 2]))["p50"]
    2
    """
    ordered = np.sort(lengths)
    last = len(ordered) - 1
    return {f"p{round(q * 100)}": int(ordered[round(q * last)]) for q in QUANTILES} if last >= 0 else {}


def count_split(
    order: PackOrder, samples: SampleTable, conversations: ConversationTable, pack_size: int
) -> dict[str, Any]:
    """Return the counts of a split, its packing efficiency, and its counts by source."""
    sources = count_by_source(samples, conversations, order.samples)
    total, packs = add_counts(sources.values()), len(order.packs) - 1
    return {
        **total,
        "packs": packs,
        "fewest_packs": lower_bound(samples.kept[order.samples], pack_size),
        "packing_efficiency": round(total["tokens"] / (packs * pack_size), 6) if packs else None,
        "sources": {source: sources[source] for source in sorted(sources) if sources[source]["samples"]},
    }


def balance_ledgers(
    samples: SampleTable, conversations: ConversationTable, plan: BlendPlan, rows_in: int
) -> tuple[Ledger, dict[str, Any]]:
    """Return the ledger of conversations, and the report's balance of samples, tokens and trained tokens.

    A conversation is rejected when none of its samples is packed, for the reason of the one that was dropped last.

    Raises:  AssertionError: a ledger does not balance.
    """
    order = np.concatenate([each.samples for each in plan.splits.values()])
    copies = np.concatenate([each.copies for each in plan.splits.values()])
    reason = np.full(len(conversations), FITS, np.uint8)
    for first, last in ((OVER_LENGTH, DUPLICATE - 1), (DUPLICATE, NOT_DRAWN)):  # the later step decides
        dropped = (first <= samples.reason) & (samples.reason <= last)
        reason[samples.conversation[dropped]] = samples.reason[dropped]
    packed = np.zeros(len(conversations), np.bool_)
    packed[samples.conversation[order]] = True
    by_reason = np.bincount(reason[~packed], minlength=len(REASONS))
    rejected = Counter({REASONS[number]: int(by_reason[number]) for number in np.flatnonzero(by_reason)})
    ledger = Ledger(rows_in, int(packed.sum()), rejected)

    losses = count_losses(samples, slice(None))
    lost_samples = Counter({name: counts["samples"] for name, counts in losses.items() if name != REASONS[FITS]})
    number = int((samples.reason != IN_WINDOWS).sum())  # windows count as samples
    sample_ledger = Ledger(number, int((copies == 0).sum()), lost_samples)
    sample_ledger.check("pack, samples")
    repeated = add_counts(count_by_source(samples, conversations, order[copies > 0]).values())
    windows = count_windows(samples)
    balance: dict[str, Any] = {"samples": sample_ledger.report(), "repeated": repeated, "windows": windows}
    is_sample = samples.window == 0
    for unit, prepared, kept in (
        ("tokens", samples.length, samples.kept),
        ("trained_tokens", samples.trained, samples.trained_kept),
    ):
        tokens_in, tokens_out = int(prepared[is_sample].sum(dtype=np.int64)), int(kept[order].sum(dtype=np.int64))
        lost = {name: counts[unit] for name, counts in losses.items()}
        added = windows["context_tokens"] if unit == "tokens" else 0
        Ledger(tokens_in + repeated[unit] + added, tokens_out, Counter(lost)).check(f"pack, {unit}")
        balance |= {unit: tokens_out, f"{unit}_in": tokens_in, f"{unit}_rejected": lost}
    return ledger, balance


def count_windows(samples: SampleTable) -> Counts:
    """Return the samples that are in windows, their windows, the most of a sample, and tokens and trained tokens.

    `context_tokens` are those that windows have besides the tokens of their sample counted once: repeated context.
    """
    windows, whole = samples.window > 0, samples.has_windows
    tokens = int(samples.length[windows].sum(dtype=np.int64))
    return {
        "samples": int(whole.sum()),
        "windows": int(windows.sum()),
        "most_windows": int(samples.window.max(initial=0)),
        "tokens": tokens,
        "trained_tokens": int(samples.trained[windows].sum(dtype=np.int64)),
        "context_tokens": tokens - int(samples.kept[whole].sum(dtype=np.int64)),
    }


def rejected_lines(
    samples: SampleTable, conversations: ConversationTable, plan: BlendPlan, pack_size: int
) -> Iterator[dict[str, str]]:
    """Yield a line for each rejected sample, by source and id; what was not drawn has no line.

    All windows of a sample are rejected together: they have one line.
    """
    rejected = ~np.isin(samples.reason, (FITS, IN_WINDOWS, OVER_CAP, NOT_DRAWN)) & (samples.window <= 1)
    for source, number in sorted((name, number) for number, name in enumerate(conversations.sources)):
        rows = np.flatnonzero(rejected & (conversations.source == number)[samples.conversation])
        rows = rows[np.lexsort((samples.number[rows], conversations.id_number[samples.conversation[rows]]))]
        ids = conversations.iter_ids(samples.conversation[rows])
        for conversation_id, row in zip(ids, rows.tolist(), strict=True):
            reason, length = samples.reason[row], samples.length[row]
            if reason == OVER_LENGTH:
                evidence = f"sample {samples.number[row]}: {length} tokens of {pack_size}"
            elif reason == NO_SPACE:
                left = samples.trained[row] - samples.trained_kept[row]
                evidence = (
                    f"sample {samples.number[row]}: {left} of {samples.trained[row]} trained tokens call a tool that "
                    f"does not fit {pack_size} tokens with the question"
                )
            elif reason == UNTRAINED:
                evidence = f"sample {samples.number[row]}: none of {length} tokens is trained"
            elif reason == EXCLUDED:
                stated = conversations.licenses[conversations.license[samples.conversation[row]]]
                evidence = f"sample {samples.number[row]}: license {stated or 'of the source'}"
            else:
                conversation = samples.conversation[row]
                kept = plan.kept_instead[conversation : conversation + 1]
                evidence = f"{conversations.ids_of(kept)[0]} of {conversations.sources_of(kept)[0]} is kept"
                if reason == NEAR_DUPLICATE:
                    evidence = f"{plan.similarity[conversations.id_number[conversation]]:.2f} similar: {evidence}"
            yield {"id": conversation_id, "source": source, "reason": REASONS[reason], "evidence": evidence}


def count_sources(
    samples: SampleTable,
    conversations: ConversationTable,
    plan: BlendPlan,
    sources: Mapping[str, Source],
    prep_reports: Reports,
    filter_reports: Reports,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what is packed and what was lost, by source and by domain."""
    order = np.concatenate([each.samples for each in plan.splits.values()])
    packed = count_by_source(samples, conversations, order)
    begins = np.searchsorted(conversations.source[samples.conversation], range(len(sources) + 1))
    lost = {name: count_losses(samples, slice(*begins[n : n + 2])) for n, name in enumerate(conversations.sources)}
    by_source = {
        name: {
            "domain": source.domain,
            "license": source.license,
            **packed[name],
            "lost": lost[name],
            "rejected_by_prep": prep_reports[name]["rejected"],
            "rejected_by_filter": filter_reports[name]["rejected"],
        }
        for name, source in sources.items()
    }
    by_domain: dict[str, Any] = {}
    for domain in sorted({source.domain for source in sources.values()}):
        names = [name for name, source in sources.items() if source.domain == domain]
        by_domain[domain] = {
            **add_counts(packed[name] for name in names),
            "lost": add_losses(lost[name] for name in names),
        }
    return by_source, by_domain


def make_metadata(
    samples: SampleTable,
    conversations: ConversationTable,
    plan: BlendPlan,
    sources: Mapping[str, Source],
    params: Pack,
    prep_reports: Reports,
    filter_reports: Reports,
) -> dict[str, Any]:
    """Return metadata.json without fingerprints, digests and `npy`: counts by split, source and domain, the mixture."""
    splits = {split: count_split(plan.splits[split], samples, conversations, params.pack_size) for split in SPLITS}
    by_source, by_domain = count_sources(samples, conversations, plan, sources, prep_reports, filter_reports)
    nothing = dict.fromkeys(COUNTS, 0)
    mixture = mixture_by_source(
        plan.available,
        {name: splits["training"]["sources"].get(name, nothing) for name in sources},
        {name: source.domain for name, source in sources.items()},
        plan.epochs,
        "trained_tokens" if params.unit == "tokens" else "samples",
    )
    has_shares = any(source.share for source in sources.values())
    return {
        "pack_size": params.pack_size,
        "pad_segments_to": params.pad_segments_to,
        "seed": params.seed,
        "sampled": any(report["sampled"] for report in filter_reports.values()),
        "splits": splits,
        "split_groups": plan.groups,
        "licenses": count_licenses(samples, licenses_of(conversations, sources), plan.splits["training"].samples),
        "windows": count_windows(samples),
        "sources": by_source,
        "domains": by_domain,
        "mixture": {
            "unit": params.unit,
            "limits": describe_limits(plan.epochs, params.max_epochs) if has_shares else None,
            "sources": {row["source"]: row for row in mixture},
            "domains": mixture_by_domain(mixture),
        },
    }


def make_report(
    metadata: Mapping[str, Any],
    balance: Mapping[str, Any],
    samples: SampleTable,
    conversations: ConversationTable,
    sources: Mapping[str, Source],
) -> dict[str, Any]:
    """Return reports/pack.json without the ledger of conversations."""
    source_of = conversations.source[samples.conversation]
    return {
        "origins": {name: source.origin for name, source in sorted(sources.items()) if source.origin},
        **balance,
        "splits": {
            split: {key: value for key, value in metadata["splits"][split].items() if key != "sources"}
            for split in SPLITS
        },
        "split_groups": metadata["split_groups"],
        "licenses": metadata["licenses"],
        "lost": {
            group: {name: counts["lost"] for name, counts in metadata[group].items()}
            for group in ("sources", "domains")
        },
        "length_quantiles": {
            source: length_quantiles(samples.length[(source_of == number) & (samples.window == 0)])
            for number, source in enumerate(conversations.sources)
        },
    }
