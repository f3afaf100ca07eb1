"""Which known word an unknown one is taken for."""

from __future__ import annotations

import pytest

from support.hints import closest, nearest

METHODS = ("CoOp", "CoCoOp", "MMLoP", "MaPLe")


@pytest.mark.parametrize(
    ("name", "options", "hint"),
    [
        ("mmlop", {}, "; did you mean MMLoP?"),
        ("COOP", {"show": repr}, "; did you mean 'CoOp'?"),
        ("x", {}, ""),
        ("pet", {"cutoff": 0.0}, "; did you mean MaPLe?"),
        ("", {}, ""),
        ("co-co-op", {"cutoff": 1.0}, ""),
        ("co-co-op", {"cutoff": 1.0, "fold": lambda n: n.lower().replace("-", "")}, "CoCoOp?"),
    ],
)
def test_the_hint(name, options, hint):
    found = nearest(name, METHODS, **options)
    assert found.endswith(hint) and bool(found) == bool(hint)
    assert nearest(name, (), **options) == ""


def test_several_are_offered_the_closest_first():
    assert closest("cocop", METHODS, most=3)[:2] == ["CoCoOp", "CoOp"]
