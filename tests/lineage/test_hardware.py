"""hardware: GPUs and driver as nvidia-smi lists them; a machine without one has none."""

from sft.lineage import hardware


def test_gpus_and_driver_are_those_that_the_driver_lists(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert (hardware.machine()["gpus"], hardware.machine()["driver"]) == ([], None)
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'NVIDIA H100 80GB HBM3, 580.65'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert (hardware.machine()["gpus"], hardware.machine()["driver"]) == (["NVIDIA H100 80GB HBM3"], "580.65")
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    assert hardware.machine()["gpus"] == []
