"""store: it answers, refuses or does not answer; a run is found by any of its names. The server is a real one."""

import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

from sft.cli import InputError
from sft.tracking import journal, sync
from sft.tracking import store as store_of_runs
from sft.tracking.store import LOCAL_NAME, look_up
from sft.tracking.sync import sync_run
from tests.support.dask_cluster import wait_until
from tests.support.project import ROOT
from tests.support.servers import S3_KEYS, client, mlflow_server, s3_server
from tests.support.tracked_run import KEY, begin, children, evaluate, exported


def test_the_store_is_made_once_and_whole_by_whichever_of_several_processes_lives(tmp_path):
    """MLflow alone: both fail at the same table, and after them everyone."""
    ask = "from sft.tracking import store; store.connect().search_experiments(); print('asked')"
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
    outputs = {process: process.communicate(timeout=600)[0] for process in processes}
    assert [outputs[process] for process in processes if process is not maker] == ["asked\n"] * 2
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"mlflow.db", "mlflow.db.lock"}


@pytest.mark.parametrize("copy", [".", "experiments/a b?"])
def test_the_store_of_a_project_with_an_odd_name_is_in_the_project(tmp_path, monkeypatch, copy):
    """Characters of an address in the path: SQLite would open a file outside the project, and MLflow make folders."""
    project = tmp_path / "v?2 x%20y#1"
    (project / copy).mkdir(parents=True)
    monkeypatch.chdir(project / copy)
    ask = (
        "from sft.tracking import store; client = store.connect()\n"
        "run = client.create_run(store.open_experiment(client, store.experiment_name(client))[0]).info.run_id\n"
        "client.log_text(run, 'text', 'notes.txt'); print([a.path for a in client.list_artifacts(run)])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "DVC_ROOT": str(project)}
    environment.pop("MLFLOW_TRACKING_URI", None)
    done = subprocess.run([sys.executable, "-c", ask], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "['notes.txt']\n", done.stderr
    assert (project / "runs/mlflow.db").stat().st_size > 0
    assert [path.name for path in tmp_path.iterdir()] == [project.name]
    assert {path.name for path in project.iterdir()} == {"runs", *(copy.split("/")[:1] if copy != "." else [])}


def test_a_server_that_does_not_answer_is_named_without_its_password(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    with pytest.raises(InputError, match=r"http://\*\*\*@127\.0\.0\.1:9") as error, store_of_runs.explained():
        store_of_runs.connect().search_experiments()
    assert "secret" not in str(error.value)


def test_a_run_is_looked_up_by_any_of_its_names(tmp_path, store):
    run_journal = begin(tmp_path)
    journal.add_model(run_journal, exported(tmp_path), {})
    evaluate(run_journal, 0.4)
    result = sync_run(run_journal.folder.parent)
    child = children(result.run_id)["attempt-1"].info.run_id
    name = LOCAL_NAME
    for asked in (result.run_id, child, KEY, f"{name}/1", f"{name}@candidate"):
        found = look_up(asked)
        assert found.run_id == result.run_id, asked
        assert found.facts["versions"] == [f"{name}/1"]
        assert found.version["lineage_key"] == KEY
    for unknown in ("0" * 32, "0" * 16, f"{name}/9", f"{name}@none", "none/1", "models/final", "main"):
        assert look_up(unknown) is None, unknown


def test_records_keep_their_paths_and_are_replaced(tmp_path, store):
    run_journal = begin(tmp_path)
    report, params = tmp_path / "pack.json", tmp_path / "params.yaml"
    report.write_text("{}")
    params.write_text("a: 1\n")
    run_id = sync_run(run_journal.folder.parent).run_id
    assert store_of_runs.fetch_records(run_id, tmp_path / "none") == tmp_path / "none/records"
    run_journal.attach("records", {"reports/pack.json": report, "params.yaml": params})
    report.write_text('{"rows_in": 1}')
    run_journal.attach("records", {"reports/pack.json": report})
    sync_run(run_journal.folder.parent)
    downloaded = store_of_runs.fetch_records(run_id, tmp_path / "downloaded")
    assert (downloaded / "reports/pack.json").read_text() == '{"rows_in": 1}'
    assert (downloaded / "params.yaml").read_text() == "a: 1\n"


def test_a_project_that_is_moved_or_copied_finds_its_artifacts(tmp_path, store, monkeypatch):
    run_journal = begin(tmp_path)
    (tmp_path / "params.yaml").write_text("lr: 1")
    run_journal.attach("records", {"params.yaml": tmp_path / "params.yaml"})
    run_id = sync_run(run_journal.folder.parent).run_id
    moved = tmp_path / "another"
    moved.mkdir()
    (tmp_path / "runs").rename(moved / "runs")
    program = (  # MLflow remembers where it found the artifacts of a run
        "import sys; from pathlib import Path; from sft.tracking.store import fetch_records\n"
        "print((fetch_records(sys.argv[1], Path(sys.argv[2])) / 'params.yaml').read_text())"
    )
    for target in ("first", "second"):
        command = [sys.executable, "-c", program, run_id, str(tmp_path / target)]
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT / "src")}
        done = subprocess.run(command, cwd=moved, env=environment, capture_output=True, text=True)
        assert done.stdout == "lr: 1\n", done.stderr
    monkeypatch.chdir(moved)
    experiment = store_of_runs.connect().get_experiment_by_name(LOCAL_NAME)
    assert experiment.artifact_location == (moved / "runs/mlflow-artifacts").as_uri()


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
        run_journal = begin(tmp_path)
        run_journal.attach("records", {"reports/pack.json": report})
        journal.add_model(run_journal, exported(tmp_path), {})
        result = sync_run(run_journal.folder.parent)
        assert result.pending == 0
        objects = [entry["Key"] for entry in client(s3).list_objects_v2(Bucket="artifacts")["Contents"]]
        assert any(name.endswith("records/reports/pack.json") for name in objects)
        assert any(name.endswith("MLmodel") for name in objects)
        downloaded = store_of_runs.fetch_records(result.run_id, tmp_path / "downloaded")
        assert (downloaded / "reports/pack.json").read_bytes() == report.read_bytes()


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:80"])
def test_the_server_answers_to_its_own_names_only(server, host):
    request = urllib.request.Request(f"{server.url}/api/2.0/mlflow/experiments/search", headers={"Host": host})
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=120)
    assert refused.value.code == 403


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("./mlruns", "folders"),
        ("file:///tmp/mlruns", "folders"),
        ("localhost:5000", "Write http://localhost:5000"),
        ("127.0.0.1:5000", "Write http://127.0.0.1:5000"),
        ("htp://host", "expected http://"),
        ("sqlite://", "expected http://"),
    ],
)
def test_an_address_of_no_store_is_named_and_training_goes_on(tmp_path, monkeypatch, capsys, uri, message):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    run_journal = begin(tmp_path)
    sync.check_server(run_journal.folder.parent)
    output = capsys.readouterr().out
    assert f"MLFLOW_TRACKING_URI={uri}" in output
    assert message in output
    assert run_journal.pending(store_of_runs.store_name()) == 2


