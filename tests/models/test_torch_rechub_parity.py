"""The same predictions as torch-rechub's, an independent implementation, from the same weights and
in evaluation mode.

What its networks have beside ours is an option here: batch norm in every hidden layer
(``norm=batch``), and gates with a bias and batch norm (``gate_bias``, ``gate_norm=batch``). Its
AITM differs in more, which the tests at the end name.
"""

import pytest
import torch
from torch import nn

from tests.models.build import build
from tests.toy import toy_batch, toy_schema

pytest.importorskip(
    "torch_rechub", reason="torch-rechub is not installed: pip install 'mtlkit[parity]'"
)

from torch_rechub.basic.features import DenseFeature, SparseFeature
from torch_rechub.models.multi_task import AITM, ESMM, MMOE, PLE, SharedBottom

KINDS = ("binary", "regression")
TYPES = ["classification", "regression", "classification"]
ROWS = 50
TOLERANCE = {"rtol": 0, "atol": 1e-5}
NORMS = {"norm": "batch", "gate_bias": True, "gate_norm": "batch"}


def features_of(schema, embedding=8):
    ids = [
        SparseFeature(f.name, vocab_size=f.vocab, embed_dim=embedding) for f in schema.of_kind("id")
    ]
    return ids + [DenseFeature(f.name) for f in schema.of_kind("dense")]


def inputs_of(schema, batch):
    inputs = {feature.name: batch.ids[:, k] for k, feature in enumerate(schema.of_kind("id"))}
    return inputs | {
        feature.name: batch.dense[:, k] for k, feature in enumerate(schema.of_kind("dense"))
    }


def drawn(model):
    """Their model with weights and norm statistics that leave no difference hidden, in evaluation
    mode.
    """
    torch.manual_seed(7)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 2)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.3)
    return model.eval()


def norm_layer(norm, k, source):
    """Copy a batch norm into the k-th layer of a stacked one."""
    width = norm.scale.shape[1]
    norm.scale[k], norm.shift[k] = source.weight, source.bias
    norm.batch_norm.running_mean[k * width : (k + 1) * width] = source.running_mean
    norm.batch_norm.running_var[k * width : (k + 1) * width] = source.running_var


def perceptron(stack, k, layers):
    """Copy (linear, norm, activation, dropout) quadruples into the k-th perceptron of a stack."""
    assert len(layers) == 4 * len(stack.linears)
    for layer, (linear, norm) in enumerate(zip(stack.linears, stack.norms, strict=True)):
        linear.weight[k], linear.bias[k] = layers[4 * layer].weight, layers[4 * layer].bias
        norm_layer(norm, k, layers[4 * layer + 1])


def tower(towers, k, layers):
    perceptron(towers.hidden[0], k, layers[:-1])
    towers.heads[0].weight[k], towers.heads[0].bias[k] = layers[-1].weight, layers[-1].bias


def gate(target, k, layers):
    target.linear.weight[k], target.linear.bias[k] = layers[0].weight, layers[0].bias
    norm_layer(target.norm, k, layers[1])


def tables(model, source, schema):
    model.embedding.width_8.copy_(
        torch.cat([source.embed_dict[f.name].weight for f in schema.of_kind("id")])
    )


def probabilities(model, batch):
    """(B, T) as torch-rechub gives them: probabilities of binary tasks, values of regression tasks."""
    predictions = model.eval()(batch).predictions
    kinds = {task.name: task.kind for task in model.tasks}
    logits = [p.logits.sigmoid() if kinds[p.task] == "binary" else p.logits for p in predictions]
    return torch.stack(logits, 1)


@pytest.fixture
def schema():
    return toy_schema(3, KINDS)


@torch.no_grad()
def test_shared_bottom(schema):
    towers = [{"dims": [6, 4]}] * 3
    theirs = drawn(SharedBottom(features_of(schema), TYPES, {"dims": [9, 7]}, towers))
    ours = build("shared-bottom", schema, bottom=(9, 7), tower=(6, 4), norm="batch")
    tables(ours, theirs.embedding, schema)
    perceptron(ours.bottom, 0, theirs.bottom_mlp.mlp)
    for t in range(3):
        tower(ours.towers, t, theirs.towers[t].mlp)
    batch = toy_batch(schema, ROWS)
    torch.testing.assert_close(
        probabilities(ours, batch), theirs(inputs_of(schema, batch)), **TOLERANCE
    )


@torch.no_grad()
def test_mmoe(schema):
    theirs = drawn(MMOE(features_of(schema), TYPES, 4, {"dims": [9, 7]}, [{"dims": [6]}] * 3))
    ours = build("mmoe", schema, experts=4, hidden=(9, 7), tower=(6,), **NORMS)
    tables(ours, theirs.embedding, schema)
    for k, expert in enumerate(theirs.experts):
        perceptron(ours.experts, k, expert.mlp)
    for t in range(3):
        gate(ours.gates, t, theirs.gates[t].mlp)
        tower(ours.towers, t, theirs.towers[t].mlp)
    batch = toy_batch(schema, ROWS)
    torch.testing.assert_close(
        probabilities(ours, batch), theirs(inputs_of(schema, batch)), **TOLERANCE
    )


