import pytest
import torch


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request):
    """Each type that kernels have."""
    torch.manual_seed(0)
    return request.param
