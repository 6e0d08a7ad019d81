"""When a kernel serves."""

import torch

from mtlkit.ops._dispatch import plain_operations, use_kernel

ONE = torch.zeros(1)


def test_on_the_cpu_in_one_precision():
    assert use_kernel(ONE)
    assert use_kernel(ONE.double(), ONE.double())
    assert not use_kernel(ONE, ONE.double())
    assert not use_kernel(ONE.bfloat16())
    assert not use_kernel(ONE.int())
    assert not use_kernel(ONE, ONE.to("meta"))


def test_not_where_plain_operations_are_asked_for():
    with plain_operations():
        assert not use_kernel(ONE)
        with plain_operations():
            pass
        assert not use_kernel(ONE)
    assert use_kernel(ONE)
    with torch.autocast("cpu", torch.bfloat16):
        assert not use_kernel(ONE)
        with torch.autocast("cpu", enabled=False):
            assert use_kernel(ONE)


def test_not_under_the_compiler():
    chosen = []

    def function(x):
        chosen.append(use_kernel(x))
        return x + 1

    torch.compile(function, backend="eager", fullgraph=True)(ONE)
    assert chosen == [False]
