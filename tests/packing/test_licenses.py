"""Licenses: that of a row before that of its source; excluded ones are not packed, whatever else their text names."""

import numpy as np
import pyarrow as pa
import pytest

from sft.packing.accounting import rejected_lines
from sft.packing.licenses import Licenses, count_licenses, exclude, licenses_of
from sft.packing.plan import is_excluded
from sft.packing.sample_table import EXCLUDED, FITS, NO_SPACE, OVER_LENGTH, build_tables, measure_rows
from sft.params.data import Source
from sft.parquet import WINDOWS
from tests.packing.test_sample_table import columns_of, measured, params, prepared

ROWS = [
    {**prepared((3, 2), number=0), "license": "GPL-3.0"},
    {**prepared((3, 3), number=1), "license": ""},
    {**prepared((3, 4), number=2), "license": None},
    {**prepared((30, 4), number=3), "license": "MIT, GPL-3.0"},
    {**prepared((3, 5), number=4), "license": "CC0-1.0 OR (GPL-3.0 AND BSD-3-Clause)"},
]


@pytest.fixture
def tables():
    samples, conversations = measured(ROWS, params())
    return samples, licenses_of(conversations, {"s": Source(uri="file://x", read="openai", license="MIT")})


def test_the_license_of_a_row_is_its_own_or_that_of_its_source(tables):
    _, licenses = tables
    assert [licenses.names[place] for place in licenses.of_conversation] == [
        "GPL-3.0",
        "MIT",
        "MIT",
        "MIT, GPL-3.0",
        "CC0-1.0 OR (GPL-3.0 AND BSD-3-Clause)",
    ]


@pytest.mark.parametrize(
    ("excluded", "reasons", "unused"),
    [
        ([], [FITS, FITS, FITS, OVER_LENGTH, FITS], []),
        (["gpl-3.0", "unused"], [EXCLUDED, FITS, FITS, EXCLUDED, FITS], ["unused"]),
        (["GPL"], [FITS, FITS, FITS, OVER_LENGTH, FITS], ["GPL"]),
        (["MIT"], [FITS, EXCLUDED, EXCLUDED, EXCLUDED, FITS], []),
        ([""], [FITS, FITS, FITS, OVER_LENGTH, FITS], [""]),
        (["MIT, GPL-3.0"], [FITS, FITS, FITS, EXCLUDED, FITS], []),
        (["CC0-1.0"], [FITS, FITS, FITS, OVER_LENGTH, FITS], []),
        (["cc0-1.0", "bsd-3-clause"], [FITS, FITS, FITS, OVER_LENGTH, EXCLUDED], []),
        (["CC0-1.0 or (GPL-3.0 AND BSD-3-Clause)"], [FITS, FITS, FITS, OVER_LENGTH, EXCLUDED], []),
    ],
)
def test_samples_under_an_excluded_license_have_that_reason(tables, excluded, reasons, unused):
    samples, licenses = tables
    assert exclude(samples, licenses, excluded) == unused
    assert samples.reason.tolist() == reasons


def test_windows_under_an_excluded_license_are_excluded_and_have_one_line():
    sample = {**prepared((3, 20)), "license": "GPL-3.0"}
    part = {**prepared((3, 5)), "license": "GPL-3.0", "covered": 8, "whole": 23}
    rows = [sample, {**part, "window": 1}, {**part, "window": 2, "covered": 0, "mask": [0] * 7 + [1]}]
    batch = pa.RecordBatch.from_pylist(rows, schema=WINDOWS)
    column = columns_of([measure_rows(batch, "s", params("window"))])
    samples, conversations = build_tables(column, {"s": 3}, in_windows=True)
    exclude(samples, Licenses(["GPL-3.0"], np.zeros(1, np.int32)), ["GPL-3.0"])
    assert samples.reason.tolist() == [NO_SPACE, EXCLUDED, EXCLUDED]
    assert is_excluded(samples, conversations, 0), "the share of the source goes to the others"
    lines = rejected_lines(samples, conversations, None, 12)
    assert sorted(line["reason"] for line in lines) == ["excluded-license", "no-room-for-called-tool"]


def test_tokens_are_counted_by_license_as_often_as_they_are_packed(tables):
    samples, licenses = tables
    assert isinstance(licenses, Licenses)
    assert count_licenses(samples, licenses, np.array([0, 1, 2, 2])) == {
        "GPL-3.0": {"samples": 1, "tokens": 5, "trained_tokens": 2},
        "MIT": {"samples": 3, "tokens": 20, "trained_tokens": 11},
    }
