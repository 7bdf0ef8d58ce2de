"""Every layout trains as one process does: tensor, sequence, expert, pipeline, data and context parallel, on a CPU.

Three tiny models, as Bridge imports them: Nemotron 3 Nano (Mamba, attention, experts with expert bias, a shared
expert), one of attention and experts, and a dense one. `make test` trains the first in eight ways, `make test-layouts`
all of them in all ways.

A run of Megatron cannot be undone in its process and takes 11 seconds to import, so this file is also a program:
`python test_layouts.py FOLDER NAME ...` trains runs one after the other in one process, or under torchrun in several.
"""

import contextlib
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from torch.testing import assert_close

from sft.cli import InputError
from sft.files import read_json, write_json
from sft.mamba.load import load_folder
from sft.packing.write import padded as padded_length
from sft.planning import checks
from sft.rehearse import tiny_model as names
from sft.training import bridge, checkpoints, config, conversion
from sft.training.steps import Step
from tests.support import tiny_architectures as architectures
from tests.support import tiny_model as tiny
from tests.training.test_bridge import NO_DROPOUT, RECOMPUTE, loss_by_transformers, tensors, train_params

ROOT = Path(__file__).resolve().parents[2]
PACK, STEPS = 128, 4
UNPADDED = 96
"""Tokens of a pack before its samples are padded."""
PADDED_TO = 4
"""Samples of data/packed are padded to this multiple, as context parallel 2 and sequence parallel 2 need."""
RELATIVE = 1e-6
LEAK = 1e-4
RECIPE = "megatron.bridge.recipes.nemotronh.nemotron_3_nano.nemotron_3_nano_sft_config"


@dataclasses.dataclass(frozen=True)
class Way:
    """A way to train: how many processes, what of `model` in params.yaml, and whether optimizer states are shared."""

    ranks: int = 1
    model: dict[str, Any] = dataclasses.field(default_factory=dict)
    distributed_optimizer: bool = False


def layout(ranks: int, tensor: int = 1, pipeline: int = 1, context: int = 1, expert: int = 1) -> Way:
    return Way(
        ranks,
        {
            "tensor_model_parallel_size": tensor,
            "sequence_parallel": tensor > 1,
            "pipeline_model_parallel_size": pipeline,
            "context_parallel_size": context,
            "expert_model_parallel_size": expert,
        },
    )


WAYS = {
    "one": Way(),
    "recompute": Way(model=RECOMPUTE),
    "tp2-sp": layout(2, tensor=2),
    "ep2-recompute": Way(2, {"expert_model_parallel_size": 2, **RECOMPUTE}),
    "ep2-allgather": Way(2, {"expert_model_parallel_size": 2, "moe_token_dispatcher_type": "allgather"}),
    "pp2": layout(2, pipeline=2),
    "dp2": layout(2),
    "dp2-distributed-optimizer": Way(2, distributed_optimizer=True),
    "tp2-sp-ep2": layout(2, tensor=2, expert=2),
    "cp2": layout(2, context=2),
    "tp2-sp-cp2-ep4": layout(4, tensor=2, context=2, expert=4),
    "tp2-sp-pp2-ep2": layout(4, tensor=2, pipeline=2, expert=2),
}
MODELS: dict[str, Callable[[Path], None]] = {
    "nano": architectures.make_tiny_nano,
    "experts": architectures.make_tiny_experts,
    "dense": tiny.make_tiny_base,
}
EXPERTS_ONLY = {name for name, way in WAYS.items() if way.model.get("expert_model_parallel_size", 1) > 1} | {
    "allgather"
}
"""Ways that a model without experts cannot train."""
SHORT = [
    "one", "recompute", "tp2-sp", "ep2-recompute", "pp2", "dp2-distributed-optimizer", "tp2-sp-ep2", "cp2",
]  # fmt: skip


def ways_of(model: str) -> list[str]:
    return [name for name in WAYS if model != "dense" or name not in EXPERTS_ONLY]


# --- the program: runs of one process, or of one rank ---------------------------------------------------


def prepare(folder: Path, model: str) -> None:
    """Write the base, the packs, and the checkpoint that all runs start from."""
    MODELS[model](folder / "base")
    for split, count, seed in (("training", 12, 1), ("validation", 4, 2)):
        tiny.write_packs(folder / "packed" / split, [padded(pack) for pack in tiny.make_packs(count, UNPADDED, seed)])
    bridge.import_base(base=folder / "base", checkpoint=folder / "start")


