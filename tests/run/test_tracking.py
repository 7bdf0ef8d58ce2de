"""Tracking: each thing once in a store, whatever happened to it meanwhile. The server is a real one."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import mlflow
import pytest

from sft.command import InputError
from sft.files import file_digest
from sft.run import outbox, tracking
from sft.run.outbox import Dataset, Metrics, Outbox, open_run, true_status
from sft.run.tracking import CANDIDATE, CHAMPION, EXPERIMENT, REGISTERED_MODEL, SAMPLED, deliver, look_up
from tests.cluster import wait_until
from tests.project import ROOT
from tests.servers import S3_KEYS, client, mlflow_server, postgres_server, s3_server

KEY = "0123456789abcdef"
PARAMS = {"optimizer": {"lr": 1e-5}, "train": {"train_iters": 6}}
DATA = Dataset("packed", "f" * 64, "file:///data/packed", "training", {"tokens": "12"})
SOURCE = Dataset("calls", "e" * 64, "file:///data/calls", "source", {"license": "MIT", "rows": "9", "tokens": "12"})
HELD_OUT = Dataset("held-out", "d" * 64, "file:///data/packed", "evaluation", {"chat": "4"})


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with mlflow_server(tmp_path_factory.mktemp("mlflow")) as server:
        shutil.copyfile(server.folder / "mlflow.db", server.folder / "empty.db")
        yield server


@pytest.fixture(autouse=True)
def _outside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(tracking, "EVERY", 0.1)
    yield
    mlflow.set_tracking_uri(None)


@pytest.fixture
def store(server, tmp_path, monkeypatch):
    """The store that needs no server, its tables made (which takes MLflow ten seconds)."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "runs").mkdir()
    shutil.copyfile(server.folder / "empty.db", tmp_path / "runs/mlflow.db")
    return tmp_path


