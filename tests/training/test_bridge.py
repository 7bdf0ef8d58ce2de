"""bridge: import, training, resume and export of a tiny model on a CPU.

Megatron takes tens of seconds to import and changes its process for good, so this file is also a program: each
`python test_bridge.py SCENARIO FOLDER` runs once in its own process, and the tests read its report.
"""

import dataclasses
import gc
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil  # type: ignore[import-untyped]
import pytest

from sft import files
from sft.cli import InputError
from sft.hashing import folder_digest, folder_digests
from sft.packing.write import build_packs, write_npy
from sft.params.training import TrainParams
from sft.training import bridge, checkpoints, config, manifests, processes
from sft.training.steps import Step
from tests.support import tiny_model as tiny
from tests.support.checkpoint_contents import contents

ROOT = Path(__file__).resolve().parents[2]

PACK = 128
STEPS = 8
PACKS = 7  # with 2 a step, an epoch ends after step 3 and step 6, one pack left out of each
KILLED_AT = 5
SAVED_EVERY = 2
DIVIDED_BY = 4
NO_DROPOUT = {"attention_dropout": 0.0, "hidden_dropout": 0.0}
RECOMPUTE = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}


def train_params(**changes: dict[str, Any]) -> TrainParams:
    sections: dict[str, dict[str, Any]] = {
        "model": {
            "recipe": None,
            "tensor_model_parallel_size": 1,
            "pipeline_model_parallel_size": 1,
            "context_parallel_size": 1,
            "expert_model_parallel_size": 1,
            "sequence_parallel": False,
            "attention_dropout": 0.1,
            "hidden_dropout": 0.1,
            "recompute_granularity": None,
            "recompute_method": None,
            "recompute_num_layers": None,
            "recompute_modules": None,
            "moe_aux_loss_coeff": None,
            "moe_token_dispatcher_type": None,
            "moe_permute_fusion": None,
        },
        "mixed_precision": {"name": "fp32", "grad_reduce_in_fp32": True},
        "peft": {"name": None, "dim": 4, "alpha": 8, "dropout": 0.0, "target_modules": ["linear_qkv", "linear_fc1"]},
        "optimizer": {
            "lr": 3e-3,
            "min_lr": 3e-4,
            "weight_decay": 0.1,
            "adam_beta1": 0.9,
            "adam_beta2": 0.95,
            "adam_eps": 1e-8,
            "clip_grad": 1.0,
        },
        "scheduler": {"lr_decay_style": "cosine", "lr_warmup_iters": 1, "lr_decay_iters": None},
        "train": {"train_iters": STEPS, "global_batch_size": 2, "micro_batch_size": 1},
        "validation": {"eval_interval": 4, "eval_iters": 2},
        "checkpoint": {
            "save_interval": SAVED_EVERY,
            "most_recent_k": 3,
            "save_retain_interval": None,
            "async_save": False,
            "export": "last",
            "pretrained_checkpoint": None,
        },
        "rng": {"seed": 5},
        "bridge": {},
    }
    for section, values in changes.items():
        sections[section] |= values
    return TrainParams.model_validate(sections)


# --- scenarios, each in its own process -----------------------------------------------------------------


def run(
    folder: Path,
    name: str,
    params: TrainParams,
    at_step: Callable[[int], None] | None = None,
    base: str = "base",
    start: Path | None = None,
    stop: Path | None = None,
) -> None:
    """Train `folder/name`; log steps and validations in files beside it."""
    steps, validations = (folder / f"{name}.{kind}.jsonl" for kind in ("steps", "validations"))

    def on_step(step: Step) -> None:
        with steps.open("a") as file:
            file.write(json.dumps(dataclasses.asdict(step)) + "\n")
        if at_step is not None:
            at_step(step.iteration)

    def on_validation(iteration: int, loss: float) -> None:
        with validations.open("a") as file:
            file.write(json.dumps([iteration, loss]) + "\n")

    bridge.train(
        base=folder / base,
        start=start or folder / "start",
        packed=folder / "packed",
        run=folder / name,
        params=params,
        pack_size=PACK,
        on_step=on_step,
        on_validation=on_validation,
        stop=stop,
    )


def export(folder: Path, checkpoint: Path, target: str, params: TrainParams | None = None, base: str = "base") -> None:
    """Export a checkpoint as `folder/target`."""
    bridge.export(
        checkpoint=checkpoint,
        base=folder / base,
        target=folder / target,
        start=folder / "start",
        peft=(params or train_params()).peft,
    )


