"""From rows to scores: the same numbers as the reference implementations give for the same features and seeds."""

import math

import numpy as np
import pytest
import torch
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from ckptwatch.evaluate.ledger import Ledger
from ckptwatch.evaluate.metrics.cmmd import Cmmd
from ckptwatch.evaluate.metrics.inception_score import InceptionScore, split_scores
from ckptwatch.evaluate.metrics.kid import Kid
from ckptwatch.evaluate.metrics.mmd import cubic, gaussian, spread
from ckptwatch.evaluate.metrics.precision_recall import Manifolds, Precision, Recall

KID = "kernel_inception_distance_mean"


def draw(n, d, seed, scale=1.0, shift=0.0):
    noise = torch.Generator().manual_seed(seed)
    spectrum = torch.arange(1, d + 1) ** -0.5
    return torch.randn(n, d, generator=noise) * spectrum * scale + shift * spectrum


def embeddings(n, d, seed, shift=0.0):
    return torch.nn.functional.normalize(draw(n, d, seed, shift=shift), dim=1)


@pytest.fixture
def ledger_of(tmp_path):
    made = []

    def make(rows, key="f"):
        directory = tmp_path / str(len(made))
        directory.mkdir()
        ledger = Ledger(directory)
        for batch in rows.split(32):
            ledger.append({key: batch})
        made.append(ledger)
        return ledger

    return make


def value(metric, ledger):
    [measured] = metric.compute(ledger)
    return measured.score.value


# ---- Inception Score ----


@pytest.mark.parametrize(("n", "splits"), [(100, 10), (1003, 10), (57, 5), (10, 1)])
def test_inception_score_is_exactly_that_of_torch_fidelity(ledger_of, n, splits):
    logits = draw(n, 24, 3, scale=4.0)
    expected = isc_features_to_metric(logits, splits=splits, shuffle=True, rng_seed=2020)
    assert value(InceptionScore("f", "net"), ledger_of(logits)) == expected["inception_score_mean"]


def test_inception_score_of_equal_images_is_exactly_that_of_torch_fidelity(ledger_of):
    logits = draw(1, 24, 3).repeat(120, 1)
    expected = isc_features_to_metric(logits, splits=10, shuffle=True, rng_seed=2020)["inception_score_mean"]
    assert value(InceptionScore("f", "net"), ledger_of(logits)) == expected == pytest.approx(1.0)


def test_influence_on_the_inception_score_is_its_derivative(ledger_of):
    # Giving one sample more weight moves the score by its influence over n.
    logits, eps = draw(40, 8, 5, scale=3.0).double(), 1e-5

    def score(weights):
        p = logits.softmax(dim=1)
        w = weights / weights.sum()
        m = w @ p
        return float((w @ (p * (p.log() - m.log())).sum(dim=1)).exp())

    _, influence = split_scores(ledger_of(logits).rows("f"), 1)
    base = torch.ones(40, dtype=torch.float64)
    for i in (0, 7, 39):
        more = base.clone()
        more[i] += eps
        slope = (score(more) - score(base)) / eps * 40
        assert slope == pytest.approx(float(influence[i]), rel=1e-3, abs=1e-4)


def test_interval_of_the_inception_score_covers_the_score_at_this_n(ledger_of):
    drawn = []
    for i in range(80):
        [measured] = InceptionScore("f", "net").compute(ledger_of(draw(200, 10, 2000 + i, scale=4.0)))
        drawn.append(measured.score)
    truth = np.mean([s.value for s in drawn])
    assert truth > 1.5 and np.mean([s.low <= truth <= s.high for s in drawn]) > 0.88


# ---- KID ----


@pytest.mark.parametrize(("n", "m"), [(300, 200), (1200, 1100), (2, 2), (11, 90)])
def test_kid_is_exactly_that_of_torch_fidelity(ledger_of, n, m):
    x, y = draw(n, 16, 1, 1.3, 0.2), draw(m, 16, 2)
    expected = kid_features_to_metric(x, y, kid_subsets=100, kid_subset_size=min(1000, n, m), verbose=False)[KID]
    assert value(Kid("f", y, "net"), ledger_of(x)) == expected


def test_kid_of_equal_images_is_exactly_that_of_torch_fidelity(ledger_of):
    x, y = draw(1, 16, 1).repeat(50, 1), draw(60, 16, 2)
    expected = kid_features_to_metric(x, y, kid_subsets=100, kid_subset_size=50, verbose=False)[KID]
    assert value(Kid("f", y, "net"), ledger_of(x)) == expected


