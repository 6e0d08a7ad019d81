"""The families of balancers that are one method, on random gradients."""

from itertools import combinations

import numpy as np
import pytest
import torch

from mtlkit.equivalences import FAMILIES, alike, notices, relatives
from mtlkit.registry import BALANCERS
from tests.balancers.fakes import NAMES, Case, FakeStep, direction

DRAWS = 60
WIDTH = 9


def concrete(member):
    """A member as a balancer under test."""
    values = {key: () if value is None else value for key, value in member.options.items()}
    defaults = BALANCERS.facts(member.name).defaults
    return Case(
        member.name, tuple((key, value) for key, value in values.items() if value != defaults[key])
    )


def gradients(count, seed):
    """(T, P) of unequal norms and any cosine: every other draw agrees in part, the rest conflict."""
    rng = np.random.default_rng([count, seed])
    rows = rng.standard_normal((count, WIDTH))
    common = rng.standard_normal(WIDTH) * rng.uniform(0, 3)
    rows = rows + common if seed % 2 else rows - rng.uniform(0, 1) * rows.mean(0)
    return torch.from_numpy(rows * rng.uniform(0.2, 5, (count, 1)))


def cosine(one, other, rows, seed):
    """Of the steps of two balancers."""
    losses = torch.from_numpy(np.random.default_rng(seed).uniform(0.1, 2, len(rows)))
    steps = [
        direction(case.make(len(rows))(FakeStep(rows, losses, seed=seed)), rows)
        for case in (one, other)
    ]
    return float(torch.cosine_similarity(*steps, dim=0))


def conflicts(rows):
    return bool((rows @ rows.T).min() < 0)


def conflicts_with_sum(rows):
    return bool((rows @ rows.sum(0)).min() < 0)


def all_weigh(rows):
    return bool(Case("mgda", (("normalize", "l2"),)).make(len(rows))(FakeStep(rows)).min() > 1e-9)


CONDITIONS = {
    "no two gradients conflict": lambda rows: not conflicts(rows),
    "no gradient conflicts with the sum": lambda rows: not conflicts_with_sum(rows),
    "mgda gives every task a weight": all_weigh,
}


def condition(same):
    """Whether a set is said to be one method on given gradients."""
    return next(
        (rule for words, rule in CONDITIONS.items() if words in same.when), lambda rows: True
    )


def pairs(same):
    return list(combinations([concrete(member) for member in same.members], 2))


EVERY = [
    (same, count) for same in FAMILIES for count in ((same.tasks,) if same.tasks else (2, 3, 5))
]


@pytest.mark.parametrize(("same", "count"), EVERY, ids=lambda value: getattr(value, "what", value))
def test_they_are_one_method(same, count):
    holds, tried = condition(same), 0
    for seed in range(DRAWS):
        rows = gradients(count, seed)
        if holds(rows):
            tried += 1
            first, *rest = (concrete(member) for member in same.members)
            for other in rest:
                assert cosine(first, other, rows, seed) > 1 - 1e-6, (str(first), str(other), seed)
    assert tried >= 5


def is_one_at_any_number(one, other):
    """Whether another family says so."""
    return any(
        not same.tasks
        and not same.when
        and {str(one), str(other)} <= {str(concrete(m)) for m in same.members}
        for same in FAMILIES
    )


@pytest.mark.parametrize(
    "same", [same for same in FAMILIES if same.tasks], ids=lambda same: same.what
)
def test_with_another_number_of_tasks_they_are_not(same):
    for one, other in pairs(same):
        apart = [cosine(one, other, gradients(3, seed), seed) < 1 - 1e-3 for seed in range(DRAWS)]
        assert any(apart) != is_one_at_any_number(one, other), (str(one), str(other))


@pytest.mark.parametrize(
    "same", [same for same in FAMILIES if same.when], ids=lambda same: same.when
)
def test_in_other_steps_they_are_not(same):
    holds = condition(same)
    for one, other in pairs(same):
        found = [gradients(3, seed) for seed in range(DRAWS)]
        apart = [cosine(one, other, rows, 0) < 1 - 1e-3 for rows in found if not holds(rows)]
        assert any(apart) != is_one_at_any_number(one, other), (str(one), str(other))


