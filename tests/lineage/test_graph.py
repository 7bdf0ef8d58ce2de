"""chain: from a model back to its data, with every digest; what is not what it was ends it with an error."""

import itertools
import shutil

import pytest
from rich.console import Console

from sft.cli import InputError
from sft.files import read_json
from sft.lineage.graph import gather, main, tree
from sft.lineage.resolve import find, of_folder
from sft.lineage.verify import ABSENT, INTACT
from sft.pages.graph import page
from tests.support.finished_project import commit_all, make_recorded


@pytest.fixture
def project(tmp_path, monkeypatch, local_store):
    folder = make_recorded(tmp_path / "project")
    monkeypatch.chdir(folder)
    return folder


def test_the_chain_leads_from_every_source_to_the_evaluation(project):
    chain = gather(of_folder(project))
    for name in ("calls", "chats"):
        way = [f"source/{name}", f"filtered/{name}", f"prepared/{name}", "packed", "run", "model", "evaluation"]
        assert set(itertools.pairwise(way)) <= set(chain.edges)
        assert ("benchmarks", f"filtered/{name}") in chain.edges
    assert {("base", "run"), ("params", "run"), ("code", "run"), ("packages", "run")} <= set(chain.edges)
    assert {name for edge in chain.edges for name in edge} == chain.nodes.keys()


def test_every_link_tells_its_counts_its_digest_and_how_to_get_it(project):
    nodes = gather(of_folder(project)).nodes
    source, filtered, prepared = (nodes[f"{kind}/calls"] for kind in ("source", "filtered", "prepared"))
    assert source.facts["uri"] == "pypi://a==1/b.json"
    assert (source.facts["license"], source.facts["rows"]) == ("Apache-2.0", 10)
    assert (filtered.facts["kept"], filtered.facts["refused"]) == (9, {"no-answer": 1})
    assert prepared.facts["trained tokens"] == 45
    assert nodes["benchmarks"].facts["texts"] == 2
    assert nodes["benchmarks"].facts["sets"]["gsm8k"]["uri"] == "pypi://b==2/test.jsonl"
    assert nodes["benchmarks"].get.startswith("dvc pull data/benchmarks")
    assert nodes["packed"].facts["mixture"] == {"calls": "50.0%", "chats": "50.0%"}
    assert nodes["evaluation"].facts["loss"] == {"before": 1.0, "after": 0.501}
    assert source.get.startswith("dvc pull data/raw/calls")
    for node in nodes.values():
        assert node.get, node.id
        if node.id not in ("run", "evaluation"):
            assert node.digest.partition(":")[0] in ("md5", "sha256"), node.id
        assert node.state in (INTACT, ""), node.id


def test_a_copy_of_the_model_alone_still_names_sources_licences_and_counts(project, tmp_path):
    shutil.copytree(project / "models/final", tmp_path / "copy")
    chain = gather(find(str(tmp_path / "copy"), tmp_path, tmp_path))
    assert chain.nodes["source/chats"].facts["license"] == "MIT and CC-BY-4.0"
    assert chain.nodes["filtered/chats"].facts["kept"] == 9
    assert chain.nodes["benchmarks"].facts["sets"]["gsm8k"]["license"] == "MIT"
    assert chain.nodes["packed"].state == ABSENT
    assert chain.nodes["packed"].digest == "sha256:" + chain_digest(project)
    assert "git worktree add" in chain.where
    assert {name for edge in chain.edges for name in edge} == chain.nodes.keys()
    assert "<svg" in page(chain.as_json())


def chain_digest(project):
    return read_json(project / "models/final/lineage.json")["data"]


def test_an_evaluation_of_another_model_is_not_shown(project):
    text = (project / "dvc.lock").read_text()
    start = text.index("  eval:")
    (project / "dvc.lock").write_text(text[:start] + text[start:].replace(".dir", "0.dir"))
    assert "evaluation" not in gather(of_folder(project)).nodes


def test_the_tree_shows_every_link(project):
    chain = gather(of_folder(project))
    console = Console(width=200, record=True, file=open("/dev/null", "w"))
    console.print(tree(chain))
    text = console.export_text()
    assert text.index("models/final  intact") < text.index("run training") < text.index("source chats")
    for node in chain.nodes.values():
        assert node.title in text
        assert node.digest is None or text.count(node.digest) == 1
    assert text.count("benchmarks, as above") == 1


def test_the_program_writes_json_page_and_card_and_fails_where_something_was_changed(project, tmp_path, capsys):
    out = [tmp_path / name for name in ("chain.json", "chain.html", "README.md")]
    main("models/final", *out, with_cache=False)
    assert "10 of 10 links with files lie here" in capsys.readouterr().out
    told = read_json(out[0])
    assert told["faults"] == []
    assert len(told["nodes"]) == 7 + 8
    assert "<svg" in out[1].read_text()
    assert "| held-out loss | 1 | 0.501 |" in out[2].read_text()
    (project / "data/raw/calls/rows.jsonl").write_text("others")
    with pytest.raises(InputError, match=r"data/raw/calls/rows\.jsonl: expected sha256 .* found sha256 "):
        main("models/final", *out, with_cache=False)
    assert [fault["where"] for fault in read_json(out[0])["faults"]] == ["data/raw/calls/rows.jsonl"]


def test_a_revision_without_a_model_says_how_to_bring_it(project):
    shutil.rmtree(project / "models/final")
    shutil.rmtree(project / ".dvc/cache")
    with pytest.raises(InputError, match="dvc fetch models/final"):
        gather(of_folder(project))


@pytest.mark.parametrize(
    ("path", "model"), [("models/final/lineage.json", "models/final"), ("reports/pack.json", "main")]
)
def test_a_file_that_is_no_json_any_more_is_named(project, path, model, tmp_path):
    (project / path).write_bytes(b'{"lineage_key": \xff')
    if model == "main":
        commit_all(project)
    with pytest.raises(InputError, match=rf"{path}: not what the model was made with: expected JSON"):
        gather(find(model, project, tmp_path))
