"""held_out: which conversations are measured, and what is wrong with their data."""

import shutil

import pytest

from sft.cli import InputError
from sft.evaluation import held_out
from sft.parquet import CONVERSATIONS, ShardWriter
from sft.stages import eval as stage
from sft.tokens.render import ChatTemplate
from tests.support.held_out_project import CHATS, PARAMS, chat_messages, row, write_project


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_conversations_with_the_same_question_are_one_group(project):
    again = [row(f"again-{n}", chat_messages(0)) for n in range(3)]
    named = [{**row(f"named-{n}", chat_messages(n)), "meta": '{"group":"book"}'} for n in range(10, 12)]
    write_project(project, {"sums": ("mathematics", [CHATS[0], *again, *named])})
    metadata, _ = stage.find_inputs()
    final = project / "models" / "final"
    chat = ChatTemplate.load(str(final / "chat_template.jinja"), final)
    groups = held_out.choose_held_out(metadata, PARAMS, chat).groups
    assert len(groups) == 6
    assert len(set(groups.values())) == 2


def test_data_that_does_not_belong_together_is_an_error(project):
    write_project(project, {"sums": ("mathematics", CHATS), "empty": ("none", [])})
    metadata, _ = stage.find_inputs()
    final = project / "models" / "final"
    chat = ChatTemplate.load(str(final / "chat_template.jinja"), final)

    shutil.rmtree(project / "data" / "filtered" / "sums")
    with ShardWriter(project / "data" / "filtered" / "sums", "kept", CONVERSATIONS) as kept:
        kept.write(CHATS[0])
    with pytest.raises(InputError, match=r"data/filtered/sums: 4 .*chat-1"):
        held_out.choose_held_out(metadata, PARAMS, chat)

    for split in held_out.SPLITS:
        shutil.rmtree(project / "data" / "packed" / split)
    with pytest.raises(InputError, match=r"data/packed: .*pack\.validation"):
        held_out.choose_held_out(metadata, PARAMS, chat)
