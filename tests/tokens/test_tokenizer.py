"""Tokenizer: content never becomes structure, whatever is around it; segments add up to the whole."""

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft.tokens.tokenizer import Rendered, SafeTokenizer, Sample, guard_for, restore_guard
from tests.support.tiny_model import ADDED_TOKENS
from tests.support.tokenizers import REASONING_AND_TOOLS, plain_ids, write_tokenizer

GUARD = "\ue000"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return SafeTokenizer(write_tokenizer(tmp_path_factory.mktemp("tokenizer"), ADDED_TOKENS + REASONING_AND_TOOLS))


def encode(tokenizer, text, spans=(), guard=GUARD):
    (sample,) = tokenizer.encode([Rendered(text, list(spans), guard)])
    return sample


def controls(tokenizer, ids):
    return [tokenizer.decode([i]) for i in ids if i in tokenizer.control.values()]


# Texts of all kinds: letters that decompose, surrogate pairs, bidirectional marks, and segments of control tokens.
LETTERS = [
    "é",
    "e\u0301",
    "👩\u200d👧",
    "\u202e",
    "\ufeff",
    "\u00a0",
    "\r\n",
    "  ",
    "\x00",
    "İ",
    "ﬁ",
    "한",
    "\U0001d518",
]
PARTS = ["<", "<|", "|im_start|>", "im_end|>", "<|im_", "end|>", "_end", "|>", "<think", "think>", "/think", ">"]
nasty = st.lists(
    st.one_of(
        st.text(max_size=8),
        st.sampled_from([*LETTERS, "\uff1c|im_end|\uff1e"]),
        st.sampled_from([*ADDED_TOKENS, *REASONING_AND_TOOLS]),
        st.sampled_from(PARTS),
    ),
    max_size=6,
).map("".join)
# Text around content in templates.
BRACKETS = [("", ""), ("<", ">"), ("</", ">"), ("<|", "|>"), ("<parameter=", ">"), ("\n<", ">\n")]
around = st.sampled_from([*BRACKETS, ("<|im_start|>user\n", "<|im_end|>")])


@settings(max_examples=400)
@given(st.lists(st.tuples(around, nasty), min_size=1, max_size=4))
def test_only_what_the_template_wrote_is_structure(tokenizer, pairs):
    guard = guard_for([text for _, text in pairs])
    written = "".join(before + tokenizer.shield(text, guard) + after for (before, after), text in pairs)
    ids = encode(tokenizer, written, guard=guard).ids
    written_controls = [
        token for (before, after), _ in pairs for token in ("<|im_start|>", "<|im_end|>") if token in before + after
    ]
    assert controls(tokenizer, ids) == written_controls
    assert tokenizer.decode(ids) == "".join(before + text + after for (before, after), text in pairs)


@settings(max_examples=400)
@given(st.lists(nasty, min_size=1, max_size=4))
def test_ordinary_text_gets_the_ids_of_the_plain_tokenizer(tokenizer, texts):
    texts = [text for text in texts if not any(token in text for token in tokenizer.control)]
    written = "".join(f"<|im_start|>user\n {text}\n<|im_end|>" for text in texts)
    assert encode(tokenizer, written).ids == plain_ids(tokenizer, written)


@pytest.mark.parametrize(
    ("before", "text", "after"),
    [
        ("<", "|im_end|", ">"),
        ("<|", "im_end", "|>"),
        ("<parameter=", "a<|im_end|", ">"),
        ("<", "|im_end|> and more", ">"),
        ("</", "think", ">"),
        ("<", "/think", ">"),
        ("<", " think ", ">"),
        ("<function=", "f></function><think", ">"),
    ],
)
def test_brackets_of_the_template_do_not_complete_a_part_of_a_control_token(tokenizer, before, text, after):
    assert controls(tokenizer, encode(tokenizer, before + text.strip() + after).ids), "unshielded it would be one"
    shielded = tokenizer.shield({"key": [text]}, GUARD)["key"][0]
    assert controls(tokenizer, encode(tokenizer, before + shielded.strip() + after).ids) == []
    assert shielded.replace(GUARD, "") == text


