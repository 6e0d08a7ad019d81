"""Naive forward passes of the architectures that share in part, for ``twins.Twin``: one task and
expert at a time.
"""

from __future__ import annotations

from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor

from mtlkit.models._types import Batch
from mtlkit.models.snr import GAMMA, ZETA
from tests.models.twins import Forward, Twin


def tasks_of(twin: Twin) -> range:
    return range(len(twin.model[0].tasks))


def weights(twin: Twin, name: str, k: int, x: Tensor) -> Tensor:
    """The k-th gate of a stack, with its hidden layers and bias: (B, E)."""
    x = twin.mlp(f"{name}.hidden", k, x)
    return F.linear(
        x, twin.piece(f"{name}.linear.weight", k), twin.piece(f"{name}.linear.bias", k)
    ).softmax(-1)


def combine(factors: Tensor, outputs: list[Tensor]) -> Tensor:
    """Sum of parts (B, d) by factors (B, k)."""
    assert factors.shape[1] == len(outputs)
    return sum(factors[:, k, None] * output for k, output in enumerate(outputs))


def linear(twin: Twin, name: str, k: int, x: Tensor) -> Tensor:
    return F.linear(x, twin.piece(f"{name}.weight", k), twin.piece(f"{name}.bias", k))


def task_router(twin: Twin, batch: Batch) -> list[Tensor]:
    x = twin.x(batch)
    experts = [twin.mlp("experts", k, x) for k in range(twin.model[0].options.experts)]
    routed = twin.mlp("router", 0, x)
    return [
        twin.tower(t, combine(linear(twin, "routes", t, routed).softmax(-1), experts))
        for t in tasks_of(twin)
    ]


def task_embedding(twin: Twin, batch: Batch) -> list[Tensor]:
    x, options = twin.x(batch), twin.model[0].options
    experts = [twin.mlp("experts", k, x) for k in range(options.experts)]
    width, logits = options.task_width, []
    for t in tasks_of(twin):
        total = torch.zeros(options.experts, dtype=x.dtype)
        for head in range(options.heads):
            rows = slice(head * width, (head + 1) * width)
            query = twin.piece("attention.query.weight")[rows] @ twin.piece("attention.tasks", t)
            keys = [
                twin.piece("attention.key.weight")[rows] @ e
                for e in twin.piece("attention.experts")
            ]
            total = (
                total
                + torch.stack([query @ key / width**0.5 for key in keys]).softmax(0) / options.heads
            )
        logits.append(twin.tower(t, combine(total.expand(len(x), -1), experts)))
    return logits


def cross_stitch(twin: Twin, batch: Batch) -> list[Tensor]:
    options = twin.model[0].options
    h = [twin.x(batch, copy=t if options.tables == "own" else 0) for t in tasks_of(twin)]
    for level in range(len(options.bottom)):
        u = [F.relu(linear(twin, f"bottom.linears.{level}", t, h[t])) for t in tasks_of(twin)]
        h = [
            sum(twin.piece(f"stitches.{level}.weight", t)[j] * u[j] for j in tasks_of(twin))
            for t in tasks_of(twin)
        ]
    return [twin.tower(t, h[t]) for t in tasks_of(twin)]


def stem(twin: Twin, batch: Batch) -> list[Tensor]:
    tasks, options = tasks_of(twin), twin.model[0].options
    x = [twin.x(batch, copy=t) for t in range(len(tasks) + 1)]  # the last is shared
    specific = options.specific
    for level in range(options.levels):
        name, after = f"experts.{level}", []
        mine = [[twin.mlp(name, t * specific + k, x[t]) for k in range(specific)] for t in tasks]
        shared = [twin.mlp(name, len(tasks) * specific + k, x[-1]) for k in range(options.shared)]
        for t in tasks:
            seen = [[e if s == t else e.detach() for e in mine[s]] for s in tasks]
            after.append(
                combine(weights(twin, f"gates.{level}", t, x[t] + x[-1]), [*chain(*seen), *shared])
            )
        if level < options.levels - 1:
            seen = [e.detach() for e in chain(*mine)]
            after.append(combine(weights(twin, f"shared_gates.{level}", 0, x[-1]), seen + shared))
        x = after
    return [twin.tower(t, x[t]) for t in tasks]


