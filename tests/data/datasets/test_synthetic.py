import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtlkit.data.datasets.synthetic import generate, lowest_cosine, weight_vectors
from mtlkit.data.planted import ceilings
from mtlkit.data.sources import open_source
from mtlkit.data.sources import prepare as prepare_data
from mtlkit.data.splits import SPLITS
from mtlkit.errors import UsageError


def prepare(tmp_path, *options: str):
    return open_source(f"synthetic[{','.join(('rows=4000', 'd=16', *options))}]").prepare(tmp_path)


@given(st.integers(1, 9), st.floats(0, 1))
def test_weight_vectors_have_the_cosine_asked_for(tasks, where):
    p = lowest_cosine(tasks) + where * (1 - lowest_cosine(tasks))
    w = weight_vectors(p, tasks, 12, np.random.default_rng(0))
    expected = np.full((tasks, tasks), p)
    np.fill_diagonal(expected, 1)
    np.testing.assert_allclose(w @ w.T, expected, atol=1e-6)


def test_two_tasks_are_those_of_the_paper():
    w = weight_vectors(0.6, 2, 5, np.random.default_rng(3))
    basis, _ = np.linalg.qr(np.random.default_rng(3).standard_normal((5, 2)))
    np.testing.assert_allclose(w, [basis[:, 0], 0.6 * basis[:, 0] + 0.8 * basis[:, 1]])


@pytest.mark.parametrize("kind", ["regression", "binary"])
def test_label_correlation_rises_with_p(tmp_path, kind):
    def correlation(p):
        labels = prepare(tmp_path, f"p={p}", f"kind={kind}", "seed=3").splits["train"].labels
        return np.corrcoef(labels.T)[0, 1]

    values = [correlation(p) for p in (0, 0.5, 0.9, 1)]
    assert abs(values[0]) < 0.06
    assert values == sorted(values)
    assert values[-1] > 0.85


def test_p_1_gives_equal_noiseless_targets():
    targets = generate(open_source("synthetic[p=1,tasks=3,noise_std=0,rows=100,d=8]").options)[
        "train"
    ].targets
    np.testing.assert_allclose(targets, targets[:, :1].repeat(3, axis=1), atol=1e-9)


def test_p_moves_the_vectors_and_nothing_else():
    one, two = (generate(open_source(f"synthetic[p={p},rows=100,d=8]").options) for p in (0.1, 0.9))
    for name in SPLITS:
        np.testing.assert_array_equal(one[name].inputs, two[name].inputs)
        np.testing.assert_allclose(one[name].targets[:, 0], two[name].targets[:, 0], atol=1e-9)
        assert not np.allclose(one[name].targets[:, 1], two[name].targets[:, 1])


def test_the_ceiling_is_what_the_targets_without_noise_reach(tmp_path):
    data = prepare(tmp_path, "kind=mixed", "noise_std=1")
    options = open_source("synthetic[rows=4000,d=16,kind=mixed,noise_std=1]").options
    drawn = generate(options)
    signal, target = drawn["test"].signals, drawn["test"].targets
    assert np.std(target - signal) == pytest.approx(1, rel=0.05)
    planted = ceilings(data)
    label = data.splits["test"].labels[:, 0]
    wins = signal[label > 0, 0][:, None] > signal[label == 0, 0]
    assert planted["task-1"] == pytest.approx(wins.mean())
    error = np.square(target[:, 1] - signal[:, 1]).mean()
    assert planted["task-2"] == pytest.approx(1 - error / target[:, 1].var(), rel=1e-5)


def test_without_noise_nothing_is_out_of_reach(tmp_path):
    assert ceilings(prepare(tmp_path, "kind=mixed", "noise_std=0")) == pytest.approx(
        {"task-1": 1, "task-2": 1}
    )


def test_seed_decides_everything(tmp_path):
    assert prepare(tmp_path).fingerprint == prepare(tmp_path).fingerprint
    assert prepare(tmp_path).fingerprint != prepare(tmp_path, "seed=1").fingerprint


def test_labels_that_are_missing_leave_the_rest_alone(tmp_path):
    whole, few = prepare(tmp_path), prepare(tmp_path, "labelled=0.1")
    observed = few.splits["train"].observed
    assert observed.mean(0) == pytest.approx([0.1, 1], abs=0.02)
    for name in SPLITS:
        np.testing.assert_array_equal(few.splits[name].dense, whole.splits[name].dense)
        np.testing.assert_array_equal(few.splits[name].labels, whole.splits[name].labels)
    assert few.splits["test"].observed.all()
    # data without it keep their folder and the keys of their cells
    assert "labelled" not in open_source("synthetic[labelled=1]").resolved_options()
    assert open_source("synthetic[labelled=0.1]").resolved_options()["labelled"] == 0.1


def test_splits_differ_and_have_their_sizes(tmp_path):
    data = prepare(tmp_path)
    assert data.simulated
    assert [len(data.splits[name]) for name in SPLITS] == [4000, 1000, 1000]
    assert not np.allclose(data.splits["validation"].dense, data.splits["test"].dense)
    assert all(
        split.ids.shape[1] == 0 and split.dense.dtype == np.float32
        for split in data.splits.values()
    )


def test_thresholds_and_scales_are_those_of_train(tmp_path):
    data = prepare(tmp_path, "kind=mixed", "tasks=3", "positive_rate=0.2")
    assert [task.kind for task in data.schema.tasks] == ["binary", "regression", "binary"]
    labels = data.splits["train"].labels
    assert labels[:, [0, 2]].mean(0).tolist() == [pytest.approx(0.2)] * 2
    np.testing.assert_allclose([labels[:, 1].mean(), labels[:, 1].std()], [0, 1], atol=1e-5)
    drawn = generate(open_source("synthetic[rows=4000,d=16,kind=mixed,tasks=3]").options)
    mean, std = data.schema.tasks[1].scale
    restored = data.splits["test"].labels[:, 1] * std + mean
    np.testing.assert_allclose(restored, drawn["test"].targets[:, 1], atol=1e-4)


def test_noise_is_what_it_says():
    noisy, clean = (
        generate(open_source(f"synthetic[rows=4000,d=8,noise_std={std}]").options)["train"].targets
        for std in (0.5, 0)
    )
    assert (noisy - clean).std() == pytest.approx(0.5, rel=0.03)


@pytest.mark.parametrize("text", ["synthetic[p=-0.6,tasks=3]", "synthetic[d=3,tasks=4,p=0]"])
def test_impossible_options_are_refused_with_a_hint_that_works(text):
    with pytest.raises(UsageError) as caught:
        open_source(text)
    open_source(caught.value.hint.split("'")[1])


@pytest.mark.parametrize(
    "text", ["synthetic[p=1.5]", "synthetic[tasks=0]", "synthetic[positive_rate=1]"]
)
def test_options_out_of_range(text):
    with pytest.raises(UsageError):
        open_source(text)


def test_needs_no_network_and_no_file(tmp_path):
    source, data = prepare_data("synthetic[rows=40,d=4]", tmp_path)
    assert source.is_ready(tmp_path)
    assert prepare_data("synthetic[rows=40,d=4]", tmp_path)[1].fingerprint == data.fingerprint
    with pytest.raises(UsageError, match="--from"):
        prepare_data("synthetic[rows=44,d=4]", tmp_path, origin=tmp_path)
