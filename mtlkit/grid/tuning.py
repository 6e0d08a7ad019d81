"""Tuning: the trials of each model under each balancer, their choice, and the grid of the chosen.

A trial is a small grid of its own, planned as if it had been typed by hand, so that its cells are
ordinary ones: what was interrupted goes on, and nothing runs twice. All else follows from them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import count, islice
from typing import Any

import numpy as np

from mtlkit.data.datasets._source import DatasetSource
from mtlkit.data.splits import Dataset
from mtlkit.errors import MtlkitError, UsageError, did_you_mean, nearest_names
from mtlkit.grid.grid_settings import GridSettings
from mtlkit.grid.methods import (
    expand_wildcards,
    known_options,
    owner,
    running_references,
    typed_common,
)
from mtlkit.grid.plan import Plan, PlannedCell, check_count, make_plan
from mtlkit.grid.spaces import (
    MODEL,
    OWNERS,
    STARTUP,
    TRAINING,
    Axis,
    Dimension,
    Space,
    check_optuna,
    is_dimension,
    settings_at,
    sobol_points,
    tpe_point,
)
from mtlkit.records import NO_BALANCER, Cell, RunRecord
from mtlkit.registry import BALANCERS, MODELS, Registry, is_baseline
from mtlkit.settings import ExecutionSettings, TrainingSettings, validate
from mtlkit.spec import Spec, digest, flatten, parse_spec
from mtlkit.store import ResultStore, Unreadable
from mtlkit.studies import Rung, Study, Trial, read_study, study_file, write_study

FIRST_SEED = 1000
"""Of the trials; below it are the seeds that grids usually report."""
SWEEP, SWEPT = "scalarization", "static"
"""A sweep of fixed weights is tuned as the method of fixed weights: its trials are the sweep."""
RUNGS = 3
"""Of halving. A fourth would see a 27th of the rows, which says little of what comes at the end."""
MOST_TRIALS = 1000
"""Of a budget in seconds or rows."""


@dataclass
class Candidate:
    """One trial, before its study is written."""

    point: np.ndarray | None  # (COLUMNS,) in the unit cube; None for the defaults
    settings: dict[str, Any]  # name of a dimension to value
    # Its runs, one a seed, at each rung: the first sees the fewest rows, the last all of them.
    rungs: list[list[PlannedCell]]
    reached: int = 1  # number of rungs that may run

    @property
    def cells(self) -> list[Cell]:
        """Its runs at the rungs that it has reached."""
        return [entry.cell for rung in self.rungs[: self.reached] for entry in rung]


@dataclass
class Search:
    """A model under a balancer, its space, and its trials so far."""

    model: Spec
    balancer: Spec
    space: Space = field(default_factory=dict)
    candidates: list[Candidate] = field(default_factory=list)

    @property
    def cells(self) -> list[Cell]:
        """The runs of its trials."""
        return [cell for candidate in self.candidates for cell in candidate.cells]

    @property
    def methods(self) -> list[tuple[Spec, Registry]]:
        """The model, and the balancer if there is one."""
        methods = [(self.model, MODELS), (self.balancer, BALANCERS)]
        return [method for method in methods if method[0].name != NO_BALANCER]


class Tuning:
    """The first phase of a tuned grid, in which trials are run, and the plan of the second.

    Attributes:
        searches: A model under a balancer each, in the order of the grid.
        baselines: Models that search for themselves, and run in the second phase alone.
        notes: Sentences for the user.

    Raises:
        UsageError: As :func:`make_plan`; or a dimension does not exist, or cells are too many.
        MissingError: Optuna is not installed.
    """

    def __init__(
        self,
        settings: GridSettings,
        source: DatasetSource,
        dataset: Dataset,
        store: ResultStore,
        *,
        force: bool = False,
        retry_failed: bool = False,
    ) -> None:
        assert settings.tune.budget is not None
        self.tune = settings.tune
        self.limited, self.budget = settings.tune.budget
        halving = self.tune.halving or 1
        self.shares = [1.0] if halving == 1 else [halving**-rung for rung in range(RUNGS)][::-1]
        self.source, self.dataset, self.store = source, dataset, store
        self.how = {"force": force, "retry_failed": retry_failed}
        self.records: dict[str, RunRecord] = {}
        self.planned_keys: set[str] = set()
        self.notes: tuple[str, ...] = ()
        if self.tune.sampler == "optuna":
            check_optuna()

        # the grid that would run without tuning says which methods there are
        unused_seeds = (seed for seed in count(FIRST_SEED) if seed not in settings.seeds)
        self.seeds = tuple(islice(unused_seeds, self.tune.seeds))
        balancers = tuple(_without_sweep(text) for text in settings.balancers)
        self.settings = settings.model_copy(update={"balancers": balancers})
        self.untuned = self._plan(self.settings, self.seeds[:1])
        cells = [planned.cell for planned in self.untuned.cells]
        models = {cell.model: cell.resolved["model"]["name"] for cell in cells}
        self.baselines = tuple(model for model, name in models.items() if is_baseline(name))
        pairs = dict.fromkeys((cell.model, cell.balancer) for cell in cells)
        pairs = {pair: None for pair in pairs if pair[0] not in self.baselines}
        self.searches = [Search(parse_spec(m), parse_spec(b)) for m, b in pairs]
        _check_space(self.tune.space, self.searches)
        for search in self.searches:
            search.space = self._space(search)
        trials = self.climbers[0] if self.climbers else MOST_TRIALS
        check_count(max(self.trial_cells, self.chosen_cells))
        self.points = sobol_points(trials, self.tune.seed)

    @property
    def trial_execution(self) -> ExecutionSettings:
        """How trials are run: nobody looks at their probes, scores and weights."""
        left_out = ("probes", "ablation", "save_scores", "save_weights")
        return self.settings.execution.model_copy(update=dict.fromkeys(left_out, False))

    @property
    def climbers(self) -> list[int]:
        """The number of trials of a method at each rung; empty if only its runs will tell."""
        if self.limited != "trials":
            return []
        climbers = [int(self.budget)]
        for _ in self.shares[1:]:
            climbers.append(math.ceil(climbers[-1] / (self.tune.halving or 1)))
        return climbers

    @property
    def trial_cells(self) -> int:
        """Number of cells of the first phase, as far as it is known."""
        return len(self.searches) * sum(self.climbers) * len(self.seeds)

    @property
    def limit_text(self) -> str:
        """What ends the trials of a method, if not their number."""
        unit = {"trials": "", "seconds": "s", "rows": "training rows"}[self.limited]
        return unit and f"{self.budget:,.12g} {unit}"

    @property
    def chosen_cells(self) -> int:
        """Number of cells of the second phase."""
        return (len(self.searches) + len(self.baselines)) * len(self.settings.seeds)

    # --- the two phases

    def run_trials(self, run: Callable[[Plan], object]) -> Plan:
        """The first phase, whose plans are left to ``run``, and the plan of the second.

        Raises:
            MtlkitError: Trials were left without a record.
            OSError: The studies cannot be written.
        """
        while (trials := self.next_trials()).cells:
            self.save()  # from now on a report knows what is a trial
            run(trials)
        return self.choose()

    def next_trials(self) -> Plan:
        """The trials that can be planned now and were not before, the first ones of all methods
        first; without cells after the last.
        """
        planned: dict[str, PlannedCell] = {}
        while ready := [
            candidate
            for search in self.searches
            for candidate in (self._begin(search) or self._climb(search))
        ]:
            for candidate in ready:
                rung = candidate.rungs[candidate.reached - 1]
                planned |= {entry.cell.key: entry for entry in rung}

        # points of a small space may be the same, and then are one cell
        new = [entry for key, entry in planned.items() if key not in self.planned_keys]
        self.planned_keys |= planned.keys()
        return replace(self.untuned, cells=new, notes=(*self.untuned.notes, *self._equal_rungs()))

    def choose(self) -> Plan:
        """Write the studies with their choices; return the cells of the chosen settings.

        Raises:
            MtlkitError: Trials have no record.
        """
        runs = [cell for search in self.searches for cell in search.cells]
        missing = [cell for cell in runs if self._record(cell) is None]
        if missing:
            raise MtlkitError(
                f"{len(missing)} trials have no record, the first of them {missing[0].label}.",
                "run the same command again: what was stored is kept",
            )

        found = zip(self.searches, self.save(), strict=True)
        grids = [
            self._grid(search, study.chosen.settings) for search, study in found if study.chosen
        ]
        if self.baselines:
            model = known_options(self.settings.model, self.baselines)
            only_they = {"models": self.baselines, "references": (), "model": model}
            grids.append(self.settings.model_copy(update=only_they))
        plans = [self._plan(grid, self.settings.seeds) for grid in grids]
        planned = {entry.cell.key: entry for plan in plans for entry in plan.cells}
        position = {seed: i for i, seed in enumerate(self.settings.seeds)}
        cells = sorted(planned.values(), key=lambda entry: position[entry.cell.seed])
        return replace(self.untuned, cells=cells)

    def save(self) -> list[Study]:
        """Write the studies as far as they are known, and return them."""
        studies = [self._study(search) for search in self.searches]
        for study in studies:
            earlier = read_study(study_file(self.store.root, study.id))
            if isinstance(earlier, Unreadable):
                self.notes += (f"{earlier}. It is made again from its runs.",)
            elif earlier is not None and len(earlier.trials) > len(study.trials):
                # trials of a larger budget stay known as such
                more = (*study.trials, *earlier.trials[len(study.trials) :])
                study = study.model_copy(update={"trials": more})
            write_study(self.store.root, study)
        return studies

    # --- trials

    def _begin(self, search: Search) -> list[Candidate]:
        """The next trial of a search, if there is one and it can be planned now."""
        if not self._can_begin(search):
            return []
        point = self._next_point(search)
        tasks = len(self.dataset.schema.tasks)
        changes = {} if point is None else settings_at(search.space, point, tasks)
        rungs = [
            self._plan(self._grid(search, changes, share), self.seeds).cells
            for share in self.shares
        ]
        search.candidates.append(Candidate(point, changes, rungs))
        return search.candidates[-1:]

    def _can_begin(self, search: Search) -> bool:
        """Whether there is a next trial. What depends on those before it waits for their runs: the
        points of Optuna, and whether a budget of seconds or rows is spent.
        """
        number = len(search.candidates)
        if self.limited != "trials":
            within = number < MOST_TRIALS and self._is_over(search)
            return within and self._cost(search) < self.budget
        free = self.tune.sampler == "sobol" or number < STARTUP
        return number < self.budget and (free or self._is_over(search))

    def _is_over(self, search: Search) -> bool:
        """Whether all runs that were planned have a record."""
        return all(self._record(cell) for cell in search.cells)

    def _cost(self, search: Search) -> float:
        """The seconds or rows of the trials so far. A failed run has no cost in its record, and
        counts like the mean of the others; where nothing else came, the budget ends after some.
        """
        records = [record for cell in search.cells if (record := self._record(cell))]
        finished = [record for record in records if record.ok]
        if not finished:
            return math.inf if len(search.candidates) >= STARTUP else 0.0
        cost = _seconds if self.limited == "seconds" else _rows_seen
        return sum(map(cost, finished)) * len(records) / len(finished)

    def _climb(self, search: Search) -> list[Candidate]:
        """Let the best trials of the highest rung go on to the next one, when all there are over;
        returns them.
        """
        climbing = self._climbing(search)
        for candidate in climbing:
            candidate.reached += 1
        return climbing

    def _climbing(self, search: Search) -> list[Candidate]:
        """The trials that can go on now: the first of equals, and no failures. Where all that went
        on have failed, the next best take their place.
        """
        if self._can_begin(search) or not self._is_over(search):
            return []
        for rung in range(len(self.shares), 0, -1):
            values = {
                number: value
                for number, candidate in enumerate(search.candidates)
                if candidate.reached == rung
                and (value := self._value(candidate, rung - 1)) is not None
            }
            if values:
                # the highest rung with a success; from the last one nothing goes on
                most = self.climbers[rung] if rung < len(self.shares) else 0
                best = sorted(values, key=lambda number: -values[number])[:most]
                return [search.candidates[number] for number in sorted(best)]
        return []

    def _equal_rungs(self) -> list[str]:
        """A sentence where two rungs have the same number of steps, as of a tiny data set."""
        training, rows = self.settings.training, len(self.dataset.splits["train"])
        epochs = [training.epochs * share for share in self.shares]
        steps = [training.model_copy(update={"epochs": each}).steps(rows) for each in epochs]
        if len(set(steps)) == len(steps):
            return []
        counts = ", ".join(map(str, steps))
        return [f"the rungs of halving have {counts} steps: those of one length tell nothing new"]

    def _next_point(self, search: Search) -> np.ndarray | None:
        """The point of the next trial; None for the first, which has the defaults."""
        number = len(search.candidates)
        if number == 0:
            return None
        if self.tune.sampler == "sobol" or number < STARTUP or not search.space:
            return np.asarray(self.points[number - 1])
        tried = search.candidates[1:]
        points = np.stack([candidate.point for candidate in tried if candidate.point is not None])
        values = [self._value(candidate, 0) for candidate in tried]
        tasks = len(self.dataset.schema.tasks)
        return tpe_point(search.space, tasks, points, values, self.tune.seed)

    def _grid(self, search: Search, changes: dict[str, Any], share: float = 1.0) -> GridSettings:
        """The grid of one method with some settings, and so long that it sees a share of the rows.
        A schedule of the learning rate is then as much shorter, and comes to its end.
        """
        training = {}
        common = {"model": dict(self.settings.model), "balancer": self.settings.balancer}
        given: dict[str, dict[str, Any]] = {"model": {}, "balancer": {}}
        for name, value in changes.items():
            if name in TrainingSettings.model_fields:
                training[name] = value
            elif "." not in name:
                common["model"][name] = value

        # options of its own stand in brackets; of the common ones, those that it has
        typed = {"balancer": "uniform"}
        for spec, registry in search.methods:
            options = registry.load(spec.name).Options.model_fields
            names = {f"{spec.name}.{key}": key for key in options}
            own = {names[name]: value for name, value in changes.items() if name in names}
            typed[registry.kind] = str(Spec(spec.name, spec.options | own))
            of_all = common[registry.kind]
            given[registry.kind] = {key: of_all[key] for key in of_all if key in options}
        if share < 1:
            values = self.settings.training.model_dump() | training
            training["epochs"] = float(f"{values['epochs'] * share:.4g}")
            training["evaluations"] = max(1, round(values["evaluations"] * share))
        update = {
            "models": (typed["model"],),
            "balancers": (typed["balancer"],),
            "references": (),
            "training": validate(
                TrainingSettings,
                self.settings.training.model_dump() | training,
                "tuned training",
                "mtlkit info mmoe shows a search space",
            ),
        }
        return self.settings.model_copy(update=update | given)

    def _plan(self, grid: GridSettings, seeds: tuple[int, ...]) -> Plan:
        grid = grid.model_copy(update={"seeds": seeds})
        return make_plan(grid, self.source, self.dataset, self.store, **self.how)

    # --- spaces

    def _space(self, search: Search) -> Space:
        """What is tuned of a model under a balancer: the declared ranges, and over them those of
        the settings. What was typed, or set to another value than by default, stays as it is.
        """
        space = self._shared_space(search.model)
        for number, (spec, registry) in enumerate(search.methods, start=1):
            typed = {*spec.options, *getattr(self.settings, registry.kind)}
            asked_for = self.tune.space.get(spec.name) or {}
            declared = registry.load(spec.name).search_space | asked_for
            for i, (key, written) in enumerate(declared.items()):
                if written is not None and (key in asked_for or key not in typed):
                    name = f"{spec.name}.{key}"
                    space[name] = Axis(Dimension.read(name, written), number * OWNERS + i)
        return space

    def _shared_space(self, model: Spec) -> dict[str, Axis]:
        """Settings of the training, and options that models share."""
        asked_for = {name: value for name, value in self.tune.space.items() if _is_shared(value)}
        defaults = TrainingSettings.model_validate(self.source.training)
        model_class = MODELS.load(model.name)
        options = model_class.Options.model_fields.keys() - model_class.search_space.keys()

        space = {}
        for column, (name, written) in enumerate((TRAINING | MODEL | asked_for).items()):
            if name in TrainingSettings.model_fields:
                is_fixed = getattr(self.settings.training, name) != getattr(defaults, name)
            elif name in options:
                is_fixed = name in model.options or name in self.settings.model
            else:
                continue  # of other models
            if written is not None and (name in asked_for or not is_fixed):
                space[name] = Axis(Dimension.read(name, written), column)
        return space

    # --- what came of them

    def _record(self, cell: Cell) -> RunRecord | None:
        """What the store has of a cell. Failures are looked up again, for they may be retried;
        one that is planned anew does not count before.
        """
        record = self.records.get(cell.key) or self.store.get(cell)
        waits = self.how["retry_failed"] and cell.key not in self.planned_keys
        if record is not None and not record.ok and waits:
            return None
        if record is not None and record.ok:
            self.records[cell.key] = record
        return record

    def _value(self, candidate: Candidate, rung: int) -> float | None:
        """The mean of a trial over its seeds, at one of its rungs; None if it has not reached that,
        or one of its runs failed, or is not over.
        """
        if rung >= candidate.reached:
            return None
        values = []
        for entry in candidate.rungs[rung]:
            record = self._record(entry.cell)
            if record is None or not record.ok:
                return None
            values.append(self._validation_value(record))
        mean = float(np.mean(values))
        return mean if math.isfinite(mean) else None

    def _validation_value(self, record: RunRecord) -> float:
        """What the rule of the settings says of a run, on validation alone, higher is better.

        Tasks that share no parameter were selected each by itself: then it is their mean.
        """
        training = record.cell.resolved["training"]
        which = training["select"].partition(":")[0]
        values = {name: float(best["value"]) for name, best in record.best.items()}
        if which in values:
            return values[which]
        weights = dict.fromkeys(values, 1.0)
        if which == "weighted":
            for task in self.dataset.schema.tasks:
                weights[task.name] = training["select_weights"].get(task.name, task.weight)
        total = sum(weights[name] for name in values)
        return sum(weights[name] * value for name, value in values.items()) / (total or math.nan)

    def _study(self, search: Search) -> Study:
        """The study of a search, with a choice if all its trials are over."""
        trials = tuple(self._trial(candidate) for candidate in search.candidates)
        first = search.candidates[0].rungs[-1][0].cell
        goes_on = self._can_begin(search) or self._climbing(search)
        over = self._is_over(search) and not goes_on

        # the first of the best; where all failed, the defaults, whose failure is a row
        values = [-math.inf if trial.value is None else trial.value for trial in trials]
        space = {name: axis.dimension.plain() for name, axis in search.space.items()}
        tune = self.tune
        identity = [first.group, space, tune.sampler, tune.seed, list(self.seeds)]
        identity += [tune.halving] if tune.halving else []
        return Study(
            id=digest(identity),
            model=str(search.model),
            balancer=str(search.balancer),
            training=digest(first.resolved["training"]),
            sampler=tune.sampler,
            seed=tune.seed,
            seeds=self.seeds,
            select=self.settings.training.select,
            space=space,
            budget=tune.trials or len(trials),
            limit=self.limit_text,
            halving=tune.halving,
            typed=self._typed(search),
            trials=trials,
            choice=int(np.argmax(values)) if over else None,
        )

    def _typed(self, search: Search) -> dict[str, Any]:
        """What was typed of a search beside its methods and its budget, as ``--set`` takes it."""
        training, defaults = (
            each.model_dump(mode="json")
            for each in (
                self.settings.training,
                TrainingSettings.model_validate(self.source.training),
            )
        )
        differs = {name: training[name] for name in training if training[name] != defaults[name]}
        typed = dict(flatten(differs))
        typed |= typed_common(self.settings, str(search.model), str(search.balancer))

        # of the space what its methods and the references read; a grid of these knows nothing else
        known = {*TrainingSettings.model_fields, search.model.name, search.balancer.name}
        references = expand_wildcards(running_references(self.settings), MODELS)
        for spec in (search.model, *references):
            known |= {spec.name, *owner(MODELS, spec.name).load(spec.name).Options.model_fields}
        space = {name: written for name, written in self.tune.space.items() if name in known}
        return typed | dict(flatten({"tune": {"space": space}}))

    def _trial(self, candidate: Candidate) -> Trial:
        finished = [record for cell in candidate.cells if (record := self._record(cell))]
        return Trial(
            settings=candidate.settings,
            keys=[entry.cell.key for rung in candidate.rungs for entry in rung],
            group=candidate.rungs[-1][0].cell.group,
            value=self._value(candidate, len(self.shares) - 1),
            rungs=self._rungs(candidate) if self.tune.halving else (),
            failed=sum(not record.ok for record in finished),
            seconds=sum(map(_seconds, finished)),
            rows=sum(map(_rows_seen, finished)),
        )

    def _rungs(self, candidate: Candidate) -> tuple[Rung, ...]:
        """What is written of each rung that a trial has reached."""
        rungs = []
        for number, entries in enumerate(candidate.rungs[: candidate.reached]):
            records = [record for entry in entries if (record := self._record(entry.cell))]
            epochs = entries[0].cell.resolved["training"]["epochs"]
            value, rows = self._value(candidate, number), sum(map(_rows_seen, records))
            rungs.append(Rung(epochs=epochs, value=value, rows=rows))
        return tuple(rungs)


def _seconds(record: RunRecord) -> float:
    return record.timing.get("total_seconds", 0.0)


def _rows_seen(record: RunRecord) -> int:
    training = record.cell.resolved["training"]
    rows_per_step = training["batch_size"] * training["accumulate"]
    return int(record.cost.get("steps", 0)) * int(rows_per_step)


def _without_sweep(text: str) -> str:
    return SWEPT if parse_spec(text).name == SWEEP else text


def _is_shared(written: Any) -> bool:
    """Whether an entry of the space is a range, or the lack of one, and no options of a method."""
    return written is None or is_dimension(written)


def _check_space(space: dict[str, Any], searches: list[Search]) -> None:
    """Every name of a space must be a setting of the training, an option of a model of the grid, or
    a method of it with some of its options.

    Raises:
        UsageError: One is none of them.
    """
    methods: dict[str, set[str]] = {}
    shared = set(TrainingSettings.model_fields)
    for search in searches:
        for spec, registry in search.methods:
            methods[spec.name] = set(registry.load(spec.name).Options.model_fields)
        shared |= methods[search.model.name]

    for name, written in space.items():
        if name not in methods:
            _check_name(name, shared if _is_shared(written) else shared | methods.keys())
            continue
        for key in written or ():
            _check_name(f"{name}.{key}", {f"{name}.{option}" for option in methods[name]})


def _check_name(name: str, known: set[str]) -> None:
    """Raise a :class:`UsageError` for a name that is not known."""
    if name not in known:
        guess = did_you_mean(nearest_names(name, sorted(known)))
        message = f"Nothing that can be tuned in this grid is called {name!r}.{guess}"
        raise UsageError(message, "mtlkit info mmoe shows a search space")
