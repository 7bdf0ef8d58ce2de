"""Tracking: one run for a lineage key, its data as inputs, its model as a version, its true end."""

import mlflow
import pytest

from sft.command import InputError
from sft.run import tracking
from sft.run.tracking import Dataset, Metrics, find_run, log_evaluation, open_run, register_model, true_status

KEY = "0123456789abcdef"
PARAMS = {"optimizer": {"lr": 1e-5}, "train": {"train_iters": 6}}


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    (tmp_path / "data").mkdir()
    yield tmp_path
    mlflow.set_tracking_uri(None)


def start(store, key=KEY, tags=None):
    data = Dataset("packed", "f" * 64, store / "data", "training", {"tokens": "12"})
    return open_run(key, PARAMS, tags or {"git.commit": "a" * 40}, [data])


def test_a_run_has_params_tags_and_data_and_is_found_again_by_its_key(store):
    run_id = start(store)
    assert start(store, tags={"git.commit": "b" * 40}) == run_id
    assert start(store, key="f" * 16) != run_id
    run = mlflow.get_run(run_id)
    assert run.data.params == {"optimizer.lr": "1e-05", "train.train_iters": "6"}
    assert run.data.tags["lineage_key"] == KEY
    assert run.data.tags["git.commit"] == "b" * 40, "tags describe the last attempt"
    (data,) = run.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("packed", "f" * 12)
    assert {"tokens": "12", "mlflow.data.context": "training"} == {tag.key: tag.value for tag in data.tags}
    assert (store / "runs/mlflow.db").is_file()


def test_a_run_ends_as_it_ended(store):
    run_id = start(store)
    assert mlflow.get_run(run_id).info.status == "RUNNING"
    for error, status in ((RuntimeError, "FAILED"), (KeyboardInterrupt, "KILLED")):
        with pytest.raises(error), true_status(run_id):
            raise error
        assert mlflow.get_run(run_id).info.status == status
    with true_status(run_id):
        pass
    assert mlflow.get_run(run_id).info.status == "FINISHED"


def test_a_step_that_the_run_has_is_not_written_twice_after_a_resume(store):
    run_id = start(store)
    first = Metrics(run_id)
    for step in (1, 2, 3):
        first.log(step, loss=1.0 / step)
    resumed = Metrics(run_id)
    for step in (3, 4):
        resumed.log(step, loss=1.0 / step)
    history = tracking.connect().get_metric_history(run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(1, 1.0), (2, 0.5), (3, 1 / 3), (4, 0.25)]


def test_a_model_is_registered_once_and_leads_to_its_run(store):
    run_id = start(store)
    model = store / "models/final"
    model.mkdir(parents=True)
    (model / "lineage.json").write_text("{}")
    version = register_model(run_id, model, {"lineage_key": KEY}, PARAMS)
    assert register_model(run_id, model, {"lineage_key": KEY}, PARAMS) == version
    registered = tracking.connect().get_model_version(tracking.REGISTERED_MODEL, version)
    assert registered.run_id == run_id
    assert registered.tags["lineage_key"] == KEY
    assert registered.tags["path"] == model.as_posix()
    assert mlflow.get_run(run_id).outputs.model_outputs
    (model / "lineage.json").write_text('{"other": 1}')
    assert register_model(run_id, model, {"lineage_key": KEY}, PARAMS) != version


def test_an_evaluation_goes_into_the_run_that_trained_the_model(store):
    run_id = start(store)
    report = store / "report.html"
    report.write_text("<p>")
    log_evaluation(KEY, {"after.loss": 0.5}, [report])
    assert mlflow.get_run(run_id).data.metrics == {"after.loss": 0.5}
    assert [item.path for item in tracking.connect().list_artifacts(run_id, "eval")] == ["eval/report.html"]
    with pytest.raises(InputError, match="no run with lineage key ffff"):
        log_evaluation("f" * 16, {}, [])


def test_an_unknown_key_has_no_run(store):
    assert find_run(tracking.connect(), KEY) is None


def test_a_server_that_does_not_answer_is_named_without_its_password(store, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(InputError, match=r"MLflow does not answer at http://\*\*\*@127\.0\.0\.1:9") as error:
        tracking.connect()
    assert "secret" not in str(error.value)


def test_texts_that_tell_of_a_run_keep_their_places(store, tmp_path):
    run_id = start(store)
    (store / "reports").mkdir()
    (store / "reports/pack.json").write_text("{}")
    (store / "params.yaml").write_text("a: 1\n")
    assert tracking.fetch_records(run_id, tmp_path / "none") == tmp_path / "none/records"
    places = {"reports/pack.json": store / "reports/pack.json", "params.yaml": store / "params.yaml"}
    tracking.log_records(run_id, places)
    brought = tracking.fetch_records(run_id, tmp_path / "brought")
    assert {path.relative_to(brought).as_posix() for path in brought.rglob("*") if path.is_file()} == places.keys()
    (store / "reports/pack.json").write_text('{"rows_in": 1}')
    tracking.log_records(run_id, {"reports/pack.json": store / "reports/pack.json"})
    again = tracking.fetch_records(run_id, tmp_path / "again")
    assert (again / "reports/pack.json").read_text() == '{"rows_in": 1}'
    assert (again / "params.yaml").exists()


def test_an_evaluation_brings_its_records(store, tmp_path, monkeypatch):
    run_id = start(store)
    (store / "reports").mkdir()
    (store / "reports/eval.json").write_text("{}")
    log_evaluation(KEY, {}, [])
    assert (tracking.fetch_records(run_id, tmp_path / "brought") / "reports/eval.json").exists()


def test_a_run_is_looked_up_by_any_of_its_names(store):
    run_id = start(store)
    model = store / "model"
    model.mkdir()
    (model / "lineage.json").write_text("{}")
    version = register_model(run_id, model, {"lineage_key": KEY}, PARAMS)
    name = tracking.REGISTERED_MODEL
    tracking.connect().set_registered_model_alias(name, "candidate", version)
    for asked in (run_id, KEY, f"{name}/{version}", f"{name}@candidate"):
        found = tracking.look_up(asked)
        assert found.run_id == run_id, asked
        assert found.facts["versions"] == [f"{name}/{version}"]
        assert found.version["lineage_key"] == KEY
    for unknown in ("0" * 32, "0" * 16, f"{name}/9", f"{name}@none", "none/1", "models/final", "main"):
        assert tracking.look_up(unknown) is None, unknown


def test_without_a_store_there_is_nothing_to_ask_and_none_is_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    assert not tracking.has_store()
    assert list(tmp_path.iterdir()) == []
