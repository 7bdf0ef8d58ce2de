"""Licenses: that of a row before that of its source; excluded ones are not packed, whatever else their text names."""

import numpy as np
import pytest

from sft.packing.licenses import Licenses, count_licenses, exclude, licenses_of
from sft.packing.sample_table import EXCLUDED, FITS, OVER_LENGTH
from sft.params.data import Source
from tests.packing.test_sample_table import measured, params, prepared

ROWS = [
    {**prepared((3, 2), number=0), "license": "GPL-3.0"},
    {**prepared((3, 3), number=1), "license": ""},
    {**prepared((3, 4), number=2), "license": None},
    {**prepared((30, 4), number=3), "license": "MIT, GPL-3.0"},
    {**prepared((3, 5), number=4), "license": "CC0-1.0"},
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
        "CC0-1.0",
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
    ],
)
def test_samples_under_an_excluded_license_have_that_reason(tables, excluded, reasons, unused):
    samples, licenses = tables
    assert exclude(samples, licenses, excluded) == unused
    assert samples.reason.tolist() == reasons


def test_tokens_are_counted_by_license_as_often_as_they_are_packed(tables):
    samples, licenses = tables
    assert isinstance(licenses, Licenses)
    assert count_licenses(samples, licenses, np.array([0, 1, 2, 2])) == {
        "GPL-3.0": {"samples": 1, "tokens": 5, "trained_tokens": 2},
        "MIT": {"samples": 3, "tokens": 20, "trained_tokens": 11},
    }
