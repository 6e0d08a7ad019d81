"""A grid of fake runs of which every figure has something to say."""

import numpy as np
from sklearn.metrics import roc_auc_score

from mtlkit.report.figures.context import Context, Look
from mtlkit.report.frame import curves_by_group, load
from mtlkit.report.probe_frames import load_probes
from mtlkit.report.relations import find_relations
from mtlkit.report.summary import summarise
from mtlkit.store import ResultStore
from tests.fakes import cell, noise, probes, record

MODELS = ("shared-bottom", "mmoe", "ple")
BALANCERS = ("uniform", "uwl", "pcgrad", "static[w=0.667:1.33]", "static[w=1.33:0.667]")
TASKS = {
    "two": ("income", "marital"),
    "many": tuple(f"a task with a long name {n}" for n in range(1, 6)),
}


def fill(root, tasks):
    """Three models under five balancers with three seeds; of many tasks two under two."""
    store = ResultStore(root)
    many = len(tasks) > 2
    models, balancers = (MODELS[1:], BALANCERS[:2]) if many else (MODELS, BALANCERS)
    pairs = [(model, balancer) for model in models for balancer in balancers]
    for model, balancer in [("single-task", "none"), *pairs]:
        for seed in range(3):
            one = cell(model, balancer, seed, tasks=tasks, training={"batch_size": 1024})
            arrays = probes(one)
            if model == "mmoe":
                arrays["ablation/level-1"] = noise(one.key).normal(0, 0.01, (8, len(tasks)))
                arrays["ablation/level-1/experts"] = np.array([f"expert {n}" for n in range(1, 9)])
            made = record(one).model_copy(update={"curve": curve(one, tasks)})
            kept = {"probes": arrays} if model != "single-task" else {}
            rows = scores(one, tasks)
            for task in tasks:
                auc = roc_auc_score(rows[f"label/{task}"], rows[f"score/{task}"])
                made.metrics["test"][task]["auc"] = auc
            store.save(made, kept | {"scores": rows})
    return store


def curve(one, tasks):
    """Ten evaluation points that rise."""
    aucs = 0.9 - 0.4 * np.exp(-np.arange(1, 11) / 2) + noise(one.key).normal(0, 0.002, 10)
    return [
        {
            "step": 100 * (point + 1),
            "epoch": 0.6 * (point + 1),
            "train_loss": dict.fromkeys(tasks, 0.5),
            "validation": {task: {"auc": float(auc), "logloss": 0.5} for task in tasks},
        }
        for point, auc in enumerate(aucs)
    ]


def scores(one, tasks):
    """Log-odds and labels of 4000 test rows, the same labels in all runs."""
    arrays = {}
    for task in tasks:
        logits = noise(task).normal(-1, 1.2, 4000)
        labels = noise(task, "label").random(4000) < 1 / (1 + np.exp(-logits))
        arrays[f"score/{task}"] = logits + noise(one.key, task).normal(0, 0.3, 4000)
        arrays[f"label/{task}"] = labels * 1.0
    return arrays


def context_of(root):
    """What figures read of the first data set of a folder."""
    frames = load(ResultStore(root))
    block = frames.blocks[0]
    summary = summarise(frames, block)
    found = load_probes(frames, block).by_group
    relations = find_relations(frames, summary, found)
    look = Look.of([summary])
    return Context(summary, found, look, curves_by_group(frames, block), relations)
