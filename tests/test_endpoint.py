"""The endpoint: settings from the environment, pauses, and secrets that are never shown. Requests: test_judge.py."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from sft.cli import InputError
from sft.endpoint import MAX_BACKOFF_S, Endpoint, number_from_environment, pause_s


def test_pauses_double_up_to_a_limit_and_are_randomized():
    for failures, most in [(1, 1.0), (2, 2.0), (5, 16.0), (7, MAX_BACKOFF_S)]:
        pauses = [pause_s(failures, "", backoff_s=1.0) for _ in range(50)]
        assert all(most / 2 <= pause <= most for pause in pauses)
    assert len({pause_s(3, "", backoff_s=1.0) for _ in range(50)}) > 10


def test_a_pause_is_as_long_as_the_endpoint_asks():
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    assert pause_s(1, "30", backoff_s=1.0) == 30
    assert 85 < pause_s(1, later, backoff_s=1.0) <= 90
    assert pause_s(1, "Wed, 21 Oct 2015 07:28:00 GMT", backoff_s=1.0) <= 1


@pytest.mark.parametrize("header", ["", "soon", "-5", "nan", "inf", "1e9", "Wed, 99 Oct 2015 07:28:00 GMT"])
def test_a_header_that_cannot_be_read_changes_nothing(header: str):
    assert 0.5 <= pause_s(1, header, backoff_s=1.0) <= 1


def test_without_a_url_there_is_no_endpoint(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("SFT_JUDGE_URL", raising=False)
    assert Endpoint.from_environment("SFT_JUDGE") is None


@pytest.mark.parametrize(
    "url",
    [
        "host:8000/v1",
        "ftp://secret-host/v1",
        "http:///v1",
        "http://secret-host:99999/v1",
        "http://secret-host/v1?a=b",
        "x",
    ],
)
def test_an_invalid_url_is_an_error_that_does_not_show_it(monkeypatch: pytest.MonkeyPatch, url: str):
    monkeypatch.setenv("SFT_JUDGE_URL", url)
    with pytest.raises(InputError, match=r"^SFT_JUDGE_URL: ") as error:
        Endpoint.from_environment("SFT_JUDGE")
    assert "secret" not in str(error.value)


def test_a_key_that_no_header_can_have_is_an_error_that_does_not_show_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SFT_JUDGE_URL", "http://localhost/v1")
    monkeypatch.setenv("SFT_JUDGE_API_KEY", "sec\nret")
    with pytest.raises(InputError, match=r"^SFT_JUDGE_API_KEY: ") as error:
        Endpoint.from_environment("SFT_JUDGE")
    assert "ret" not in str(error.value)


@pytest.mark.parametrize(("text", "pattern"), [("0", r"[1-9]\d{0,2}"), ("many", r"[1-9]\d{0,2}")])
def test_a_setting_is_a_number(monkeypatch: pytest.MonkeyPatch, text: str, pattern: str):
    monkeypatch.setenv("SFT_JUDGE_CONCURRENCY", text)
    with pytest.raises(InputError, match=f"^SFT_JUDGE_CONCURRENCY={text}: "):
        number_from_environment("SFT_JUDGE_CONCURRENCY", "8", pattern)


def test_a_quotation_has_neither_the_address_nor_the_key():
    endpoint = Endpoint("https://me:pass@judge.example:8443/v1", "sk-secret", timeout_s=1)
    quoted = endpoint.quote("key SK-SECRET at https://me:pass@judge.example:8443/v1, JUDGE.example, " + "x" * 1000)
    assert quoted.startswith("key *** at ***, ***, xxx")
    assert len(quoted) == 200
    assert "secret" not in repr(endpoint)
    endpoint.close()
