"""The real pipeline with a tiny model: DVC, six stages, Megatron-Bridge, MLflow, from a clean clone.

One project is run once and then changed, in the order of the tests: each builds on what DVC has cached.
"""

import json
import re
import shutil
import sqlite3
from pathlib import Path

import pytest
from dvc.repo import Repo
from ruamel.yaml import YAML

from sft.files import read_json
from sft.hashing import folder_digests
from tests.support import planted_secrets as planted
from tests.support.project import clone_project, run, set_params

pytestmark = [pytest.mark.pipeline, pytest.mark.timeout(1200)]

DATA_STAGES = {
    "fetch@calls",
    "fetch@chats",
    "fetch-model",
    "fetch-benchmarks",
    "filter@calls",
    "filter@chats",
    "prep@calls",
    "prep@chats",
    "pack",
}
OUTPUTS = ("data/raw", "data/filtered", "data/prepared", "data/packed", "models/base", "models/final")


def stages_run(output: str) -> set[str]:
    """The stages that DVC says it ran, without the check of params.yaml, which runs after each change of it."""
    return {line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")} - {"check"}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return clone_project(tmp_path_factory.mktemp("project") / "clone")


@pytest.fixture(scope="module")
def first_run(project):
    """The first run, of a user who has secrets in the environment and in the configuration of a remote."""
    (project / ".dvc/config.local").write_text(planted.CONFIG_LOCAL)
    return run(project, "dvc", "repro", **planted.ENVIRON)


def test_a_clean_clone_runs_all_stages_to_an_evaluated_model(project, first_run):
    assert stages_run(first_run) == {*DATA_STAGES, "train", "eval"}
    evaluation = read_json(project / "reports/eval.json")
    assert evaluation["before"].keys() == evaluation["after"].keys()
    assert evaluation["after"]["loss"] < evaluation["before"]["loss"]
    assert (project / "reports/report.html").stat().st_size > 1000
    lineage = read_json(project / "models/final/lineage.json")
    assert {
        "lineage_key",
        "git_commit",
        "git_dirty",
        "data",
        "base_model",
        "params",
        "packages",
        "mlflow_run_id",
    } <= lineage.keys()
    assert lineage["git_commit"] == run(project, "git", "rev-parse", "HEAD").strip()
    assert lineage["git_dirty"] is False
    assert (project / "models/final/chat_template.jinja").read_bytes() == (
        project / "templates/nano3.jinja"
    ).read_bytes()
    assert (project / "runs" / lineage["lineage_key"] / "checkpoints").is_dir()


def test_libraries_say_nothing_on_the_user_s_terminal(first_run):
    assert "Running stage 'train'" in first_run
    assert re.findall(r".*(?:warn|INFO|DEBUG|megatron).*", first_run, re.IGNORECASE) == []


def test_no_secret_of_the_user_is_written_anywhere(project, first_run):
    """Logs, params, reports, models, MLflow's store, DVC's cache and lock, git; the file that holds them left out."""
    assert list(planted.found_in(project, but=frozenset({project / ".dvc/config.local"}))) == []
    spoilt = project / "runs/spoilt.log"
    spoilt.write_text(f"token={planted.ENVIRON['HF_TOKEN']} {planted.ENVIRON['PGPASSWORD'].encode().hex()}")
    found = list(planted.found_in(project))
    spoilt.unlink()
    assert found == [
        "config access_key_id in " + str(project / ".dvc/config.local"),
        "config secret_access_key in " + str(project / ".dvc/config.local"),
        f"HF_TOKEN in {spoilt}",
        f"PGPASSWORD in {spoilt}",
    ], "what is planted is found"
    assert not [secret for secret in planted.ENVIRON.values() if secret in first_run]


def test_the_ledgers_of_all_stages_meet(project, first_run):
    met = 0
    for source in ("calls", "chats"):
        fetched, filtered, prepared = (
            read_json(project / f"reports/{stage}/{source}.json") for stage in ("fetch", "filter", "prep")
        )
        for report in (fetched, filtered, prepared):
            assert report["rows_in"] == report["rows_out"] + sum(report["rejected"].values())
        assert fetched["unit"] == "files"
        assert fetched["rows_out"] == len(fetched["files"]) == 1
        assert filtered["rows_in"] == filtered["rows_found"] > 0
        assert filtered["rows_out"] == prepared["rows_in"] > 0
        met += prepared["rows_out"]
    packed, trained = read_json(project / "reports/pack.json"), read_json(project / "reports/train.json")
    assert packed["rows_in"] == met == 100
    assert trained["rows_in"] == packed["splits"]["training"]["packs"]


def test_mlflow_shows_the_run_its_data_and_the_registered_model(project, first_run):
    key = read_json(project / "models/final/lineage.json")["lineage_key"]
    with sqlite3.connect(project / "runs/mlflow.db") as store:
        (run_id,) = (
            row[0] for row in store.execute("select run_uuid from tags where key='lineage_key' and value=?", (key,))
        )
        steps = store.execute("select count(*) from metrics where run_uuid=? and key='loss'", (run_id,)).fetchone()[0]
        (data_run,) = (
            row[0] for row in store.execute("select value from tags where run_uuid=? and key='data_run'", (run_id,))
        )
        counted = dict(store.execute("select key, value from metrics where run_uuid=?", (data_run,)).fetchall())
        inputs = {row[0] for row in store.execute("select name from datasets")}
        versions = store.execute("select name, version from model_versions where run_id=?", (run_id,)).fetchall()
        statuses = dict(store.execute("select name, status from runs").fetchall())
        params = dict(store.execute("select key, value from params where run_uuid=?", (run_id,)).fetchall())
        aliases = dict(store.execute("select alias, version from registered_model_aliases").fetchall())
        machine = store.execute("select count(*) from metrics where key like 'system/%'").fetchone()[0]
    assert steps == 6
    assert inputs == {"packed", "calls", "chats", "benchmarks", "held-out"}
    packed = read_json(project / "reports/pack.json")
    assert counted["pack/rows_in"] == packed["rows_in"] == counted["prep/rows_out"]
    assert counted["pack/splits.training.packing_efficiency"] == packed["splits"]["training"]["packing_efficiency"]
    assert counted["filter/rows_in"] == sum(counted[f"filter/{name}/rows_in"] for name in ("calls", "chats"))
    assert versions == [("nano3-sft", 1)]
    data = f"data-{read_json(project / 'models/final/lineage.json')['data'][:12]}"
    assert statuses == dict.fromkeys([f"sft-{key}", data, "attempt-1", "evaluation"], "FINISHED")
    assert {"optimizer.lr": "0.002", "pack.pack_size": "512", "filter.seed": "1234"}.items() <= params.items()
    assert {"data", "base_model", "code", "packages.torch"} <= params.keys()
    assert aliases == {"candidate": 1, "champion": 1}
    assert machine > 0
    records = project / "runs/mlflow-artifacts" / data_run / "artifacts/records"
    for name in ("dvc.lock", "reports/mixture.csv", "reports/filter/calls.json", "reports/fetch/benchmarks.json"):
        assert (records / name).stat().st_size > 100, name
    records = project / "runs/mlflow-artifacts" / run_id / "artifacts/records"
    for name in ("params.yaml", "dvc.lock", "environment.txt", "effective_config.yaml", "reports/eval.json"):
        assert (records / name).stat().st_size > 100, name
    assert "torch==" in (records / "environment.txt").read_text()
    assert "global_batch_size: 2" in (records / "effective_config.yaml").read_text()


READ_BY_BRIDGE = """
import json
from pathlib import Path
from sft.training import cpu
cpu.install()
from megatron.bridge.data.packing.gpt_sft import GPTSFTPackedDataset
from megatron.bridge.data.packing.parquet import GPTSFTPackedParquetDataset
from megatron.bridge.training.tokenizers.config import TokenizerConfig
from megatron.bridge.training.tokenizers.tokenizer import build_tokenizer
tokenizer = build_tokenizer(TokenizerConfig(tokenizer_type="HuggingFaceTokenizer", tokenizer_model="models/base"))
options = dict(tokenizer=tokenizer, max_seq_length=512, memmap_workers=1, prompt_template="{input} {output}",
               label_key="output", truncation_field="input")
def batches(packs):
    for index in range(len(packs)):
        batch = packs.collate_fn([packs[index]])
        yield {k: v.tolist() if hasattr(v, "tolist") else v for k, v in batch.items()}
found = {}
for split in ("training", "validation", "test"):
    parquet = list(batches(GPTSFTPackedParquetDataset(file_path=f"data/packed/{split}", **options)))
    npy = list(batches(GPTSFTPackedDataset(file_path=f"data/packed/{split}.npy", **options)))
    found[split] = [len(parquet), parquet == npy, sum(sum(batch["loss_mask"][0]) for batch in parquet)]
print(json.dumps(found))
"""


def test_bridge_s_own_loaders_read_both_forms_alike_and_train_exactly_the_tokens_that_are_counted(project, first_run):
    found = json.loads(run(project, "python", "-c", READ_BY_BRIDGE, PYTHONPATH="src").splitlines()[-1])
    splits = read_json(project / "data/packed/metadata.json")["splits"]
    assert found == {split: [splits[split]["packs"], True, splits[split]["trained_tokens"]] for split in splits}


def test_a_second_run_does_nothing(project, first_run):
    before = folder_digests(project / "reports")
    output = run(project, "dvc", "repro")
    assert stages_run(output) == set()
    assert "Data and pipelines are up to date" in output
    assert folder_digests(project / "reports") == before


def test_another_clone_makes_the_same_bytes(project, first_run, tmp_path):
    clone = clone_project(tmp_path / "other place")
    run(clone, "dvc", "repro", "train", PYTHONHASHSEED="7", TZ="Asia/Tokyo", LC_ALL="C", RAYON_NUM_THREADS="1")
    compared = 0
    for output in OUTPUTS:
        ours, theirs = folder_digests(project / output), folder_digests(clone / output)
        for digests in (ours, theirs):
            for telling in ("lineage.json", "README.md"):  # they name the commit and the MLflow run
                digests.pop(telling, None)
        assert ours == theirs
        compared += len(ours)
    assert compared > 20
    for report in ("pack.json", "train.json", "train_loss.csv", "validation_loss.csv"):
        assert (project / "reports" / report).read_bytes() == (clone / "reports" / report).read_bytes()
    shutil.rmtree(clone)


def test_another_learning_rate_reruns_train_and_eval_in_a_copy_that_leaves_runs_here(project, first_run):
    keys = {path.name for path in (project / "runs").iterdir()}
    output = run(project, "dvc", "exp", "run", "--temp", "-n", "slower", "-S", "optimizer.lr=1e-5")
    assert stages_run(output) == {"train", "eval"}
    assert len({path.name for path in (project / "runs").iterdir()} - keys) == 1, "its checkpoints are in runs/ here"
    with sqlite3.connect(project / "runs/mlflow.db") as store:
        rates = {row[0] for row in store.execute("select value from params where key='optimizer.lr'")}
    assert rates == {"0.002", "1e-05"}
    run(project, "git", "diff", "--exit-code", "params.yaml")


def test_another_pack_size_from_the_queue_reruns_pack_train_and_eval(project, first_run):
    run(project, "dvc", "exp", "run", "--queue", "-n", "larger", "-S", "pack.pack_size=496")
    run(project, "dvc", "queue", "start", "--jobs", "1")
    run(project, "dvc", "queue", "logs", "larger", "--follow")
    assert stages_run(run(project, "dvc", "queue", "logs", "larger")) == {"pack", "train", "eval"}


def test_exp_show_compares_params_and_metrics_of_the_experiments(project, first_run):
    table = run(project, "dvc", "exp", "show", "--csv")
    rows = table.splitlines()
    assert any(line.split(",")[2:3] == ["slower"] or "slower" in line for line in rows)
    assert any("larger" in line for line in rows)
    header = rows[0].split(",")
    assert {"optimizer.lr", "pack.pack_size", "after.loss", "validation_loss"} <= set(header)


def test_a_killed_training_goes_on_and_ends_as_if_it_had_not_been(project, first_run):
    """The checkpoint of step 3 is what a kill after it leaves; the steps after it are done again, the same."""
    key = read_json(project / "models/final/lineage.json")["lineage_key"]
    folder = project / "runs" / key
    losses = (project / "reports/train_loss.csv").read_bytes()
    weights = (project / "models/final/model.safetensors").read_bytes()
    shutil.rmtree(folder)
    crash = (
        "import os, signal, sys\n"
        "sys.argv = ['train']\n"
        "from sft.training import bridge\n"
        "from sft.stages import train\n"
        "from sft.training.steps import StepLog\n"
        "log_step = StepLog.log_step\n"
        "def log_and_die(self, step):\n"
        "    log_step(self, step)\n"
        "    if step.iteration == 5: os.kill(os.getpid(), signal.SIGKILL)\n"
        "StepLog.log_step = log_and_die\n"
        "train.main()\n"
    )
    run(project, "python", "-c", crash, fails=True, PYTHONPATH="src")
    assert not (folder / "checkpoints/iter_0000006").exists()
    run(project, "dvc", "repro", "--force", "--single-item", "train")
    assert (project / "reports/train_loss.csv").read_bytes() == losses
    assert (project / "models/final/model.safetensors").read_bytes() == weights


# --- What reruns: each dependency and each param, touched alone ------------------------------------------

FETCH = {"fetch@calls", "fetch@chats", "fetch-model", "fetch-benchmarks"}
FILTER = {"filter@calls", "filter@chats"}
PREP = {"prep@calls", "prep@chats"}
ALL = {*FETCH, *FILTER, *PREP, "pack", "train", "eval"}

# A param and another value -> the stages that DVC reruns for it alone. What follows reruns if their outputs change.
# pack names the whole blend, so that it is among them for every key of a source.
PARAMS = [
    ("fetch.sources.calls.uri", "file://inputs/chats.jsonl.gz", {"fetch@calls", "pack"}),
    ("fetch.sources.calls.read", {"format": "openai", "max_rows": 5}, {"filter@calls", "pack"}),
    ("fetch.sources.calls.domain", "dialogue", {"pack"}),
    ("fetch.sources.calls.license", "MIT", {"pack"}),
    ("fetch.sources.calls.origin", "us", {"pack"}),
    ("fetch.sources.calls.epochs", 2.0, {"pack"}),
    ("fetch.sources.calls.share", 0.5, {"pack"}),
    ("fetch.model.uri", "file://inputs", {"fetch-model", "train"}),
    ("fetch.model.license", "BSD", {"train"}),
    ("fetch.benchmarks", {"mine": {"uri": "file://inputs/calls.jsonl"}}, {"fetch-benchmarks"}),
    ("filter.max_rows", 5, FILTER),
    ("filter.control_tokens", "escape", FILTER),
    ("prep.reasoning.strip", 0.5, {*PREP, "pack"}),
    ("pack.precedence", ["chats"], {"pack"}),
    ("pack.unit", "samples", {"pack"}),
    ("pack.exclude_licenses", ["MIT"], {"pack"}),
    ("pack.pack_size", 496, {"pack"}),
    ("pack.validation", 0.2, {"pack"}),
    ("optimizer.lr", 3e-3, {"train"}),
    ("rng.seed", 7, {"train"}),
    ("checkpoint.save_interval", 6, {"train"}),
    ("bridge", {"ddp": {"bucket_size": 1000}}, {"train"}),
    ("eval.seed", 7, {"eval"}),
    ("eval.gate.max_loss_ratio", 0.5, {"eval"}),
]
# A file, or a package (its __init__) with one more newline -> the same. A comment is enough: DVC hashes files.
FILES = [
    ("src/sft/cli.py", set()),
    ("src/sft/run_stage.py", set()),
    ("src/sft/cluster", set()),
    ("src/sft/experiments", set()),
    ("src/sft/inspect", set()),
    ("src/sft/pages", set()),
    ("src/sft/tracking", set()),
    ("src/sft/params/check.py", set()),
    ("src/sft/params/explain.py", set()),
    ("src/sft/params/data.py", {*FETCH, *FILTER, *PREP, "pack", "train"}),
    ("src/sft/params/training.py", {"train"}),
    ("src/sft/params/evaluation.py", {"eval"}),
    ("src/sft/files.py", ALL),
    ("src/sft/endpoint.py", {*FILTER, "eval"}),
    ("src/sft/sources", FETCH),
    ("src/sft/dataset_card.py", {*FETCH, *FILTER, "eval"}),
    ("src/sft/raw_folders.py", {*FETCH, *FILTER, "eval"}),
    ("src/sft/chat_files.py", {"fetch-model", *PREP, "pack", "train", "eval"}),
    ("src/sft/formats", {"fetch-benchmarks", *FILTER, "eval"}),
    ("src/sft/batches.py", {"fetch-benchmarks", *FILTER, *PREP, "pack", "eval"}),
    ("src/sft/conversation.py", {*FILTER, *PREP, "pack", "eval"}),
    ("src/sft/filters", {*FILTER, "eval"}),
    ("src/sft/filters/dedup", {*FILTER, "pack", "eval"}),
    ("src/sft/tokens", {*PREP, "pack", "eval"}),
    ("src/sft/packing", {"pack"}),
    ("src/sft/weight_files.py", {"fetch-model", "train", "eval"}),
    ("src/sft/metric_labels.py", {"train", "eval"}),
    ("src/sft/workers.py", {*FILTER, *PREP, "pack", "eval"}),
    ("src/sft/planning", {"train"}),
    ("src/sft/training", {"train"}),
    ("src/sft/lineage", {"train", "eval"}),
    ("src/sft/mamba", {"train", "eval"}),
    ("src/sft/evaluation", {"eval"}),
    ("requirements/data.txt", ALL),
    ("requirements/train.txt", {"fetch-model", "train", "eval"}),
    ("requirements/lm-eval.txt", {"eval"}),
    ("requirements/tools.txt", set()),
    ("requirements/dev.txt", set()),
    ("slurm/train.sbatch", set()),
    ("templates/nano3.jinja", {"fetch-model", *PREP}),
    ("filters/rubric.md", FILTER),
    ("tasks/tool_calls.py", {"eval"}),
    ("dvc.yaml", set()),
    ("README.md", set()),
    ("tests/support/project.py", set()),
]


def changed(project: Path) -> set[str]:
    """The stages that DVC would rerun first: those whose own dependencies or params changed."""
    with Repo(str(project)) as repo:
        return {stage.rpartition(":")[2] for stage, changes in repo.status().items() if changes}


def refused(project: Path, *command: str) -> str:
    """What a command says that fails and leaves models, reports and data as they are."""
    outputs = [*OUTPUTS, "reports"]
    before = [folder_digests(project / output) for output in outputs]
    said = run(project, *command, fails=True)
    assert [folder_digests(project / output) for output in outputs] == before
    assert all(before)
    return said


def test_nothing_has_changed_before_the_table_begins(project, first_run):
    assert changed(project) == set()


@pytest.mark.parametrize(("param", "value", "stages"), PARAMS, ids=[case[0] for case in PARAMS])
def test_a_param_reruns_its_stages_and_no_other(project, first_run, param, value, stages):
    params = (project / "params.yaml").read_bytes()
    set_params(project, **{param: value})
    try:
        assert changed(project) == {*stages, "check"}
    finally:
        (project / "params.yaml").write_bytes(params)


@pytest.mark.parametrize(("name", "stages"), FILES, ids=[case[0] for case in FILES])
def test_a_file_reruns_the_stages_that_use_it_and_no_other(project, first_run, name, stages):
    path = project / name / "__init__.py" if (project / name).is_dir() else project / name
    content = path.read_bytes()
    path.write_bytes(content + b"\n")
    try:
        assert changed(project) == stages
    finally:
        path.write_bytes(content)


def test_the_table_names_every_dependency_in_dvc_yaml(project):
    named = {name for name, _ in FILES}
    stages = YAML(typ="safe").load((project / "dvc.yaml").read_text())["stages"].values()
    deps = {dep for stage in stages for dep in stage.get("do", stage)["deps"]}
    code = {dep for dep in deps if dep.startswith(("src/", "requirements/")) and not dep.startswith("src/sft/stages/")}
    assert len(code) > 15
    assert code - named <= {
        f"src/sft/{name}.py" for name in ("hashing", "ledger", "parquet", "strict_json", "tool_schemas")
    }


@pytest.mark.parametrize(
    ("setting", "key", "meant"),
    [
        ("optimizer.lr=abc", "optimizer.lr", "number"),
        ("+optimizer.learning_rate=1", "optimizer.learning_rate", "'optimizer.lr'"),
        ("+checkpoint.load=/x", "checkpoint.load", "'checkpoint.pretrained_checkpoint'"),
        ("prep.max_tokens=abc", "prep.max_tokens", "integer"),
        ("fetch.model.uri=file://nowhere", "fetch.model.uri", "does not exist"),
        ("pack.validation=0.0", "pack.validation", "validation.eval_iters"),
        ("train.global_batch_size=500", "data/packed/validation", "train.global_batch_size"),
    ],
)
def test_what_dvc_sets_itself_is_refused_before_it_removes_an_output(project, first_run, setting, key, meant):
    said = refused(project, "dvc", "exp", "run", "--set-param", setting)
    assert stages_run(said) == set()
    assert key in said
    assert meant in said
    assert "git checkout params.yaml" in said or setting.partition("=")[2] not in ("abc", "1", "/x")
    run(project, "git", "checkout", "params.yaml")
    assert changed(project) == set()


def test_one_source_changed_reruns_that_source_and_what_follows(project, first_run):
    params = (project / "params.yaml").read_bytes()
    set_params(project, **{"filter.consistency": False})
    try:
        output = run(project, "dvc", "repro", "pack")
        ran = stages_run(output)
        assert {"filter@calls", "filter@chats"} <= ran
        assert not {"fetch@calls", "fetch@chats", "fetch-model", "fetch-benchmarks"} & ran
    finally:
        (project / "params.yaml").write_bytes(params)


@pytest.mark.parametrize(
    "name", ["a;touch EXECUTED", "$(touch EXECUTED)", "`touch EXECUTED`", "a' || touch EXECUTED '"]
)
def test_the_name_of_a_source_is_data_and_never_a_command(tmp_path, name):
    clone = clone_project(tmp_path / "clone")
    set_params(clone, **{"fetch.sources": {name: {"uri": "file://inputs/calls.jsonl", "read": "openai"}}})
    output = run(clone, "dvc", "repro", f"fetch@{name}", fails=True)
    assert not (clone / "EXECUTED").exists()
    assert "fetch.sources" in output
