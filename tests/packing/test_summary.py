"""What pack prints: the held-out share of large groups, and what to do if it is far above the one asked for."""

import pytest

from sft.packing.summary import print_held_out
from tests.packing.test_plan import planned


@pytest.mark.parametrize(("group_size", "lines"), [(4, 0), (7, 1), (14, 2)])
def test_what_is_held_out_of_large_groups_is_printed_and_what_to_do_if_it_is_over_twice_the_share(
    group_size, lines, capsys
):
    more = {"over_length": "cut-at-turn", "pad_segments_to": 1, "group_size": group_size}
    groups = planned({"a": list(range(40))}, {"a": None}, **more)[2].groups["a"]
    print_held_out("a", groups)
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.count("a: ") == lines
    assert (f"{groups['test']} of 40 conversations ({groups['test'] / 40:.1%}) for test where 4" in printed) == bool(
        lines
    )
    assert ("read.fields.group" in printed) == (lines == 2)
