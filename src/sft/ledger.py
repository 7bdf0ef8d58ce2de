"""The ledger: nothing disappears without a number.

A stage counts every row that it reads, every row that it hands on and every row that it refuses, by
reason. `Ledger.write` refuses to publish a report in which rows in differ from rows out plus rows rejected.
"""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sft.cli import InputError
from sft.files import read_json, write_json


@dataclass
class Ledger:
    """Counts of one stage, or of one source in a stage."""

    rows_in: int = 0
    """Rows read."""
    rows_out: int = 0
    """Rows handed to the next stage."""
    rejected: Counter[str] = field(default_factory=Counter)
    """Rows refused, by reason (kebab case, stable)."""

    def accept(self) -> None:
        """Count one row that is read and handed on."""
        self.rows_in += 1
        self.rows_out += 1

    def reject(self, reason: str) -> None:
        """Count one row that is read and refused for `reason`."""
        self.rows_in += 1
        self.rejected[reason] += 1

    def add(self, other: "Ledger") -> None:
        """Add the counts of another ledger: of a source to those of the blend."""
        self.rows_in += other.rows_in
        self.rows_out += other.rows_out
        self.rejected.update(other.rejected)

    def check(self, name: str) -> None:
        """Raise unless rows in = rows out + rows rejected; `name` says whose ledger it is."""
        refused = sum(self.rejected.values())
        if self.rows_in != self.rows_out + refused:
            raise AssertionError(
                f"{name}: the ledger does not balance: {self.rows_in} rows in, {self.rows_out} out, {refused} rejected"
            )

    def report(self) -> dict[str, Any]:
        """Return the counts as they stand in `reports/`."""
        rejected = {reason: self.rejected[reason] for reason in sorted(self.rejected)}
        return {"rows_in": self.rows_in, "rows_out": self.rows_out, "rejected": rejected}

    def write(self, path: Path, **more: Any) -> dict[str, Any]:
        """Check the balance, then publish the counts and `more` at `path`; return what was written."""
        self.check(str(path))
        report = {**self.report(), **more}
        write_json(path, report)
        return report


def read_report(path: Path, **expected: type) -> dict[str, Any]:
    """Read a report of an earlier stage, in which `expected` says which values must stand, and of what types.

    Raises:  InputError: names the report and what is wrong with it.
    """
    report = read_json(path)
    for name, kind in expected.items():
        found = report.get(name) if isinstance(report, dict) else None
        if not isinstance(found, kind):
            raise InputError(
                f"{path}: {name}: expected {kind.__name__}, found {str(found)[:80]!r}. The report is damaged or was "
                "edited: rerun the stage that writes it (dvc repro --force <stage>)."
            )
    return dict(report)


def check_handover(upstream: Path, rows_in: int) -> None:
    """Raise unless a stage read exactly the rows that the stage before it says it wrote.

    Raises:  InputError: names the report, both numbers, and what to do.
    """
    rows_out = read_report(upstream, rows_out=int)["rows_out"]
    if rows_out != rows_in:
        raise InputError(
            f"{upstream}: says {rows_out} rows were handed on, but {rows_in} were found. "
            "The data was changed between stages: rerun the earlier stage (dvc repro --force <stage>)."
        )
