"""card: a model card that a hub reads, with the licenses of all data, and only what the reports say."""

import re

import pytest
from huggingface_hub import ModelCard
from ruamel.yaml import YAML

from sft.lineage.card import HUB_LICENSES, render

BASE = {"uri": "hf://models/owner/base", "license": "Apache-2.0", "parameters": 1000}
PACK = {"splits": {"training": {"packs": 3, "trained_tokens": 90}}}
SOURCE = {"domain": "chat", "license": "MIT", "uri": "pypi://a==1/b.json", "rows": 10, "kept": 9, "trained_tokens": 45}
LINEAGE = {
    "lineage_key": "0123456789abcdef",
    "git_commit": "a" * 40,
    "git_dirty": False,
    "data": "d" * 64,
    "base_model": "b" * 64,
    "params": {"optimizer": {"lr": 1e-5}, "train": {"train_iters": 7}},
    "packages": {},
    "hardware": {"gpus": [], "processor": "a processor"},
    "sources": {"chats": SOURCE},
}


def card(sources=None, evaluation=None, base=BASE):
    reports = {"reports/fetch/model.json": base, "reports/pack.json": PACK}
    return render({**LINEAGE, "sources": sources or {"chats": SOURCE}}, lambda path: reports.get(path, {}), evaluation)


def front_matter(text):
    assert text.startswith("---\n")
    return YAML(typ="safe").load(text.split("---\n")[1])


def test_the_front_matter_is_what_a_hub_reads():
    hub = {**SOURCE, "uri": "hf://datasets/owner/chats/data/*.parquet", "license": "Apache-2.0"}
    fields = front_matter(card({"chats": hub, "more": {**hub, "uri": "hf://owner/more"}}))
    assert fields["license"] == "apache-2.0"
    assert fields["base_model"] == "owner/base"
    assert fields["datasets"] == ["owner/chats", "owner/more"]
    assert fields["library_name"] == "transformers"
    assert {"sft", "chat", "lineage-0123456789abcdef"} <= set(fields["tags"])


def test_trained_tokens_are_listed_by_license_and_only_those_licenses_apply():
    packed = {**PACK, "licenses": {"CC0-1.0": {"trained_tokens": 1234}}}
    text = render(LINEAGE, lambda path: {"reports/fetch/model.json": BASE, "reports/pack.json": packed}.get(path, {}))
    assert front_matter(text)["license_name"] == "Apache-2.0 and CC0-1.0"
    assert re.search(r"\| trained tokens under CC0-1\.0 +\| 1,234 +\|", text)


def test_the_windows_of_samples_longer_than_a_pack_are_counted():
    packed = {**PACK, "windows": {"samples": 1200, "windows": 3400}}
    text = render(LINEAGE, lambda path: packed if path == "reports/pack.json" else {})
    assert re.search(r"\| windows of 1,200 samples longer than a pack +\| 3,400 +\|", text)


@pytest.mark.parametrize(
    ("licenses", "hub", "named"),
    [
        (["Apache-2.0"], "apache-2.0", None),
        (["MIT"], "other", "Apache-2.0 and MIT"),
        (["MIT and CC-BY-4.0", "MIT"], "other", "Apache-2.0 and CC-BY-4.0 and MIT"),
        (["Apache-2.0, MIT and BSD-3-Clause"], "other", "Apache-2.0 and BSD-3-Clause and MIT"),
        (["Apache-2.0 AND (MIT OR CC0-1.0)"], "other", "Apache-2.0 and MIT or CC0-1.0"),
        (['my "own": license'], "other", 'Apache-2.0 and my "own": license'),
        ([None], "other", "Apache-2.0 and unknown"),
    ],
)
def test_every_license_of_data_and_base_model_travels_to_the_card(licenses, hub, named):
    text = card({f"s{n}": {**SOURCE, "license": name} for n, name in enumerate(licenses)})
    fields = front_matter(text)
    assert (fields["license"], fields.get("license_name")) == (hub, named)
    for name in (named or "Apache-2.0").split(" and "):
        assert name in text.split("# A fine-tuned")[1]


def test_licenses_of_the_hub_are_lower_case_identifiers():
    assert all(name == name.lower() for name in HUB_LICENSES)


def test_data_params_and_lineage_are_in_tables():
    text = card()
    assert "| chats | chat | MIT | 10 | 9 | - | 45 | - | pypi://a==1/b.json | - |" in text
    assert "| learning rate | 1e-05 |" in text
    assert "| steps | 7 |" in text
    assert "| trained on | a processor |" in text
    of_nodes = {**LINEAGE, "hardware": {"gpus": ["NVIDIA H100", "NVIDIA H100"], "driver": "580.65"}}
    assert "| trained on | 2 NVIDIA H100, driver 580.65 |" in render(of_nodes, lambda path: {})
    assert "| lineage key | 0123456789abcdef |" in text


def test_the_evaluation_is_there_before_and_after_if_it_is_known():
    assert "reports/eval.json" in card()
    numbers = {"loss": 2.0, "stopped": None, "loss_by_domain": {"chat": 2.0}}
    text = card(evaluation={"before": numbers, "after": {**numbers, "loss": 1.0}})
    assert "| held-out loss | 2 | 1 |" in text
    assert "| answers: stopped by itself | - | - |" in text
    assert "| held-out loss: chat | 2 | 2 |" in text


def test_the_evaluation_is_in_the_model_index_of_the_hub():
    assert "model-index" not in front_matter(card())
    numbers = {"loss": 2.0, "stopped": None, "loss_by_domain": {}}
    (entry,) = ModelCard(card(evaluation={"before": numbers, "after": {**numbers, "loss": 1.0}})).data.eval_results
    assert (entry.metric_type, entry.metric_value, entry.dataset_type) == ("loss", 1.0, "held-out")


def test_a_model_trained_on_a_benchmark_says_not_to_report_it_there():
    assert "Trained on benchmarks" not in card()
    text = card({"calls": {**SOURCE, "origin": "OpenAI HumanEval, a benchmark"}, "chats": SOURCE})
    assert "**Trained on benchmarks**: `calls`" in text


def test_text_of_others_stays_in_its_cell():
    text = card({"a|b": {**SOURCE, "origin": "x | y\n# heading <img src=x> [link](http://y)"}})
    (line,) = [line for line in text.splitlines() if line.startswith("| a")]
    assert line.replace(r"\|", "").count("|") == 11
    assert "\n# heading" not in text
    assert "<img" not in text
    assert "[link]" not in text


def test_a_model_without_reports_has_a_card():
    text = render({key: value for key, value in LINEAGE.items() if key != "sources"}, lambda path: {})
    assert front_matter(text)["license"] == "other"
    assert "0123456789abcdef" in text


def test_the_card_has_the_parity_of_megatron_and_transformers_or_why_it_was_not_measured():
    measured = {
        "logits": 4e-7,
        "losses": {"megatron": 6.1, "transformers": 6.1},
        "tolerance": 0.03,
        "tokens": [50, 200],
    }
    parity = {"import": {"skipped": "a second copy needs 126 GB"}, "export": measured}
    text = render({**LINEAGE, "parity": parity}, lambda path: {}, None)
    assert "| Megatron = transformers at import | not measured: a second copy needs 126 GB |" in text
    assert "| Megatron = transformers at export | logits within 0.03 of the largest |" in text
    without = render({**LINEAGE, "parity": {"import": None, "export": measured}}, lambda path: {}, None)
    assert "at import" not in without
