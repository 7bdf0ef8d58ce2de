"""pack: samples of all sources -> packed sequences, split for training, validation and test.

data/prepared/<source>/*.parquet, models/base (tokenizer)
    ->  data/packed/{training,validation,test}/*.parquet   input_ids, loss_mask (shifted), seq_start_id
        data/packed/{training,validation,test}.npy         the same rows, for sets that fit in memory
        data/packed/metadata.json                          counts, fingerprints, digests, seeds
        data/packed/chat_template.jinja                    the template that all sources were rendered with
        reports/pack.json                                  the ledger

Held out by hash of the conversation, per source; packed best-fit over the whole split; packs in a seeded
order. A sample longer than a pack follows `pack.over_length` and is counted by source.
"""

import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sft.command import InputError, run_stage, say
from sft.data.bins import lower_bound, plan_bins
from sft.data.packs import build_pack, pack_fault, padded_length, write_npy
from sft.data.splits import SPLITS, keyed_hash, split_conversations
from sft.files import file_digest, folder_digest, publish_folder, read_json, write_json
from sft.ledger import Ledger
from sft.params import Pack, load

BASE = Path("models/base")
PREPARED = Path("data/prepared")
PACKED = Path("data/packed")


@dataclass(frozen=True)
class SplitPlan:
    """The packs of one split, before any is built."""

    samples: list[dict[str, Any]]
    bins: list[list[int]]
    """Indices into samples."""


def read_samples(sources: list[str]) -> list[dict[str, Any]]:
    """Read the samples of all sources, in order, each with its source."""
    from sft.data.shards import read_rows

    samples: list[dict[str, Any]] = []
    for source in sources:
        report = Path(f"reports/prep/{source}.json")
        if not (PREPARED / source).is_dir() or not report.exists():
            raise InputError(f"{PREPARED / source}: not found. Run the prep stage first: dvc repro prep@{source}")
        before = len(samples)
        samples += [{**row, "source": source} for row in read_rows(PREPARED / source)]
        expected = read_json(report)["samples"]
        if len(samples) - before != expected:
            raise InputError(
                f"{PREPARED / source}: {len(samples) - before} samples, but {report} says {expected}. "
                f"The data was changed between stages: dvc repro --force prep@{source}"
            )
    return samples


def fingerprints(sources: list[str]) -> dict[str, str]:
    """Return the digests of template and tokenizer that every source was prepared with."""
    found = {source: read_json(Path(f"reports/prep/{source}.json")) for source in sources}
    prints = {}
    for name in ("template_sha256", "tokenizer_sha256"):
        values = {report[name] for report in found.values()}
        if len(values) > 1:
            raise InputError(
                f"reports/prep: the sources were prepared with different {name.removesuffix('_sha256')}s. "
                "Prepare them alike: dvc repro prep"
            )
        prints[name] = values.pop()
    if prints["tokenizer_sha256"] != file_digest(BASE / "tokenizer.json"):
        raise InputError(f"{BASE}: another tokenizer than the data was prepared with. Run: dvc repro prep")
    return prints


