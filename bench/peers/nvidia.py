"""NVIDIA's way to prepare a corpus, for bench.peers.prep: `process_chat_sft_spool_core` of its SFT data preparation.

It reads a checkout of github.com/NVIDIA-NeMo/Nemotron and uses the template there. Packages of the checkout are
imported without their `__init__`, which would need more than this function does.
"""

import sys
import tempfile
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

PACKAGES = ("nemotron", "nemotron.data_prep", "nemotron.data_prep.core", "nemotron.data_prep.utils")


def preparation(
    path: Path, tokenizer_folder: Path, checkout: str, scratch: Path
) -> Callable[[int | None], tuple[int, int]]:
    """Return a function that prepares the first rows, or all, of OpenAI JSON lines and returns (rows, tokens)."""
    import fsspec
    import numpy as np
    from transformers import PreTrainedTokenizerFast

    for name in PACKAGES:
        package = types.ModuleType(name)
        package.__path__ = [str(Path(checkout, "src", *name.split(".")))]
        sys.modules[name] = package
    from nemotron.data_prep.core.chat_sft_shard_core import process_chat_sft_spool_core

    tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizer_folder)

    def prepare(number: int | None) -> tuple[int, int]:
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            result: dict[str, Any] = process_chat_sft_spool_core(
                shard_index=0,
                files=[{"path": str(path), "local_path": str(path), "size": 0}],
                output_dir=folder,
                receipts_dir=folder,
                spool_dir=None,
                output_fs=fsspec.filesystem("file"),
                tokenizer=tokenizer,
                messages_field="messages",
                tools_field="tools",
                pack_size=4096,
                algorithm="first_fit_shuffle",
                dtype=np.dtype("int32"),
                chat_template="nano3",
                max_doc_tokens=None,
                max_rows=number,
                seed=1,
                used_in_filter=None,
                used_in_field="used_in",
            )
            tokens = sum(file.stat().st_size for file in Path(folder).rglob("tokens.bin")) // 4
        return result["num_input_rows"], tokens

    return prepare
