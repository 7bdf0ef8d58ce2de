"""card: the model card (README.md) of a trained model, ready for a hub. Pure: lineage and reports in, text out.

Front matter as hubs read it (licence, base model, datasets, tags), then what the model is, the data with its
licences, params, evaluation before and after, what it is for and what not, how to load it, and the lineage key.
Nothing of the machine, and no secret: locations come from reports, which hold none. Same inputs, same bytes.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

# SPDX identifiers, as sources name them, to those of a hub; anything else is "other".
HUB_LICENSES = {
    "Apache-2.0": "apache-2.0",
    "MIT": "mit",
    "BSD-3-Clause": "bsd-3-clause",
    "BSD-2-Clause": "bsd-2-clause",
    "CC-BY-4.0": "cc-by-4.0",
    "CC-BY-SA-4.0": "cc-by-sa-4.0",
    "CC-BY-NC-4.0": "cc-by-nc-4.0",
    "CC0-1.0": "cc0-1.0",
    "GPL-3.0": "gpl-3.0",
    "ODC-BY-1.0": "odc-by",
}
TRAINED = {
    "learning rate": ("optimizer", "lr"),
    "schedule": ("scheduler", "lr_decay_style"),
    "warm-up steps": ("scheduler", "lr_warmup_iters"),
    "weight decay": ("optimizer", "weight_decay"),
    "steps": ("train", "train_iters"),
    "packs in a step": ("train", "global_batch_size"),
    "precision": ("mixed_precision", "name"),
    "seed": ("rng", "seed"),
}
MEASURED = {
    "loss": "held-out loss",
    "perplexity": "perplexity",
    "tool_call_well_formed": "tool calls: well-formed",
    "tool_call_known_function": "tool calls: known function",
    "tool_call_fits": "tool calls: arguments fit",
    "tool_call_exact": "tool calls: exact",
    "stopped": "answers that stop by themselves",
}
LOADING = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
messages = [{"role": "user", "content": "What is 2 + 2?"}]
prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
print(tokenizer.decode(model.generate(**prompt, max_new_tokens=100)[0]))
```

`folder` is the folder of this file. The chat template is the one that the model was trained with."""


