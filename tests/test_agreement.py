"""Runs of one cell are compared by what was measured of both."""

from mtlkit.agreement import compare_runs
from mtlkit.records import RunRecord


def run(**metrics):
    return RunRecord.model_construct(
        status="ok", environment={}, tasks=[], metrics={"test": {"click": metrics}}
    )


def test_runs_without_a_common_metric_are_not_the_same():
    verdict, reason, metrics, _ = compare_runs(run(auc=0.7), run(loss=0.3))
    assert (verdict, reason, metrics) == ("differs", "they have no metric in common", ())
    assert compare_runs(run(auc=0.7, loss=0.3), run(auc=0.7))[0] == "same digits"
