"""The error of a difference comes from what each sample does to both scores; without that there is none."""

import math
import random
import statistics

import pytest

from ckptwatch.influences import Influences, write_influences


def keep(influences, tmp_path, evaluation_id, **columns):
    write_influences(tmp_path / "scratch", columns)
    influences.keep(evaluation_id, tmp_path / "scratch")


@pytest.fixture
def influences(tmp_path):
    return Influences(tmp_path / "state")


def noise(n, seed):
    rng = random.Random(seed)
    return [rng.gauss(0, 1) for _ in range(n)]


def test_error_of_a_difference_is_its_deviation_over_root_n(influences, tmp_path):
    a, b = noise(50, 1), noise(50, 2)
    keep(influences, tmp_path, 1, fid=a)
    keep(influences, tmp_path, 2, fid=b)
    expected = statistics.stdev([x - y for x, y in zip(a, b, strict=True)]) / math.sqrt(50)
    assert influences.difference_error(1, 2, {"fid": 1.0}) == pytest.approx(expected, rel=1e-6)


def test_common_noise_cancels(influences, tmp_path):
    common = noise(100, 3)
    keep(influences, tmp_path, 1, fid=common)
    keep(influences, tmp_path, 2, fid=[x + 0.01 * y for x, y in zip(common, noise(100, 4), strict=True)])
    assert influences.difference_error(1, 2, {"fid": 1.0}) < 0.002  # each by itself: 0.1


def test_terms_of_a_composite_are_weighed_together(influences, tmp_path):
    for number in (1, 2):
        keep(influences, tmp_path, number, clip=noise(30, number), fid=noise(30, 10 + number))
    a, b = ([0.4 * c - 0.1 * f for c, f in zip(noise(30, i), noise(30, 10 + i), strict=True)] for i in (1, 2))
    expected = statistics.stdev([x - y for x, y in zip(a, b, strict=True)]) / math.sqrt(30)
    assert influences.difference_error(1, 2, {"clip": 0.4, "fid": -0.1}) == pytest.approx(expected, rel=1e-5)


def test_what_cannot_be_compared_has_no_error(influences, tmp_path):
    keep(influences, tmp_path, 1, fid=noise(30, 1))
    keep(influences, tmp_path, 2, fid=noise(40, 2))
    keep(influences, tmp_path, 3, fid=noise(9, 3))
    keep(influences, tmp_path, 4, fid=noise(9, 4))
    influences.keep(5, None)
    for pair, metric in (((1, 2), "fid"), ((3, 4), "fid"), ((1, 5), "fid"), ((1, 99), "fid"), ((1, 1), "kid")):
        assert influences.difference_error(*pair, {metric: 1.0}) is None
    assert influences.difference_error(1, 1, {}) is None


def test_a_new_attempt_replaces_what_was_known(influences, tmp_path):
    keep(influences, tmp_path, 1, fid=noise(30, 1))
    keep(influences, tmp_path, 2, fid=noise(30, 2))
    before = influences.difference_error(1, 2, {"fid": 1.0})
    keep(influences, tmp_path, 2, fid=[3 * x for x in noise(30, 2)])
    assert influences.difference_error(1, 2, {"fid": 1.0}) > before


@pytest.mark.parametrize("damage", [
    b"", b"{", b"[1]\n", b'{"fid": 100}\n', b'{"fid": "x"}\n', b'{"fid": -1}\n', b"\xff\n", b'{"fid": 1e400}\n',
])
def test_a_damaged_file_costs_an_error_bar_and_nothing_else(influences, tmp_path, damage):
    keep(influences, tmp_path, 1, fid=noise(30, 1))
    (tmp_path / "state/influences/2").write_bytes(damage)
    assert influences.difference_error(1, 2, {"fid": 1.0}) is None


def test_only_what_nobody_compares_any_more_is_pruned(influences, tmp_path):
    for number in (1, 2, 30):
        keep(influences, tmp_path, number, fid=noise(30, number))
    (tmp_path / "state/influences/4.tmp").write_bytes(b"half")
    influences.prune(frozenset({1, 30}))
    assert sorted(p.name for p in (tmp_path / "state/influences").iterdir()) == ["1", "30"]