def half_base(target: Path, base: Path) -> None:
    """Write the base with weights in BF16."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(base, target)
    weights = {name: tensor.bfloat16() for name, tensor in load_file(base / "model.safetensors").items()}
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})


def kept_from(folder: Path, name: str, copy: str, step: int) -> None:
    """Copy a run as it was when a step was its newest."""
    shutil.copytree(folder / name, folder / copy)
    for checkpoint in (folder / copy / "checkpoints").glob("iter_*"):
        if checkpoint > checkpoints.iteration_folder(folder / copy, step):
            checkpoints.remove(checkpoint)


def other_start(folder: Path) -> Path:
    """Import a model with one layer more."""
    tiny.make_tiny_base(folder / "other-base", layers=3)
    bridge.import_base(base=folder / "other-base", checkpoint=folder / "other-start")
    return folder / "other-start"


def import_another_head(folder: Path) -> None:
    """Import the base, which is tied, with an output layer that is not its embedding."""
    from safetensors.torch import load_file, save_file

    base = shutil.copytree(folder / "base", folder / "base-head")
    weights = load_file(base / "model.safetensors")
    other = {"lm_head.weight": weights["model.embed_tokens.weight"] + 1}
    save_file({**weights, **other}, base / "model.safetensors", metadata={"format": "pt"})
    bridge.import_base(base=base, checkpoint=folder / "start-head")


def error_of(function: Callable[[], None]) -> str:
    """Return the message of the InputError that a function raises, "accepted" if none."""
    try:
        function()
    except InputError as error:
        return str(error)
    return "accepted"


def by_epochs() -> TrainParams:
    """As train_params(), by epochs: one of 7 packs is 3 steps of 2."""
    params = train_params(train={"train_iters": None, "epochs": STEPS / 3}).with_steps(PACKS)
    assert params == train_params()
    return params


def killed(folder: Path) -> None:
    """Import the base, then train until the process is killed."""
    tiny.make_tiny_base(folder / "base")
    packs = tiny.make_packs(PACKS, PACK, seed=1)
    for number, pack in enumerate(packs):
        pack["source"] = f"source {number}"  # type: ignore[assignment]
    tiny.write_packs(folder / "packed" / "training", packs, shards=2)
    tiny.write_packs(folder / "packed" / "validation", tiny.make_packs(4, PACK, seed=2))
    bridge.import_base(base=folder / "base", checkpoint=folder / "start")
    from torch.nn import Parameter

    gc.collect()
    weights = sum(each.numel() for each in gc.get_objects() if isinstance(each, Parameter))
    (folder / "weights-in-memory").write_text(str(weights), encoding="ascii")
    run(
        folder,
        "killed",
        by_epochs(),
        lambda step: os.kill(os.getpid(), signal.SIGKILL) if step == KILLED_AT else None,
    )


def whole(folder: Path) -> None:
    """Unbroken, resumed and damaged runs, exports and batches, all in one process."""
    report: dict[str, Any] = {"start_before": folder_digests(folder / "start")}
    bridge.import_base(base=folder / "base", checkpoint=folder / "start")
    report["start_after"] = folder_digests(folder / "start")
    export(folder, folder / "start", "round-trip")

    shutil.copytree(folder / "killed", folder / "torn")
    newest = max((folder / "torn" / "checkpoints").glob("iter_*"))
    report["torn"] = newest.name
    shard = next(newest.glob("*.distcp"))
    with shard.open("r+b") as file:
        file.truncate(shard.stat().st_size // 2)
    (newest.parent / "iter_0000099").mkdir()  # killed while saving: no manifest

    for name in ("unbroken", "killed", "torn"):
        run(folder, name, train_params() if name == "unbroken" else by_epochs())
    run(folder, "unbroken", train_params())  # complete: nothing more happens

    final = checkpoints.final_checkpoint(folder / "unbroken", STEPS)
    report["final"] = None if final is None else final.name
    assert final is not None
    export(folder, final, "final")

    run(folder, "one", train_params(model=NO_DROPOUT))
    kept_from(folder, "unbroken", "edge", 6)
    run(folder, "edge", train_params(validation={"eval_interval": 1, "eval_iters": 1}))
    by_time = {"save_interval": STEPS, "save_minutes": 1e-9}
    run(folder, "recompute", train_params(model=NO_DROPOUT | RECOMPUTE, checkpoint=by_time))
    asynchronous = {"async_save": True, "most_recent_k": 1, "save_retain_interval": 4, "export": "best"}
    run(folder, "async", train_params(model=NO_DROPOUT, checkpoint=asynchronous))

    lora = train_params(model=NO_DROPOUT, peft={"name": "lora"}, optimizer={"lr": 1e-2})
    run(folder, "lora", lora)
    kept_from(folder, "lora", "lora-resumed", 6)
    run(folder, "lora-resumed", lora)
    export(folder, checkpoints.iteration_folder(folder / "lora", STEPS), "lora-final", lora)
    second = checkpoints.iteration_folder(folder / "one", STEPS)
    further = train_params(
        model=NO_DROPOUT, train={"train_iters": 4}, checkpoint={"pretrained_checkpoint": str(second)}
    )
    run(folder, "further", further, start=second)
    copy = shutil.copytree(second, folder / "elsewhere" / second.name)
    adopted = train_params(model=NO_DROPOUT, train={"train_iters": 4}, checkpoint={"pretrained_checkpoint": str(copy)})
    report["foreign start"] = error_of(lambda: run(folder, "adopted", adopted, start=copy))
    digest = folder_digest(copy)
    for name, sha256 in (("another digest", "0" * 64), ("adopted", digest)):
        given = adopted.checkpoint.model_copy(update={"pretrained_sha256": sha256})
        params = adopted.model_copy(update={"checkpoint": given})
        report[name] = error_of(lambda params=params: run(folder, "adopted", params, start=copy))
    report["foreign digest"] = digest
    adapters = checkpoints.iteration_folder(folder / "lora", STEPS)
    for name, start in (
        ("another start", other_start(folder)),
        ("no start", folder / "nothing"),
        ("adapters", adapters),
    ):
        params = train_params(checkpoint={"pretrained_checkpoint": str(start)})
        report[name] = error_of(lambda params=params, start=start: run(folder, "never", params, start=start))
    report["another head"] = error_of(lambda: import_another_head(folder))
    half_base(folder / "base-bf16", folder / "base")
    bridge.import_base(base=folder / "base-bf16", checkpoint=folder / "start-bf16")
    export(folder, folder / "start-bf16", "round-trip-bf16", base="base-bf16")
    report["logits"] = packed_logits(folder)
    report["batches"] = batches(folder)
    diverging = train_params(optimizer={"lr": 1e30, "clip_grad": 0.0})
    report["diverged"] = error_of(lambda: run(folder, "diverged", diverging))  # last: it leaves a process group
    files.write_json(folder / "whole.json", report)


def packed_logits(folder: Path) -> dict[str, float]:
    """Largest difference in the second sample's logits when it is packed behind this or that first sample."""
    import torch
    from megatron.core.packed_seq_params import PackedSeqParams

    _, provider = config.model_of(folder / "final", weights=True)
    second = list(range(300, 312))

    def logits(first: list[int]) -> torch.Tensor:
        ids = torch.tensor([first + second])
        ends = torch.tensor([0, len(first), len(first) + 12][not first :], dtype=torch.int32)
        packed = PackedSeqParams(
            qkv_format="thd", cu_seqlens_q=ends, cu_seqlens_kv=ends, max_seqlen_q=12, max_seqlen_kv=12
        )
        places = torch.tensor([[*range(len(first)), *range(12)]])
        with torch.no_grad():
            return model(ids, places, None, packed_seq_params=packed)[0, len(first) :]

    with processes.one_process(provider):
        (model,) = provider.provide_distributed_model(wrap_with_ddp=False, use_cpu_initialization=True)
        model.eval()
        behind, other, alone = logits([310, 311, 312, 313]), logits([5, 6, 7, 8]), logits([])
        first_matters = (behind - alone).abs().max(), (behind - other).abs().max()
    return {
        "alone": float(first_matters[0]),
        "other first": float(first_matters[1]),
        "size": float(alone.abs().max()),
    }


