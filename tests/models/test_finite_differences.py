"""The gradient of every parameter of every architecture against central differences of the loss, in
float64.

Where a model cuts a gradient on purpose, its gradient is that of a surrogate, in which the detached
values are constants. Detached values are therefore recorded once and given back in every further
evaluation.
"""

from contextlib import contextmanager

import pytest
import torch

from mtlkit.registry import MODELS
from tests.models.build import doubled, gradients, load, small, task_losses
from tests.toy import toy_batch, toy_schema

STEP = 1e-6
GENERAL = toy_schema(3, ("binary", "regression", "multiclass"), bags=1)
FUNNEL = toy_schema(2, bags=1).model_copy(update={"funnel": ("t1", "t2")})
SMOOTH = {
    "activation": "tanh",
    "embedding_std": 1.0,
    "embedding_dims": {"id2": 2},
    "numbers": "vector",
}
DEEPER = {
    "adatt": {"levels": 2, "shared": 1, "gate_bias": True},
    "cross-stitch": {"bottom": (5, 4), "channels": True, "tables": "own"},
    "dbmtl": {"mask": "serial", "parents": {"t1": ("t2",)}},
    "home": {"gate_hidden": (3,), "specific": 2, "gate_parts": 1},
    "mmoe": {"gate_norm": "layer", "gate_hidden": (3,)},
    "pepnet": {"tower": (4, 3)},
    "ple": {"levels": 3, "gate_bias": True},
    "snr": {"levels": 3, "connection": "aver"},
    "stem": {"levels": 3, "gate_hidden": (3,)},
}


class Detached:
    """What was detached in a forward pass, in order."""

    def __init__(self):
        self.values, self.place, self.recording = [], 0, True

    @contextmanager
    def applied(self):
        original = torch.Tensor.detach

        def detach(tensor):
            if self.recording:
                self.values.append(original(tensor).clone())
            self.place += 1
            return self.values[self.place - 1]

        torch.Tensor.detach, self.place = detach, 0
        try:
            yield
        finally:
            torch.Tensor.detach, self.recording = original, False


@pytest.fixture(params=MODELS.names())
def name(request):
    return request.param


def differences(model, batch, entries=2):
    """(parameter, gradient along a direction, slope along it): in a random direction, and at single
    entries.
    """
    torch.manual_seed(5)  # for models that draw, here and before each evaluation
    grads = gradients(model, batch)
    held = Detached()

    def total():
        torch.manual_seed(5)
        with torch.no_grad(), held.applied():
            return float(sum(task_losses(model, batch)))

    total()
    random = torch.Generator().manual_seed(3)
    for parameter, value in model.named_parameters():
        directions = [torch.randn(value.shape, generator=random, dtype=value.dtype)]
        for entry in torch.randint(value.numel(), (entries,), generator=random).tolist():
            directions.append(
                torch.zeros_like(value)
                .flatten()
                .index_fill(0, torch.tensor(entry), 1)
                .view_as(value)
            )
        for direction in directions:
            ends = []
            for sign in (1, -2):  # there, and back beyond the start
                with torch.no_grad():
                    value.add_(direction, alpha=sign * STEP)
                ends.append(total())
            with torch.no_grad():
                value.add_(direction, alpha=STEP)
            yield (
                parameter,
                float((grads[parameter] * direction).sum()),
                (ends[0] - ends[1]) / (2 * STEP),
            )


def check(model, batch, entries=2):
    seen = set()
    for parameter, gradient, slope in differences(model, batch, entries):
        assert gradient == pytest.approx(slope, rel=1e-5, abs=2e-8), parameter
        if gradient:
            seen.add(parameter)
    assert seen == {
        parameter for parameter, _ in model.named_parameters()
    }  # none is without a gradient


@pytest.mark.parametrize("norm", ["none", "layer"])
def test_gradients_are_slopes(name, norm):
    model = small(name, GENERAL, norm=norm, **SMOOTH).double()
    check(model, doubled(toy_batch(GENERAL, 10, missing=0.2)), entries=2 if norm == "none" else 0)


@pytest.mark.parametrize("name", DEEPER)
def test_gradients_are_slopes_with_other_options(name):
    model = small(name, GENERAL, **SMOOTH | DEEPER[name]).double()
    check(model, doubled(toy_batch(GENERAL, 10, missing=0.2)), entries=1)


@pytest.mark.parametrize("numbers", ["piecewise", "periodic"])
@pytest.mark.parametrize("name", ["mmoe", "stem"])
def test_gradients_are_slopes_with_encoded_numbers(name, numbers):
    model = small(name, GENERAL, **SMOOTH | {"numbers": numbers}).double()
    check(model, doubled(toy_batch(GENERAL, 10, missing=0.2)), entries=1)


def test_gradients_are_slopes_on_a_funnel(name):
    model = small(name, FUNNEL, **SMOOTH).double()
    check(model, doubled(toy_batch(FUNNEL, 16)), entries=0)


def test_a_model_says_whether_it_detaches(name):
    schema = FUNNEL if load(name).inapplicable(GENERAL) else GENERAL
    model, held = small(name, schema), Detached()
    with held.applied():
        task_losses(model, toy_batch(schema, 10))
    assert bool(held.values) == load(name).detaches


def test_the_check_finds_a_wrong_gradient():
    model = small("pepnet", GENERAL, **SMOOTH).double()
    batch = doubled(toy_batch(GENERAL, 10))
    model.epnet.register_full_backward_hook(lambda module, inputs, outputs: (inputs[0] * 1.01,))
    with pytest.raises(AssertionError):
        check(model, batch)
