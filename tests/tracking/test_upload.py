"""upload: each entry is in a store once, with all its links, however often it is uploaded."""

import json
import re
import shutil
import threading
from pathlib import Path

import mlflow
import pytest

from sft.cli import InputError
from sft.hashing import file_digest
from sft.tracking import journal, sync
from sft.tracking import store as store_of_runs
from sft.tracking.journal import Dataset, Journal, record_status
from sft.tracking.store import LOCAL_NAME, look_up
from sft.tracking.sync import sync_run
from sft.tracking.upload import CANDIDATE, CHAMPION, metric_name
from tests.support.servers import mlflow_server, postgres_server
from tests.support.tracked_run import (
    COUNTS,
    DATA,
    KEY,
    SOURCE,
    aliases,
    begin,
    begin_and_finish,
    children,
    data_runs,
    evaluate,
    exported,
    history,
    log_step,
    made,
)


def test_a_whole_run_is_in_a_real_server_with_all_its_links(tmp_path, served):
    key = "9" * 16  # of no other test on this server
    run_journal = begin(tmp_path, key=key, cluster="local")
    with record_status(run_journal):
        log_step(run_journal, 1, 2.0)
        run_journal.add("system", attempt=1, step=0, values={"system/cpu_utilization_percentage": 50.0})
        journal.add_model(run_journal, exported(tmp_path, key=key), {"train_loss": 0.5, "validation_loss": None})
        report = tmp_path / "pack.json"
        report.write_text("{}")
        run_journal.attach("records", {"reports/pack.json": report})
    evaluate(run_journal, 0.4)
    result = sync_run(run_journal.folder.parent)
    assert (result.pending, result.reason, result.aliases) == (0, None, [CANDIDATE, CHAMPION])

    client = store_of_runs.connect()
    run = client.get_run(result.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"optimizer.lr": "1e-05", "train.train_iters": "6"}
    assert run.data.tags["lineage_key"] == key
    step = {"loss": 2.0, "lr": 0.1, "grad_norm": 1.0, "tokens_per_second": 5.0, "model_flops_per_second": 3.0}
    step["peak_memory"] = 0.0
    measured = {name: value for name, value in run.data.metrics.items() if not name.startswith("eval/by_rule/")}
    assert measured == {**step, "train_loss": 0.5, "eval/after/loss": 0.4}
    inputs = {item.dataset.name: item for item in run.inputs.dataset_inputs}
    assert {name: item.dataset.digest for name, item in inputs.items()} == {"packed": "f" * 12, "calls": "e" * 12}
    assert {tag.key: tag.value for tag in inputs["calls"].tags} == {**SOURCE.tags, "mlflow.data.context": "source"}
    assert [item.path for item in client.list_artifacts(result.run_id, "records")] == ["records/reports"]

    runs = children(result.run_id)
    assert sorted(runs) == ["attempt-1", "evaluation"]
    assert runs["attempt-1"].data.tags["cluster"] == "local"
    assert runs["attempt-1"].data.metrics == {"system/cpu_utilization_percentage": 50.0}
    assert runs["evaluation"].data.params == {"eval.seed": "1"}
    assert [item.dataset.name for item in runs["evaluation"].inputs.dataset_inputs] == ["held-out"]

    name, number = result.version.split("/")
    version = client.get_model_version(name, number)
    assert (name, version.run_id, version.tags["data.calls"]) == (tmp_path.name, result.run_id, SOURCE.digest)
    assert version.tags["lineage_json"] == file_digest(tmp_path / "models/final/lineage.json")
    (output,) = run.outputs.model_outputs
    model = client.get_logged_model(output.model_id)
    assert model.source_run_id == result.run_id
    assert {(metric.key, metric.dataset_name) for metric in model.metrics} >= {
        ("train_loss", "packed"), ("eval/after/loss", "held-out"),
    }  # fmt: skip
    assert [item.model_id for item in client.get_run(runs["evaluation"].info.run_id).inputs.model_inputs] == [
        output.model_id
    ]


