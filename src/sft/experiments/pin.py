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
from sft.params.read import params_file
from sft.sources import hub
from sft.sources.download import hub_files

NEWEST = ("COMMIT-UNKNOWN", None)  # ask for the newest commit of main
NULL = "tag:yaml.org,2002:null"
MAX_LINE_CHARS = 1 << 20  # longer lines would be folded


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


def write_pin(values: Any, entry: tuple[str, ...], source: Download, pin: Pin) -> None:
    """Set the pin of one entry, `("sources", "chats")` of fetch, in the values of a param set; comments stay."""
    mapping = values["fetch"]
    for key in entry:
        mapping = mapping[key]
    mapping["uri"] = pin.uri
    added = 1 + list(mapping).index("uri")  # new keys follow the uri
    if isinstance(source, Source):
        _set(mapping, "bytes", pin.bytes, added)
    if pin.license and pin.license.lower() != source.license.lower():
        _set(mapping, "license", pin.license, added)


def _set(mapping: Any, key: str, value: Any, added: int) -> None:
    if key in mapping:
        mapping[key] = value
    else:
        mapping.insert(added, key, value)


def editor() -> YAML:
    """Return what reads a param set and writes it again: comments, quotes and all other lines stay."""
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = MAX_LINE_CHARS
    yaml.representer.add_representer(type(None), lambda writer, _: writer.represent_scalar(NULL, "null"))
    return yaml


def pin_params(path: Path) -> list[str]:
    """Write the pins of all entries on the hub into a param set; return a line for each.

    Raises:  InputError: the hub does not answer for an entry. The file stays then.
    """
    entries, yaml = _entries(path), editor()
    values = yaml.load(path)
    report = []
    for entry, source in entries.items():
        if not source.address.startswith("hf://"):
            continue
        if len(source.each) > 1:
            report.append(f"{'.'.join(entry)}: a list of addresses, not pinned. Write @<commit> into each.")
            continue
        pin = ask_hub(source, is_model=entry == ("model",))
        write_pin(values, entry, source, pin)
        moved = "" if pin.uri == source.uri else f", was {source.revision or 'without a revision'}"
        commit = Download(uri=pin.uri).revision
        report.append(f"{'.'.join(entry)}: {commit}, {pin.bytes:,} bytes, {pin.license or 'no license stated'}{moved}")
    with publish_file(path) as partial:
        yaml.dump(values, partial)
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
