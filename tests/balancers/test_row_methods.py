"""Methods that see the task gradients themselves: numbers by hand, defining equations, and what
they remember.
"""

import copy
import math
from dataclasses import dataclass
from fractions import Fraction as F

import numpy as np
import pytest
import torch

from mtlkit.balancers._gramian import min_norm, min_norm_above
from mtlkit.balancers._step import SharedGradient
from mtlkit.data.types import Task
from mtlkit.errors import UsageError
from tests.balancers.fakes import FakeStep, families, load

REMEMBER = ("metabalance", "db-mtl", "moco", "excessmtl")  # state as wide as the gradients


def make(name, count, **options):
    kind = load(name)
    tasks = [Task(name=f"t{t}", kind="binary", losses=("bce",)) for t in range(count)]
    return kind(tasks, kind.Options.model_validate(options))


def tensor(rows):
    return torch.tensor([[float(x) for x in row] for row in rows], dtype=torch.float64)


def ask(balancer, rows, losses=None, index=0, active=None, seed=0):
    """The weights, or the vector of the direction."""
    rows = tensor(rows) if isinstance(rows, (list, tuple)) else rows
    losses = (
        torch.ones(len(rows)) if losses is None else torch.tensor([float(loss) for loss in losses])
    )
    on = None if active is None else torch.tensor(active)
    answer = balancer(FakeStep(rows, losses, on, index, seed=seed))
    return answer.vector if isinstance(answer, SharedGradient) else answer


def close(found, expected, **tolerance):
    expected = torch.tensor([float(value) for value in expected], dtype=torch.float64)
    torch.testing.assert_close(
        found.double(), expected, **(tolerance or {"rtol": 1e-7, "atol": 1e-9})
    )


def random_rows(index, count=3, width=6):
    return torch.from_numpy(np.random.default_rng([3, index]).standard_normal((count, width)))


# --- metabalance: the first half of the columns is one tensor, the second another
# -------------------------------------

TWO = [
    (3, 4, 0, 1),
    (0, 10, 0, F(1, 2)),
]  # norms 5 and 10 in the first tensor, 1 and 1/2 in the second
THREE = [(3, 4, 0, 1), (0, 10, 0, F(1, 2)), (0, 1, 0, 4)]


@pytest.mark.parametrize(
    ("mode", "rows", "expected"),
    [  # factors of the second task: .7 * 5/10 + .3 = .65 and .7 * 1/.5 + .3 = 1.7; of the third 3.8 and .475
        ("A", TWO, (3, 10.5, 0, 1.5)),
        ("B", TWO, (3, 14, 0, 1.85)),
        ("C", TWO, (3, 10.5, 0, 1.85)),
        ("A", THREE, (3, 11.5, 0, 3.4)),
        ("B", THREE, (3, 17.8, 0, 5.85)),
        ("C", THREE, (3, 14.3, 0, 3.75)),
    ],
)
def test_metabalance_by_hand(mode, rows, expected):
    close(ask(make("metabalance", len(rows), mode=mode), rows), expected)


def test_metabalance_running_means():
    balancer = make("metabalance", 2)
    ask(balancer, [(3, 4, 0, 0), (0, 10, 0, 0)])
    found = ask(balancer, [(0, 5, 0, 0), (0, 5, 0, 0)], index=1)
    # the means of the second task: (.9 * 10 + 5) / 1.9 = 140/19, of the target: 5
    close(found, (0, 5 + 5 * (F(7, 10) * 5 / F(140, 19) + F(3, 10)), 0, 0))
    close(balancer.sizes[1], (F(9, 10) * 1 + F(1, 2), 0))


@pytest.mark.parametrize("mode", ["A", "B", "C"])
def test_metabalance_sizes(mode):
    """A never enlarges, B never shrinks, and C brings a tensor's norm to the target's share of the
    way.
    """
    balancer = make("metabalance", 2, mode=mode, b=0)
    for index in range(40):
        rows = (
            random_rows(index, 2) * torch.tensor([[1.0], [math.exp(3 * math.sin(index))]]).double()
        )
        helped = ask(balancer, rows, index=index) - rows[0]
        for part in (slice(0, 3), slice(3, 6)):
            own, target, now = (float(row[part].norm()) for row in (rows[1], rows[0], helped))
            assert float(torch.cosine_similarity(helped[part], rows[1, part], 0)) == pytest.approx(
                1
            )
            moved = 0.7 * target + 0.3 * own
            assert now == pytest.approx(
                {"A": min(own, moved), "B": max(own, moved), "C": moved}[mode]
            )