def padded(pack: dict[str, list[int]]) -> dict[str, list[int]]:
    """Pad every sample of a pack so that what Bridge reads of it is a multiple of PADDED_TO."""
    starts = pack["seq_start_id"]
    result: dict[str, list[int]] = {"input_ids": [], "loss_mask": [], "seq_start_id": []}
    for start, end in zip(starts, [*starts[1:], len(pack["input_ids"])], strict=True):
        padding = padded_length(end - start, PADDED_TO) - (end - start)
        result["seq_start_id"].append(len(result["input_ids"]))
        result["input_ids"] += pack["input_ids"][start:end] + [tiny.EOS] * padding
        result["loss_mask"] += pack["loss_mask"][start:end] + [0] * padding
    assert len(result["input_ids"]) <= PACK
    return result


def train(folder: Path, model: str, name: str, way: Way, **changes: Any) -> None:
    """Train `folder/name`; rank 0 writes losses and gradient norms beside it."""
    experts = {"moe_token_dispatcher_type": "alltoall", "moe_permute_fusion": False} if model != "dense" else {}
    recipe = {"recipe": RECIPE} if model == "nano" else {}
    sections: dict[str, Any] = {
        "model": {**NO_DROPOUT, **experts, **recipe, **way.model},
        "train": {"train_iters": STEPS},
        "checkpoint": {"save_interval": 2, "most_recent_k": 9},
    }
    for section, values in changes.items():
        sections[section] = sections.get(section, {}) | values
    log = folder / f"{name}.jsonl"

    def write(**entry: Any) -> None:
        with log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def on_step(step: Step) -> None:
        write(step=step.iteration, loss=step.loss, grad_norm=step.grad_norm)

    with distributed_optimizer() if way.distributed_optimizer else contextlib.nullcontext():
        bridge.train(
            base=folder / "base",
            start=folder / "start",
            packed=folder / "packed",
            run=folder / name,
            params=train_params(**sections),
            pack_size=PACK,
            on_step=on_step,
            on_validation=lambda step, loss: write(step=step, validation=loss),
        )


@contextlib.contextmanager
def distributed_optimizer() -> Iterator[None]:
    """Share optimizer states over data-parallel ranks and save in parallel, as GPUs do."""
    build = config.build

    def shared(*arguments: Any, **options: Any) -> Any:
        container = build(*arguments, **options)
        container.optimizer.use_distributed_optimizer = container.ddp.use_distributed_optimizer = True
        container.checkpoint.fully_parallel_save = True
        return container

    config.build = shared
    try:
        yield
    finally:
        config.build = build


@contextlib.contextmanager
def without_seq_idx() -> Iterator[None]:
    """Let Mamba layers not know where samples begin: what a leak would give."""
    from megatron.core.ssm import mamba_mixer

    scan = mamba_mixer.mamba_split_conv1d_scan_combined
    mamba_mixer.mamba_split_conv1d_scan_combined = lambda *values, **options: scan(
        *values, **{**options, "seq_idx": None}
    )
    try:
        yield
    finally:
        mamba_mixer.mamba_split_conv1d_scan_combined = scan