@pytest.mark.parametrize("levels", [1, 2, 3])
@torch.no_grad()
def test_ple(schema, levels):
    theirs = drawn(
        PLE(features_of(schema), TYPES, levels, 2, 3, {"dims": [7]}, [{"dims": [6]}] * 3)
    )
    ours = build(
        "ple", schema, levels=levels, specific=2, shared=3, hidden=(7,), tower=(6,), **NORMS
    )
    tables(ours, theirs.embedding, schema)
    for level, source in enumerate(theirs.cgc_layers):
        for k, expert in enumerate([*source.experts_specific, *source.experts_shared]):
            perceptron(ours.experts[level], k, expert.mlp)
        for t in range(3):
            gate(ours.gates[level], t, source.gates_specific[t].mlp)
        if level < levels - 1:
            gate(ours.shared_gates[level], 0, source.gate_shared.mlp)
    for t in range(3):
        tower(ours.towers, t, theirs.towers[t].mlp)
    batch = toy_batch(schema, ROWS)
    torch.testing.assert_close(
        probabilities(ours, batch), theirs(inputs_of(schema, batch)), **TOLERANCE
    )


@torch.no_grad()
def test_esmm():
    """Theirs takes id features only, and gives CVR, CTR and CTCVR in this order."""
    schema = toy_schema(2, dense=0).model_copy(update={"funnel": ("t1", "t2")})
    user, *item = features_of(schema)
    theirs = drawn(ESMM([user], item, {"dims": [9, 6]}, {"dims": [9, 6]}))
    ours = build("esmm", schema, bottom=(9,), tower=(6,), norm="batch")
    tables(ours, theirs.embedding, schema)
    for t, source in enumerate((theirs.tower_ctr.mlp, theirs.tower_cvr.mlp)):
        perceptron(ours.bottom, t, source[:4])
        tower(ours.towers, t, source[4:])
    batch = toy_batch(schema, ROWS)
    expected = theirs(inputs_of(schema, batch))
    torch.testing.assert_close(probabilities(ours, batch), expected[:, [1, 2]], **TOLERANCE)
    (cvr,) = (prediction.logits.sigmoid() for prediction in ours(batch).further)
    torch.testing.assert_close(cvr, expected[:, 0], **TOLERANCE)


def aitm_pair(schema):
    """Their AITM, and ours with its weights so far as they have a place: one attention, and no
    norms in between.
    """
    n = len(schema.tasks)
    theirs = drawn(AITM(features_of(schema), n, {"dims": [9, 7]}, [{"dims": [6]}] * n))
    ours = build("aitm", schema, bottom=(9, 7), tower=(6,), norm="batch")
    with torch.no_grad():
        tables(ours, theirs.embedding, schema)
        for t in range(n):
            perceptron(ours.bottom, t, theirs.bottoms[t].mlp)
            tower(ours.towers, t, theirs.towers[t].mlp)
        for info, source in zip(ours.info, theirs.info_gates, strict=True):
            info.weight.copy_(source.mlp[0].weight)
            info.bias.copy_(source.mlp[0].bias)
        for mine, source in (("h1", "q_layer"), ("h2", "k_layer"), ("h3", "v_layer")):
            getattr(ours.transfer, mine).weight.copy_(getattr(theirs.aits[0], source).weight)
    return theirs, ours


def fold_norms(theirs, ours):
    """Their norm in the information layers is, in evaluation mode, a linear map that ours can take
    up.
    """
    with torch.no_grad():
        for info, source in zip(ours.info, theirs.info_gates, strict=True):
            norm = source.mlp[1]
            factor = norm.weight / (norm.running_var + norm.eps).sqrt()
            info.bias.copy_((info.bias - norm.running_mean) * factor + norm.bias)
            info.weight.mul_(factor[:, None])


def share_attention(theirs):
    with torch.no_grad():
        for attention in theirs.aits[1:]:
            attention.load_state_dict(theirs.aits[0].state_dict())


def test_aitm_apart_from_its_differences():
    """1. A batch norm in each information layer. 2. An attention for each transition, where the
    paper shares one.
    """
    schema = toy_schema(3).model_copy(update={"funnel": ("t1", "t2", "t3")})
    batch = toy_batch(schema, ROWS)
    inputs = inputs_of(schema, batch)
    theirs, ours = aitm_pair(schema)
    with torch.no_grad():
        torch.testing.assert_close(
            probabilities(ours, batch)[:, 0], theirs(inputs)[:, 0], **TOLERANCE
        )
        assert not torch.allclose(
            probabilities(ours, batch)[:, 1], theirs(inputs)[:, 1], **TOLERANCE
        )
        fold_norms(theirs, ours)
        torch.testing.assert_close(
            probabilities(ours, batch)[:, :2], theirs(inputs)[:, :2], **TOLERANCE
        )
        assert not torch.allclose(
            probabilities(ours, batch)[:, 2], theirs(inputs)[:, 2], **TOLERANCE
        )
        share_attention(theirs)
        torch.testing.assert_close(probabilities(ours, batch), theirs(inputs), **TOLERANCE)


def test_aitm_calibrates_here_and_not_there():
    """3. No calibrator: their losses are the sum of the tasks' cross entropies, ours with
    ``weight=0``.
    """
    schema = toy_schema(2).model_copy(update={"funnel": ("t1", "t2")})
    batch = toy_batch(schema, ROWS)
    theirs, ours = aitm_pair(schema)
    fold_norms(theirs, ours)
    plain = nn.functional.binary_cross_entropy(
        theirs(inputs_of(schema, batch)), batch.labels, reduction="none"
    ).mean(0)
    objectives = ours.eval().objectives(ours(batch), batch)
    assert [objective.owner for objective in objectives] == ["t1", "t2", "t2"]
    torch.testing.assert_close(
        torch.stack([objective.loss for objective in objectives[:2]]), plain, rtol=1e-5, atol=1e-6
    )
    assert objectives[2].loss > 0
