"""graph: from a model back to its data, with every digest; what differs ends it with an error; the page is safe."""

import itertools
import re
import shutil
from dataclasses import replace

import pytest
from rich.console import Console

from sft.cli import InputError
from sft.files import read_json
from sft.lineage.graph import COLUMNS, HEIGHT, WIDTH, Graph, Node, build_graph, corners, main, page, tree
from sft.lineage.resolve import find, of_folder
from sft.lineage.verify import ABSENT, INTACT, Fault
from tests.support.finished_project import commit_all, make_recorded
from tests.support.printed_json import printed_json


@pytest.fixture
def project(tmp_path, monkeypatch, local_store):
    folder = make_recorded(tmp_path / "project")
    monkeypatch.chdir(folder)
    return folder


def test_the_graph_leads_from_every_source_to_the_evaluation(project):
    graph = build_graph(of_folder(project))
    for name in ("calls", "chats"):
        way = [f"source/{name}", f"filtered/{name}", f"prepared/{name}", "packed", "run", "model", "evaluation"]
        assert set(itertools.pairwise(way)) <= set(graph.edges)
        assert ("benchmarks", f"filtered/{name}") in graph.edges
    assert {("base", "run"), ("params", "run"), ("code", "run"), ("packages", "run")} <= set(graph.edges)
    assert {name for edge in graph.edges for name in edge} == graph.nodes.keys()


def test_every_node_has_its_counts_its_digest_and_how_to_get_it(project):
    nodes = build_graph(of_folder(project)).nodes
    source, filtered, prepared = (nodes[f"{kind}/calls"] for kind in ("source", "filtered", "prepared"))
    assert source.facts["uri"] == "pypi://a==1/b.json"
    assert (source.facts["license"], source.facts["rows"]) == ("Apache-2.0", 10)
    assert (filtered.facts["kept"], filtered.facts["rejected"]) == (9, {"no-answer": 1})
    assert prepared.facts["trained tokens"] == 45
    assert nodes["benchmarks"].facts["texts"] == 2
    assert nodes["benchmarks"].facts["sets"]["gsm8k"]["uri"] == "pypi://b==2/test.jsonl"
    assert nodes["benchmarks"].get.startswith("dvc pull data/benchmarks")
    assert nodes["packed"].facts["mixture"] == {"calls": 0.5, "chats": 0.5}
    assert nodes["evaluation"].facts["loss"] == {"before": 1.0, "after": 0.501}
    assert source.get.startswith("dvc pull data/raw/calls")
    for node in nodes.values():
        assert node.get, node.id
        if node.id not in ("run", "evaluation"):
            assert node.digest.partition(":")[0] in ("md5", "sha256"), node.id
        assert node.state in (INTACT, ""), node.id


def test_a_copy_of_the_model_alone_still_names_sources_licences_and_counts(project, tmp_path):
    shutil.copytree(project / "models/final", tmp_path / "copy")
    graph = build_graph(find(str(tmp_path / "copy"), tmp_path, tmp_path))
    assert graph.nodes["source/chats"].facts["license"] == "MIT and CC-BY-4.0"
    assert graph.nodes["filtered/chats"].facts["kept"] == 9
    assert graph.nodes["benchmarks"].facts["sets"]["gsm8k"]["license"] == "MIT"
    assert graph.nodes["packed"].state == ABSENT
    assert graph.nodes["packed"].digest == "sha256:" + packed_digest(project)
    assert "git worktree add" in graph.checkout
    assert {name for edge in graph.edges for name in edge} == graph.nodes.keys()
    assert "<svg" in page(graph)


def packed_digest(project):
    return read_json(project / "models/final/lineage.json")["data"]


def test_an_evaluation_of_another_model_is_not_shown(project):
    text = (project / "dvc.lock").read_text()
    start = text.index("  eval:")
    (project / "dvc.lock").write_text(text[:start] + text[start:].replace(".dir", "0.dir"))
    assert "evaluation" not in build_graph(of_folder(project)).nodes


def test_the_tree_shows_every_node(project):
    graph = build_graph(of_folder(project))
    console = Console(width=200, record=True, file=open("/dev/null", "w"))
    console.print(tree(graph))
    text = console.export_text()
    assert text.index("models/final  intact") < text.index("run training") < text.index("source chats")
    for node in graph.nodes.values():
        assert node.title in text
        assert node.digest is None or text.count(node.digest) == 1
    assert text.count("benchmarks, see above") == 1