def test_metabalance_leaves_a_tensor_alone_that_a_task_does_not_reach():
    """A missing gradient is none: neither a norm of 0 in a mean, nor a target of size 0."""
    balancer = make("metabalance", 3)
    rows = [
        (3, 4, 0, 0),
        (0, 10, 0, 6),
        (0, 0, 0, 2),
    ]  # the target has the first tensor, the third task the second
    for index in range(3):
        close(ask(balancer, rows, index=index), (3, 10.5, 0, 8))
    close(balancer.counts.flatten(), (3, 0, 3, 3, 0, 3))


def test_metabalance_idle_tasks():
    balancer, without = make("metabalance", 2), make("metabalance", 2)
    for one in (balancer, without):
        ask(one, TWO)
    close(
        ask(balancer, TWO, index=1, active=[False, True]), (0, 6.5, 0, 0.85)
    )  # the target's last mean serves
    close(ask(balancer, TWO, index=2, active=[True, False]), (3, 4, 0, 1))
    close(ask(balancer, TWO, index=3), ask(without, TWO, index=1).tolist())


def test_metabalance_target_by_name():
    rows = [TWO[1], TWO[0]]
    close(ask(make("metabalance", 2, target="t1"), rows), (3, 10.5, 0, 1.85))
    with pytest.raises(UsageError, match="no target 'sales'"):
        make("metabalance", 2, target="sales")


@pytest.mark.parametrize("mode", ["A", "B", "C"])
def test_metabalance_rests_where_uniform_does(mode):
    """For two tasks: opposite gradients cancel if, and only if, they are as long as each other."""
    row = random_rows(0, 1)[0]
    for factor in (0.2, 1.0, 5.0):
        found = ask(make("metabalance", 2, mode=mode), torch.stack([row, -factor * row]))
        assert bool(found.norm() < 1e-12) == (factor == 1)


def test_metabalance_without_relaxation_is_uniform():
    for rows in families(3).values():
        torch.testing.assert_close(ask(make("metabalance", 3, r=0), rows), rows.sum(0))


# --- db-mtl
# -----------------------------------------------------------------------------------------------------------


def test_db_mtl_by_hand():
    # gradients of log losses (3, 4) and (0, 1), brought to norm 5
    close(ask(make("db-mtl", 2), [(F(3, 2), 2), (0, 2)], (F(1, 2), 2)), (3, 9), rtol=1e-6, atol=0)
    three = [(6, 8), (0, 3), (F(1, 2), 0)]  # (3, 4), (0, 12), (1/4, 0): norms 5, 12, 1/4
    found = ask(make("db-mtl", 3), three, (2, F(1, 4), 2))
    close(found, (12 * F(3, 5) + 12, 12 * F(4, 5) + 12), rtol=1e-6, atol=0)


def test_db_mtl_running_mean():
    balancer = make("db-mtl", 2, beta=0.75)
    ask(balancer, [(4, 0), (0, 1)])
    found = ask(balancer, [(0, 4), (0, 1)], index=1)
    close(balancer.means[0], (3, 1), rtol=1e-6, atol=0)  # 3/4 of the past
    length = math.sqrt(10)
    close(found, (3, 1 + length), rtol=1e-6, atol=0)


def test_db_mtl_past_fades_with_sigma():
    balancer = make("db-mtl", 2, beta=0.8, sigma=1)
    for index, row in enumerate([(4, 0), (0, 4), (0, 4)]):
        ask(balancer, [row, (1, 1)], index=index)
    close(
        balancer.means[0],
        (4 * F(2, 5) * F(4, 15), 4 * (F(3, 5) * F(4, 15) + F(11, 15))),
        rtol=1e-6,
        atol=0,
    )


def test_db_mtl_tasks_count_alike():
    """Every task's part has the norm of the largest, and the unit of a loss does not matter."""
    rows, losses = random_rows(0), (0.2, 3.0, 0.05)
    whole = ask(make("db-mtl", 3), rows, losses)
    logs = rows / torch.tensor(losses, dtype=torch.float64)[:, None]
    parts = logs / logs.norm(dim=1, keepdim=True) * logs.norm(dim=1).max()
    torch.testing.assert_close(whole, parts.sum(0), rtol=1e-5, atol=1e-6)
    unit = torch.tensor([[1.0], [1000.0], [1.0]], dtype=torch.float64)
    torch.testing.assert_close(
        ask(make("db-mtl", 3), rows * unit, (0.2, 3000.0, 0.05)), whole, rtol=1e-5, atol=1e-6
    )


# --- moco
# -------------------------------------------------------------------------------------------------------------

AXES = [(7, 0), (0, F(1, 3))]  # only their directions count