def batches(folder: Path) -> dict[str, Any]:
    """Read the training packs through Bridge's own dataset classes, from Parquet and from .npy."""
    from megatron.bridge.data.packing.gpt_sft import GPTSFTPackedDataset
    from megatron.bridge.data.packing.parquet import GPTSFTPackedParquetDataset
    from megatron.bridge.training.tokenizers.config import TokenizerConfig
    from megatron.bridge.training.tokenizers.tokenizer import build_tokenizer

    reads = TokenizerConfig(tokenizer_type="HuggingFaceTokenizer", tokenizer_model=str(folder / "base"))
    options = {
        "tokenizer": build_tokenizer(reads),
        "max_seq_length": PACK,
        "memmap_workers": 1,
        "prompt_template": "{input} {output}",
        "label_key": "output",
        "truncation_field": "input",
    }
    rows = tiny.make_packs(PACKS, PACK, seed=1)
    write_npy(folder / "training.npy", rows, len(rows))
    sets = {
        "parquet": GPTSFTPackedParquetDataset(file_path=str(folder / "packed" / "training"), **options),
        "npy": GPTSFTPackedDataset(file_path=str(folder / "training.npy"), **options),
    }
    plain = {}
    for name, packs in sets.items():
        collated = [packs.collate_fn([packs[index]]) for index in range(len(packs))]
        plain[name] = [
            {key: value.tolist() if hasattr(value, "tolist") else value for key, value in batch.items()}
            for batch in collated
        ]
    divided = padded_packs()
    tiny.write_packs(folder / "padded", divided)
    split = GPTSFTPackedParquetDataset(file_path=str(folder / "padded"), pad_seq_to_mult=DIVIDED_BY, **options)
    ends = [split.collate_fn([split[index]])["cu_seqlens_q_padded"][0].tolist() for index in range(len(split))]
    plain["padded"] = {"ends": ends, "samples": [len(pack["seq_start_id"]) for pack in divided]}
    trained = sum(sum(batch["loss_mask"][0]) for batch in plain["parquet"])
    return plain | {"trained": trained, "stored": sum(sum(row["loss_mask"]) for row in rows)}


