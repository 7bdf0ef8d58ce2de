"""The facts that the checks before a training need besides params.yaml.

data/packed, models/base, the run and its disk  ->  Facts; what is missing on this machine stays unknown
"""

import dataclasses
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from sft.files import read_json
from sft.hashing import file_digest, files_below
from sft.planning.estimate import Geometry
from sft.planning.untrained_tokens import UntrainedTokens, untrained_control_tokens


@dataclass(frozen=True)
class Facts:
    """What the checks need besides params.yaml. None: not known on this machine."""

    ranks: int
    """Processes that train: one for each GPU."""
    on_gpu: bool
    pack_size: int | None = None
    pad_segments_to: int | None = None
    """The samples of the packs are padded to a multiple of this."""
    packing_efficiency: float | None = None
    """Share of the tokens of the training packs that is no padding, if all packs are padded to the pack size."""
    training_packs: int | None = None
    validation_packs: int | None = None
    data_tokenizer: str | None = None
    """Digest of the tokenizer that prepared the packs."""
    model_tokenizer: str | None = None
    """Digest of the model's tokenizer."""
    untrained_tokens: UntrainedTokens | None = None
    """Control tokens of the chat template whose embedding in the model was never trained."""
    geometry: Geometry | None = None
    """Shapes of the model."""
    start_geometry: Geometry | None = None
    """Shapes of the checkpoint that training starts from, unless that is imported from the model."""
    gpu_memory: float | None = None
    """Bytes."""
    missing_packages: Mapping[str, str] | None = None
    """What the training needs on GPUs and this machine lacks, and for what."""
    free_disk: float | None = None
    """Free bytes on the disk of runs/."""
    done_disk: float = 0.0
    """Bytes that this run has already written there."""


def gather_facts(known: Facts, *, packed: Path, base: Path, run: Path, start: Path | None = None) -> Facts:
    """Return facts with those that this machine's files give; the facts of missing files stay unknown.

    Args:  packed, base, run, start: folders of the packed data, the model, the run and the checkpoint to start from,
    which need not exist.
    """
    metadata: dict[str, Any] = {}
    if (packed / "metadata.json").exists():
        metadata = read_json(packed / "metadata.json")
    tokenizer_file = base / "tokenizer.json"
    existing = next((folder for folder in (run, *run.absolute().parents) if folder.exists()), None)
    written = [path for folder in (run / "checkpoints", start) if folder for path in files_below(folder)]
    return dataclasses.replace(
        known,
        pack_size=metadata.get("pack_size"),
        pad_segments_to=metadata.get("pad_segments_to"),
        packing_efficiency=metadata.get("splits", {}).get("training", {}).get("packing_efficiency"),
        training_packs=count_packs(packed / "training"),
        validation_packs=count_packs(packed / "validation"),
        data_tokenizer=metadata.get("tokenizer_sha256"),
        model_tokenizer=file_digest(tokenizer_file) if tokenizer_file.exists() else None,
        untrained_tokens=untrained_control_tokens(base, packed / "chat_template.jinja"),
        missing_packages=known.missing_packages if known.on_gpu else {},
        free_disk=None if existing is None else float(shutil.disk_usage(existing).free),
        done_disk=float(sum(path.stat().st_size for path in written)),
    )


def count_packs(folder: Path) -> int | None:
    """Return the number of packs of a split; None before the pack stage has run."""
    if not folder.parent.is_dir():
        return None
    counts: list[int] = [pq.read_metadata(shard).num_rows for shard in sorted(folder.glob("*.parquet"))]
    return sum(counts)
