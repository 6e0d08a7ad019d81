"""The device that tests of this folder run on: a pretended GPU, and a real one where there is one.

``pytest -m gpu`` runs them on a real GPU.
"""

import pytest
import torch

from tests.gpu.pretended import pretended_gpu


@pytest.fixture(params=["pretended", pytest.param("real", marks=pytest.mark.gpu)])
def gpu(request):
    """The device."""
    if request.param == "pretended":
        with pretended_gpu() as device:
            yield device
        return
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    yield torch.device("cuda:0")
