"""The option ``init`` reaches every linear layer of every architecture, and nothing else."""

import re

import pytest
import torch

from mtlkit.registry import MODELS
from tests.models.build import build, known
from tests.toy import toy_schema

NO_LAYERS = re.compile(
    r"^embedding\.(width|bag)|^stitches\.|direct\.|log_alpha|^attention\.(tasks|experts)$|[._](scale|shift)$|^mask\.norm\."
)
EVERYTHING = {
    "gate_hidden": (20,),
    "gate_bias": True,
    "norm": "layer",
    "shared": 2,
    "levels": 2,
    "mask": "parallel",
}
EVERYTHING |= {"tables": "own", "estimator": "dr", "tower": (16, 8), "bottom": (24, 16)}
SCHEMA = toy_schema(3, bags=1).model_copy(update={"funnel": ("t1", "t2")})


def standard(name, value):
    """A weight over the standard deviation that its layers' inputs and outputs ask for."""
    if name.startswith("routings."):  # (n, width, S, width): a layer reads all S sub-networks
        value = value.flatten(2)
    outputs, inputs = value.shape[-2:]
    return value * ((inputs + outputs) / 2) ** 0.5


@pytest.mark.parametrize("experts", [0, 4])
@pytest.mark.parametrize("name", MODELS.names())
def test_all_linear_layers_and_no_other_numbers_are_drawn_anew(name, experts):
    options = known(name, EVERYTHING | ({"experts": experts} if name == "dbmtl" or experts else {}))
    uniform, xavier = (
        dict(build(name, SCHEMA, init=i, **options).named_parameters())
        for i in ("uniform", "xavier")
    )
    drawn = []
    for parameter, value in xavier.items():
        value = value.detach()
        if NO_LAYERS.search(parameter):
            assert torch.equal(value, uniform[parameter]), parameter
        elif parameter.endswith("bias"):
            assert not value.any(), parameter
            assert uniform[parameter].any(), parameter
        else:
            z = standard(parameter, value)
            assert abs(float(z.square().mean()) - 1) < 5 * (2 / z.numel()) ** 0.5, parameter
            drawn.append(z.flatten())
    z = torch.cat(drawn)
    assert z.numel() > 500
    assert float(z.abs().max()) > 2.5  # a uniform distribution of this variance ends at 1.73


def test_one_seed_gives_one_start():
    one, same, other = (
        build("mmoe", SCHEMA, seed, init="xavier").experts.linears[0].weight for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
