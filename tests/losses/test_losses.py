"""Each loss: values by hand, and equal to a slow and obvious form on any rows."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from mtlkit.data.splits import NO_GROUP
from mtlkit.data.types import Schema, Task
from mtlkit.errors import UsageError
from mtlkit.losses._build import build_loss, canonical, prediction
from mtlkit.losses._groups import RowGroups
from mtlkit.models._losses import task_loss
from mtlkit.registry import LOSSES
from tests.losses import reference

NAN = math.nan
SESSION_LOSSES = [
    name for name in LOSSES.names() if "within" in LOSSES.load(name).Options.model_fields
]


def task_of(loss, **facts):
    kinds = LOSSES.facts(loss.partition("[")[0].replace("_", "-")).attributes.get(
        "kinds", ("binary",)
    )
    return Task(name="own", kind=facts.pop("kind", kinds[-1]), losses=(loss,), **facts)


def rows_of(loss, logits, labels, sessions=None, mask=None, **facts):
    """The loss of each row, in float64."""
    groups = {} if sessions is None else {"session": torch.tensor(sessions)}
    mask = None if mask is None else torch.tensor(mask)
    values = build_loss(task_of(loss, **facts)).rows(
        torch.tensor(logits, dtype=torch.float64),
        torch.tensor(labels, dtype=torch.float64),
        mask,
        groups,
    )
    return values.tolist()


# --- by hand


def test_focal_by_hand():
    x = math.log(3)  # p = 3/4
    log_p, log_q = math.log(4 / 3), math.log(4)
    assert rows_of("focal", [x, x], [1, 0]) == pytest.approx(
        [0.25 * (1 / 4) ** 2 * log_p, 0.75 * (3 / 4) ** 2 * log_q]
    )
    assert rows_of("focal[gamma=0,alpha=.5]", [x, x], [1, 0]) == pytest.approx(
        [log_p / 2, log_q / 2]
    )


def test_focal_with_a_detached_factor_has_the_gradient_of_a_weighted_log_loss():
    x = torch.tensor([0.7], requires_grad=True)
    task = task_of("focal[detach=true]")
    build_loss(task).rows(x, torch.ones(1), None, {}).sum().backward()
    p = torch.sigmoid(torch.tensor(0.7))
    assert x.grad.item() == pytest.approx(float(0.25 * (1 - p) ** 2 * (p - 1)))


def test_jrc_by_hand():
    """Session 7: rows 0 (+), 2 (-), 3 (+); session 1: row 1 (-) alone. Logits are logarithms."""
    x0, x1 = [1, 2, 4, 1], [2, 3, 1, 6]
    logits = [[math.log(a), math.log(b)] for a, b in zip(x0, x1, strict=True)]
    labels, sessions = [1, 0, 0, 1], [7, 1, 7, 7]
    ce = [math.log(3 / 2), math.log(5 / 2), math.log(5 / 4), math.log(7 / 6)]
    paper = [math.log(9 / 2), 0, math.log(6 / 4), math.log(9 / 6)]
    masked = [math.log(3 / 2), 0, math.log(6 / 4), math.log(7 / 6)]
    for form, generative in (("paper", paper), ("masked", masked)):
        expected = [0.3 * c + 0.7 * g for c, g in zip(ce, generative, strict=True)]
        spec = f"jrc[alpha=.3,form={form}]"
        assert rows_of(spec, logits, labels, sessions) == pytest.approx(expected)


def test_the_probability_of_jrc_is_its_softmax():
    logits = torch.tensor([[1.0, 3.0], [0.0, -5.0]])
    value = prediction(task_of("jrc"), logits)
    torch.testing.assert_close(value.sigmoid(), logits.softmax(-1)[:, 1])


def test_ziln_by_hand():
    b = math.log(math.e - 1)  # deviation 1
    logits = [[0.0, 1.0, b], [0.0, 1.0, b]]
    log_normal = 2 + math.log(2 * math.pi) / 2 + (2 - 1) ** 2 / 2
    assert rows_of("ziln", logits, [0, math.exp(2)], target="none") == pytest.approx(
        [math.log(2), math.log(2) + log_normal]
    )
    value = prediction(task_of("ziln", target="none"), torch.tensor(logits))
    assert value.tolist() == pytest.approx([0.5 * math.exp(1.5)] * 2)


def test_amounts_on_a_standard_scale_are_read_as_they_came():
    """Zeros that were standardised in single precision are zeros again."""
    task = task_of("ziln", scale=(1234.567, 89.1))
    amounts = torch.tensor([0.0, 0.0, 2000.0])
    labels = (amounts - 1234.567) / 89.1
    read = build_loss(task).main.amounts(labels)
    assert read[:2].tolist() == [0, 0]
    assert read[2].item() == pytest.approx(2000, rel=1e-6)
    logits = torch.tensor([[0.3, 2.0, 0.1]])
    raw = prediction(task_of("ziln", target="none"), logits)
    assert task.original(prediction(task, logits)).item() == pytest.approx(raw.item(), abs=1e-3)


def test_poisson_by_hand():
    assert rows_of("poisson", [math.log(2), math.log(2)], [0, 3], target="none") == pytest.approx(
        [2, 2 - 3 * math.log(2)]
    )
    task = task_of("poisson", target="none")
    assert prediction(task, torch.tensor([math.log(5)])).tolist() == pytest.approx([5])
    far = rows_of("poisson", [90.0, 1e4], [0, 0], target="none")
    assert all(math.isfinite(value) for value in far)


def test_huber_quantile_and_smoothing_by_hand():
    assert rows_of("huber[delta=2]", [0, 0], [1, 5], kind="regression") == [0.5, 8]
    assert rows_of("quantile[q=.9]", [0, 0], [2, -2]) == pytest.approx([1.8, 0.2])
    x = math.log(3)
    assert rows_of("bce[smoothing=.2]", [x], [1]) == pytest.approx(
        [0.9 * math.log(4 / 3) + 0.1 * math.log(4)]
    )
    logits = [[0.0, 0.0, math.log(2)]]
    assert rows_of("cross_entropy[smoothing=.3]", logits, [2], classes=3) == pytest.approx(
        [0.8 * math.log(2) + 0.2 * math.log(4)]
    )


def test_listwise_and_pairwise_by_hand():
    logits = [math.log(2), 0.0, math.log(5)]
    assert rows_of("listwise", logits, [1, 0, 0], [3, 3, 4]) == pytest.approx(
        [math.log(3 / 2), 0, 0]
    )
    assert rows_of("pairwise", logits, [1, 0, 0], [3, 3, 3]) == pytest.approx(
        [(math.log(1 + 1 / 2) + math.log(1 + 5 / 2)) / 2, 0, 0]
    )


@pytest.mark.parametrize("name", SESSION_LOSSES)
def test_rows_by_themselves_are_one_session(name):
    loss, outputs = build_loss(task_of(name)).main, LOSSES.load(name).outputs
    logits = torch.tensor([[0.5, -1.0], [0.2, 2.0], [-0.3, 0.1]])[:, :outputs].squeeze(1)
    labels = torch.tensor([1.0, 0.0, 1.0])
    together = loss(logits, labels, None, {"session": torch.tensor([7, 7, 7])})
    assert torch.equal(loss.rows(logits, labels), together)


def test_pairwise_compares_each_positive_with_so_many_negatives():
    torch.manual_seed(0)
    logits = torch.randn(300, dtype=torch.float64)
    labels = (torch.arange(300) % 3 == 0).double()
    session = {"session": torch.zeros(300, dtype=torch.long)}
    few = build_loss(task_of("pairwise[negatives=16]")).rows(logits, labels, None, session)
    all_pairs = build_loss(task_of("pairwise[negatives=200]")).rows(logits, labels, None, session)
    slow = reference.pairwise(logits.tolist(), labels.tolist(), [0] * 300, [True] * 300)
    assert all_pairs.tolist() == pytest.approx(list(slow.values()))
    assert few.sum().item() == pytest.approx(all_pairs.sum().item(), rel=0.05)


def test_losses_are_added_up_with_weights():
    task = Task(name="own", losses=("bce", "focal[weight=3]", "jrc[weight=.5]"))
    logits = torch.tensor([[0.5, 1.0], [2.0, -1.0]], dtype=torch.float64)
    labels, sessions = torch.tensor([1.0, 0.0]), {"session": torch.tensor([0, 0])}
    values = build_loss(task).rows(logits, labels, None, sessions).tolist()
    own = reference.jrc(logits.tolist(), [1, 0], [0, 0], [True, True])
    for row, (x, y) in enumerate(((0.5, 1), (-3.0, 0))):
        expected = reference.bce(x, y) + 3 * reference.focal(x, y) + 0.5 * own[row]
        assert values[row] == pytest.approx(expected)


# --- against the slow forms

FLOATS = st.floats(-30, 30)


@st.composite
def batches(draw, width=1):
    """Rows of sessions, some without a label, perhaps of one class or one row each."""
    n = draw(st.integers(1, 12))
    rows = st.lists(FLOATS, min_size=width, max_size=width)
    logits = draw(st.lists(rows, min_size=n, max_size=n))
    classes = draw(st.sampled_from([(0, 1), (0,), (1,)]))
    labels = draw(st.lists(st.sampled_from(classes), min_size=n, max_size=n))
    largest = draw(st.sampled_from([0, 2, 10**12]))
    session = st.one_of(st.integers(-largest, largest), st.just(int(NO_GROUP)))
    sessions = draw(st.lists(session, min_size=n, max_size=n))
    mask = draw(st.lists(st.booleans(), min_size=n, max_size=n))
    if width == 1:
        logits = [row[0] for row in logits]
    return logits, labels, sessions, mask


def agree(spec, batch, expected):
    """Values of the rows with a label, and a mean that is finite with its gradient."""
    logits, labels, sessions, mask = batch
    values = rows_of(spec, logits, labels, sessions, mask)
    for row, value in expected.items():
        assert values[row] == pytest.approx(value, rel=1e-9, abs=1e-9)

    # What stands where there is no label does not matter, not even NaN.
    tensor = torch.tensor(logits, requires_grad=True)
    holes = [label if there else NAN for label, there in zip(labels, mask, strict=True)]
    loss, active, _ = task_loss(
        task_of(spec), tensor, torch.tensor(holes), torch.tensor(mask), None,
        {"session": torch.tensor(sessions)},
    )  # fmt: skip
    loss.backward()
    mean = sum(expected.values()) / len(expected) if expected else 0.0
    assert loss.item() == pytest.approx(mean, rel=1e-4, abs=1e-4)
    assert bool(active) == any(mask)
    assert tensor.grad.isfinite().all()
    without_label = ~torch.tensor(mask)
    assert not tensor.grad[without_label].any()


@pytest.mark.parametrize("form", ["paper", "masked"])
@settings(max_examples=60, deadline=None)
@given(batches(width=2), st.floats(0, 1))
def test_jrc_is_the_slow_form(form, batch, alpha):
    expected = reference.jrc(*batch, alpha=alpha, form=form)
    agree(f"jrc[alpha={alpha:.17f},form={form}]", batch, expected)


@settings(max_examples=60, deadline=None)
@given(batches())
def test_losses_within_sessions_are_the_slow_forms(batch):
    agree("listwise", batch, reference.listwise(*batch))
    agree("pairwise", batch, reference.pairwise(*batch))


@settings(max_examples=60, deadline=None)
@given(batches(), st.floats(0, 5), st.floats(0, 1))
def test_losses_of_rows_are_the_slow_forms(batch, gamma, alpha):
    logits, labels, _, mask = batch
    options = {"gamma": float(f"{gamma:.6f}"), "alpha": float(f"{alpha:.6f}")}
    slow = {
        "bce[smoothing=.1]": lambda x, y: reference.bce(x, y, 0.1),
        f"focal[gamma={gamma:.6f},alpha={alpha:.6f}]": lambda x, y: reference.focal(
            x, y, **options
        ),
    }
    for spec, function in slow.items():
        expected = {i: function(logits[i], labels[i]) for i in range(len(logits)) if mask[i]}
        agree(spec, batch, expected)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(FLOATS, st.floats(-50, 50)), min_size=1, max_size=10))
def test_losses_of_numbers_are_the_slow_forms(rows):
    logits, labels = [list(column) for column in zip(*rows, strict=True)]
    pairs = list(zip(logits, labels, strict=True))
    assert rows_of("quantile[q=.3]", logits, labels) == pytest.approx(
        [reference.quantile(x, y, 0.3) for x, y in pairs]
    )
    assert rows_of("huber[delta=.7]", logits, labels, kind="regression") == pytest.approx(
        [reference.huber(x, y, 0.7) for x, y in pairs]
    )


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(FLOATS, FLOATS, FLOATS, st.one_of(st.just(0.0), st.floats(1e-3, 1e6))),
        min_size=1,
        max_size=10,
    )
)
def test_ziln_is_the_slow_form(rows):
    logits, labels = [row[:3] for row in rows], [row[3] for row in rows]
    values = rows_of("ziln", logits, labels, target="none")
    assert values == pytest.approx(
        [reference.ziln(*pair) for pair in zip(logits, labels, strict=True)]
    )
    tensor = torch.tensor(logits, requires_grad=True)
    build_loss(task_of("ziln", target="none")).rows(
        tensor, torch.tensor(labels), None, {}
    ).sum().backward()
    assert tensor.grad.isfinite().all()


class LargestTensor(TorchDispatchMode):
    """The number of elements of the largest tensor that an operation returns."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tensors = result if isinstance(result, (tuple, list)) else [result]
        sizes = [value.numel() for value in tensors if isinstance(value, torch.Tensor)]
        self.elements = max([self.elements, *sizes])
        return result


