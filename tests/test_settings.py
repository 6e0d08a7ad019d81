import json
import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import Field

from mtlkit.errors import UsageError
from mtlkit.settings import ExecutionSettings, Floats, Settings, Sizes, TrainingSettings, validate
from mtlkit.spec import Spec, assign, canonical_json, digest, parse_spec, parse_value, split_list
from mtlkit.yaml_files import read_yaml

# nine aliases of nine aliases of ..., 4 * 10^8 values
BOMB = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9)
)


class Options(Settings):
    rate: float = Field(0.5, gt=0)
    hidden: Sizes = (32,)
    w: Floats | None = None
    tower: Sizes | dict[str, Sizes] = (16,)
    on: bool = False


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("-2", -2),
        ("0.5", 0.5),
        (".5", 0.5),
        ("1e-3", 0.001),
        ("true", True),
        ("False", False),
        ("none", None),
        ("NULL", None),
        ("", None),
        ("relu", "relu"),
        ("\uff14", "\uff14"),  # a digit 4 of full width
        ("Adam ", "Adam"),
        ("64:32", [64, 32]),
        ("1:0.5:none", [1, 0.5, None]),
        ("mmoe[hidden=64:32]", "mmoe[hidden=64:32]"),
    ],
)
def test_values(text, value):
    assert parse_value(text) == value
    assert type(parse_value(text)) is type(value)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a,b", ["a", "b"]),
        (" a , ,b,", ["a", "b"]),
        ("", []),
        ("a[x=1,y=2],b", ["a[x=1,y=2]", "b"]),
        ("b,a[x=1,y=2]", ["b", "a[x=1,y=2]"]),
        ("a[x=1,y=b[z=2,u=3],v=4],c", ["a[x=1,y=b[z=2,u=3],v=4]", "c"]),
        ("a[x=1,y=b[z=2]],c[d=1]", ["a[x=1,y=b[z=2]]", "c[d=1]"]),
    ],
)
def test_lists_are_split_outside_brackets(text, parts):
    assert split_list(text) == parts


@pytest.mark.parametrize(
    ("text", "name", "options"),
    [
        ("mmoe", "mmoe", {}),
        (" mmoe[] ", "mmoe", {}),
        ("mmoe[experts=16,hidden=64:32]", "mmoe", {"experts": 16, "hidden": [64, 32]}),
        ("m[ a = 1 , b = none ]", "m", {"a": 1, "b": None}),
        (
            "m[tower.income=64:32,tower.marital=none]",
            "m",
            {"tower": {"income": [64, 32], "marital": None}},
        ),
        ("m[a=b=c]", "m", {"a": "b=c"}),
        (
            "outer[inner=mmoe[experts=2,hidden=4:4],n=1]",
            "outer",
            {"inner": "mmoe[experts=2,hidden=4:4]", "n": 1},
        ),
        ("./my/file.py[lr=1e-2]", "./my/file.py", {"lr": 0.01}),
        ("shared-bottom[dropout=.1]", "shared-bottom", {"dropout": 0.1}),
    ],
)
def test_specs(text, name, options):
    assert parse_spec(text) == Spec(name, options)


@pytest.mark.parametrize("text", ["", "[a=1]", "m[a=1", "m]a[", "m[a=1]x", "m[a=1]]", "m[a=n[b=1]"])
def test_specs_that_cannot_be_read(text):
    with pytest.raises(UsageError, match="Cannot read") as caught:
        parse_spec(text)
    assert "name[key=value" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("m[[a=1]]", "it has brackets in brackets"),
        ("m[a=1][b=2]", "its options stand in more than one pair of brackets"),
        ("./a[b].py[c=1]", "its options stand in more than one pair of brackets"),
        ("m[a=n[b=1]", "a bracket is not closed"),
    ],
)
def test_what_is_wrong_with_brackets_is_said(text, problem):
    with pytest.raises(UsageError) as caught:
        parse_spec(text)
    assert caught.value.message == f"Cannot read {text!r}: {problem}."


