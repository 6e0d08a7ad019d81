"""What tuning chose: the table of settings, one row a model under a balancer."""

from __future__ import annotations

import math

from mtlkit.report.summary import Row, Summary
from mtlkit.report.tables import Table, TableCell, fixed, whole
from mtlkit.spec import Spec
from mtlkit.studies import Study

COLUMNS = ("model", "balancer", "settings", "trial", "best", "defaults", "failed", "s", "rows")
NOTES = (
    "Settings that are not listed are the defaults, which trial 0 has throughout.",
    "best and defaults: what selects on validation, of the chosen trial and of trial 0 (NA where "
    "halving left it behind); higher is better. failed, s and rows: of all trials together.",
)


def tuned_rows(summary: Summary) -> list[dict[str, object]]:
    """The choice of each study of a block as plain values; empty without any."""
    return [_tuned_row(row, study) for row in summary.rows for study in row.group.studies]


def _tuned_row(row: Row, study: Study) -> dict[str, object]:
    chosen = study.chosen
    assert chosen is not None
    best, defaults = (
        math.nan if trial.value is None else trial.value for trial in (chosen, study.trials[0])
    )
    return {
        "model": row.group.model,
        "balancer": row.group.balancer if row.group.has_balancer else "–",
        "settings": str(Spec("", chosen.settings))[1:-1].replace(",", ", ") or "defaults",
        "trial": f"{study.choice} of {' → '.join(map(str, study.climbers))}",
        "best": best,
        "defaults": defaults,
        "failed": sum(trial.failed > 0 for trial in study.spent),
        "s": round(sum(trial.seconds for trial in study.spent), 1),
        "rows": sum(trial.rows for trial in study.spent),
    }


def tuned_table(summary: Summary, rows: list[dict[str, object]]) -> Table:
    """The same as a table."""
    cells = [tuple(TableCell(_shown(value)) for value in row.values()) for row in rows]
    title = f"{summary.block.label}: tuned settings"
    notes = (*NOTES, *summary.block.budget)
    return Table(title, COLUMNS, tuple(cells), notes, texts=("settings",))


def _shown(value: object) -> str:
    if isinstance(value, float):
        return fixed(value, 5) if abs(value) < 1 or math.isnan(value) else whole(value)
    return whole(value) if isinstance(value, int) else str(value)