@pytest.mark.parametrize("name", SESSION_LOSSES)
@pytest.mark.parametrize("sessions", [1, 300, 65_536])
def test_no_matrix_of_rows_by_rows(name, sessions):
    rows = 65_536
    torch.manual_seed(0)
    task = task_of(name)
    logits = torch.randn((rows, 2) if task.outputs == 2 else (rows,), requires_grad=True)
    labels = (torch.rand(rows) < 0.1).float()
    groups = {"session": torch.randint(sessions, (rows,))}
    with LargestTensor() as mode:
        loss, _, _ = task_loss(task, logits, labels, None, None, groups)
        loss.backward()
    assert loss.isfinite()
    assert mode.elements <= 16 * rows  # pairwise looks at 16 negatives a row


def test_an_empty_sum_has_no_gradient_that_is_nan():
    values = torch.zeros(3, requires_grad=True)
    groups = RowGroups(torch.tensor([5, 5, 9]), torch.tensor([False, False, True]))
    sums = groups.log_sum_exp(values)
    sums[2].backward()
    assert sums[2] == 0
    assert values.grad.tolist() == [0, 0, 1]


# --- what is refused


def schema_of(*losses, **facts):
    return Schema(features=(), tasks=(Task(name="a", losses=losses, **facts),))


@pytest.mark.parametrize("name", LOSSES.names())
@pytest.mark.parametrize("kind", ["binary", "regression", "multiclass"])
def test_a_loss_fits_the_kinds_that_it_names(name, kind):
    if kind in LOSSES.load(name).kinds:
        assert schema_of(name, kind=kind).tasks[0].outputs >= 1
        return
    with pytest.raises(ValueError, match=f"{name} is no loss of the {kind} task 'a'"):
        schema_of(name, kind=kind)


def test_losses_that_cannot_be_added():
    with pytest.raises(ValueError, match="ziln of the task 'a' cannot be added"):
        schema_of("mse", "ziln", kind="regression")
    with pytest.raises(ValueError, match="reads the task 'a' as it came"):
        schema_of("poisson", kind="regression", target="log1p")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fokal", "There is no loss called 'fokal'. Did you mean focal?"),
        ("focal[gama=1]", "The loss focal has no option 'gama'. Did you mean gamma?"),
        ("huber[delta=-1]", "The option 'delta' of the loss huber cannot be -1: "),
        ("jrc[form=both]", "The option 'form' of the loss jrc cannot be 'both': "),
    ],
)
def test_a_loss_that_is_wrong(text, message):
    with pytest.raises(UsageError) as caught:
        canonical([text])
    assert caught.value.message.startswith(message), caught.value.message


def test_the_same_loss_is_the_same_whatever_was_typed():
    assert canonical(["focal[gamma=2]"]) == canonical(["focal[alpha=.25]"]) == canonical(["focal"])
    assert canonical(canonical(["jrc"])) == canonical(["jrc"])
    assert canonical(["cross_entropy"]) == canonical(["cross-entropy"])