def test_the_program_prints_json_also_where_something_was_changed(project):
    whole = printed_json(project, "sft.lineage.graph")
    assert whole["faults"] == []
    assert ["packed", "run"] in whole["edges"]
    nodes = {node["id"]: node for node in whole["nodes"]}
    assert len(nodes) == 7 + 8
    assert nodes["params"]["facts"]["optimizer"] == {"lr": 0.001}
    assert nodes["filtered/calls"]["facts"]["rejected"] == {"no-answer": 1}
    assert (nodes["packed"]["kind"], nodes["packed"]["state"]) == ("packed", INTACT)
    (project / "data/raw/calls/rows.jsonl").write_text("others")
    changed = printed_json(project, "sft.lineage.graph", message="data/raw/calls/rows.jsonl: expected sha256 ")
    assert [fault["path"] for fault in changed["faults"]] == ["data/raw/calls/rows.jsonl"]
    assert printed_json(project, "sft.lineage.graph", "--model", "x", message="error: 'x': found no") is None


def test_the_program_writes_page_and_card_and_fails_where_something_was_changed(project, tmp_path, capsys):
    out = [tmp_path / name for name in ("graph.html", "README.md")]
    main("models/final", *out, with_cache=False, as_json=False)
    assert "10 of 10 nodes with files are here and intact" in capsys.readouterr().out
    assert "<svg" in out[0].read_text()
    assert "| held-out loss | 1 | 0.501 |" in out[1].read_text()
    (project / "data/raw/calls/rows.jsonl").write_text("others")
    with pytest.raises(InputError, match=r"data/raw/calls/rows\.jsonl: expected sha256 .* found sha256 "):
        main("models/final", *out, with_cache=False, as_json=False)


def test_a_revision_without_a_model_says_how_to_get_it(project):
    shutil.rmtree(project / "models/final")
    shutil.rmtree(project / ".dvc/cache")
    with pytest.raises(InputError, match="dvc fetch models/final"):
        build_graph(of_folder(project))


@pytest.mark.parametrize(
    ("path", "model"), [("models/final/lineage.json", "models/final"), ("reports/pack.json", "main")]
)
def test_a_file_that_is_no_json_any_more_is_named(project, path, model, tmp_path):
    (project / path).write_bytes(b'{"lineage_key": \xff')
    if model == "main":
        commit_all(project)
    with pytest.raises(InputError, match=rf"{path}.*expected JSON"):
        build_graph(find(model, project, tmp_path))


# --- The page ---------------------------------------------------------------------------------------------


def drawn(**more):
    node = Node("", "", "", {"rows": 1234}, "sha256:" + "a" * 64, "dvc pull x", INTACT)
    kinds = [kind for column in COLUMNS.values() for kind in column]
    nodes = [replace(node, id=kind, kind=kind, title=kind) for kind in kinds]
    nodes += [replace(node, id=f"source/{n}", kind="source", title=f"s{n}") for n in range(20)]
    edges = [(f"source/{n}", "packed") for n in range(20)] + [("packed", "run"), ("run", "model")]
    return replace(Graph("m", "k", "here", {node.id: node for node in nodes}, edges), **more)


def test_every_node_is_a_box_and_every_edge_a_line():
    graph = drawn()
    text = page(graph)
    assert text.count('class="box"') == len(graph.nodes) > 20
    assert text.count('class="edge"') == len(graph.edges)
    for name in graph.nodes:
        assert f'href="#{name}"' in text
        assert f'id="{name}"' in text


def test_boxes_do_not_overlap():
    at = list(corners(list(drawn().nodes.values())).values())
    assert len(at) == len(set(at)) > 20
    for x, y in at:
        for other_x, other_y in at:
            if (x, y) != (other_x, other_y):
                assert abs(x - other_x) >= WIDTH or abs(y - other_y) >= HEIGHT


def test_the_page_loads_nothing_runs_nothing_and_is_the_same_again():
    text = page(drawn())
    assert text == page(drawn())
    assert not re.search(r"<script|<link|<img|src=|@import|url\(|https?://", text)
    assert all(target.startswith("#") for target in re.findall(r'href="([^"]*)"', text))


def test_names_cannot_become_markup():
    hostile = '"><script>alert(1)</script>'
    node = Node(hostile, "source", hostile, {hostile: hostile}, None, hostile)
    faults = [Fault(hostile, hostile, hostile)]
    text = page(drawn(nodes={hostile: node}, edges=[], faults=faults, model=hostile, checkout=hostile))
    assert "<script" not in text
    assert "&lt;script&gt;" in text
