"""Batches of a split in host memory, gathered and sent to a GPU while it computes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from mtlkit.models._types import Batch
from mtlkit.ops.bags import Bags

AHEAD = 2  # batches that are gathered or on their way


def prefetched(
    take: Callable[..., Batch], rows: Iterator[tuple[Any, ...]], device: torch.device
) -> Generator[Batch]:
    """What ``take`` gives for each of ``rows``, in order.

    A thread of its own gathers the rows and pins them, and they are copied on a side stream. The
    thread ends with the iterator: close one that is not read to its end.

    Args:
        take: Makes a batch on the device of some arguments.
        rows: Its arguments, read by the thread that asks for batches.
        device: The GPU.
    """
    side = torch.cuda.Stream(device)

    def send(arguments: tuple[Any, ...]) -> tuple[Batch, torch.cuda.Event]:
        with torch.cuda.stream(side):
            return take(*arguments), side.record_event()

    with ThreadPoolExecutor(1, "mtlkit-batches") as thread:
        waiting = deque(thread.submit(send, each) for each in islice(rows, AHEAD))
        while waiting:
            batch, sent = waiting.popleft().result()
            waiting.extend(thread.submit(send, each) for each in islice(rows, 1))

            # Whoever computes waits for the copy, and keeps its memory until it has computed.
            current = torch.cuda.current_stream(device)
            current.wait_event(sent)

            def keep(tensor: Tensor, stream: torch.cuda.Stream = current) -> Tensor:
                tensor.record_stream(stream)
                return tensor

            yield map_tensors(batch, keep)


def map_tensors(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    """The batch with every tensor changed, those of bags as well."""
    return batch.map(
        change, lambda bags: Bags(*(change(tensor) for tensor in bags if tensor is not None))
    )
