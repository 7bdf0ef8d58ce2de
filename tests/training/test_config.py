"""config: the production profiles, completed and validated by Bridge without a GPU or a hub.

Megatron takes tens of seconds to import, so this file is also a program, run once: `python test_config.py FOLDER`
writes its results for the tests. `python test_config.py FOLDER golden` updates the golden files:
golden/nemotron3-nano.json has every value, those of the other profiles what differs from it.
"""

import importlib
import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sft.cli import InputError
from sft.files import read_json, write_json
from sft.params.check import read
from sft.params.training import Bridge, TrainParams
from sft.planning import checks
from sft.training import bridge, config
from tests.planning.test_checks import LLAMA, NANO
from tests.support import tiny_architectures as architectures
from tests.support import tiny_model as tiny
from tests.training.test_bridge import train_params

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).with_name("golden")
NEMOTRON = ROOT / "profiles" / "models" / "NVIDIA-Nemotron-3-Nano-30B-A3B-Base-BF16"
PROFILES = {"nemotron3-nano": 8, "nemotron3-nano-paper": 32, "nemotron3-nano-smoke": 8}
"""Profile -> least number of GPUs for one copy."""
RECIPES = "megatron.bridge.recipes"
RECIPE = f"{RECIPES}.llama.llama3.llama32_1b_sft_config"
Values = dict[str, Any]
BRIDGE: dict[str, dict[str, Any]] = {
    "hybridep": {"model": {"moe_flex_dispatcher_backend": "hybridep"}, "comm_overlap": {"tp_comm_overlap": False}},
    "unknown field": {"ddp": {"overlap_grad_reduc": True}},
    "field of config.json": {"model": {"rotary_base": 5}},
    "rejected": {"model": {"moe_flex_dispatcher_backend": "hybrdep"}},
}


# --- the program -------------------------------------------------------------------------------------------------


def built(folder: Path, params: TrainParams, base: Path, pack_size: int = 128, on_gpu: bool = True) -> Any:
    """Build a config without data, weights or a tokenizer."""
    (folder / "start").mkdir(exist_ok=True)
    return config.build(
        params,
        base=base,
        start=folder / "start",
        packed=folder / "packed",
        run=folder / "run",
        pack_size=pack_size,
        eval_iters=params.validation.eval_iters,
        on_gpu=on_gpu,
    )


def profile(name: str) -> tuple[TrainParams, int]:
    """Return the train sections of a profile and its pack size."""
    params = read(ROOT / "profiles" / f"{name}.yaml")
    return params.training, params.pack.pack_size


def losses(folder: Path, name: str, recipe: str | None) -> list[tuple[float, float]]:
    """Train the tiny model a few steps, with a recipe or without; return loss and gradient norm of each."""
    packed, start, steps = folder / "packs", folder / "tiny-start", []
    if not start.exists():
        tiny.write_packs(packed / "training", tiny.make_packs(7, 128, seed=1))
        bridge.import_base(base=folder / "tiny", checkpoint=start)
    model = {"recipe": recipe, "attention_dropout": 0.0, "hidden_dropout": 0.0}
    params = train_params(model=model, train={"train_iters": 4}, validation={"eval_iters": 0})
    bridge.train(
        base=folder / "tiny",
        start=start,
        packed=packed,
        run=folder / name,
        params=params,
        pack_size=128,
        on_step=lambda step: steps.append((step.loss, step.grad_norm)),
        on_validation=lambda *values: None,
    )
    return steps


def error_of(function: Any) -> str:
    """Return the message of the InputError that a function raises, "accepted" if none."""
    try:
        function()
    except InputError as error:
        return str(error)
    return "accepted"