def test_paper_solver_of_pareto_is_another_method_from_three_tasks_on():
    mgda, paper = (
        Case("mgda", (("normalize", "none"),)),
        Case("pareto", (("c", 0), ("solver", "paper"))),
    )
    assert all(cosine(mgda, paper, gradients(2, seed), seed) > 1 - 1e-6 for seed in range(DRAWS))
    assert any(cosine(mgda, paper, gradients(3, seed), seed) < 1 - 1e-3 for seed in range(DRAWS))


CASES = [Case(name) for name in NAMES] + [
    Case("mgda", (("normalize", "none"),)),
    Case("mgda", (("normalize", "l2"),)),
    Case("pareto", (("c", 0),)),
    Case("fairgrad", (("alpha", 1),)),
]


def path(case):
    """(N, P) directions of the steps on two tasks whose gradients and losses change, as the
    balancer's state moves.
    """
    balancer, steps = case.make(2), []
    for seed in range(8):
        rows = gradients(2, seed)
        losses = torch.from_numpy(np.random.default_rng(seed).uniform(0.1, 2, 2))
        step = FakeStep(rows, losses, index=100 * seed + 99)  # at the end of a window of dwa
        steps.append(direction(balancer(step), rows))
        step.finish()
    return torch.nn.functional.normalize(torch.stack(steps))


def test_nothing_is_missing_for_two_tasks():
    paths = {str(case): path(case) for case in CASES}
    sets = [same for same in FAMILIES if not same.when and same.tasks in {None, 2}]
    known = [{str(concrete(member)) for member in same.members} for same in sets]
    for one, other in combinations(paths, 2):
        alike = bool((paths[one] - paths[other]).norm(dim=1).max() < 1e-5)
        assert alike == any({one, other} <= names for names in known), (one, other)


@pytest.mark.parametrize("name", BALANCERS.names())
def test_defaults_are_those_of_the_balancers(name):
    """Read from the source, for all options that decide whether a balancer is another one."""
    kind, defaults = BALANCERS.load(name), BALANCERS.facts(name).defaults
    for options in kind.same_as.values():
        for key in options:
            assert defaults[key] == kind.Options.model_fields[key].default


def test_families_have_members_and_members_have_families():
    names = {family.name for family in FAMILIES}
    assert len(names) == len(FAMILIES)
    for family in FAMILIES:
        assert len(family.members) > 1
        assert set(family.includes) <= names
        for member in family.members:
            options = {**BALANCERS.facts(member.name).defaults, **dict(concrete(member).options)}
            assert member.options.keys() <= options.keys()
            assert family.holds(member.name, options)
    for name in BALANCERS.names():
        assert BALANCERS.load(name).same_as.keys() <= names


def test_a_plugin_may_belong_to_a_family(tmp_path):
    """But not for its name."""
    text = "class Mine:\n    same_as = {families}\n"
    stranger, copy = tmp_path / "uniform.py", tmp_path / "mine.py"
    stranger.write_text(text.format(families={}))
    copy.write_text(text.format(families={"surgery": {}}))
    assert notices([(str(stranger), {}), ("static", {})], 2) == []
    (only,) = notices([(str(copy), {}), ("pcgrad", {})], 3)[:1]
    assert only.startswith(f"With any number of tasks, {copy} and pcgrad are one method")
    copy.unlink()
    assert notices([(str(copy), {}), ("pcgrad", {})], 3) == []


