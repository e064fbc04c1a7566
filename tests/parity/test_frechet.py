"""The Fréchet distance is exact, reads its features in blocks, and its intervals cover what they say they cover."""

import math
import weakref

import numpy as np
import pytest
import torch
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

from ckptwatch.evaluate.metrics.statistics import (
    CHUNK,
    Moments,
    frechet,
    frechet_distance,
    moments_of,
    statistics_of,
    with_root,
)

FID = "frechet_inception_distance"
Z95 = 1.96


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # matrices are small
    yield
    torch.set_num_threads(before)


def draw(n, d, seed, scale=1.0, shift=0.0):
    noise = torch.Generator().manual_seed(seed)
    spectrum = torch.arange(1, d + 1) ** -0.5
    return torch.randn(n, d, generator=noise) * spectrum * scale + shift * spectrum


def peer(a, b):
    """torch-fidelity's, of float64 features."""
    stats = [fid_features_to_statistics(x.double()) for x in (a, b)]
    return fid_statistics_to_metric(*stats, verbose=False)[FID]


def exact(a, b):
    """Without any square root of an eigenvalue: tr (Σ Σr)^½ is the sum of the singular values of X Yᵀ."""
    (ma, x), (mb, y) = [(f.double().mean(dim=0), f.double() - f.double().mean(dim=0)) for f in (a, b)]
    n, m = len(a) - 1, len(b) - 1
    overlap = torch.linalg.svdvals(triangle(x) @ triangle(y).T).sum() / math.sqrt(n * m)
    return float((ma - mb).square().sum() + x.square().sum() / n + y.square().sum() / m - 2 * overlap)


def triangle(x):
    """R of x = Q R, where it is smaller: Q has no part in singular values."""
    return torch.linalg.qr(x, mode="r").R if len(x) > x.shape[1] else x


class Watched:
    """Rows that know how often they were read, and how many of their blocks were in memory at once."""

    def __init__(self, features):
        self._features = features
        self._alive = weakref.WeakSet()
        self.passes = 0
        self.largest = self.most = 0

    def __len__(self):
        return len(self._features)

    @property
    def width(self):
        return self._features.shape[1]

    def blocks(self, size):
        self.passes += 1
        for part in self._features.split(size):
            block = part.clone()
            self._alive.add(block)
            self.most = max(self.most, len(self._alive))
            self.largest = max(self.largest, len(block))
            yield block
            del block


# ---- the value ----


@pytest.mark.parametrize(("n", "m", "d"), [
    (2 * CHUNK + 100, 3000, 96), (500, 400, 64), (65, 64, 64), (64, 64, 64), (63, 200, 64), (30, 500, 64), (500, 20, 64),
    (2, 300, 16), (300, 2, 16),
])
def test_fid_is_that_of_torch_fidelity(n, m, d):
    a, b = draw(n, d, 1, 1.3, 0.2), draw(m, d, 2)
    value, influence = frechet(a, statistics_of(b))
    assert value == pytest.approx(peer(a, b), rel=1e-6)
    assert value == pytest.approx(exact(a, b), rel=1e-7)
    assert value == pytest.approx(frechet_distance(a, statistics_of(b)), rel=1e-7)
    assert influence.shape == (n,) and influence.dtype == torch.float64


@pytest.mark.parametrize("n", [2, 40])
def test_a_single_feature_has_a_fid(n):
    a, b = draw(n, 1, 1, 1.3, 0.2), draw(30, 1, 2)
    assert frechet(a, statistics_of(b))[0] == pytest.approx(exact(a, b), rel=1e-12)
    assert frechet_distance(a, statistics_of(b)) == pytest.approx(exact(a, b), rel=1e-12)


