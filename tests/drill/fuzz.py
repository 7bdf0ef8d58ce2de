"""Draw damaged rows, tool schemas, templates, params and model folders until the time is over: only messages come out.

    make fuzz MINUTES=5  ->  a line for each target: examples, failures; each failure with its input

A row becomes a conversation or a rejection, a schema a text, and everything else loads or is an InputError. What raises
anything else is a failure; Hypothesis shrinks it. Each target gets the same share of the time.
"""

import copy
import functools
import json
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from sft.cli import InputError, at_least, make_parser
from sft.filters.examine import json_text
from sft.filters.pipeline import Pipeline
from sft.formats.chat_forms import FieldCounts, convert_chats
from sft.formats.detect import detect
from sft.formats.raw_files import read_objects
from sft.params.data import Filter, Read
from sft.params.read import SCHEMA, load, read_text
from sft.sources.base_model import make_base
from sft.tokens.template import Template, limited
from sft.tool_schemas import ToolSchemas
from tests.support.project import ROOT, chat_records, tool_records
from tests.support.tiny_model import make_tiny_base

EXAMPLES = 25  # of a target, before the next one has its turn
LAST_CALLS, LONGEST_INPUT = 6, 2_000  # of a traceback; characters of the input that are shown
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(
        ["", "user", "assistant", "tool", "<think>", "$ref", "#", "\u2028", "\U000e0041", "\ue000", "\x1b[31m"]
    )
)
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner))


@st.composite
def damaged(draw: Any, originals: list[Any]) -> Any:
    """Return a JSON value in which up to four places are replaced, removed, repeated or moved."""
    value = copy.deepcopy(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 4))):
        place = value
        while isinstance(place, dict | list) and place:
            key = draw(st.sampled_from(list(place) if isinstance(place, dict) else range(len(place))))
            if not isinstance(place[key], dict | list) or draw(st.integers(0, 2)) == 0:
                change = draw(st.integers(0, 3))
                if change == 0:
                    del place[key]
                elif change == 1 and isinstance(place, list):
                    place.insert(key, copy.deepcopy(place[key]))
                elif change == 2 and isinstance(place, dict):
                    place[draw(st.text(max_size=8))] = place.pop(key)
                else:
                    place[key] = draw(VALUES)
                break
            place = place[key]
    return value


@st.composite
def damaged_text(draw: Any, originals: list[str]) -> str:
    """Return a text in which up to three spans are replaced by others of the texts, or by characters."""
    text = draw(st.sampled_from(originals))
    for _ in range(draw(st.integers(1, 3))):
        begin = draw(st.integers(0, len(text)))
        end = min(len(text), begin + draw(st.integers(0, 30)))
        other = draw(st.sampled_from(originals))
        start = draw(st.integers(0, len(other)))
        text = text[:begin] + draw(st.text(max_size=5) | st.just(other[start : start + 30])) + text[end:]
    return text


RECORDS = [*tool_records(2), *chat_records(2), {"instruction": "a", "input": "", "output": "b"}]
TEMPLATES = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "tests/templates").glob("*.jinja"))]
PARAMS = YAML(typ="safe").load((ROOT / "params.yaml").read_text(encoding="utf-8"))
MESSAGES = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def rows(folder: Path, record: Any) -> None:
    """Read a row as `auto` and as `openai` do, and filter it."""
    folder.mkdir()
    (folder / "a.jsonl").write_text(json.dumps(record) + "\n", encoding="utf-8")
    read = Read(format="openai")
    try:
        found = detect(folder, Read(format="auto"))[0]
        read = Read(format=found.format, fields=dict(found.fields))
    except InputError:
        pass
    pipeline = Pipeline(Filter.model_validate({**PARAMS["filter"], "contamination": None}), [])
    chats = list(convert_chats(read_objects(folder), read.format, read.fields, {}, FieldCounts()))
    (outcome,) = pipeline.apply(chats)
    json_text(chats[0].record).encode()
    str(outcome).encode("utf-8", "surrogatepass")


def schemas(folder: Path, tools: Any) -> None:
    """Check arguments under a damaged schema."""
    assert isinstance(ToolSchemas({"f": tools}).fault("f", {"city": "Rome", "days": 3}), str)


