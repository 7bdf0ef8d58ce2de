"""hardware: GPUs and driver as nvidia-smi lists them; a machine without one has none."""

import pytest

from sft.lineage import hardware


def test_gpus_and_driver_are_those_that_the_driver_lists(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert (hardware.machine()["gpus"], hardware.machine()["driver"]) == ([], None)
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'NVIDIA H100 80GB HBM3, 580.65'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert (hardware.machine()["gpus"], hardware.machine()["driver"]) == (["NVIDIA H100 80GB HBM3"], "580.65")
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    assert hardware.machine()["gpus"] == []


@pytest.mark.parametrize(("visible", "asked"), [(None, [""]), ("2,3", ["--id=2,3"]), ("", []), ("MIG-4d2c", [""])])
def test_gpus_that_a_process_may_not_use_are_not_its_hardware(tmp_path, monkeypatch, visible, asked):
    (tmp_path / "nvidia-smi").write_text('#!/bin/sh\nshift 2\necho "$*, 580.65"\n')
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert hardware.machine()["gpus"] == asked


def test_a_program_that_cannot_be_run_lists_no_gpu(tmp_path, monkeypatch):
    (tmp_path / "nvidia-smi").write_text("no program")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert hardware.machine()["gpus"] == []
