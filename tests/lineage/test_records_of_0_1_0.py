"""Records of version 0.1.0 stay readable: a finished run of the default blend, without data and weights."""

import re
import shutil
from pathlib import Path

import pytest

from sft.cli import InputError
from sft.files import read_json
from sft.lineage import graph, reproduce
from sft.lineage.compare import compare
from sft.lineage.compare import main as compare_main
from sft.lineage.resolve import find, of_folder
from sft.lineage.verify import verify
from sft.params.recorded import stage_of
from tests.support.finished_project import make_recorded
from tests.support.project import ROOT

FIXTURE = ROOT / "tests/fixtures/0.1.0"
SOURCES = ("agents", "functions", "instructions", "olympiads", "reasoning", "tool-calls", "translations")
KEY = "780d6a6fa0da1943"


@pytest.fixture
def project(tmp_path, monkeypatch, local_store):
    folder = shutil.copytree(FIXTURE, tmp_path / "project")
    monkeypatch.chdir(folder)
    return folder


def test_the_fixture_is_small_and_names_no_place_of_a_machine():
    files = [path for path in FIXTURE.rglob("*") if path.is_file()]
    assert len(files) > 30
    assert sum(path.stat().st_size for path in files) < 300_000
    for path in files:
        assert not re.search(r"/(tmp|root|home|work)/", path.read_text(encoding="utf-8")), path


def test_only_the_files_that_are_left_out_differ(project):
    """The key, computed anew from lineage.json, is the old one, and the reports are those that it records."""
    states, faults = verify(of_folder(project))
    left_out = set(read_json(project / "models/final/lineage.json")["files"]) - {"README.md"}
    assert {fault.path for fault in faults} == {f"models/final/{name}" for name in left_out}
    assert {fault.actual for fault in faults} == {"no such file"}
    assert states["data/packed"] == "absent"


def test_its_lineage_graph_leads_from_every_source_to_the_evaluation(project):
    nodes = graph.build_graph(find("models/final", project, project)).nodes
    assert {name for name in nodes if name.startswith("source/")} == {f"source/{name}" for name in SOURCES}
    tools = nodes["source/tool-calls"].facts
    assert (tools["license"], tools["rows"]) == ("Apache-2.0", 1911)
    assert nodes["filtered/tool-calls"].facts["kept"] == 1795
    assert nodes["base"].facts["parameters"] == 134_515_008
    assert nodes["run"].facts["iterations"] == 100
    assert nodes["evaluation"].facts["loss"] == {"before": 1.321912, "after": 1.16511}
    assert nodes["code"].facts["commit"].startswith("4850cac")


def test_the_lineage_program_writes_its_graph_and_its_card(project):
    with pytest.raises(InputError, match=r"models/final/model\.safetensors"):
        graph.main("models/final", Path("graph.html"), Path("card.md"), with_cache=False, as_json=False)
    assert KEY in (project / "graph.html").read_text()
    assert "| held-out loss | 1.32191 | 1.16511 |" in (project / "card.md").read_text()


def test_it_is_compared_with_a_run_of_today(project, tmp_path, capsys):
    today = make_recorded(tmp_path / "today")
    tables = compare(of_folder(project), of_folder(today)).tables
    assert tables["identity"]["lineage_key"][0] == KEY
    assert tables["params"]["optimizer.lr"] == (0.0002, 0.001)
    assert tables["metrics"]["after.loss"] == (1.16511, 0.501)
    compare_main("models/final", str(today / "models/final"), None, as_json=False)
    assert "1.16511" in capsys.readouterr().out


def test_its_rebuild_is_planned_from_its_lock(project):
    records = of_folder(project)
    fetched = set(reproduce.fetched_outputs(records))
    assert {f"data/raw/{name}" for name in SOURCES} | {"models/base", "data/benchmarks"} <= fetched
    assert {f"reports/fetch/{name}.json" for name in SOURCES} <= fetched
    stages = reproduce.stages_after_fetch(records, "eval")
    assert [stage_of(name) for name in stages] == ["filter"] * 7 + ["prep"] * 7 + ["pack", "train", "eval"]
    verdicts = {output.path: output.verdict for output in reproduce.compare(records, records)}
    assert verdicts.pop("models/final/lineage.json") == reproduce.DECLARED
    assert set(verdicts.values()) == {reproduce.IDENTICAL}
    assert "models/final/model.safetensors" in verdicts
