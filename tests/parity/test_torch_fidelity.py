"""FID, KID and Inception Score are what stock torch-fidelity says on the same images and weights."""

import math

import pytest
import torch
import torch_fidelity
from PIL import Image
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from ckptwatch.evaluate.metrics.inception_score import splits_for
from ckptwatch.model import Networks, Reference, Sampler
from tests.parity import tiny_networks
from tests.parity.evaluation_kit import TINY, failure, make_job, metrics, run, scores, write_images

ALL = metrics("fid", "inception_score", "kid")
STOCK_TINY = {
    "feature_extractor": tiny_networks.NAME, "feature_layer_fid": tiny_networks.LAYER,
    "feature_layer_kid": tiny_networks.LAYER, "feature_layer_isc": tiny_networks.LOGITS,
}
FID, ISC, KID = "frechet_inception_distance", "inception_score_mean", "kernel_inception_distance_mean"


@pytest.fixture(autouse=True, scope="module")
def _threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def stock(generated, reference, **options):
    return torch_fidelity.calculate_metrics(
        input1=str(generated), input2=str(reference), cuda=False, isc=True, fid=True, kid=True, verbose=False,
        save_cpu_ram=True, batch_size=8, **options,
    )


def ours(tmp_path, generated, count, reference, **changes):
    return scores(make_job(
        tmp_path, sampler=Sampler(images=str(generated)), samples=count, metrics=ALL, reference=reference, **changes,
    ))


def test_scores_are_those_of_torch_fidelity(tmp_path):
    generated = write_images(tmp_path / "generated", 120, first=0, padded=True)
    reference = write_images(tmp_path / "reference", 90, first=5000, side=48, padded=True)
    found = ours(tmp_path, generated, 120, Reference(images=reference), batch_size=7)
    expected = stock(generated, reference, kid_subset_size=90, **STOCK_TINY)
    assert expected[ISC] > 1.05 and expected[FID] > 0  # or there would be nothing to compare
    assert found["fid"] == pytest.approx(expected[FID], rel=1e-5)  # torch-fidelity's mean is float32
    assert found["inception_score"] == pytest.approx(expected[ISC], rel=1e-6)
    assert found["kid"] == pytest.approx(expected[KID], rel=1e-4)


def test_inception_network_is_loaded_and_used_as_torch_fidelity_does(tmp_path):
    class Untrained(FeatureExtractorInceptionV3):
        def load_state_dict(self, *_, **__):
            return None

    torch.manual_seed(0)
    empty, weights = tmp_path / "empty.pth", tmp_path / "inception.pth"
    torch.save({}, empty)
    network = Untrained("inception-v3-compat", ["192"], feature_extractor_weights_path=str(empty))
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)  # the default initialisation collapses features to 1e-8
    torch.save(network.state_dict(), weights)

    generated = write_images(tmp_path / "generated", 10, first=0, padded=True)
    reference = write_images(tmp_path / "reference", 4, first=5000, padded=True)
    networks = Networks(features_weights=weights, features_layer="192")  # the maths of 2048 would take 20 s
    found = ours(tmp_path, generated, 10, Reference(images=reference), networks=networks, batch_size=8)
    expected = stock(generated, reference, kid_subset_size=4, isc_splits=1, feature_extractor_weights_path=str(weights),
                     feature_layer_fid="192", feature_layer_kid="192")
    assert found["fid"] == pytest.approx(expected[FID], rel=1e-5)
    assert found["kid"] == pytest.approx(expected[KID], rel=1e-4)
    assert found["inception_score"] == pytest.approx(expected[ISC], rel=1e-6)


def test_every_score_carries_its_interval_count_and_direction(tmp_path):
    generated = write_images(tmp_path / "generated", 60, first=0)
    reference = write_images(tmp_path / "reference", 40, first=5000)
    result, _ = run(make_job(
        tmp_path, sampler=Sampler(images=str(generated)), samples=60, metrics=ALL, reference=Reference(images=reference),
    ))
    assert [s.metric for s in result.scores] == ["fid", "inception_score", "kid"]
    for score in result.scores:
        assert score.low <= score.value <= score.high and score.high > score.low
        assert score.n == 60 and score.mode and score.definition


def test_few_samples_have_no_interval_rather_than_a_wrong_one(tmp_path):
    reference = write_images(tmp_path / "reference", 40, first=5000)
    job = make_job(tmp_path, samples=5, metrics=metrics("fid", "kid"), reference=Reference(images=reference))
    for score in run(job)[0].scores:
        assert math.isfinite(score.value) and score.low is score.high is None


@pytest.mark.parametrize(("n", "splits"), [(10, 1), (20, 2), (99, 9), (100, 10), (50_000, 10)])
def test_inception_score_has_ten_splits_of_at_least_ten_images(n, splits):
    assert splits_for(n) == splits


@pytest.mark.parametrize(("metric", "samples"), [("inception_score", 9), ("fid", 1), ("kid", 1)])
def test_too_few_samples_for_a_metric_are_an_error(tmp_path, metric, samples):
    error = failure(make_job(tmp_path, metrics=metrics(metric), samples=samples))
    assert error.kind == "recipe" and f"compute {metric}" in str(error) and f"{samples} samples" in str(error)


def test_constant_images_get_numbers(tmp_path):
    black = tmp_path / "black"
    black.mkdir()
    for i in range(12):
        Image.new("RGB", (40, 40)).save(black / f"{i}.png")
    reference = write_images(tmp_path / "reference", 20)
    found = ours(tmp_path, black, 12, Reference(images=reference), networks=TINY)
    assert found["inception_score"] == pytest.approx(1.0)
    assert found["fid"] > 0 and math.isfinite(found["kid"])
    same = ours(tmp_path, black, 12, Reference(images=black))
    assert same["fid"] == 0 and same["kid"] == pytest.approx(0, abs=1e-6)
