"""models/final as GGUF: the tokens and answers of llama.cpp are those of transformers.

The converter and llama.cpp are installed beside .venv (requirements/gguf.txt, pinned by digest): they bring a gguf of
their own. Without them the test is skipped, except in CI. The model
is tiny, and models/final where `make repro` has run.
"""

import json
import os
import subprocess
import sys

import pytest
from transformers import AutoTokenizer

from sft.evaluation.generate import generate, load_model
from sft.sources.base_model import make_base
from tests.sources.test_base_model import gguf, published  # noqa: F401
from tests.support.beside import ROOT, install_beside

# The converter knows tokenizers by the ids that they give a text; that of the tiny model is none of them.
CONVERT = """
import sys
from conversion import base
import convert_hf_to_gguf
_, model, target, tokenizer = sys.argv
if tokenizer:
    base.TextModel.get_vocab_base_pre = lambda *_: tokenizer
sys.argv[1:] = [model, "--outfile", target, "--outtype", "f32"]
convert_hf_to_gguf.main()
"""
ANSWER = """
import json, sys
import xllamacpp
_, model, asked, answered, most = sys.argv
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel = model, 1024, 1
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
server = xllamacpp.Server(params)
limits = {"max_tokens": int(most), "temperature": 0, "cache_prompt": False}
texts = [server.handle_completions({"prompt": ids, **limits})["choices"][0]["text"] for ids in json.load(open(asked))]
json.dump(texts, open(answered, "w"))
"""
FINAL = ROOT / "models/final"
MAX_NEW_TOKENS = 24
QUESTIONS = ["What is the weather in Paris?", "Call a tool.", "Wie ist das Wetter? 東京 \U0001f600", "a"]


@pytest.fixture(scope="module")
def beside(tmp_path_factory):
    return install_beside("gguf.txt", tmp_path_factory.mktemp("gguf") / "packages")


def run(beside, program, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(beside), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def texts_of_both(beside, folder, prompts, tokenizer_name, work):
    """What llama.cpp and transformers answer to token ids."""
    run(beside, CONVERT, folder, work / "model.gguf", tokenizer_name)
    (work / "prompts.json").write_text(json.dumps(prompts))
    run(beside, ANSWER, work / "model.gguf", work / "prompts.json", work / "answers.json", MAX_NEW_TOKENS)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    limits = {"stop_ids": [tokenizer.eos_token_id], "max_new_tokens": MAX_NEW_TOKENS, "batch_size": 4}
    answers = generate(load_model(folder), prompts, **limits)
    return json.loads((work / "answers.json").read_text()), [
        tokenizer.decode(ids, skip_special_tokens=True) for ids in answers
    ]


def vary_answers(folder):
    """Make the weights of a tiny model larger: its answers then are of many tokens, and do not hang on rounding."""
    model = load_model(folder)
    for weights in model.parameters():
        weights.data *= 30 if weights.ndim > 1 else 1
    model.save_pretrained(folder)


def test_llama_cpp_answers_as_transformers(beside, gguf, tmp_path):  # noqa: F811
    folder = tmp_path / "model"
    folder.mkdir()
    make_base(gguf, folder)  # as fetch-model writes the default base model
    vary_answers(folder)
    prompts = [AutoTokenizer.from_pretrained(folder)(question)["input_ids"] for question in QUESTIONS]
    found, expected = texts_of_both(beside, folder, prompts, "smollm", tmp_path)
    assert found == expected
    assert any(" " in text for text in expected), "else a faulty decoder does not show"


@pytest.mark.skipif(not (FINAL / "config.json").is_file(), reason="models/final is there after make repro")
def test_llama_cpp_answers_as_transformers_with_the_trained_model(beside, tmp_path):
    render = AutoTokenizer.from_pretrained(FINAL).apply_chat_template
    turns = [[{"role": "user", "content": question}] for question in QUESTIONS]
    prompts = [render(turn, add_generation_prompt=True, enable_thinking=False)["input_ids"] for turn in turns]
    found, expected = texts_of_both(beside, FINAL, prompts, "", tmp_path)
    assert found == expected
