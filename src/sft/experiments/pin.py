"""pin: ask the Hugging Face hub for commit, bytes and license of every source, and write them into a param set.

    make pin PROFILE=nemotron3-nano    profiles/nemotron3-nano.yaml
    make pin                           params.yaml

A uri without a commit of 40 hex digits gets one: that of the branch or tag it names (`@main`), or of main. A commit
that is there stays. `bytes` and `license` are those of the hub at this commit; comments and all other lines stay.
Uris that are not on the hub have a digest, and stay.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from sft.cli import InputError, echo, make_parser, run_or_exit
from sft.files import publish_file
from sft.params.check import read
from sft.params.data import REVISION, Download, Source
from sft.params.read import params_file, read_text
from sft.sources import hub
from sft.sources.download import hub_files

NEWEST = ("COMMIT-UNKNOWN", None)  # ask for the newest commit of main


@dataclass(frozen=True)
class Pin:
    """What the hub says about an entry."""

    uri: str
    """With the commit."""
    bytes: int
    """Of all files that the uri names."""
    license: str | None
    """As the hub's card says it; None if it says nothing."""


def ask_hub(source: Download, is_model: bool) -> Pin:
    """Return the pin of an entry. Raises InputError: no such repository, revision or file, or no answer."""
    import huggingface_hub

    place = hub.parse(source, is_model)
    with hub.named_errors(source):
        named = "main" if place.revision in NEWEST else place.revision
        info: Any = huggingface_hub.HfApi().repo_info(
            place.repository, repo_type=place.remote["repo_type"], revision=named
        )
        if info.sha is None or hub.COMMIT.fullmatch(info.sha) is None:
            raise InputError(f"{source.address}: the hub names no commit of {named}, found {info.sha!r}")
        if named is not None and hub.COMMIT.fullmatch(named) and info.sha != named:
            raise InputError(f"{source.address}: the hub names another commit than {named}: {info.sha}")
        files = hub_files(source, replace(place, revision=info.sha))
    size = sum(entry.size for entry in files.values())
    return Pin(with_commit(source.uri, info.sha), size, license_of(info.card_data))


def with_commit(uri: str, commit: str) -> str:
    """Return an hf:// uri with a commit in place of the revision it has, or none.

    >>> with_commit("hf://owner/name@main/a.jsonl", "0f" * 20) == with_commit("hf://owner/name/a.jsonl", "0f" * 20)
    True
    """
    if REVISION.search(uri):
        return REVISION.sub(lambda match: f"{match[1]}@{commit}", uri)
    return re.sub(r"^hf://(?:(?:datasets|models)/)?[^/]+/[^/]+", lambda match: f"{match[0]}@{commit}", uri)


def license_of(card: Any) -> str | None:
    """Return the license, or the licenses, in the metadata of a card; the name of one that the hub does not know."""
    name = None if card is None else card.get("license")
    if name == "other":
        name = card.get("license_name") or name
    text = " and ".join(map(str, name)) if isinstance(name, list) else name
    return None if text is None else re.sub(r"[^\w .,()+/-]", " ", str(text))  # a line of YAML, whatever a card says


def write_pin(text: str, entry: tuple[str, ...], source: Download, pin: Pin) -> str:
    """Return the text of a param set with the pin of one entry, `("sources", "chats")` of fetch.

    Raises:  InputError: the lines of the entry are written in another way.
    """
    wanted: dict[str, Any] = {"uri": pin.uri}
    if isinstance(source, Source):
        wanted["bytes"] = pin.bytes
    if pin.license and pin.license.lower() != source.license.lower():
        wanted["license"] = pin.license
    values = YAML().load(text)["fetch"]
    for key in entry:
        values = values[key]
    if values.fa.flow_style():
        raise InputError(f"fetch.{'.'.join(entry)}: expected one line for each key. Write the entry so, and run again")
    lines = text.splitlines(keepends=True)
    first, indent = values.lc.key("uri")
    for key in [key for key in wanted if key in values]:
        line = values.lc.key(key)[0]
        name, _, rest = lines[line].partition(":")
        new = re.sub(r"^\s+\S.*?(?=\s+#|\s*$)", lambda _, key=key: f" {wanted[key]}", rest, count=1)  # type: ignore[misc]
        lines[line] = f"{name}:{new}"  # a comment stays
    for key in [key for key in wanted if key not in values]:
        lines.insert(first + 1, f"{' ' * indent}{key}: {wanted[key]}\n")
    return "".join(lines)


def pin_params(path: Path) -> list[str]:
    """Write the pins of all entries on the hub into a param set; return a line for each.

    Raises:  InputError: the hub does not answer for an entry, or its lines cannot be edited. The file stays then.
    """
    entries = _entries(path)
    text, _ = read_text(path)
    report, pins = [], dict[tuple[str, ...], Pin]()
    for entry, source in entries.items():
        if not source.address.startswith("hf://"):
            continue
        if len(source.each) > 1:
            report.append(f"{'.'.join(entry)}: a list of addresses, not pinned. Write @<commit> into each.")
            continue
        pin = pins[entry] = ask_hub(source, is_model=entry == ("model",))
        text = write_pin(text, entry, source, pin)
        moved = "" if pin.uri == source.uri else f", was {source.revision or 'without a revision'}"
        commit = Download(uri=pin.uri).revision
        report.append(f"{'.'.join(entry)}: {commit}, {pin.bytes:,} bytes, {pin.license or 'no license stated'}{moved}")
    with publish_file(path) as partial:
        partial.write_text(text, encoding="utf-8")
        written = _entries(partial)
        for entry, source in entries.items():
            if written[entry].uri != (pins[entry].uri if entry in pins else source.uri):
                raise InputError(
                    f"fetch.{'.'.join(entry)}: cannot be edited. Write one line for each key, and run again"
                )
    return report


def _entries(path: Path) -> dict[tuple[str, ...], Download]:
    fetch = read(path).fetch
    return {
        ("model",): fetch.model,
        **{("benchmarks", name): benchmark for name, benchmark in fetch.benchmarks.items()},
        **{("sources", name): source for name, source in fetch.sources.items()},
    }


def main(profile: str | None) -> None:
    """Pin a profile, or params.yaml."""
    path = params_file(profile)
    for line in pin_params(path):
        echo(line)
    echo(f"{path}: pinned")


if __name__ == "__main__":
    parser = make_parser(__name__, __doc__)
    parser.add_argument("--profile", metavar="NAME", help="a file of profiles/, without .yaml; default: params.yaml")
    arguments = parser.parse_args()
    run_or_exit(lambda: main(arguments.profile))
