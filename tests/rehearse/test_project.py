"""The scratch project of a rehearsal: params, rows, ranks."""

import json
from pathlib import Path

import pytest

from sft.cli import InputError
from sft.cluster import slurm
from sft.cluster.cluster_file import Cluster
from sft.files import write_json
from sft.params.check import Params, read
from sft.params.read import read_text, read_yaml
from sft.planning.checks import segment_multiple
from sft.rehearse import cli, project

ROOT = Path(__file__).parents[2]
PROFILES = sorted(path.stem for path in (ROOT / "profiles").glob("*.yaml"))


def test_a_profile_that_is_not_there_is_an_error_with_those_that_are(tmp_path: Path):
    with pytest.raises(InputError, match=r"^PROFILE=nano: .* not found. Profiles: nemotron3-nano, "):
        project.write_project(tmp_path, "nano")


def test_a_path_is_no_profile_and_its_folder_stays(tmp_path: Path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine.yaml").write_text((ROOT / "profiles/nemotron3-nano.yaml").read_text(encoding="utf-8"))
    with pytest.raises(InputError, match="not found"):
        cli.rehearse(str(tmp_path / "mine"), None)
    assert (tmp_path / "mine").is_dir()


def test_a_profile_with_epochs_a_digest_and_excluded_licenses_becomes_a_rehearsal():
    path = ROOT / "profiles/nemotron3-nano.yaml"
    values = read_text(path)[1]
    values["train"] |= {"train_iters": None, "epochs": 1.5}
    values["checkpoint"] |= {"pretrained_checkpoint": "x", "pretrained_sha256": "0" * 64}
    values["pack"]["exclude_licenses"] = ["unspecified"]
    real = Params.model_validate(values)
    tiny = Params.model_validate(project.scaled(values, real))
    assert (tiny.train.steps, tiny.pack.exclude_licenses) == (project.STEPS, [])
    assert any("1.5 epochs" in line for line in cli.only_on_gpus(real))


@pytest.mark.parametrize("name", PROFILES)
def test_params_are_those_of_the_profile_but_for_sizes(name: str):
    path = ROOT / f"profiles/{name}.yaml"
    real = read(path)
    values = project.scaled(read_text(path)[1], real)
    tiny = Params.model_validate(values)
    for axis, size in project.sizes_of(real).items():
        assert project.sizes_of(tiny)[axis] == min(2, size), axis
    assert tiny.training.model.recipe == real.training.model.recipe
    assert tiny.training.model.sequence_parallel == real.training.model.sequence_parallel
    assert tiny.training.model.recompute_granularity == real.training.model.recompute_granularity
    assert (tiny.prep, tiny.filter.repetition) == (real.prep, real.filter.repetition)
    assert tiny.pack.pad_segments_to == segment_multiple(tiny.training.model)
    assert tiny.training.train.global_batch_size % project.ranks_of(tiny) == 0


@pytest.mark.parametrize(
    ("sizes", "ranks"), [((1, 1, 1, 8), 8), ((4, 1, 8, 8), 32), ((2, 2, 1, 1), 4), ((2, 1, 1, 2), 2), ((1, 2, 1, 2), 4)]
)
def test_ranks_are_the_fewest_that_the_layout_needs(sizes: tuple[int, ...], ranks: int):
    params = read(ROOT / "profiles/nemotron3-nano.yaml")
    model = params.model.model_copy(update=dict(zip(project.AXES, sizes, strict=True)))
    assert project.ranks_of(params.model_copy(update={"model": model})) == ranks


def test_sources_are_the_first_of_each_way_to_read_with_and_without_tools():
    chosen = project.chosen_sources(read(ROOT / "profiles/nemotron3-nano.yaml"))
    assert list(chosen) == ["chat-if", "agents-interactive"]
    assert sum(source["share"] for source in chosen.values()) == pytest.approx(1)
    assert all(source["read"]["select"] == {"used_in": ["nano_v3"]} for source in chosen.values())


def test_rows_are_the_same_each_time_and_have_the_values_that_select_accepts():
    rows = list(project.made_up_rows(1, {"used_in": ["nano_v3", "x"]}))
    assert rows == list(project.made_up_rows(1, {"used_in": ["nano_v3", "x"]}))
    assert len({json.dumps(row) for row in rows}) == project.ROWS
    assert {tuple(row["used_in"]) for row in rows} == {("nano_v3",)}
    kinds = {(len(row["messages"]), "tools" in row, "reasoning_content" in row["messages"][1]) for row in rows}
    assert kinds == {
        (2, False, False),
        (2, False, True),
        (2, True, False),
        (2, True, True),
        (4, True, False),
        (4, True, True),
    }


def test_a_cluster_file_gets_the_ranks_of_the_layout_and_no_gpus(tmp_path: Path):
    project.write_cluster_file(tmp_path, "example", 4)
    values = read_text(tmp_path / "slurm/clusters/example.yaml")[1]
    assert values["nodes"] * values["ranks_per_node"] == 4
    assert values["gpus_per_node"] == 0
    assert (tmp_path / "dvc.yaml").samefile(ROOT / "dvc.yaml")
    with pytest.raises(InputError, match=r"^CLUSTER=none: "):
        project.write_cluster_file(tmp_path, "none", 4)


def test_what_a_cluster_file_requests_for_gpus_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    options = ["--gres=gpu:h100:8", "--mem-per-gpu=80G", "--qos=gpu", "--exclusive"]
    file = tmp_path / "slurm/clusters/mine.yaml"
    cluster = {"partition": "gpu", "nodes": 2, "gpus_per_node": 8, "time": 60, "sbatch_options": options}
    write_json(file, {**cluster, "eval": {"nodes": 1, "gpus_per_node": 8, "sbatch_options": ["--gpus=8"]}})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(project, "read_cluster_file", lambda name: None)
    project.write_cluster_file(tmp_path / "scratch", "mine", 4)
    cluster = read_yaml(tmp_path / "scratch/slurm/clusters/mine.yaml", Cluster)
    for stage in ("train", "eval"):
        command = slurm.submit_command(cluster.for_stage(stage), target=stage, name="x", run=tmp_path)
        assert not [each for each in command if "gpu" in each and not each.startswith(("--qos", "--partition"))]
    assert cluster.sbatch_options == ["--qos=gpu", "--exclusive"]
