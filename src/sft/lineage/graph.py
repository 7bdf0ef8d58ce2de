"""chain: from a model back to its data: every link with its digest, its state on this disk and how to get it.

--model NAME (models/final, name/version, name@alias, run id, lineage key, git revision or DVC experiment)
    ->  a tree on the terminal; --json FILE; --html FILE, a page with a drawn graph; --card FILE, the model card

sources, benchmarks -> what the filter kept -> samples -> packs; base model, params, code, packages -> run -> model
-> evaluation. On the way everything that lies on this disk is verified; what is not what it was is named, and the
program ends with status 1. --cache also verifies the objects in DVC's cache, and the checkpoints of the run.
"""

import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.text import Text
from rich.tree import Tree

from sft.cli import InputError, make_parser, run_or_exit
from sft.files import publish_file, write_json
from sft.hashing import value_digest
from sft.inspect.terminal import Screen, visible
from sft.lineage import card, verify
from sft.lineage.key import NUMERIC_PACKAGES
from sft.lineage.record import ORIGIN, git_state
from sft.lineage.resolve import FINAL, Records, find, outs
from sft.lineage.verify import ABSENT, BASE, BENCHMARKS, DIFFERS, INTACT, PACKED, Fault
from sft.pages import graph
from sft.pages.graph import shown
from sft.sources.download import redact

STYLES = {INTACT: "green", DIFFERS: "bold red"}
MODEL, RUN = "model", "run"


@dataclass(frozen=True)
class Node:
    """A link of the chain."""

    id: str
    kind: str
    """source, benchmarks, filtered, prepared, packed, base, params, code, packages, run, model or evaluation."""
    title: str
    facts: dict[str, Any]
    """What a reader wants to know of it; values as JSON holds them."""
    digest: str | None
    """sha256:... or md5:..., as whoever made it wrote it down."""
    get: str
    """How to get it."""
    state: str = ABSENT
    """Of its files on this disk: intact, differs, not here; empty where it has none."""


@dataclass
class Chain:
    """The way from a model to its data."""

    model: str
    lineage_key: str
    where: str
    """What has to be checked out for the commands of the nodes."""
    nodes: dict[str, Node] = field(default_factory=dict)
    edges: list[tuple[str, str]] = field(default_factory=list)
    """From what something was made of, to what was made."""
    faults: list[Fault] = field(default_factory=list)

    def add(self, node: Node, *made: str) -> None:
        """Add a node, and that `made` were made of it."""
        self.nodes[node.id] = node
        self.edges += [(node.id, other) for other in made]

    def as_json(self) -> dict[str, Any]:
        """Return the chain as JSON holds it."""
        told = {"model": self.model, "lineage_key": self.lineage_key, "where": self.where, "edges": self.edges}
        nodes = [asdict(node) for node in self.nodes.values()]
        return {**told, "nodes": nodes, "faults": verify.as_json(self.faults)}


def gather(records: Records, with_cache: bool = False) -> Chain:
    """Gather the chain of a model and verify what lies on this disk.

    Raises:  InputError: nobody has the model's lineage.json.
    """
    told = records.lineage
    if not told:
        raise InputError(
            f"{records.name}: its {FINAL}/lineage.json is neither in the folder, nor in MLflow, nor in DVC's cache. "
            f"Bring the model: dvc fetch {FINAL}"
        )
    states, faults = verify.verify(records, with_cache)
    chain = Chain(records.name, told["lineage_key"], _where(records), faults=faults)
    nodes = list(_run_nodes(records, states))
    measured = ["evaluation"] if nodes[-1].id == "evaluation" else []
    for node in nodes:
        chain.add(node, *({MODEL: measured, RUN: [MODEL], "evaluation": []}.get(node.id, [RUN])))
    digests = outs(records.lock)
    for name, source in data_sources(records).items():
        for node, made in zip(
            _source_nodes(records, name, source, digests, states),
            (f"filtered/{name}", f"prepared/{name}", "packed"),
            strict=True,
        ):
            chain.add(node, made)
    for node in _benchmark_nodes(records, digests, states):
        chain.add(node, *(other for other in chain.nodes if other.startswith("filtered/")))
    return chain


