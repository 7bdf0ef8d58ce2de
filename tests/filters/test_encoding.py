"""Encoding: garbage is found in every text, and valid text is never garbage."""

# ruff: noqa: RUF001 (characters that look like others are what these tests are about)
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft.filters.encoding import find_garbage, valid_text

# Words of many languages; each is valid text.
WORDS = (
    "L'été dernier, où êtes-vous allés ? « Ça va » – œuvre, maïs, Noël, 20 °C, 5 £, ½, ¿Qué? ¡Sí! ÑANDÚ señor "
    "Übergröße Straße ÄÖÜ „Anführung“ È così, perché più NÃO SÃO IRMÃ CORAÇÃO ÂNGELO “LÔ Ångström smørrebrød ÆØÅ "
    "þórður Ðakovo İstanbul ağaç Łódź żółw čeština őrült Приветствие Ёжик Україна Ελληνικά שלום عربي فارسی हिन्दी "
    "ไทย 한국어 日本語 中文，标点。 ä½ â† ∀x∈ℝ: x² ≥ 0 · ± Â² → ✓ 😀 👩‍👩‍👧 🏴󠁧󠁢󠁥󠁮󠁧󠁿 e\u0301 \u200e\u2067(\u2069"
).split(" ")


def garbage(text: str) -> str:
    return find_garbage([("here", text)], [])


@given(st.lists(st.sampled_from(WORDS), min_size=1, max_size=8), st.sampled_from([" ", "\n", "\u00a0", ", ", "-"]))
def test_words_of_any_language_are_no_garbage(words: list[str], between: str) -> None:
    if between == "\u00a0":  # which makes mojibake of these: of ↠ and 你
        words = [word for word in words if word not in ("â†", "ä½")]
    assert garbage(between.join(words)) == ""


MEANT = [
    "é",
    "ü",
    "ñ",
    "ç",
    "É",
    "°",
    "£",
    "’",
    "“",
    "”",
    "–",
    "…",
    "•",
    "→",
    "✓",
    "😀",
    "👍",
    "Привет",
    "你好",
    "日本語",
]


@pytest.mark.parametrize("meant", MEANT)
@pytest.mark.parametrize("times", [1, 2])
def test_utf8_read_as_windows_1252_is_found_and_repaired_in_the_evidence(meant: str, times: int) -> None:
    broken = meant
    for _ in range(times):
        read = [bytes([byte]).decode("cp1252", "ignore") or chr(byte) for byte in broken.encode()]
        broken = "".join(read)
    assert garbage(f"a {broken} b").startswith("here: ")
    is_lost = any("\x80" <= sign <= "\x9f" for sign in broken)  # a byte that Windows-1252 has no sign for
    if times == 1 and not is_lost:
        assert f"for {meant[0]!r}"[:-1] in garbage(f"a {broken} b")


def test_utf8_read_as_latin_1_leaves_control_characters() -> None:
    assert garbage("It’s".encode().decode("latin-1")).startswith("here: U+0080")


def test_text_about_broken_text_is_no_garbage() -> None:
    assert garbage("It shows cafÃ© where café should stand.") == ""
    assert find_garbage([("a", "Why cafÃ©?"), ("b", "Because é was read wrongly.")], []) == ""
    assert find_garbage([("a", "Why cafÃ©?"), ("b", "Because it was read wrongly.")], []) != ""


@pytest.mark.parametrize("text", ["\x1b[31mred\x1b[0m\x07", "\ufffd\ufffdELF\x7f", "\x03", "cafÃ©"])
def test_machines_may_write_what_people_do_not(text: str) -> None:
    assert find_garbage([], [("result", text)]) == ""


@pytest.mark.parametrize("text", ["a\x00", "\ud800", "\uffff", "\u202e", "\u200b\u200c\u200b"])
def test_hidden_characters_are_found_everywhere(text: str) -> None:
    assert garbage(text).startswith(f"here: U+{ord(text.strip('a')[0]):04X}")
    assert find_garbage([], [("result", text)]).startswith("result: U+")


@given(st.text(alphabet=st.characters(codec="utf-8", exclude_categories=["Cc", "Cn", "Co"]), max_size=30))
def test_no_text_makes_the_search_fail(text: str) -> None:
    assert isinstance(garbage(text), str)


def test_text_that_utf8_cannot_hold_is_escaped():
    assert (valid_text("\ud800 é"), valid_text("plain")) == ("\\ud800 é", "plain")