def test_a_relative_sqlite_file_is_that_of_the_project_also_in_a_copy_of_it(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///runs/mine.db")
    (tmp_path / "copy").mkdir()
    monkeypatch.chdir(tmp_path / "copy")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    assert store_of_runs.store_uri() == f"sqlite:///{tmp_path}/runs/mine.db"
    for absolute in ("sqlite:////srv/mine.db", "sqlite:///:memory:"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", absolute)
        assert store_of_runs.store_uri() == absolute


@pytest.mark.parametrize("content", [b"not a database" * 100, b""], ids=["damaged", "empty"])
def test_a_local_store_that_is_no_database_is_named_and_training_goes_on(tmp_path, monkeypatch, capsys, content):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run_journal = begin(tmp_path)
    (tmp_path / "runs/mlflow.db").write_bytes(content)
    sync.check_server(run_journal.folder.parent)
    if content:
        assert "runs/mlflow.db" in capsys.readouterr().out
        assert run_journal.pending(store_of_runs.store_name()) == 2
    else:
        assert run_journal.pending(store_of_runs.store_name()) == 0


def test_a_proxy_is_named_and_none_is_asked_for_this_machine(tmp_path, monkeypatch, served):
    monkeypatch.setenv("http_proxy", "http://me:s3cr3t@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking.example:5000")
    monkeypatch.delenv("no_proxy", raising=False)
    result = sync_run(begin(tmp_path).folder.parent, patience=0)
    assert "proxy http://***@127.0.0.1:9 (http_proxy)" in result.reason
    assert "no_proxy=tracking.example" in result.reason
    monkeypatch.setenv("MLFLOW_TRACKING_URI", served.url)
    assert sync_run(tmp_path / "runs" / KEY).pending == 0


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become a user without a name")
def test_a_user_without_a_name_is_a_number(tmp_path):
    program = (
        "import os; from sft.tracking import upload; os.setuid(12345); print(upload._source_tags()['mlflow.user'])"
    )
    environment = {name: value for name, value in os.environ.items() if name not in ("USER", "LOGNAME", "LNAME")}
    environment |= {"PYTHONPATH": str(ROOT / "src"), "HOME": str(tmp_path)}
    environment.pop("USERNAME", None)
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "12345\n", done.stderr


def test_no_library_reports_to_its_maker():
    program = (
        "from sft.tracking import store; from mlflow.telemetry.utils import is_telemetry_disabled; import os\n"
        "print(is_telemetry_disabled()); print(os.environ['MLFLOW_DISABLE_TELEMETRY'])"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW", "CI", "PYTEST"))}
    environment |= {"PYTHONPATH": f"{ROOT / 'src'}"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "True\ntrue\n"