def resumed(folder: Path, model: str) -> None:
    """Train to the end from what a kill inside the save of step 4 leaves of the run `one`."""
    shutil.copytree(folder / "one", folder / "resumed")
    newest = checkpoints.iteration_folder(folder / "resumed", STEPS)
    checkpoints.manifest_of(newest).unlink()
    shard = next(newest.glob("*.distcp"))
    with shard.open("r+b") as file:
        file.truncate(shard.stat().st_size // 2)
    train(folder, model, "resumed", WAYS["one"])


def leak(folder: Path, model: str) -> None:
    with without_seq_idx():
        train(folder, model, "leak", WAYS["one"])


def adapters(folder: Path, model: str) -> None:
    """Train adapters, train them again from the checkpoint of step 2, and export them."""
    lora = {"name": "lora", "target_modules": ["linear_qkv", "in_proj"]}
    sections: dict[str, Any] = {"peft": lora, "optimizer": {"lr": 1e-2}}
    train(folder, model, "adapters", WAYS["one"], **sections)
    shutil.copytree(folder / "adapters", folder / "adapters-resumed")
    checkpoints.remove(checkpoints.iteration_folder(folder / "adapters-resumed", STEPS))
    train(folder, model, "adapters-resumed", WAYS["one"], **sections)
    export(folder, "adapters", peft={**lora, "export": "both"})
    export(folder, "adapters", "alone", peft={**lora, "export": "adapter"})


def export(folder: Path, name: str, target: str | None = None, **sections: Any) -> None:
    """Export the last step of a run as `folder/TARGET` or `folder/NAME-exported`, with its certificates beside it."""
    certificates = bridge.export(
        checkpoint=checkpoints.iteration_folder(folder / name, STEPS),
        base=folder / "base",
        target=folder / (target or f"{name}-exported"),
        start=folder / "start",
        peft=train_params(**sections).peft,
    )
    write_json(folder / f"{name}-parity.json", certificates)


def exported(folder: Path, model: str) -> None:
    export(folder, "one")


def formats(folder: Path, model: str) -> None:
    """Import and export a base in BF16 with FP32 router biases, as NVIDIA publishes it."""
    from safetensors.torch import load_file, save_file

    base = shutil.copytree(folder / "base", folder / "base-bf16")
    weights = load_file(base / "model.safetensors")
    mixed = {name: tensor if "e_score" in name else tensor.bfloat16() for name, tensor in weights.items()}
    save_file(mixed, base / "model.safetensors", metadata={"format": "pt"})
    bridge.import_base(base=base, checkpoint=folder / "start-bf16")
    bridge.export(
        checkpoint=folder / "start-bf16",
        base=base,
        target=folder / "exported-bf16",
        start=folder / "start-bf16",
        peft=train_params().peft,
    )


def planted(folder: Path, model: str) -> None:
    """Import with a fault each, and write the messages: tensors under other names, experts swapped, a norm lost."""
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "base/model.safetensors")
    messages = {}

    def attempt(name: str) -> None:
        try:
            bridge.import_base(base=folder / "base-planted", checkpoint=folder / "start-planted")
            messages[name] = "accepted"
        except InputError as error:
            messages[name] = str(error)

    base = shutil.copytree(folder / "base", folder / "base-planted")
    embedding = names.EMBEDDING_OF_NVIDIA
    renamed = {names.EMBEDDING_OF_TRANSFORMERS if name == embedding else name: weights[name] for name in weights}
    save_file(renamed, base / "model.safetensors", metadata={"format": "pt"})
    attempt("renamed")
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    check_complete = conversion.check_complete
    for name, damage in (("swapped experts", swap_experts), ("lost norm", lose_norm)):
        conversion.check_complete = lambda _, loaded, damage=damage: damage(loaded[0])
        attempt(name)
    conversion.check_complete = check_complete
    write_json(folder / "planted.json", messages)


def swap_experts(model: Any) -> None:
    """Swap the first matrices of two experts."""
    one, other = [
        weight
        for name, weight in model.named_parameters()
        if re.search(r"local_experts\.[01]\.linear_fc1\.weight$", name)
    ][:2]
    one.data, other.data = other.data.clone(), one.data.clone()


def lose_norm(model: Any) -> None:
    """Leave the norm behind the last layer as it is created."""
    model.decoder.final_norm.weight.data.fill_(1)


SPECIAL: dict[str, Callable[[Path, str], None]] = {
    "prepare": prepare,
    "resumed": resumed,
    "leak": leak,
    "adapters": adapters,
    "exported": exported,
    "formats": formats,
    "planted": planted,
}


def main(folder: Path, model: str, names: list[str]) -> None:
    """Run what is named, in this process."""
    # Every pack is padded to the pack size: padding is routed to experts too, and moves their bias.
    checks.has_fixed_length = lambda params: True
    for name in names:
        if name in SPECIAL:
            SPECIAL[name](folder, model)
        else:
            train(folder, model, name, WAYS[name])


# --- tests of the results -------------------------------------------------------------------------------