WRITERS = {
    "json": lambda value: json.dumps(value, ensure_ascii=False),
    "ascii": json.dumps,
    "repr": repr,
}


@pytest.mark.parametrize("text", ["<|im_end|>", "a\\", "\\\\", ""])
@pytest.mark.parametrize("writers", [w for n in (1, 2, 3) for w in itertools.product(WRITERS, repeat=n)], ids="-".join)
def test_a_guard_that_is_written_as_an_escape_is_no_part_of_the_text(writers, text):
    guarded, plain = [text + GUARD + "<"], [text + "<"]
    for writer in writers:
        guarded, plain = WRITERS[writer](guarded), WRITERS[writer](plain)
    assert restore_guard(guarded, GUARD).replace(GUARD, "") == plain


def test_only_escapes_of_the_guard_are_restored_and_long_runs_of_backslashes_take_no_time():
    text = "value000 \\ue001 \\uE000 ue000 " + "\\" * 200_000
    assert restore_guard(text, "\ue000") == text


def test_a_guard_is_in_the_text_neither_as_it_is_nor_as_an_escape():
    assert guard_for(["a", {"b": "c"}]) == "\ue000"
    assert guard_for(["\ue000", {r"\ue001": "\ue002"}]) == "\ue003"
    assert guard_for(["\ue000", {r"\ue001": 1 << 70}]) == "\ue002"


def test_keys_that_templates_look_up_are_unchanged_and_all_others_are_shielded(tokenizer):
    value = {"function": {"name": "<think>", "|im_end|": 1, "ordinary": None}}
    assert tokenizer.shield(value, "?") == {"function": {"name": "<?think>", "?|im_end|": 1, "ordinary": None}}


def test_blanks_that_are_added_tokens_stay_text_with_their_own_id(tmp_path):
    tokenizer = SafeTokenizer(write_tokenizer(tmp_path, (*ADDED_TOKENS, "    ")))
    ids = encode(tokenizer, "a" + tokenizer.shield("    ", GUARD) + "b").ids
    assert ids == plain_ids(tokenizer, "a    b")
    assert plain_ids(tokenizer, "    ")[0] in ids
    assert "    " not in tokenizer.control


def test_the_mask_marks_the_spans_and_turn_ends_are_behind_their_stop_tokens(tokenizer):
    text = "<|im_start|>a<|im_end|>\n<|im_start|>b<|im_end|>\n"
    first, second = text.index("a<"), text.index("b<")
    spans = [(first, first + 11), (second, second + 11)]
    assert [text[start:end] for start, end in spans] == ["a<|im_end|>", "b<|im_end|>"]
    sample = encode(tokenizer, text, spans)
    assert sample.mask == [0, 1, 1, 0, 0, 1, 1, 0]
    assert sample.turn_ends == [3, 7]


def test_positions_count_without_guards(tokenizer):
    shielded = tokenizer.shield("<|im_end|>", GUARD)
    text = f"{shielded}<|im_start|>{shielded}<|im_end|>"
    start = text.index("<|im_start|>") + len("<|im_start|>")
    sample = encode(tokenizer, text, [(start, len(text))])
    trained = [i for i, kept in zip(sample.ids, sample.mask, strict=True) if kept]
    assert tokenizer.decode(trained) == "<|im_end|><|im_end|>"
    assert sample.turn_ends == [len(sample.ids)]


def test_a_token_that_is_part_prompt_and_part_answer_is_rejected(tokenizer):
    (token,) = tokenizer.token_ranges(" the")
    rejection = encode(tokenizer, " the", [(2, 4)])
    assert (token, rejection.reason) == ((0, 4), "token-crosses-mask")


def test_a_batch_gives_what_each_gives_alone(tokenizer):
    batch = [Rendered(f"<|im_start|>{'word ' * n}<|im_end|>", [(12, 22 + 5 * n)], GUARD) for n in range(1, 4)]
    together = tokenizer.encode(batch)
    assert all(isinstance(sample, Sample) for sample in together)
    assert together == [tokenizer.encode([rendered])[0] for rendered in batch]
