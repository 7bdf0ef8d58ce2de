"""cluster: what a cluster's profile may say, and what its mistakes are called."""

from pathlib import Path

import pytest

from sft.cli import InputError
from sft.cluster import cluster_file
from sft.cluster.cluster_file import Cluster, read_cluster_file
from tests.support.project import ROOT
from tests.support.slurm_loopback import write_profile


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return tmp_path


def test_the_profiles_of_the_repository_are_right(monkeypatch):
    monkeypatch.chdir(ROOT)
    names = {path.stem for path in (ROOT / cluster_file.PROFILES).glob("*.yaml")}
    assert {"example", "loopback"} <= names
    read = {name: read_cluster_file(name) for name in names}
    assert (read["example"].nodes, read["example"].ranks, read["example"].time) == (4, 32, "4:00:00")
    assert (read["loopback"].ranks, read["loopback"].time) == (2, "30")


def test_the_example_names_every_key():
    text = (ROOT / cluster_file.PROFILES / "example.yaml").read_text()
    keys = [*Cluster.model_fields, *cluster_file.Container.model_fields]
    assert len(keys) > 15
    assert [key for key in keys if f"{key}:" not in text] == []


def test_without_a_profile_of_that_name_the_message_lists_those_that_are_there(root):
    write_profile(root, "lab")
    with pytest.raises(InputError, match=r"CLUSTER=mars: no profile slurm/clusters/mars.yaml. Profiles here: lab."):
        read_cluster_file("mars")
    with pytest.raises(InputError, match=r"no profile"):
        read_cluster_file("../clusters/lab")
    with pytest.raises(InputError, match=r"^CLUSTER= names no profile. Profiles here: lab."):
        read_cluster_file("")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"partion": "gpu"}, r"lab.yaml:\d+: partion: unknown key. Did you mean 'partition'\?"),
        ({"nodes": 0}, "nodes: Input should be greater than 0"),
        ({"nodes": "two"}, "nodes: Input should be a valid integer"),
        ({"time": "soon"}, "time: String should match"),
        ({"ranks_per_node": None}, "ranks_per_node must say how many processes train on a node"),
        ({"gpus_per_node": 8, "ranks_per_node": 4}, "with GPUs it is their number"),
        ({"options": ["--nodes=5"]}, "options: '--nodes=5': is set by the profile's own keys or by the job"),
        ({"options": ["exclusive"]}, "options: 'exclusive': expected --name=value"),
        ({"environment": ["A=1"]}, "environment"),
        ({"container": {"imag": "x"}}, r"container.imag: unknown key. Did you mean 'container.image'\?"),
        ({"eval": {"nods": 1}}, r"eval.nods: unknown key. Did you mean 'eval.nodes'\?"),
    ],
)
def test_a_mistake_is_named_with_its_place_and_the_right_name(root, keys, message):
    write_profile(root, "lab", **keys)
    with pytest.raises(InputError, match=message):
        read_cluster_file("lab")


def test_a_missing_key_and_a_file_that_is_no_mapping_are_named(root):
    path = write_profile(root, "lab")
    path.write_text("nodes: 1\n")
    with pytest.raises(InputError, match="partition: missing"):
        read_cluster_file("lab")
    path.write_text("- nodes\n")
    with pytest.raises(InputError, match="expected keys"):
        read_cluster_file("lab")


@pytest.mark.parametrize(("time", "limit"), [(10, 600), ("9:30", 570), ("0:05:00", 300)])
def test_a_training_that_would_be_requeued_from_its_first_second_is_refused(root, time, limit):
    write_profile(root, "lab", time=time, stop_seconds=600)
    asked = rf"lab.yaml: time is {time}, {limit} seconds, and stop_seconds is 600: .* to less than {limit}"
    with pytest.raises(InputError, match=asked):
        read_cluster_file("lab")
    for fits in ("10:01", "0-1", "0"):  # 0: without a limit
        write_profile(root, "lab", time=fits, stop_seconds=600, eval={"time": 1})
        assert read_cluster_file("lab").asked_by("eval").time == "1", "only training is stopped"


def test_a_stage_asks_for_what_its_section_says_and_for_the_rest_as_training_does(root):
    write_profile(root, "lab", nodes=4, gpus_per_node=8, ranks_per_node=None, account="us", eval={"nodes": 1})
    cluster = read_cluster_file("lab")
    assert cluster.asked_by("train") == cluster
    assert cluster.asked_by("prep") is None
    evaluation = cluster.asked_by("eval")
    assert (evaluation.nodes, evaluation.gpus_per_node, evaluation.account) == (1, 8, "us")
    write_profile(root, "lab", gpus_per_node=8, ranks_per_node=None, prep={"gpus_per_node": 0, "partition": "cpu"})
    prep = read_cluster_file("lab").asked_by("prep")
    assert (prep.partition, prep.ranks_on_node) == ("cpu", 1)


def test_an_image_that_is_a_file_must_be_there(root):
    write_profile(root, "lab", container={"image": "images/a.sqsh"})
    with pytest.raises(InputError, match=r"images/a.sqsh: no such image"):
        cluster_file.find_image(read_cluster_file("lab"))
    (root / "images").mkdir()
    (root / "images/a.sqsh").touch()
    cluster_file.find_image(read_cluster_file("lab"))
    write_profile(root, "lab", container={"image": "nvcr.io#nvidia/nemo:1"})
    cluster_file.find_image(read_cluster_file("lab"))


@pytest.mark.parametrize("switch", ["DETACH", "DRY_RUN"])
def test_a_switch_without_a_cluster_is_refused(monkeypatch, switch):
    monkeypatch.delenv("CLUSTER", raising=False)
    monkeypatch.setenv(switch, "0")
    assert cluster_file.requested_cluster() == ""
    monkeypatch.setenv(switch, "1")
    with pytest.raises(InputError, match=f"{switch}=1 is about a cluster's job"):
        cluster_file.requested_cluster()
    monkeypatch.setenv("CLUSTER", "lab")
    assert cluster_file.requested_cluster() == "lab"


def test_profiles_are_those_of_the_original_repository(root, monkeypatch):
    """DVC runs experiments in copies, and says where the original is."""
    write_profile(root / "original", "lab")
    with pytest.raises(InputError, match="no profile"):
        read_cluster_file("lab")
    monkeypatch.setenv("DVC_ROOT", str(root / "original"))
    assert read_cluster_file("lab").nodes == 1
    assert Path("slurm").exists() is False
