"""prep: samples with masks, the same bytes each time, and a ledger that matches that of the filter stage."""

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
from sft.conversation import Conversation
from sft.files import read_json, write_json
from sft.formats.messages import normalize
from sft.hashing import folder_digest
from sft.parquet import CONVERSATIONS, ShardWriter, read_rows
from sft.stages import prep as stage
from sft.tokens import prepare
from tests.support.dask_cluster import Cluster, children, finish, start_driver, stopped_when
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
    """Write records as the filter stage does."""
    folder = project / "data/filtered" / source
    for path in folder.glob("*"):
        path.unlink()
    with ShardWriter(folder, "kept", CONVERSATIONS) as kept:
        for record in records:
            conversation = normalize(record)
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
    assert list(rows[0]) == ["conversation_id", "sample", "ids", "mask", "turn_ends", "group", "license"]
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


def test_stripped_reasoning_is_counted(project):
    before, _ = prepared(project, "chats")
    set_params(project, **{"prep.reasoning.strip": 1.0})
    after, rows = prepared(project, "chats")
    assert after["reasoning"]["stripped"] == 3
    assert (before["samples"], after["samples"]) == (9, 6), "without reasoning a conversation is one sample"
    assert after["reasoning"]["tokens_removed"] == 6 * 5, "six answers thought five tokens each: 1, and, 1."
    assert all(len(row["turn_ends"]) == 2 for row in rows)


def test_reasoning_is_truncated_to_a_budget_that_is_in_the_prompt(project):
    from sft.tokens.tokenizer import SafeTokenizer

    set_params(project, **{"prep.reasoning.truncate": 1.0, "prep.reasoning.budgets": [2]})
    report, rows = prepared(project, "chats")
    assert (report["reasoning"]["truncated"], report["reasoning"]["none"]) == (3, 3)
    decode = SafeTokenizer(project / "models/base").decode
    with_budget = [decode(row["ids"]) for row in rows if "{thinking token budget: 2}" in decode(row["ids"])]
    assert len(with_budget) == 6, "both samples of the three conversations with reasoning"
    trained = [decode([i for i, kept in zip(row["ids"], row["mask"], strict=True) if kept]) for row in rows]
    truncated = [text for text in trained if "</think>" in text]
    assert len(truncated) == 6
    assert all(len(text.partition("\n</think>")[0]) < len("1 and 1.") for text in truncated)
    assert {text.partition("</think>\n")[2][:4] for text in truncated} == {"2<|i", "4<|i", "6<|i", "Yes,"}


def test_other_rows_do_not_change_how_a_row_is_prepared(project):
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
    assert report["rejected"] == {"template-refuses": 2}
    lines = [json.loads(line) for line in (project / "data/prepared/chats/rejected.jsonl").read_text().splitlines()]
    assert [line["evidence"] for line in lines] == ["no 4"] * 2


def test_conversations_without_trained_turns_and_untrained_turns_are_counted(project):
    records = chat_records(6)
    for record, silent in ((0, (1, 3)), (2, (1,))):
        for index in silent:
            records[record]["messages"][index]["loss"] = False
    write_filtered(project, "chats", records)
    report, rows = prepared(project, "chats")
    assert (report["rejected"], report["untrained_turns"]) == ({"nothing-trained": 1}, 1)
    assert all(sum(row["mask"]) for row in rows)
    assert sorted(len(row["turn_ends"]) for row in rows) == [1] * 7 + [2]


def test_what_a_loss_choice_leaves_out_is_in_the_report(project):
    before, _ = prepared(project, "chats")
    assert "untrained" not in before
    set_params(project, **{"prep.train_answers": "last", "prep.train_reasoning": "none"})
    report, rows = prepared(project, "chats")
    untrained = report["untrained"]
    assert (untrained["train_answers"], untrained["train_reasoning"]) == ("last", "none")
    assert (untrained["earlier_answers"], report["samples"], len(rows)) == (6, 6, 6)
    assert 0 < untrained["reasoning_tokens"] < before["trained_tokens"] - report["trained_tokens"]


def test_a_hostile_template_is_one_error_and_writes_nothing(project):
    (project / "hostile.jinja").write_text(
        CHATML + "{% if 'Sure?' in messages | string %}{{ 'a' * 10000000000 }}{% endif %}"
    )
    set_params(project, **{"prep.template": "hostile.jinja"})
    with pytest.raises(InputError, match=r"^hostile\.jinja: .*1024 MiB of memory"):
        stage.main("chats")
    assert not (project / "data/prepared/chats").exists()


