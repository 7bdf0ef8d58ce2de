"""prep: samples with masks, the same bytes each time, and a ledger that meets the one before."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from sft import parquet
from sft.cli import InputError
from sft.conversation import Conversation, normalise
from sft.files import read_json, write_json
from sft.hashing import folder_digest
from sft.parquet import CONVERSATIONS, ShardWriter, read_rows
from sft.stages import prep as stage
from tests.support.dask_cluster import Cluster, children, start_driver, wait_until
from tests.support.project import ROOT, chat_records, link_project, set_params, tool_records

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ALL_KEPT = {"prep.reasoning.strip": 0.0, "prep.reasoning.truncate": 0.0}


@pytest.fixture
def project(tmp_path, monkeypatch):
    link_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "inputs/model").rename(tmp_path / "models/base")
    set_params(tmp_path, **ALL_KEPT)
    write_filtered(tmp_path, "calls", tool_records(8))
    write_filtered(tmp_path, "chats", chat_records(6))
    return tmp_path


def write_filtered(project, source, records):
    """Write what the filter stage would hand on."""
    folder = project / "data/filtered" / source
    for path in folder.glob("*"):
        path.unlink()
    with ShardWriter(folder, "kept", CONVERSATIONS) as kept:
        for record in records:
            conversation = normalise(record)
            assert isinstance(conversation, Conversation)
            tools = json.dumps(conversation.tools) if conversation.tools else None
            messages = json.dumps(conversation.messages)
            kept.write({"id": conversation.id, "messages": messages, "tools": tools, "meta": "{}"})
    write_json(project / f"reports/filter/{source}.json", {"rows_out": len(records)})


def prepared(project, source):
    stage.main(source)
    return read_json(project / f"reports/prep/{source}.json"), list(read_rows(project / f"data/prepared/{source}"))


def test_samples_tokens_and_trained_tokens_are_counted_as_they_are_written(project):
    report, rows = prepared(project, "chats")
    assert (report["rows_in"], report["rows_out"], report["rejected"]) == (6, 6, {})
    assert report["samples"] == len(rows) == 3 + 3 * 2, "three plain conversations, three of two reasoning turns"
    assert report["tokens"] == sum(len(row["ids"]) for row in rows)
    assert report["trained_tokens"] == sum(sum(row["mask"]) for row in rows) > 0
    assert list(rows[0]) == ["conversation_id", "sample", "ids", "mask", "turn_ends"]
    assert report["reasoning"] == {"none": 3, "kept": 3, "stripped": 0, "truncated": 0, "tokens_removed": 0}
    by_conversation: dict[str, list[int]] = {}
    for row in rows:
        by_conversation.setdefault(row["conversation_id"], []).append(row["sample"])
    assert sorted(by_conversation.values()) == [[0]] * 3 + [[0, 1]] * 3


def test_the_same_input_gives_the_same_bytes(project):
    stage.main("calls")
    first = folder_digest(project / "data/prepared/calls")
    stage.main("calls")
    assert folder_digest(project / "data/prepared/calls") == first


def test_turns_end_behind_the_last_trained_token_of_each(project):
    _, rows = prepared(project, "chats")
    assert [len(row["turn_ends"]) for row in rows if row["sample"] == 0].count(2) == 3, "the plain conversations"
    for row in rows:
        stops = [i + 1 for i, kept in enumerate(row["mask"]) if kept and not (row["mask"] + [0])[i + 1]]
        assert row["turn_ends"] == stops
        assert {row["ids"][end - 1] for end in row["turn_ends"]} == {2}


def test_reasoning_is_stripped_and_what_goes_is_counted(project):
    before, _ = prepared(project, "chats")
    set_params(project, **{"prep.reasoning.strip": 1.0})
    after, rows = prepared(project, "chats")
    assert after["reasoning"]["stripped"] == 3
    assert (before["samples"], after["samples"]) == (9, 6), "without reasoning a conversation is one sample"
    assert after["reasoning"]["tokens_removed"] == 6 * 5, "six answers thought five tokens each: 1, and, 1."
    assert all(len(row["turn_ends"]) == 2 for row in rows)


def test_reasoning_is_cut_to_a_budget_that_the_prompt_tells(project):
    from sft.tokens.tokenizer import SafeTokenizer

    set_params(project, **{"prep.reasoning.truncate": 1.0, "prep.reasoning.budgets": [2]})
    report, rows = prepared(project, "chats")
    assert (report["reasoning"]["truncated"], report["reasoning"]["none"]) == (3, 3)
    decode = SafeTokenizer(project / "models/base").decode
    told = [decode(row["ids"]) for row in rows if "{thinking token budget: 2}" in decode(row["ids"])]
    assert len(told) == 6, "both samples of the three conversations with reasoning"
    trained = [decode([i for i, kept in zip(row["ids"], row["mask"], strict=True) if kept]) for row in rows]
    cut = [text for text in trained if "</think>" in text]
    assert len(cut) == 6
    assert all(len(text.partition("\n</think>")[0]) < len("1 and 1.") for text in cut)
    assert {text.partition("</think>\n")[2][:4] for text in cut} == {"2<|i", "4<|i", "6<|i", "Yes,"}


def test_a_row_is_prepared_alike_whatever_rows_are_beside_it(project):
    shares = {"strip": 0.4, "truncate": 0.4, "budgets": [2, 3]}
    set_params(project, **{f"prep.reasoning.{name}": value for name, value in shares.items()})
    _, rows = prepared(project, "chats")
    write_filtered(project, "chats", list(reversed(chat_records(5))))
    _, fewer = prepared(project, "chats")
    by_name = {(row["conversation_id"], row["sample"]): row for row in rows}
    assert len(fewer) >= 5
    assert all(by_name[row["conversation_id"], row["sample"]] == row for row in fewer)


def test_a_conversation_that_cannot_be_rendered_is_counted_with_evidence(project):
    refuses = "{% if '4' in m.content %}{{ raise_exception('no 4') }}{% endif %}"
    (project / "picky.jinja").write_text(CHATML.replace("{{ m.content", refuses + "{{ m.content"))
    set_params(project, **{"prep.template": "picky.jinja"})
    report, _ = prepared(project, "chats")
    assert report["rejected"] == {"template-drops-text": 2, "template-refuses": 2}
    lines = [json.loads(line) for line in (project / "data/prepared/chats/rejected.jsonl").read_text().splitlines()]
    assert {line["evidence"] for line in lines} == {
        "no 4",
        "messages[1].reasoning_content is not in the rendered turn",
    }


def test_a_conversation_in_which_nothing_is_trained_is_counted_and_a_silent_turn_too(project):
    records = chat_records(6)
    for record, silent in ((0, (1, 3)), (2, (1,))):
        for index in silent:
            records[record]["messages"][index]["loss"] = False
    write_filtered(project, "chats", records)
    report, rows = prepared(project, "chats")
    assert (report["rejected"], report["untrained_turns"]) == ({"nothing-trained": 1}, 1)
    assert all(sum(row["mask"]) for row in rows)
    assert sorted(len(row["turn_ends"]) for row in rows) == [1] * 7 + [2]


def test_a_hostile_template_stops_the_stage_with_one_error_and_nothing_written(project):
    (project / "hostile.jinja").write_text(
        CHATML + "{% if 'Sure?' in messages | string %}{{ 'a' * 10000000000 }}{% endif %}"
    )
    set_params(project, **{"prep.template": "hostile.jinja"})
    with pytest.raises(InputError, match=r"hostile\.jinja: the chat template used more than 1024 MiB of memory"):
        stage.main("chats")
    assert not (project / "data/prepared/chats").exists()


def test_a_template_that_renders_no_row_stops_the_stage(project):
    (project / "chatml.jinja").write_text(CHATML)
    set_params(project, **{"prep.template": "chatml.jinja"})
    with pytest.raises(InputError, match=r"no conversation of 8 can be rendered .*template-drops-text': 8"):
        stage.main("calls")


def test_a_ledger_that_does_not_meet_the_one_before_stops_the_stage(project):
    path = project / "reports/filter/calls.json"
    path.write_text(path.read_text().replace('"rows_out": 8', '"rows_out": 9'))
    with pytest.raises(ValueError, match="says 9 rows were handed on, but 8 were found"):
        stage.main("calls")
    assert not (project / "data/prepared/calls").exists()


@pytest.mark.parametrize(
    "messages",
    [
        '[{"role": "user"',
        "3",
        "[1]",
        '[{"content": "x"}]',
        '[{"role": "user", "content": "x"}, {"role": "assistant", "content": null}]',
        '[{"role": "user", "content": "x"}, {"role": "assistant", "content": [{"type": "text", "text": "y"}]}]',
        '[{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "tool_calls": {"a": 1}}]',
        '[{"role": "user", "content": "\\ud800"}, {"role": "assistant", "content": "y"}]',
        "[" * 100_000,
    ],
)
def test_a_conversation_that_was_edited_by_hand_is_an_error_that_names_it(project, messages):
    row = {"id": "edited", "messages": messages, "tools": None, "meta": "{}"}
    with ShardWriter(project / "data/filtered/calls", "kept", CONVERSATIONS) as kept:
        kept.write(row)
    with pytest.raises(InputError, match=r"conversation edited: not .*again"):
        stage.main("calls")


def test_what_is_missing_says_which_stage_makes_it(project):
    with pytest.raises(InputError, match="dvc repro filter@other"):
        stage.main("other")
    (project / "models/base").rename(project / "elsewhere")
    with pytest.raises(InputError, match="dvc repro fetch-model"):
        stage.main("calls")


# --- Workers, and what can happen to them -----------------------------------------------------------------------


@pytest.fixture
def stretches(project, monkeypatch):
    """A source of nine stretches, long enough to be killed in; two workers."""
    monkeypatch.setattr(parquet, "ROWS_PER_GROUP", 300)
    write_filtered(project, "many", chat_records(2700))
    monkeypatch.undo()
    monkeypatch.chdir(project)
    monkeypatch.setenv("SFT_WORKERS", "2")
    monkeypatch.delenv("SFT_EXECUTOR", raising=False)
    assert len(parquet.plan_row_ranges(project / "data/filtered/many", "kept")) == 9
    return project


def digest(project):
    return folder_digest(project / "data/prepared/many"), (project / "reports/prep/many.json").read_bytes()


def alone(project, monkeypatch):
    """The result of one process; nothing is left of the run."""
    with monkeypatch.context() as patch:
        patch.setenv("SFT_WORKERS", "1")
        stage.main("many")
    found = digest(project)
    shutil.rmtree(project / "data/prepared")
    return found


def start(project, **environment):
    return start_driver(project, sys.executable, "-m", "sft.stages.prep", "--source", "many", **environment)


def nothing_half_written(project):
    return [path.name for path in (project / "data/prepared").glob("*") if path.name != "many"] == []


def test_the_bytes_do_not_depend_on_the_workers(stretches, monkeypatch):
    expected = alone(stretches, monkeypatch)
    stage.main("many")
    assert digest(stretches) == expected
    assert len(list((stretches / "data/prepared/many").glob("*.parquet"))) == 9
    monkeypatch.setenv("SFT_FASTOKENS", "0")
    monkeypatch.setattr(stage, "FEWEST_FOR_FASTOKENS", 0)
    stage.main("many")
    assert digest(stretches) == expected


def test_nor_on_a_cluster_that_loses_a_worker(stretches, monkeypatch, tmp_path_factory):
    expected = alone(stretches, monkeypatch)
    with Cluster(tmp_path_factory.mktemp("dask")) as cluster:
        first, _ = cluster.add_worker("--no-nanny"), cluster.add_worker("--no-nanny")
        driver = start(stretches, SFT_EXECUTOR=cluster.address)
        wait_until(lambda: list((stretches / "data/prepared").glob(".many-scratch*/*/samples*")))
        os.killpg(first.pid, signal.SIGKILL)
        said, _ = driver.communicate(timeout=120)
    assert driver.returncode == 0, said
    assert "Dask: " in said
    assert digest(stretches) == expected
    assert nothing_half_written(stretches)


def test_a_killed_worker_costs_its_stretch_only(stretches, monkeypatch):
    expected = alone(stretches, monkeypatch)
    driver = start(stretches)
    wait_until(lambda: list((stretches / "data/prepared").glob(".many-scratch*/*/samples*")))
    os.kill(children(driver)[0], signal.SIGKILL)
    said, _ = driver.communicate(timeout=120)
    assert driver.returncode == 0, said
    assert digest(stretches) == expected


def test_killed_at_any_moment_nothing_is_taken_for_whole_and_the_rerun_gives_the_same_bytes(stretches, monkeypatch):
    expected = alone(stretches, monkeypatch)
    (stretches / "reports/prep/many.json").unlink()
    draw, killed = random.Random(5), 0
    for delay in (0.0, *(draw.uniform(0, 2) for _ in range(3))):
        driver = start(stretches)
        wait_until(lambda: list((stretches / "data/prepared").glob(".many.partial*")))
        time.sleep(delay)
        driver.kill()
        driver.communicate()
        killed += not (stretches / "data/prepared/many").exists()
        if (stretches / "data/prepared/many").exists():
            assert folder_digest(stretches / "data/prepared/many") == expected[0]
            shutil.rmtree(stretches / "data/prepared/many")
    assert killed
    stage.main("many")
    assert digest(stretches) == expected
    assert nothing_half_written(stretches)


def test_two_runs_at_once_both_end_whole(stretches, monkeypatch):
    expected = alone(stretches, monkeypatch)
    runs = [start(stretches) for _ in range(2)]
    said = [run.communicate(timeout=300)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], said
    assert digest(stretches) == expected
    assert nothing_half_written(stretches)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_file_that_cannot_be_written_to_its_end_stops_the_stage_and_leaves_what_was_there(
    stretches, monkeypatch, workers
):
    expected = alone(stretches, monkeypatch)
    limited = f"ulimit -f 4; exec {sys.executable} -m sft.stages.prep --source many"  # files of at most 4 KiB
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT / "src"),
        "SFT_WORKERS": workers,
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    for _ in range(2):
        done = subprocess.run(
            ["bash", "-c", limited], cwd=stretches, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        assert done.stderr.startswith("error: ")
        assert "File too large" in done.stderr
        assert nothing_half_written(stretches)
        if not (stretches / "data/prepared/many").exists():
            stage.main("many")
    assert digest(stretches) == expected


def test_a_poison_row_is_an_error_that_names_it(stretches, monkeypatch):
    write_filtered(stretches, "many", chat_records(180))
    rows = list(read_rows(stretches / "data/filtered/many", "kept"))
    rows[77]["messages"] = '[{"role": "user"'
    (stretches / "data/filtered/many/kept-00000.parquet").unlink()
    with ShardWriter(stretches / "data/filtered/many", "kept", CONVERSATIONS) as kept:
        for row in rows:
            kept.write(row)
    with pytest.raises(InputError, match=f"conversation {rows[77]['id']}: not JSON"):
        stage.main("many")
    assert not (stretches / "data/prepared/many").exists()
