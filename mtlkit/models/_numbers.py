"""Vectors of numbers: each number is encoded, and a layer of its own reads what comes of it.

Gorishniy et al., "On Embeddings for Numerical Features in Tabular Deep Learning", NeurIPS 2022,
arXiv:2203.05556.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtlkit.models._initial import glorot_
from mtlkit.models._options import BaseOptions


class NumberEmbedding(nn.Module, ABC):
    """v_d = relu(W_d encode_d(x_d) + b_d), for the number x_d of each of D dense features.

    Args:
        features: D.
        width: Of each vector.
        parts: Into how many numbers ``encode`` turns one.
        copies: Number of layers for each feature, as of ``EmbeddingTables``; 0 for one alone.
    """

    def __init__(self, features: int, width: int, parts: int, copies: int) -> None:
        super().__init__()
        self.copies = copies
        self.layers = max(1, copies)
        bound = 1 / math.sqrt(parts)  # as nn.Linear
        weight = torch.empty(features, self.layers, width, parts).uniform_(-bound, bound)
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.empty(weight.shape[:-1]).uniform_(-bound, bound))
        self.stack_axes = {"weight": 1, "bias": 1} if copies else {}

    def fit(self, dense: Tensor) -> None:
        """Look at the numbers (N, D) of training rows, before the training."""

    @abstractmethod
    def encode(self, numbers: Tensor) -> Tensor:
        """Numbers (D, 1, B, 1) to (D, copies or 1, B, parts)."""

    def glorot(self) -> None:
        """Draw the layers anew."""
        glorot_(self.weight, self.bias)

    def forward(self, dense: Tensor) -> Tensor:
        """(B, D) numbers to their vectors side by side, (B, [copies,] D * width)."""
        encoded = self.encode(dense.t()[:, None, :, None])
        hidden = encoded @ self.weight.transpose(2, 3) + self.bias[:, :, None]
        vectors = F.relu(hidden).permute(2, 1, 0, 3).flatten(2)  # (B, copies or 1, D * width)
        return vectors if self.copies else vectors[:, 0]


class PiecewiseLinear(NumberEmbedding):
    """How far a number reaches into each of the bins of its feature: 1 in those below it, 0 in
    those above it. The first and the last bin go on beyond their outer edges.

    Attributes:
        edges: (D, bins + 1) rising; a feature with fewer bins repeats its last edge.
    """

    def __init__(self, features: int, width: int, bins: int, copies: int) -> None:
        super().__init__(features, width, bins, copies)
        self.edges: Tensor = nn.Buffer(torch.linspace(-2, 2, bins + 1).repeat(features, 1))

    def fit(self, dense: Tensor) -> None:
        """Put the edges where the numbers of training rows are."""
        bins = self.edges.shape[1] - 1
        for of_feature, column in zip(self.edges, dense.t().cpu().numpy(), strict=True):
            edges = torch.from_numpy(bin_edges(column, bins))
            of_feature.copy_(F.pad(edges, (0, bins + 1 - len(edges)), value=float(edges[-1])))

    def encode(self, numbers: Tensor) -> Tensor:
        left, right = self.edges[:, :-1], self.edges[:, 1:]
        is_bin = right > left
        shares_of = torch.where(is_bin, right - left, math.inf)  # 0 in a bin that is not there
        is_last = is_bin & (right == self.edges[:, -1:])
        highest = torch.where(is_last, math.inf, torch.ones_like(left))
        lowest = F.pad(torch.zeros_like(left[:, 1:]), (1, 0), value=-math.inf)

        left, shares_of, lowest, highest = (
            of_bin[:, None, None] for of_bin in (left, shares_of, lowest, highest)
        )
        return ((numbers - left) / shares_of).clamp(lowest, highest)


class Periodic(NumberEmbedding):
    """Sines and cosines of 2 pi f x for learnt frequencies f."""

    def __init__(self, features: int, width: int, count: int, std: float, copies: int) -> None:
        super().__init__(features, width, 2 * count, copies)
        self.frequencies = nn.Parameter(torch.randn(features, self.layers, count) * std)
        if copies:
            self.stack_axes["frequencies"] = 1

    def encode(self, numbers: Tensor) -> Tensor:
        angles = 2 * math.pi * numbers * self.frequencies[:, :, None]
        return torch.cat([angles.sin(), angles.cos()], -1)


def number_embedding(options: BaseOptions, features: int, copies: int) -> NumberEmbedding | None:
    """What the option ``numbers`` asks for; None where numbers are not encoded."""
    width = options.embedding
    if options.numbers == "piecewise" and features:
        return PiecewiseLinear(features, width, options.number_bins, copies)
    if options.numbers == "periodic" and features:
        return Periodic(features, width, options.frequencies, options.frequency_std, copies)
    return None


def bin_edges(column: np.ndarray, bins: int) -> np.ndarray:
    """The edges of at most ``bins`` bins, which are values of the column (N,), rising.

    A value that alone would fill a bin is an edge, and the others are quantiles of the rest: a
    column that is zero for nearly every row keeps its resolution where it is not zero.
    """
    distinct, counts = np.unique(column, return_counts=True)
    if len(distinct) <= bins + 1:
        return distinct
    is_frequent = counts * bins > len(column)
    rest = np.repeat(distinct[~is_frequent], counts[~is_frequent])
    edges_left = bins - int(is_frequent.sum())
    quantiles = rest[np.arange(edges_left) * len(rest) // edges_left]
    return np.unique(np.concatenate([distinct[is_frequent], quantiles, distinct[-1:]]))