def test_a_requeue_continues_the_run_as_another_attempt(tmp_path, store):
    run_journal = begin(tmp_path, cluster="one")
    log_step(run_journal, 1, 2.0)
    first = sync_run(run_journal.folder.parent)
    assert store_of_runs.connect().get_run(first.run_id).info.status == "RUNNING"
    again = begin(tmp_path, cluster="two")  # the first attempt was killed
    log_step(again, 1, 9.0)
    log_step(again, 2, 1.0)
    with pytest.raises(RuntimeError), record_status(again):
        raise RuntimeError
    assert sync_run(run_journal.folder.parent).run_id == first.run_id
    assert history(first.run_id) == [(1, 2.0), (2, 1.0)]
    runs = children(first.run_id)
    assert {name: run.info.status for name, run in runs.items()} == {"attempt-1": "KILLED", "attempt-2": "FAILED"}
    run = store_of_runs.connect().get_run(first.run_id)
    assert (run.info.status, run.data.tags["cluster"]) == ("FAILED", "two")
    assert list(json.loads((run_journal.folder / "synced.json").read_text())) == ["runs/mlflow.db"]


def test_a_version_names_the_version_that_its_training_started_from(tmp_path, store):
    run_journal = begin(tmp_path)
    journal.add_model(run_journal, exported(tmp_path), {})
    first = sync_run(run_journal.folder.parent).version
    other = begin(tmp_path, key="f" * 16)
    journal.add_model(other, exported(tmp_path, key="f" * 16, parent=KEY), {})
    second = sync_run(other.folder.parent).version
    tags = store_of_runs.connect().get_model_version(*second.split("/")).tags
    assert (tags["parent"], first != second) == (first, True)


def test_a_model_is_registered_once(tmp_path, store):
    run_journal = begin(tmp_path)
    for more in ("one", "one", "two"):
        journal.add_model(run_journal, exported(tmp_path, more=more), {})
    sync_run(run_journal.folder.parent)
    assert look_up(KEY).facts["versions"] == [f"{LOCAL_NAME}/1", f"{LOCAL_NAME}/2"]


def test_packed_data_has_one_run_and_every_training_on_it_leads_there(tmp_path, store):
    made(tmp_path, seed=1)
    first = sync_run(begin(tmp_path).folder.parent)
    made(tmp_path, key="f" * 16, seed=2)  # other params that made the same data: the first ones stay
    second = sync_run(begin(tmp_path, key="f" * 16).folder.parent)
    (run,) = data_runs()
    assert (run.info.run_name, run.info.status) == ("data-" + "f" * 12, "FINISHED")
    counted = {metric_name(name): count for name, count in COUNTS.items()}
    assert (run.data.params, run.data.metrics) == ({"filter.seed": "1"}, counted)
    assert run.data.tags["packed_data"] == DATA.digest
    assert {item.dataset.name for item in run.inputs.dataset_inputs} == {"calls", "packed"}
    client = store_of_runs.connect()
    assert [item.path for item in client.list_artifacts(run.info.run_id, "records")] == ["records/reports"]
    for result in (first, second):
        tags = client.get_run(result.run_id).data.tags
        assert tags["data_run"] == run.info.run_id
        assert tags["mlflow.note.content"].endswith(f"/runs/{run.info.run_id})")
    assert look_up(KEY).facts["data run"] == run.info.run_id
    with pytest.raises(InputError) as error:
        look_up(run.info.run_id)
    assert {KEY, "f" * 16} <= set(re.findall("[0-9a-f]{16}", str(error.value)))


def test_the_run_of_data_that_was_half_uploaded_is_completed_by_the_next_training(tmp_path, store, monkeypatch):
    made(tmp_path, seed=1)
    run_journal = begin(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "log_artifacts", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):  # like a kill: metrics uploaded, files not
            sync_run(run_journal.folder.parent)
    assert [run.info.status for run in data_runs()] == ["RUNNING"]
    made(tmp_path, key="f" * 16, seed=2)
    sync_run(begin(tmp_path, key="f" * 16).folder.parent)
    sync_run(run_journal.folder.parent)
    (run,) = data_runs()
    assert (run.info.status, run.data.params) == ("FINISHED", {"filter.seed": "1"})
    assert len(store_of_runs.connect().get_metric_history(run.info.run_id, "filter/rows_in")) == 1
    assert len(run.inputs.dataset_inputs) == 2


