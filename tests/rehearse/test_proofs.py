"""What a rehearsal takes for proven, and what not."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sft.cli import InputError
from sft.files import write_json
from sft.hashing import folder_digests
from sft.rehearse import proofs
from sft.training import checkpoints

CERTIFICATE = {"logits": 8e-7, "tolerance": 1e-4, "tokens": [50, 104]}


def steps(*losses: tuple[int, float]) -> list[dict[str, float]]:
    return [{"iteration": step, "loss": loss} for step, loss in losses]


KILLED = [(1, 6.0), (2, 5.0), (3, 4.0)]


def test_a_run_that_resumes_at_its_checkpoint_and_repeats_the_loss_is_proven():
    line = proofs.resumed(steps(*KILLED, (3, 4.0), (4, 3.0)), 3, 2)
    assert line == "killed after step 3, resumed from step 2; losses of 1 steps trained twice differ by 0e+00"


@pytest.mark.parametrize(
    ("again", "message"),
    [
        ([(3, 4.1), (4, 3.0)], "losses of steps 3 to 3 differ by 2.5e-02"),
        ([(1, 6.0), (2, 5.0)], "resumed at step 1, expected 3"),
        ([], "resumed at step none, expected 3"),
        ([(3, float("nan"))], "differ by nan"),
    ],
)
def test_a_run_that_starts_again_or_trains_something_else_is_not(again: list[tuple[int, float]], message: str):
    with pytest.raises(InputError, match=message):
        proofs.resumed(steps(*KILLED, *again), 3, 2)


def test_a_run_without_a_step_behind_its_checkpoint_is_not_proven():
    with pytest.raises(InputError, match="no step behind"):
        proofs.resumed(steps(*KILLED, (4, 3.0)), 3, 3)
    line = proofs.resumed(steps(*KILLED, (4, 3.0)), 3, 3, in_job=True)
    assert line == "cancelled after step 3, which was saved; resumed at step 4"
    with pytest.raises(InputError, match="resumed at step 1, expected 4"):
        proofs.resumed(steps(*KILLED, (1, 6.0)), 3, 3, in_job=True)


@pytest.mark.parametrize("certificate", [None, {}, {"skipped": "fewer than 3 GB are free"}])
def test_parity_that_was_not_measured_is_not_proven(certificate: dict | None):
    with pytest.raises(InputError, match="was not measured"):
        proofs.parity_line(certificate)


def make_models(folder: Path, **final: torch.Tensor) -> Path:
    base = {"norm": torch.ones(2), "head": torch.ones(3, 2)}
    for name, tensors in (("base", base), ("final", {**base, **final})):
        (folder / "models" / name).mkdir(parents=True)
        save_file(tensors, folder / f"models/{name}/model.safetensors")
    write_json(folder / "models/base/config.json", {"architectures": ["A"]})
    write_json(folder / "runs/imports/base/parity.json", CERTIFICATE)
    write_json(folder / "runs/imports/base.manifest.json", {})
    write_json(folder / "models/final/lineage.json", {"parity": {"export": CERTIFICATE}})
    return folder


def test_import_and_export_are_proven_by_tensors_and_certificates(tmp_path: Path):
    project = make_models(tmp_path)
    tokens = "prompts of 50 and 104 tokens, at most 1e-04"
    parity = f"logits of Megatron and transformers differ by 8e-07 of the largest ({tokens})"
    assert proofs.imported(project) == f"A: 2 tensors, 8 parameters; {parity}"
    assert proofs.exported(project) == f"2 tensors with the base's names, shapes and formats; {parity}"


@pytest.mark.parametrize(
    "final", [{"norm": torch.ones(3)}, {"norm": torch.ones(2, dtype=torch.bfloat16)}, {"new": torch.ones(1)}]
)
def test_an_export_with_other_tensors_is_not_proven(tmp_path: Path, final: dict[str, torch.Tensor]):
    with pytest.raises(InputError, match=f"1 tensors differ from the base's, such as {next(iter(final))}: "):
        proofs.exported(make_models(tmp_path, **final))


def test_a_loss_that_did_not_fall_is_not_proven(tmp_path: Path):
    run = tmp_path / "runs/key"
    run.mkdir(parents=True)
    entries = [{"kind": "step", "iteration": 1, "loss": 1.0}, {"kind": "step", "iteration": 2, "loss": 0.5}]
    (run / "journal.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    assert proofs.trained(tmp_path) == "2 steps, loss 1.0000 to 0.5000"
    (run / "journal.jsonl").write_text("".join(json.dumps({**entry, "loss": 1.0}) + "\n" for entry in entries))
    with pytest.raises(InputError, match=r"loss 1\.0000 became 1\.0000 in 2 steps"):
        proofs.trained(tmp_path)


def test_a_checkpoint_that_lost_a_shard_is_named(tmp_path: Path):
    run = tmp_path / "runs/key"
    for step in (5, 10):
        checkpoint = checkpoints.iteration_folder(run, step)
        checkpoint.mkdir(parents=True)
        (checkpoint / "__0_0.distcp").write_bytes(b"weights")
        write_json(checkpoints.manifest_of(checkpoint), folder_digests(checkpoint))
    (run / "journal.jsonl").touch()
    assert proofs.saved_step(tmp_path) == 10
    (checkpoint / "__0_0.distcp").unlink()
    with pytest.raises(InputError, match=r"iter_0000010: __0_0.distcp is missing"):
        proofs.saved_step(tmp_path)


def test_a_model_in_memory_where_a_job_is_submitted_is_not_proven():
    assert proofs.submitted(900_000_000) == "submitted without a model, in 0.9 GB"
    with pytest.raises(InputError, match=r"submitting took 126\.0 GB, expected at most 2 GB"):
        proofs.submitted(126_000_000_000)