@pytest.mark.parametrize("value", [None, 3, ["m"], b"m"], ids=str)
def test_what_is_no_text_is_no_spec(value):
    with pytest.raises(UsageError, match="is no name"):
        parse_spec(value)


@pytest.mark.parametrize("text", ["m[a]", "m[=1]", "m[a=1,b]"])
def test_options_that_cannot_be_read(text):
    with pytest.raises(UsageError, match="Cannot read the option"):
        parse_spec(text)


@pytest.mark.parametrize("text", ["m[a=1,a=2]", "m[a=1,a=1]", "m[b.c=1, b.c =2]", "m[a=1,b=2,a=]"])
def test_an_option_is_given_once(text):
    with pytest.raises(UsageError, match=r"The option '[abc.]+' is given twice in 'm\[") as caught:
        parse_spec(text)
    assert caught.value.hint == "mtlkit info m shows the options"


def test_keys_are_not_nested_without_end():
    with pytest.raises(UsageError, match="is nested too deep"):
        assign({}, "a." * 3000 + "b=1", "here")


@pytest.mark.parametrize("text", ["m[a=1,a.b=2]", "m[a.b=2,a=1]"])
def test_an_option_has_a_value_or_parts(text):
    with pytest.raises(UsageError, match="both a value and parts"):
        parse_spec(text)


def test_later_assignments_win():
    options = {}
    for item in ("a.b.c=1", "a.b.d=2", "a.b.c=3"):
        assign(options, item, "here")
    assert options == {"a": {"b": {"c": 3, "d": 2}}}


words = st.from_regex(r"[a-zA-Z][a-zA-Z_]{0,8}", fullmatch=True).filter(
    lambda text: text.lower() not in {"none", "null", "true", "false", "nan", "inf", "infinity"}
)
single = st.one_of(
    st.integers(-(10**9), 10**9),
    st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(),
    st.none(),
    words,
)
leaf = st.one_of(single, st.lists(single, min_size=2, max_size=4))
tree = st.recursive(
    st.dictionaries(words, leaf, min_size=1, max_size=3),
    lambda inner: st.dictionaries(words, st.one_of(leaf, inner), min_size=1, max_size=3),
    max_leaves=6,
)


# on a busy machine drawing is slow
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.from_regex(r"[a-z][a-z0-9-]{0,9}", fullmatch=True), st.one_of(st.just({}), tree))
def test_what_is_written_is_read_back(name, options):
    assert parse_spec(str(Spec(name, options))) == Spec(name, options)


def test_specs_are_short():
    assert (
        str(Spec("a", {"x": 1.0, "y": 0.1, "z": (4, 2), "u": True})) == "a[x=1,y=0.1,z=4:2,u=true]"
    )
    assert str(Spec("a", {"x": 0.123456789})) == "a[x=0.123456789]"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rte": 1}, "The model m has no option 'rte'. Did you mean rate?"),
        ({"zzz": 1}, "The model m has no option 'zzz'."),
        (
            {"rate": -1},
            "The option 'rate' of the model m cannot be -1: input should be greater than 0.",
        ),
        (
            {"rate": math.inf},
            "The option 'rate' of the model m cannot be inf: input should be a finite number.",
        ),
        (
            {"hidden": [8, 0]},
            "The option 'hidden.1' of the model m cannot be 0: input should be greater than 0.",
        ),
        (
            {"tower": -1},
            "The option 'tower.0' of the model m cannot be -1: input should be greater than 0.",
        ),
        (
            {"tower": {"a": -1}},
            "The option 'tower.a.0' of the model m cannot be -1: input should be greater than 0.",
        ),
        (
            {"rate": {"a": {"b": 1}}},
            "The option 'rate' of the model m cannot be key: value pairs: input should be a valid "
            "number.",
        ),
        (
            {"on": [{"a": 1}]},
            "The option 'on' of the model m cannot be a list with key: value pairs: input should "
            "be a valid boolean.",
        ),
    ],
)
def test_messages(values, message):
    with pytest.raises(UsageError) as caught:
        validate(Options, values, "model m")
    assert caught.value.message == message
    assert caught.value.hint == "its options are rate, hidden, w, tower, on"