def padded_packs() -> list[dict[str, Any]]:
    """Packs of our own writer, padded for a layout that divides every sample by DIVIDED_BY."""
    packs = []
    for first, *others in ((5, 9, 12), (8, 17), (33,)):
        lengths = np.array([first, *others])
        parts = [
            (n, np.arange(300, 300 + size, dtype=np.int32), np.ones(size, np.uint8)) for n, size in enumerate(lengths)
        ]
        built = build_packs(parts, lengths, np.array([0, len(lengths)]), DIVIDED_BY, tiny.EOS)
        packs.append({name: column.to_pylist()[0] for name, column in built.columns().items()})
    return packs


def ranks(folder: Path) -> None:
    """Under torchrun: two ranks, each with half of the packs, then each with half of every matrix."""
    run(folder, "two-data", train_params(model=NO_DROPOUT))
    run(folder, "two-tensor", train_params(model=NO_DROPOUT | {"tensor_model_parallel_size": 2}))
    run(folder, "two-dropout", train_params())
    if int(os.environ["RANK"]) == 0:
        kept_from(folder, "two-dropout", "two-copied", 4)
        (folder / "two-copied").rename(folder / "two-resumed")
    while not (folder / "two-resumed").exists():
        time.sleep(0.1)
    run(folder, "two-resumed", train_params())
    rare = train_params(model=NO_DROPOUT, checkpoint={"save_interval": STEPS})
    run(folder, "sigterm", rare, lambda step: end_another_rank() if step == 3 else None, stop=folder / "stop")


def end_another_rank() -> None:
    """Send SIGTERM to the other rank of this machine."""
    for rank in psutil.Process(os.getppid()).children():
        if rank.pid != os.getpid():
            rank.terminate()


def stages(folder: Path) -> None:
    """Under torchrun: three ranks, each with a third of the packs, then each with a third of the layers."""
    for name, model in (("three-data", NO_DROPOUT), ("three-stages", NO_DROPOUT | {"pipeline_model_parallel_size": 3})):
        params = train_params(
            model=model,
            train={"train_iters": 4, "global_batch_size": 3},
            checkpoint={"save_interval": 4},
            validation={"eval_iters": 1},
        )
        run(folder, name, params, base="other-base", start=folder / "other-start")


# --- tests of the results -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bridge")
    program = str(Path(__file__).resolve())
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}"}

    def start(*command: str) -> int:
        return subprocess.run([sys.executable, *command, str(folder)], env=environment, timeout=1200).returncode

    assert start(program, "killed") == -signal.SIGKILL
    assert start(program, "whole") == 0
    torchrun = ("-m", "torch.distributed.run", "--standalone")
    assert start(*torchrun, "--nproc_per_node=2", program, "ranks") == 0
    assert start(*torchrun, "--nproc_per_node=3", program, "stages") == 0
    return folder


def steps(lab: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (lab / f"{name}.steps.jsonl").read_text().splitlines()]


def validations(lab: Path, name: str) -> list[tuple[int, float]]:
    return [tuple(json.loads(line)) for line in (lab / f"{name}.validations.jsonl").read_text().splitlines()]


