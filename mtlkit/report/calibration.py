"""How often what a model predicts does happen, by the odds that it predicts."""

from __future__ import annotations

import numpy as np
from scipy.special import expit

END = 12  # log-odds beyond which all predictions count as this one
FINE = 20  # counted bins of a unit of log-odds
SHOWN = 2  # shown bins of a unit of log-odds
LEAST = 20.0  # a bin is shown if so many positives, and so many negatives, are expected in it


def calibration_counts(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(2, 2 · END · FINE) negatives and positives by predicted log-odds. Bins of one width resolve
    rare and usual events alike, and are the same for every model and seed.

    Args:
        logits: (N,) predicted log-odds.
        labels: (N,) positive above 0.
    """
    bins = 2 * END * FINE
    # fmax and fmin, so that what is no number falls into the first bin
    which = np.fmin(np.fmax((logits + END) * FINE, 0), bins - 1).astype(np.intp)
    return np.bincount(which + bins * (labels > 0), minlength=2 * bins).reshape(2, bins)


def calibration_curve(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The bins with enough rows to say something.

    Args:
        counts: As above; of several seeds, their mean.

    Returns:
        (P,) mean predicted probability; (P,) observed over predicted odds, 1 being calibrated; and
        (P,) the standard error of its logarithm over test rows, were the model calibrated.
    """
    p = expit((np.arange(counts.shape[1]) + 0.5) / FINE - END)
    rows, positives = counts.sum(0), counts[1]

    # Counted bins are narrow, so that p of their middle stands for all of their rows.
    summed = np.stack([rows, rows * p, rows * p * (1 - p), positives])
    summed = summed.reshape(4, -1, FINE // SHOWN).sum(-1)
    rows, expected, _, positives = summed
    enough = (expected >= LEAST) & (rows - expected >= LEAST) & (positives > 0) & (positives < rows)
    rows, expected, variance, positives = summed[:, enough]
    odds = positives / (rows - positives) * (rows - expected) / expected
    return expected / rows, odds, 1 / np.sqrt(variance)
