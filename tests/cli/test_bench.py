import shlex
from pathlib import Path

import pytest
import yaml

import mtlkit
from mtlkit.data.data_home import last_fetched, remember
from mtlkit.data.sources import open_source
from mtlkit.errors import MissingError
from mtlkit.grid.grid_settings import read_grid
from mtlkit.grid.methods import owner
from mtlkit.registry import BALANCERS, DATASETS, MODELS
from mtlkit.store import ResultStore
from tests.conftest import DATA
from tests.fakes import cell, failure

BENCHMARKS = Path(mtlkit.__file__).parents[1] / "benchmarks"
GRIDS = sorted(BENCHMARKS.glob("*.yaml"))


# --- what a grid that ran says
# ----------------------------------------------------------------------------------------


def test_some_failed(story):
    result = story.finished
    assert result.code == 1
    assert "Traceback" not in result.err


def test_a_line_a_cell(story):
    lines = [line for line in story.finished.err.splitlines() if line.startswith("[")]
    assert [line[:6] for line in lines] == [f"[{i}/6] " for i in range(1, 7)]
    waits, raises, broken, exits, uwl, killed = lines
    assert "seed 0: task-1 0." in waits
    assert "seed 0: task-1 0." in uwl
    assert "raises.py, seed 0: failed: raises.py raises ValueError in line 16: bad luck" in raises
    assert "broken.py, seed 0: failed at step" in broken
    assert "ended with code 7" in exits
    assert "killed by SIGKILL" in killed


def test_the_table_goes_to_stdout_and_talk_to_stderr(story):
    result = story.finished
    assert "simulated" in result.out
    assert "task-1 AUC" in result.out
    assert "uniform" in result.out
    assert "failed" in result.out
    assert f"mtlkit report {story.out}" in result.err
    assert "mtlkit report" not in result.out


def test_what_failed_before_is_not_run_and_still_counts(story, cli):
    again = cli(*story.command)
    assert again.code == 1
    assert ": 3 done, 4 failed before." in again.err
    assert "--retry-failed" in again.err
    assert again.out == story.finished.out


def test_all_done(story, cli):
    """A subset of the grid: every cell of it is finished, so nothing is run."""
    command = [word if not word.startswith("uniform,") else "uniform,uwl" for word in story.command]
    result = cli(*command)
    assert result.code == 0
    assert "2 cells on synthetic (simulated), tasks task-1, task-2: 2 done." in result.err
    assert "failed" not in result.out


def test_a_dry_run_shows_the_state_of_every_cell(story, cli):
    files = {path: path.read_bytes() for path in story.out.rglob("*") if path.is_file()}
    result = cli(*story.command, "--dry-run", "--seeds", "2")
    assert result.code == 0
    assert ": 7 to run, 3 done, 4 failed before." in result.err
    states = [line for line in result.out.splitlines() if "shared-bottom" in line]
    assert len(states) == 14
    assert sum(" to run " in line for line in states) == 7
    assert sum(" failed before " in line for line in states) == 4
    retried = cli(*story.command, "--dry-run", "--retry-failed")
    assert ": 4 to run, 3 done." in retried.err
    assert {path: path.read_bytes() for path in story.out.rglob("*") if path.is_file()} == files


# --- what is planned
# --------------------------------------------------------------------------------------------------


@pytest.fixture
def dry(cli, home, tmp_path):
    """A dry run on the small data set."""

    def run(*arguments, dataset=DATA):
        given = ["-d", dataset] if dataset else []
        return cli(
            "bench",
            *given,
            "--data-dir",
            home,
            "--out",
            tmp_path / "results",
            "--dry-run",
            *arguments,
        )

    return run


def rows(result):
    """The cells of a plan as (model, balancer, seed, state)."""
    lines = [
        line.split() for line in result.out.splitlines() if " to run " in line or " done " in line
    ]
    return [(model, balancer, int(seed)) for model, balancer, seed, *_ in lines]


def test_a_dry_run_of_many_cells_prints_a_row_a_model(cli, tmp_path):
    arguments = ("--models", "mmoe,ple", "--balancers", "uniform,uwl", "--seeds", "20")
    grid = ("bench", "-d", "synthetic[rows=300]", *arguments, "--out", tmp_path, "--dry-run")
    short = cli(*grid)
    lines = [line.split() for line in short.out.splitlines()]
    assert ["mmoe", "2", "20", "40", "0", "0"] in lines
    assert ["single-task", "1", "20", "20", "0", "0"] in lines
    assert "--dry-run --all lists every cell." in short.err
    every = cli(*grid, "--all")
    assert len([line for line in every.out.splitlines() if "to run" in line]) == 100