def test_moco_by_hand():
    # y = (1/2, 0), (0, 1); a = (1/2, 1/2) - 1/10 (1/8, 1/2) = (.4875, .45), which .03125 more each
    # puts on the simplex
    balancer = make("moco", 2)
    close(ask(balancer, AXES, (1, 2)), (0.51875 / 2, 0.48125))
    close(balancer.weights, (0.51875, 0.48125))
    soft = make("moco", 2, update="softmax")
    share = 1 / (1 + math.exp(-0.0375))
    close(ask(soft, AXES, (1, 2)), (share / 2, 1 - share))


def test_moco_by_hand_with_three_tasks():
    # y = diag(1, 2, 5) / 2; a = 1/3 - 4/10 (1/12, 4/12, 25/12) = (.3, .2, -.5), projected (.55,
    # .45, 0)
    balancer = make("moco", 3, gamma=0.4)
    close(ask(balancer, [(1, 0, 0), (0, 1, 0), (0, 0, 1)], (1, 2, 5)), (0.275, 0.45, 0))
    close(balancer.weights, (0.55, 0.45, 0))


def test_moco_second_step():
    balancer = make("moco", 2, sigma=1, gamma=1e-9)
    ask(balancer, AXES, (1, 2))
    ask(balancer, [(0, 1), (0, 1)], (4, 2), index=1)
    # a quarter of the present: from (1/2, 0) and (0, 1) towards (0, 4) and (0, 2)
    close(balancer.means.flatten(), (F(3, 8), 1, 0, F(5, 4)))


def test_moco_with_exact_gradients_is_mgda():
    rows, losses = random_rows(1), (0.5, 1.0, 0.8)
    balancer = make("moco", 3, sigma=0, gamma=0.3, beta=1)
    for index in range(1500):
        found = ask(balancer, rows, losses, index)
    units = (
        rows / rows.norm(dim=1, keepdim=True) * torch.tensor(losses, dtype=torch.float64)[:, None]
    )
    exact = torch.from_numpy(min_norm((units @ units.T).numpy()))
    torch.testing.assert_close(found, exact @ units, rtol=1e-4, atol=1e-5)


def test_moco_idle_tasks_keep_their_weight():
    balancer = make("moco", 3, gamma=0.4)
    ask(balancer, [(1, 0, 0), (0, 1, 0), (0, 0, 1)], (1, 2, 5))
    found = ask(balancer, [(1, 0, 0), (0, 1, 0), (0, 0, 1)], (1, 1, 1), 1, [False, True, True])
    close(found[:1], (0,))
    close(balancer.weights[:1], (0.55,))
    assert float(balancer.weights.sum()) == pytest.approx(1)
    found = ask(balancer, [(1, 0, 0), (0, 1, 0), (0, 0, 1)], (1, 1, 1), 2, [False, False, True])
    assert found[2] > 0, "a task with weight 0 trains when it is alone"


# --- sdmgrad
# ----------------------------------------------------------------------------------------------------------


@dataclass
class Noiseless(FakeStep):
    """All batches alike."""

    def fresh_batch(self):
        return FakeStep(self.task_gradients, self.losses, self.active)


def settle(rows, steps=300, **options):
    balancer = make("sdmgrad", len(rows), **options)
    for index in range(steps):
        weights = balancer(Noiseless(tensor(rows) if isinstance(rows, list) else rows, index=index))
    return weights


