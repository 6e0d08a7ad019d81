"""The rules of advice, on facts made by hand."""

import pytest

from mtlkit.cli.advise import _facts_line
from mtlkit.report.advice import RULES, Facts, advise

PLAIN = {"rows": 10**6, "tasks": 2, "kinds": 1, "funnel": False, "correlation": 0.9}
PLAIN |= {"sharing": 1.0, "gates": -1.0, "conflict": 0.2}


def reasons(**facts):
    return {(rule.name, rule.why) for rule, _ in advise(Facts(**PLAIN | facts)).reasons}


def test_without_anything_special_the_plain_ones():
    assert advise(Facts(**PLAIN)).pairs == (("shared-bottom", "uwl"), ("shared-bottom", "uniform"))


@pytest.mark.parametrize(
    ("change", "method"),
    [
        ({"rows": 1000}, "shared-bottom"),
        ({"correlation": 0.1}, "mmoe"),
        ({"gates": 1.0}, "mmoe"),
        ({"sharing": -1.0}, "ple"),
        ({"sharing": -9.0}, "cross-stitch"),
        ({"funnel": True}, "esmm"),
        ({"funnel": True}, "aitm"),
        ({"kinds": 2}, "uwl"),
        ({"conflict": 0.7}, "pcgrad"),
    ],
)
def test_each_rule_holds_where_its_fact_does(change, method):
    assert method in {name for name, _ in reasons(**change) - reasons()}


def test_every_conditional_rule_is_off_by_default():
    assert len(reasons()) == 3
    assert len(RULES) == 12


def test_unknown_facts_hold_no_rule():
    nan = float("nan")
    unknown = reasons(correlation=nan, sharing=nan, gates=nan, conflict=nan)
    assert unknown == reasons()
    facts = Facts(**PLAIN | {"correlation": nan, "sharing": nan, "gates": nan, "conflict": nan})
    assert "conflict at NA % of points" in _facts_line(facts)


def test_points_add_up():
    assert advise(Facts(**PLAIN | {"funnel": True, "kinds": 2})).pairs[0] == ("esmm", "uwl")
