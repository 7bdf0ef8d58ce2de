"""served: answers of an endpoint are those that transformers would give, in the same form."""

import json
import time

import pytest
from tokenizers import Tokenizer

from sft.cli import InputError
from sft.evaluation import measure, served
from sft.evaluation.prompts import Prompt
from tests.support.eval_params import eval_params
from tests.support.scripted_endpoint import scripted_endpoint
from tests.support.tiny_model import EOS, make_tiny_base, save_tokenizer

MODEL = "models/final"
KEY = "sk-very-secret"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setenv("SFT_EVAL_API_KEY", KEY)
    monkeypatch.setattr(served, "BACKOFF_S", 0.001)
    return tmp_path


def serving(*models, text="The sum", finish="stop"):
    """Return an answer that lists models and completes each prompt with a text and the number of its tokens."""

    def answer(path, body):
        if path == "models":
            return 200, {"object": "list", "data": [{"id": name} for name in models]}
        assert path == "completions"
        return 200, {"choices": [{"text": f"{text} {len(body['prompt'])}", "finish_reason": finish}]}

    return answer


def completing(choices, **more):
    """Return an answer that completes each prompt with these choices."""
    return lambda path, body: serving(MODEL)(path, body) if path == "models" else (200, {"choices": choices, **more})


def generate(prompts, **limits):
    return served.generate(served.find_endpoints(MODEL), MODEL, prompts, **{"stop_ids": [EOS, 1], **limits})


def test_prompts_are_spread_over_the_endpoints_that_serve_the_model(folder, monkeypatch):
    save_tokenizer(folder / MODEL)
    encode = Tokenizer.from_file(f"{MODEL}/tokenizer.json").encode
    prompts = [[5] * length for length in range(1, 9)]
    with (
        scripted_endpoint(serving("models/base")) as other,
        scripted_endpoint(serving(MODEL)) as one,
        scripted_endpoint(serving(MODEL, "models/base")) as two,
    ):
        monkeypatch.setenv("SFT_EVAL_URL", f"{other.url} {one.url}/\n{two.url}")
        answers = generate(prompts, max_new_tokens=7)
    assert answers == [[*encode(f"The sum {len(prompt)}").ids, EOS] for prompt in prompts]
    assert [path for path, _ in other.requests] == ["models"]
    asked = [sorted(len(body["prompt"]) for path, body in each.requests if body) for each in (one, two)]
    assert asked == [[1, 3, 5, 7], [2, 4, 6, 8]]
    assert set(one.keys) == {f"Bearer {KEY}"}
    assert {key: one.requests[-1][1][key] for key in ("model", "max_tokens", "temperature", "stop_token_ids")} == {
        "model": MODEL,
        "max_tokens": 7,
        "temperature": 0,
        "stop_token_ids": [EOS, 1],
    }


def test_an_answer_that_was_cut_has_no_stop_token_and_one_with_a_stop_token_ends_there(folder, monkeypatch):
    save_tokenizer(folder / MODEL)
    encode = Tokenizer.from_file(f"{MODEL}/tokenizer.json").encode
    with scripted_endpoint(serving(MODEL, finish="length")) as endpoint:
        monkeypatch.setenv("SFT_EVAL_URL", endpoint.url)
        assert generate([[5]], max_new_tokens=7) == [encode("The sum 1").ids]
        endpoint.answer = serving(MODEL, text="The sum<|im_end|>more", finish="length")
        assert generate([[5]], max_new_tokens=7) == [[*encode("The sum").ids, EOS]]


def test_an_endpoint_that_is_busy_is_asked_again(folder, monkeypatch):
    save_tokenizer(folder / MODEL)
    left = [503, 429, 500]
    with scripted_endpoint(lambda *asked: (left.pop(), "busy") if left else serving(MODEL)(*asked)) as endpoint:
        monkeypatch.setenv("SFT_EVAL_URL", endpoint.url)
        assert len(generate([[5]], max_new_tokens=7)) == 1
    assert len(endpoint.requests) == 5


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (serving("another"), r"none of 1 endpoints serves models/final; they serve another"),
        (lambda *_: (401, f"no {KEY}"), r"status 401: no \*\*\*"),
        (lambda *_: (200, "<html>"), r"status 200: <html>"),
        (lambda *_: (503, "busy"), r"status 503: busy"),
        (lambda *_: (200, "[" * 100_000), r"endpoint 1 of 1 replies status 200"),
        (lambda *_: (200, {"data": 5}), r"they serve nothing"),
        (completing([]), r"choices\[0\]"),
        (completing({"text": "x"}), r"choices\[0\]"),
        (completing([None]), r"choices\[0\]"),
        (completing([{"text": "x", "finish_reason": "abort"}]), r"finish_reason"),
        (completing([{"text": "\x1b[2Jx", "finish_reason": KEY}]), r"\*\*\*"),
        (
            completing([{"text": "x", "finish_reason": "length"}], usage={"completion_tokens": 3}),
            r"cut an answer after 3 tokens, expected 7",
        ),
    ],
)
def test_what_is_wrong_with_an_endpoint_is_named_without_its_url_and_key(folder, monkeypatch, answer, expected):
    save_tokenizer(folder / MODEL)
    with scripted_endpoint(answer) as endpoint:
        monkeypatch.setenv("SFT_EVAL_URL", endpoint.url)
        with pytest.raises(InputError, match=rf"^SFT_EVAL_URL: .*{expected}") as error:
            generate([[5]], max_new_tokens=7)
    assert str(endpoint.server_port) not in str(error.value)
    assert KEY not in str(error.value)
    assert str(error.value).isprintable()


