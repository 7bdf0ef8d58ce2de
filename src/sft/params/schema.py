"""The schema of params.yaml: all its sections."""

from pydantic import model_validator

from sft.domains import suggest as suggest_domain
from sft.params.base import Section
from sft.params.data import Fetch, Filter, Pack, Prep
from sft.params.evaluation import Eval
from sft.params.training import TrainParams


class DataParams(Section):
    """The sections that the data stages read."""

    fetch: Fetch
    filter: Filter
    prep: Prep
    pack: Pack


class Params(TrainParams, DataParams):
    """All sections, in the order of params.yaml: those of the data, those of the training, and the last one."""

    eval: Eval

    @model_validator(mode="after")
    def _domains_are_spelled_right(self) -> "Params":
        for name, source in self.fetch.sources.items():
            if suggestion := suggest_domain(source.domain):
                raise ValueError(
                    f"fetch.sources.{name}: domain {source.domain!r}: {suggestion} "
                    "A domain of your own needs a name that is less similar"
                )
        return self

    @property
    def training(self) -> TrainParams:
        """The sections that the train stage reads."""
        return TrainParams(**{name: getattr(self, name) for name in TrainParams.model_fields})
