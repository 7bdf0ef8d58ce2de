"""django-po: interface texts of the package django and their translations, read from its .po files."""

import re
from collections.abc import Iterator
from pathlib import Path

from sft.formats.raw_files import RAW_CHARS, Row
from sft.formats.records import question_and_answer

LANGUAGES = {"de": "German", "es": "Spanish", "fr": "French", "it": "Italian", "ja": "Japanese"}
PO_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", '"': '"', "\\": "\\"}


def django_po(folder: Path) -> Iterator[Row]:
    """Yield a row for each text and language, of the texts that are translated into all LANGUAGES.

    Plural forms and translations marked fuzzy are left out.
    """
    tables: dict[str, dict[str, dict[tuple[str, str], tuple[str, str]]]] = {}
    for path in sorted(folder.rglob("*.po")):
        name = path.relative_to(folder).as_posix()
        language_part = re.search(r"(?:^|/)locale/(\w+)/", name)
        if language_part is None or language_part.group(1) not in LANGUAGES:
            continue
        component = name[: language_part.start(1)] + name[language_part.end(1) :]
        table = tables.setdefault(component, {}).setdefault(language_part.group(1), {})
        for number, entry in _po_entries(path):
            if isinstance(entry, str):
                yield Row(f"{name}:{number}", None, "not of this format: expected a PO entry", entry[:RAW_CHARS])
            else:
                context, text, translation = entry
                table[context, text] = (translation, f"{name}:{number}")
    for by_language in tables.values():
        if by_language.keys() != LANGUAGES.keys():
            continue
        for context, text in by_language[min(LANGUAGES)]:
            if all((context, text) in table for table in by_language.values()):
                for code, language in LANGUAGES.items():
                    translation, location = by_language[code][context, text]
                    note = f" ({context})" if context else ""
                    question = f"Translate into {language}{note}:\n\n{text}"
                    messages = question_and_answer(question, translation)
                    yield Row(location, {"messages": messages, "meta": {"language": code}})


def _po_entries(path: Path) -> Iterator[tuple[int, tuple[str, str, str] | str]]:
    """Yield the line number and (context, text, translation) of each entry, or the text of a broken line."""
    fields: dict[str, str] = {}
    start, current, is_fuzzy = 1, "", False
    lines = path.read_bytes().decode("utf-8", "replace").split("\n")
    for number, line in enumerate([*lines, ""], 1):
        line = line.strip()
        quoted = re.fullmatch(r'(?:(msgctxt|msgid|msgid_plural|msgstr(?:\[\d\])?)\s*)?"((?:[^"\\]|\\.)*)"', line)
        keyword = quoted.group(1) if quoted else None
        # An entry ends at an empty line, a comment, or the keyword that starts the next one.
        if not quoted or (keyword in {"msgctxt", "msgid"} and "msgstr" in fields):
            if fields.get("msgid") and fields.get("msgstr") and not is_fuzzy:
                yield start, (fields.get("msgctxt", ""), fields["msgid"], fields["msgstr"])
            is_fuzzy = (is_fuzzy and not fields) or (line.startswith("#,") and "fuzzy" in line)
            fields = {}
        if quoted and (keyword or current in fields):
            start = number if not fields else start
            current = keyword or current
            text = re.sub(r"\\(.)", lambda escape: PO_ESCAPES.get(escape.group(1), escape.group()), quoted.group(2))
            fields[current] = fields.get(current, "") + text
        elif line and not line.startswith("#"):
            yield number, line