def test_a_template_that_renders_no_row_is_an_error_with_examples_and_the_rejected_rows_are_written(project):
    (project / "chatml.jinja").write_text(CHATML)
    set_params(project, **{"prep.template": "chatml.jinja"})
    with pytest.raises(InputError, match=r"(?s)data/filtered/calls: chatml\.jinja .*8 template-drops-text: \w{32}: "):
        stage.main("calls")
    assert {path.name for path in (project / "data/prepared/calls").iterdir()} == {
        "chat_template.jinja",
        "rejected.jsonl",
    }
    assert len((project / "data/prepared/calls/rejected.jsonl").read_text().splitlines()) == 8
    assert not (project / "reports/prep/calls.json").exists()


def test_more_rejected_rows_than_allowed_stop_the_stage(project):
    refuses = "{% if '4' in m.content %}{{ raise_exception('no 4') }}{% endif %}"
    (project / "picky.jinja").write_text(CHATML.replace("{{ m.content", refuses + "{{ m.content"))
    set_params(project, **{"prep.template": "picky.jinja", "prep.max_rejected": 0.25})
    with pytest.raises(InputError, match=r"(?s)rejects 33\.3% of 6 .*prep\.max_rejected allows 25\.0%.*: no 4"):
        stage.main("chats")
    set_params(project, **{"prep.max_rejected": 0.34})
    assert prepared(project, "chats")[0]["rejected"] == {"template-refuses": 2}


