"""Model and balancer files of the user's that fail: in the plan a sentence, in a run a failed cell.

What fails at import is in ``tests/test_registry.py``.
"""

import json

import pytest

from mtlkit.store import ResultStore

MODEL = """
from mtlkit import Architecture, FieldEmbedding, ModelOptions, StackedMLP, Towers


class Mine(Architecture):
    class Options(ModelOptions):
        width: int = 4

    def __init__(self, schema, options):
        super().__init__(schema, options)
        self.embedding = FieldEmbedding(schema, options)
        self.bottom = StackedMLP(1, self.embedding.width, (options.width,), options)
        self.towers = Towers(self.tasks, self.bottom.outputs, options)

    def forward(self, batch):
        x = self.embedding(batch)
        h = self.bottom(x).expand(-1, len(self.tasks), -1)
        output = self.output(self.towers(h), x)
        return output
"""
BALANCER = """
from mtlkit import Balancer


class Mine(Balancer):
    def forward(self, step):
        return step.active.float()
"""


@pytest.fixture
def bench(cli, home, tmp_path):
    """Writes a file, plans or runs a grid of it, and returns the result and the file."""

    def run(text, *more):
        file = tmp_path / "mine.py"
        file.write_text(text)
        kind = "--models" if "Architecture" in text else "--balancers"
        other = "uniform" if kind == "--models" else "shared-bottom"
        result = cli(
            "bench",
            *("-d", "synthetic[rows=200,d=4]", "--data-dir", home, "-o", tmp_path / "results"),
            *(kind, file, "--balancers" if kind == "--models" else "--models", other),
            *("--references", "none", "--seeds", 1, "--epochs", 1, *more),
        )
        assert "Traceback" not in result.out + result.err
        return result, file

    return run


IN_THE_PLAN = {
    "applies": (
        MODEL + "    @classmethod\n    def inapplicable(cls, schema):\n        return 1 / 0\n",
        "raises ZeroDivisionError in line 22: division by zero.",
    ),
    "check": (
        MODEL + "    @classmethod\n    def check(cls, schema, options):\n        exit()\n",
        "raises SystemExit in line 22: None.",
    ),
    "validator": (
        MODEL.replace("int = 4", "int = 'wide'").replace(
            "        width",
            "        model_config = {'validate_default': True, 'frozen': True}\n        width",
        ),
        "The option 'width' of the model",
    ),
    "init": (
        BALANCER + "    def __init__(self):\n        pass\n",
        "raises TypeError: Mine.__init__() takes 1 positional argument but 3 were given.",
    ),
    "init raises": (
        BALANCER + "    def __init__(self, tasks, options):\n        raise OSError(5, 'no disk')\n",
        "raises OSError in line 9: [Errno 5] no disk.",
    ),
    "sweep": (
        BALANCER + "    @classmethod\n    def expand(cls, *_):\n        return 3\n",
        "raises TypeError: 'int' object is not iterable.",
    ),
    "needs": (
        BALANCER + "    needs = 'all'\n",
        "raises TypeError in line 5: Mine.needs is 'all', not one of",
    ),
    "scale": (
        BALANCER + "    scale = 'big'\n",
        "raises TypeError in line 5: Mine.scale is 'big', not one of",
    ),
    "scopes": (
        BALANCER + "    scopes = ('everything',)\n",
        "raises TypeError in line 5: Mine.scopes is ('everything',), not some of",
    ),
    "scopes of a number": (BALANCER + "    scopes = 3\n", "raises TypeError in line 5: "),
}


@pytest.mark.parametrize("case", IN_THE_PLAN)
def test_what_fails_in_the_plan(bench, case):
    text, message = IN_THE_PLAN[case]
    result, file = bench(text, "--dry-run")
    assert result.code == 2, result.err
    [error, hint] = result.err.split("\n\nhint: ")
    assert message in error
    assert str(file) in error
    assert len(error.splitlines()) == 1
    assert hint.strip()


def replace_answer(text):
    """The files with another answer of their ``forward``."""
    return MODEL.replace("return output", text), BALANCER.replace(
        "return step.active.float()", text
    )