def shown(lab: Path, name: str) -> list[tuple[int, float, float, float, int]]:
    keys = ("iteration", "loss", "lr", "grad_norm", "tokens")
    return [tuple(step[key] for key in keys) for step in steps(lab, name)]  # type: ignore[misc]


def tensors(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return dict(load_file(folder / "model.safetensors"))


@pytest.mark.pipeline
def test_import_and_export_change_no_bit(lab: Path) -> None:
    import torch

    before, after = tensors(lab / "base"), tensors(lab / "round-trip")
    assert before.keys() == after.keys()
    assert len(before) == 20
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]), name
        assert tensor.dtype == after[name].dtype
    others = {path.name for path in (lab / "base").iterdir()} - {"model.safetensors"}
    assert {"config.json", "generation_config.json", "tokenizer.json"} <= others
    for name in others:
        assert (lab / "base" / name).read_bytes() == (lab / "round-trip" / name).read_bytes()


@pytest.mark.pipeline
def test_import_and_export_change_no_bit_of_16_bit_weights(lab: Path) -> None:
    import torch

    before, after = tensors(lab / "base-bf16"), tensors(lab / "round-trip-bf16")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert after[name].dtype == torch.bfloat16, name
        assert torch.equal(tensor, after[name]), name


@pytest.mark.pipeline
def test_the_part_of_a_sample_that_bridge_reads_is_divisible_for_the_layout(lab: Path) -> None:
    """Of 5, 9, 12 tokens Bridge reads 4, 8, 11; context parallel 2 divides by 4."""
    read = files.read_json(lab / "whole.json")["batches"]["padded"]
    for ends, samples in zip(read["ends"], read["samples"], strict=True):
        own = ends[: samples + 1]
        assert len(own) == samples + 1
        assert [end % DIVIDED_BY for end in own] == [0] * (samples + 1)
    assert read["ends"][0][:4] == [0, 4, 12, 24]


@pytest.mark.pipeline
def test_an_import_leaves_no_weights_in_memory(lab: Path) -> None:
    assert (lab / "weights-in-memory").read_text(encoding="ascii") == "0"


@pytest.mark.pipeline
def test_a_second_import_of_the_same_base_changes_nothing(lab: Path) -> None:
    report = files.read_json(lab / "whole.json")
    assert "iter_0000000/.metadata" in report["start_before"]
    assert report["start_before"] == report["start_after"]


@pytest.mark.pipeline
def test_training_lowers_the_loss_and_reports_every_step(lab: Path) -> None:
    seen = steps(lab, "unbroken")
    assert [step["iteration"] for step in seen] == list(range(1, STEPS + 1))
    assert seen[-1]["loss"] < seen[0]["loss"] - 0.5
    assert seen[0]["lr"] == 0
    assert seen[1]["lr"] == pytest.approx(3e-3)
    assert all(step["grad_norm"] > 0 and step["seconds"] > 0 for step in seen)
    assert [iteration for iteration, _ in validations(lab, "unbroken")] == [4, 8]


@pytest.mark.pipeline
def test_a_step_counts_the_tokens_of_its_packs_without_padding(lab: Path) -> None:
    rows = tiny.make_packs(PACKS, PACK, seed=1)
    inputs = [len(row["input_ids"]) - len(row["seq_start_id"]) for row in rows]
    epoch = sum(step["tokens"] for step in steps(lab, "unbroken")[:3])
    assert epoch in {sum(inputs) - left_out for left_out in inputs}
    trained = [sum(row["loss_mask"]) for row in rows]
    seen = sum(step["trained_tokens"] for step in steps(lab, "unbroken")[:3])
    assert seen in {sum(trained) - left_out for left_out in trained}


@pytest.mark.pipeline
def test_a_killed_run_resumes_with_the_same_numbers(lab: Path) -> None:
    """With dropout: weights, moments, random state and data order are as they were, over an epoch edge."""
    unbroken, killed_run = shown(lab, "unbroken"), shown(lab, "killed")
    assert [step[0] for step in killed_run] == [1, 2, 3, 4, 5, 5, 6, 7, 8]
    assert killed_run[:KILLED_AT] == unbroken[:KILLED_AT]
    assert killed_run[KILLED_AT:] == unbroken[4:]
    assert validations(lab, "killed")[-1] == validations(lab, "unbroken")[-1]


@pytest.mark.pipeline
def test_two_ranks_that_resume_draw_the_same_dropout_as_an_unbroken_run(lab: Path) -> None:
    """Each has packs of other lengths, so it has drawn other numbers than the rank whose random state is kept."""
    unbroken, resumed = shown(lab, "two-dropout"), shown(lab, "two-resumed")
    assert resumed == unbroken[4:]
    last = [checkpoints.iteration_folder(lab / name, STEPS) for name in ("two-dropout", "two-resumed")]
    assert contents(last[0]) == contents(last[1])