def test_notices_of_a_grid():
    grid = [
        ("nash", {"update_every": 1}),
        ("imtl-g", {}),
        ("mgda", {"normalize": "l2"}),
        ("mgda", {"normalize": "loss+"}),
        ("pcgrad", {}),
        ("upgrad", {}),
        ("uwl", {"lr": 0.1}),
    ]
    assert notices(grid, 2) == [
        "With 2 tasks, imtl-g, mgda[normalize=l2] and nash are one method up to the length of the step: "
        "the bisector of the two gradients.",
        "With 2 tasks, pcgrad and upgrad are one method up to the length of the step: "
        "each gradient without what points against the other one.",
    ]
    assert notices(grid, 3) == [
        "In steps in which no two gradients conflict (cosines of 0 and above), pcgrad and upgrad are one method up to "
        "the length of the step: the sum of the gradients.",
        "In steps in which mgda gives every task a weight above 0, imtl-g and mgda[normalize=l2] are one method up to "
        "the length of the step: the step with the same cosine with every gradient.",
    ]
    assert notices(grid, 1) == []
    assert notices([], 2) == []


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        (
            ("mgda", {"normalize": "none"}),
            ("pareto", {"c": [0.0], "solver": "exact"}),
            "mgda[normalize=none] and pareto[c=0]",
        ),
        (
            ("mgda", {"normalize": "none"}),
            ("pareto", {"c": (0.0, 0.0)}),
            "mgda[normalize=none] and pareto[c=0:0]",
        ),
        (("fairgrad", {"alpha": 1.0}), ("nash", {}), "fairgrad[alpha=1] and nash"),
        (("static", {"w": [2.0, 2.0]}), ("uniform", {}), "static[w=2:2] and uniform"),
        (("static", {}), ("uniform", {}), "static and uniform"),
        (("cagrad", {"c": 0.0, "rescale": 1}), ("uniform", {}), "cagrad[c=0] and uniform"),
        (("gradvac", {"beta": 0}), ("pcgrad", {}), "gradvac[beta=0] and pcgrad"),
        (("config", {}), ("imtl-g", {}), "config and imtl-g"),
    ],
)
def test_options_decide(one, other, words):
    for tasks in (2, 3):
        first, *_ = notices([one, other], tasks)
        assert f", {words} are one method" in first
        assert not first.startswith("In steps")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("mgda", {}), ("nash", {})),
        (("mgda", {"normalize": "none"}), ("pareto", {})),
        (("fairgrad", {}), ("nash", {})),
        (("fairgrad", {"alpha": 1}), ("nash", {"update_every": 5})),
        (("static", {"w": [1.0, 2.0]}), ("uniform", {})),
        (("gradvac", {}), ("pcgrad", {})),
        (("cagrad", {}), ("uniform", {})),
        (("nash", {}), ("nash", {})),
        (("imtl-g", {"update_every": 2}), ("nash", {"update_every": 1})),
    ],
)
def test_no_notice(one, other):
    assert notices([one, other], 2) == []


def test_weights_of_every_kth_step_are_compared_among_themselves():
    grid = [
        ("imtl-g", {"update_every": 2}),
        ("nash", {"update_every": 2}),
        ("config", {"update_every": 1}),
    ]
    (only,) = notices(grid, 2)
    assert only.startswith(
        "With 2 tasks, imtl-g[update_every=2] and nash[update_every=2] are one method"
    )


def test_relatives():
    assert relatives("fairgrad")[0].startswith(
        "With any number of tasks, fairgrad[alpha=1] and nash are one method"
    )
    assert relatives("uniform")[0].startswith(
        "With any number of tasks, uniform, static and cagrad[c=0] are"
    )
    assert relatives("uwl") == []


def test_a_sentence_is_not_said_twice():
    balancers = [("imtl-g", {}), ("config", {}), ("nash", {})]
    (only,) = notices(balancers, 2)
    assert only.startswith("With 2 tasks, config, imtl-g and nash are")
    (only,) = notices(balancers, 3)
    assert only.startswith("With any number of tasks, config and imtl-g are")


def test_each_balancer_is_told_its_copies():
    grid = [
        ("uniform", {}),
        ("pcgrad", {}),
        ("static", {"w": [1.0, 1.0]}),
        ("gradvac", {"beta": 0}),
    ]
    sums = "static[w=1:1] = uniform"
    surgery = "gradvac[beta=0] = pcgrad"
    assert alike(grid, 3) == [sums, surgery, sums, surgery]
    assert alike(grid[:2], 3) == ["", ""]
    assert alike(grid, 1) == [""] * 4