IN_A_RUN = {
    "raises": (replace_answer("raise KeyError('colour')"), "KeyError in line {line}: 'colour'"),
    "exits": (replace_answer("raise SystemExit(0)"), "SystemExit in line {line}: 0"),
    "two lines": (replace_answer("raise ValueError('a\\nb.')"), "ValueError in line {line}: a b"),
}


@pytest.mark.parametrize("case", IN_A_RUN)
@pytest.mark.parametrize("kind", ["model", "balancer"])
def test_what_fails_in_a_run(bench, tmp_path, kind, case):
    (model, balancer), message = IN_A_RUN[case]
    text, line = (model, 19) if kind == "model" else (balancer, 7)
    result, file = bench(text)
    assert result.code == 1
    expected = f"{file.name} raises {message.format(line=line)}"
    assert f"failed: {expected}" in result.err
    [record] = (tmp_path / "results").rglob("record.json")
    assert json.loads(record.read_text())["error"]["message"] == expected
    assert ResultStore.record(record.parent) is not None


WRONG_ANSWERS = {
    "no output": ("return None", "The forward of Mine gives a NoneType, not an Output."),
    "logits alone": ("return self.towers(h)", "The forward of Mine gives a list, not an Output."),
    "a mapping": ("return {'task-1': x}", "The forward of Mine gives a dict, not an Output."),
    "one task": (
        "output.predictions.pop()\n        return output",
        "The forward of Mine gives no prediction of task-2.",
    ),
    "other rows": (
        "output.predictions[1].logits = output.predictions[1].logits[:3]\n        return output",
        "The forward of Mine gives logits (3,) of task-2, not (200,).",
    ),
    "a column": (
        "output.predictions[0].logits = output.predictions[0].logits[:, None]\n        return output",
        "The forward of Mine gives logits (200, 1) of task-1, not (200,).",
    ),
}


@pytest.mark.parametrize("case", WRONG_ANSWERS)
def test_a_model_that_answers_something_else(bench, case):
    text, message = WRONG_ANSWERS[case]
    result, _ = bench(MODEL.replace("return output", text))
    assert result.code == 1
    assert f"failed: {message}"[:-1] in result.err


@pytest.mark.parametrize("answer", ["None", "[1.0, 1.0]", "1.0", "'x'", "(step.active.float(), 1)"])
def test_a_balancer_that_answers_something_else(bench, answer):
    result, _ = bench(BALANCER.replace("step.active.float()", answer))
    assert result.code == 1
    name = type(eval(answer.replace("step.active.float()", "0"))).__name__
    assert f"failed: Mine answered a step with {name}, not with a tensor" in result.err


# --- names decide nothing


@pytest.mark.parametrize("name", ["single-task.py", "single_task.py"])
@pytest.mark.parametrize("declared", [False, True])
def test_a_reference_is_one_that_says_so(cli, home, tmp_path, name, declared):
    """Rows are compared with a model because of what its file says, and not of what it is called."""
    file = tmp_path / name
    file.write_text(
        MODEL.replace("    class Options", f"    is_reference = {declared}\n\n    class Options")
    )
    arguments = ("-d", "synthetic[rows=200,d=4]", "--data-dir", home, "-o", tmp_path / "results")
    grid = ("--models", f"{file},shared-bottom", "--balancers", "uniform", "--references", "none")
    result = cli("bench", *arguments, *grid, "--seeds", 2, "--epochs", 1)
    assert result.code == 0
    assert ("ref." in result.out) == declared


def test_a_balancer_called_none_is_shown(cli, home, tmp_path):
    file = tmp_path / "none.py"
    file.write_text(BALANCER)
    arguments = ("-d", "synthetic[rows=200,d=4]", "--data-dir", home, "-o", tmp_path / "results")
    grid = ("--models", "shared-bottom", "--balancers", file, "--references", "none")
    result = cli("bench", *arguments, *grid, "--seeds", 1, "--epochs", 1)
    assert result.code == 0
    assert ["shared-bottom", "none"] in [line.split()[:2] for line in result.out.splitlines()]