def data_sources(records: Records) -> dict[str, dict[str, Any]]:
    """Return the sources of the packed data: from lineage.json, or of an older model from the reports."""
    told: dict[str, dict[str, Any]] = records.lineage.get("sources", {})
    if told:
        return told
    packed = records.json(f"{PACKED}/metadata.json").get("sources", {})
    return {name: {**counts, **records.json(f"reports/fetch/{name}.json")} for name, counts in packed.items()}


def _where(records: Records) -> str:
    """Say what has to be checked out before data of the model can be brought."""
    commit = records.lineage["git_commit"]
    if records.folder and git_state(records.folder)[0] == commit:
        return "this checkout"
    changed = ", then git apply --binary its patch" if records.lineage.get("patch") else ""
    return (
        f"git worktree add ../at-{str(commit)[:8]} {commit}{changed}; or all of it: make reproduce MODEL={records.name}"
    )


def _source_nodes(
    records: Records, name: str, source: dict[str, Any], digests: dict[str, str], states: dict[str, str]
) -> Iterator[Node]:
    fetched, filtered, prepared = (
        records.json(f"reports/{stage}/{name}.json") for stage in ("fetch", "filter", "prep")
    )
    facts = {
        "source": (
            {
                **_origin(source),
                "files": len(fetched.get("files", [])) or None,
                "rows": source.get("rows", source.get("rows_out")),
            },
            f"dvc pull data/raw/{name}, or from its publisher: dvc repro --single-item fetch@{name}",
        ),
        "filtered": (
            {
                "rows": filtered.get("rows_in"),
                "kept": source.get("kept", filtered.get("rows_out")),
                "refused": filtered.get("rejected", source.get("rejected", {})),
            },
            f"dvc pull data/filtered/{name}",
        ),
        "prepared": (
            {
                "samples": prepared.get("samples"),
                "tokens": prepared.get("tokens"),
                "trained tokens": prepared.get("trained_tokens"),
                "refused": prepared.get("rejected", {}),
                "template sha256": prepared.get("template_sha256"),
            },
            f"dvc pull data/prepared/{name}",
        ),
    }
    folders = {"source": "raw", "filtered": "filtered", "prepared": "prepared"}
    for kind, (told, get) in facts.items():
        path = f"data/{folders[kind]}/{name}"
        digest = f"md5:{digests[path]}" if path in digests else None
        yield Node(f"{kind}/{name}", kind, name, _known(told), digest, get, states.get(path, ABSENT))


def _origin(told: dict[str, Any]) -> dict[str, str]:
    """Return what is told of where something comes from."""
    return {key: redact(str(told[key])) for key in ORIGIN if told.get(key)}


def _benchmark_nodes(records: Records, digests: dict[str, str], states: dict[str, str]) -> Iterator[Node]:
    """The evaluation sets that the filter held the data against; none of a model that does not tell of them."""
    report = records.json("reports/fetch/benchmarks.json")
    sets = records.lineage.get("benchmarks", report.get("benchmarks"))
    if sets is None:
        return
    origins = {name: _origin(told) for name, told in sets.items()}
    facts = {"texts": sum(told["texts"] for told in sets.values()), "sets": origins or "none are named"}
    digest = f"md5:{digests[BENCHMARKS]}" if BENCHMARKS in digests else None
    get = f"dvc pull {BENCHMARKS}, or from their publishers: dvc repro --single-item fetch-benchmarks"
    yield Node("benchmarks", "benchmarks", "benchmarks", facts, digest, get, states.get(BENCHMARKS, ABSENT))