def collect_results(folder: Path) -> Values:
    """Return what Bridge makes of profiles, recipes and mistakes."""
    seen: Values = {"profiles": {}}
    for name, ranks in PROFILES.items():
        params, pack_size = profile(name)
        values, relaxed = config.resolve(built(folder, params, NEMOTRON, pack_size), ranks)
        text = json.dumps(values).replace(str(folder), "FOLDER").replace(str(ROOT), "ROOT")
        seen["profiles"][name] = {"values": json.loads(text), "relaxed": relaxed}

    nano, pack_size = profile("nemotron3-nano")
    seen["geometry"] = repr(config.geometry_of(config.model_of(NEMOTRON, weights=False, on_gpu=True)[1]))
    for name, fields in BRIDGE.items():
        params = nano.model_copy(update={"bridge": Bridge.model_validate(fields)})
        seen[name] = error_of(
            lambda params=params: config.check_bridge_is_used(params, NEMOTRON, pack_size, 8, on_gpu=True)
        )
    mla = folder / "mla"
    write_json(mla / "config.json", architectures.DEEPSEEK)
    seen["mla"] = repr(config.geometry_of(config.model_of(mla, weights=False, on_gpu=True)[1]))

    seen["6 ranks"] = error_of(lambda: config.resolve(built(folder, nano, NEMOTRON, pack_size), 6))

    small = folder / "tiny"
    tiny.make_tiny_base(small)
    seen["tiny geometry"] = repr(config.geometry_of(config.model_of(small, weights=False)[1]))
    for name, recipe in {
        "no function": f"{RECIPES}.llama.llama3.llama32_1b_sft_confg",
        "no module": f"{RECIPES}.llama.lama3.llama32_1b_sft_config",
        "another geometry": f"{RECIPES}.nemotronh.nemotron_3_nano.nemotron_3_nano_pretrain_config",
        "no recipe": f"{RECIPES}.utils.optimizer_utils.distributed_fused_adam_with_cosine_annealing",
        "needs arguments": f"{RECIPES}.common.default_squad_config",
        "another family": f"{RECIPES}.qwen.qwen3.qwen3_8b_sft_config",
    }.items():
        params = train_params(model={"recipe": recipe})
        seen[name] = error_of(lambda params=params: config.resolve(built(folder, params, small, on_gpu=False), 1))
    page = (ROOT / "docs/production-recipe.md").read_text(encoding="utf-8")
    for name in re.findall(r"`(nemotron_3_\w+)\.(\w+)`", page):
        module = importlib.import_module(f"{RECIPES}.nemotronh.{name[0]}")
        seen.setdefault("documented recipes", {})[name[1]] = callable(getattr(module, name[1], None))
    seen["trained"] = {name: losses(folder, name, recipe) for name, recipe in (("plain", None), ("recipe", RECIPE))}
    lora = train_params(peft={"name": "lora", "dim": 4, "target_modules": ["linear_proj"]})
    seen["lora"] = config.resolve(built(folder, lora, small, on_gpu=False), 1)[0]["peft"]

    unknown = folder / "unknown"
    write_json(unknown / "config.json", {"architectures": ["NobodysModel"], "model_type": "llama"})
    seen["unknown architecture"] = error_of(lambda: config.model_of(unknown, weights=False))
    return seen


def difference(values: Values, ground: Values) -> Values:
    """Return the entries of `values` that differ from `ground`, section by section."""
    found: Values = {}
    for name, value in values.items():
        if isinstance(value, dict) and isinstance(ground.get(name), dict):
            if inner := difference(value, ground[name]):
                found[name] = inner
        elif name not in ground or value != ground[name]:
            found[name] = value
    return found


# --- the tests ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Values:
    folder = tmp_path_factory.mktemp("config")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}"}
    program = [sys.executable, str(Path(__file__).resolve()), str(folder)]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-5000:]
    seen: Values = read_json(folder / "seen.json")
    return seen