@pytest.fixture
def served(server, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    return server


def test_the_store_is_made_once_and_whole_by_whichever_of_several_processes_lives(tmp_path):
    """MLflow alone: both fail at the same table, and after them everyone."""
    ask = "from sft.run import tracking; tracking.connect(); print('asked')"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    environment.pop("MLFLOW_TRACKING_URI", None)
    processes = [
        subprocess.Popen([sys.executable, "-c", ask], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    made = "runs/.mlflow.db.partial-*[0-9]"  # beside it SQLite may have a journal
    wait_until(lambda: list(tmp_path.glob(made)))
    (partial,) = tmp_path.glob(made)
    maker = next(process for process in processes if process.pid == int(partial.name.rpartition("-")[2]))
    maker.kill()
    maker.wait()  # until then its pid is taken, and what it left counts as of a living process
    said = {process: process.communicate(timeout=60)[0] for process in processes}
    assert [said[process] for process in processes if process is not maker] == ["asked\n"] * 2
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"mlflow.db", "mlflow.db.lock"}


def made(folder, key=KEY, digest=DATA.digest, sampled=False, **params):
    """Tell of the packed data of a run, as who begins a training does."""
    report = folder / "filter.json"
    report.write_text("{}")
    outbox.add_data(
        folder / "runs" / key, digest, {"filter": params}, {"filter/rows_in": 10.0}, [SOURCE, DATA],
        {"reports/filter.json": report}, sampled=sampled,
    )  # fmt: skip


def data_runs(experiment=EXPERIMENT):
    client = tracking.connect()
    found = client.get_experiment_by_name(experiment)
    return client.search_runs([found.experiment_id], "tags.stage = 'data'") if found else []


def begin(folder, key=KEY, sampled=False, **tags):
    return open_run(folder / "runs" / key, PARAMS, tags, [DATA, SOURCE], sampled=sampled)


def exported(folder, key=KEY, parent=None, more=""):
    """A model as training leaves it."""
    model = folder / "models/final"
    model.mkdir(parents=True, exist_ok=True)
    told = {"lineage_key": key, "data": DATA.digest, "base_model": "b", "code": "c", "git_commit": "a" * 40}
    (model / "lineage.json").write_text(json.dumps({**told, "params": PARAMS, "parent": parent, "more": more}))
    return model


def evaluate(box, loss, passed=True, held_out=HELD_OUT):
    box.add(
        "evaluation", tags={}, params={"eval.seed": "1"}, metrics={"eval/after/loss": loss}, passed=passed, loss=loss,
        dataset=held_out.__dict__,
    )  # fmt: skip


def history(run_id, name="loss"):
    return [(metric.step, metric.value) for metric in tracking.connect().get_metric_history(run_id, name)]


def children(run_id):
    client = tracking.connect()
    experiment = client.get_run(run_id).info.experiment_id
    found = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{run_id}'")
    return {run.info.run_name: run for run in found}


# --- What a store shows ---------------------------------------------------------------------------------


def test_a_whole_run_stands_in_a_real_server_with_all_its_links(tmp_path, served):
    box = begin(tmp_path, cluster="local")
    with true_status(box):
        Metrics(box).log(1, loss=2.0)
        box.add("system", attempt=1, step=0, values={"system/cpu_utilization_percentage": 50.0})
        outbox.add_model(box, exported(tmp_path), {"train_loss": 0.5, "validation_loss": None})
        report = tmp_path / "pack.json"
        report.write_text("{}")
        box.attach("records", {"reports/pack.json": report})
    evaluate(box, 0.4)
    told = deliver(box.folder.parent)
    assert (told.waiting, told.reason, told.aliases) == (0, None, [CANDIDATE, CHAMPION])

    client = tracking.connect()
    run = client.get_run(told.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"optimizer.lr": "1e-05", "train.train_iters": "6"}
    assert run.data.tags["lineage_key"] == KEY
    assert run.data.metrics == {"loss": 2.0, "train_loss": 0.5, "eval/after/loss": 0.4}
    inputs = {one.dataset.name: one for one in run.inputs.dataset_inputs}
    assert {name: one.dataset.digest for name, one in inputs.items()} == {"packed": "f" * 12, "calls": "e" * 12}
    assert {tag.key: tag.value for tag in inputs["calls"].tags} == {**SOURCE.tags, "mlflow.data.context": "source"}
    assert [item.path for item in client.list_artifacts(told.run_id, "records")] == ["records/reports"]

    runs = children(told.run_id)
    assert sorted(runs) == ["attempt-1", "evaluation"]
    assert runs["attempt-1"].data.tags["cluster"] == "local"
    assert runs["attempt-1"].data.metrics == {"system/cpu_utilization_percentage": 50.0}
    assert runs["evaluation"].data.params == {"eval.seed": "1"}
    assert [one.dataset.name for one in runs["evaluation"].inputs.dataset_inputs] == ["held-out"]

    name, number = told.version.split("/")
    version = client.get_model_version(name, number)
    assert (name, version.run_id, version.tags["data.calls"]) == (REGISTERED_MODEL, told.run_id, SOURCE.digest)
    assert version.tags["lineage_json"] == file_digest(tmp_path / "models/final/lineage.json")
    (output,) = run.outputs.model_outputs
    model = client.get_logged_model(output.model_id)
    assert model.source_run_id == told.run_id
    assert {(metric.key, metric.dataset_name) for metric in model.metrics} >= {
        ("train_loss", "packed"), ("eval/after/loss", "held-out"),
    }  # fmt: skip
    assert [one.model_id for one in client.get_run(runs["evaluation"].info.run_id).inputs.model_inputs] == [
        output.model_id
    ]


def test_a_requeue_goes_on_in_the_run_as_another_attempt(tmp_path, store):
    box = begin(tmp_path, cluster="one")
    Metrics(box).log(1, loss=2.0)
    first = deliver(box.folder.parent)
    assert tracking.connect().get_run(first.run_id).info.status == "RUNNING"
    again = begin(tmp_path, cluster="two")  # the first attempt was killed without a word
    Metrics(again).log(1, loss=9.0)
    Metrics(again).log(2, loss=1.0)
    with pytest.raises(RuntimeError), true_status(again):
        raise RuntimeError
    assert deliver(box.folder.parent).run_id == first.run_id
    assert history(first.run_id) == [(1, 2.0), (2, 1.0)]
    runs = children(first.run_id)
    assert {name: run.info.status for name, run in runs.items()} == {"attempt-1": "KILLED", "attempt-2": "FAILED"}
    run = tracking.connect().get_run(first.run_id)
    assert (run.info.status, run.data.tags["cluster"]) == ("FAILED", "two")
    assert list(json.loads((box.folder / "delivered.json").read_text())) == ["runs/mlflow.db"]


def test_a_version_names_the_version_that_its_training_started_from(tmp_path, store):
    box = begin(tmp_path)
    outbox.add_model(box, exported(tmp_path), {})
    first = deliver(box.folder.parent).version
    other = begin(tmp_path, key="f" * 16)
    outbox.add_model(other, exported(tmp_path, key="f" * 16, parent=KEY), {})
    second = deliver(other.folder.parent).version
    tags = tracking.connect().get_model_version(*second.split("/")).tags
    assert (tags["parent"], first != second) == (first, True)


def test_a_model_is_registered_once(tmp_path, store):
    box = begin(tmp_path)
    for more in ("one", "one", "two"):
        outbox.add_model(box, exported(tmp_path, more=more), {})
    deliver(box.folder.parent)
    assert look_up(KEY).facts["versions"] == [f"{REGISTERED_MODEL}/1", f"{REGISTERED_MODEL}/2"]


# --- The data -------------------------------------------------------------------------------------------


def test_packed_data_has_one_run_and_every_training_on_it_leads_there(tmp_path, store):
    made(tmp_path, seed=1)
    first = deliver(begin(tmp_path).folder.parent)
    made(tmp_path, key="f" * 16, seed=2)  # other params that made the same data: the first stand
    second = deliver(begin(tmp_path, key="f" * 16).folder.parent)
    (run,) = data_runs()
    assert (run.info.run_name, run.info.status) == ("data-" + "f" * 12, "FINISHED")
    assert (run.data.params, run.data.metrics) == ({"filter.seed": "1"}, {"filter/rows_in": 10.0})
    assert run.data.tags["packed_data"] == DATA.digest
    assert {one.dataset.name for one in run.inputs.dataset_inputs} == {"calls", "packed"}
    client = tracking.connect()
    assert [item.path for item in client.list_artifacts(run.info.run_id, "records")] == ["records/reports"]
    for told in (first, second):
        assert client.get_run(told.run_id).data.tags["data_run"] == run.info.run_id
    assert look_up(KEY).facts["run of its data"] == run.info.run_id
    with pytest.raises(InputError, match=rf"run of packed data\. Name a training on it .*{'f' * 16}"):
        look_up(run.info.run_id)


def test_the_run_of_data_that_was_half_told_is_completed_by_whoever_comes_next(tmp_path, store, monkeypatch):
    made(tmp_path, seed=1)
    box = begin(tmp_path)
    monkeypatch.setattr(mlflow.MlflowClient, "log_artifacts", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):  # as by a kill, its metrics told and its files not
        deliver(box.folder.parent)
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert [run.info.status for run in data_runs()] == ["RUNNING"]
    made(tmp_path, key="f" * 16, seed=2)
    deliver(begin(tmp_path, key="f" * 16).folder.parent)
    deliver(box.folder.parent)
    (run,) = data_runs()
    assert (run.info.status, run.data.params) == ("FINISHED", {"filter.seed": "1"})
    assert len(tracking.connect().get_metric_history(run.info.run_id, "filter/rows_in")) == 1
    assert len(run.inputs.dataset_inputs) == 2


def test_many_that_tell_of_the_same_data_at_a_time_make_one_run(tmp_path, store):
    keys = [f"{number:016x}" for number in range(6)]
    for key in keys:
        made(tmp_path, key=key)
        begin(tmp_path, key=key)
    tracking.connect()
    threads = [threading.Thread(target=deliver, args=(tmp_path / "runs" / key,)) for key in keys]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (run,) = data_runs()
    client = tracking.connect()
    assert {client.get_run(tracking.run_id(tmp_path / "runs" / key)).data.tags["data_run"] for key in keys} == {
        run.info.run_id
    }


def test_other_data_and_a_sample_have_runs_of_their_own(tmp_path, store):
    made(tmp_path)
    deliver(begin(tmp_path).folder.parent)
    made(tmp_path, key="e" * 16, digest="e" * 64)
    deliver(begin(tmp_path, key="e" * 16).folder.parent)
    made(tmp_path, key="d" * 16, digest="e" * 64, sampled=True)
    deliver(begin(tmp_path, key="d" * 16, sampled=True).folder.parent)
    assert sorted(run.info.run_name for run in data_runs()) == ["data-" + "e" * 12, "data-" + "f" * 12]
    assert [run.info.run_name for run in data_runs(SAMPLED)] == ["data-" + "e" * 12]


def test_a_training_told_of_elsewhere_leads_to_the_run_of_its_data_too(tmp_path, store):
    made(tmp_path)
    deliver(begin(tmp_path).folder.parent)
    told = deliver(begin(tmp_path, key="f" * 16).folder.parent)
    (run,) = data_runs()
    assert tracking.connect().get_run(told.run_id).data.tags["data_run"] == run.info.run_id


# --- Aliases --------------------------------------------------------------------------------------------


def run_with_loss(folder, key, loss, **more):
    box = begin(folder, key=key)
    outbox.add_model(box, exported(folder, key=key), {})
    evaluate(box, loss, **more)
    return deliver(box.folder.parent)


def aliases():
    model = tracking.connect().get_registered_model(REGISTERED_MODEL)
    return dict(model.aliases)


def test_only_a_model_that_passed_the_gate_takes_an_alias_and_only_a_better_one_is_champion(tmp_path, store):
    failed = run_with_loss(tmp_path, "0" * 16, 0.1, passed=False)
    assert (failed.aliases, failed.note, aliases()) == ([], "the gate was not passed", {})
    assert run_with_loss(tmp_path, "1" * 16, 0.5).aliases == [CANDIDATE, CHAMPION]
    worse = run_with_loss(tmp_path, "2" * 16, 0.6)
    assert (worse.aliases, worse.note) == ([CANDIDATE], "champion stays nano3-sft/2: its held-out loss is 0.5")
    elsewhere = Dataset("held-out", "c" * 64, "file:///x", "evaluation", {})
    other = run_with_loss(tmp_path, "3" * 16, 0.1, held_out=elsewhere)
    assert other.aliases == [CANDIDATE]
    assert "measured on other held-out data" in other.note
    assert run_with_loss(tmp_path, "4" * 16, 0.4).aliases == [CANDIDATE, CHAMPION]
    assert aliases() == {CANDIDATE: 5, CHAMPION: 5}


def test_a_run_on_a_sample_is_kept_apart_and_never_takes_an_alias(tmp_path, store):
    box = begin(tmp_path, sampled=True)
    outbox.add_model(box, exported(tmp_path), {})
    evaluate(box, 0.1)
    told = deliver(box.folder.parent)
    assert (told.version, told.aliases, told.note) == (
        f"{SAMPLED}/1",
        [],
        "a run on a sample of the data takes no alias",
    )
    client = tracking.connect()
    experiment = client.get_experiment(client.get_run(told.run_id).info.experiment_id)
    assert experiment.name == SAMPLED != EXPERIMENT
    assert not client.search_registered_models(f"name = '{REGISTERED_MODEL}'")
    assert look_up(KEY).run_id == told.run_id


# --- A store that is away, slow, or another -------------------------------------------------------------


def test_a_server_that_stops_and_starts_again_has_every_step_once_and_in_order(server, tmp_path, monkeypatch, capsys):
    (tmp_path / "server").mkdir()
    shutil.copyfile(server.folder / "empty.db", tmp_path / "server/mlflow.db")
    with mlflow_server(tmp_path / "server") as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
        box = begin(tmp_path)
        run, metrics = box.folder.parent, Metrics(box)
        step = 0
        with true_status(box), tracking.delivering(run):

            def train(steps):
                nonlocal step
                for _ in range(steps):
                    step += 1
                    metrics.log(step, loss=1 / step, lr=0.1)
                    time.sleep(0.005)

            train(50)
            wait_until(lambda: tracking.run_id(run) and box.waiting(server.url) == 0)
            server.stop()
            train(50)
            wait_until(lambda: "does not answer" in capsys.readouterr().out)
            assert box.waiting(server.url) > 0
            server.start()
            train(50)
        told = deliver(run)
        assert (told.waiting, told.reason) == (0, None)
        assert history(told.run_id) == [(step, 1 / step) for step in range(1, 151)]
        assert len(history(told.run_id, "lr")) == 150
        assert tracking.connect().get_run(told.run_id).info.status == "FINISHED"
    assert step == 150


def test_a_server_that_is_away_from_beginning_to_end_is_told_later(tmp_path, served, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:s3cr3t-word@127.0.0.1:9")
    box = begin(tmp_path)
    run = box.folder.parent
    tracking.greet(run)
    with tracking.told_in_the_end(run) as ending, true_status(box):
        monkeypatch.setattr(tracking, "PATIENCE", 0)
        Metrics(box).log(1, loss=2.0)
        assert tracking.run_id(run) is None
    assert "entries wait in runs/" in ending.text
    assert "s3cr3t-word" not in ending.text + "".join(
        path.read_text() for path in box.folder.iterdir() if path.is_file()
    )
    monkeypatch.setenv("MLFLOW_TRACKING_URI", served.url)
    told = deliver(run)
    assert told.waiting == 0
    assert history(told.run_id) == [(1, 2.0)]


def test_an_answer_that_was_lost_makes_no_second_entry(tmp_path, store):
    """As after a kill between what the store was told and the note of it: everything is told again."""
    made(tmp_path)
    box = begin(tmp_path)
    with true_status(box):
        for step in (1, 2):
            Metrics(box).log(step, loss=1 / step)
        outbox.add_model(box, exported(tmp_path), {"train_loss": 0.5})
    evaluate(box, 0.4)
    first = deliver(box.folder.parent)
    before = everything(first.run_id)
    for kept in (0, len(list(box.read())) // 2):
        state = box.delivered(tracking.store_name())
        box.note(tracking.store_name(), {**state, "bytes": [0, *(end for end, _ in box.read())][kept]})
        assert deliver(box.folder.parent).run_id == first.run_id
        assert everything(first.run_id) == before
    (box.folder / "delivered.json").unlink()
    assert deliver(box.folder.parent).run_id == first.run_id
    assert everything(first.run_id) == before


@pytest.mark.skipif(not list(Path("/usr/lib/postgresql").glob("*/bin")), reason="needs postgresql (debian.txt)")
def test_postgresql_holds_the_same_and_each_thing_once_too(tmp_path, monkeypatch):
    password = "not-on-a-command-line"
    with (
        postgres_server(password) as address,
        mlflow_server(tmp_path / "server", "--store", address, PGPASSWORD=password) as served,
    ):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", served.url)
        box = begin(tmp_path)
        with true_status(box):
            for step in (1, 2):
                Metrics(box).log(step, loss=1 / step)
            outbox.add_model(box, exported(tmp_path), {"train_loss": 0.5})
        evaluate(box, 0.4)
        told = deliver(box.folder.parent)
        assert (told.waiting, told.aliases) == (0, [CANDIDATE, CHAMPION])
        before = everything(told.run_id)
        assert history(told.run_id) == [(1, 1.0), (2, 0.5)]
        (box.folder / "delivered.json").unlink()
        assert deliver(box.folder.parent).run_id == told.run_id
        assert everything(told.run_id) == before


def everything(run_id):
    client = tracking.connect()
    run, runs = client.get_run(run_id), children(run_id)
    model_ids = [one.model_id for one in run.outputs.model_outputs]
    return (
        run.info.status, history(run_id), run.data.metrics, run.data.tags, sorted(runs),
        [(one.info.status, one.data.metrics) for _, one in sorted(runs.items())],
        len(run.inputs.dataset_inputs), model_ids, look_up(KEY).facts["versions"],
        [len(client.get_logged_model(one).metrics) for one in model_ids], dict(aliases()),
        [(one.info.run_id, one.data, len(one.inputs.dataset_inputs)) for one in data_runs()].__repr__(),
    )  # fmt: skip


def test_steps_that_another_copy_of_the_run_told_are_not_told_again(tmp_path, store):
    box = begin(tmp_path)
    for step in (1, 2):
        Metrics(box).log(step, loss=1 / step)
    first = deliver(box.folder.parent)
    (tmp_path / "runs" / KEY).rename(tmp_path / "lost")
    again = begin(tmp_path)
    for step in (1, 2, 3):
        Metrics(again).log(step, loss=9.0)
    assert deliver(again.folder.parent).run_id == first.run_id
    assert history(first.run_id) == [(1, 1.0), (2, 0.5), (3, 9.0)]


def test_another_store_gets_the_whole_story(tmp_path, store, server, monkeypatch):
    box = begin(tmp_path, key="a" * 16)
    Metrics(box).log(1, loss=1.0)
    here = deliver(box.folder.parent)
    Metrics(box).log(2, loss=0.5)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    there = deliver(box.folder.parent)
    assert (here.store, there.store) == ("runs/mlflow.db", server.url)
    assert history(there.run_id) == [(1, 1.0), (2, 0.5)]


def test_a_server_that_refuses_is_said_before_training_begins(tmp_path, served, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", served.url.replace("127.0.0.1", "127.0.0.2"))
    box = begin(tmp_path)
    with pytest.raises(InputError, match=r"refuses|does not answer"):
        tracking.connect()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{served.url}/nothing-here")
    with pytest.raises(InputError, match="refuses"):
        tracking.greet(box.folder.parent)


def test_what_is_written_while_a_store_is_told_is_not_said_to_wait(tmp_path, store, monkeypatch):
    box = begin(tmp_path)
    tell = tracking._tell_all

    def tell_and_go_on(box, name):
        tell(box, name)
        Metrics(box).log(1, loss=1.0)

    monkeypatch.setattr(tracking, "_tell_all", tell_and_go_on)
    told = deliver(box.folder.parent)
    assert (told.waiting, told.reason) == (1, None)
    with box.delivering(0):
        assert deliver(box.folder.parent, patience=0).reason == "another process is telling it."


def test_a_slow_server_does_not_hold_up_a_step(tmp_path, store, monkeypatch):
    answered = threading.Event()
    monkeypatch.setattr(tracking, "_tell_all", lambda box, name: answered.wait(30))
    box = begin(tmp_path)
    metrics = Metrics(box)
    with tracking.delivering(box.folder.parent):
        wait_until(lambda: any(one.name == "mlflow" for one in threading.enumerate()))
        time.sleep(0.3)
        for step in range(100):
            metrics.log(step, loss=1.0)
        assert not answered.is_set(), "the steps did not wait for it"
    answered.set()


def test_a_server_that_does_not_answer_is_named_without_its_password(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    with pytest.raises(InputError, match=r"MLflow does not answer at http://\*\*\*@127\.0\.0\.1:9") as error:
        tracking.connect()
    assert "secret" not in str(error.value)


def test_the_machine_is_sampled_while_a_block_runs(tmp_path, store, monkeypatch):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    box = begin(tmp_path)
    with tracking.delivering(box.folder.parent):
        time.sleep(0.5)
    told = deliver(box.folder.parent)
    measured = children(told.run_id)["attempt-1"].data.metrics
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"} <= measured.keys()


# --- Looking up, and the server itself -------------------------------------------------------------------


def test_texts_that_tell_of_a_run_keep_their_places_and_are_replaced(tmp_path, store):
    box = begin(tmp_path)
    report, params = tmp_path / "pack.json", tmp_path / "params.yaml"
    report.write_text("{}")
    params.write_text("a: 1\n")
    run_id = deliver(box.folder.parent).run_id
    assert tracking.fetch_records(run_id, tmp_path / "none") == tmp_path / "none/records"
    box.attach("records", {"reports/pack.json": report, "params.yaml": params})
    report.write_text('{"rows_in": 1}')
    box.attach("records", {"reports/pack.json": report})
    deliver(box.folder.parent)
    brought = tracking.fetch_records(run_id, tmp_path / "brought")
    assert (brought / "reports/pack.json").read_text() == '{"rows_in": 1}'
    assert (brought / "params.yaml").read_text() == "a: 1\n"


def test_artifacts_lie_in_s3_and_clients_need_no_keys(server, tmp_path, monkeypatch):
    (tmp_path / "server").mkdir()
    shutil.copyfile(server.folder / "empty.db", tmp_path / "server/mlflow.db")
    report = tmp_path / "pack.json"
    report.write_text('{"rows_in": 1}')
    with (
        s3_server(tmp_path / "s3", "artifacts") as s3,
        mlflow_server(
            tmp_path / "server", "--artifacts", "s3://artifacts/x", MLFLOW_S3_ENDPOINT_URL=s3.url, **S3_KEYS
        ) as served,
    ):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", served.url)
        for name in S3_KEYS:
            monkeypatch.delenv(name, raising=False)
        box = begin(tmp_path)
        box.attach("records", {"reports/pack.json": report})
        outbox.add_model(box, exported(tmp_path), {})
        told = deliver(box.folder.parent)
        assert told.waiting == 0
        objects = [one["Key"] for one in client(s3).list_objects_v2(Bucket="artifacts")["Contents"]]
        assert any(name.endswith("records/reports/pack.json") for name in objects)
        assert any(name.endswith("MLmodel") for name in objects)
        brought = tracking.fetch_records(told.run_id, tmp_path / "brought")
        assert (brought / "reports/pack.json").read_bytes() == report.read_bytes()


def test_a_run_is_looked_up_by_any_of_its_names(tmp_path, store):
    box = begin(tmp_path)
    outbox.add_model(box, exported(tmp_path), {})
    evaluate(box, 0.4)
    told = deliver(box.folder.parent)
    child = children(told.run_id)["attempt-1"].info.run_id
    name = REGISTERED_MODEL
    for asked in (told.run_id, child, KEY, f"{name}/1", f"{name}@candidate"):
        found = look_up(asked)
        assert found.run_id == told.run_id, asked
        assert found.facts["versions"] == [f"{name}/1"]
        assert found.version["lineage_key"] == KEY
    for unknown in ("0" * 32, "0" * 16, f"{name}/9", f"{name}@none", "none/1", "models/final", "main"):
        assert look_up(unknown) is None, unknown


def test_without_a_store_there_is_nothing_to_ask_and_none_is_made(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert not tracking.has_store()
    assert list(tmp_path.iterdir()) == []


def test_an_outbox_without_its_run_says_so(tmp_path, store):
    Outbox(tmp_path / "runs/key").add("metrics", step=1, values={"loss": 1.0})
    with pytest.raises(KeyError):
        deliver(tmp_path / "runs/key")


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:80"])
def test_the_server_answers_to_its_own_names_only(server, host):
    request = urllib.request.Request(f"{server.url}/api/2.0/mlflow/experiments/search", headers={"Host": host})
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=10)
    assert refused.value.code == 403