@pytest.mark.parametrize(
    "values",
    [{"rate": True}, {"hidden": [8, False]}, {"hidden": True}, {"w": True}, {"tower": {"a": True}}],
    ids=str,
)
def test_true_and_false_are_no_numbers(values):
    (key,) = values
    with pytest.raises(UsageError, match=f"The option '{key}.*: true and false are no numbers"):
        validate(Options, values, "model m")
    assert validate(Options, {"on": True}, "model m").on is True


@pytest.mark.parametrize("epochs", [0, 1e6 + 1, 1e29, math.inf, "\uff14"])
def test_epochs_have_a_limit(epochs):
    with pytest.raises(UsageError, match="The option 'epochs' of the grid cannot be"):
        validate(TrainingSettings, {"epochs": epochs}, "grid")
    assert validate(TrainingSettings, {"epochs": 1e6}, "grid").epochs == 1e6


@pytest.mark.parametrize("weight", [0, -1, -0.0, math.inf, math.nan, True])
def test_task_weights_are_above_0(weight):
    with pytest.raises(UsageError, match="The option 'task_weights"):
        validate(TrainingSettings, {"task_weights": {"a": weight}}, "grid")
    assert validate(TrainingSettings, {"task_weights": {"a": 1e-25}}, "grid").task_weights["a"] > 0


@pytest.mark.parametrize("weight", [-1, math.inf])
def test_select_weights_are_not_negative(weight):
    with pytest.raises(UsageError, match="The option 'select_weights"):
        validate(TrainingSettings, {"select_weights": {"a": weight}}, "grid")
    assert validate(TrainingSettings, {"select_weights": {"a": 0}}, "grid")


@pytest.mark.parametrize(
    ("settings", "rows", "words"),
    [
        ({"batch_size": 200}, 200, None),
        ({"batch_size": 201}, 200, "a step takes 201 rows"),
        ({"batch_size": 100, "accumulate": 2}, 200, None),
        ({"batch_size": 100, "accumulate": 3}, 200, "choose batch_size=66 or less"),
        # one step of 1,000 rows reads 12 rows 83 times
        ({"batch_size": 1000, "epochs": 0.5}, 12, "makes 83.3 passes over the data where epochs"),
    ],
    ids=str,
)
def test_a_batch_larger_than_the_data_is_told(settings, rows, words):
    warning = TrainingSettings(**settings).repeats_rows(rows)
    assert warning is None if words is None else words in warning


@pytest.mark.parametrize("device", ["tpu", "cuda:", "cuda:-1", "cuda:00", "cuda:\u0663", "CPU", ""])
def test_devices_that_are_none(device):
    with pytest.raises(UsageError, match="write auto, cpu, cuda, cuda:1"):
        validate(ExecutionSettings, {"device": device}, "grid")


@pytest.mark.parametrize("value", ["9" * 5000, 10**5000, ["x"] * 5000], ids=["text", "int", "list"])
def test_long_values_are_cut_in_messages(value):
    with pytest.raises(UsageError) as caught:
        validate(Options, {"rate": value}, "model m")
    assert len(caught.value.message) < 400


def test_lists_of_settings():
    assert validate(Options, {"hidden": 8, "w": 1}, "m").hidden == (8,)
    assert validate(Options, {"hidden": [8, 4], "w": [1, 2]}, "m").w == (1.0, 2.0)
    assert validate(Options, {"hidden": None, "tower": {"a": 4}}, "m").tower == {"a": (4,)}
    assert validate(Options, {"hidden": "none"}, "m").hidden == ()


