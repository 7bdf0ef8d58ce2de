"""cluster_file: its keys, and the errors about them."""

import re
from pathlib import Path

import pytest

from sft.cli import InputError
from sft.cluster import cluster_file
from sft.cluster.cluster_file import Cluster, read_cluster_file
from tests.support.project import ROOT
from tests.support.slurm_loopback import write_cluster_file


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return tmp_path


def test_the_cluster_files_of_the_repository_are_valid(monkeypatch):
    monkeypatch.chdir(ROOT)
    names = {path.stem for path in (ROOT / cluster_file.CLUSTER_FILES).glob("*.yaml")}
    assert {"example", "loopback"} <= names
    read = {name: read_cluster_file(name) for name in names}
    assert (read["example"].nodes, read["example"].ranks, read["example"].time) == (4, 32, "4:00:00")
    assert (read["loopback"].ranks, read["loopback"].time) == (2, "30")


def test_the_example_names_every_key():
    text = (ROOT / cluster_file.CLUSTER_FILES / "example.yaml").read_text()
    keys = [*Cluster.model_fields, *cluster_file.Container.model_fields]
    assert len(keys) > 15
    assert [key for key in keys if f"{key}:" not in text] == []


def test_an_unknown_cluster_is_an_error_that_lists_the_known_ones(root):
    write_cluster_file(root, "lab")
    with pytest.raises(InputError, match=r"CLUSTER=mars: slurm/clusters/mars\.yaml: .*: lab\."):
        read_cluster_file("mars")
    with pytest.raises(InputError, match=r"\.\./clusters/lab\.yaml: not found"):
        read_cluster_file("../clusters/lab")
    with pytest.raises(InputError, match=r"^CLUSTER= .*: lab\."):
        read_cluster_file("")


@pytest.mark.parametrize(
    ("keys", "location", "named"),
    [
        ({"partion": "gpu"}, "partion", "'partition'"),
        ({"nodes": 0}, "nodes", "found 0"),
        ({"nodes": "two"}, "nodes", "found 'two'"),
        ({"time": "soon"}, "time", "found 'soon'"),
        ({"ranks_per_node": None}, "lab", "ranks_per_node"),
        ({"gpus_per_node": 8, "ranks_per_node": 4}, "lab", "ranks_per_node is 4, gpus_per_node is 8"),
        ({"sbatch_options": ["--nodes=5"]}, "lab", "sbatch_options: '--nodes=5'"),
        ({"sbatch_options": ["exclusive"]}, "lab", "sbatch_options: 'exclusive'"),
        ({"sbatch_options": ["--array=1-3"]}, "lab", "--array is not possible here: its tasks"),
        ({"sbatch_options": ["--arr=1-3"]}, "lab", "--array is not possible here"),
        ({"sbatch_options": ["--array 1-3"]}, "lab", "expected --name or --name=value"),
        ({"sbatch_options": ["-a1-3"]}, "lab", "expected --name or --name=value"),
        ({"sbatch_options": ["--wrap=true"]}, "lab", "--wrap is not possible here"),
        ({"sbatch_options": ["--test-only"]}, "lab", "--test-only is not possible here"),
        ({"sbatch_options": ["--clusters=other"]}, "lab", "--clusters is not possible here"),
        ({"sbatch_options": ["--error=e.log"]}, "lab", "--error is not possible here"),
        ({"sbatch_options": ["--part=gpu"]}, "lab", "sbatch_options: '--part=gpu'"),
        ({"sbatch_options": ["--mem=0"], "memory_per_node": "9G"}, "lab", "'--mem=0' and memory_per_node"),
        ({"gpus_per_node": "h100"}, "gpus_per_node", "found 'h100'"),
        ({"gpus_per_node": "h100:8", "ranks_per_node": 4}, "lab", "ranks_per_node is 4, gpus_per_node is 8"),
        ({"environment": ["A=1"]}, "environment.0", "found 'A=1'"),
        ({"container": {"imag": "x"}}, "container.imag", "'container.image'"),
        ({"eval": {"nods": 1}}, "eval.nods", "'eval.nodes'"),
    ],
)
def test_an_error_names_the_key_its_line_and_the_right_key_or_value(root, keys, location, named):
    write_cluster_file(root, "lab", **keys)
    with pytest.raises(InputError, match=rf"lab\.yaml:\d+: {re.escape(location)}: .*{re.escape(named)}"):
        read_cluster_file("lab")