def test_the_command_of_the_readme(dry):
    result = dry("--models", "mmoe,ple", "--balancers", "uwl,pareto")
    assert result.code == 0
    pairs = [("single-task", "none"), *((m, b) for m in ("mmoe", "ple") for b in ("uwl", "pareto"))]
    assert rows(result) == [(*pair, seed) for seed in range(3) for pair in pairs]
    assert "15 cells on synthetic (simulated), tasks task-1, task-2: 15 to run." in result.err


def test_references(dry):
    few = ["--models", "mmoe", "--balancers", "uniform", "--seeds", "1"]
    assert rows(dry(*few, "--references", "none")) == [("mmoe", "uniform", 0)]
    assert rows(dry(*few, "--references", "shared-bottom")) == [
        ("shared-bottom", "uniform", 0),
        ("mmoe", "uniform", 0),
    ]


def test_a_subset_of_tasks(dry):
    few = ["--models", "mmoe", "--balancers", "uniform"]
    assert "tasks task-2: " in dry(*few, "--tasks", "task-2").err
    assert "tasks task-2, task-1: " in dry(*few, "--tasks", "task-2,task-1").err
    result = dry(*few, "--tasks", "task-9")
    assert result.code == 2
    assert "hint: its tasks are task-1, task-2" in result.err
    assert dry(*few, "--tasks", "task-1,task-1").code == 2


def test_a_failed_grid_is_told_before_it_runs(dry):
    for arguments, message in [
        (["--models", "mmo"], "error: There is no model called 'mmo'. Did you mean mmoe"),
        (
            ["--balancers", "static[w=1]"],
            "error: static needs one positive weight for each of task-1, task-2.",
        ),
        (["--set", "select=zz"], "error: There is no task 'zz' in this data set."),
        (["--set", "lr=inf"], "error: The option 'training.lr' of the grid cannot be inf"),
        (["--models", "mmoe[experts=4"], "error: Cannot read 'mmoe[experts=4'."),
    ]:
        result = dry(*arguments)
        assert (result.code, result.out) == (2, "")
        assert result.err.startswith(message)
        assert "\n\nhint: " in result.err


