"""The schema of params.yaml: sections that belong together, and rules over several of them."""

from sft.params.check import read
from sft.params.schema import Params
from sft.params.training import TrainParams
from tests.support.params_files import DEFAULT, error_of, with_source


def test_the_training_sections_come_together():
    params = read(DEFAULT)
    assert params.training.rng == params.rng
    assert params.training.optimizer == params.optimizer
    assert set(TrainParams.model_fields) < set(Params.model_fields)


def test_a_misspelt_domain_is_an_error_with_the_right_one_and_a_domain_of_your_own_is_fine(tmp_path):
    source = "mine: {{uri: file://x.jsonl, read: openai, domain: {}}}"
    misspelt = error_of(with_source(tmp_path, source.format("multi-lingual")))
    assert "fetch.sources.mine: domain 'multi-lingual'" in misspelt
    assert "'multilingual'" in misspelt
    assert read(with_source(tmp_path, source.format("my-shop"))).fetch.sources["mine"].domain == "my-shop"