def test_stop_tokens_form_and_date_of_the_template_are_reported(project):
    dated = "{{ strftime_now('%Y') }}" + CHATML
    (project / "models/base/tokenizer_config.json").write_text(
        json.dumps({"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "chat_template": dated})
    )
    (project / "models/base/chat_template.jinja").unlink(missing_ok=True)
    set_params(project, **{"prep.template": "models/base/chat_template.jinja", "prep.date": "2026-01-31"})
    report, rows = prepared(project, "chats")
    assert (report["stop_ids"], report["stop_id"], report["date"]) == ([0, 2], 0, "2026-01-31")
    assert report["form"] == {"arguments": "object", "reasoning": "inline"}
    assert report["cannot_render"].keys() == {
        "tools",
        "parallel-calls",
        "words-beside-a-call",
        "reasoning-before-a-call",
    }
    assert {row["ids"][end - 1] for row in rows for end in row["turn_ends"]} == {2}
    assert (project / "data/prepared/chats/chat_template.jinja").read_text() == dated


def test_a_ledger_that_does_not_match_the_filter_report_is_an_error(project):
    path = project / "reports/filter/calls.json"
    path.write_text(path.read_text().replace('"rows_out": 8', '"rows_out": 9'))
    with pytest.raises(ValueError, match=r"reports/filter/calls\.json: .*\b9\b.*\b8\b"):
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
    with pytest.raises(InputError, match=r"data/filtered: conversation edited: .*dvc repro --force filter"):
        stage.main("calls")


def test_missing_input_is_an_error_with_the_command_that_makes_it(project):
    with pytest.raises(InputError, match=r"data/filtered/other: .*dvc repro filter@other"):
        stage.main("other")
    (project / "models/base").rename(project / "elsewhere")
    with pytest.raises(InputError, match=r"models/base: .*dvc repro fetch-model"):
        stage.main("calls")


# --- Workers, and their faults -----------------------------------------------------------------------


@pytest.fixture
def ranges(project, monkeypatch):
    """A project with a source of nine row ranges, long enough to be killed meanwhile; two workers."""
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
    """Return the digest of what one process writes, and remove it."""
    with monkeypatch.context() as patch:
        patch.setenv("SFT_WORKERS", "1")
        stage.main("many")
    written = digest(project)
    shutil.rmtree(project / "data/prepared")
    return written


def start(project, **environment):
    return start_driver(project, sys.executable, "-m", "sft.stages.prep", "--source", "many", **environment)


def has_samples(project):
    """Return whether a worker has begun to write samples."""
    return list((project / "data/prepared").glob(".many-scratch*/*/samples*"))


def nothing_half_written(project):
    return [path.name for path in (project / "data/prepared").glob("*") if path.name != "many"] == []


def test_the_bytes_do_not_depend_on_the_workers(ranges, monkeypatch):
    expected = alone(ranges, monkeypatch)
    stage.main("many")
    assert digest(ranges) == expected
    assert len(list((ranges / "data/prepared/many").glob("*.parquet"))) == 9
    monkeypatch.setenv("SFT_FASTOKENS", "0")
    monkeypatch.setattr(prepare, "MIN_ROWS_FOR_FASTOKENS", 0)
    stage.main("many")
    assert digest(ranges) == expected


def test_the_bytes_do_not_depend_on_a_cluster_that_loses_a_worker(ranges, monkeypatch, tmp_path_factory):
    expected = alone(ranges, monkeypatch)
    with Cluster(tmp_path_factory.mktemp("dask")) as cluster:
        first, _ = cluster.add_worker("--no-nanny"), cluster.add_worker("--no-nanny")
        cluster.wait_for_workers()
        driver = stopped_when(lambda: start(ranges, SFT_EXECUTOR=cluster.address), lambda _: has_samples(ranges))
        os.killpg(first.pid, signal.SIGKILL)
        assert "Dask: " in finish(driver)
    assert digest(ranges) == expected
    assert nothing_half_written(ranges)


def test_a_killed_worker_costs_one_row_range(ranges, monkeypatch):
    expected = alone(ranges, monkeypatch)
    driver = stopped_when(lambda: start(ranges), lambda driver: has_samples(ranges) and children(driver))
    os.kill(children(driver)[0], signal.SIGKILL)
    finish(driver)
    assert digest(ranges) == expected


def test_a_run_killed_at_any_moment_leaves_nothing_incomplete_and_the_rerun_gives_the_same_bytes(ranges, monkeypatch):
    expected = alone(ranges, monkeypatch)
    (ranges / "reports/prep/many.json").unlink()
    draw, killed = random.Random(5), 0
    for delay in (0.0, *(draw.uniform(0, 2) for _ in range(3))):
        driver = stopped_when(lambda: start(ranges), lambda _: list((ranges / "data/prepared").glob(".many.partial*")))
        driver.send_signal(signal.SIGCONT)
        time.sleep(delay)
        driver.kill()
        driver.communicate()
        killed += not (ranges / "data/prepared/many").exists()
        if (ranges / "data/prepared/many").exists():
            assert folder_digest(ranges / "data/prepared/many") == expected[0]
            shutil.rmtree(ranges / "data/prepared/many")
    assert killed
    stage.main("many")
    assert digest(ranges) == expected
    assert nothing_half_written(ranges)


def test_two_runs_at_once_both_succeed(ranges, monkeypatch):
    expected = alone(ranges, monkeypatch)
    runs = [start(ranges) for _ in range(2)]
    for each in runs:
        finish(each)
    assert digest(ranges) == expected
    assert nothing_half_written(ranges)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_file_that_cannot_be_written_is_an_error_and_keeps_earlier_output(ranges, monkeypatch, workers):
    expected = alone(ranges, monkeypatch)
    limited = f"ulimit -f 4; exec {sys.executable} -m sft.stages.prep --source many"  # files of at most 4 KiB
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT / "src"),
        "SFT_WORKERS": workers,
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    for _ in range(2):
        done = subprocess.run(
            ["bash", "-c", limited], cwd=ranges, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        assert done.stderr.startswith("error: ")
        assert "File too large" in done.stderr
        assert nothing_half_written(ranges)
        if not (ranges / "data/prepared/many").exists():
            stage.main("many")
    assert digest(ranges) == expected


def test_a_damaged_row_is_an_error_that_names_it(ranges, monkeypatch):
    write_filtered(ranges, "many", chat_records(180))
    rows = list(read_rows(ranges / "data/filtered/many", "kept"))
    rows[77]["messages"] = '[{"role": "user"'
    (ranges / "data/filtered/many/kept-00000.parquet").unlink()
    with ShardWriter(ranges / "data/filtered/many", "kept", CONVERSATIONS) as kept:
        for row in rows:
            kept.write(row)
    with pytest.raises(InputError, match=f"data/filtered: conversation {rows[77]['id']}: .*JSON"):
        stage.main("many")
    assert not (ranges / "data/prepared/many").exists()
