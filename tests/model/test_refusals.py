"""Refusals: what Bridge would crash or hang on is said before anything is built."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from sft import params as p
from sft.command import InputError
from sft.model import refusals
from tests import tiny
from tests.model.test_bridge import PACKS, STEPS, train_params


@pytest.mark.parametrize(
    ("changes", "ranks", "packs", "message"),
    [
        ({"mixed_precision": {"name": "bf16_mixed"}}, 1, 4, "mixed_precision.name is bf16_mixed.*Use fp32"),
        ({"model": {"context_parallel_size": 2}}, 2, 4, "context_parallel_size is 2.*Use 1"),
        ({"model": {"pipeline_model_parallel_size": 4}}, 4, 4, "pipeline_model_parallel_size is 4.*2952"),
        ({"model": {"sequence_parallel": True}}, 1, 4, "sequence_parallel needs"),
        ({"model": {"tensor_model_parallel_size": 2}}, 3, 4, "3 ranks were started.*takes 2"),
        ({}, 4, 4, "global_batch_size is 2, not a multiple of the 4"),
        ({"scheduler": {"lr_warmup_iters": STEPS}}, 1, 4, "lr_warmup_iters is 8"),
        ({"rng": {"seed": 0}}, 1, 4, "rng.seed is 0"),
        ({}, 1, 1, "validation: 1 packs, fewer than the 2.*wait forever"),
        ({"train": {"global_batch_size": 10}}, 1, 10, "training: 7 packs, fewer than the 10"),
        ({}, 1, None, r"validation: no \*.parquet.*pack stage"),
    ],
)
def test_what_bridge_would_crash_or_hang_on_is_refused_first(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, dict[str, Any]],
    ranks: int,
    packs: int | None,
    message: str,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    tiny.write_packs(tmp_path / "training", tiny.make_packs(PACKS, 32, seed=1))
    if packs is not None:
        tiny.write_packs(tmp_path / "validation", tiny.make_packs(packs, 32, seed=2))
    with pytest.raises(InputError, match=message):
        refusals.check(packed=tmp_path, params=train_params(**changes))


def test_without_validation_no_validation_packs_are_wanted(tmp_path: Path) -> None:
    tiny.write_packs(tmp_path / "training", tiny.make_packs(PACKS, 32, seed=1))
    refusals.check(packed=tmp_path, params=train_params(validation={"eval_iters": 0}))


def test_params_of_training_are_the_sections_of_training() -> None:
    assert tuple(field.name for field in dataclasses.fields(refusals.TrainParams)) == p.TRAIN_SECTIONS
