"""Studies: what tuning tried for each method of a grid and what it chose, as small JSON files.

A study follows from the runs in the same folder: ``mtlkit bench --tune`` writes it again whenever
it is missing or damaged. The report reads it to tell trials, which are no rows, from what counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mtlkit.files import reason_of, replacing
from mtlkit.records import RunRecord
from mtlkit.store import Unreadable, printable

FOLDER = "studies"
VERSION: Literal[1] = 1
LIMIT = 16 * 2**20
"""Bytes of the largest study that is read; real ones have some thousand."""


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Rung(_Value):
    """The runs of a trial that see one share of the rows."""

    epochs: float
    value: float | None = None  # as that of the trial
    rows: int = 0  # training rows that they saw


class Trial(_Value):
    """One point of a space."""

    settings: dict[str, Any]  # what differs from the defaults, by the name of the dimension
    keys: list[str]  # of its runs, one a rung and seed
    group: str  # of its runs, those that see all rows
    # Mean over seeds of what selects on validation, higher is better; None for a failure, before
    # all its runs are over, and where halving left it behind.
    value: float | None = None
    rungs: tuple[Rung, ...] = ()  # those that it reached, by halving
    failed: int = 0  # number of its runs that failed
    seconds: float = 0.0  # its runs took so long
    rows: int = 0  # training rows that its runs saw

    @property
    def first_value(self) -> float | None:
        """What came of it where all trials of a study can be compared."""
        return self.rungs[0].value if self.rungs else self.value


class Study(_Value):
    """All trials of a model under a balancer."""

    version: Literal[1] = VERSION  # of this layout
    id: str  # digest of what makes the trials: all but their number
    model: str  # as typed
    balancer: str  # as typed
    training: str  # digest of the training settings of trial 0, the same for all methods of a grid
    sampler: str  # what chose the points
    seed: int  # of the sampler
    seeds: tuple[int, ...]  # of the runs of each trial
    select: str  # the rule by which validation counts
    space: dict[str, dict[str, Any]]  # name to dimension
    # The number of trials that choose; trials after them are of an earlier, larger one.
    budget: int = Field(gt=0)
    limit: str = ""  # what gave that number, if it was not typed: such as 600 s
    halving: int | None = None  # one trial of so many went on to the next rung
    # What else was typed, by the names that ``--set`` takes: settings that differ from their
    # defaults, options of all methods, and ranges; studies of earlier versions do not say.
    typed: dict[str, Any] | None = None
    trials: tuple[Trial, ...] = Field(min_length=1)  # the first has the defaults
    choice: int | None = Field(None, ge=0)  # the number of the best trial; None before all are over

    @model_validator(mode="after")
    def _choice_is_a_trial(self) -> Study:
        if self.choice is not None and self.choice >= len(self.trials):
            raise ValueError("it chooses a trial that it does not have")
        return self

    @property
    def chosen(self) -> Trial | None:
        return None if self.choice is None else self.trials[self.choice]

    @property
    def spent(self) -> tuple[Trial, ...]:
        """The trials that the budget paid for."""
        return self.trials[: self.budget]

    @property
    def typed_budget(self) -> str:
        """What ``--tune`` takes for the same budget: ``600s``, ``20000rows`` or a number."""
        words = self.limit.replace(",", "").replace("training", "")
        return "".join(words.split()) or str(self.budget)

    @property
    def climbers(self) -> tuple[int, ...]:
        """The number of trials at each rung; without halving, of all trials."""
        reached = [max(1, len(trial.rungs)) for trial in self.spent]
        return tuple(sum(r > rung for r in reached) for rung in range(max(reached)))


def study_file(root: Path, study_id: str) -> Path:
    """Where a study of a results folder is."""
    return root / FOLDER / f"{study_id[:16]}.json"


def write_study(root: Path, study: Study) -> None:
    """Write the file of a study, all of it or nothing.

    Raises:
        OSError: There is no room for it.
    """
    file = study_file(root, study.id)
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as handle:
        handle.write(study.model_dump_json(indent=1).encode() + b"\n")


def read_study(file: Path) -> Study | Unreadable | None:
    """The study in a file, or why it does not hold; None where there is no file."""
    try:
        if not file.exists():
            return None
        if not file.is_file() or file.stat().st_size > LIMIT:
            return Unreadable(file, "it is no file of a study")
        return Study.model_validate_json(file.read_bytes())
    except OSError as error:
        return Unreadable(file, reason_of(error))
    except ValidationError as error:
        reason = error.errors(include_url=False)[0]["msg"]
        return Unreadable(file, f"it is no study ({reason}); mtlkit bench --tune makes it again")


@dataclass(frozen=True)
class Studies:
    """The studies of a results folder, and what they say of its runs."""

    # Group to the studies that chose it, those that tried most first.
    chosen: Mapping[str, tuple[Study, ...]] = field(default_factory=dict)
    trial_keys: frozenset[str] = frozenset()  # of the runs of all trials
    defaults: frozenset[str] = frozenset()  # groups of the trials with the defaults
    hidden: frozenset[str] = frozenset()  # groups that are no rows
    unreadable: tuple[Unreadable, ...] = ()  # files that do not hold

    @classmethod
    def read(cls, root: Path, untuned: bool = False) -> Studies:
        """Read the studies of a results folder."""
        files = sorted((root / FOLDER).glob("*.json"))
        outcomes = [read_study(file) for file in files]
        studies = [study for study in outcomes if isinstance(study, Study)]
        chosen: dict[str, tuple[Study, ...]] = {}
        for study in sorted(studies, key=lambda study: -len(study.spent)):
            if study.chosen:
                chosen[study.chosen.group] = (*chosen.get(study.chosen.group, ()), study)
        trials = [trial for study in studies for trial in study.trials]
        defaults = frozenset(study.trials[0].group for study in studies) - chosen.keys()
        hidden = frozenset(trial.group for trial in trials) - chosen.keys()
        return cls(
            chosen,
            frozenset(key for trial in trials for key in trial.keys),
            defaults,
            hidden - defaults if untuned else hidden,
            tuple(left_out for left_out in outcomes if isinstance(left_out, Unreadable)),
        )

    def hides(self, record: RunRecord) -> bool:
        """Whether a run is part of no row: it is a trial, or has settings that were not chosen."""
        return record.key in self.trial_keys or record.group in self.hidden


def budget_note(studies: Iterable[Study]) -> str:
    """What tuning has spent on some rows, in one sentence; empty without any."""
    studies = list(studies)
    if not studies:
        return ""
    rows = {study.chosen.group for study in studies if study.chosen}
    # what several studies tried, such as the defaults, ran once
    tried = {(*trial.keys, trial.group): trial for study in studies for trial in study.spent}
    trials = tried.values()
    budgets = sorted({study.budget for study in studies})
    each = " to ".join(f"{budget}" for budget in dict.fromkeys((budgets[0], budgets[-1])))
    failed = sum(trial.failed > 0 for trial in trials)
    failures = f", of which {failed:,} failed" if failed else ""
    limits = sorted({study.limit for study in studies} - {""})
    within = f" that began within {' or '.join(limits)}" if limits else ""
    halvings = sorted({study.halving for study in studies if study.halving})
    halved = "".join(
        f", of which one in {h} went on to {h} times the rows, twice" for h in halvings
    )
    distinct = {(study.limit or study.budget, study.halving) for study in studies}
    unequal = "; budgets are not equal" if len(distinct) > 1 else ""
    rules = ", ".join(sorted({study.select for study in studies}))
    return printable(
        f"Tuned: a row has the settings that were best on validation ({rules}) of {each} trials"
        f"{within}{halved}, and seeds that no trial had; what it is compared with is tuned alike. "
        f"Spent on {len(rows):,} such rows: {len(trials):,} trials{failures}, "
        f"{sum(trial.seconds for trial in trials):,.0f} s, "
        f"{sum(trial.rows for trial in trials):,} training rows{unequal}. "
        "mtlkit report --untuned shows rows with the defaults, too."
    )
