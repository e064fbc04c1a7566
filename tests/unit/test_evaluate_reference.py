"""Reference images and statistics: checked, kept, never stale."""

import os

import numpy as np
import pytest
import torch

from ckptwatch.evaluate.engine import Engine
from ckptwatch.evaluate.networks import FeatureNetwork
from ckptwatch.model import Reference
from tests.parity.evaluation_kit import TINY, again, failure, make_job, metrics, run, scores, write_images

D = 24  # features of the tiny network


@pytest.fixture
def images(tmp_path):
    return write_images(tmp_path / "reference", 30, first=9000)


def fid_job(tmp_path, *names, **parts):
    return make_job(tmp_path, metrics=metrics(*(names or ("fid",))), reference=Reference(**parts))


def stats_file(path, mu=None, sigma=None, **more):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(100, D))
    np.savez(path, mu=features.mean(0) if mu is None else mu, sigma=np.cov(features.T) if sigma is None else sigma, **more)
    return path


# ---- statistics files ----


def test_stats_give_the_fid_of_the_images_they_were_made_from(tmp_path, images):
    from_images = scores(fid_job(tmp_path, images=images))
    (kept,) = (tmp_path / "cache").glob("reference-*.npz")
    with np.load(kept) as stored:
        np.savez(tmp_path / "stats.npz", mu=stored["mu"], sigma=stored["sigma"])
    assert scores(fid_job(tmp_path, stats=tmp_path / "stats.npz"))["fid"] == pytest.approx(from_images["fid"], rel=1e-9)


def test_float32_stats_are_good_enough(tmp_path):
    path = stats_file(tmp_path / "s.npz")
    with np.load(path) as stored:
        np.savez(tmp_path / "f32.npz", **{k: stored[k].astype(np.float32) for k in ("mu", "sigma")})
    assert scores(fid_job(tmp_path, stats=tmp_path / "f32.npz"))["fid"] == pytest.approx(
        scores(fid_job(tmp_path, stats=path))["fid"], rel=1e-4)


@pytest.mark.parametrize(("arrays", "words"), [
    ({"mu": np.zeros(2048), "sigma": np.eye(2048)}, "mu has 2048 values, the network gives 24"),
    ({"mu": np.zeros(D), "sigma": np.eye(D + 1)}, "sigma (25, 25)"),
    ({"mu": np.zeros((1, D)), "sigma": np.eye(D)}, "mu has shape (1, 24)"),
    ({"mu": np.full(D, np.nan), "sigma": np.eye(D)}, "NaN or Inf"),
    ({"mu": np.zeros(D), "sigma": np.triu(np.ones((D, D)))}, "not symmetric"),
    ({"mu": np.zeros(D), "sigma": -np.eye(D)}, "negative eigenvalue"),
    ({"mu": np.array(["a"] * D), "sigma": np.eye(D)}, "wanted real numbers"),
    ({"mu": np.zeros(D)}, "no sigma in it; found: mu"),
    ({"mu": np.array([None] * D), "sigma": np.eye(D)}, "not an npz file of plain arrays"),  # would need pickle
])
def test_wrong_stats_say_what_is_wrong_and_what_is_needed(tmp_path, arrays, words):
    np.savez(tmp_path / "s.npz", **arrays)
    error = failure(fid_job(tmp_path, stats=tmp_path / "s.npz"))
    assert error.kind == "recipe" and words in str(error) and error.path == tmp_path / "s.npz"
    assert "mu (24,) and sigma (24, 24)" in error.hint


def test_files_that_are_no_npz_are_told(tmp_path):
    (tmp_path / "s.npz").write_bytes(b"PK\x03\x04 not really")
    assert "not an npz file" in str(failure(fid_job(tmp_path, stats=tmp_path / "s.npz")))
    np.save(tmp_path / "plain.npy", np.zeros(3))
    assert "not an npz file" in str(failure(fid_job(tmp_path, stats=tmp_path / "plain.npy")))