def keep_fitting(samples: list[dict[str, Any]], params: Pack) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Part the samples into those that fit a pack and those that are longer, by `pack.over_length`."""
    fitting: list[dict[str, Any]] = []
    longer: list[dict[str, Any]] = []
    for sample in samples:
        fits = padded_length(len(sample["ids"]), params.pad_segments_to) <= params.pack_size
        (fitting if fits else longer).append(sample)
    if longer and params.over_length == "error":
        worst = max(longer, key=lambda sample: len(sample["ids"]))
        raise InputError(
            f"{len(longer)} samples are longer than pack.pack_size {params.pack_size} tokens; the longest has "
            f"{len(worst['ids'])} ({worst['source']}, conversation {worst['conversation_id']}). "
            "Raise pack.pack_size, or set pack.over_length to drop: they are counted by source."
        )
    return fitting, longer


def plan(samples: list[dict[str, Any]], params: Pack) -> dict[str, SplitPlan]:
    """Choose split, bin and order of every sample; depends on ids and lengths, not on the order of reading."""
    conversations: dict[str, list[str]] = {}
    for sample in samples:
        conversations.setdefault(sample["source"], []).append(sample["conversation_id"])
    splits = split_conversations(conversations, params.validation, params.test, params.seed)
    plans = {}
    for split in SPLITS:
        own = [sample for sample in samples if splits[sample["conversation_id"]] == split]
        own.sort(key=lambda s: keyed_hash(params.seed, f"{s['source']}:{s['conversation_id']}:{s['sample']}"))
        lengths = [padded_length(len(sample["ids"]), params.pad_segments_to) for sample in own]
        bins = plan_bins(lengths, params.pack_size)
        bins.sort(key=lambda members: keyed_hash(params.seed, f"pack:{min(members)}"))
        plans[split] = SplitPlan(own, [sorted(members) for members in bins])
    return plans


def write_split(folder: Path, split: str, plan: SplitPlan, params: Pack, ids: dict[str, int], npy: bool) -> None:
    """Build, check and write the packs of one split."""
    from sft.data.shards import PACKS, ShardWriter

    packs = []
    with ShardWriter(folder / split, "packs", PACKS) as shards:
        for members in plan.bins:
            pack = build_pack([plan.samples[i] for i in members], params.pad_segments_to, ids["pad"])
            if fault := pack_fault(pack, params.pack_size, ids["stop"]):
                raise InputError(f"{split}: pack with conversation {pack['conversation_id'][0]}: {fault}")
            shards.write(pack)
            if npy:
                packs.append(pack)
    if npy:
        write_npy(folder / f"{split}.npy", packs)


def count(samples: list[dict[str, Any]]) -> dict[str, int]:
    """Count conversations, samples, tokens and trained tokens."""
    return {
        "conversations": len({(sample["source"], sample["conversation_id"]) for sample in samples}),
        "samples": len(samples),
        "tokens": sum(len(sample["ids"]) for sample in samples),
        "trained_tokens": sum(sum(sample["mask"]) for sample in samples),
    }


def describe_split(plan: SplitPlan, params: Pack) -> dict[str, Any]:
    """Return the counts of one split, its efficiency, and its counts by source."""
    tokens = count(plan.samples)["tokens"]
    room = len(plan.bins) * params.pack_size
    names = sorted({sample["source"] for sample in plan.samples})
    return {
        **count(plan.samples),
        "packs": len(plan.bins),
        "fewest_packs": lower_bound([len(sample["ids"]) for sample in plan.samples], params.pack_size),
        "packing_efficiency": round(tokens / room, 6) if room else None,
        "sources": {name: count([s for s in plan.samples if s["source"] == name]) for name in names},
    }


def token_ids() -> dict[str, int]:
    """Return the ids of the padding and of the stop token of models/base."""
    from sft.data.chat import token_id

    stop = token_id(BASE, "eos_token")
    return {"stop": stop, "pad": token_id(BASE, "pad_token", default=stop)}


def account(samples: list[dict[str, Any]], longer: list[dict[str, Any]], prep_rows: int) -> tuple[Ledger, Ledger]:
    """Return the ledgers of conversations and of samples."""
    kept = {(s["source"], s["conversation_id"]) for s in samples}
    lost = {(s["source"], s["conversation_id"]) for s in longer} - kept
    conversations = Ledger(prep_rows, len(kept), Counter({"over-length": len(lost)} if lost else {}))
    of_samples = Ledger(
        len(samples) + len(longer), len(samples), Counter({"over-length": len(longer)} if longer else {})
    )
    conversations.check("pack, conversations")
    of_samples.check("pack, samples")
    return conversations, of_samples


def main() -> None:
    """Pack the blend."""
    params, fetch = load("pack", "fetch")
    sources = sorted(fetch.sources)
    everything = read_samples(sources)
    prints, ids = fingerprints(sources), token_ids()
    reports = {source: read_json(Path(f"reports/prep/{source}.json")) for source in sources}
    samples, longer = keep_fitting(everything, params)
    if not samples:
        raise InputError(f"{PREPARED}: no sample fits pack.pack_size {params.pack_size} tokens. Raise it.")
    conversations, of_samples = account(samples, longer, sum(report["rows_out"] for report in reports.values()))
    plans = plan(samples, params)
    npy = sum(len(sample["ids"]) for sample in samples) <= params.npy_max_tokens

    with publish_folder(PACKED) as folder:
        shutil.copyfile(PREPARED / sources[0] / "chat_template.jinja", folder / "chat_template.jinja")
        for split in SPLITS:
            write_split(folder, split, plans[split], params, ids, npy)
        metadata = {
            "pack_size": params.pack_size,
            "pad_segments_to": params.pad_segments_to,
            "seed": params.seed,
            "sampled": any(read_json(Path(f"reports/filter/{source}.json"))["sampled"] for source in sources),
            "npy": npy,
            **prints,
            "splits": {split: describe_split(plans[split], params) for split in SPLITS},
            "sources": {
                source: {
                    "domain": fetch.sources[source].domain,
                    "license": fetch.sources[source].license,
                    **count([s for s in samples if s["source"] == source]),
                    "over_length": count([s for s in longer if s["source"] == source]),
                    "rejected_by_prep": reports[source]["rejected"],
                    "rejected_by_filter": read_json(Path(f"reports/filter/{source}.json"))["rejected"],
                }
                for source in sources
            },
            "domains": {
                domain: count([s for s in samples if fetch.sources[s["source"]].domain == domain])
                for domain in sorted({fetch.sources[source].domain for source in sources})
            },
            "digests": {split: folder_digest(folder / split) for split in SPLITS},
        }
        write_json(folder / "metadata.json", metadata)
    total = count(samples)
    lost = count(longer)
    report = conversations.write(
        Path("reports/pack.json"),
        samples=of_samples.report(),
        tokens=total["tokens"],
        trained_tokens=total["trained_tokens"],
        tokens_in=total["tokens"] + lost["tokens"],
        tokens_rejected={"over-length": lost["tokens"]} if longer else {},
        splits={split: {k: v for k, v in metadata["splits"][split].items() if k != "sources"} for split in SPLITS},
    )
    for split, figures in report["splits"].items():
        efficiency = figures["packing_efficiency"]
        say(
            f"[bold]{split}[/]: {figures['conversations']} conversations, {figures['packs']} packs of "
            f"{params.pack_size}, {'-' if efficiency is None else format(efficiency, '.2%')} full"
        )
    if longer:
        by_source = ", ".join(f"{n} {name}" for name, n in sorted(Counter(s["source"] for s in longer).items()))
        say(f"[yellow]over-length[/], dropped: {len(longer)} samples, {lost['tokens']:,} tokens ({by_source})")


if __name__ == "__main__":
    run_stage(main, __doc__)
