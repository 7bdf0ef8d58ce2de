"""The sections of the data: sources with their pins, and what of filter, prep and pack excludes each other."""

import re

import pytest

from sft.params.check import read
from sft.params.data import Download, Read, Source
from tests.support.params_files import changed, error_of, with_source

DIGEST, COMMIT = "a" * 64, "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("uri", "address", "revision", "sha256"),
    [
        (f"pypi://a==1/b/{{c,d}}.json#sha256={DIGEST}", "pypi://a==1/b/{c,d}.json", None, DIGEST),
        (f"https://host/a.jsonl?x=1#sha256={DIGEST}", "https://host/a.jsonl?x=1", None, DIGEST),
        (f"https://me@host/a.jsonl#sha256={DIGEST}", "https://me@host/a.jsonl", None, DIGEST),
        (f"hf://owner/name@{COMMIT}", "hf://owner/name", COMMIT, None),
        (f"hf://owner/name@{COMMIT}/a/*.jsonl", "hf://owner/name/a/*.jsonl", COMMIT, None),
        (f"hf://models/owner/name@{COMMIT}/a", "hf://models/owner/name/a", COMMIT, None),
        ("hf://owner/name@main/a@b.jsonl", "hf://owner/name/a@b.jsonl", "main", None),
        ("hf://owner/name/a@b.jsonl", "hf://owner/name/a@b.jsonl", None, None),
        ("file://a@b/c.jsonl", "file://a@b/c.jsonl", None, None),
    ],
)
def test_the_pin_is_a_part_of_the_uri(uri, address, revision, sha256):
    source = Download(uri=uri)
    assert (source.address, source.revision, source.sha256) == (address, revision, sha256)


def test_a_source_may_have_a_list_of_addresses_each_with_its_pin(tmp_path):
    uris = [f"https://host/a.jsonl#sha256={DIGEST}", "file://b c.jsonl"]
    source = read(with_source(tmp_path, f"mine: {{uri: {uris}, read: openai}}")).fetch.sources["mine"]
    assert [(each.address, each.sha256) for each in source.each] == [
        ("https://host/a.jsonl", DIGEST),
        ("file://b c.jsonl", None),
    ]


@pytest.mark.parametrize("uri", ["[]", "[1]", "[file://a, file://a]", "['https://host/a#sha256=1', file://b]"])
def test_a_wrong_list_of_addresses_is_an_error_at_the_uri(tmp_path, uri):
    assert ": fetch.sources.mine.uri: " in error_of(with_source(tmp_path, f"mine: {{uri: {uri}, read: openai}}"))


@pytest.mark.parametrize("pin", ["#", "#sha256=", f"#sha256={'A' * 64}", f"#sha256={DIGEST[1:]}", f"#md5={DIGEST}"])
def test_a_pin_that_is_no_digest_is_an_error_at_the_uri(tmp_path, pin):
    message = error_of(with_source(tmp_path, f"mine: {{uri: 'https://host/a{pin}', read: openai}}"))
    assert ": fetch.sources.mine.uri: " in message


def test_a_source_needs_nothing_but_a_uri_and_a_format(tmp_path):
    source = read(with_source(tmp_path, "mine: {uri: file://x.jsonl, read: openai}")).fetch.sources["mine"]
    assert source == Source(uri="file://x.jsonl", read=Read(format="openai"))
    assert (source.domain, source.license, source.origin) == ("unspecified", "unspecified", "")
    assert (source.share, source.epochs, source.read.max_rows) == (None, None, None)


def test_read_has_a_short_form_and_a_long_one(tmp_path):
    long = "{format: openai, fields: {messages: chat}, select: {used_in: [a, b]}, max_rows: 5}"
    path = with_source(tmp_path, f"mine: {{uri: file://x.jsonl, read: {long}}}")
    assert read(path).fetch.sources["mine"].read == Read(
        format="openai", fields={"messages": "chat"}, select={"used_in": ["a", "b"]}, max_rows=5
    )
    path = with_source(tmp_path, "mine: {uri: file://x.jsonl, read: {format: openai}}")
    assert read(path).fetch.sources["mine"].read == Read.model_validate("openai")


def test_share_and_epochs_exclude_each_other(tmp_path):
    message = error_of(with_source(tmp_path, "mine: {uri: file://x, read: openai, share: 0.5, epochs: 2.0}"))
    assert ": fetch.sources.mine: share and epochs" in message


@pytest.mark.parametrize("name", ["model", "benchmarks"])
def test_a_source_cannot_take_the_name_of_another_fetch(tmp_path, name):
    assert f"'{name}'" in error_of(with_source(tmp_path, f"{name}: {{uri: file://x.jsonl, read: openai}}"))


@pytest.mark.parametrize(
    ("name", "meant"),
    [("../x", "x"), ("A", "a"), ("a b", "a-b"), ("-a", "a"), ("a/b", "a-b"), ("My_Data", "my-data"), ("v1.5", "v1-5")],
)
def test_the_name_of_a_source_is_a_plain_file_name(tmp_path, name, meant):
    message = error_of(with_source(tmp_path, f"'{name}': {{uri: file://x.jsonl, read: openai}}"))
    assert f": fetch.sources.{name}: " in message
    assert message.endswith(f": {meant}")


def test_a_blend_without_sources_is_an_error(tmp_path):
    path = changed(tmp_path, r"^  sources:\n(    .*\n|\n)+", "  sources: {}\n\n")
    assert ": fetch: fetch.sources is empty" in error_of(path)


@pytest.mark.parametrize(
    ("pattern", "new", "place"),
    [
        (r"^  validation: .*\n  test: .*$", "  validation: 0.5\n  test: 0.5", "pack: validation 0.5 + test 0.5"),
        (r"^    strip: .*$", "    strip: 0.98", "prep.reasoning: strip 0.98 + truncate 0.03"),
        (r"^    budgets: .*$", "    budgets: []", "prep.reasoning: truncate needs budgets"),
    ],
)
def test_values_that_exclude_each_other_are_an_error_at_their_section(tmp_path, pattern, new, place):
    assert f": {place}" in error_of(changed(tmp_path, pattern, new))


@pytest.mark.parametrize(
    ("date", "meant"),
    [("2026-01-31", 'put it in quotes, "2026-01-31"'), ('"2026-02-30"', "day is out of range for month")],
)
def test_the_date_of_a_template_is_the_text_of_a_day_that_exists(tmp_path, date, meant):
    assert re.search(rf":\d+: prep\.date: .*{meant}", error_of(changed(tmp_path, r"^  date: .*$", f"  date: {date}")))
