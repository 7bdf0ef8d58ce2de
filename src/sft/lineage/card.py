"""The model card (README.md) of a trained model, ready for a hub.

lineage.json and reports  ->  front matter by huggingface_hub, and the text of card.md.j2

Says what the model is, its data with licenses, params, evaluation before and after, limits, how to load it, and the
lineage key. Holds nothing about the machine but its processor or GPUs, and no secrets: the locations in reports have
none. Same values, same bytes.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from sft.metric_labels import RULES, SHARES
from sft.params.base import license_names

TEMPLATE = Path(__file__).with_name("card.md.j2")
# Identifiers of licenses on the hub; a license with another name is "other" there.
HUB_LICENSES = {
    *("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "gpl-3.0", "odc-by"),
    *("cc0-1.0", "cc-by-4.0", "cc-by-nc-4.0", "cc-by-sa-4.0"),
}
PARAMS = {
    "learning rate": ("optimizer", "lr"),
    "schedule": ("scheduler", "lr_decay_style"),
    "warm-up steps": ("scheduler", "lr_warmup_iters"),
    "weight decay": ("optimizer", "weight_decay"),
    "steps": ("train", "train_iters"),
    "epochs": ("train", "epochs"),
    "packs per step": ("train", "global_batch_size"),
    "precision": ("mixed_precision", "name"),
    "seed": ("rng", "seed"),
}
METRICS = {
    "loss": "held-out loss",
    "perplexity": "perplexity",
    **{name: f"{'tool calls' if name.startswith('tool_') else 'answers'}: {label}" for name, label in SHARES.items()},
}
# Column of the table of sources -> key of a source in lineage.json.
SOURCE_COLUMNS = {
    "source": "name",
    "domain": "domain",
    "license": "license",
    "rows": "rows",
    "kept by the filter": "kept",
    "packed conversations": "conversations",
    "trained tokens": "trained_tokens",
    "origin": "origin",
    "location": "uri",
    "revision or sha256": "pin",
}
Facts = Mapping[str, Any]


def render(lineage: Facts, read: Callable[[str], Any], evaluation: Facts | None = None) -> str:
    """Return the card.

    `lineage` is lineage.json; `read` returns the value of a report by its path ({} if it is missing); `evaluation` is
    reports/eval.json, known only after training.
    """
    sources: dict[str, dict[str, Any]] = lineage.get("sources", {})
    base, packed = read("reports/fetch/model.json"), read("reports/pack.json")
    of_data = packed.get("licenses") or [source.get("license") for source in sources.values()]
    licenses = {name for text in (*of_data, base.get("license")) for name in license_names(str(text or "unknown"))}
    on_benchmarks = [name for name, source in sources.items() if "benchmark" in str(source.get("origin", "")).lower()]
    rows = [
        {**source, "name": name, "pin": source.get("revision") or source.get("sha256")}
        for name, source in sources.items()
    ]
    card = ModelCard.from_template(
        _front_matter(lineage, sources, base, sorted(licenses), evaluation or {}),
        template_path=str(TEMPLATE),
        base=_base(base),
        sources=len(sources),
        licenses=", ".join(sorted(licenses)),
        data=_table(SOURCE_COLUMNS, ([row.get(key) for key in SOURCE_COLUMNS.values()] for row in rows)),
        training=_table(("what", "value"), _training(lineage, packed)),
        evaluation=evaluation and _table(("measure", "before", "after"), _measured(evaluation)),
        benchmarks=", ".join(f"`{_cell(name)}`" for name in on_benchmarks),
        lineage=_table(("what", "digest"), _digests(lineage)),
    )
    return str(card).rstrip() + "\n"


def _front_matter(
    lineage: Facts, sources: Mapping[str, Facts], base: Facts, licenses: list[str], evaluation: Facts
) -> ModelCardData:
    on_hub = licenses[0].lower().replace("odc-by-1.0", "odc-by") if len(licenses) == 1 else ""
    after = {name: value for name in METRICS if (value := evaluation.get("after", {}).get(name)) is not None}
    domains = {source["domain"] for source in sources.values() if source.get("domain")}
    return ModelCardData(
        license=on_hub if on_hub in HUB_LICENSES else "other",
        license_name=None if on_hub in HUB_LICENSES else " and ".join(licenses),
        base_model=_hub_name(base.get("uri", "")) or None,
        datasets=sorted({name for source in sources.values() if (name := _hub_name(source.get("uri", "")))}) or None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["sft", "megatron-bridge", f"lineage-{lineage['lineage_key']}", *sorted(domains)],
        model_name=f"nano3-sft-{lineage['lineage_key']}" if after else None,
        eval_results=[
            EvalResult("text-generation", "held-out", "Held-out conversations", name, value, metric_name=METRICS[name])
            for name, value in after.items()
        ]
        or None,
    )


def _hub_name(uri: str) -> str:
    """Return owner/name of an address on the hub, "" of any other.

    >>> _hub_name("hf://models/owner/name@" + "a" * 40 + "/file.json"), _hub_name("file://x")
    ('owner/name', '')
    """
    match = re.match(r"hf://(?:datasets/|models/)?([\w.-]+/[\w.-]+)", uri, re.ASCII)
    return match[1] if match else ""


def _base(base: Facts) -> str:
    if "uri" not in base:
        return "a base model (see lineage.json)"
    address = " ".join(base["uri"].replace("`", "'").split())
    return f"`{address}`" + (f" ({base['parameters']:,} parameters)" if "parameters" in base else "")


def _training(lineage: Facts, pack: Facts) -> Iterable[list[Any]]:
    for name, (section, key) in PARAMS.items():
        value = lineage["params"].get(section, {}).get(key)
        if value is None and section == "train":  # of steps and epochs, the one that is not set
            continue
        yield [name, str(value) if isinstance(value, int) else value]  # as in params.yaml: a seed is no count
    splits, hardware = pack.get("splits", {}), lineage.get("hardware", {})
    yield from ([f"packs: {split}", counts["packs"]] for split, counts in splits.items())
    if "training" in splits:
        yield ["trained tokens in them", splits["training"]["trained_tokens"]]
    if (windows := pack.get("windows", {})).get("windows"):
        yield [f"windows of {windows['samples']:,} samples longer than a pack", windows["windows"]]
    for name, counts in pack.get("licenses", {}).items():
        yield [f"trained tokens under {name}", counts["trained_tokens"]]
    for when, certificate in (lineage.get("parity") or {}).items():
        if certificate and "tolerance" in certificate:
            yield [f"Megatron = transformers at {when}", f"logits within {certificate['tolerance']:g} of the largest"]
        elif certificate:
            yield [f"Megatron = transformers at {when}", f"not measured: {certificate['skipped']}"]
    gpus = [f"{count} {name}" for name, count in Counter(hardware.get("gpus", [])).items()]
    driver = [f"driver {hardware['driver']}"] if hardware.get("driver") else []
    yield ["trained on", ", ".join([*gpus, *driver]) or hardware.get("processor")]


def _measured(evaluation: Facts) -> Iterable[list[Any]]:
    before, after = evaluation["before"], evaluation["after"]
    yield from ([label, before.get(name), after.get(name)] for name, label in METRICS.items() if name in after)
    for name, label in RULES.items():
        if (share := after.get(f"rule_{name}")) is not None:
            yield [f"answers: {label}", before[f"rule_{name}"], share]
    for domain, loss in after.get("loss_by_domain", {}).items():
        yield [f"held-out loss: {domain}", before["loss_by_domain"].get(domain), loss]
    for task, measured in evaluation.get("tasks", {}).items():
        found = f"{measured['contaminated']} of {measured['items']} items are in the training data"
        found += f", {cut} are cut at the model's context" if (cut := measured.get("cut")) else ""
        for metric, values in measured["metrics"].items():
            yield [f"benchmark {task}: {metric} ({found})", values["before"], values["after"]]


def _digests(lineage: Facts) -> Iterable[list[Any]]:
    changed = " with uncommitted changes, kept as a patch" if lineage["git_dirty"] else ""
    yield ["lineage key", lineage["lineage_key"]]
    yield ["code", f"{lineage['git_commit']}{changed}"]
    yield ["packed data", f"sha256:{lineage['data']}"]
    yield ["base model", f"sha256:{lineage['base_model']}"]


def _table(header: Iterable[str], rows: Iterable[list[Any]]) -> str:
    names = list(header)
    lines = [names, ["---"] * len(names), *([_cell(value) for value in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value: Any) -> str:
    """Return a value as the text of a cell: it cannot end the cell, nor become markup or a link."""
    if value in (None, ""):
        return "-"
    if isinstance(value, int | float):
        return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"
    return re.sub(r"([|`>\[\]*_\\])", r"\\\1", " ".join(str(value).split())).replace("<", "&lt;")