def render(lineage: Mapping[str, Any], read: Callable[[str], Any], evaluation: Mapping[str, Any] | None = None) -> str:
    """Render the card.

    `lineage` is what stands in lineage.json; `read` returns the value of a report by its path ({} where it is
    missing); `evaluation` is reports/eval.json, known only after training.
    """
    sources: dict[str, dict[str, Any]] = lineage["sources"] if "sources" in lineage else {}
    base, pack = read("reports/fetch/model.json"), read("reports/pack.json")
    parts = [
        _front_matter(lineage, sources, base),
        "# A fine-tuned chat model",
        f"Supervised fine-tuning of {_base_name(base)} on {len(sources)} sources of conversations, with "
        "Megatron-Bridge. `lineage.json` beside this file leads back to data, code, params and packages.",
        "## Data\n\n" + _data(sources),
        f"Licences of the data and of the base model hold for what they cover: {', '.join(_licenses(sources, base))}.",
        "## Training\n\n" + _training(lineage, pack),
        "## Evaluation\n\n" + _evaluation(evaluation or {}),
        "## Use and limits\n\n" + _limits(sources),
        "## Loading\n\n" + LOADING,
        "## Lineage\n\n" + _lineage(lineage),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(lineage: Mapping[str, Any], sources: Mapping[str, Mapping[str, Any]], base: Mapping[str, Any]) -> str:
    """YAML, written as JSON scalars: every JSON scalar is one of YAML."""
    named = _licenses(sources, base)
    license_id = HUB_LICENSES.get(named[0], "other") if len(named) == 1 else "other"
    lines = [f"license: {license_id}"]
    if license_id == "other":
        lines.append(f"license_name: {json.dumps(' and '.join(named) or 'unknown', ensure_ascii=False)}")
    if hub := _hub_name(base.get("uri", "")):
        lines.append(f"base_model: {json.dumps(hub)}")
    datasets = sorted({hub for source in sources.values() if (hub := _hub_name(source.get("uri", "")))})
    if datasets:
        lines += ["datasets:", *(f"- {json.dumps(name)}" for name in datasets)]
    domains = sorted({source["domain"] for source in sources.values() if source.get("domain")})
    tags = ["sft", "megatron-bridge", f"lineage-{lineage['lineage_key']}", *domains]
    lines += [
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "tags:",
        *(f"- {json.dumps(t)}" for t in tags),
    ]
    return "\n".join(["---", *lines, "---"])


def _licenses(sources: Mapping[str, Mapping[str, Any]], base: Mapping[str, Any]) -> list[str]:
    """Return every licence that is named, each once, in order of name; "A, B and C" is three."""
    texts = [str(told.get("license") or "unknown") for told in (*sources.values(), base)]
    return sorted({name.strip() for text in texts for name in re.split(r",| and ", text) if name.strip()})


def _hub_name(uri: str) -> str:
    """Return owner/name of a hub's location, "" of any other.

    >>> _hub_name("hf://models/owner/name/file.json"), _hub_name("file://x")
    ('owner/name', '')
    """
    found = re.match(r"hf://(?:datasets/|models/)?([\w.-]+/[\w.-]+)", uri, re.ASCII)
    return found[1] if found else ""


def _base_name(base: Mapping[str, Any]) -> str:
    parameters = f" ({base['parameters']:,} parameters)" if "parameters" in base else ""
    return f"{_code(base['uri'])}{parameters}" if "uri" in base else "a base model (see lineage.json)"


def _data(sources: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        [
            name,
            told.get("domain"),
            told.get("license"),
            told.get("rows"),
            told.get("kept"),
            told.get("conversations"),
            told.get("trained_tokens"),
            told.get("origin"),
            told.get("uri"),
            told.get("revision") or told.get("sha256"),
        ]
        for name, told in sources.items()
    ]
    header = ["source", "domain", "licence", "rows", "kept by the filter", "packed conversations", "trained tokens"]
    return _table([*header, "origin", "location", "revision or sha256"], rows)


def _training(lineage: Mapping[str, Any], pack: Mapping[str, Any]) -> str:
    params = lineage["params"]
    rows = [[name, _param(params, section, key)] for name, (section, key) in TRAINED.items()]
    splits = pack.get("splits", {})
    rows += [[f"packs: {split}", counts["packs"]] for split, counts in splits.items()]
    if "training" in splits:
        rows.append(["trained tokens in them", splits["training"]["trained_tokens"]])
    hardware = lineage.get("hardware", {})
    rows.append(["trained on", ", ".join(hardware.get("gpus", [])) or hardware.get("processor")])
    return _table(["what", "value"], rows)


def _param(params: Mapping[str, Any], section: str, key: str) -> Any:
    """Return a param as it stands in params.yaml: a seed is no count."""
    value = params.get(section, {}).get(key)
    return str(value) if isinstance(value, int) else value


def _evaluation(evaluation: Mapping[str, Any]) -> str:
    if not evaluation:
        return (
            "Held-out loss and behaviour, before and after training, are measured after this file is written: "
            "`reports/eval.json` and `reports/report.html` of the project; `make lineage CARD=README.md` writes this "
            "card with them."
        )
    before, after = evaluation["before"], evaluation["after"]
    rows = [[label, before.get(name), after.get(name)] for name, label in MEASURED.items() if name in after]
    domains = after.get("loss_by_domain", {})
    rows += [[f"held-out loss: {name}", before["loss_by_domain"].get(name), loss] for name, loss in domains.items()]
    return "On held-out conversations of the same sources.\n\n" + _table(["measure", "before", "after"], rows)


def _limits(sources: Mapping[str, Mapping[str, Any]]) -> str:
    benchmarks = [name for name, told in sources.items() if "benchmark" in str(told.get("origin", "")).lower()]
    warning = (
        f"\n- **Trained on benchmarks**: {', '.join(f'`{_cell(name)}`' for name in benchmarks)} (origin above). Do not "
        "report this model on them, or on anything derived from them."
        if benchmarks
        else ""
    )
    return (
        "- For research on fine-tuning, and as a start for reinforcement learning; not for use without further "
        "evaluation and safeguards: nothing was done here for safety." + warning + "\n"
        "- The evaluation above is small and of the same sources; it shows what training changed, not how the model "
        "does elsewhere.\n- It has the faults and the languages of its base model and of the data above."
    )


def _lineage(lineage: Mapping[str, Any]) -> str:
    changed = " with uncommitted changes, kept as a patch" if lineage["git_dirty"] else ""
    rows = [
        ["lineage key", lineage["lineage_key"]],
        ["code", f"{lineage['git_commit']}{changed}"],
        ["packed data", f"sha256:{lineage['data']}"],
        ["base model", f"sha256:{lineage['base_model']}"],
    ]
    return _table(["what", "digest"], rows)


def _table(header: list[str], rows: list[list[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(value) for value in line) + " |" for line in lines)


def _cell(value: Any) -> str:
    """Show a value in a cell: text of others cannot end the cell, nor become markup or a link."""
    if value in (None, ""):
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.6g}"
    if value == "---":
        return "---"
    return re.sub(r"([|`>\[\]*_\\])", r"\\\1", " ".join(str(value).split())).replace("<", "&lt;")


def _code(value: str) -> str:
    return "`" + " ".join(value.replace("`", "'").split()) + "`"
