"""pin: what the hub states goes into the file, and nothing else changes."""

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sft.domains import BY_SLUG
from sft.experiments import pin
from sft.params.check import read
from sft.params.data import Read, Source
from tests.support.loopback_hub import COMMIT, Web, web
from tests.support.project import ROOT

__all__ = ["web"]
SOURCES = """  sources:
    # A comment that stays.
    chats:
      uri: hf://own/set@COMMIT-UNKNOWN/data  # and one behind a value
      read: openai
      license: unknown
      share: 0.5
    moved:
      # The branch is named.
      uri: hf://own/set@main/data/a.jsonl
      bytes: 5
      read: {format: openai, select: {used_in: [nano_v3]}}
      license: CC-BY-4.0
      share: 0.25
    pinned:
      uri: hf://own/set@COMMIT/data/b.jsonl
      read: openai
      share: 0.25
""".replace("@COMMIT/", f"@{COMMIT}/")
PINNED = """  sources:
    # A comment that stays.
    chats:
      uri: hf://own/set@COMMIT/data # and one behind a value
      bytes: 12
      read: openai
      license: cc-by-4.0
      share: 0.5
    moved:
      # The branch is named.
      uri: hf://own/set@COMMIT/data/a.jsonl
      bytes: 3
      read: {format: openai, select: {used_in: [nano_v3]}}
      license: CC-BY-4.0
      share: 0.25
    pinned:
      uri: hf://own/set@COMMIT/data/b.jsonl
      license: cc-by-4.0
      bytes: 9
      read: openai
      share: 0.25
""".replace("@COMMIT/", f"@{COMMIT}/")


@pytest.fixture
def params(tmp_path: Path) -> Path:
    """A param set with three sources on the hub."""
    text = (ROOT / "params.yaml").read_text()
    begin, end = text.index("  sources:\n"), text.index("\n# Which rows are rejected")
    path = tmp_path / "params.yaml"
    path.write_text(text[:begin] + SOURCES + text[end:])
    read(path)
    return path


def test_the_hub_fills_a_param_set_and_every_other_line_stays(params: Path, web: Web) -> None:
    web.hub = {"README.md": b"# Set\n", "data/a.jsonl": b"{}\n", "data/b.jsonl": b'{"a": 1}\n'}
    web.card = {"license": "cc-by-4.0"}
    before = params.read_text()
    environment = {**os.environ, "HF_ENDPOINT": web.url, "HF_HOME": str(params.parent / "home")}
    program = [sys.executable, "-m", "sft.experiments.pin"]
    done = subprocess.run(program, env=environment, cwd=params.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # The loopback hub names one commit; a commit that is there is asked for, and what the hub says of it is written.
    assert params.read_text() == before.replace(SOURCES, PINNED)
    assert f"sources.chats: {COMMIT}, 12 bytes, cc-by-4.0, was COMMIT-UNKNOWN" in done.stdout


def test_a_hub_that_does_not_answer_leaves_the_file(params: Path, web: Web) -> None:
    before = params.read_bytes()
    environment = {**os.environ, "HF_ENDPOINT": web.url, "HF_HOME": str(params.parent / "home")}
    program = [sys.executable, "-m", "sft.experiments.pin"]
    done = subprocess.run(program, env=environment, cwd=params.parent, capture_output=True, text=True, check=False)
    assert (done.returncode, params.read_bytes()) == (1, before)
    assert "hf://own/set" in done.stderr


@pytest.mark.parametrize(
    ("card", "license"),
    [
        (None, None),
        ({}, None),
        ({"license": "mit"}, "mit"),
        ({"license": "other", "license_name": "nvidia-open-model-license"}, "nvidia-open-model-license"),
        ({"license": ["cc-by-4.0", "odc-by"]}, "cc-by-4.0 and odc-by"),
    ],
)
def test_a_license_is_what_the_card_says(card: Any, license: str | None) -> None:
    assert pin.license_of(card) == license


@pytest.mark.parametrize("path", [ROOT / "params.yaml", *sorted((ROOT / "profiles").glob("*.yaml"))], ids=str)
def test_a_param_set_is_written_as_it_was(path: Path) -> None:
    yaml, written = pin.editor(), io.StringIO()
    yaml.dump(yaml.load(path), written)
    assert written.getvalue() == path.read_text()


def test_an_entry_on_one_line_stays_on_one() -> None:
    yaml, written = pin.editor(), io.StringIO()
    values = yaml.load("fetch:\n  sources:\n    a: {uri: hf://a/b, read: openai}\n")
    pin.write_pin(values, ("sources", "a"), Source(uri="hf://a/b", read=Read(format="openai")), pin.Pin("x", 1, "mit"))
    yaml.dump(values, written)
    assert written.getvalue() == "fetch:\n  sources:\n    a: {uri: x, license: mit, bytes: 1, read: openai}\n"


def test_every_source_of_the_profiles_has_a_commit_or_is_refused_with_the_command() -> None:
    unknown = set()
    for path in sorted((ROOT / "profiles").glob("*.yaml")):
        for name, source in read(path).fetch.sources.items():
            if len(source.revision or "") != 40:
                unknown.add((path.stem, name, source.revision))
    assert unknown == {("nemotron3-nano-open", "terminal", "COMMIT-UNKNOWN")}


def test_the_open_profile_has_data_of_every_domain_but_one() -> None:
    sources = read(ROOT / "profiles/nemotron3-nano-open.yaml").fetch.sources
    assert set(BY_SLUG) - {source.domain for source in sources.values()} == {"long-context"}
