"""report: the page of an evaluation."""

import re
from html.parser import HTMLParser

from rich.console import Console

from sft.pages.report import SHARES, page, table

HOSTILE = "<script>alert(1)</script>&\"'</pre></details><img src=x onerror=alert(1)>"


ACC = {"before": 0.25, "after": 0.5, "interval": {"low": 0.4, "high": 0.6}, "better": 9, "worse": 4}
ACC |= {"uncontaminated": 0.45}


def measured(loss, shares):
    return {
        "loss": loss,
        "perplexity": 2.0,
        "loss_by_domain": {"chat": loss, HOSTILE: 1.0},
        "rule_language": shares,
        "rule_math": None,
        **dict.fromkeys(SHARES, shares),
        "intervals": {} if shares is None else {name: {"low": 0.25, "high": 0.75} for name in SHARES},
    }


def evaluation(share=0.5):
    told = {"change": -1.25, "low": -1.5, "high": -1.0, "conversations": 12}
    too_few = {"change": 0.0, "low": None, "high": None, "conversations": 2}
    counts = {} if share is None else {name: {"better": 3, "worse": 1, "p": 0.625} for name in SHARES}
    return {
        "change": {"loss": told, "loss_by_domain": {"chat": told, HOSTILE: too_few}, **counts},
        "gate": {"passed": False, "failures": [f"loss, {HOSTILE}"], "undecided": ["too few of chat"]},
        "before": measured(2.5, share),
        "after": measured(1.25, share),
        "tool_prompts": 1,
        "chat_prompts": 1,
        "prompts_left_out": {"over-length": 3},
        "samples_by_domain": {"chat": 8, HOSTILE: 8},
        "tokens": 12_345,
        "tasks": {
            HOSTILE: {"items": 1_319, "contaminated": 7, "metrics": {"acc": ACC, "bleu": {"before": 2, "after": 3}}}
        },
    }


def answer(kind, text):
    graded = {"text": text, "stopped": True, "think_balanced": True, "rules": {"language": False, "refusal": True}}
    if kind == "tool":
        claims = ("well_formed", "known_function", "fits", "exact")
        graded["verdict"] = {**dict.fromkeys(claims, False), "fault": "no-call"}
    calls = [{"function": {"name": HOSTILE, "arguments": {HOSTILE: HOSTILE}}}]
    reference = {"role": "assistant", "content": text, "tool_calls": calls}
    return {
        "kind": kind,
        "source": HOSTILE,
        "question": text,
        "reference": reference,
        "before": graded,
        "after": {**graded, "stopped": False},
    }


DOMAINS = {
    "chat": {"conversations": 3, "tokens": 400, "trained_tokens": 30},
    HOSTILE: {"conversations": 1, "tokens": 100, "trained_tokens": 10},
}

CURVE = [
    {"iteration": 1, "loss": 2.0},
    {"iteration": 2, "loss": 1.0, "validation_loss": 1.5},
    {"iteration": 3, "loss": 0.5},
]


