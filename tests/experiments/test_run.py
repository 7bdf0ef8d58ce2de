"""run: settings are applied as typed or refused before DVC starts."""

import shutil
import sys

import pytest
from dvc.utils.cli_parse import to_path_overrides
from dvc.utils.hydra import apply_overrides
from ruamel.yaml import YAML

from sft.experiments import run
from sft.params.read import MISSING
from tests.support.project import ROOT


@pytest.fixture
def folder(tmp_path, monkeypatch):
    shutil.copy(ROOT / "params.yaml", tmp_path)
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def commands(monkeypatch):
    """The commands that run instead of DVC, in order; git runs."""
    asked = []

    def record(command):
        asked.append(command)
        return 0

    monkeypatch.setattr(run, "run_child", record)
    return asked


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("optimizer.lr=1e-5", 1e-5),
        ("filter.max_rows=50", 50),
        ("filter.near_duplicates=null", None),
        ("checkpoint.async_save=true", True),
        ("prep.reasoning.budgets=[1, 2]", [1, 2]),
        ('fetch.model.uri=file://it\'s a "folder"\\x', 'file://it\'s a "folder"\\x'),
        ("fetch.model.uri=file://x#sha256=" + "0" * 64, "file://x#sha256=" + "0" * 64),
        ("fetch.sources.agents.read={format: openai, max_rows: 5}", {"format": "openai", "max_rows": 5}),
    ],
)
def test_dvc_s_own_reader_of_overrides_gets_the_value_that_was_typed(folder, setting, expected):
    """Through DVC's code, which writes params.yaml: a text stays a text, whatever is in it."""
    override = run.hydra_override(setting, is_new=False)
    apply_overrides(str(folder / "params.yaml"), to_path_overrides([override])["params.yaml"])
    value = YAML(typ="safe", pure=True).load(folder / "params.yaml")
    for key in setting.partition("=")[0].split("."):
        value = value[key]
    assert value == expected


@pytest.mark.parametrize(
    ("setting", "place", "meant"),
    [
        ("optimizer.lr=abc", "params.yaml:", "optimizer.lr: "),
        ("optimizer.learning_rate=1e-5", "optimizer.learning_rate: unknown key", "'optimizer.lr'"),
        ("trian.train_iters=5", "trian", "'train'"),
        ("optimizer.lr.x=1", "optimizer.lr", "optimizer.lr="),
        ("pack.pack_size=0", "pack.pack_size: ", "0"),
        ("optimizer.lr", "optimizer.lr", "KEY=VALUE"),
        ("optimizer.lr=[1", "optimizer.lr", "YAML"),
    ],
)
def test_what_is_wrong_is_refused_before_dvc_starts_and_params_yaml_stays(
    folder, commands, capsys, setting, place, meant
):
    before = (folder / "params.yaml").read_bytes()
    with pytest.raises(SystemExit) as end:
        run.main([setting], ["train"], force=False)
    said = capsys.readouterr().err
    assert end.value.code == 2
    assert place in said
    assert meant in said
    assert commands == []
    assert (folder / "params.yaml").read_bytes() == before


def test_a_key_that_params_yaml_does_not_hold_yet_is_passed_as_new(folder, commands):
    run.main(["optimizer.lr=1e-5", "fetch.sources.agents.epochs=2.0"], ["pack"], force=True)
    dvc = [sys.executable, "-m", "dvc", "exp", "run"]
    overrides = ["--set-param", "optimizer.lr=1e-5", "--set-param", "+fetch.sources.agents.epochs=2.0"]
    assert commands[-1] == [*dvc, *overrides, "--force", "pack"]


def test_it_is_said_what_was_set_and_how_to_go_back():
    settings, old = ["a.b=1", "c.d=2"], {"a.b": 3, "c.d": MISSING}
    *lines, back = run.describe(settings, old, was_committed=True)
    assert lines == ["params.yaml: a.b=1 (was 3)", "params.yaml: c.d=2 (was missing)"]
    assert back == "To go back: git checkout params.yaml"
    assert "set a.b=3, remove c.d" in run.describe(settings, old, was_committed=False)[-1]
