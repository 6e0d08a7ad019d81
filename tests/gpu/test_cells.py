"""A whole cell on a GPU, and what goes wrong there."""

import torch

from mtlkit.grid import machine
from mtlkit.grid.run_cell import failure
from tests.fakes import cell


def test_memory_is_counted_from_the_start_of_a_cell(gpu):
    """Before CUDA is initialised the counters cannot be reset: ``--device cuda:0`` failed so."""
    machine.reset_peak_memory(machine.resolve_device("cuda:0"))
    assert machine.peak_memory(gpu) >= 0


def test_a_full_gpu_is_a_failed_cell_that_says_what_to_do():
    record = failure(cell(), torch.OutOfMemoryError("CUDA out of memory. Tried to ...")).record
    assert record.status == "failed"
    assert "smaller batch_size" in record.error.message
