"""blame: rows that contradict the others are at the top, with their lines."""

import json
import random
import re

import pytest
import torch
from transformers import AutoModelForCausalLM

from sft.cli import InputError
from sft.evaluation.measure import Measured
from sft.files import write_json
from sft.inspect import blame
from sft.parquet import CONVERSATIONS, ShardWriter
from tests.support.eval_params import eval_params
from tests.support.tiny_model import make_tiny_base, pack_samples, write_packs

ROWS, PLANTED, FIRST = 500, 10, 20  # with 5,000, 50 and 100 it holds too
STEPS, BATCH = 120, 64


def conversations(drawn):
    """Prompts whose answers count on from them; in planted rows the answer is drawn."""
    planted = set(drawn.sample(range(ROWS), PLANTED))
    for number in range(ROWS):
        prompt = [drawn.randrange(300, 380) for _ in range(3)]
        answer = [drawn.randrange(300, 390) if number in planted else prompt[-1] + step for step in range(1, 7)]
        yield number, number in planted, [*prompt, *answer, 2], [0] * 3 + [1] * 7


def train(folder, rows):
    """Train the model of a folder, in place."""
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(folder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    ids, mask = torch.tensor([row[2] for row in rows]), torch.tensor([row[3] for row in rows])
    labels = torch.where(mask > 0, ids, -100)
    for step in range(STEPS):
        at = torch.arange(step * BATCH, (step + 1) * BATCH) % len(rows)
        model(ids[at], labels=labels[at]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A trained model; ids of conversations with a planted fault."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("base", "final"):
        make_tiny_base(folder / "models" / name)
    rows = [*conversations(random.Random(3))]
    train(folder / "models/final", rows)
    packs = []
    with ShardWriter(folder / "data/filtered/sums", "kept", CONVERSATIONS) as kept:
        for number, _, ids, mask in rows:
            name = f"{number:032x}"
            samples = [
                {"ids": ids, "mask": mask, "conversation_id": name, "sample": 0, "source": "sums", "repeat": copy}
                for copy in range(1 + number % 2)
            ]
            packs.append(pack_samples(samples, multiple=1, pad_id=0))
            messages = [
                {"role": "user", "content": f"Go on from {number}"},
                {"role": "assistant", "content": "\x1b[2J"},
            ]
            meta = json.dumps({"location": f"part.jsonl:{number + 1}"})
            kept.write({"id": name, "messages": json.dumps(messages), "tools": None, "meta": meta})
    write_packs(folder / "data/packed/training", packs)
    write_json(folder / "data/packed/metadata.json", {"sources": {"sums": {}}})
    return folder, {f"{number:032x}" for number, is_planted, *_ in rows if is_planted}


@pytest.fixture
def here(project, monkeypatch):
    monkeypatch.chdir(project[0])
    monkeypatch.setenv("DVC_ROOT", str(project[0]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # waiting for a second thread takes longer than so small a model
    monkeypatch.setattr(blame, "load", lambda _: eval_params(1))
    return project[1]


def test_planted_rows_are_first_in_both_orders_with_their_lines(here, capsys):
    found = blame.find("training", 10 * ROWS, FIRST)
    for rows in (found.by_loss, found.by_change):
        assert len(here & {row.conversation_id for row in rows}) >= 0.9 * PLANTED
    worst = found.by_loss[0]
    assert worst.location == f"part.jsonl:{int(worst.conversation_id, 16) + 1}"
    assert (worst.tokens, found.measured, found.samples) == (7, ROWS, ROWS), "a copy is not measured again"
    assert worst.change == pytest.approx(worst.after - worst.before)

    blame.show(found)
    text = capsys.readouterr().out
    assert f"data/raw/sums/{worst.location}" in text
    assert f"make show PACK={worst.conversation_id[:12]}" in text
    assert "\x1b[2J" not in text


def test_of_a_large_split_some_rows_are_measured_and_measured_once(here, capsys, monkeypatch):
    found = blame.find("training", 8, 3)
    assert (found.measured, len(found.by_loss)) == (8, 3)
    blame.show(found)
    assert re.search(rf"8 of {ROWS:,} samples were measured; all: ROWS={ROWS}\n", capsys.readouterr().out)
    monkeypatch.setattr("sft.evaluation.measure.measure_shard", lambda task: pytest.fail("measured again"))
    again = blame.find("training", 8, 8)
    assert again.by_loss[:3] == found.by_loss


def test_rows_counts_windows_so_that_all_of_them_can_be_measured(here, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    losses = [(2.0, 1)]
    monkeypatch.setattr(
        blame, "measure_models", lambda base, final, kept, *_, **__: [Measured(losses * len(kept), [])] * 2
    )
    sample = {"ids": [5, 6], "mask": [0, 1], "conversation_id": "c", "sample": 0, "source": "sums", "repeat": 0}
    packs = [pack_samples([{**sample, "window": number} for number in (1, 2, 3)], multiple=1, pad_id=0)]
    write_packs(tmp_path / "data/packed/training", packs)
    write_json(tmp_path / "data/packed/metadata.json", {"sources": {"sums": {}}})
    for name, target in (("base", "fetch"), ("final", "train")):
        with pytest.raises(InputError, match=rf"^models/{name}: .*make {target}"):
            blame.measure_split("training", 2)
        write_json(tmp_path / "models" / name / "config.json", {})
    rows, samples, measured = blame.measure_split("training", 2)
    assert (len(rows), rows[0].tokens, samples, measured) == (1, 2, 3, 2)
    assert blame.measure_split("training", samples)[1:] == (3, 3)


def test_a_split_without_packs_and_packs_that_are_missing_are_named(here, monkeypatch, tmp_path):
    with pytest.raises(InputError, match=r"SPLIT=test: no samples"):
        blame.find("test", 8, 3)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"make pack"):
        blame.find("training", 8, 3)
