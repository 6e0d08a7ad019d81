"""``torch.compile`` for what stands above the embedding, in training, at one batch size.

The embedding stays as it is, for the compiler sees neither row-sparse gradients nor our own
kernels. One shape is compiled and tried out before the run; whatever goes wrong then or later, the
model goes on uncompiled.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import torch

from mtlkit.models._architecture import Architecture
from mtlkit.models._output import Output
from mtlkit.models._types import Batch


class CompiledForward:
    """Stands in for the ``forward`` of a model, and compiles it for the batches of training.

    Args:
        model: Its ``forward`` is replaced.
        rows: Rows of a training batch; batches of other sizes are not compiled.
        on_failure: Called with a sentence if the compiler gives up.
    """

    def __init__(self, model: Architecture, rows: int, on_failure: Callable[[str], None]) -> None:
        self.model = model
        self.rows = rows
        self.on_failure = on_failure
        self.seconds = 0.0
        self.plain = model.forward
        self.fast_paths = model.fast_paths
        self.body: Callable[[Batch], Output] | None = None
        # what is folded is computed by a kernel of our own, which the compiler does not see
        model.use(replace(model.fast_paths, fold=False))
        model.forward = self  # type: ignore[method-assign]
        try:
            self.body = _compiler()(self.plain, dynamic=False, fullgraph=True)
        except Exception as error:
            self._give_up(error)

    @property
    def working(self) -> bool:
        """Whether training batches go through the compiled body."""
        return self.body is not None

    def __call__(self, batch: Batch) -> Output:
        training = self.model.training and torch.is_grad_enabled()
        if self.body is None or not training or len(batch) != self.rows:
            return self.plain(batch)
        x = self.model.embedding(batch).tensor()
        try:
            output = self.body(replace(batch, embedding_output=x))
            # the body's own x is not on the way to its losses (see in_compiled_graph): take this x
            if output.representation is not None:
                if output.representation.shape != x.shape:
                    raise RuntimeError("the tasks share a part of the embedding only")
                output.representation = x
        except Exception as error:
            self._give_up(error)
            return self.plain(batch)
        return output

    def try_out(self, batch: Batch, precision: torch.autocast) -> None:
        """Compile the forward and the backward pass.

        No trace is left in the model or in the random state.
        """
        began = time.perf_counter()
        model = self.model
        buffers = {name: value.clone() for name, value in model.named_buffers()}
        devices = [batch.labels.device] if batch.labels.is_cuda else []
        with torch.random.fork_rng(devices=devices):
            was_training = model.training
            model.train()
            try:
                with precision:
                    output = model(batch)
                # one graph is passed several times, as balancers do
                parameters = [value for value in model.parameters() if value.requires_grad]
                for objective in model.objectives(output, batch):
                    torch.autograd.grad(
                        objective.loss, parameters, retain_graph=True, allow_unused=True
                    )
            except Exception as error:
                self._give_up(error)
            model.train(was_training)

        # batch norm has moved its running means
        with torch.no_grad():
            for name, value in model.named_buffers():
                value.copy_(buffers[name])
        self.seconds = time.perf_counter() - began

    def _give_up(self, error: Exception) -> None:
        """Go on uncompiled, and say why."""
        self.body = None
        self.model.use(self.fast_paths)
        reason = str(error).strip().partition("\n")[0]
        self.on_failure(
            f"torch.compile failed, the run went on without it: {type(error).__name__}: {reason}"
        )


def _compiler() -> Callable[..., Callable[[Batch], Output]]:
    """``torch.compile``, set up for what a cell needs."""
    import torch._functorch.config
    import torch._inductor.config

    # it counts the variants of a class, and refuses the ninth
    torch._dynamo.reset()
    # or each graph could be differentiated only once
    torch._functorch.config.donated_buffer = False
    # a cell has one core, and leaves no process behind
    torch._inductor.config.compile_threads = 1
    return torch.compile
