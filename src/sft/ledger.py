"""The ledger: every row is counted.

A stage counts the rows that it reads, passes on, and rejects by reason. `Ledger.write` publishes a report only if
rows in = rows out + rejected.
"""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sft.cli import InputError
from sft.files import read_json, write_json


@dataclass
class Ledger:
    """Counts of a stage, or of one source in a stage."""

    rows_in: int = 0
    """Rows read."""
    rows_out: int = 0
    """Rows passed on to the next stage."""
    rejected: Counter[str] = field(default_factory=Counter)
    """Rejected rows by reason (stable names in kebab case)."""

    def add(self, other: "Ledger") -> None:
        """Add the counts of another ledger, as those of a source to those of the blend."""
        self.rows_in += other.rows_in
        self.rows_out += other.rows_out
        self.rejected.update(other.rejected)

    def check(self, name: str) -> None:
        """Raise AssertionError unless rows in = rows out + rejected; `name` is for the message."""
        rejected = sum(self.rejected.values())
        if self.rows_in != self.rows_out + rejected:
            raise AssertionError(
                f"{name}: the ledger does not balance: {self.rows_in} rows in, {self.rows_out} out, {rejected} rejected"
            )

    def report(self) -> dict[str, Any]:
        """Return the counts as in `reports/`, reasons sorted by name."""
        rejected = {reason: self.rejected[reason] for reason in sorted(self.rejected)}
        return {"rows_in": self.rows_in, "rows_out": self.rows_out, "rejected": rejected}

    def write(self, path: Path, **more: Any) -> dict[str, Any]:
        """Check the balance, publish the counts and `more` at `path`, and return them."""
        self.check(str(path))
        report = {**self.report(), **more}
        write_json(path, report)
        return report


def read_report(path: Path, **expected: type) -> dict[str, Any]:
    """Return a report of an earlier stage; `expected` gives keys that it must have, and their types.

    Raises:  InputError: names the report and the key.
    """
    report = read_json(path)
    for name, kind in expected.items():
        value = report.get(name) if isinstance(report, dict) else None
        if not isinstance(value, kind):
            raise InputError(
                f"{path}: {name}: expected {kind.__name__}, found {str(value)[:80]!r}. The report is damaged or was "
                "edited. Run its stage again: dvc repro --force <stage>"
            )
    return dict(report)


def check_handover(upstream: Path, rows_in: int) -> None:
    """Raise InputError unless a stage read as many rows as the report of the stage before it says."""
    rows_out = read_report(upstream, rows_out=int)["rows_out"]
    if rows_out != rows_in:
        raise InputError(
            f"{upstream}: rows_out is {rows_out}, but {rows_in} rows were found. The data was changed between stages. "
            "Run the earlier stage again: dvc repro --force <stage>"
        )
