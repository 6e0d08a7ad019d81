import json

import pytest

from mtlkit.registry import REGISTRIES
from tests.test_registry import MINE

EVERY = [(kind, name) for kind, registry in REGISTRIES.items() for name in registry.names()]


@pytest.mark.parametrize("kind", REGISTRIES)
def test_list(cli, kind):
    result = cli("list", kind)
    assert result.code == 0
    lines = result.out.splitlines()
    assert [line.split()[0] for line in lines] == REGISTRIES[kind].names()
    assert all(len(line.split()) > 1 for line in lines), "every name has a summary"


@pytest.mark.parametrize("kind", REGISTRIES)
def test_list_as_json(cli, kind):
    result = cli("list", kind, "--json")
    entries = json.loads(result.out)
    assert [entry["name"] for entry in entries] == REGISTRIES[kind].names()
    assert all(entry["summary"] for entry in entries)
    assert result.err == ""


def test_list_with_a_wildcard(cli):
    names = [entry["name"] for entry in json.loads(cli("list", "models", "?moe", "--json").out)]
    assert {"mmoe", "omoe"} <= set(names)
    assert "ple" not in names
    assert json.loads(cli("list", "models", "zz*", "--json").out) == []


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_info_of_everything(cli, kind, name):
    registry = REGISTRIES[kind]
    result = cli("info", name)
    assert (result.code, result.err) == (0, "")
    assert result.out.split()[:2] == [name, registry.kind]
    assert registry.summary(name).replace("``", "") in result.out
    options = registry.load(name).Options.model_fields
    assert all(option in result.out for option in options)
    facts = json.loads(cli("info", name, "--json").out)
    assert (facts["name"], facts["kind"]) == (name, registry.kind)
    assert {option["name"] for option in facts["options"]} == set(options)
    assert facts["description"] == registry.docstring(name)
    if kind == "balancers":
        assert facts["needs"] in {"losses", "norms", "gram", "rows"}
        assert facts["scale"] in {"simplex", "native"}
        assert f"Needs: {facts['needs']}" in result.out


def test_info_says_with_which_others_a_balancer_is_one_method(cli):
    notes = json.loads(cli("info", "fairgrad", "--json").out)["same_as"]
    assert notes[0].startswith(
        "With any number of tasks, fairgrad[alpha=1] and nash are one method"
    )
    assert any(text.startswith("With 2 tasks, ") and "mgda[normalize=l2]" in text for text in notes)
    assert "Note: With any number of tasks, nash and fairgrad[alpha=1]" in " ".join(
        cli("info", "nash").out.split()
    )
    assert json.loads(cli("info", "dwa", "--json").out)["same_as"] == []
    assert "same_as" not in json.loads(cli("info", "mmoe", "--json").out)


@pytest.mark.parametrize("name", [name for kind, name in EVERY if kind != "datasets"])
def test_info_names_the_paper_and_when_to_use(cli, name):
    result = cli("info", name).out
    assert "Paper" in result
    assert "When to use" in result
    assert "Cost" in result


def test_defaults_of_options(cli):
    options = {
        option["name"]: option
        for option in json.loads(cli("info", "mmoe", "--json").out)["options"]
    }
    assert options["experts"] == {
        "name": "experts",
        "default": 8,
        "choices": [],
        "description": "number of experts",
    }
    assert options["hidden"]["default"] == [32]
    assert "relu" in options["activation"]["choices"]


def test_the_example_in_brackets_works(cli):
    result = cli("info", "gradnorm").out
    example = result.partition("in brackets: '")[2].partition("'")[0]
    assert example == "gradnorm[alpha=1.5]"


def test_info_says_what_is_simulated(cli):
    for name, simulated in (
        ("funnel", True),
        ("synthetic", True),
        ("census", False),
        ("ali-ccp", False),
    ):
        assert ("Simulated: " in cli("info", name).out) == simulated
        assert json.loads(cli("info", name, "--json").out)["simulated"] == simulated
    assert "simulated" not in json.loads(cli("info", "mmoe", "--json").out)


def test_info_of_a_file(cli, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(MINE)
    result = cli("info", file)
    assert result.code == 0
    assert "Mine: weighs nothing." in result.out
    assert cli("info", tmp_path / "gone.py").code == 2
