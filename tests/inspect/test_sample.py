"""sample: a pack on the terminal and as a page."""

import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from sft.cli import InputError
from sft.inspect import sample as view
from sft.inspect.packs import PackedSample, Piece, ShownPack
from sft.inspect.sample import lines, page, show
from sft.inspect.terminal import Screen

HOSTILE = "<script>alert(1)</script>&\"'\x1b[31m\x9b2J⟦</div></details><img src=x onerror=alert(1)>\n"
COLORS = re.compile(r"\x1b\[[0-9;]*m")


def piece(first, text, is_trained=False, is_control=False, tokens=1):
    return Piece(first, list(range(500, 500 + tokens)), text, is_trained, is_control)


def shown(source="calls", texts=HOSTILE, is_selected=True, start=0):
    cut = [
        piece(start, "<|im_start|>", is_control=True),
        piece(start + 1, f"user\n{texts}"),
        piece(start + 2, "yes no", is_trained=True),
        piece(start + 3, " ⟩", is_trained=True, tokens=3),
        piece(start + 6, "<|im_end|>", is_trained=True, is_control=True),
        piece(start + 7, "\n"),
    ]
    return PackedSample(source, "abc:0", start, 8, 5, cut, is_selected)


PACK = [shown(), shown(texts="", is_selected=False, start=8), shown(texts="", start=16)]


def printed(capsys, pack=PACK):
    show(Screen(), f"title {HOSTILE}", pack)
    return capsys.readouterr().out


@pytest.fixture
def in_color(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm-256color", "COLUMNS": "60", "COLORTERM": ""}.items():
        monkeypatch.setenv(name, value)


def test_without_color_trained_text_is_in_brackets_and_each_line_has_its_positions(capsys):
    rows = printed(capsys).splitlines()
    third = next(index for index, row in enumerate(rows) if row.startswith("── sample 3 of 3, calls abc:0"))
    assert rows[third + 1 : third + 3] == [
        "    16     0 │ ⟨<|im_start|>⟩user⏎",
        "    18     2 │ ⟦yes·no·⟨U+27E9⟩⟨<|im_end|>⟩⟧⏎",
    ]


def test_every_boundary_is_shown_and_the_tokens_of_selected_samples_only(capsys):
    out = printed(capsys)
    assert [row[:25] for row in out.splitlines() if row[0] in "═─"] == [
        "══ start of the pack; in ",
        "── sample 1 of 3, calls a",
        "── sample 2 of 3, calls a",
        "── sample 3 of 3, calls a",
        "══ end of the pack ══════",
    ]
    assert "positions 8 to 15, 8 tokens, 5 trained (62.5%), not shown" in out
    assert "\n     8     0 │" not in out


def test_with_color_the_mask_is_in_the_colors_and_tokens_alternate(capsys, in_color):
    out = printed(capsys)
    assert "⟦" not in COLORS.sub("", out).replace("⟨U+27E6⟩", "")
    before, after = re.search(r"(\x1b\[[0-9;]*m)yes·no\x1b\[0m(\x1b\[[0-9;]*m)·⟨U\+27E9⟩", out).groups()
    (prompt,) = set(re.findall(r"(\x1b\[[0-9;]*m)user⏎", out))
    assert len({before, after, prompt}) == 3
    assert "48;" in before  # a background, as in all that is trained
    assert "48;" in after
    assert "48;" not in prompt


def test_no_color_on_a_terminal_brings_the_brackets_back(capsys, in_color, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    assert "⟦yes·no" in COLORS.sub("", printed(capsys))


def test_nothing_from_the_data_acts_on_the_terminal(capsys, in_color):
    rest = COLORS.sub("", printed(capsys, [shown(source=HOSTILE)]))
    assert "␛[31m" in rest
    assert all(character.isprintable() or character == "\n" for character in rest)


@given(
    texts=st.lists(st.text("ab 🦊\n漢\x1b", min_size=1, max_size=30), max_size=20),
    width=st.integers(2, 20),
)
def test_lines_hold_all_the_text_in_order_and_are_never_too_wide(texts, width):
    cut = [piece(position, text) for position, text in enumerate(texts)]
    laid = list(lines(cut, width))
    assert all(sum(cell_len(chunk.text) for chunk in line) <= width for line in laid)
    assert all(line for line in laid)
    everything = "".join(chunk.text for line in laid for chunk in line)
    assert everything == "".join(texts).replace(" ", "·").replace("\n", "⏎").replace("\x1b", "␛")
    assert all("⏎" not in chunk.text[:-1] for line in laid for chunk in line)


class Elements(HTMLParser):
    """Which elements a browser would see, whether all of them close, and what they refer to."""

    def __init__(self, text):
        super().__init__()
        self.open, self.seen, self.tips, self.references = [], set(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.seen.add(tag)
        self.tips += [value for name, value in attrs if name == "title"]
        self.references += [value for name, value in attrs if name in ("src", "href") or name.startswith("on")]
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_stands_alone_and_hostile_text_stays_text():
    text = page(f"title {HOSTILE}", [shown(source=HOSTILE)])
    elements = Elements(text)
    assert text.count("&lt;script&gt;") == 3
    assert elements.seen.isdisjoint({"script", "img", "link", "iframe"})
    assert (elements.references, elements.open) == ([], [])
    assert "http" not in text
    assert "@import" not in text
    assert "\x1b" not in text
    assert "prefers-color-scheme: dark" in text


def test_the_page_says_what_each_token_is_and_opens_the_selected_samples():
    text = page("title", PACK)
    tips = Elements(text).tips
    assert len(tips) == len([chunk for one in PACK for line in lines(one.pieces, None) for chunk in line])
    assert "token 18 (2 in the sample), id 500, trained" in tips
    assert "tokens 19 to 21 (3 in the sample), id 500, 501, 502, trained" in tips
    assert "token 17 (1 in the sample), id 500, not trained" in tips
    assert (text.count("<details"), text.count(" open>")) == (3, 2)
    assert '<div data-at="16">' in text
    assert text == page("title", PACK)


def test_the_page_is_written_and_the_summary_is_printed(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(view, "unpack", lambda name: ShownPack("training", 3, 8, f"about {name}", PACK))
    view.main("3", tmp_path / "new/page.html")
    assert (tmp_path / "new/page.html").read_text() == page("about 3", PACK)
    assert capsys.readouterr().out.startswith("about 3\n-> ")
    view.main("3", None)
    assert capsys.readouterr().out.startswith("about 3\n══ start of the pack")


def test_a_missing_pack_names_the_command(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="make pack"):
        view.main("0", None)
