"""Faults that are planted in a rehearsal: it ends with status 1, and the last line of the table names the fault.

`make test-layouts` runs them (four CPU-minutes). They share the packed data of one profile.
"""

import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sft.files import read_json, write_json
from sft.params.check import Params
from sft.rehearse import cli, project
from tests.support.project import ROOT
from tests.support.slurm_loopback import running_cluster, write_cluster_file

pytestmark = [pytest.mark.layouts, pytest.mark.timeout(1800)]
PROFILE = "nemotron3-nano-smoke"
RUN_STAGE = "import runpy\nrunpy.run_module('sft.stages.train', run_name='__main__', alter_sys=True)\n"
IN_MEGATRON = """
from sft.training import conversion
check = conversion.check_complete
def wrong(bridge, model):
    check(bridge, model)
    weights = dict(model[0].named_parameters())
    {change}
conversion.check_complete = wrong
"""
SWAP = "a, b = [w for name, w in weights.items() if '.local_experts.' in name and 'linear_fc1' in name][:2]"
SWAPPED_EXPERT = IN_MEGATRON.format(change=SWAP + "; a.data, b.data = b.data, a.data")
LOST_NORM = IN_MEGATRON.format(
    change="next(w for name, w in weights.items() if name.endswith('final_norm.weight')).data.fill_(1)"
)
MODEL_HERE = (
    "from sft.rehearse.submit import NoModelReaders\nsys.meta_path.insert(0, NoModelReaders())\nimport safetensors"
)
Plant = Callable[[pytest.MonkeyPatch], None]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A rehearsal that has packed its data."""
    here = tmp_path_factory.mktemp("prepared")
    (here / "profiles").symlink_to(ROOT / "profiles")
    before = Path.cwd()
    os.chdir(here)
    folder = here / "rehearsal"
    folder.mkdir()
    cli.prepare(cli.Stages(folder, 2, None), project.write_project(folder, PROFILE))
    os.chdir(before)
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prepared: Path) -> Path:
    """A folder in which a rehearsal begins with the packed data."""
    (tmp_path / "profiles").symlink_to(ROOT / "profiles")
    monkeypatch.chdir(tmp_path)

    def copy(stages: cli.Stages, params: Params) -> None:
        for name in ("data", "models", "reports"):
            shutil.copytree(prepared / name, stages.folder / name)

    monkeypatch.setattr(cli, "prepare", copy)
    monkeypatch.setenv("COLUMNS", "1000")  # of the table
    return tmp_path


def in_train(program: str) -> Plant:
    """Run a program before the train stage, in its process."""
    command = [sys.executable, "-c", f"import sys\n{program}\n{RUN_STAGE}"]

    def plant(patch: pytest.MonkeyPatch) -> None:
        plain = cli.Stages.command
        patch.setattr(cli.Stages, "command", lambda self, stage: command if stage == "train" else plain(self, stage))

    return plant


def behind_data(change: Callable[[Path], None]) -> Plant:
    """Change the scratch project when its data is packed."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        plain = cli.prepare

        def prepare(stages: cli.Stages, params: Params) -> None:
            plain(stages, params)
            change(stages.folder)

        patch.setattr(cli, "prepare", prepare)

    return plant


def another_tokenizer(folder: Path) -> None:
    with (folder / "models/base/tokenizer.json").open("a") as file:
        file.write("\n")


def padded_for_another_layout(folder: Path) -> None:
    path = folder / "data/packed/metadata.json"
    write_json(path, {**read_json(path), "pad_segments_to": 1})


def lost_shard(patch: pytest.MonkeyPatch) -> None:
    plain = cli.Stages.kill

    def kill(stages: cli.Stages, training: object) -> None:
        plain(stages, training)  # type: ignore[arg-type]
        next(stages.folder.glob("runs/*/checkpoints/iter_0000005/*.distcp")).unlink()

    patch.setattr(cli.Stages, "kill", kill)


@pytest.mark.parametrize(
    ("plant", "step", "message"),
    [
        (in_train(SWAPPED_EXPERT), "import", "Megatron and transformers differ: logits by"),
        (in_train(LOST_NORM), "import", "Megatron and transformers differ: logits by"),
        (behind_data(padded_for_another_layout), "import", "samples are padded to a multiple of 1, but this layout"),
        (behind_data(another_tokenizer), "import", "its tokenizer is not the one that prepared data/packed"),
        (lost_shard, "train, kill", r"checkpoints/iter_0000005: __\d_\d.distcp is missing"),
    ],
    ids=["swapped expert", "lost norm", "padding", "tokenizer", "shard"],
)
def test_a_fault_is_the_last_line_of_the_table(
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    plant: Plant,
    step: str,
    message: str,
) -> None:
    plant(monkeypatch)
    assert cli.rehearse(PROFILE, None) == 1
    last = capsys.readouterr().out.partition(f"\n {step} ")[2]
    assert re.search(rf"^NOT PROVEN: .*{message}", " ".join(last.split()))


def test_a_rehearsal_on_a_cluster_is_proven_and_a_model_that_the_submitter_reads_is_named(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with running_cluster() as cluster:
        write_cluster_file(here, "loopback", cluster, nodes=2, eval={"nodes": 1}, prep={"ranks_per_node": 1})
        assert cli.rehearse(PROFILE, "loopback") == 0
        shown = capsys.readouterr().out
        assert all(f"\n {step} " in shown for step in cli.STEPS)
        assert "2 ranks on loopback" in shown
        assert "; submitted without a model, in " in shown
        in_train(MODEL_HERE)(monkeypatch)
        assert cli.rehearse(PROFILE, "loopback") == 1
        last = capsys.readouterr().out.partition("\n import ")[2]
        assert "the submitting process imports safetensors" in last


def test_a_base_model_without_a_norm_is_refused_when_it_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import load_file, save_file

    plain = project.tiny_model.write_model

    def without_norm(folder: Path, config: dict) -> None:
        plain(folder, config)
        weights = load_file(folder / "model.safetensors")
        del weights["backbone.layers.0.norm.weight"]
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    (tmp_path / "profiles").symlink_to(ROOT / "profiles")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(project.tiny_model, "write_model", without_norm)
    monkeypatch.setenv("COLUMNS", "1000")
    assert cli.rehearse(PROFILE, None) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "data NOT PROVEN: fetch: exit status 1" in shown
    assert "missing: model.layers.0.norm.weight" in shown