def templates(folder: Path, text: str) -> None:
    """Compile and render a damaged template."""
    folder.mkdir()
    (folder / "t.jinja").write_text(text, encoding="utf-8", errors="surrogatepass")
    template = Template(folder / "t.jinja")
    try:
        with limited("fuzz"):
            template.render(
                messages=MESSAGES, tools=None, add_generation_prompt=False, bos_token="<s>", eos_token="</s>"
            )
    except jinja2.TemplateError:
        pass


def params(folder: Path, values: Any) -> None:
    """Load every section of a damaged params.yaml."""
    folder.mkdir()
    YAML(typ="safe").dump(values, folder / "params.yaml")
    read_text(folder / "params.yaml")
    for section in SCHEMA:
        try:
            load(section, folder / "params.yaml")
        except InputError as error:
            str(error).encode("utf-8", "surrogatepass")


def models(folder: Path, config: Any) -> None:
    """Make a base of a model folder whose config.json, tokenizer_config.json or tokenizer.json is damaged."""
    name, value = config
    shutil.copytree(tiny_base(), folder / "source")
    (folder / "source" / name).write_text(json.dumps(value), encoding="utf-8")
    (folder / "base").mkdir()
    make_base(folder / "source", folder / "base")


@functools.cache
def tiny_base() -> Path:
    """Return a tiny model folder, made once."""
    folder = Path(tempfile.mkdtemp(prefix="sft-fuzz-"), "base")
    make_tiny_base(folder)
    return folder


def model_files() -> list[tuple[str, Any]]:
    """Return the files of JSON of a tiny model folder, by name."""
    return [(path.name, json.loads(path.read_text(encoding="utf-8"))) for path in sorted(tiny_base().glob("*.json"))]


def targets() -> dict[str, tuple[Any, Callable[[Path, Any], None]]]:
    """Return what is drawn, and what is done with it, by name."""
    schemas_of_tools = [tool["function"]["parameters"] for record in tool_records(4) for tool in record["tools"]]
    files = st.sampled_from(model_files()).flatmap(lambda file: st.tuples(st.just(file[0]), damaged([file[1]])))
    return {
        "rows": (damaged(RECORDS), rows),
        "schemas": (damaged(schemas_of_tools), schemas),
        "templates": (damaged_text(TEMPLATES), templates),
        "params": (damaged([PARAMS]), params),
        "models": (files, models),
    }


def fuzz(drawn: Any, work: Callable[[Path, Any], None], examples: int) -> tuple[int, str]:
    """Draw examples of a target. Returns how many ran, and the traceback of a failure with its input, or ""."""
    ran = 0

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=False,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(drawn)
    def one(value: Any) -> None:
        nonlocal ran
        ran += 1
        with tempfile.TemporaryDirectory() as folder:
            try:
                work(Path(folder, "it"), value)
            except InputError as error:
                if not str(error):
                    raise AssertionError("an error without a message") from error

    try:
        one()
    except Exception as error:  # noqa: BLE001 (what a target raises is what is looked for)
        notes, error.__notes__ = getattr(error, "__notes__", []), []
        return ran, "".join(traceback.format_exception(error)[-LAST_CALLS:]) + "\n".join(notes)[:LONGEST_INPUT]
    return ran, ""


def main(minutes: float) -> int:
    """Fuzz every target in turn; print a line for each. Returns the number of failures."""
    counts, failures = dict.fromkeys(targets(), 0), list[str]()
    end = time.monotonic() + 60 * minutes
    while time.monotonic() < end:
        for name, (drawn, work) in targets().items():
            ran, failure = fuzz(drawn, work, EXAMPLES)
            counts[name] += ran
            if failure:
                failures.append(f"{name}: {failure}")
    for name, count in counts.items():
        print(f"{name}: {count} examples, {sum(text.startswith(name) for text in failures)} failures")  # noqa: T201
    print(*failures, sep="\n")  # noqa: T201
    return len(failures)


if __name__ == "__main__":
    parser = make_parser(__name__, __doc__)
    parser.add_argument("--minutes", type=at_least(1), default=5, help="default: 5")
    sys.exit(1 if main(parser.parse_args().minutes) else 0)