def test_a_missing_key_and_a_file_without_keys_are_errors(root):
    path = write_cluster_file(root, "lab")
    path.write_text("nodes: 1\n")
    with pytest.raises(InputError, match="partition: missing"):
        read_cluster_file("lab")
    path.write_text("- nodes\n")
    with pytest.raises(InputError, match=r"lab\.yaml: .*partition.*list"):
        read_cluster_file("lab")


@pytest.mark.parametrize(("time", "limit"), [(10, 600), ("9:30", 570), ("0:05:00", 300)])
def test_a_time_limit_that_leaves_no_time_to_train_is_refused(root, time, limit):
    write_cluster_file(root, "lab", time=time, save_before_seconds=600)
    with pytest.raises(InputError, match=rf"lab\.yaml: save_before_seconds: 600 .* {limit} seconds \(time: {time}\)"):
        read_cluster_file("lab")
    for fits in ("10:01", "0-1", "0"):  # 0: no limit
        write_cluster_file(root, "lab", time=fits, save_before_seconds=600, eval={"time": 1})
        assert read_cluster_file("lab").for_stage("eval").time == "1", "only training is stopped"


def test_a_stage_requests_what_its_section_says_and_otherwise_what_training_does(root):
    write_cluster_file(root, "lab", nodes=4, gpus_per_node=8, ranks_per_node=None, account="us", eval={"nodes": 1})
    cluster = read_cluster_file("lab")
    assert cluster.for_stage("train") == cluster
    assert cluster.for_stage("prep") is None
    evaluation = cluster.for_stage("eval")
    assert (evaluation.nodes, evaluation.gpus, evaluation.account) == (1, 8, "us")
    write_cluster_file(root, "lab", gpus_per_node=8, ranks_per_node=None, prep={"gpus_per_node": 0, "partition": "cpu"})
    prep = read_cluster_file("lab").for_stage("prep")
    assert (prep.partition, prep.ranks_on_node) == ("cpu", 1)


def test_processors_and_memory_of_training_are_not_requested_on_other_nodes(root):
    write_cluster_file(root, "lab", cpus_per_node=64, memory_per_node=0, prep={"partition": "cpu"}, eval={"nodes": 1})
    cluster = read_cluster_file("lab")
    assert [cluster.for_stage(stage).cpus_per_node for stage in ("train", "prep", "eval")] == [64, None, 64]
    assert [cluster.for_stage(stage).memory_per_node for stage in ("train", "prep", "eval")] == ["0", None, "0"]


def test_an_image_that_is_a_file_must_exist(root):
    write_cluster_file(root, "lab", container={"image": "images/a.sqsh"})
    with pytest.raises(InputError, match=r"container\.image: images/a\.sqsh: not found"):
        cluster_file.check_image(read_cluster_file("lab"))
    (root / "images").mkdir()
    (root / "images/a.sqsh").touch()
    cluster_file.check_image(read_cluster_file("lab"))
    write_cluster_file(root, "lab", container={"image": "nvcr.io#nvidia/nemo:1"})
    cluster_file.check_image(read_cluster_file("lab"))


@pytest.mark.parametrize("switch", ["DETACH", "DRY_RUN"])
def test_a_switch_without_a_cluster_is_refused(monkeypatch, switch):
    monkeypatch.delenv("CLUSTER", raising=False)
    monkeypatch.setenv(switch, "0")
    assert cluster_file.requested_cluster() == ""
    monkeypatch.setenv(switch, "1")
    with pytest.raises(InputError, match=f"{switch}=1 .*CLUSTER="):
        cluster_file.requested_cluster()
    monkeypatch.setenv("CLUSTER", "lab")
    assert cluster_file.requested_cluster() == "lab"


def test_cluster_files_are_read_from_the_original_repository(root, monkeypatch):
    """DVC runs experiments in copies and sets DVC_ROOT to the original."""
    write_cluster_file(root / "original", "lab")
    with pytest.raises(InputError, match=r"lab\.yaml: not found"):
        read_cluster_file("lab")
    monkeypatch.setenv("DVC_ROOT", str(root / "original"))
    assert read_cluster_file("lab").nodes == 1
    assert Path("slurm").exists() is False