def _run_nodes(records: Records, states: dict[str, str]) -> Iterator[Node]:
    told, metadata = records.lineage, records.json(f"{PACKED}/metadata.json")
    pack, training = records.json("reports/pack.json"), records.json("reports/train.json")
    fetched, evaluation = records.json("reports/fetch/model.json"), evaluation_of(records)
    tokens = {name: source.get("tokens", 0) for name, source in metadata.get("sources", {}).items()}
    total = sum(tokens.values()) or 1
    packs = {split: counts["packs"] for split, counts in pack.get("splits", {}).items()}
    packed = {
        "pack size": metadata.get("pack_size"),
        "samples": pack.get("samples", {}).get("rows_out"),
        "tokens": pack.get("tokens"),
        "trained tokens": pack.get("trained_tokens"),
        "packs": packs,
        "refused": pack.get("rejected", {}),
        "mixture": {name: f"{number / total:.1%}" for name, number in tokens.items()},
        **{f"{split} sha256": digest for split, digest in metadata.get("digests", {}).items()},
    }
    decisive = {name: told["packages"].get(name) for name in NUMERIC_PACKAGES}
    code = {
        "commit": told["git_commit"],
        "uncommitted changes": told["git_dirty"],
        "patch sha256": told.get("patch"),
        "hardware": told.get("hardware"),
    }
    run = {**(records.run or {"run": told["mlflow_run_id"], "store": "not at hand"})}
    metrics = {key: run.get("metrics", {}).get(key) for key in ("loss", "validation_loss")}
    run["metrics"] = {key: training.get(f"train_{key}", training.get(key, value)) for key, value in metrics.items()}
    run |= {key: training.get(key) for key in ("iterations", "epochs", "tokens")}
    start = told["params"].get("checkpoint", {}).get("pretrained_checkpoint")
    final = outs(records.lock).get(FINAL)
    weights = told.get("files", {}).get("model.safetensors")
    yield Node(
        "packed", "packed", PACKED, _known(packed), f"sha256:{told['data']}", f"dvc pull {PACKED}", states[PACKED]
    )
    yield Node(
        "base",
        "base",
        "base model",
        _known(
            {
                **_origin(fetched),
                "parameters": fetched.get("parameters"),
                "checkpoint": start,
                "made by the run of": told.get("parent"),
            }
        ),
        f"sha256:{told['base_model']}",
        f"dvc pull {BASE}, or from its publisher: dvc repro --single-item fetch-model",
        states[BASE],
    )
    params = {name: json.dumps(section)[1:-1] for name, section in told["params"].items() if section}
    yield Node("params", "params", "params", params, f"sha256:{value_digest(told['params'])}", "in lineage.json", "")
    get = f"git show {told['git_commit']}" + (f"; patch in {_patch_place(records)}" if told.get("patch") else "")
    yield Node("code", "code", "code", _known(code), f"sha256:{told['code']}", get, "")
    packages = {**_known(decisive), "installed": len(told["packages"])}
    digest = f"sha256:{value_digest(told['packages'])}"
    yield Node("packages", "packages", "packages", packages, digest, "make setup at that commit", "")
    yield Node(RUN, RUN, "training", _known(run), None, f"make mlflow; logs in runs/{told['lineage_key']}", "")
    files = {"model.safetensors sha256": weights, "versions": (records.run or {}).get("versions")}
    by_dvc = f"md5:{final}" if final else None
    yield Node(MODEL, MODEL, records.name, _known(files), by_dvc, f"dvc pull {FINAL}", states[FINAL])
    if evaluation:
        facts = {name: {"before": evaluation["before"].get(name), "after": value} for name, value in _flat(evaluation)}
        facts |= _known({"gate": evaluation.get("gate")})
        yield Node("evaluation", "evaluation", "evaluation", facts, None, "dvc repro eval; reports/report.html", "")


