"""rejected: the table of reasons and examples."""

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sft.cli import InputError
from sft.files import write_json
from sft.inspect.rejected import Part, main, marks, parts, quote_patterns, shown_ranges, tool_names
from sft.parquet import CONVERSATIONS, REJECTED, ShardWriter
from tests.support.printed_json import printed_json

SRC = Path(__file__).parents[2] / "src"
HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e[bold]\r\x08"
COLORS = re.compile(r"\x1b\[[0-9;]*m")
ASK = {"role": "user", "content": "Weather in Oslo?"}
CALL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "get_rain", "arguments": {"a": 1}}}]}
TOOLS = [{"type": "function", "function": {"name": "get_weather"}}]


def filtered(number, messages, reason=None, evidence="", tools=None):
    location = f"calls.jsonl:{number}"
    row = {
        "id": f"{number:032x}",
        "messages": json.dumps(messages),
        "tools": None if tools is None else json.dumps(tools),
        "meta": json.dumps({"source": "calls", "location": location}),
    }
    return row if reason is None else {**row, "reason": reason, "evidence": f"{location}: {evidence}"}


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A source of ten rows: filter rejects three, prep one, pack two of eight samples."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    unknown = "messages[1] calls get_rain; tools: get_weather"
    with (
        ShardWriter(tmp_path / "data/filtered/calls", "kept", CONVERSATIONS) as kept,
        ShardWriter(tmp_path / "data/filtered/calls", "rejected", REJECTED) as rejected,
    ):
        for number in range(1, 8):
            kept.write(filtered(number, [{**ASK, "content": f"Question {number}"}, CALL]))
        rejected.write(filtered(8, [ASK, CALL], "unknown-tool", unknown, TOOLS))
        rejected.write(filtered(9, [ASK, {"role": "assistant", "content": HOSTILE}], "garbage", HOSTILE))
        rejected.write(filtered(10, [CALL, CALL], "unknown-tool", unknown, TOOLS))
    write_lines(
        tmp_path / "data/prepared/calls/rejected.jsonl",
        [{"id": f"{5:032x}", "reason": "template-refuses", "evidence": "no"}],
    )
    rows = [(6, "calls", "over-length"), (6, "chats", "over-length"), (7, "calls", "unknown-tool")]
    write_lines(
        tmp_path / "data/packed/rejected.jsonl",
        [
            {"id": f"{number:032x}", "source": source, "reason": reason, "evidence": ""}
            for number, source, reason in rows
        ],
    )
    write_json(tmp_path / "reports/filter/calls.json", {"rows_in": 10})
    write_json(tmp_path / "reports/prep/calls.json", {"rows_in": 7, "samples": 8})
    return tmp_path


def seen(capsys, reason=None, number=5, start=0, source="calls"):
    main(source, reason, number, start)
    return capsys.readouterr().out


def test_the_table_counts_what_each_stage_rejected_and_its_share_of_what_it_read(project, capsys):
    table = [row.split() for row in seen(capsys).splitlines() if row.strip()][2:]
    assert table == [
        ["calls", "filter", "rows", "in", "10"],
        ["unknown-tool", "2", "20.00%"],
        ["garbage", "1", "10.00%"],
        ["all", "rejected", "3", "30.00%"],
        ["prep", "conversations", "in", "7"],
        ["template-refuses", "1", "14.29%"],
        ["pack", "samples", "in", "8"],
        ["over-length", "1", "12.50%"],
        ["unknown-tool", "1", "12.50%"],
        ["all", "rejected", "2", "25.00%"],
    ]


def test_a_stage_that_did_not_run_is_named_with_what_runs_it(project, capsys):
    (project / "data/prepared/calls/rejected.jsonl").unlink()
    (project / "data/packed/rejected.jsonl").unlink()
    (project / "reports/filter/calls.json").unlink()
    out = seen(capsys)
    assert "data/prepared/calls/rejected.jsonl not found: make prep" in out
    assert "data/packed/rejected.jsonl not found: make pack" in out
    assert re.search(r"unknown-tool +2 +- *\n", out)  # no report, so no share


def test_an_example_shows_its_place_its_evidence_and_marks_it_where_it_occurs(project, capsys):
    out = seen(capsys, "unknown-tool", number=1)
    assert [row.strip() for row in out.splitlines() if row.strip()] == [
        "── example 0 of 3, from 0: calls, filter: unknown-tool",
        "location data/raw/calls/calls.jsonl:8",
        f"id {8:032x}",
        "evidence messages[1] calls get_rain; tools: get_weather",
        "tools get_weather",
        "0 user Weather in Oslo?",
        "1 assistant ⟨nothing⟩",
        '1 calls ⟦get_rain⟧ {"a": 1}',
        "2 more: FROM=1",
    ]