def run(folder: Path, model: str, names: list[str]) -> Path:
    """Run everything that is named, in one process for each number of ranks."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}"}
    (folder / "base").mkdir(parents=True)
    for ranks in (1, 2, 4):
        chosen = [name for name in names if WAYS.get(name, Way()).ranks == ranks]
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"] if ranks > 1 else []
        command = [sys.executable, *torchrun, str(Path(__file__).resolve()), str(folder), model, *chosen]
        if chosen:
            assert subprocess.run(command, env=environment, timeout=1800).returncode == 0
    return folder


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    special = ["resumed", "leak", "adapters", "exported", "formats", "planted"]
    return run(tmp_path_factory.mktemp("layouts") / "nano", "nano", ["prepare", *SHORT, *special])


@pytest.fixture(scope="module", params=MODELS)
def full(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    model = request.param
    return model, run(tmp_path_factory.mktemp("layouts") / model, model, ["prepare", *ways_of(model), "resumed"])


def losses(folder: Path, name: str) -> dict[str, float]:
    """Return the losses of the steps and of the validation, by name."""
    entries = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
    return {
        f"{'validation' if 'validation' in entry else 'step'} {entry['step']}": entry.get(
            "validation", entry.get("loss")
        )
        for entry in entries
    }


@pytest.mark.pipeline
@pytest.mark.parametrize("name", SHORT[1:])
def test_a_layout_of_the_tiny_nano_trains_as_one_process_does(short: Path, name: str) -> None:
    expected = losses(short, "one")
    assert list(expected) == ["step 1", "step 2", "step 3", "step 4", "validation 4"]
    assert losses(short, name) == pytest.approx(expected, rel=RELATIVE)


@pytest.mark.pipeline
def test_training_lowers_the_loss_of_the_tiny_nano(short: Path) -> None:
    found = losses(short, "one")
    assert found["step 4"] < found["step 1"] - 0.5


@pytest.mark.pipeline
def test_a_run_of_the_tiny_nano_that_was_killed_inside_a_save_resumes_with_the_same_numbers(short: Path) -> None:
    expected, found = losses(short, "one"), losses(short, "resumed")
    assert list(found) == ["step 3", "step 4", "validation 4"]
    assert found == {name: expected[name] for name in found}


@pytest.mark.pipeline
def test_a_leak_between_packed_samples_shows_in_the_loss(short: Path) -> None:
    apart, leaking = losses(short, "one"), losses(short, "leak")
    assert abs(leaking["step 1"] - apart["step 1"]) > LEAK


@pytest.mark.pipeline
def test_the_exported_nano_has_the_loss_and_the_logits_that_were_trained(short: Path) -> None:
    trained = losses(short, "one")["validation 4"]
    assert loss_by_transformers(short / "one-exported", UNPADDED) == pytest.approx(trained, rel=1e-6)
    for certificate in read_json(short / "one-parity.json").values():
        assert certificate["logits"] < 1e-5
        assert certificate["losses"]["megatron"] == certificate["losses"]["transformers"]
        assert certificate["tokens"] == [50, 104]  # a chunk of this model is 32 tokens
    assert tensors(short / "one-exported").keys() == tensors(short / "base").keys()


@pytest.mark.pipeline
def test_adapters_export_what_was_trained_and_leave_the_expert_bias_as_it_is(short: Path) -> None:
    trained = losses(short, "adapters")
    assert trained["validation 4"] != losses(short, "one")["validation 4"]
    assert loss_by_transformers(short / "adapters-exported", UNPADDED) == pytest.approx(
        trained["validation 4"], rel=1e-6
    )
    before, after = tensors(short / "base"), tensors(short / "adapters-exported")
    changed = {name.split(".")[-2] for name in before if not before[name].equal(after[name])}
    assert changed == {"q_proj", "k_proj", "v_proj", "in_proj"}
    files = {path.relative_to(short).as_posix() for path in short.glob("a*/**/*.safetensors")}
    assert {file for file in files if "checkpoints" not in file} == {
        "adapters-exported/model.safetensors",
        "adapters-exported/adapter/adapter_model.safetensors",
        "alone/adapter_model.safetensors",
    }
    for folder in (short / "alone", short / "adapters-exported/adapter"):
        merged = load_folder(folder, "auto", short / "base").state_dict()
        for name, tensor in load_folder(short / "adapters-exported", "auto").state_dict().items():
            assert_close(merged[name], tensor, rtol=0, atol=1e-6)
    again = losses(short, "adapters-resumed")
    assert again == {name: trained[name] for name in ("step 3", "step 4", "validation 4")}


@pytest.mark.pipeline
def test_each_tensor_keeps_its_bits_and_its_format_through_import_and_export(short: Path) -> None:
    before, after = tensors(short / "base-bf16"), tensors(short / "exported-bf16")
    assert len({tensor.dtype for tensor in before.values()}) == 2
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert (tensor.dtype, True) == (after[name].dtype, tensor.equal(after[name])), name


@pytest.mark.pipeline
def test_a_tensor_that_is_not_found_and_weights_at_the_wrong_place_stop_the_import(short: Path) -> None:
    messages = read_json(short / "planted.json")
    assert names.EMBEDDING_OF_NVIDIA in messages["renamed"]
    assert names.EMBEDDING_OF_TRANSFORMERS in messages["renamed"]
    for fault in ("swapped experts", "lost norm"):
        assert "base-planted: Megatron and transformers differ: logits by" in messages[fault]
    assert not (short / "start-planted").exists()


@pytest.mark.pipeline
@pytest.mark.layouts
@pytest.mark.timeout(3600)
def test_every_layout_of_every_model_trains_as_one_process_does(full: tuple[str, Path]) -> None:
    model, folder = full
    expected = losses(folder, "one")
    sys.stdout.write(f"\n{model}, largest difference relative to one process {list(expected.values())}:\n")
    largest = {}
    for name in ways_of(model)[1:]:
        found = losses(folder, name)
        assert found.keys() == expected.keys()
        largest[name] = max(abs(found[step] / expected[step] - 1) for step in expected)
        sys.stdout.write(f"  {name}: {largest[name]:.1e}, {list(found.values())}\n")
    assert max(largest.values()) <= RELATIVE, largest
    resumed_losses = losses(folder, "resumed")
    assert resumed_losses == {name: expected[name] for name in ("step 3", "step 4", "validation 4")}


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