@pytest.mark.parametrize(
    ("rows", "lam", "expected"),
    [  # orthogonal rows: u proportional to 1 / norm^2, with the floor lam / (T (1 + lam))
        ([(1, 0), (0, 2)], 0.3, (F(8, 5), F(2, 5))),
        ([(1, 0), (0, 10)], 0.3, (F(23, 13), F(3, 13))),
        ([(1, 0), (0, 10)], 0, (F(200, 101), F(2, 101))),
        ([(1, 0, 0), (0, 1, 0), (0, 0, 2)], 0.5, (F(4, 3), F(4, 3), F(1, 3))),  # the floor, 1/9
        ([(1, 0, 0), (0, 1, 0), (0, 0, 2)], 0.2, (F(4, 3), F(4, 3), F(1, 3))),  # 1/9 is above it
        ([(1, 0, 0), (0, 1, 0), (0, 0, 9)], 0.5, (F(4, 3), F(4, 3), F(1, 3))),
    ],
)
def test_sdmgrad_without_noise_by_hand(rows, lam, expected):
    close(settle(rows, lam=lam), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("lam", [0.0, 0.3, 2.0])
@pytest.mark.parametrize("count", [2, 3, 8])
def test_sdmgrad_without_noise_is_a_gram_formula(count, lam):
    """The least norm over weights of at least lam / (T (1 + lam)): pareto with that floor."""
    rows = random_rows(count, count, 12)
    floor = np.full(count, lam / (count * (1 + lam)))
    exact = torch.from_numpy(min_norm_above((rows @ rows.T).numpy(), floor))
    torch.testing.assert_close(settle(rows, 1500, lam=lam), count * exact, rtol=1e-3, atol=1e-3)


@dataclass
class Given(FakeStep):
    """Further batches that are given."""

    more: tuple = ()

    def fresh_batch(self):
        self.more, (rows, active) = self.more[1:], self.more[0]
        return FakeStep(tensor(rows), active=torch.tensor(active))


def test_sdmgrad_takes_inner_products_between_two_further_batches():
    balancer = make("sdmgrad", 2, lam=0, iterations=1, lr=5**0.5)
    yes = [True, True]
    step = Given(tensor([(9, 9), (-9, 9)]), more=(([(1, 0), (0, 1)], yes), ([(1, 0), (3, 0)], yes)))
    # inner products (1, 3; 0, 0) / sqrt(2 * 10): w = (1/2, 1/2) - 1/2 (2, 0), projected
    close(balancer(step), (0, 2), rtol=1e-6, atol=1e-6)
    assert not step.more
    close(balancer.w, (0, 1))


def test_sdmgrad_tasks_that_are_idle_in_one_batch_keep_their_weight():
    balancer = make("sdmgrad", 3, lam=0)
    yes, rows = [True] * 3, [(1, 0), (0, 2), (1, 1)]
    step = Given(tensor(rows), more=((rows, yes), (rows, [True, True, False])))
    weights = balancer(step)
    assert float(balancer.w[2]) == pytest.approx(1 / 3)
    assert weights[0] > weights[2] > weights[1]
    step = Given(
        tensor(rows), active=torch.tensor([True, False, True]), more=((rows, yes), (rows, yes))
    )
    before = float(balancer.w[1])
    assert balancer(step)[1] == 0
    assert float(balancer.w[1]) == before


# --- excessmtl
# --------------------------------------------------------------------------------------------------------


def test_excessmtl_by_hand():
    two, three = make("excessmtl", 2, eta=1), make("excessmtl", 3, eta=1)
    close(ask(two, [(1, 0), (0, 2)]), (1, 1))
    close(two.first, (1, 2))  # the sum of absolute values
    found = ask(two, [(1, 0), (0, 0)], index=1)  # 1 / sqrt(2) and 0, relative to 1 and 2
    share = 1 / (1 + math.exp(-(0.5**0.5)))
    close(found, (2 * share, 2 - 2 * share), rtol=1e-6, atol=0)
    ask(three, [(1, 0), (0, 2), (3, 4)])
    close(three.first, (1, 2, 7))
    found = ask(
        three, [(F(3, 4), 0), (0, F(3, 2)), (0, 3)], index=1
    )  # 9/16 / (5/4); 9/4 / (5/2); 9 / 5
    raw = [math.exp(9 / 20), math.exp(9 / 20), math.exp(9 / 35)]
    close(found, [3 * value / sum(raw) for value in raw], rtol=1e-6, atol=0)


def test_excessmtl_helps_the_task_whose_gradient_stays():
    balancer = make("excessmtl", 2, eta=0.1)
    for index in range(60):
        weights = ask(balancer, [(1, 0), (0, 100 * 0.9**index)], index=index)
    assert weights[0] > 1.1 > 0.9 > weights[1]


def test_excessmtl_idle_tasks_keep_their_share():
    balancer = make("excessmtl", 3, eta=0.5)
    for index in range(5):
        before = ask(balancer, random_rows(index), index=index)
    for index in range(5, 10):
        ask(balancer, random_rows(index), index=index, active=[True, False, True])
    shares = torch.softmax(balancer.logits, 0)
    assert float(shares[1]) == pytest.approx(float(before[1]) / 3)


# --- graddrop
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "high", "low"),
    [  # in each coordinate the sum of the positive entries, or of the negative ones
        ([(3, -1, 2, 0), (-1, -2, 5, 0)], (3, 0, 7, 0), (-1, -3, 0, 0)),
        ([(3, -1, 2, 0), (-1, -2, 5, 0), (1, 1, 0, 0)], (4, 1, 7, 0), (-1, -3, 0, 0)),
    ],
)
def test_graddrop_keeps_one_sign_a_coordinate(rows, high, low):
    balancer = make("graddrop", len(rows))
    high, low = torch.tensor(high, dtype=torch.float64), torch.tensor(low, dtype=torch.float64)
    draws = torch.stack([ask(balancer, rows, index=index) for index in range(4000)])
    assert ((draws == high) | (draws == low)).all()
    chance = torch.nan_to_num(high / (high - low))
    error = (chance * (1 - chance) / 4000).sqrt()
    kept = ((draws == high) & (high > low)).double().mean(0)
    assert ((kept - chance).abs() <= 4 * error).all()
    # the mean is the plain sum
    assert ((draws.mean(0) - tensor(rows).sum(0)).abs() <= 4 * error * (high - low) + 1e-12).all()


