"""The lineage graph of a model: every step back to its sources, with digest, state on this disk and how to get it.

--model NAME (models/final, name/version, name@alias, run id, lineage key, git revision or DVC experiment)
    ->  a tree on the terminal, or JSON (--json); --html FILE, a page with the graph drawn; --card FILE, the model card

sources, benchmarks -> filtered -> prepared -> packed; base model, params, code, packages -> run -> model -> evaluation.
Verifies everything that is on this disk, names what differs, and exits with 1 if something does. --cache also verifies
the objects in DVC's cache and the checkpoints of the run.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.text import Text
from rich.tree import Tree

from sft.cli import InputError, add_json_option, file_to_write, make_parser, print_facts, run_or_exit
from sft.files import write_text
from sft.hashing import value_digest
from sft.inspect.terminal import Screen, visible
from sft.lineage import card, verify
from sft.lineage.key import NUMERIC_PACKAGES
from sft.lineage.record import ORIGIN, git_state
from sft.lineage.resolve import FINAL, Records, find, outs
from sft.lineage.verify import ABSENT, BASE, BENCHMARKS, DIFFERS, INTACT, PACKED, Fault
from sft.pages.render import render
from sft.sources.redact import redact

STYLES = {INTACT: "green", DIFFERS: "bold red"}
MODEL, RUN = "model", "run"
# The drawing: kinds of nodes by column, from left to right, with the head of the column.
COLUMNS = {
    "published": ("source", "benchmarks"),
    "filtered": ("filtered",),
    "prepared": ("prepared",),
    "inputs": ("packed", "base", "params", "code", "packages"),
    "training": ("run",),
    "model": ("model",),
    "evaluation": ("evaluation",),
}
WIDTH, HEIGHT, GAP_X, GAP_Y, MARGIN, HEAD = 148, 46, 42, 16, 8, 26  # pixels of a box, between boxes, of the head
LABEL_CHARS = 19


@dataclass(frozen=True)
class Node:
    """A step between sources and evaluation."""

    id: str
    kind: str
    """source, benchmarks, filtered, prepared, packed, base, params, code, packages, run, model or evaluation."""
    title: str
    facts: dict[str, Any]
    """What a reader wants to know; values as in JSON."""
    digest: str | None
    """sha256:... or md5:..., as in lineage.json or dvc.lock."""
    get: str
    """How to get it."""
    state: str = ABSENT
    """Of its files on this disk: intact, differs or absent; empty if it has no files."""


@dataclass
class Graph:
    """All steps from the sources of a model to its evaluation."""

    model: str
    lineage_key: str
    checkout: str
    """Where the commands of the nodes run."""
    nodes: dict[str, Node] = field(default_factory=dict)
    edges: list[tuple[str, str]] = field(default_factory=list)
    """(node, what was made of it)."""
    faults: list[Fault] = field(default_factory=list)

    def add(self, node: Node, *made: str) -> None:
        """Add a node, and an edge to each node that was made of it."""
        self.nodes[node.id] = node
        self.edges += [(node.id, other) for other in made]

    def values(self) -> dict[str, Any]:
        """Return what --json prints."""
        named = {"model": self.model, "lineage_key": self.lineage_key, "checkout": self.checkout, "edges": self.edges}
        return {**named, "nodes": [*self.nodes.values()], "faults": self.faults}


def build_graph(records: Records, with_cache: bool = False) -> Graph:
    """Return the graph of a model, and verify what is on this disk.

    Raises:  InputError: its lineage.json is nowhere.
    """
    lineage = records.lineage
    if not lineage:
        raise InputError(
            f"{records.name}: {FINAL}/lineage.json is neither in the folder, nor in MLflow, nor in DVC's cache. "
            f"Get the model: dvc fetch {FINAL}"
        )
    states, faults = verify.verify(records, with_cache)
    graph = Graph(records.name, lineage["lineage_key"], _checkout(records), faults=faults)
    nodes = list(_run_nodes(records, states))
    measured = ["evaluation"] if nodes[-1].id == "evaluation" else []
    for node in nodes:
        graph.add(node, *({MODEL: measured, RUN: [MODEL], "evaluation": []}.get(node.id, [RUN])))
    digests = outs(records.lock)
    for name, source in data_sources(records).items():
        made = (f"filtered/{name}", f"prepared/{name}", "packed")
        for node, next_node in zip(_source_nodes(records, name, source, digests, states), made, strict=True):
            graph.add(node, next_node)
    for node in _benchmark_nodes(records, digests, states):
        graph.add(node, *(other for other in graph.nodes if other.startswith("filtered/")))
    return graph


def data_sources(records: Records) -> dict[str, dict[str, Any]]:
    """Return the sources of the packed data: from lineage.json, else from the reports."""
    sources: dict[str, dict[str, Any]] = records.lineage.get("sources", {})
    if sources:
        return sources
    packed = records.json(f"{PACKED}/metadata.json").get("sources", {})
    return {name: {**counts, **records.json(f"reports/fetch/{name}.json")} for name, counts in packed.items()}


def _checkout(records: Records) -> str:
    """Return how to check out the commit of the model, in which the commands of the nodes work."""
    commit = records.lineage["git_commit"]
    if records.folder and git_state(records.folder)[0] == commit:
        return "this checkout"
    patch = ", then git apply --binary its patch" if records.lineage.get("patch") else ""
    return f"git worktree add ../at-{str(commit)[:8]} {commit}{patch}; or make reproduce MODEL={records.name}"


def _node(id: str, facts: Mapping[str, Any], digest: str | None, get: str, state: str = "", title: str = "") -> Node:
    """Return a node with the facts that are known; `id`: its kind, or kind/source."""
    kind, _, source = id.partition("/")
    known = {name: value for name, value in facts.items() if value not in (None, {}, [], "")}
    return Node(id, kind, title or source or kind, known, digest, get, state)


def _source_nodes(
    records: Records, name: str, source: dict[str, Any], digests: dict[str, str], states: dict[str, str]
) -> Iterator[Node]:
    fetched, filtered, prepared = (
        records.json(f"reports/{stage}/{name}.json") for stage in ("fetch", "filter", "prep")
    )
    facts = {
        "source": {
            **_origin(source),
            "files": len(fetched.get("files", [])) or None,
            "rows": source.get("rows", source.get("rows_out")),
        },
        "filtered": {
            "rows": filtered.get("rows_in"),
            "kept": source.get("kept", filtered.get("rows_out")),
            "rejected": filtered.get("rejected", source.get("rejected", {})),
        },
        "prepared": {
            "samples": prepared.get("samples"),
            "tokens": prepared.get("tokens"),
            "trained tokens": prepared.get("trained_tokens"),
            "rejected": prepared.get("rejected", {}),
            "template sha256": prepared.get("template_sha256"),
        },
    }
    for kind, known in facts.items():
        path = f"data/{'raw' if kind == 'source' else kind}/{name}"
        get = f"dvc pull {path}" + (f", or download it again: dvc repro fetch@{name}" if kind == "source" else "")
        yield _node(f"{kind}/{name}", known, _md5(digests, path), get, states.get(path, ABSENT))


def _md5(digests: dict[str, str], path: str) -> str | None:
    return f"md5:{digests[path]}" if path in digests else None


def _origin(report: Mapping[str, Any]) -> dict[str, str]:
    """Return where something comes from, without secrets."""
    return {key: redact(str(report[key])) for key in ORIGIN if report.get(key)}


def _benchmark_nodes(records: Records, digests: dict[str, str], states: dict[str, str]) -> Iterator[Node]:
    """The evaluation sets that the filter checked the data against; none if the records of a model name none."""
    report = records.json("reports/fetch/benchmarks.json")
    sets = records.lineage.get("benchmarks", report.get("benchmarks"))
    if sets is None:
        return
    origins = {name: _origin(facts) for name, facts in sets.items()}
    known = {"texts": sum(facts["texts"] for facts in sets.values()), "sets": origins or "none"}
    get = f"dvc pull {BENCHMARKS}, or download them again: dvc repro fetch-benchmarks"
    yield _node("benchmarks", known, _md5(digests, BENCHMARKS), get, states.get(BENCHMARKS, ABSENT))


def _run_nodes(records: Records, states: dict[str, str]) -> Iterator[Node]:
    """The nodes of the training: packed data, base model, params, code, packages, run, model, evaluation."""
    lineage, key = records.lineage, records.lineage["lineage_key"]
    commit, patch, packages = lineage["git_commit"], lineage.get("patch"), lineage["packages"]
    fetched, evaluation = records.json("reports/fetch/model.json"), evaluation_of(records)
    yield _node(
        "packed", _packed(records), f"sha256:{lineage['data']}", f"dvc pull {PACKED}", states[PACKED], title=PACKED
    )
    base = {
        **_origin(fetched),
        "parameters": fetched.get("parameters"),
        "added by fetch": fetched.get("added"),
        "checkpoint": lineage["params"].get("checkpoint", {}).get("pretrained_checkpoint"),
        "made by the run of": lineage.get("parent"),
    }
    get = f"dvc pull {BASE}, or download it again: dvc repro fetch-model"
    yield _node("base", base, f"sha256:{lineage['base_model']}", get, states[BASE], title="base model")
    yield _node("params", lineage["params"], f"sha256:{value_digest(lineage['params'])}", "in lineage.json")
    code = {
        "commit": commit,
        "uncommitted changes": lineage["git_dirty"],
        "patch sha256": patch,
        "hardware": lineage.get("hardware"),
    }
    get = f"git show {commit}" + (f"; patch in runs/{key} and in MLflow's artifacts" if patch else "")
    yield _node("code", code, f"sha256:{lineage['code']}", get)
    numeric = {name: packages[name] for name in NUMERIC_PACKAGES if name in packages}
    installed = {**numeric, "installed": len(packages)}
    yield _node("packages", installed, f"sha256:{value_digest(packages)}", "make setup at that commit")
    yield _node(RUN, _run(records), None, f"make mlflow; logs in runs/{key}", title="training")
    model = {
        "model.safetensors sha256": lineage.get("files", {}).get("model.safetensors"),
        "versions": (records.run or {}).get("versions"),
    }
    yield _node(MODEL, model, _md5(outs(records.lock), FINAL), f"dvc pull {FINAL}", states[FINAL], records.name)
    if evaluation:
        before, after = evaluation["before"], evaluation["after"]
        measured: dict[str, Any] = {
            name: {"before": before.get(name), "after": value}
            for name, value in after.items()
            if isinstance(value, int | float)
        }
        measured["gate"] = evaluation.get("gate")
        yield _node("evaluation", measured, None, "dvc repro eval; reports/report.html")


def _packed(records: Records) -> dict[str, Any]:
    metadata, pack = records.json(f"{PACKED}/metadata.json"), records.json("reports/pack.json")
    tokens = {name: source.get("tokens", 0) for name, source in metadata.get("sources", {}).items()}
    total = sum(tokens.values()) or 1
    return {
        "pack size": metadata.get("pack_size"),
        "samples": pack.get("samples", {}).get("rows_out"),
        "tokens": pack.get("tokens"),
        "trained tokens": pack.get("trained_tokens"),
        "packs": {split: counts["packs"] for split, counts in pack.get("splits", {}).items()},
        "rejected": pack.get("rejected", {}),
        "mixture": {name: number / total for name, number in tokens.items()},
        **{f"{split} sha256": digest for split, digest in metadata.get("digests", {}).items()},
    }


def _run(records: Records) -> dict[str, Any]:
    training = records.json("reports/train.json")
    run = {**(records.run or {"run": records.lineage["mlflow_run_id"], "store": "not available"})}
    metrics = {key: run.get("metrics", {}).get(key) for key in ("loss", "validation_loss")}
    run["metrics"] = {key: training.get(f"train_{key}", training.get(key, value)) for key, value in metrics.items()}
    return run | {key: training.get(key) for key in ("iterations", "epochs", "tokens", "trained_tokens")}


def evaluation_of(records: Records) -> dict[str, Any]:
    """Return reports/eval.json; {} if it is of another model."""
    lock = records.lock
    measured = {dep["path"]: dep.get("md5") for dep in lock.get("eval", {}).get("deps", [])}.get(FINAL)
    if records.folder and measured and measured != outs(lock).get(FINAL):
        return {}
    return dict(records.json("reports/eval.json"))


def as_text(value: Any) -> str:
    """Return a fact as one line.

    >>> as_text({"kept": 1893, "share": 0.25, "uri": "file://x", "none": []})
    'kept 1,893, share 0.25, uri file://x, none -'
    """
    if isinstance(value, dict):
        return ", ".join(f"{name} {as_text(inner)}" for name, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(as_text(inner) for inner in value) or "-"
    if isinstance(value, bool) or value is None:
        return "-" if value is None else "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}" if isinstance(value, float) else str(value)


# --- On the terminal --------------------------------------------------------------------------------------


def tree(graph: Graph) -> Tree:
    """Return the graph as a tree: the model, and below each node what it was made of, each node once."""
    made_of: dict[str, list[str]] = {}
    for source, made in graph.edges:
        made_of.setdefault(made, []).append(source)
    root = Tree(_line(graph.nodes[MODEL]))
    if "evaluation" in graph.nodes:
        root.add(_line(graph.nodes["evaluation"]))
    waiting, drawn = [(root, name) for name in made_of[MODEL]], set[str]()
    while waiting:
        branch, name = waiting.pop(0)
        if name in drawn:
            branch.add(Text(f"{name}, see above", style="dim"))
            continue
        drawn.add(name)
        below = branch.add(_line(graph.nodes[name]))
        waiting += [(below, other) for other in made_of.get(name, [])]
    return root


def _line(node: Node) -> Text:
    line = Text(visible(_heading(node)), style="bold")
    if node.state:
        line.append(f"  {node.state}", style=STYLES.get(node.state, "yellow"))
    facts = "; ".join(f"{name}: {as_text(value)}" for name, value in node.facts.items())
    for text, style in (
        (facts, "not bold"),
        (node.digest or "", "cyan not bold"),
        (f"get: {node.get}", "dim not bold"),
    ):
        if text:
            line.append(f"\n{visible(text)}", style=style)
    return line


def _heading(node: Node) -> str:
    return node.title if node.kind in node.title else f"{node.kind} {node.title}"


# --- As a page ----------------------------------------------------------------------------------------------


def page(graph: Graph) -> str:
    """Return the graph as a page: drawn, with what is known of every node below."""
    at = corners(list(graph.nodes.values()))
    edges = [(at[source][0] + WIDTH, at[source][1] + HEIGHT // 2, at[made][0], at[made][1] + HEIGHT // 2)
             for source, made in graph.edges]  # fmt: skip
    boxes, sections = [], []
    for node in graph.nodes.values():
        label = {"title": _short(node.title), "heading": _heading(node)}
        boxes.append({"id": node.id, "state": node.state, "x": at[node.id][0], "y": at[node.id][1], **label})
        rows = {"digest": node.digest, "on this disk": node.state, **node.facts, "get": node.get}
        shown = {name: as_text(value) for name, value in rows.items() if value}
        sections.append({"id": node.id, "heading": _heading(node), "rows": shown})
    return render(
        "lineage.html.j2",
        title=f"Lineage of {graph.model}",
        graph=graph,
        heads=[(MARGIN + index * (WIDTH + GAP_X), head) for index, head in enumerate(COLUMNS)],
        edges=edges,
        boxes=boxes,
        sections=sections,
        size=(WIDTH, HEIGHT),
        right=2 * MARGIN + len(COLUMNS) * (WIDTH + GAP_X) - GAP_X,
        bottom=max(y for _, y in at.values()) + HEIGHT + MARGIN,
    )


def corners(nodes: Sequence[Node]) -> dict[str, tuple[int, int]]:
    """Return the upper left corner of the box of each node, by id; columns are centered."""
    columns = [[node.id for kind in kinds for node in nodes if node.kind == kind] for kinds in COLUMNS.values()]
    tallest = max(len(column) for column in columns)
    at = {}
    for index, column in enumerate(columns):
        top = MARGIN + HEAD + (tallest - len(column)) * (HEIGHT + GAP_Y) // 2
        for row, name in enumerate(column):
            at[name] = (MARGIN + index * (WIDTH + GAP_X), top + row * (HEIGHT + GAP_Y))
    return at


def _short(text: str) -> str:
    return text if len(text) <= LABEL_CHARS else f"{text[: LABEL_CHARS - 3]}..."


def show(graph: Graph) -> None:
    """Print the tree of a graph."""
    screen = Screen()
    screen.print(tree(graph))
    screen.print(f"lineage key {graph.lineage_key}. Run the commands in: {graph.checkout}", soft_wrap=True)


def main(name: str, html_file: Path | None, card_file: Path | None, *, with_cache: bool, as_json: bool) -> None:
    """Print the lineage graph of a model, and write what is asked for.

    Raises:  InputError: nothing has that name, or something differs from what the model was made with.
    """
    with tempfile.TemporaryDirectory() as scratch:
        records = find(name, Path.cwd(), Path(scratch))
        graph = print_facts(lambda: build_graph(records, with_cache), show, as_json=as_json, values=Graph.values)
        if card_file:
            write_text(card_file, card.render(records.lineage, records.json, evaluation_of(records)))
    if html_file:
        write_text(html_file, page(graph))
    if graph.faults:
        listed = "\n".join(visible(str(fault)) for fault in graph.faults)
        raise InputError(f"{name}: differs from what the model was made with:\n{listed}")
    states = [node.state for node in graph.nodes.values() if node.state]
    Screen().print(f"{states.count(INTACT)} of {len(states)} nodes with files are here and intact", style="green")


if __name__ == "__main__":
    parser = make_parser(__name__, __doc__)
    parser.add_argument("--model", default=FINAL, metavar="NAME", help="default: models/final")
    add_json_option(parser)
    parser.add_argument("--html", type=file_to_write, metavar="FILE", help="write a page with the graph drawn")
    parser.add_argument("--card", type=file_to_write, metavar="FILE", help="write the model card, with the evaluation")
    parser.add_argument("--cache", action="store_true", help="also verify DVC's cache and the run's checkpoints")
    options = parser.parse_args()
    run_or_exit(lambda: main(options.model, options.html, options.card, with_cache=options.cache, as_json=options.json))
