"""A Hugging Face folder -> a model in transformers that computes what was trained.

Nemotron-H is repaired (sft.mamba.nemotron_h). A folder with an adapter alone (`peft.export: adapter`) is its base model
with the adapter merged. Safetensors only, no remote code, nothing from the network.
"""

import json
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from sft.cli import InputError
from sft.mamba import nemotron_h

ADAPTER_CONFIG = "adapter_config.json"


def load_folder(folder: Path, dtype: Any, base: Path | None = None) -> Any:
    """Return the model of a folder, on the CPU.

    Args:
        folder: config.json and *.safetensors, of a model or of an adapter.
        dtype: Number format, or "auto" for that of the folder.
        base: Folder of the adapter's base model; None: the one that adapter_config.json names.

    Raises:  InputError: the base model of an adapter is missing.
    """
    transformers_logging.disable_progress_bar()
    adapter = folder if (folder / ADAPTER_CONFIG).is_file() else None
    if adapter is not None:
        named = json.loads((adapter / ADAPTER_CONFIG).read_text(encoding="utf-8"))["base_model_name_or_path"]
        folder = base or Path(named)
        if not (folder / "config.json").is_file():
            raise InputError(f"{adapter}: an adapter on {folder}, which is missing. Run: dvc repro fetch-model")
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, use_safetensors=True, trust_remote_code=False, local_files_only=True
    )
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    nemotron_h.repair(model)
    return model
