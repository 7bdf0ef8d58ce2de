"""What the pack stage prints: packs, limits of the blend, what is held out, what is lost and why.

reports/pack.json, data/packed/metadata.json  ->  the terminal
"""

from collections.abc import Mapping
from typing import Any

from rich.markup import escape

from sft.cli import echo
from sft.packing.splits import SPLITS

MOST_HELD_OUT = 2  # times the conversations asked for; if more are held out, the output says what to do


def print_summary(report: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
    """Print how full the packs are, what limits the blend, what is held out and what was lost."""
    if limits := metadata["mixture"]["limits"]:
        echo(f"[bold]blend[/]: {limits}")
    for split, counts in report["splits"].items():
        efficiency = counts["packing_efficiency"]
        echo(
            f"[bold]{split}[/]: {counts['conversations']} conversations, {counts['packs']} packs of "
            f"{metadata['pack_size']}, {'-' if efficiency is None else format(efficiency, '.2%')} full"
        )
    trained = max(1, sum(counts["trained_tokens"] for counts in report["licenses"].values()))
    shares = (f"{name} {counts['trained_tokens'] / trained:.1%}" for name, counts in report["licenses"].items())
    echo(f"[bold]licenses[/] of the trained tokens: {'; '.join(map(escape, shares))}")
    for source, groups in report["split_groups"].items():
        print_held_out(source, groups)
    if (windows := report["windows"])["windows"]:
        echo(
            f"[bold]windows[/]: {windows['windows']} of {windows['samples']} samples longer than a pack, with "
            f"{windows['trained_tokens']:,} trained tokens, each in one window, and {windows['context_tokens']:,} "
            "tokens of repeated context"
        )
    by_reason: dict[str, list[str]] = {}
    for source, lost in report["lost"]["sources"].items():
        for reason, counts in lost.items():
            by_reason.setdefault(reason, []).append(f"{counts['samples']} {source}")
    for reason, sources in sorted(by_reason.items()):
        tokens = report["tokens_rejected"][reason]
        echo(f"[yellow]{reason}[/]: {tokens:,} tokens, samples by source: {', '.join(sources)}")
    if report["repeated"]["samples"]:
        echo(f"repeated: {report['repeated']['samples']} samples, {report['repeated']['tokens']:,} tokens")


def print_held_out(source: str, groups: Mapping[str, int]) -> None:
    """Print how many conversations of a source are held out, if groups are too large for the share asked for."""
    if not groups["too_large"]:
        return
    held = ", ".join(
        f"{groups[name]} of {groups['conversations']} conversations ({groups[name] / groups['conversations']:.1%}) for "
        f"{name} where {groups[f'{name}_asked']} were asked for"
        for name in SPLITS[1:]
    )
    echo(
        f"{source}: conversations with the same first user message or group are in one split: {groups['too_large']} of "
        f"{groups['groups']} groups exceed the held-out share, the largest with {groups['largest']}. Held out: {held}"
    )
    if any(groups[name] > max(1, MOST_HELD_OUT * groups[f"{name}_asked"]) for name in SPLITS[1:]):
        echo(
            f"[yellow]{source}: more than {MOST_HELD_OUT} times the held-out share is not trained.[/] Name a field "
            "with more values, with read.fields.group (docs/your-own-data.md), or add conversations."
        )
