"""ESCM2: ESMM with a conversion loss on clicked rows, corrected for how they were selected.

As esmm, x -> pCTR, pCVR, pCTCVR = pCTR * pCVR, all (B,), and L = L_ctr + lc L_cvr + lg L_ctcvr.
With o = click, e = BCE(buy, pCVR) of each row, and the propensity p = max(pCTR, clip), through
which no gradient flows,
ips: L_cvr = mean(o e / p);
dr:  L_cvr = mean(e_hat + o (e - e_hat) / p) + mean(o (e - e_hat)^2 / p),
where a third network on the shared embeddings imputes the error, e_hat = softplus(f_imp(x)). All
means are over all rows.

Paper: Wang et al., "ESCM2: Entire Space Counterfactual Multi-Task Model for Post-Click Conversion
Rate Estimation", SIGIR 2022, doi:10.1145/3477495.3531972, arXiv:2204.05125.

When to use: click -> purchase data where clicked rows differ from all rows and the level of CVR
matters.
When not: without a funnel; with clicks so rare that 1 / p is mostly noise or mostly clipped (look
at esmm first).
Cost: esmm, and for dr one more bottom and tower a later step.
Deviations: the propensity is bounded from below, where ports after PaddleRec clip its inverse (for
ips after a division by the number of clicks) at 15. The products are taken of logits as in esmm.
e_hat is a softplus, as errors are not bounded by 1. The weights lc and lg have defaults of our own.
Longer funnels take the probability of the step before as the propensity. As in those ports, nothing
but the propensity is detached, so the imputation loss of dr reaches the conversion network, too.
The last layer that the networks share, which gradnorm asks for, is the embedding.
"""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from mtlkit.data.types import Schema, rows_with
from mtlkit.losses._build import build_loss
from mtlkit.models._funnel import funnel_columns, labels_in
from mtlkit.models._losses import mean_of_rows, row_weight
from mtlkit.models._output import Output
from mtlkit.models._types import Batch, Objective
from mtlkit.models.esmm import ESMM


class ESCM2(ESMM):
    """Entire-space counterfactual multi-task model."""

    class Options(ESMM.Options):
        estimator: Literal["ips", "dr"] = Field(
            "ips", description="inverse propensity, or doubly robust"
        )
        lc: float = Field(0.1, ge=0, description="weight of the corrected conversion loss")
        lg: float = Field(1.0, ge=0, description="weight of the loss of CTCVR")
        clip: float = Field(0.05, gt=0, lt=1, description="least propensity")

    search_space: ClassVar = {
        "bottom": {"choice": [[64], [128], [256], [256, 128]]},
        "lc": {"log": [0.01, 1]},
    }
    detaches = True
    options: Options

    def __init__(self, schema: Schema, options: Options) -> None:
        imputed = []
        if options.estimator == "dr":
            for step in funnel_columns(schema, type(self).__name__)[1:]:
                name = f"{schema.tasks[step].name} error"
                imputed.append(schema.tasks[step].model_copy(update={"name": name}))
        super().__init__(schema, options, imputed)

    def objectives(self, output: Output, batch: Batch) -> list[Objective]:
        objectives = super().objectives(output, batch)
        for k, (before, step) in enumerate(pairwise(self.steps)):
            objectives[step].loss = self.options.lg * objectives[step].loss
            objectives.append(self._conversion(k, before, step, output, batch))
        return objectives

    def _conversion(
        self, k: int, before: int, step: int, output: Output, batch: Batch
    ) -> Objective:
        """The corrected loss of the k-th conversion, from step ``before`` to ``step``."""
        task = self.tasks[step]
        space = rows_with(self.schema.task_names[before])
        labels, clicked = labels_in(self.schema, task, space, batch)
        if clicked is None:  # no funnel in the data: the tasks are taken for one
            clicked = batch.labels[:, before] > 0

        # e and o / p of each row, (B,).
        labels = torch.where(clicked, labels, 0.0)
        logits = output.further[k].logits
        error = build_loss(task).rows(logits, labels, clicked, batch.groups)
        propensity = output.predictions[before].logits.detach().float().sigmoid()
        weight = clicked / propensity.clamp_min(self.options.clip)
        corrected = corrected_error(error, weight, output.extra[k] if output.extra else None)

        # The mean over the rows of which it is known whether they were clicked, and if so, bought.
        mask = None
        if batch.observed is not None:
            not_clicked = batch.labels[:, before] <= 0
            mask = batch.observed[:, before] & (not_clicked | batch.observed[:, step])
        loss = mean_of_rows(corrected, mask, row_weight(self.schema, task, batch))
        return Objective(self.options.lc * loss.mean, task.name, loss.active, loss.total)


def corrected_error(error: Tensor, weight: Tensor, imputed: Tensor | None) -> Tensor:
    """The estimate of each row's error, plus the loss that trains the imputation.

    Args:
        error: (B,) e.
        weight: (B,) o / p.
        imputed: (B,) the output of the imputation network; None for ips.
    """
    if imputed is None:
        return weight * error
    imputed_error = F.softplus(imputed.to(error.dtype))
    difference = error - imputed_error
    return imputed_error + weight * difference + weight * difference.square()