def adatt(twin: Twin, batch: Batch) -> list[Tensor]:
    tasks, options = tasks_of(twin), twin.model[0].options
    x = [twin.x(batch)] * (len(tasks) + 1)
    specific, common = options.specific, options.shared
    for level in range(options.levels):
        name, after = f"experts.{level}", []
        mine = [[twin.mlp(name, t * specific + k, x[t]) for k in range(specific)] for t in tasks]
        shared = [twin.mlp(name, len(tasks) * specific + k, x[-1]) for k in range(common)]
        every = [*chain(*mine), *shared]
        for t in tasks:
            direct = twin.piece(f"direct.{level}.weight", t) if specific > 1 else torch.ones(1)
            fused = combine(weights(twin, f"gates.{level}", t, x[t]), every)
            after.append(fused + combine(direct.expand(len(fused), -1), mine[t]))
        if common and level < options.levels - 1:
            direct = twin.piece(f"shared_direct.{level}.weight", 0) if common > 1 else torch.ones(1)
            fused = combine(weights(twin, f"shared_gates.{level}", 0, x[-1]), every)
            after.append(fused + combine(direct.expand(len(fused), -1), shared))
        x = after
    return [twin.tower(t, x[t]) for t in tasks]


def dbmtl(twin: Twin, batch: Batch) -> list[Tensor]:
    model, options, names = (
        twin.model[0],
        twin.model[0].options,
        list(twin.model[0].schema.task_names),
    )
    h = twin.x(batch)
    if options.mask != "none":
        x = h
        h = F.layer_norm(
            x, x.shape[-1:], twin.piece("mask.norm.weight"), twin.piece("mask.norm.bias")
        )

        def block(name: str, k: int, v: Tensor) -> Tensor:
            mask = linear(
                twin, f"{name}.project", k, F.relu(linear(twin, f"{name}.aggregate", k, x))
            )
            out = linear(twin, f"{name}.linear", k, v * mask)
            scale, shift = twin.piece(f"{name}.norm.scale", k), twin.piece(f"{name}.norm.shift", k)
            return F.relu(F.layer_norm(out, out.shape[-1:], scale, shift))

        if options.mask == "serial":
            for step in range(options.mask_blocks):
                h = block(f"mask.blocks.{step}", 0, h)
        else:
            h = torch.cat([block("mask.blocks.0", k, h) for k in range(options.mask_blocks)], -1)
    h = twin.mlp("bottom", 0, h)
    experts = [twin.mlp("experts", k, h) for k in range(options.experts)]
    inputs = [
        combine(weights(twin, "gates", t, h), experts) if experts else h for t in tasks_of(twin)
    ]
    related: dict[str, Tensor] = {}

    def relation(name: str) -> Tensor:
        t = names.index(name)
        if name not in related:
            before = [names[t - 1]] if t else []
            before = options.parents.get(name, ()) if options.parents else before
            inputs_of_task = [
                twin.mlp(f"towers.{t}", 0, inputs[t]),
                *(relation(parent) for parent in before),
            ]
            related[name] = twin.mlp(f"relations.{t}", 0, torch.cat(inputs_of_task, -1))
        return related[name]

    assert len(model.heads) == len(names)
    return [linear(twin, f"heads.{t}", 0, relation(name)) for t, name in enumerate(names)]


def pepnet(twin: Twin, batch: Batch) -> list[Tensor]:
    model = twin.model[0]
    x, wide = twin.x(batch), model.options.embedding

    def gate(name: str, k: int, u: Tensor) -> Tensor:
        return (
            2
            * linear(
                twin, f"{name}.spread", k, F.relu(linear(twin, f"{name}.cross", k, u))
            ).sigmoid()
        )

    user, item, domain = (x[:, k * wide : (k + 1) * wide] for k in range(3))
    scaled = x * gate("epnet", 0, torch.cat([domain, x.detach()], -1))
    prior, logits = torch.cat([user, item, scaled.detach()], -1), []
    for t in tasks_of(twin):
        stack, k = next((s, m.index(t)) for s, m in enumerate(model.towers.members) if t in m)
        h, level = scaled, 0
        while twin.piece(f"towers.hidden.{stack}.linears.{level}.weight", k) is not None:
            h = F.relu(linear(twin, f"towers.hidden.{stack}.linears.{level}", k, h))
            h = h * gate(f"ppnet.{stack}.{level}", k, prior)
            level += 1
        logits.append(linear(twin, f"towers.heads.{stack}", k, h))
    return logits