@pytest.mark.parametrize(("n", "m"), [(400, 400), (60, 400), (400, 60), (60, 60)])
def test_repeated_images_have_an_exact_fid(n, m):
    # Nine tenths of all eigenvalues are rounding; their roots would add up.
    a, b = draw(n // 10, 96, 1, 1.3, 0.2).repeat(10, 1), draw(m // 10, 96, 2).repeat(10, 1)
    assert frechet_distance(a, statistics_of(b)) == pytest.approx(exact(a, b), rel=1e-8)
    assert frechet(a, statistics_of(b))[0] == pytest.approx(exact(a, b), rel=1e-8)


def test_features_of_very_different_size_all_count():
    # Here nearly all eigenvalues are far below the rounding of the largest one, and yet true.
    sizes = torch.logspace(0, -6, 96)
    a, b = draw(400, 96, 1, 1.3, 0.2) * sizes, draw(500, 96, 2) * sizes
    assert frechet_distance(a, statistics_of(b)) == pytest.approx(exact(a, b), rel=1e-8)


@pytest.mark.parametrize(("n", "d"), [(2, 40), (10, 40), (40, 40), (100, 40)])
def test_constant_and_equal_images_have_a_fid(n, d):
    reference = statistics_of(draw(200, d, 3))
    constant = torch.full((n, d), 0.1)
    value, influence = frechet(constant, reference)
    delta = reference.mu - float(constant[0, 0])
    assert value == pytest.approx(float(delta @ delta + reference.sigma.trace()), rel=1e-9)
    assert torch.isfinite(influence).all()
    assert frechet(constant, statistics_of(constant)) == (0.0, pytest.approx(torch.zeros(n), abs=1e-12))
    assert frechet_distance(draw(n, d, 4), statistics_of(constant)) == pytest.approx(exact(draw(n, d, 4), constant))


@pytest.mark.parametrize("n", [2, 20, 32, 200])
def test_fid_of_a_set_with_itself_is_zero_and_never_negative(n):
    for seed in range(5):
        x = draw(n, 32, seed)
        assert 0 <= frechet(x, statistics_of(x))[0] < 1e-6
        assert 0 <= frechet_distance(x, statistics_of(x)) < 1e-6


@pytest.mark.parametrize("n", [30, 300])
def test_a_large_common_mean_costs_no_digits(n):
    x, y = draw(n, 64, 6) + 1000, draw(300, 64, 7) + 1000
    shifted, influence = frechet(x, statistics_of(y))
    plain, expected = frechet(x.double() - 1000, statistics_of(y.double() - 1000))
    assert shifted == pytest.approx(plain, rel=1e-9)
    assert torch.allclose(influence, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n", [10, 100])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_features_that_are_not_finite_are_refused(n, bad):
    reference = statistics_of(draw(100, 32, 1))
    x = draw(n, 32, 2)
    x[3, 5] = bad
    for wrong in (lambda: frechet(x, reference), lambda: frechet_distance(x, reference), lambda: moments_of([x])):
        with pytest.raises(ValueError, match="not finite"):
            wrong()
    poisoned = Moments(n=n, mean=x.double().mean(dim=0), scatter=x.double().T @ x.double())
    if n > 32:
        with pytest.raises(ValueError, match="not finite"):
            frechet(draw(n, 32, 2), reference, poisoned)


def test_what_does_not_fit_together_is_refused():
    reference = statistics_of(draw(100, 32, 1))
    with pytest.raises(ValueError, match="1 feature vectors"):
        frechet(draw(1, 32, 2), reference)
    with pytest.raises(ValueError, match="16 values, those of the reference 32"):
        frechet(draw(50, 16, 2), reference)
    with pytest.raises(ValueError, match="moments of 40 feature vectors, but there are 50"):
        frechet(draw(50, 32, 2), reference, moments_of([draw(40, 32, 2)]))
    with pytest.raises(ValueError, match="16 and of 32"):
        moments_of([draw(5, 16, 1)]).merged(moments_of([draw(5, 32, 1)]))
    with pytest.raises(ValueError, match="no covariance"):
        statistics_of(draw(1, 32, 1))
    with pytest.raises(ValueError, match="no features"):
        moments_of([])


@pytest.mark.parametrize("m", [500, 64, 20, 2])
def test_root_is_a_triangular_one_of_sigma(m):
    reference = statistics_of(draw(m, 64, 1))
    assert torch.allclose(reference.root @ reference.root.T, reference.sigma, rtol=0, atol=1e-14)
    assert not reference.root.triu(1).any()
    rank = int(reference.root.any(dim=0).count_nonzero())
    assert min(64, m - 1) <= rank <= min(64, m)  # one zero among 64 may come out positive


def test_a_reference_known_by_its_statistics_alone_may_be_slightly_indefinite():
    # Statistics stored as float32 have negative eigenvalues of that size.
    x, y = draw(300, 64, 1, 1.1), draw(40, 64, 2)
    mu, sigma = statistics_of(y).mu, statistics_of(y).sigma.float().double()
    assert torch.linalg.eigvalsh(sigma)[0] < 0
    assert frechet_distance(x, with_root(mu, sigma)) == pytest.approx(exact(x, y), rel=1e-3)


# ---- blocks and parts ----


def test_moments_do_not_depend_on_how_features_come():
    x = draw(2 * CHUNK + 300, 24, 1) + 1000
    whole, centred = moments_of([x]), x.double() - x.double().mean(dim=0)
    assert torch.allclose(whole.scatter, centred.T @ centred, rtol=1e-12, atol=1e-9)
    assert torch.equal(whole.scatter, whole.scatter.T)
    one_by_one = moments_of(iter(x[:50].split(1))).merged(moments_of([x[50:50], x[50:]]))
    ranges = moments_of(x[:1000].split(32)).merged(moments_of(x[1000:].split(5000)))
    for other in (one_by_one, ranges, ranges.merged(moments_of([x[:1]]))):
        if other.n == whole.n:
            assert torch.allclose(other.mean, whole.mean, rtol=1e-14)
            assert torch.allclose(other.scatter, whole.scatter, rtol=1e-10, atol=1e-9)
    assert ranges.merged(moments_of([x[:1]])).n == len(x) + 1


def test_moments_bear_a_mean_that_moves():
    # The first thousand images are black, as those of a model that starts to diverge.
    x = draw(3 * CHUNK, 24, 1)
    x[:1000] = 0
    x[1000:] += 300
    centred = x.double() - x.double().mean(dim=0)
    assert torch.allclose(moments_of(x.split(100)).scatter, centred.T @ centred, rtol=1e-12)


def test_merged_moments_spare_a_pass_and_change_nothing():
    x, reference = draw(3 * CHUNK, 48, 1, 1.2), statistics_of(draw(500, 48, 2))
    parts = moments_of(x[:5000].split(2500)).merged(moments_of(x[5000:].split(700)))
    without, given = Watched(x), Watched(x)
    value, influence = frechet(without, reference)
    merged_value, merged_influence = frechet(given, reference, parts)
    assert (without.passes, given.passes) == (2, 1)
    assert merged_value == pytest.approx(value, rel=1e-10)
    assert torch.allclose(merged_influence, influence, rtol=1e-5, atol=1e-6)
    assert frechet_distance(Watched(x), reference, parts) == pytest.approx(value, rel=1e-9)


def test_features_are_read_in_blocks_and_let_go():
    rows = Watched(draw(9 * CHUNK, 16, 1))
    value, influence = frechet(rows, statistics_of(draw(100, 16, 2)))
    assert value > 0 and len(influence) == 9 * CHUNK
    assert rows.largest == CHUNK and rows.most <= 3


# ---- the influence ----


@pytest.mark.parametrize("n", [30, 64, 400])
def test_influence_is_the_derivative_of_fid(n):
    """Giving one image more weight moves the FID by its influence."""
    d = 64
    x, reference = draw(n, d, 1, 1.3, 0.2), statistics_of(draw(300, d, 2))
    _, influence = frechet(x, reference)

    def weighted(i, eps):
        w = torch.full((n,), (1 - eps) / n, dtype=torch.float64)
        w[i] += eps
        mu = w @ x.double()
        centred = (x.double() - mu) * w.sqrt()[:, None] * math.sqrt(n / (n - 1))
        overlap = torch.linalg.svdvals(centred @ reference.root).sum()
        apart = mu - reference.mu
        return float(apart @ apart + centred.square().sum() + reference.sigma.trace() - 2 * overlap)

    eps = 1e-5 / n
    for i in (0, 7, n - 1):
        slope = (weighted(i, eps) - weighted(i, -eps)) / (2 * eps)
        # The influence leaves out n/(n − 1).
        assert slope == pytest.approx(float(influence[i]), rel=2.5 / n, abs=2.5 * float(influence.std()) / n)


@pytest.mark.parametrize("n", [40, 60])
def test_both_ways_to_the_influence_agree(n):
    # Columns of zeros change nothing but the way: with them there are fewer images than features.
    x, y = draw(n, 32, 1, 1.3, 0.2), draw(300, 32, 2)
    pad = torch.nn.ConstantPad1d((0, 40), 0.0)
    by_covariance, by_rows = frechet(x, statistics_of(y)), frechet(pad(x), statistics_of(pad(y)))
    assert by_covariance[0] == pytest.approx(by_rows[0], rel=1e-10)
    assert torch.allclose(by_covariance[1], by_rows[1], rtol=1e-4, atol=1e-5)


def test_influence_survives_directions_that_hardly_exist():
    # As many images as features, and sizes over six decades: M^(−½) has entries of 1e10.
    sizes = torch.logspace(0, -6, 48)
    x, y = draw(50, 48, 1, 1.3) * sizes, draw(500, 48, 2) * sizes
    turn = torch.linalg.qr(draw(48, 48, 3).double()).Q.float()
    plain, turned = frechet(x, statistics_of(y))[1], frechet(x @ turn, statistics_of(y @ turn))[1]
    assert torch.allclose(turned, plain, rtol=1e-3, atol=1e-3 * float(plain.std()))


def test_a_samplers_lower_precision_does_not_reach_the_influence():
    x, reference = draw(400, 64, 1), statistics_of(draw(300, 64, 2))
    _, expected = frechet(x, reference)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")  # bfloat16, where the CPU can
    try:
        _, found = frechet(x, reference)
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(found, expected)


# ---- intervals ----


def spread(influence):
    return float(influence.std()) / math.sqrt(len(influence))


@pytest.mark.parametrize("ratio", [2, 8, 30])
def test_interval_covers_the_fid_expected_at_this_n(ratio):
    d = 24
    reference = with_root(torch.zeros(d).double(), torch.diag(torch.arange(1, d + 1).double() ** -1))
    drawn = [frechet(draw(ratio * d, d, 100 + i, 1.2, 0.3), reference) for i in range(120)]
    values = np.array([value for value, _ in drawn])
    errors = np.array([spread(influence) for _, influence in drawn])
    covered = np.abs(values - values.mean()) <= Z95 * errors
    assert covered.mean() > 0.89  # .95, and three standard deviations of so many repetitions
    assert 0.8 < errors.mean() / values.std() < 1.4  # and are not covering by being wide


def test_a_bootstrap_would_not_cover_it():
    # Why there is none: images drawn twice look like a smaller set, whose FID is larger.
    d, n = 24, 192
    reference = with_root(torch.zeros(d).double(), torch.diag(torch.arange(1, d + 1).double() ** -1))
    truth = np.mean([frechet_distance(draw(n, d, 500 + i), reference) for i in range(60)])
    covered = 0
    for i in range(20):
        x, chance = draw(n, d, 500 + i), torch.Generator().manual_seed(i)
        again = [frechet_distance(x[torch.randint(n, (n,), generator=chance)], reference) for _ in range(40)]
        low, high = np.percentile(again, [2.5, 97.5])
        covered += low <= truth <= high
    assert covered <= 4  # of 20, where 19 would be right


def test_difference_of_checkpoints_with_common_seeds_is_covered_and_narrow():
    """The error of FID(a) − FID(b) is sd(φa − φb)/√n where sample i of both came from the same seed."""
    d, n = 24, 240
    spectrum = torch.arange(1, d + 1).double() ** -0.5
    reference = with_root(torch.zeros(d).double(), torch.diag(spectrum.square()))
    scales = {"a": 1.3, "b": 1.2}
    # Of the distributions themselves: Σ = s² Σr, so FID = |μ|² + (s − 1)² tr Σr.
    truth = {k: float((0.3 * spectrum).square().sum() + (s - 1) ** 2 * spectrum.square().sum()) for k, s in scales.items()}
    differences, paired, apart = [], [], []
    for i in range(150):
        common = draw(n, d, 1000 + i)
        found = {
            k: frechet(math.sqrt(0.9) * s * common + math.sqrt(0.1) * draw(n, d, seed + i, s) + 0.3 * spectrum.float(),
                       reference)
            for (k, s), seed in zip(scales.items(), (3000, 6000), strict=True)
        }
        differences.append(found["a"][0] - found["b"][0])
        paired.append(spread(found["a"][1] - found["b"][1]))
        apart.append(math.hypot(spread(found["a"][1]), spread(found["b"][1])))
    covered = np.abs(np.array(differences) - (truth["a"] - truth["b"])) <= Z95 * np.array(paired)
    assert covered.mean() > 0.88
    assert 0.8 < np.mean(paired) / np.std(differences) < 1.4
    assert np.mean(paired) < 0.6 * np.mean(apart)  # what common seeds are for