def test_an_endpoint_that_dies_leaves_its_prompts_to_the_others(folder, monkeypatch):
    save_tokenizer(folder / MODEL)
    with scripted_endpoint(serving(MODEL)) as one, scripted_endpoint(serving(MODEL)) as two:
        monkeypatch.setenv("SFT_EVAL_URL", f"{one.url} {two.url}")
        servers = served.find_endpoints(MODEL)
        two.answer = lambda *_: (502, "gone")
        prompts = [[5] * length for length in range(1, 5)]
        answers = served.generate(servers, MODEL, prompts, stop_ids=[EOS], max_new_tokens=7)
    assert [answer[-1] for answer in answers] == [EOS] * 4
    assert sorted(len(body["prompt"]) for _, body in one.requests if body) == [1, 2, 3, 4]


def test_an_endpoint_cannot_ask_for_a_pause_of_years(folder, monkeypatch):
    monkeypatch.setattr(served, "pause_s", lambda *_: 1e9)
    monkeypatch.setattr(served, "MAX_PAUSE_S", 0.001)
    with scripted_endpoint(lambda *_: (429, "busy")) as endpoint:
        monkeypatch.setenv("SFT_EVAL_URL", endpoint.url)
        with pytest.raises(InputError, match=r"status 429"):
            served.find_endpoints(MODEL)
    assert len(endpoint.requests) == served.ATTEMPTS


def test_a_fault_ends_the_other_requests_without_their_pauses(folder, monkeypatch):
    save_tokenizer(folder / MODEL)
    monkeypatch.setattr(served, "BACKOFF_S", 60)

    def answer(path, body):
        if path == "models":
            return serving(MODEL)(path, body)
        return (401, "no") if len(body["prompt"]) == 1 else (503, "busy")

    with scripted_endpoint(answer) as endpoint:
        monkeypatch.setenv("SFT_EVAL_URL", endpoint.url)
        began = time.monotonic()
        with pytest.raises(InputError, match=r"status 401"):
            generate([[5], [5, 5]], max_new_tokens=7)
    assert time.monotonic() - began < 20


@pytest.mark.parametrize(("text", "shown"), [("\ud800", "\ufffd"), ("\ud83d\ude00", "\U0001f600")])
def test_an_answer_that_is_no_unicode_text_is_read_as_transformers_decodes_it(folder, monkeypatch, text, shown):
    save_tokenizer(folder / MODEL)
    encode = Tokenizer.from_file(f"{MODEL}/tokenizer.json").encode
    with scripted_endpoint(completing([{"text": text, "finish_reason": "stop"}])) as endpoint:
        monkeypatch.setenv("SFT_EVAL_URL", endpoint.url)
        assert generate([[5]], max_new_tokens=7) == [[*encode(shown).ids, EOS]]


def test_both_models_are_measured_with_answers_of_an_endpoint(folder, monkeypatch):
    for name in ("base", "final"):
        make_tiny_base(folder / "models" / name)
        (folder / "models" / name / "README.md").write_text(name)
    params = eval_params(4, engine="endpoint")
    prompts = [Prompt("r", "chat", "s", "c", "?", False, [5, 6], [], {})]
    base, final = (measure.Path("models", name) for name in ("base", "final"))
    monkeypatch.setenv("SFT_WORKERS", "1")
    monkeypatch.delenv("SFT_EVAL_URL", raising=False)
    with pytest.raises(InputError, match=r"^SFT_EVAL_URL: not set"):
        measure.measure_models(base, final, [], prompts, [EOS], params)
    with scripted_endpoint(serving("models/base", "models/final")) as endpoint:
        monkeypatch.setenv("SFT_EVAL_URL", endpoint.url)
        for _ in range(2):
            before, after = measure.measure_models(base, final, [], prompts, [EOS], params)
    assert before.answers == after.answers
    assert before.answers[0][-1] == EOS
    asked = [body["model"] for _, body in endpoint.requests if body]
    assert asked == ["models/base", "models/final", "models/final"], "what it serves as models/final may have changed"
    assert {json.dumps(body["model"]) for _, body in endpoint.requests if body} == {'"models/base"', '"models/final"'}