def test_missing_stats_file(tmp_path):
    error = failure(fid_job(tmp_path, stats=tmp_path / "gone.npz"))
    assert error.kind == "recipe" and "no such file" in str(error) and "gone.npz" in str(error)


def test_kid_with_statistics_only_says_that_it_needs_images(tmp_path):
    error = failure(fid_job(tmp_path, "kid", stats=stats_file(tmp_path / "s.npz")))
    assert error.kind == "recipe" and "needs reference images" in str(error)


def test_metric_without_any_reference(tmp_path):
    error = failure(fid_job(tmp_path))
    assert error.kind == "recipe" and "no reference" in str(error)


# ---- reference images ----


def test_vanished_empty_and_broken_references_are_errors(tmp_path, images):
    assert "No such file" in str(failure(fid_job(tmp_path, images=tmp_path / "gone")))
    (tmp_path / "empty").mkdir()
    assert "found 0 images" in str(failure(fid_job(tmp_path, images=tmp_path / "empty")))
    (images / "img_3.png").write_bytes(b"\x89PNG\r\n")
    error = failure(fid_job(tmp_path, images=images))
    assert error.kind == "recipe" and error.path == images / "img_3.png"


def test_reference_images_may_have_different_sizes(tmp_path, images):
    write_images(images, 10, side=64, prefix="large")
    assert scores(fid_job(tmp_path, images=images))["fid"] > 0


def test_features_are_computed_once(tmp_path, images, monkeypatch):
    seen = []
    extract = FeatureNetwork.extract
    monkeypatch.setattr(FeatureNetwork, "extract", lambda self, x: (seen.append(len(x)), extract(self, x))[1])
    job, engine = fid_job(tmp_path, "fid", "kid", "inception_score", images=images), Engine("cpu")
    first = scores(job, engine)
    assert sum(seen) == 30 + 12  # references once for two metrics, generated images once for three
    seen.clear()
    assert scores(again(job), engine) == first
    assert sum(seen) == 12


def test_changed_image_changes_the_score_though_its_name_stays(tmp_path, images):
    job = fid_job(tmp_path, images=images)
    before = scores(job)
    os.replace(write_images(tmp_path / "other", 1, first=1) / "img_0.png", images / "img_0.png")
    assert scores(again(job)) != before
    assert len(list((tmp_path / "cache").glob("reference-*.npz"))) == 2


def test_other_weights_are_another_cache_entry(tmp_path, images):
    job = fid_job(tmp_path, images=images)
    before = scores(job)
    network = FeatureNetwork(TINY, ["24"], "cpu")
    state = network._network.state_dict()
    torch.save({k: v * 2 for k, v in state.items()}, tmp_path / "double.pt")
    from dataclasses import replace
    changed = replace(job.recipe, networks=replace(TINY, features_weights=tmp_path / "double.pt"))
    assert scores(replace(again(job), recipe=changed)) != before


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "garbage", "keys", "dtype"])
def test_damaged_cache_is_computed_again(tmp_path, images, damage):
    job = fid_job(tmp_path, images=images)
    before = scores(job)
    (kept,) = (tmp_path / "cache").glob("reference-*.npz")
    content = kept.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 0xFF
    if damage == "keys":
        np.savez(kept, mu=np.zeros(D))
    elif damage == "dtype":
        with np.load(kept) as stored:
            np.savez(kept, **{k: stored[k].astype(np.float16) for k in stored.files})
    else:
        kept.write_bytes({
            "truncated": content[: len(content) // 2], "flipped": bytes(flipped), "empty": b"", "garbage": b"x" * 99,
        }[damage])
    assert scores(again(job)) == before


def test_cache_that_cannot_be_written_only_costs_time(tmp_path, images, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    result, _ = run(fid_job(tmp_path, images=images))
    assert result.scores[0].value > 0
    assert list((tmp_path / "cache").iterdir()) == []  # and leaves no half-written file