def test_counts_and_examples_are_printed_as_json(project):
    first, second, third = printed_json(project, "sft.inspect.rejected")
    assert first == {
        "source": "calls",
        "stage": "filter",
        "unit": "rows",
        "read": 10,
        "rejected": 3,
        "reasons": {"unknown-tool": 2, "garbage": 1},
    }
    assert (second["stage"], second["rejected"], third["stage"], third["unit"]) == ("prep", 1, "pack", "samples")
    found = printed_json(project, "sft.inspect.rejected", "--reason", "unknown-tool", "--number", "1", "--from", "1")
    assert (found["reason"], found["total"], found["from"]) == ("unknown-tool", 3, 1)
    (example,) = found["examples"]
    assert (example["stage"], example["source"], example["location"]) == ("filter", "calls", "calls.jsonl:10")
    assert example["messages"] == [CALL, CALL]
    assert example["tools"] == TOOLS
    assert example["evidence"].endswith("messages[1] calls get_rain; tools: get_weather")
    assert printed_json(project, "sft.inspect.rejected", "--reason", "nope", message="error: REASON=nope: ") is None


def test_a_stage_that_did_not_run_is_null_in_json(project):
    (project / "data/prepared/calls/rejected.jsonl").unlink()
    (project / "reports/filter/calls.json").unlink()
    filtered, prepared, _ = printed_json(project, "sft.inspect.rejected")
    assert (filtered["read"], filtered["rejected"]) == (None, 3)
    assert (prepared["read"], prepared["rejected"], prepared["reasons"]) == (7, None, {})


def test_pages_follow_one_another_through_all_stages_and_miss_nothing(project, capsys):
    whole = seen(capsys, "unknown-tool")
    pages = [seen(capsys, "unknown-tool", number=1, start=start) for start in range(3)]
    found = re.findall(r"^ *(?:id|location) (\S+)", whole, re.MULTILINE)
    assert found == re.findall(r"^ *(?:id|location) (\S+)", "".join(pages), re.MULTILINE)
    assert [place for place in found if "/" in place] == [f"data/raw/calls/calls.jsonl:{n}" for n in (8, 10, 7)]
    assert "FROM=" not in whole + pages[-1]


@pytest.mark.parametrize(("reason", "number"), [("template-refuses", 5), ("over-length", 6)])
def test_what_a_later_stage_rejected_is_shown_with_the_conversation_that_filter_kept(project, capsys, reason, number):
    out = seen(capsys, reason)
    assert f"data/raw/calls/calls.jsonl:{number}" in out
    assert f"Question {number}" in out


def test_without_a_source_all_sources_are_looked_through(project, capsys):
    with ShardWriter(project / "data/filtered/chats", "rejected", REJECTED) as rejected:
        rejected.write(filtered(1, [ASK], "unknown-tool", "messages[0]"))
    assert "chats" in seen(capsys, source=None)
    assert "example 3 of 4, from 0: chats, filter" in seen(capsys, "unknown-tool", source=None)


def test_an_example_whose_conversation_is_gone_says_so(project, capsys):
    with ShardWriter(project / "data/filtered/calls", "kept", CONVERSATIONS):
        pass
    assert "location not found in data/filtered/calls" in seen(capsys, "over-length")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": "nope"}, r"SOURCE=nope: .*data/filtered.*: calls"),
        (
            {"reason": "nope"},
            r"REASON=nope: .*: garbage \(1\), over-length \(1\), template-refuses \(1\), unknown-tool",
        ),
        ({"reason": "garbage", "start": 1}, r"FROM=1: garbage .* 1 rows"),
    ],
)
def test_what_is_not_there_says_what_is(project, arguments, message):
    with pytest.raises(InputError, match=message):
        main(**{"source": "calls", "reason": None, "number": 5, "start": 0, **arguments})


def test_before_filter_ran_the_command_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="make filter"):
        main(None, None, 5, 0)


def run_on_a_terminal(*arguments):
    """Run the module on a terminal with cat as its pager; return what the terminal gets."""
    controller, terminal = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(SRC), "TERM": "xterm-256color", "PAGER": "cat", "COLUMNS": "120"}
    environment.pop("NO_COLOR", None)
    command = [sys.executable, "-m", "sft.inspect.rejected", *arguments]
    with subprocess.Popen(command, env=environment, stdin=terminal, stdout=terminal, stderr=terminal) as process:
        os.close(terminal)
        output = b""
        while block := read_terminal(controller):
            output += block
    os.close(controller)
    assert process.returncode == 0, output
    return output.decode()


