"""Where an endpoint is, how long to wait for it, and what is never shown of it. Requests: test_judge.py."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from sft.cli import InputError
from sft.filters.judge.endpoint import LONGEST_BACKOFF_S, Endpoint, pause_s, setting


def test_pauses_double_up_to_a_limit_and_are_spread():
    for failures, most in [(1, 1.0), (2, 2.0), (5, 16.0), (7, LONGEST_BACKOFF_S)]:
        pauses = [pause_s(failures, "", backoff_s=1.0) for _ in range(50)]
        assert all(most / 2 <= pause <= most for pause in pauses)
    assert len({pause_s(3, "", backoff_s=1.0) for _ in range(50)}) > 10


def test_a_pause_is_as_long_as_the_endpoint_asks():
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    assert pause_s(1, "30", backoff_s=1.0) == 30
    assert 85 < pause_s(1, later, backoff_s=1.0) <= 90
    assert pause_s(1, "Wed, 21 Oct 2015 07:28:00 GMT", backoff_s=1.0) <= 1


@pytest.mark.parametrize("header", ["", "soon", "-5", "nan", "inf", "1e9", "Wed, 99 Oct 2015 07:28:00 GMT"])
def test_a_wish_that_cannot_be_read_changes_nothing(header: str):
    assert 0.5 <= pause_s(1, header, backoff_s=1.0) <= 1


def test_without_a_url_there_is_no_endpoint(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("SFT_JUDGE_URL", raising=False)
    assert Endpoint.from_environment() is None


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
def test_a_url_that_cannot_be_is_refused_and_not_shown(monkeypatch: pytest.MonkeyPatch, url: str):
    monkeypatch.setenv("SFT_JUDGE_URL", url)
    with pytest.raises(InputError, match="SFT_JUDGE_URL: expected") as error:
        Endpoint.from_environment()
    assert "secret" not in str(error.value)


def test_a_key_that_no_header_holds_is_refused_and_not_shown(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SFT_JUDGE_URL", "http://localhost/v1")
    monkeypatch.setenv("SFT_JUDGE_API_KEY", "sec\nret")
    with pytest.raises(InputError, match="SFT_JUDGE_API_KEY: expected") as error:
        Endpoint.from_environment()
    assert "ret" not in str(error.value)


@pytest.mark.parametrize(("text", "form"), [("0", r"[1-9]\d{0,2}"), ("many", r"[1-9]\d{0,2}")])
def test_a_setting_is_a_number(monkeypatch: pytest.MonkeyPatch, text: str, form: str):
    monkeypatch.setenv("SFT_JUDGE_CONCURRENCY", text)
    with pytest.raises(InputError, match=f"SFT_JUDGE_CONCURRENCY={text}: expected a number above 0"):
        setting("SFT_JUDGE_CONCURRENCY", "8", form)


def test_what_is_quoted_of_an_endpoint_names_neither_its_place_nor_its_key():
    endpoint = Endpoint("https://me:pass@judge.example:8443/v1", "sk-secret", timeout_s=1)
    quoted = endpoint.quote("key SK-SECRET at https://me:pass@judge.example:8443/v1, JUDGE.example, " + "x" * 1000)
    assert quoted.startswith("key *** at ***, ***, xxx")
    assert len(quoted) == 200
    assert "secret" not in repr(endpoint)
    endpoint.close()