def test_options_of_nothing():
    class Nothing(Settings):
        pass

    with pytest.raises(UsageError) as caught:
        validate(Nothing, {"a": 1}, "balancer b")
    assert caught.value.hint == "it takes no options"


def test_settings_never_change():
    with pytest.raises(ValueError, match="frozen"):
        TrainingSettings().lr = 1.0
    with pytest.raises(UsageError):
        validate(ExecutionSettings, {"device": "tpu"}, "grid")


def test_digests_are_canonical():
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})
    assert digest({"a": [1, 2]}) != digest({"a": [2, 1]})
    assert (
        canonical_json({"b": 1, "a": {"d": None, "c": "é"}})
        == '{"a":{"c":"\\u00e9","d":null},"b":1}'
    )
    with pytest.raises(ValueError):
        digest({"a": math.nan})


def test_equal_settings_have_one_digest():
    as_typed = [
        {"rate": 1, "w": [1, 2]},
        {"w": (1.0, 2.0), "rate": 1.0},
        {"rate": "1", "w": ["1", "2e0"], "on": False},
    ]
    assert len({digest(validate(Options, values, "m")) for values in as_typed}) == 1
    assert digest(Options(rate=1)) != digest(Options(rate=1.5))
    assert json.loads(canonical_json(Options(hidden=(4,))))["hidden"] == [4]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "grid.yaml is not valid YAML at line 1."),
        ("a: 1\nb: {x\n", "grid.yaml is not valid YAML at line 3."),
        ("a: 1\n  b: 2\n", "grid.yaml is not valid YAML at line 2."),
        ("- 1\n- 2\n", "grid.yaml must hold key: value pairs."),
        ("text", "grid.yaml must hold key: value pairs."),
        ("a: !!python/object:os.system {}", "grid.yaml is not valid YAML at line 1."),
        ("a: 1\nb: 2\na: 3\n", "grid.yaml has the key 'a' twice at line 3."),
        ("a: {lr: 1, lr: 1}", "grid.yaml has the key 'lr' twice at line 1."),
        ("a: " + "[" * 3000 + "]" * 3000, "grid.yaml is nested too deep at line 1."),
        ("a: " + "{b: " * 3000 + "}" * 3000, "grid.yaml is nested too deep at line 1."),
        ("a: " + "9" * 5000, "grid.yaml holds a number or a date that cannot be read."),
        ("a: 2020-02-31", "grid.yaml holds a number or a date that cannot be read."),
        ("a: &a {b: *a}", "grid.yaml holds more than 100,000 values."),
        (BOMB, "grid.yaml holds more than 100,000 values."),
    ],
    ids=lambda text: text[:40],
)
def test_yaml_errors(text, message):
    with pytest.raises(UsageError) as caught:
        read_yaml(text, "grid.yaml")
    assert caught.value.message == message
    assert "mtlkit bench --print-config" in caught.value.hint


def test_yaml_merges():
    """A merged mapping may have keys that are written out as well."""
    text = "x: &x {lr: 1, epochs: 2}\ny: &y {<<: *x, lr: 3}\nz: {<<: [*x, *y], epochs: 4}\n"
    read = read_yaml(text, "grid.yaml")
    assert (read["y"], read["z"]) == ({"lr": 3, "epochs": 2}, {"lr": 1, "epochs": 4})
    assert read_yaml("a: {b: &b {<<: {c: 1}, c: 2}}\nx: {<<: *b}\n", "grid.yaml")["x"] == {"c": 2}


def test_yaml():
    assert read_yaml("", "x") == {}
    assert read_yaml("training:\n  lr: 2e-3\n", "x") == {"training": {"lr": "2e-3"}}
    assert (
        validate(TrainingSettings, {"lr": "2e-3"}, "x").lr == 0.002
    )  # YAML 1.1 takes it for a text