@pytest.mark.pipeline
def test_a_run_resumes_from_the_checkpoint_before_a_damaged_one(lab: Path) -> None:
    assert files.read_json(lab / "whole.json")["torn"] == "iter_0000004"
    torn = shown(lab, "torn")
    assert [step[0] for step in torn] == [3, 4, 5, 6, 7, 8]
    assert torn == shown(lab, "unbroken")[2:]
    assert not (lab / "torn" / "checkpoints" / "iter_0000099").exists()


@pytest.mark.pipeline
def test_a_gradient_that_is_no_number_ends_the_run_before_a_save_and_names_the_packs(lab: Path) -> None:
    message = files.read_json(lab / "whole.json")["diverged"]
    last = steps(lab, "diverged")[-1]
    assert message.startswith(f"step {last['iteration']}: the loss is ")
    assert np.isnan(last["grad_norm"])
    assert f"of step {last['iteration'] - 1}, before it" in message
    assert len(re.findall(r"^  pack \d$", message, re.MULTILINE)) == 2


@pytest.mark.pipeline
def test_the_newest_checkpoints_are_kept_with_their_manifests(lab: Path) -> None:
    kept = ["iter_0000004", "iter_0000006", "iter_0000008"]
    assert sorted(path.name for path in (lab / "unbroken" / "checkpoints").glob("iter_*")) == kept
    assert sorted(path.stem for path in (lab / "unbroken" / "manifests").iterdir()) == kept
    assert files.read_json(lab / "whole.json")["final"] == "iter_0000008"
    assert checkpoints.final_checkpoint(lab / "unbroken", STEPS + 1) is None


@pytest.mark.pipeline
def test_a_run_resumed_at_the_end_of_an_epoch_has_the_same_numbers(lab: Path) -> None:
    """Of 7 packs, 2 a step, an epoch ends with step 6. It is validated at other steps, so with other draws between."""
    edge = shown(lab, "edge")
    assert [step[0] for step in edge] == [7, 8]
    assert edge == shown(lab, "unbroken")[6:]
    assert [step for step, _ in validations(lab, "edge")] == [7, 8]
    last = [contents(checkpoints.iteration_folder(lab / name, STEPS)) for name in ("edge", "unbroken")]
    assert last[0] == last[1]


@pytest.mark.pipeline
def test_a_rank_that_gets_sigterm_makes_all_save_and_leave_the_mark_of_a_stop(lab: Path) -> None:
    assert (lab / "stop").exists()
    assert checkpoints.last_finished_step(lab / "sigterm") in (3, 4)
    assert len(steps(lab, "sigterm")) in (3, 4)


@pytest.mark.pipeline
def test_a_checkpoint_is_saved_when_its_minutes_have_passed(lab: Path) -> None:
    kept = sorted(path.stem for path in (lab / "recompute" / "manifests").iterdir())
    assert kept == [f"iter_{step:07d}" for step in (STEPS - 2, STEPS - 1, STEPS)]


@pytest.mark.pipeline
def test_a_step_has_its_operations_and_memory(lab: Path) -> None:
    first, *_ = steps(lab, "one")
    assert first["flops"] > 6 * first["tokens"] * 10_000, "six operations a token and weight, of more than 10,000"
    assert first["mfu"] is None
    adapters, *_ = steps(lab, "lora")
    assert adapters["tokens"] == first["tokens"]
    assert 2 / 3 < adapters["flops"] / first["flops"] < 0.7, "frozen weights have no gradient of their own"
    assert 10**8 < first["peak_memory"] < 10**11


@pytest.mark.pipeline
def test_gradient_checkpointing_changes_no_number(lab: Path) -> None:
    assert shown(lab, "recompute") == shown(lab, "one")


@pytest.mark.pipeline
def test_a_run_from_another_s_weights_has_its_own_steps_and_schedule(lab: Path) -> None:
    first, further = shown(lab, "one"), shown(lab, "further")
    assert [step[0] for step in further] == [1, 2, 3, 4]
    assert [step[2] for step in further[:2]] == [0.0, pytest.approx(3e-3)]
    assert further[0][1] < first[0][1] - 0.5
    assert shown(lab, "adopted") == further