def read_terminal(controller):
    try:
        return os.read(controller, 65_536)
    except OSError:  # Linux says EIO once the other side is closed
        return b""


def test_hostile_text_reaches_neither_the_terminal_nor_a_pipe_as_it_came(project, capsys):
    on_terminal = run_on_a_terminal("--source", "calls", "--reason", "garbage")
    piped = seen(capsys, "garbage")
    assert COLORS.search(on_terminal)
    assert not COLORS.search(piped)
    for out in (COLORS.sub("", on_terminal).replace("\r\n", "\n"), piped):
        assert out.count("0;owned␇") == 2  # in the evidence, and where it occurs
        assert all(character.isprintable() or character == "\n" for character in out)


@pytest.mark.parametrize(
    ("evidence", "text", "marked"),
    [
        ("messages[1] list: 'openai' is not one of ['all']", "use OpenAI for all", ["OpenAI", "all"]),
        (
            "narrative: our_nation: 'our nation' in 'love our nation dearly'",
            "We love our  nation dearly",
            ["our  nation"],
        ),
        ('messages[2]: "it\'s over"', "so it's over.", ["it's over"]),
        ("'tab\\there'", "a tab\there", ["tab\there"]),
        ("the same 13 words: Alpha beta, gamma…", "x alpha BETA gamma", []),
        ("'Alpha beta, gamma…delta eps'", "x alpha BETA gamma. no delta eps", ["alpha BETA gamma", "delta eps"]),
        (
            "gsm: 92% of a.json:3 in messages[0]: 'seven hives. In spr ... mer: how many'",
            "Solve: Seven hives in spring and in summer - how many jars?",
            ["Seven hives in spr", "mer - how many"],
        ),
        ('{"reward": 0.0, "environment": "maze"}', "reward in the maze environment", []),
        ("'all'", "he calls", []),
        ("'}}'", "{{}}", ["}}"]),
        ("messages[1]", "messages of 1", []),
        ("''", "anything", []),
    ],
)
def test_what_the_evidence_quotes_is_found_in_the_text(evidence, text, marked):
    assert [text[start:end] for start, end in marks(text, quote_patterns(evidence))] == marked


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([ASK], [Part(0, "user", "Weather in Oslo?")]),
        ([CALL], [Part(0, "assistant", ""), Part(0, "calls", 'get_rain {"a": 1}')]),
        (
            [{"role": "assistant", "content": None, "reasoning_content": "hm", "loss": False}],
            [Part(0, "assistant", ""), Part(0, "thinks", "hm"), Part(0, "also", '{"loss": false}')],
        ),
        ([{"role": 3, "content": [{"text": "a"}]}], [Part(0, "3", '[{"text": "a"}]')]),
        ([{"content": "a", "tool_calls": "b"}], [Part(0, "no role", "a"), Part(0, "calls", "b")]),
        (["a", None], [Part(0, "message", "a"), Part(1, "message", "null")]),
        ({"raw": "{broken"}, [Part(0, "row", "{broken")]),
        ({"prompt": 1}, [Part(0, "row", '{"prompt": 1}')]),
    ],
)
def test_a_row_of_any_form_is_shown_with_all_that_is_in_it(messages, expected):
    assert parts(messages) == expected


@pytest.mark.parametrize(
    ("tools", "names"),
    [
        (TOOLS, "get_weather"),
        ([{"name": "a"}, {"name": "b"}], "a, b"),
        ([{"function": None}], '[{"function": null}]'),
        ({"a": 1}, '{"a": 1}'),
        (7, "7"),
    ],
)
def test_tools_are_named_or_shown_as_they_stand(tools, names):
    assert tool_names(tools) == names


def test_of_a_long_text_the_ends_and_what_is_marked_are_shown():
    assert shown_ranges(500, []) == [(0, 500)]
    assert shown_ranges(10_000, [(5_000, 5_010)]) == [(0, 160), (4_840, 5_170), (9_840, 10_000)]
    assert shown_ranges(10_000, [(100, 200)]) == [(0, 360), (9_840, 10_000)]


def test_what_is_left_out_of_a_long_conversation_is_counted(project, capsys):
    turns = [{"role": "user", "content": f"turn {n} " + "x" * 1_000} for n in range(20)]
    with ShardWriter(project / "data/filtered/calls", "rejected", REJECTED) as rejected:
        rejected.write(filtered(1, turns, "role-order", "messages[10]: 'turn 10'"))
    out = seen(capsys, "role-order")
    assert "⟦turn 10⟧" in out
    assert re.findall(r"⟨(\d+) parts left out⟩", out) == ["6", "5"]
    assert "turn 5 " not in out
    assert "characters left out⟩" in " ".join(out.split())
