"""Faults, one by one: no traceback, no hang, no orphan, nothing lost, and the same numbers."""

import sys

import pytest

from tests.campaign.clusters import cluster_faults
from tests.campaign.faults import NoMountError, Reference, faults

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="processes are found by /proc"),
]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return Reference(tmp_path_factory.mktemp("faults"))


@pytest.mark.parametrize("fault", [*faults(), *cluster_faults()], ids=str)
def test_fault(reference, fault):
    try:
        assert fault.complaints(reference) == []
    except NoMountError:
        pytest.skip("this user mounts no disks")