DIGITS = "9" * 5000


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--models", ""], 2, "it names nothing"),
        (["--balancers", ","], 2, "it names nothing"),
        (["--tasks", ""], 2, "it names nothing"),
        (["--device", "cuda:9999"], 3, "There is no GPU 'cuda:9999' here"),
        (["--device", "cuda:256"], 3, "There is no GPU 'cuda:256' here"),
        (["--device", f"cuda:{DIGITS}"], 2, "write auto, cpu, cuda, cuda:1"),
        (["--seeds", "1000000000"], 2, "a grid takes at most 10,000 seeds"),
        (["--seeds", DIGITS], 2, "in at most 18 digits"),
        (["--patience", "0"], 2, "The option 'training.patience' of the grid cannot be 0"),
        (["--set", f"experts={DIGITS}"], 2, "cannot be inf"),
        (["--set", "task_weights.task-1=0"], 2, "cannot be 0: input should be greater than 0"),
        (["-d", "synthetic[rows=1e12]"], 2, "1,000,000,000,000 rows of 512 inputs do not fit"),
        (["-d", "synthetic[d=1e12]"], 2, "do not fit into memory"),
        (["-d", "synthetic[m=1e12]"], 2, "less than or equal to 1000"),
        (["-d", "funnel[rows=1e12]"], 2, "less than or equal to 50000000"),
        (["--models", "m" * 5000 + ".py"], 2, "There is no model file"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_wrong_words_are_a_sentence_and_a_hint(dry, arguments, code, words):
    result = dry(*arguments)
    assert (result.code, result.out) == (code, "")
    assert result.err.startswith("error: ")
    assert words in result.err.partition("\n\nhint: ")[0]
    assert "\n\nhint: " in result.err


def test_the_hint_of_too_many_rows_works(dry):
    hint = dry("-d", "synthetic[rows=1e12,d=4]").err.partition("\n\nhint: ")[2]
    (dataset,) = [word for word in shlex.split(hint) if word.startswith("synthetic[")]
    assert open_source(dataset).options.d == 4


def test_a_batch_larger_than_the_data_is_told_in_the_plan(dry):
    few = ["--models", "mmoe", "--balancers", "uniform", "--epochs", "0.5"]
    assert "note a step takes 1,024 rows, but the training split has 200" in dry(*few).err
    assert "note" not in dry(*few, "--batch-size", "200").err


def test_patience_is_a_flag(cli):
    result = cli("bench", "--patience", "3", "--print-config")
    assert yaml.safe_load(result.out)["training"]["patience"] == 3


def test_models_that_do_not_apply_are_shown_with_the_reason(dry, tmp_path):
    file = tmp_path / "funnel.py"
    file.write_text(
        '"""F: f."""\nfrom mtlkit.models.mmoe import MMoE\n\n\nclass F(MMoE):\n    @classmethod\n'
        '    def inapplicable(cls, schema):\n        return "has no funnel"\n'
    )
    result = dry("--models", f"mmoe,{file}[experts=4]", "--balancers", "uniform")
    assert result.code == 0
    assert f"n/a {file}[experts=4]: synthetic has no funnel" in result.err
    assert "n/a: synthetic has no funnel" in result.out
    assert len(rows(result)) == 6
    assert len(rows(dry("--models", f"mmoe,{file}", "--balancers", "uniform", "--force"))) == 9


def test_a_file_may_be_a_balancer(dry, plugin, tmp_path):
    name = plugin(tmp_path, "b.py")
    result = dry(
        "--models", "mmoe", "--balancers", f"uniform,{name}", "--seeds", "1", "--references", "none"
    )
    assert rows(result) == [("mmoe", "uniform", 0), ("mmoe", name, 0)]


def test_results_of_an_earlier_version_of_the_settings_are_kept_apart(dry, tmp_path):
    store = ResultStore(tmp_path / "results")
    store.save(failure(cell(dataset="synthetic")))
    assert ": 21 to run." in dry().err


def test_the_data_set_fetched_last(dry, cli, home, tmp_path):
    remember(home, DATA)
    result = dry(dataset=None)
    assert f"Data set {DATA} (fetched last)." in result.err
    assert result.code == 0
    fresh = tmp_path / "home"
    assert cli("fetch", "synthetic[rows=16,d=3]", "--data-dir", fresh).code == 0
    assert last_fetched(fresh) == "synthetic[rows=16,d=3]"
    assert (
        "Data set synthetic[rows=16,d=3] (fetched last)."
        in cli("bench", "--dry-run", "--data-dir", fresh).err
    )


def test_census_where_nothing_was_fetched(cli, tmp_path, monkeypatch):
    asked = []

    def prepare(text, home, **_):
        asked.append((text, home))
        raise MissingError("There is no network.", "mtlkit fetch census --from FILE")

    monkeypatch.setattr("mtlkit.data.sources.prepare", prepare)
    monkeypatch.setenv("MTLKIT_DATA", str(tmp_path))
    result = cli("bench")
    assert result.code == 3
    assert asked == [("census", tmp_path)]
    assert "Data set census (none was fetched before)." in result.err
    assert result.err.endswith(
        "error: There is no network.\n\nhint: mtlkit fetch census --from FILE\n"
    )


def test_imports_of_workers_begin_before_the_data_are_looked_at(cli, monkeypatch):
    begun = []
    monkeypatch.setattr("mtlkit.grid.engines.processes.start_early", begun.append)
    for flags, starts in [((), ["cpu"]), (["--dry-run"], []), (["--print-config"], [])]:
        begun.clear()
        # whoever looks for the data says that there are none of this name
        result = cli("bench", "-d", "no-such-data", "--device", "cpu", *flags)
        assert result.code == 2
        assert begun == starts


def test_next_commands_are_quoted(cli, tmp_path):
    """A folder with a blank and an apostrophe in its name, from the data to the report."""
    folder = tmp_path / "my sister's"
    spec = "synthetic[rows=64,d=3]"
    fetched = cli("fetch", spec, "--data-dir", folder)
    command = next(line for line in fetched.err.splitlines() if line.startswith("  mtlkit"))
    assert shlex.split(command) == ["mtlkit", "bench", "-d", spec, "--data-dir", str(folder)]

    few = ["--models", "shared-bottom", "--balancers", "uniform", "--references", "none"]
    quick = ["--seeds", "1", "--epochs", "1", "--batch-size", "32", "--device", "cpu"]
    results = folder / "results"
    ran = cli(*shlex.split(command)[1:], *few, *quick, "--out", results)
    assert ran.code == 0, ran.err
    command = next(line for line in ran.err.splitlines() if line.startswith("  mtlkit"))
    assert shlex.split(command) == ["mtlkit", "report", str(results)]

    # where the report cannot go, the hint is a command that works
    (folder / "file").write_text("")
    for out in (folder / "file", folder / "file" / "report"):
        refused = cli("report", results, "--out", out)
        assert (refused.code, refused.out) == (3, "")
        message, hint = refused.err.strip().split("\n\nhint: ")
        assert message.startswith(f"error: The report folder {out} cannot be made: ")
        assert shlex.split(hint)[:4] == ["mtlkit", "report", str(results), "--out"]


def test_results_that_cannot_be_written(cli, home, tmp_path):
    (tmp_path / "file").write_text("")
    arguments = [
        "--models",
        "mmoe",
        "--balancers",
        "uniform",
        "--seeds",
        "1",
        "--out",
        tmp_path / "file" / "results",
    ]
    result = cli("bench", "-d", DATA, "--data-dir", home, *arguments)
    assert result.code == 3
    assert "error: The results folder" in result.err
    assert "hint: choose another with --out DIR" in result.err


# --- YAML
# -------------------------------------------------------------------------------------------------------------

FLAGS = (
    "-d synthetic[rows=200,d=4] --models mmoe[experts=4,hidden=64:32],ple --seeds 4,7 "
    "--balancers static[w=1:2] --references none --epochs 0.5 --lr 1e-3 --jobs 2 "
    "--set tower.task-1=64:32 --set dropout=.1 --set clip_norm=1e-5 --set probes=false"
)


@pytest.mark.parametrize("flags", ["", FLAGS], ids=["defaults", "flags"])
def test_what_is_printed_gives_the_same_grid(cli, tmp_path, flags):
    result = cli("bench", "--print-config", *flags.split())
    assert (result.code, result.err) == (0, "")
    file = tmp_path / "grid.yaml"
    file.write_text(result.out)
    assert cli("bench", file, "--print-config") == result
    grid = read_grid(file, {}, [])
    if flags:
        assert grid.models == ("mmoe[experts=4,hidden=64:32]", "ple")
        assert grid.seeds == (4, 7)
        assert grid.references == ()
        assert (grid.training.epochs, grid.training.lr, grid.training.clip_norm) == (
            0.5,
            0.001,
            1e-5,
        )
        assert grid.model == {"tower": {"task-1": [64, 32]}, "dropout": 0.1}
        assert (grid.execution.jobs, grid.execution.probes) == (2, False)


def test_flags_override_a_file(cli, tmp_path):
    file = tmp_path / "grid.yaml"
    file.write_text(
        "models: [mmoe]\nbalancers: uwl\nseeds: 2\ntraining:\n  lr: 0.5\n  epochs: 3\nout: there\n"
    )
    result = cli(
        "bench", file, "--models", "ple", "--lr", "0.1", "--set", "epochs=4", "--print-config"
    )
    config = yaml.safe_load(result.out)
    assert (config["models"], config["balancers"], config["seeds"]) == (["ple"], ["uwl"], [0, 1])
    assert (config["training"]["lr"], config["training"]["epochs"], config["out"]) == (
        0.1,
        4.0,
        "there",
    )


def test_a_file_is_planned(dry, tmp_path):
    file = tmp_path / "grid.yaml"
    file.write_text("models: mmoe\nbalancers: [uwl]\nseeds: 1\nreferences: []\n")
    assert rows(dry(file)) == [("mmoe", "uwl", 0)]


@pytest.mark.parametrize(
    "text",
    [
        "models: [mmoe",
        "modles: mmoe",
        "training: {lr: fast}",
        "- mmoe",
        "tasks: []",
        "seeds: true",
        "models: mmoe\nmodels: ple",
        "a: " + "[" * 3000,
        "seeds: " + DIGITS,
    ],
    ids=lambda text: text[:40],
)
def test_files_that_are_wrong(cli, tmp_path, text):
    file = tmp_path / "grid.yaml"
    file.write_text(text)
    result = cli("bench", file)
    assert result.code == 2
    assert result.err.startswith("error: ")
    assert "\n\nhint: mtlkit bench --print-config" in result.err


@pytest.mark.parametrize("file", GRIDS, ids=lambda file: file.name)
def test_published_grids(file):
    grid = read_grid(file, {}, [])
    assert file.read_text().startswith("#"), "says what it is for"
    for registry, specs in ((MODELS, grid.models + grid.references), (BALANCERS, grid.balancers)):
        for text in specs:
            name = text.partition("[")[0]
            assert owner(registry, name).names(name), f"{name} is no {registry.kind}"
    assert grid.dataset is None or DATASETS.check(grid.dataset.partition("[")[0])


def test_grids_are_published():
    assert BENCHMARKS.is_dir()
    assert [file.name for file in GRIDS] == sorted(
        file.name for file in BENCHMARKS.iterdir() if file.suffix == ".yaml"
    )
    assert GRIDS