def test_many_uploads_of_the_same_data_at_a_time_make_one_run(tmp_path, store):
    keys = [f"{number:016x}" for number in range(6)]
    for key in keys:
        made(tmp_path, key=key)
        begin(tmp_path, key=key)
    store_of_runs.connect()
    threads = [threading.Thread(target=sync_run, args=(tmp_path / "runs" / key,)) for key in keys]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (run,) = data_runs()
    client = store_of_runs.connect()
    assert {client.get_run(sync.run_id(tmp_path / "runs" / key)).data.tags["data_run"] for key in keys} == {
        run.info.run_id
    }


def test_other_data_and_a_sample_have_their_own_runs(tmp_path, store):
    made(tmp_path)
    sync_run(begin(tmp_path).folder.parent)
    made(tmp_path, key="e" * 16, digest="e" * 64)
    sync_run(begin(tmp_path, key="e" * 16).folder.parent)
    made(tmp_path, key="d" * 16, digest="e" * 64, sampled=True)
    sync_run(begin(tmp_path, key="d" * 16, sampled=True).folder.parent)
    assert sorted(run.info.run_name for run in data_runs()) == ["data-" + "e" * 12, "data-" + "f" * 12]
    assert [run.info.run_name for run in data_runs("-sampled")] == ["data-" + "e" * 12]


def test_a_training_without_data_in_its_journal_links_to_the_run_of_its_data_too(tmp_path, store):
    made(tmp_path)
    sync_run(begin(tmp_path).folder.parent)
    result = sync_run(begin(tmp_path, key="f" * 16).folder.parent)
    (run,) = data_runs()
    assert store_of_runs.connect().get_run(result.run_id).data.tags["data_run"] == run.info.run_id
    client = store_of_runs.connect()
    client.set_tag(result.run_id, "mlflow.note.content", "mine")
    sync_run(begin(tmp_path, key="f" * 16).folder.parent)
    assert client.get_run(result.run_id).data.tags["mlflow.note.content"] == "mine"


def run_with_loss(folder, key, loss, **more):
    run_journal = begin(folder, key=key)
    journal.add_model(run_journal, exported(folder, key=key), {})
    evaluate(run_journal, loss, **more)
    return sync_run(run_journal.folder.parent)


def test_only_a_model_that_passed_the_gate_takes_an_alias_and_only_a_better_one_is_champion(tmp_path, store):
    failed = run_with_loss(tmp_path, "0" * 16, 0.1, passed=False)
    assert (failed.aliases, failed.note, aliases()) == ([], "the gate failed", {})
    assert run_with_loss(tmp_path, "1" * 16, 0.5).aliases == [CANDIDATE, CHAMPION]
    worse = run_with_loss(tmp_path, "2" * 16, 0.6)
    assert (worse.aliases, worse.note) == ([CANDIDATE], "champion stays nano3-sft/2: its held-out loss is 0.5")
    elsewhere = Dataset("held-out", "c" * 64, "file:///x", "evaluation", {})
    other = run_with_loss(tmp_path, "3" * 16, 0.1, held_out=elsewhere)
    assert other.aliases == [CANDIDATE]
    assert "other held-out data" in other.note
    assert run_with_loss(tmp_path, "4" * 16, 0.4).aliases == [CANDIDATE, CHAMPION]
    equal = run_with_loss(tmp_path, "5" * 16, 0.4)
    assert (equal.aliases, equal.note) == ([CANDIDATE], "champion stays nano3-sft/5: its held-out loss is 0.4")
    assert aliases() == {CANDIDATE: 6, CHAMPION: 5}