def home(twin: Twin, batch: Batch) -> list[Tensor]:
    model = twin.model[0]
    options, names, x = model.options, model.schema.task_names, twin.x(batch)
    of = [options.groups.get(name, "all tasks") for name in names]
    groups = list(dict.fromkeys(of))

    def feature(name: str, k: int, u: Tensor) -> Tensor:
        pairs = range(k * options.gate_parts, (k + 1) * options.gate_parts)
        factors = [
            2 * linear(twin, f"{name}.up", i, linear(twin, f"{name}.down", i, u)).sigmoid()
            for i in pairs
        ]
        if options.gate_parts == 1:
            return u * factors[0]
        return u * combine(linear(twin, f"{name}.router", k, u).softmax(-1), factors)

    def alone(name: str, k: int, u: Tensor, experts: list[Tensor]) -> Tensor:
        scores = linear(twin, f"{name}.linear", k, u)
        return combine(scores.softmax(-1) if len(experts) > 1 else scores.sigmoid(), experts)

    def experts(name: str, path: int, u: Tensor, count: int) -> list[Tensor]:
        return [twin.mlp(name, path * count + k, u) for k in range(count)]

    meta = [
        experts("meta_experts", g, feature("meta_features", g, x), options.meta)
        for g in range(len(groups) + 1)
    ]
    z = []
    for g in range(len(groups)):
        mixed = combine(weights(twin, "meta_gates", g, x), meta[g] + meta[-1])
        z.append(mixed + alone("meta_self", g, x, meta[g]))
    every = [e for experts_of_path in meta for e in experts_of_path]
    z.append(
        combine(weights(twin, "shared_gate", 0, x), every)
        + alone("meta_self", len(groups), x, meta[-1])
    )
    read = [z[groups.index(of[t])] for t in tasks_of(twin)] + z
    outputs = [
        experts("experts", p, feature("features", p, u), options.specific)
        for p, u in enumerate(read)
    ]
    logits = []
    for t in tasks_of(twin):
        seen = outputs[t] + outputs[len(names) + groups.index(of[t])] + outputs[-1]
        mixed = combine(weights(twin, "gates", t, torch.cat([read[t], z[-1]], -1)), seen)
        logits.append(twin.tower(t, mixed + alone("self_gates", t, read[t], outputs[t])))
    return logits


def snr(twin: Twin, batch: Batch) -> list[Tensor]:
    """As scored: connections take their estimate."""
    options = twin.model[0].options
    v = [twin.x(batch)] * options.subnets
    for level in range(options.levels):
        u = [twin.mlp(f"subnets.{level}", k, v[k]) for k in range(options.subnets)]
        readers = options.subnets if level < options.levels - 1 else len(tasks_of(twin))
        v = []
        for i in range(readers):
            z = (
                twin.piece(f"routings.{level}.log_alpha", i).sigmoid() * (ZETA - GAMMA) + GAMMA
            ).clamp(0, 1)
            matrix = twin.piece(f"routings.{level}.weight", i)  # (d, S, d)
            terms = [u_j if matrix is None else u_j @ matrix[:, j].T for j, u_j in enumerate(u)]
            v.append(sum(z[j] * term for j, term in enumerate(terms)))
    return [twin.tower(t, v[t]) for t in tasks_of(twin)]


FORWARD: dict[str, Forward] = {
    "task-router": task_router,
    "task-embedding": task_embedding,
    "cross-stitch": cross_stitch,
    "stem": stem,
    "adatt": adatt,
    "dbmtl": dbmtl,
    "pepnet": pepnet,
    "home": home,
    "snr": snr,
}
