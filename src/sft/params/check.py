"""Check the whole of params.yaml, before a stage begins: every section, and what only all of them together tell.

read()           every section
check_params()   the same, for its errors
"""

from pathlib import Path

from pydantic import model_validator

from sft.cli import InputError
from sft.domains import suggest as suggest_domain
from sft.params.base import Section
from sft.params.data import Fetch, Filter, Pack, Prep
from sft.params.evaluation import Eval
from sft.params.read import PARAMS, read_yaml
from sft.params.training import (
    Checkpoint,
    MixedPrecision,
    Model,
    Optimizer,
    Peft,
    Rng,
    Scheduler,
    Train,
    TrainParams,
    Validation,
)


class Params(Section):
    """All sections, in the order of params.yaml."""

    fetch: Fetch
    filter: Filter
    prep: Prep
    pack: Pack
    model: Model
    mixed_precision: MixedPrecision
    peft: Peft
    optimizer: Optimizer
    scheduler: Scheduler
    train: Train
    validation: Validation
    checkpoint: Checkpoint
    rng: Rng
    eval: Eval

    @model_validator(mode="after")
    def _domains_are_known_or_own(self) -> "Params":
        for name, source in self.fetch.sources.items():
            if meant := suggest_domain(source.domain):
                raise ValueError(
                    f"fetch.sources.{name}: domain {source.domain!r}: {meant} A domain of your own needs a name that "
                    "is less like it"
                )
        return self

    @property
    def training(self) -> TrainParams:
        """The sections that the train stage reads."""
        return TrainParams(**{name: getattr(self, name) for name in TrainParams.model_fields})


def read(path: Path = PARAMS) -> Params:
    """Read and check the whole of params.yaml. Raises InputError."""
    if not path.exists():
        raise InputError(f"{path.absolute()}: not found. Run in the folder that holds params.yaml.")
    return read_yaml(path, Params)


def check_params(path: Path = PARAMS) -> None:
    """Raise InputError unless every section of params.yaml is as its schema says."""
    read(path)
