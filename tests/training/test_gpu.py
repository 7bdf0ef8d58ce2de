"""gpu: with a GPU and without Transformer Engine a dense model is configured up to the first kernel."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.project import ROOT

# CUDA only looks available, so this stops where something is computed on it; the model's weights are on the CPU.
PROGRAM = """
import json, os, sys
from pathlib import Path
from types import SimpleNamespace
import torch
torch.cuda.is_available = lambda: True
torch.cuda.device_count = lambda: 1
from tests.support import tiny_model
from tests.training.test_bridge import train_params
from sft.training import bridge, config, gpu, processes

base, start = Path(sys.argv[1]), Path(sys.argv[2])
tiny_model.make_tiny_base(base)
params = train_params(mixed_precision={"name": "bf16_mixed"})
found = {"installed": sorted(gpu.installed())}
with config.quiet():
    _, provider = config.model_of(base, weights=False)
    found["missing"] = gpu.missing(provider, params)
    context = train_params(mixed_precision={"name": "bf16_mixed"}, model={"context_parallel_size": 2})
    found["context"] = gpu.missing(provider, context)
    hybrid = SimpleNamespace(**vars(provider) | {"hybrid_layer_pattern": "M*", "transformer_layer_spec": None})
    found["hybrid"] = gpu.missing(hybrid, params)
    gpu.configure(hybrid)
    found["hybrid_spec"] = hybrid.transformer_layer_spec
    container = config.build(
        params, base=base, start=start, packed=base, run=start, pack_size=64, on_gpu=True
    )
    values, found["relaxed"] = config.resolve(container, 1)
    found["precision"] = values["model"]["bf16"]
    spec = container.model.transformer_layer_spec(container.model)
    found["attention"] = spec.submodules.self_attention.submodules.core_attention.__name__

# A recipe's variables are set when NCCL opens.
class Opened(Exception):
    pass

def open_group():
    found["env"] = [os.environ.get("NCCL_FROM_RECIPE"), os.environ.get("SET_BEFORE")]
    raise Opened

os.environ["SET_BEFORE"] = "shell"
bridge.check, processes.process_group = lambda **_: None, open_group
config.load_recipe = lambda *_: SimpleNamespace(env_vars={"NCCL_FROM_RECIPE": 1, "SET_BEFORE": "recipe"})
recipe = train_params(model={"recipe": "megatron.bridge.recipes.x.y"})
try:
    bridge.train(base=base, start=start, packed=base, run=start, params=recipe, pack_size=64, on_step=print,
                 on_validation=print)
except Opened:
    pass
print("FOUND" + json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder: Path = tmp_path_factory.mktemp("gpu")
    (folder / "start").mkdir()
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    command = [sys.executable, "-c", PROGRAM, str(folder / "base"), str(folder / "start")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.partition("FOUND")[2])


def test_a_dense_model_is_configured_with_attention_within_samples(found):
    assert found["installed"] == [], "this environment has no packages for GPUs only"
    assert found["missing"] == {}
    assert found["attention"] == "PackedAttention"
    assert (found["precision"], found["relaxed"]) == (True, [])


def test_what_a_model_lacks_on_this_machine_is_named_with_the_reason(found):
    assert found["context"] == {"Transformer Engine": "sequence or context parallel"}
    assert found["hybrid"] == {"Transformer Engine": "Mamba layers", "Mamba's kernels": "Mamba layers"}
    assert found["hybrid_spec"] is None, "it stays as it is"


def test_variables_of_a_recipe_are_set_before_nccl_opens(found):
    assert found["env"] == ["1", "shell"]
