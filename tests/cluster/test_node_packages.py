"""node_packages: which versions a node may have, and what is written about them."""

import errno
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from sft.cluster import node_packages
from tests.support.project import ROOT

PINS = {
    "torch": "2.13.0+cpu",
    "megatron-core": "0.19.2",
    "megatron-bridge": "0.6.2",
    "transformers": "5.12.1",
    "tokenizers": "0.22.2",
    "numpy": "2.3.5",
    "pyarrow": "22.0.0",
}
PINNED = {**PINS, "torch": "2.13.0+cu130"}
# NVIDIA NeMo Framework 26.06, and the image that NVIDIA's recipe for Nemotron 3 Nano names.
NEMO_26_06 = {
    **PINS,
    "torch": "2.12.0a0+9fc2b8d",
    "megatron-core": "0.18.0",
    "megatron-bridge": "0.5.0",
    "transformers": "5.8.1",
    "transformer_engine": "2.16.0",
}
NEMO_25_11 = {**PINS, "torch": "2.9.0a0+145a3a7", "megatron-core": "0.15.0rc8", "megatron-bridge": "0.2.0"}


@pytest.fixture
def node(tmp_path):
    """Check a node that has packages; return (exit status, what it prints). Each call is a node of an attempt."""
    run = tmp_path / "0123456789abcdef"
    (run / "code").mkdir(parents=True)
    (run / "code/packages.txt").write_text("".join(f"{name}=={version}\n" for name, version in PINS.items()))

    def check(packages: dict[str, str], policy: str, attempt: str = "7-0") -> tuple[int, str]:
        site = tmp_path / f"site-{len(list(tmp_path.iterdir()))}"
        site.mkdir()
        (site / "nvidia-smi").write_text("#!/bin/sh\nprintf 'NVIDIA H100, 580.65\\nNVIDIA H100, 580.65\\n'\n")
        (site / "nvidia-smi").chmod(0o755)
        for name, version in packages.items():
            info = site / f"{name.replace('-', '_')}-{version}.dist-info"
            info.mkdir(parents=True)
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (run / "logs" / attempt).mkdir(parents=True, exist_ok=True)
        (run / "logs/latest").unlink(missing_ok=True)
        (run / "logs/latest").symlink_to(attempt)
        done = subprocess.run(
            [sys.executable, "-S", "-m", "sft.cluster.node_packages"],  # -S: none of this environment's packages
            env={
                "PATH": f"{site}:{os.environ['PATH']}",
                "PYTHONPATH": f"{ROOT / 'src'}:{site}",
                "SFT_RUN": str(run),
                "SFT_CODE": str(run / "code"),
                "SFT_PACKAGES": policy,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return done.returncode, done.stdout

    check.run = run
    return check


def test_exact_accepts_the_pins_with_another_build_only(node):
    assert node(NEMO_26_06, "exact")[0] == 1
    status, output = node(NEMO_25_11, "exact")
    assert status == 1
    assert "error: torch: found 2.9.0a0+145a3a7, expected 2.13.0+cpu\n" in output
    assert "error: megatron-core: found 0.15.0rc8, expected 0.19.2\n" in output
    assert "transformers:" not in output
    assert "packages: recorded" in output
    assert not (node.run / "packages.json").exists(), "a refused node is no attempt"
    assert node(PINNED, "exact")[0] == 0


@pytest.mark.parametrize("image", [NEMO_26_06, NEMO_25_11])
def test_recorded_accepts_a_container_and_writes_its_versions(node, image):
    assert node(image, "recorded")[0] == 0
    written = json.loads((node.run / "logs/7-0/packages.json").read_text())
    assert {name: written[name.replace("_", "-")] for name in image} == image
    assert written["mamba-ssm"] == "none"


def test_recorded_still_needs_every_package(node):
    status, output = node({name: version for name, version in PINNED.items() if name != "pyarrow"}, "recorded")
    assert (status, output.splitlines()[0]) == (1, "error: pyarrow: not installed")


def test_an_attempt_with_other_packages_than_the_first_stops_unless_recorded(node):
    assert node({**PINNED, "transformer-engine": "2.16.0"}, "exact")[0] == 0
    status, output = node({**PINNED, "transformer-engine": "2.17.0"}, "exact", "7-1")
    assert status == 1
    assert "error: transformer-engine: found 2.17.0, earlier 2.16.0\n" in output
    assert "first attempt of 0123456789abcdef" in output
    status, output = node(NEMO_26_06, "recorded", "8-0")
    assert status == 0
    assert "note: torch: found 2.12.0a0+9fc2b8d, earlier 2.13.0+cu130\n" in output
    assert json.loads((node.run / "packages.json").read_text())["torch"] == "2.13.0+cu130"
    assert json.loads((node.run / "logs/8-0/packages.json").read_text())["torch"] == "2.12.0a0+9fc2b8d"


@pytest.mark.parametrize("policy", ["exact", "recorded"])
def test_the_nodes_of_an_attempt_have_the_same_packages(node, policy):
    assert node(PINNED, policy)[0] == 0
    status, output = node({**PINNED, "triton": "3.5.0"}, policy)
    assert status == 1
    assert "triton: found 3.5.0, earlier none" in output
    assert "another node of this attempt" in output


def test_the_record_of_a_model_has_the_hardware_of_every_node_and_that_of_the_newest_attempt(node):
    assert node_packages.recorded(node.run) == {}
    for attempt in ("9-0", "10-0"):
        assert node(PINNED, "exact", attempt)[0] == 0
    other = node.run / "logs/10-0/hardware-zz.json"
    other.write_text(json.dumps({"gpus": ["NVIDIA H200"]}))
    facts = node_packages.recorded(node.run)
    assert list(facts["node_packages"]) == list(facts["node_hardware"]) == ["9-0", "10-0"]
    assert facts["node_hardware"]["9-0"][socket.gethostname()]["driver"] == "580.65"
    assert facts["hardware"]["gpus"] == ["NVIDIA H100", "NVIDIA H100", "NVIDIA H200"]
    assert facts["hardware"]["processor"]


def test_a_disk_that_is_full_leaves_no_half_of_a_node_s_hardware(tmp_path, monkeypatch):
    def full(file, text, **_):
        file.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        node_packages.record_hardware(tmp_path)
    assert list(tmp_path.glob("hardware-*.json")) == []