@pytest.mark.pipeline
@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_passes_bridge_s_validation_with_the_values_of_its_golden(seen: Values, name: str) -> None:
    """To accept a change: `python tests/training/test_config.py FOLDER golden`, then check the diff."""
    ground = read_json(GOLDEN / "nemotron3-nano.json")
    expected = ground if name == "nemotron3-nano" else read_json(GOLDEN / f"{name}.json")
    values = seen["profiles"][name]["values"]
    found = values if name == "nemotron3-nano" else difference(values, ground)
    assert len(values["model"]) > 300
    assert difference(found, expected) == {}
    assert difference(expected, found) == {}


@pytest.mark.pipeline
def test_fields_of_bridge_are_checked_against_its_own_classes(seen: Values) -> None:
    assert seen["hybridep"] == "accepted"
    assert "Did you mean ddp.overlap_grad_reduce?" in seen["unknown field"]
    assert seen["field of config.json"].startswith("params.yaml: bridge.model.rotary_base: ")
    assert "'deepep', 'hybridep'" in seen["rejected"]


@pytest.mark.pipeline
def test_the_shapes_of_latent_attention_are_unknown_and_no_error(seen: Values) -> None:
    assert seen["mla"] == "None"


@pytest.mark.pipeline
def test_on_a_cpu_only_kernels_of_experts_are_off_while_bridge_validates(seen: Values) -> None:
    """Transformer Engine sorts tokens by expert, DeepEP sends them: both look for a driver."""
    for name in PROFILES:
        relaxed = ["moe_flex_dispatcher_backend", "moe_permute_fusion", "moe_token_dispatcher_type"]
        assert seen["profiles"][name]["relaxed"] == relaxed
        model = seen["profiles"][name]["values"]["model"]
        assert [model[field] for field in relaxed] == ["deepep", True, "flex"], "these are trained"


@pytest.mark.pipeline
def test_the_recipe_has_the_values_of_its_page_and_the_paper_those_of_the_report(seen: Values) -> None:
    recipe, paper, smoke = (seen["profiles"][name]["values"] for name in PROFILES)
    layouts = {"tensor_model_parallel_size": (1, 4, 4), "sequence_parallel": (False, True, True)}
    for field, expected in layouts.items():
        assert tuple(values["model"][field] for values in (recipe, paper, smoke)) == expected
    for values in (recipe, paper, smoke):
        model, optimizer = values["model"], values["optimizer"]
        assert (optimizer["optimizer"], optimizer["decoupled_weight_decay"]) == ("adam", True)
        assert (model["bf16"], model["params_dtype"]) == (True, "torch.bfloat16")
        assert (model["recompute_granularity"], model["recompute_method"]) == ("full", "uniform")
        assert model["calculate_per_token_loss"] is True
        assert model["expert_model_parallel_size"] == 8
        assert model["hidden_size"] == 2688
        assert model["moe_aux_loss_coeff"] == 1e-4
    assert recipe["optimizer"]["lr"] == smoke["optimizer"]["lr"] == 1e-5
    assert (smoke["train"]["train_iters"], smoke["train"]["global_batch_size"]) == (1700, 4)
    assert recipe["model"]["seq_length"] == recipe["dataset"]["seq_length"] == 4096
    assert paper["optimizer"]["lr"] == 5e-5
    assert paper["model"]["seq_length"] == paper["dataset"]["seq_length"] == 256 * 1024
    assert (paper["train"]["train_iters"], paper["train"]["global_batch_size"]) == (13_000, 64)
    assert paper["scheduler"]["lr_warmup_iters"] == 800


@pytest.mark.pipeline
def test_shapes_come_from_the_model_s_config(seen: Values) -> None:
    assert seen["geometry"] == repr(NANO)
    assert seen["tiny geometry"] == repr(LLAMA)


