"""Slow and obvious forms of the losses, row by row and pair by pair, in float64."""

import math

from mtlkit.data.splits import NO_GROUP


def softplus(x):
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def log_sum_exp(values):
    top = max(values)
    return top + math.log(sum(math.exp(value - top) for value in values))


def bce(x, y, smoothing=0.0):
    y = y * (1 - smoothing) + smoothing / 2
    return y * softplus(-x) + (1 - y) * softplus(x)


def focal(x, y, gamma=2.0, alpha=0.25):
    p = math.exp(-softplus(-x))
    q = math.exp(-softplus(x))
    if y:
        return alpha * q**gamma * softplus(-x)
    return (1 - alpha) * p**gamma * softplus(x)


def quantile(x, y, q=0.5):
    return q * (y - x) if y > x else (1 - q) * (x - y)


def huber(x, y, delta=1.0):
    error = abs(x - y)
    return error**2 / 2 if error <= delta else delta * (error - delta / 2)


def ziln(logits, y):
    a, mean, b = logits
    deviation = max(softplus(b), 1e-3)
    loss = bce(a, float(y > 0))
    if y > 0:
        loss += math.log(y) + math.log(deviation) + math.log(2 * math.pi) / 2
        loss += (math.log(y) - mean) ** 2 / (2 * deviation**2)
    return loss


def apart(sessions):
    """Sessions, with one of its own for each row that is in none."""
    return [("alone", i) if s == NO_GROUP else s for i, s in enumerate(sessions)]


def jrc(logits, labels, sessions, mask, alpha=0.5, form="paper"):
    """The loss of each row that has a label; every pair of rows is looked at."""
    sessions = apart(sessions)
    losses = {}
    for i, (x0, x1) in enumerate(logits):
        if not mask[i]:
            continue
        own = (x0, x1)[int(labels[i])]
        cross_entropy = log_sum_exp([x0, x1]) - own
        summed = [own]
        for j in range(len(logits)):
            other = logits[j][int(labels[i])]
            same_class = labels[i] == labels[j]
            if i == j or not mask[j] or sessions[i] != sessions[j]:
                continue
            if form == "paper" or not same_class:
                summed.append(other)
        losses[i] = alpha * cross_entropy + (1 - alpha) * (log_sum_exp(summed) - own)
    return losses


def listwise(logits, labels, sessions, mask):
    sessions = apart(sessions)
    rows = [i for i in range(len(logits)) if mask[i]]
    return {
        i: labels[i]
        * (log_sum_exp([logits[j] for j in rows if sessions[j] == sessions[i]]) - logits[i])
        for i in rows
    }


def pairwise(logits, labels, sessions, mask):
    sessions = apart(sessions)
    rows = [i for i in range(len(logits)) if mask[i]]
    losses = {}
    for i in rows:
        negatives = [j for j in rows if sessions[j] == sessions[i] and not labels[j]]
        pairs = [softplus(logits[j] - logits[i]) for j in negatives]
        losses[i] = labels[i] * sum(pairs) / len(pairs) if pairs else 0.0
    return losses
