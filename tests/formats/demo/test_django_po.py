"""django-po: texts in five languages."""

from pathlib import Path

from sft.formats.demo.django_po import django_po
from tests.support.raw_rows import write

PO = """# A comment
msgid ""
msgstr "Language: xx"

#, fuzzy
msgid "Doubtful"
msgstr "xx doubtful"

#. note
#: file.py:1
#, python-format
msgctxt "month"
msgid "May"
msgstr "xx May"
msgid "Say \\"hi\\"\\n"
"twice\\\\"
msgstr ""
"xx \\"hi\\"\\n"
"twice\\\\"

msgid "one"
msgid_plural "many"
msgstr[0] "xx one"
msgstr[1] "xx many"

#~ msgid "Old"
#~ msgstr "xx old"

msgid "Empty"
msgstr ""
"""


def test_django_po_gives_a_row_for_each_text_and_language(tmp_path: Path) -> None:
    for language in ("de", "es", "fr", "it", "ja", "nl"):
        write(tmp_path, f"app/locale/{language}/LC_MESSAGES/django.po", PO.replace("xx", language))
    only_german = 'msgid "Only"\nmsgstr "Nur"\n'
    write(tmp_path, "app/locale/de/LC_MESSAGES/django.po", PO.replace("xx", "de") + only_german)
    rows = list(django_po(tmp_path))
    assert len(rows) == 10
    assert rows[0].location == "app/locale/de/LC_MESSAGES/django.po:12"
    texts = [[message["content"] for message in row.record["messages"]] for row in rows if row.record]
    assert texts[2] == ["Translate into French (month):\n\nMay", "fr May"]
    assert texts[9] == ['Translate into Japanese:\n\nSay "hi"\ntwice\\', 'ja "hi"\ntwice\\']


def test_a_broken_po_line_is_a_fault_at_its_line(tmp_path: Path) -> None:
    write(tmp_path, "locale/fr/a.po", 'msgid "A"\nmsgstr "unclosed\n')
    (row,) = django_po(tmp_path)
    assert (row.location, row.raw) == ("locale/fr/a.po:2", 'msgstr "unclosed')