@pytest.mark.pipeline
def test_async_saving_changes_no_number_and_keeps_the_same_checkpoints(lab: Path) -> None:
    """Newest, every fourth step, and the best; each manifest tells of the files of its own step."""
    assert shown(lab, "async") == shown(lab, "one")
    losses = checkpoints.losses(lab / "async")
    assert sorted(losses) == [4, 8]
    there = sorted((lab / "async" / "checkpoints").glob("iter_*"))
    assert [path.name for path in there] == ["iter_0000004", "iter_0000008"]
    for path in there:
        checkpoints.verify(path)
    rules = train_params(checkpoint={"export": "best"}).checkpoint
    best = checkpoints.checkpoint_to_export(lab / "async", STEPS, rules)
    assert best == checkpoints.iteration_folder(lab / "async", min(losses, key=lambda step: losses[step]))


@pytest.mark.pipeline
def test_adapters_train_resume_and_merge(lab: Path) -> None:
    import torch

    trained = shown(lab, "lora")
    assert trained[-1][1] < trained[0][1] - 0.1
    assert shown(lab, "lora-resumed") == trained[6:]
    whole = lab / "one" / "checkpoints" / "iter_0000008"
    adapters = lab / "lora" / "checkpoints" / "iter_0000008"
    sizes = [sum(path.stat().st_size for path in folder.glob("*.distcp")) for folder in (adapters, whole)]
    assert sizes[0] < sizes[1] / 5, "the frozen weights are not in its checkpoints"
    before, after = tensors(lab / "base"), tensors(lab / "lora-final")
    changed = {name.split(".")[-2] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"}
    assert validations(lab, "lora")[-1][1] == pytest.approx(loss_by_transformers(lab / "lora-final"), abs=1e-4)


@pytest.mark.pipeline
def test_samples_do_not_attend_to_each_other_in_the_middle_stage_of_a_pipeline(lab: Path) -> None:
    """Megatron-Bridge #2952: before 0.6, stages that are neither first nor last got no boundaries of samples."""
    data, layers = shown(lab, "three-data"), shown(lab, "three-stages")
    assert len(data) == 4
    for one, other in zip(data, layers, strict=True):
        assert one == pytest.approx(other, rel=1e-4)
    assert validations(lab, "three-data")[-1][1] == pytest.approx(validations(lab, "three-stages")[-1][1], rel=1e-5)


@pytest.mark.pipeline
def test_a_checkpoint_that_does_not_fit_is_an_error_before_it_is_loaded(lab: Path) -> None:
    report = files.read_json(lab / "whole.json")
    place = "params.yaml: checkpoint.pretrained_checkpoint: "
    assert all(report[case].startswith(place) for case in ("another start", "adapters", "no start"))
    assert "layers 3 instead of 2" in report["another start"]
    assert "lora/checkpoints/iter_0000008: has adapters only" in report["adapters"]
    assert "/nothing: not found" in report["no start"]
    assert report["foreign start"].startswith(place)
    assert report["foreign start"].endswith(f"set checkpoint.pretrained_sha256: {report['foreign digest']}")
    assert report["another digest"].endswith(f"set checkpoint.pretrained_sha256: {report['foreign digest']}")
    assert report["adopted"] == "accepted"
    assert "lm_head.weight differs from model.embed_tokens.weight" in report["another head"]


@pytest.mark.pipeline
def test_a_checkpoint_has_its_estimated_size(lab: Path) -> None:
    saved = lab / "one" / "checkpoints" / "iter_0000008"
    weights = sum(path.stat().st_size for path in saved.glob("*.distcp"))
    assert weights == pytest.approx(12 * 99_648, rel=0.2)  # headers of small tensors are a sixth here


def loss_by_transformers(folder: Path, pack_size: int = PACK) -> float:
    """Mean loss over the trained tokens of the validation packs, each sample alone, as evaluation loads the model."""
    import torch

    from sft.evaluation.generate import load_model

    model = load_model(folder)
    total, trained = 0.0, 0
    for row in tiny.make_packs(4, pack_size, seed=2):
        edges = [*row["seq_start_id"], len(row["input_ids"])]
        for begin, end in itertools.pairwise(edges):
            ids = torch.tensor(row["input_ids"][begin:end])
            mask = torch.tensor(row["loss_mask"][begin : end - 1])
            with torch.no_grad():
                logits = model(ids[None]).logits[0, :-1]
            losses = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none")
            total, trained = total + float((losses * mask).sum()), trained + int(mask.sum())
    assert trained > 100
    return total / trained


@pytest.mark.pipeline
def test_validation_loss_equals_that_of_transformers_for_each_sample_alone(lab: Path) -> None:
    assert validations(lab, "unbroken")[-1][1] == pytest.approx(loss_by_transformers(lab / "final"), abs=1e-4)


@pytest.mark.pipeline
def test_training_changes_every_tensor_of_the_exported_model(lab: Path) -> None:
    import torch

    before, after = tensors(lab / "base"), tensors(lab / "final")
    assert before.keys() == after.keys()
    assert not [name for name in before if torch.equal(before[name], after[name])]


@pytest.mark.pipeline
def test_a_packed_sample_has_the_logits_it_has_alone(lab: Path) -> None:
    logits = files.read_json(lab / "whole.json")["logits"]
    assert logits["size"] > 0.1
    assert logits["alone"] < 1e-5
    assert logits["other first"] < 1e-5


@pytest.mark.pipeline
def test_npy_and_parquet_give_the_same_batches(lab: Path) -> None:
    found = files.read_json(lab / "whole.json")["batches"]
    assert len(found["parquet"]) == PACKS
    assert {"tokens", "labels", "loss_mask", "position_ids", "cu_seqlens_q"} <= found["parquet"][0].keys()
    assert found["parquet"] == found["npy"]


@pytest.mark.pipeline
def test_bridge_trains_exactly_the_marked_tokens(lab: Path) -> None:
    found = files.read_json(lab / "whole.json")["batches"]
    assert found["stored"] > 100
    assert found["trained"] == found["stored"]


@pytest.mark.pipeline
@pytest.mark.parametrize("name", ["two-data", "two-tensor"])
def test_two_ranks_train_as_one_does(lab: Path, name: str) -> None:
    one, two = steps(lab, "one"), steps(lab, name)
    assert len(two) == STEPS
    for key, tolerance in (("loss", 1e-4), ("grad_norm", 1e-3), ("tokens", 0), ("trained_tokens", 0), ("lr", 0)):
        assert [step[key] for step in two] == pytest.approx([step[key] for step in one], rel=tolerance)
    assert len(validations(lab, name)) == 2


@pytest.mark.pipeline
def test_bridge_writes_to_its_log_only(lab: Path) -> None:
    assert "Starting training loop at iteration" in (lab / "unbroken" / "logs" / "bridge.log").read_text()
    assert sorted(path.name for path in (lab / "packed").iterdir()) == ["training", "validation"]
    assert sorted(path.name for path in (lab / "unbroken").iterdir()) == [
        "checkpoints",
        "logs",
        "manifests",
        "params.json",
        "validation",
        "validation_losses.json",
    ]


def test_the_tiny_base_always_has_the_same_bytes(tmp_path: Path) -> None:
    tiny.make_tiny_base(tmp_path / "one")
    tiny.make_tiny_base(tmp_path / "two")
    digests = folder_digests(tmp_path / "one")
    assert "model.safetensors" in digests
    assert digests == folder_digests(tmp_path / "two")


if __name__ == "__main__":
    {"killed": killed, "whole": whole, "ranks": ranks, "stages": stages}[sys.argv[1]](Path(sys.argv[2]))


@pytest.mark.parametrize(("rank", "reads"), [(None, True), ("0", True), ("1", False)])
def test_a_foreign_checkpoint_is_read_for_its_digest_by_the_first_rank_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, rank: str | None, reads: bool
) -> None:
    class GeometryError(Exception):
        pass

    def geometry_of_checkpoint(folder: Path) -> None:
        raise GeometryError

    read: list[Path] = []
    monkeypatch.setattr(bridge, "check_start", lambda start, sha256: read.append(start))
    monkeypatch.setattr(config, "model_of", lambda *_, **__: (None, None))
    monkeypatch.setattr(config, "geometry_of", lambda provider: None)
    monkeypatch.setattr(config, "geometry_of_checkpoint", geometry_of_checkpoint)
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    start = tmp_path / "iter_0000001"
    params = train_params(checkpoint={"pretrained_checkpoint": str(start)})
    with pytest.raises(GeometryError):
        bridge.check(base=tmp_path, start=start, packed=tmp_path, run=tmp_path, params=params, ranks=2)
    assert read == [start] * reads


def test_a_start_that_is_not_hashed_yet_is_not_said_to_be_of_another_program(tmp_path: Path) -> None:
    start = checkpoints.iteration_folder(tmp_path, 2)
    start.mkdir(parents=True)
    files.write_json(manifests.record_of_save(checkpoints.manifest_of(start)), {})
    message = error_of(lambda: bridge.check_start(start, None))
    assert "not hashed yet" in message
    assert "Another program" not in message