class Elements(HTMLParser):
    """Which elements a browser would see, whether all of them close, and what refers elsewhere."""

    def __init__(self, text):
        super().__init__()
        self.open, self.seen, self.references = [], set(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.seen.add(tag)
        self.references += [value for name, value in attrs if name in ("src", "href") or name.startswith("on")]
        if tag not in ("meta", "rect", "line", "path", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_hostile_text_stays_text_everywhere():
    text = page(evaluation(), [answer("tool", HOSTILE), answer("chat", HOSTILE)], CURVE, HOSTILE, DOMAINS)
    elements = Elements(text)
    assert text.count("&lt;script&gt;") >= 10
    assert elements.seen.isdisjoint({"script", "img", "link", "iframe"})
    assert elements.references == []
    assert elements.open == []
    assert "http" not in text


def test_the_page_shows_before_and_after_and_every_count():
    text = page(evaluation(), [answer("tool", "What now?")], CURVE, "k3y", DOMAINS)
    for shown in (
        "2.500",
        "1.250",
        "12,345",
        "prompts left out: over-length",
        "k3y",
        "What now?",
        "no-call",
        "too few of chat",
        "0.40 to 0.60, +9 -4",
        "7 of 1,319 items in the training data; 0.450 without them",
        "not: language of the reference",
    ):
        assert shown in text
    assert "cut at max_new_tokens" in text


def test_what_was_not_measured_has_no_number():
    text = page(evaluation(share=None), [], [], "key", {})
    assert text.count("no prompts") == 2 * len(SHARES)
    assert "Loss while training" not in text
    assert "No prompts." in text


def test_a_curve_of_one_value_and_a_loss_of_zero_can_be_drawn():
    numbers = evaluation()
    for name in ("before", "after"):
        numbers[name]["loss_by_domain"] = {"chat": 0.0}
    text = page(numbers, [], [{"iteration": 5, "loss": 1.0}, {"iteration": 6, "loss": 1.0}], "key", {})
    assert "nan" not in text
    assert "Loss while training" in text


def test_a_single_validation_can_be_seen_and_steps_have_their_mean():
    curve = [{"iteration": step, "loss": float(step % 2)} for step in range(48)]
    text = page(evaluation(), [], [*curve, {"iteration": 48, "loss": 1.0, "validation_loss": 0.5}], "key", {})
    assert text.count("<circle") == 1
    heights = {
        name: {point.split()[1] for point in re.search(rf'<path class="{name}" d="M([^"]+)"', text)[1].split(" L")}
        for name in ("step", "after")
    }
    assert heights["step"] == {"14.0", "234.0"}
    assert "124.0" in heights["after"]


def test_a_long_answer_is_shortened_and_says_by_how_much():
    text = page(evaluation(), [answer("chat", "a" * 1_500)], CURVE, "key", {})
    assert "[300 more characters]" in text
    assert "a" * 1_201 not in text


def test_the_same_inputs_give_the_same_page():
    inputs = (evaluation(), [answer("tool", "a")], CURVE, "key", {})
    assert page(*inputs) == page(*inputs)


def test_all_fourteen_domains_have_a_row_and_other_domains_follow():
    text = page(evaluation(), [], [], "key", DOMAINS)
    rows = re.findall(r"<tr><td>(.*?)</td><td class=\"faint text\">(.*?)</td>(.*?)</tr>", text)
    assert len(rows) == 15
    cells = {name: re.findall(r"<td>(.*?)</td>", rest) for name, _, rest in rows}
    assert cells["General chat"] == ["3", "400", "30", "75.0%"]
    assert cells["Safety"] == ["-", "-", "-", "-"]
    assert all(described for _, described, _ in rows)
    assert list(cells)[-1].startswith("&lt;script&gt;")
    bars = re.findall(r'text-anchor="end">([^<]*)</text>', text.partition("Held-out loss by domain")[2])
    assert bars[0].startswith("&lt;script&gt;"), "its loss did not change; that of chat fell"
    assert bars[1] == "General chat"


def test_the_windows_of_samples_longer_than_a_pack_are_counted():
    windows = {"samples": 12, "windows": 345, "trained_tokens": 6789}
    text = page(evaluation(), [], [], "key", DOMAINS, windows)
    (line,) = re.findall(r"Longer than a pack:([^<]*)", text)
    assert re.findall(r"[\d,]+\d", line) == ["12", "345", "6,789"]
    assert "Longer than a pack" not in page(evaluation(), [], [], "key", DOMAINS, dict.fromkeys(windows, 0))


def test_failures_are_first_and_each_filter_shows_what_it_counts():
    fits = {"verdict": {**dict.fromkeys(("well_formed", "known_function", "fits"), True), "exact": False, "fault": "x"}}
    good, bad = answer("tool", "good one"), answer("tool", "bad one")
    good["after"] = {**good["before"], **fits}
    text = page(evaluation(), [good, bad, answer("chat", "cut one")], [], "key", {})
    shown = re.findall(r'<details class="([^"]*)".*?</span> (\w+) one', text, re.DOTALL)
    assert shown == [("all failed worse tool", "bad"), ("all failed worse chat", "cut"), ("all better tool", "good")]
    counts = {name: int(n) for name, n in re.findall(r'id="show-(\w+)"[^>]*>[^(]*\((\d+)\)', text)}
    assert counts == {"all": 3, "failed": 2, "worse": 2, "better": 1, "tool": 2, "chat": 1}


def test_answers_that_the_page_has_no_room_for_are_counted():
    text = page(evaluation(), [answer("chat", "a")] * 201, [], "key", {})
    assert text.count("<details") == 200
    assert "200 of 201 answers" in text


def test_the_table_shows_intervals_and_says_where_there_are_too_few():
    console = Console(width=140, record=True)
    console.print(table(evaluation()))
    text = console.export_text()
    assert re.search(r"loss, chat .* -1\.250 .* -1\.500 to -1\.000, n=12", text)
    assert "too few, n=2" in text
    assert re.search(r"exact .* 0\.25 to 0\.75, \+3 -1", text)