def test_error_of_kid_is_the_spread_of_fresh_samples(ledger_of):
    reference = draw(400, 32, 8)
    samples = [draw(60, 32, 300 + i, 1.2, 0.3) for i in range(40)]
    values = np.array([
        kid_features_to_metric(x, reference, kid_subsets=30, kid_subset_size=60, verbose=False)[KID] for x in samples
    ])
    errors = np.array([spread(ledger_of(x).rows("f"), reference, cubic(32)).error for x in samples])
    assert 0.7 < errors.mean() / values.std() < 1.6


def test_interval_of_kid_covers_the_distance(ledger_of):
    reference = draw(300, 16, 8)
    drawn = []
    for i in range(60):
        [measured] = Kid("f", reference, "net").compute(ledger_of(draw(200, 16, 3000 + i, 1.2, 0.4)))
        drawn.append(measured.score)
    truth = np.mean([s.value for s in drawn])
    assert truth > 0 and np.mean([s.low <= truth <= s.high for s in drawn]) > 0.88


# ---- CMMD ----


def published_cmmd(x, y):
    """As google-research/cmmd computes it: means of whole kernel matrices, diagonals included, σ = 10, times 1000."""
    def k(a, b):
        squares = a.square().sum(1)[:, None] + b.square().sum(1)[None] - 2 * a @ b.T
        return torch.exp(-squares / 200).mean()

    x, y = x.double(), y.double()
    return float(1000 * (k(x, x) + k(y, y) - 2 * k(x, y)))


@pytest.mark.parametrize(("n", "m"), [(70, 40), (2, 2), (2100, 50)])
def test_cmmd_is_the_published_estimator(ledger_of, n, m):
    x, y = embeddings(n, 12, 1, 0.3), embeddings(m, 12, 2)
    assert value(Cmmd("f", y, "net"), ledger_of(x)) == pytest.approx(published_cmmd(x, y), rel=1e-9)


def test_cmmd_of_a_set_with_itself_is_zero(ledger_of):
    x = embeddings(40, 12, 1)
    assert value(Cmmd("f", x, "net"), ledger_of(x)) == pytest.approx(0, abs=1e-9)


def test_error_of_cmmd_is_the_spread_of_fresh_samples(ledger_of):
    reference = embeddings(300, 16, 8)
    samples = [embeddings(60, 16, 300 + i, 0.3) for i in range(60)]
    values = np.array([published_cmmd(x, reference) for x in samples])
    errors = np.array([1000 * spread(ledger_of(x).rows("f"), reference, gaussian(10.0)).error for x in samples])
    assert 0.75 < errors.mean() / values.std() < 1.4


# ---- precision and recall ----


@pytest.mark.parametrize(("n", "m"), [(200, 150), (5, 7), (60, 60)])
def test_precision_and_recall_are_those_of_torch_fidelity(ledger_of, n, m):
    x, y = draw(n, 8, 1, 0.9, 0.3), draw(m, 8, 2)
    expected = prc_features_to_metric(x, y, prc_neighborhood=3, prc_batch_size=10000, verbose=False, save_cpu_ram=True)
    manifolds = Manifolds("f", y, "net")
    ledger = ledger_of(x)
    assert value(Precision(manifolds), ledger) == pytest.approx(expected["precision"], abs=1e-7)  # its mean is float32
    assert value(Recall(manifolds), ledger) == pytest.approx(expected["recall"], abs=1e-7)


def test_interval_of_precision_covers_the_precision_at_this_reference(ledger_of):
    reference = draw(200, 6, 9)
    drawn = []
    for i in range(60):
        [measured] = Precision(Manifolds("f", reference, "net")).compute(ledger_of(draw(80, 6, 1000 + i, 1.1, 0.8)))
        drawn.append(measured.score)
    truth = np.mean([s.value for s in drawn])
    assert 0.1 < truth < 0.98  # or there would be nothing to cover
    assert np.mean([s.low <= truth <= s.high for s in drawn]) > 0.88


def test_recall_has_no_interval_rather_than_a_wrong_one(ledger_of):
    [measured] = Recall(Manifolds("f", draw(50, 6, 9), "net")).compute(ledger_of(draw(50, 6, 1)))
    assert measured.score.low is measured.score.high is None and measured.influence is None
    assert math.isfinite(measured.score.value)
