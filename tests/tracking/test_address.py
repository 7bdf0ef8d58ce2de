"""The address of the MLflow store: what cannot be one is an error with the right form."""

import pytest

from sft.tracking.address import StoreError, has_store, is_local, store_name, store_uri


@pytest.mark.parametrize(
    "uri",
    [
        "http://localhost:5000",
        "https://me:secret@host/path?x=1",
        "http://[::1]:5000",
        "sqlite:////place/mlflow.db",
        "sqlite:///runs/mlflow.db",
        "postgresql://me@host/db",
        "postgresql+psycopg://me@host:5432/db?sslmode=require",
        "mysql+pymysql://host/db",
        "databricks",
        "databricks://profile",
    ],
)
def test_servers_and_databases_are_addresses(monkeypatch, uri):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert store_uri().endswith(uri.removeprefix("sqlite:///runs/"))


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("./mlruns", "no longer keeps runs in folders"),
        ("mlruns", "no longer keeps runs in folders"),
        ("/place/mlruns", "no longer keeps runs in folders"),
        ("file:///place/mlruns", "no longer keeps runs in folders"),
        ("file:mlruns", "no longer keeps runs in folders"),
        ("localhost:5000", "Write http://localhost:5000"),
        ("127.0.0.1:5000/", "Write http://127.0.0.1:5000/"),
        ("mlflow.example.org:443", "Write http://mlflow.example.org:443"),
        ("http:/host:5000", "expected http://..."),
        ("htp://host:5000", "expected http://..."),
        ("http://", "expected http://..."),
        ("http://host:port", "expected http://..."),
        ("sqlite://x.db", "expected http://..."),
        ("sqlite:x.db", "expected http://..."),
        ("postgres://host/db", "expected http://..."),
    ],
)
def test_another_text_is_an_error_before_mlflow_sees_it(monkeypatch, uri, expected):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(StoreError) as error:
        store_uri()
    assert str(error.value).startswith(f"MLFLOW_TRACKING_URI={uri}: ")
    assert expected in str(error.value)


def test_a_password_is_not_in_the_message(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "htp://me:secret@host")
    with pytest.raises(StoreError, match="htp://") as error:
        store_uri()
    assert "secret" not in str(error.value)


def test_without_an_address_the_store_is_a_file_of_the_repository(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert store_uri() == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert store_name() == "runs/mlflow.db"
    assert is_local()
    assert not has_store()