@pytest.mark.pipeline
@pytest.mark.parametrize(
    ("case", "values"),
    [
        ("6 ranks", ("params.yaml: ", "6 ranks")),
        ("no function", ("params.yaml: model.recipe: ", f"{RECIPES}.llama.llama3.llama32_1b_sft_config?")),
        ("no module", ("params.yaml: model.recipe: ", f"{RECIPES}.llama.lama3.")),
        ("another geometry", ("params.yaml: model.recipe: ", "tiny/config.json", "hidden 2688 instead of 64")),
        ("no recipe", ("params.yaml: model.recipe: ", "tuple", "ConfigContainer")),
        ("needs arguments", ("params.yaml: model.recipe: ", "default_squad_config")),
        ("unknown architecture", ("unknown/config.json: ", "LlamaForCausalLM")),
    ],
)
def test_what_cannot_be_built_is_an_error_with_its_place(seen: Values, case: str, values: tuple[str, ...]) -> None:
    assert [value for value in values if value not in seen[case]] == []


@pytest.mark.pipeline
def test_a_recipe_of_another_family_applies_to_the_base_model(seen: Values) -> None:
    assert seen["another family"] == "accepted"


@pytest.mark.pipeline
def test_training_with_a_recipe_gives_the_same_numbers_on_a_cpu(seen: Values) -> None:
    assert len(seen["trained"]["recipe"]) == 4
    assert seen["trained"]["recipe"] == seen["trained"]["plain"]


@pytest.mark.pipeline
def test_adapters_are_bridge_s_own(seen: Values) -> None:
    assert (seen["lora"]["dim"], seen["lora"]["alpha"], seen["lora"]["target_modules"]) == (4, 8, ["linear_proj"])


def test_the_recipes_that_the_page_names_are_bridge_s(seen: Values) -> None:
    assert len(seen["documented recipes"]) == 4
    assert all(seen["documented recipes"].values())


def test_the_profiles_are_one_blend_and_one_model() -> None:
    recipe, paper, smoke = (read(ROOT / "profiles" / f"{name}.yaml") for name in PROFILES)
    default = read(ROOT / "params.yaml")
    assert recipe.fetch == paper.fetch == smoke.fetch
    assert recipe.filter == paper.filter == smoke.filter == default.filter
    assert recipe.prep == paper.prep == smoke.prep == default.prep.model_copy(update={"max_tokens": 262144})
    assert recipe.model.recipe == f"{RECIPES}.nemotronh.nemotron_3_nano.nemotron_3_nano_sft_config"


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_pads_its_samples_for_its_own_layout(name: str) -> None:
    params = read(ROOT / "profiles" / f"{name}.yaml")
    assert params.pack.pad_segments_to == checks.segment_multiple(params.model)


def test_a_recipe_is_one_of_bridge_s() -> None:
    for name in ("os.system", "megatron.bridge.recipes", "megatron.bridge.recipes.x; import os"):
        with pytest.raises(ValueError, match="pattern"):
            train_params(model={"recipe": name})


def test_a_difference_names_only_what_differs() -> None:
    assert difference({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 3}, "d": 3}) == {"a": {"c": 2}}


@pytest.mark.parametrize(
    ("error", "seen"), [(KeyboardInterrupt(), False), (SystemExit(0), False), (ValueError(), True)]
)
def test_a_stopped_run_has_its_traceback_in_the_log_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], error: BaseException, seen: bool
) -> None:
    log = tmp_path / "bridge.log"
    with config.quiet(log):
        logging.getLogger("megatron.bridge").error("Pretrain failed", exc_info=error)
    assert ("Pretrain failed" in capsys.readouterr().err) == seen
    assert f"Pretrain failed\n{type(error).__name__}" in log.read_text()


if __name__ == "__main__":
    place = Path(sys.argv[1])
    place.mkdir(parents=True, exist_ok=True)
    result = collect_results(place)
    write_json(place / "seen.json", result)
    if sys.argv[2:] == ["golden"]:
        plain = result["profiles"]["nemotron3-nano"]["values"]
        write_json(GOLDEN / "nemotron3-nano.json", plain)
        for name in set(PROFILES) - {"nemotron3-nano"}:
            write_json(GOLDEN / f"{name}.json", difference(result["profiles"][name]["values"], plain))
