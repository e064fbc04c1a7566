"""Precision and recall count exactly the images that torch-fidelity counts, without a matrix of all distances."""

import pytest
import torch
from torch_fidelity.metric_prc import prc_features_to_metric

from ckptwatch.evaluate.metrics.prc import precision_recall, radii


def draw(n, d, seed, scale=1.0, shift=0.0):
    noise = torch.Generator().manual_seed(seed)
    spectrum = torch.arange(1, d + 1) ** -0.5
    return torch.randn(n, d, generator=noise) * spectrum * scale + shift * spectrum


def peer(generated, reference, *, neighbours=3, **options):
    """How many of each torch-fidelity counts."""
    found = prc_features_to_metric(generated, reference, prc_neighborhood=neighbours, verbose=False, **options)
    return round(found["precision"] * len(generated)), round(found["recall"] * len(reference))


def counts(hits):
    assert [h.dtype for h in hits] == [torch.bool, torch.bool]
    return int(hits[0].sum()), int(hits[1].sum())


SETS = {
    "apart": (draw(300, 16, 1, 0.7, 0.6), draw(200, 16, 2)),
    "as small as can be": (draw(4, 8, 1), draw(4, 8, 2)),
    "few": (draw(11, 8, 1, 0.9), draw(25, 8, 2)),
    "one above direct computation": (draw(26, 8, 1, 0.9), draw(25, 8, 2)),
    "wide": (draw(60, 600, 1, 1.1, 0.2), draw(80, 600, 2)),
    "copies of the reference": (draw(90, 16, 2)[:50], draw(90, 16, 2)),
    "collapsed to one image": (draw(1, 16, 1).repeat(60, 1), draw(70, 16, 2)),
    "five images again and again": (draw(5, 16, 1).repeat(12, 1), draw(70, 16, 2)),
    "reference with duplicates": (draw(60, 16, 1), draw(10, 16, 2).repeat(7, 1)),
    "all one": (torch.full((30, 16), 0.3), torch.full((40, 16), 0.3)),
    "far from zero": (draw(120, 16, 1) + 100, draw(130, 16, 2) + 100),
}


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("in_parts", [False, True])
def test_the_same_images_are_counted_as_by_torch_fidelity(name, in_parts):
    generated, reference = SETS[name]
    hits = precision_recall(generated, reference)
    assert counts(hits) == peer(generated, reference, save_cpu_ram=in_parts)
    assert (len(hits[0]), len(hits[1])) == (len(generated), len(reference))


@pytest.mark.parametrize("neighbours", [1, 2, 5])
def test_number_of_neighbours_means_the_same(neighbours):
    generated, reference = SETS["apart"]
    found = counts(precision_recall(generated, reference, neighbours))
    assert found == peer(generated, reference, neighbours=neighbours)
    assert 0 < found[0] < 300 and 0 < found[1] < 200  # or there would be nothing to compare


@pytest.mark.parametrize("block", [2, 7, 64, 199, 200, 201])
def test_blocks_change_nothing(block):
    generated, reference = SETS["apart"]
    whole, parts = precision_recall(generated, reference), precision_recall(generated, reference, block=block)
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))
    assert torch.allclose(radii(generated, block=block), radii(generated), rtol=1e-4)


def test_radius_reaches_to_the_third_other_vector():
    line = torch.tensor([[0.0], [1.0], [3.0], [7.0], [20.0]])
    for block in (1, 2, 5):
        assert radii(line, block=block).tolist() == [7, 6, 4, 7, 19]
        assert radii(line, 1, block=block).tolist() == [1, 1, 2, 4, 13]


def test_edge_of_a_ball_is_inside_it():
    reference = torch.tensor([[0.0], [1.0], [2.0], [3.0]])  # radii 3, 2, 2, 3
    generated = torch.tensor([[6.0], [6.001], [-3.0], [1.5]])
    precision, recall = precision_recall(generated, reference)
    assert precision.tolist() == [True, False, True, True]
    assert recall.tolist() == [True, True, True, True]


def test_distances_never_fill_a_matrix(monkeypatch):
    largest, cdist = [], torch.cdist

    def watched(a, b):
        largest.append(max(len(a), len(b)))
        return cdist(a, b)

    monkeypatch.setattr(torch, "cdist", watched)
    generated, reference = draw(700, 8, 1), draw(900, 8, 2)
    precision_recall(generated, reference, block=100)
    # Half of either square, for it is its own mirror, and the rectangle between them once.
    assert max(largest) == 100 and len(largest) == 7 * 8 // 2 + 9 * 10 // 2 + 7 * 9


def test_a_samplers_lower_precision_does_not_reach_the_distances():
    generated, reference = SETS["wide"]
    expected = (*precision_recall(generated, reference), radii(reference))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")  # bfloat16, where the CPU can
    try:
        found = (*precision_recall(generated, reference), radii(reference))
    finally:
        torch.set_float32_matmul_precision(before)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_known_radii_of_the_reference_are_used():
    generated, reference = SETS["apart"]
    known = radii(reference)
    given = precision_recall(generated, reference, reference_radii=known)
    assert all(torch.equal(a, b) for a, b in zip(given, precision_recall(generated, reference), strict=True))
    assert not precision_recall(generated, reference, reference_radii=known * 0)[0].any()


def test_sets_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="3 vectors have no 3 neighbours"):
        precision_recall(draw(3, 8, 1), draw(9, 8, 2))
    with pytest.raises(ValueError, match="3 vectors have no 3 neighbours"):
        precision_recall(draw(9, 8, 1), draw(3, 8, 2))
    with pytest.raises(ValueError, match="shapes"):
        precision_recall(draw(9, 8, 1), draw(9, 7, 2))
    with pytest.raises(ValueError, match="4 radii for 9"):
        precision_recall(draw(9, 8, 1), draw(9, 8, 2), reference_radii=torch.ones(4))