def test_graddrop_draws_follow_from_seed_and_step_alone():
    rows = random_rows(0, 3, 40)
    one, other = make("graddrop", 3), make("graddrop", 3)
    ask(other, rows, index=8)
    assert torch.equal(ask(one, rows, index=2, seed=4), ask(other, rows, index=2, seed=4))
    assert not torch.equal(ask(one, rows, index=2, seed=4), ask(one, rows, index=3, seed=4))
    assert not torch.equal(ask(one, rows, index=2, seed=4), ask(one, rows, index=2, seed=5))


def test_graddrop_leak():
    rows = random_rows(0, 3, 40)
    torch.testing.assert_close(ask(make("graddrop", 3, leak=1), rows), rows.sum(0))
    strict, leaking = ask(make("graddrop", 3), rows), ask(make("graddrop", 3, leak=0.25), rows)
    torch.testing.assert_close(leaking, 0.75 * strict + 0.25 * rows.sum(0))


# --- state
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REMEMBER)
def test_state_of_the_gradients_width(name):
    """It is there from the first step on, and loads before and after that."""
    fresh, trained = make(name, 3), make(name, 3)
    start = copy.deepcopy(fresh.state_dict())
    for index in range(3):
        ask(trained, random_rows(index), index=index)
    state = copy.deepcopy(trained.state_dict())
    wide = [key for key, value in state.items() if value.dim() == 2]
    assert wide
    assert all(start[key].numel() == 0 < state[key].numel() for key in wide)
    fresh.load_state_dict(state)
    expected = ask(trained, random_rows(9), index=3)
    assert torch.equal(ask(fresh, random_rows(9), index=3), expected)
    trained.load_state_dict(start)  # back to the beginning
    first = ask(make(name, 3), random_rows(9))
    assert torch.equal(ask(trained, random_rows(9)), first)
    with pytest.raises(RuntimeError, match="size mismatch"):
        make(name, 2).load_state_dict(state)


# --- an independent implementation
# ------------------------------------------------------------------------------------


@pytest.fixture
def aggregation():
    return pytest.importorskip("torchjd.aggregation")


@pytest.mark.parametrize("leak", [0.0, 0.3])
@pytest.mark.parametrize("count", [2, 3, 8])
def test_graddrop_agrees_with_torchjd(aggregation, monkeypatch, count, leak):
    """With the same draws; the convention is the same: a sum over tasks."""
    theirs = aggregation.GradDrop(leak=torch.full((count,), leak, dtype=torch.float64))
    cases = families(count)
    for family in ("random", "aligned", "conflicting", "collinear", "opposing", "badly scaled"):
        rows = cases[family]
        draws = torch.from_numpy(
            np.random.default_rng([5, 6]).random(rows.shape[1], dtype=np.float32)
        ).double()
        with monkeypatch.context() as patch:
            patch.setattr(torch, "rand", lambda *shape, draws=draws, **options: draws)
            expected = theirs(rows)
        found = ask(make("graddrop", count, leak=leak), rows, index=6, seed=5)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)


def test_excessmtl_agrees_with_torchjd(aggregation):
    """Their one step of warm-up is the first step, and their weights sum to 1."""
    theirs, ours = (
        aggregation.ExcessMTLWeighting(0.1, n_warmup_steps=1),
        make("excessmtl", 3, eta=0.1),
    )
    for index in range(30):
        rows = random_rows(index)
        expected = 3 * theirs(rows)
        torch.testing.assert_close(
            ask(ours, rows, index=index).double(), expected, rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("lam", [0.0, 0.3])
def test_sdmgrad_agrees_with_torchjd(aggregation, lam):
    """Where both have converged; theirs sum to 1."""
    rows = random_rows(4)
    theirs = aggregation.SDMGradWeighting(lr=0.3, momentum=0.0, n_iter=5000, lambda_=lam)
    expected = 3 * theirs(rows @ rows.T)
    torch.testing.assert_close(settle(rows, 1500, lam=lam).double(), expected, rtol=1e-4, atol=1e-4)
