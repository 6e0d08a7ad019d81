"""Which settings mattered to tuning: a forest of trees is grown on the trials of each model, and
loses something when the values of a setting are shuffled (Breiman, 10.1023/A:1010933404324).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from mtlkit.report.summary import Summary
from mtlkit.report.tables import NA, Table, TableCell
from mtlkit.studies import Study

FEWEST = 8
"""Points of a model from which a forest is grown."""
UNSEEN = "R² of unseen points"
NOTES = (
    "A point's score is the share of the trials of its study that it beats on validation, averaged "
    "over the balancers of the model.",
    "A number is how much of the variance of these scores a random forest no longer explains when "
    "the setting's values are shuffled among the points: 0 is no importance; 1 may be passed.",
    f"{UNSEEN}: of the forest's predictions of points that it was not grown on (five folds). Where "
    "it is near or below 0, so few points do not tell the settings apart.",
    "Trial 0, the defaults, weights of tasks, and settings of balancers are left out.",
)


def trial_points(summary: Summary) -> dict[str, pd.DataFrame]:
    """The points that were tried of each tuned model.

    Returns:
        Model to a frame of one row a distinct point: a column a setting, as a number (the place in
        its list where it was a choice), and ``score``, the mean share of trials that it beats.
    """
    by_model: dict[str, list[pd.DataFrame]] = {}
    for row in summary.rows:
        study = row.group.study
        if study is not None:
            by_model.setdefault(study.model, []).append(_points(study))
    pooled = {model: pd.concat(frames, join="inner") for model, frames in sorted(by_model.items())}
    # a model has none if all that was tuned is its balancers', or each balancer has another space
    return {
        model: frame.groupby(settings).mean().reset_index()
        for model, frame in pooled.items()
        if (settings := [name for name in frame if name != "score"])
    }


def _points(study: Study) -> pd.DataFrame:
    """The finished trials of a study but the first, with the share of trials that each beats."""
    values = pd.Series([trial.first_value for trial in study.spent], dtype=float)
    beaten = (values.rank() - 1) / (values.count() - 1)
    of_balancer = f"{study.balancer.partition('[')[0]}."
    space = {
        name: dimension
        for name, dimension in study.space.items()
        if "simplex" not in dimension and not name.startswith(of_balancer)
    }
    points = pd.DataFrame(
        [
            {name: _number(space[name], trial.settings.get(name)) for name in space}
            for trial in study.spent
        ]
    )
    return points.assign(score=beaten)[1:].dropna()


def _number(dimension: Mapping[str, Any], value: Any) -> Any:
    """A setting as a number; None if the trial has none, or one that was no choice."""
    choices = dimension.get("choice")
    if choices is None:
        return value
    return choices.index(value) if value in choices else None


def importance(points: pd.DataFrame) -> dict[str, float]:
    """The importance of each setting, and ``UNSEEN``.

    Args:
        points: Of one model.
    """
    # half a second to import, which only reports of tuned grids pay
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.inspection import permutation_importance
    from sklearn.metrics import r2_score
    from sklearn.model_selection import KFold, cross_val_predict

    settings, scores = points.drop(columns="score"), points["score"]
    forest = RandomForestRegressor(50, random_state=0)
    folds = KFold(5, shuffle=True, random_state=0)
    unseen = r2_score(scores, cross_val_predict(forest, settings, scores, cv=folds))

    forest.fit(settings, scores)
    lost = permutation_importance(forest, settings, scores, n_repeats=10, random_state=0)
    return {UNSEEN: float(unseen)} | dict(
        zip(map(str, settings), lost.importances_mean, strict=True)
    )


def importance_rows(summary: Summary) -> list[dict[str, Any]]:
    """A row a model and setting; empty where too little was tried."""
    return [
        {"model": model, "points": len(points), "setting": setting, "importance": value}
        for model, points in trial_points(summary).items()
        if len(points) >= FEWEST
        for setting, value in importance(points).items()
    ]


def importance_table(summary: Summary, rows: list[dict[str, Any]]) -> Table:
    """A line a setting, those first that matter most on average, and a column a model."""
    wide = pd.DataFrame(rows).pivot(index="setting", columns="model", values="importance")
    wide = wide.loc[wide.mean(axis=1).sort_values(ascending=False).index]
    order = [*(name for name in wide.index if name != UNSEEN), UNSEEN]
    space = {
        name: dimension
        for row in summary.rows
        if row.group.study
        for name, dimension in row.group.study.space.items()
    }
    lines = []
    for setting in order:
        numbers = [NA if pd.isna(value) else f"{value:.2f}" for value in wide.loc[setting]]
        tried = _range(space[setting]) if setting in space else "–"
        lines.append((setting, tried, *(number.replace("-", "−") for number in numbers)))
    cells = tuple(tuple(map(TableCell, line)) for line in lines)
    title = f"{summary.block.label}: importance of settings"
    return Table(title, ("setting", "range", *wide.columns), cells, NOTES)


def _range(dimension: Mapping[str, Any]) -> str:
    """All choices, or the two bounds."""
    if "choice" in dimension:
        return ", ".join(map(typed, dimension["choice"]))
    (kind, (low, high)), *_ = dimension.items()
    return f"{typed(low)} to {typed(high)}" + ", logarithmic" * (kind == "log")


def typed(value: Any) -> str:
    """A setting as it is typed: lists as ``64:32``."""
    if isinstance(value, list):
        return ":".join(map(typed, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