def test_a_run_on_a_sample_is_kept_apart_and_never_gets_an_alias(tmp_path, store):
    run_journal = begin(tmp_path, sampled=True)
    journal.add_model(run_journal, exported(tmp_path), {})
    evaluate(run_journal, 0.1)
    result = sync_run(run_journal.folder.parent)
    assert (result.version, result.aliases, result.note) == (
        f"{LOCAL_NAME}-sampled/1",
        [],
        "no alias for a run on a sample of the data",
    )
    client = store_of_runs.connect()
    experiment = client.get_experiment(client.get_run(result.run_id).info.experiment_id)
    assert experiment.name == f"{LOCAL_NAME}-sampled"
    assert not client.search_registered_models(f"name = '{LOCAL_NAME}'")
    assert look_up(KEY).run_id == result.run_id


def test_a_lost_answer_makes_no_second_entry(tmp_path, store):
    """As after a kill between an upload and writing it down: everything is uploaded again."""
    made(tmp_path)
    run_journal = begin_and_finish(tmp_path)
    first = sync_run(run_journal.folder.parent)
    before = everything(first.run_id)
    for kept in (0, len(list(run_journal.read())) // 2):
        state = run_journal.synced(store_of_runs.store_name())
        run_journal.set_synced(
            store_of_runs.store_name(), {**state, "bytes": [0, *(end for end, _ in run_journal.read())][kept]}
        )
        assert sync_run(run_journal.folder.parent).run_id == first.run_id
        assert everything(first.run_id) == before
    (run_journal.folder / "synced.json").unlink()
    assert sync_run(run_journal.folder.parent).run_id == first.run_id
    assert everything(first.run_id) == before


@pytest.mark.skipif(not list(Path("/usr/lib/postgresql").glob("*/bin")), reason="needs postgresql (debian.txt)")
def test_postgresql_holds_the_same_and_each_thing_once_too(tmp_path, monkeypatch):
    password = "not-on-a-command-line"
    with (
        postgres_server(password) as address,
        mlflow_server(tmp_path / "server", "--store", address, PGPASSWORD=password) as served,
    ):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", served.url)
        run_journal = begin_and_finish(tmp_path)
        result = sync_run(run_journal.folder.parent)
        assert (result.pending, result.aliases) == (0, [CANDIDATE, CHAMPION])
        before = everything(result.run_id)
        assert history(result.run_id) == [(1, 1.0), (2, 0.5)]
        (run_journal.folder / "synced.json").unlink()
        assert sync_run(run_journal.folder.parent).run_id == result.run_id
        assert everything(result.run_id) == before


def everything(run_id):
    client = store_of_runs.connect()
    run, runs = client.get_run(run_id), children(run_id)
    model_ids = [item.model_id for item in run.outputs.model_outputs]
    return (
        run.info.status, history(run_id), run.data.metrics, run.data.tags, sorted(runs),
        [(item.info.status, item.data.metrics) for _, item in sorted(runs.items())],
        len(run.inputs.dataset_inputs), model_ids, look_up(KEY).facts["versions"],
        [len(client.get_logged_model(item).metrics) for item in model_ids], dict(aliases()),
        [(item.info.run_id, item.data, len(item.inputs.dataset_inputs)) for item in data_runs()].__repr__(),
    )  # fmt: skip


def test_steps_that_another_copy_of_the_run_uploaded_are_not_uploaded_again(tmp_path, store):
    run_journal = begin(tmp_path)
    for step in (1, 2):
        log_step(run_journal, step, 1 / step)
    first = sync_run(run_journal.folder.parent)
    (tmp_path / "runs" / KEY).rename(tmp_path / "lost")
    again = begin(tmp_path)
    for step in (1, 2, 3):
        log_step(again, step, 9.0)
    assert sync_run(again.folder.parent).run_id == first.run_id
    assert history(first.run_id) == [(1, 1.0), (2, 0.5), (3, 9.0)]


def test_a_journal_without_its_run_is_an_error(tmp_path, store):
    Journal(tmp_path / "runs/key").add("system", attempt=1, step=1, values={"loss": 1.0})
    with pytest.raises(KeyError):
        sync_run(tmp_path / "runs/key")


def metrics_of(run_id):
    """Every entry of every metric of a run: (name, step) -> how often."""
    client = store_of_runs.connect()
    names = client.get_run(run_id).data.metrics
    return {
        (name, step): [metric.step for metric in client.get_metric_history(run_id, name)].count(step)
        for name in names
        for step in {metric.step for metric in client.get_metric_history(run_id, name)}
    }


def test_a_metric_is_there_once_for_each_step_after_another_export_and_another_evaluation(tmp_path, store):
    run_journal = begin_and_finish(tmp_path)
    run_journal.add("validation", iteration=2, validation_loss=0.25)
    run = run_journal.folder.parent
    for loss in (0.123, 0.456):  # rounded otherwise in the reports
        journal.add_model(run_journal, exported(tmp_path), {"train_loss": 0.5, "validation_loss": loss}, step=2)
        sync_run(run)
    run_journal.add(**{**next(run_journal.entries("evaluation")), "step": 1, "loss": 0.3})
    result = sync_run(run)
    counted = metrics_of(result.run_id)
    assert set(counted.values()) == {1}
    assert {("validation_loss", 2), ("train_loss", 2), ("eval/after/loss", 0), ("eval/after/loss", 1)} <= counted.keys()
    assert history(result.run_id, "validation_loss") == [(2, 0.25)]


def delete_run(client, result):
    client.delete_run(result.run_id)


def delete_experiment(client, result):
    client.delete_experiment(client.get_run(result.run_id).info.experiment_id)


def delete_model(client, result):
    client.delete_registered_model(LOCAL_NAME)


def delete_version(client, result):
    client.delete_model_version(LOCAL_NAME, result.version.split("/")[1])


def delete_data_run(client, result):
    client.delete_run(client.get_run(result.run_id).data.tags["data_run"])


def lose_the_last_part(client, result):
    """As from a backup: the run is there, its last entries are not."""
    client.set_tag(result.run_id, "journal", "0123456789ab:17")


@pytest.mark.parametrize(
    ("delete", "named", "is_pending"),
    [
        (delete_run, "run ", False), (delete_run, "run ", True), (delete_experiment, "experiment nano3-sft", False),
        (delete_model, "version nano3-sft/1", False), (delete_version, "version nano3-sft/1", False),
        (delete_data_run, "packed data", False), (lose_the_last_part, "", True),
    ],
)  # fmt: skip
def test_what_is_missing_in_the_store_is_named_and_logged_again(tmp_path, store, delete, named, is_pending):
    made(tmp_path)
    run_journal = begin_and_finish(tmp_path)
    first = sync_run(run_journal.folder.parent)
    delete(store_of_runs.connect(), first)
    if is_pending:
        log_step(run_journal, 3, 0.1)
    result = sync_run(run_journal.folder.parent)
    assert named in " ".join(result.notes)
    assert (result.pending, result.reason, result.aliases) == (0, None, [CANDIDATE, CHAMPION])
    client = store_of_runs.connect()
    run = client.get_run(result.run_id)
    assert run.info.lifecycle_stage == client.get_experiment(run.info.experiment_id).lifecycle_stage == "active"
    assert history(result.run_id) == [(1, 1.0), (2, 0.5)] + [(3, 0.1)] * is_pending
    assert set(metrics_of(result.run_id).values()) == {1}
    assert sorted(children(result.run_id)) == ["attempt-1", "evaluation"]
    assert client.get_model_version(*result.version.split("/")).run_id == result.run_id
    assert client.get_run(run.data.tags["data_run"]).info.lifecycle_stage == "active"
    assert run.data.tags["data_run"] in run.data.tags["mlflow.note.content"]
    assert sync_run(run_journal.folder.parent).notes == ()


def test_a_store_that_was_reset_at_its_address_gets_the_whole_run(tmp_path, store, server):
    run_journal = begin_and_finish(tmp_path)
    first = sync_run(run_journal.folder.parent)
    before = everything(first.run_id)
    store_of_runs.connect()._tracking_client.store.engine.dispose()
    shutil.copyfile(server.folder / "empty.db", tmp_path / "runs/mlflow.db")
    result = sync_run(run_journal.folder.parent)
    assert first.run_id in " ".join(result.notes)
    assert (result.run_id != first.run_id, result.pending, result.version) == (True, 0, f"{LOCAL_NAME}/1")
    assert everything(result.run_id)[:2] == before[:2]


def test_steps_that_a_server_took_and_did_not_store_are_sent_again_each_once(tmp_path, store, monkeypatch):
    run_journal, client = begin(tmp_path), mlflow.MlflowClient
    log_step(run_journal, 1, 1.0)
    sync_run(run_journal.folder.parent)
    log_batch = client.log_batch
    monkeypatch.setattr(client, "log_batch", lambda *_, **__: None)
    log_step(run_journal, 2, 0.5)
    sync_run(run_journal.folder.parent)
    monkeypatch.setattr(client, "log_batch", log_batch)
    log_step(run_journal, 3, 0.25)
    first = sync_run(run_journal.folder.parent, confirm=False)
    assert history(first.run_id) == [(1, 1.0), (3, 0.25)], "the fault is there"
    result = sync_run(run_journal.folder.parent)
    assert (result.run_id, result.pending) == (first.run_id, 0)
    assert "1 steps of run" in " ".join(result.notes)
    assert sorted(history(result.run_id)) == [(1, 1.0), (2, 0.5), (3, 0.25)]
    assert set(metrics_of(result.run_id).values()) == {1}
    assert sync_run(run_journal.folder.parent).notes == ()


def test_a_run_that_is_deleted_while_it_trains_is_logged_again(tmp_path, store):
    run_journal = begin(tmp_path)
    log_step(run_journal, 1, 1.0)
    first = sync_run(run_journal.folder.parent)
    store_of_runs.connect().delete_run(first.run_id)
    log_step(run_journal, 2, 0.5)
    result = sync_run(run_journal.folder.parent, confirm=False)
    assert (result.pending, len(result.notes)) == (0, 1)
    assert history(result.run_id) == [(1, 1.0), (2, 0.5)]


@pytest.fixture
def two_projects(tmp_path, server, monkeypatch):
    """Folders of two projects that use one server, and a function that evaluates a model in one of them."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)

    def evaluate_in(folder, key, loss):
        folder.mkdir(parents=True, exist_ok=True)
        monkeypatch.chdir(folder)
        return run_with_loss(folder, key, loss)

    return evaluate_in


@pytest.mark.parametrize("folders", [("one", "two"), ("x/same", "y/same")])
def test_two_projects_on_a_server_do_not_move_each_other_s_aliases(two_projects, tmp_path, folders):
    first, second = (tmp_path / folder for folder in folders)
    keys = [f"{number}{folders[0].replace('/', '')[:4]:x<15}" for number in range(3)]
    in_first = two_projects(first, keys[0], 0.5)
    in_second = two_projects(second, keys[1], 0.1)
    assert in_first.version.split("/")[0] != in_second.version.split("/")[0]
    again = two_projects(first, keys[2], 0.4)
    assert again.version == in_first.version.replace("/1", "/2")
    client = store_of_runs.connect()
    for result in (again, in_second):
        name, number = result.version.split("/")
        assert set(client.get_registered_model(name).aliases.values()) == {number}


def test_the_experiment_is_that_of_the_environment(tmp_path, served, monkeypatch):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "/Shared/our experiment")
    result = run_with_loss(tmp_path, "c" * 16, 0.5)
    client = store_of_runs.connect()
    experiment = client.get_experiment(client.get_run(result.run_id).info.experiment_id)
    assert (experiment.name, result.version) == ("/Shared/our experiment", "Shared-our-experiment/1")
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME")
    other = sync_run(tmp_path / "runs" / ("c" * 16))
    assert other.run_id != result.run_id, "the name changed: it is logged there too"
    assert look_up("c" * 16) is not None