def evaluation_of(records: Records) -> dict[str, Any]:
    """Return reports/eval.json; {} where it tells of another model than this one."""
    lock = records.lock
    measured = {dep["path"]: dep.get("md5") for dep in lock.get("eval", {}).get("deps", [])}.get(FINAL)
    if records.folder and measured and measured != outs(lock).get(FINAL):
        return {}
    return dict(records.json("reports/eval.json"))


def _flat(evaluation: dict[str, Any]) -> list[tuple[str, float]]:
    return [(name, value) for name, value in evaluation["after"].items() if isinstance(value, int | float)]


def _patch_place(records: Records) -> str:
    return f"runs/{records.lineage['lineage_key']}, and in MLflow's artifacts"


def _known(facts: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if value not in (None, {}, [], "")}


def tree(chain: Chain) -> Tree:
    """Draw the chain as a tree: the model, and below everything what it was made of; what goes into several, once."""
    made_of: dict[str, list[str]] = {}
    for source, made in chain.edges:
        made_of.setdefault(made, []).append(source)
    root = Tree(_line(chain.nodes[MODEL]))
    if "evaluation" in chain.nodes:
        root.add(_line(chain.nodes["evaluation"]))
    waiting, drawn = [(root, name) for name in made_of[MODEL]], set[str]()
    while waiting:
        branch, name = waiting.pop(0)
        if name in drawn:
            branch.add(Text(f"{name}, as above", style="dim"))
            continue
        drawn.add(name)
        below = branch.add(_line(chain.nodes[name]))
        waiting += [(below, other) for other in made_of.get(name, [])]
    return root


def _line(node: Node) -> Text:
    line = Text(node.title if node.kind in node.title else f"{node.kind} {visible(node.title)}", style="bold")
    if node.state:
        line.append(f"  {node.state}", style=STYLES.get(node.state, "yellow"))
    facts = "; ".join(f"{name}: {shown(value)}" for name, value in node.facts.items())
    for text, style in (
        (facts, "not bold"),
        (node.digest or "", "cyan not bold"),
        (f"get: {node.get}", "dim not bold"),
    ):
        if text:
            line.append(f"\n{visible(text)}", style=style)
    return line


def main(name: str, json_file: Path | None, html_file: Path | None, card_file: Path | None, with_cache: bool) -> None:
    """Show where a model comes from.

    Raises:  InputError: nothing has that name, or something is not what it was.
    """
    with tempfile.TemporaryDirectory() as scratch:
        records = find(name, Path.cwd(), Path(scratch))
        chain = gather(records, with_cache)
        text = card.render(records.lineage, records.json, evaluation_of(records))
    screen = Screen()
    screen.print(tree(chain))
    screen.print(f"lineage key {chain.lineage_key}; these commands run in: {chain.where}", soft_wrap=True)
    if json_file:
        write_json(json_file, chain.as_json())
    for path, content in ((html_file, graph.page(chain.as_json())), (card_file, text)):
        if path:
            with publish_file(path) as partial:
                partial.write_text(content, encoding="utf-8")
    if chain.faults:
        listed = "\n".join(visible(str(fault)) for fault in chain.faults)
        raise InputError(f"not what the model was made with:\n{listed}")
    states = [node.state for node in chain.nodes.values() if node.state]
    screen.print(
        f"{states.count(INTACT)} of {len(states)} links with files lie here and are what they were", style="green"
    )


if __name__ == "__main__":
    parser = make_parser(__name__, __doc__)
    parser.add_argument("--model", default=FINAL, metavar="NAME", help="default: models/final")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the chain as JSON")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with the drawn graph")
    parser.add_argument("--card", type=Path, metavar="FILE", help="write the model card, with the evaluation")
    parser.add_argument("--cache", action="store_true", help="also verify DVC's cache and the run's checkpoints")
    given = parser.parse_args()
    run_or_exit(lambda: main(given.model, given.json, given.html, given.card, given.cache))
