"""train_job: what a training job reads is in the run's folder. tests/test_submission.py submits and trains."""

from sft.cluster import train_job
from sft.training.launch import Run, read_run


def test_a_job_reads_copies_of_model_and_data_that_later_stages_cannot_change(tmp_path):
    run = Run(tmp_path / "runs/key", tmp_path / "models/base", tmp_path / "imports/1", tmp_path / "data/packed")
    for folder in (run.base, run.packed):
        folder.mkdir(parents=True)
        (folder / "file").write_text(folder.name)
    train_job.copy_inputs(run)
    inputs = run.folder / "inputs"
    assert read_run(run.folder) == Run(run.folder, inputs / "base", run.start, inputs / "packed")
    (run.packed / "file").unlink()
    assert (inputs / "packed/file").read_text() == "packed"
