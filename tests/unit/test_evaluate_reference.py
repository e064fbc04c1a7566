"""Reference images and statistics: read once, kept, never stale."""

import os
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from ckptwatch.errors import EvaluationError
from ckptwatch.evaluate import images as images_module
from ckptwatch.evaluate.metrics.statistics import statistics_of
from ckptwatch.evaluate.networks import FeatureNetwork
from ckptwatch.evaluate.reference import ReferenceSet, prime
from ckptwatch.evaluate.reference_cache import FeatureWriter, Tally, open_features
from ckptwatch.model import Reference
from tests.parity.evaluation_kit import TINY, write_images

D = 24  # features of the tiny network
COUNT = 30


@pytest.fixture(scope="module")
def network():
    return FeatureNetwork(TINY, ["24", "logits"], "cpu")


@pytest.fixture
def other(network, tmp_path):
    """A network with other weights."""
    torch.save({name: tensor * 2 for name, tensor in network._network.state_dict().items()}, tmp_path / "double.pt")
    return FeatureNetwork(replace(TINY, features_weights=tmp_path / "double.pt"), ["24", "logits"], "cpu")


@pytest.fixture
def images(tmp_path):
    return write_images(tmp_path / "reference", COUNT, first=9000)


@pytest.fixture
def make(tmp_path, images, network):
    """Reference sets of a new process: none of them holds anything yet."""
    cache = tmp_path / "cache"
    cache.mkdir()

    def make(metric="fid", **changes):
        values = {"metric": metric, "reference": Reference(images=images), "network": network, "layer": "24",
                  "cache_dir": cache, "batch_size": 8, "report": lambda *_: None}
        return ReferenceSet(**{**values, **changes})

    return make


@pytest.fixture
def decoded(monkeypatch):
    """How often each image was decoded."""
    counts = Counter()
    decode = images_module.decode
    monkeypatch.setattr(images_module, "decode", lambda path: (counts.update([path.name]), decode(path))[1])
    return counts


def error_of(call) -> EvaluationError:
    with pytest.raises(EvaluationError) as caught:
        call()
    return caught.value


def features_directly(network, images, layer="24"):
    files = sorted(images.iterdir(), key=lambda p: int(p.stem.split("_")[1]))
    return torch.cat([network.extract(images_module.decode(file)[None])[layer] for file in files])


def same(a, b) -> bool:
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("mu", "sigma", "root"))


# ---- what they are ----


def test_features_are_those_of_the_images_in_their_natural_order(make, network, images):
    found = make("kid").features()
    assert found.dtype == torch.float32 and found.shape == (COUNT, D)
    assert torch.allclose(found, features_directly(network, images), atol=1e-6)


def test_statistics_are_mean_and_covariance_of_the_features(make, network, images):
    found, expected = make().statistics(), statistics_of(features_directly(network, images))
    assert torch.allclose(found.mu, expected.mu, atol=1e-6) and torch.allclose(found.sigma, expected.sigma, atol=1e-7)
    assert torch.allclose(found.root @ found.root.T, found.sigma)


def test_statistics_do_not_depend_on_how_they_came_about(make, network):
    at_once = make().statistics()
    other = make("kid", cache_dir=make().cache_dir.parent)
    other.features()
    assert same(replace(other, metric="fid").statistics(), at_once)  # from the features that were kept
    rows = torch.rand(5000, 3, generator=torch.Generator().manual_seed(1))
    small, large = Tally(), Tally()
    for block in rows.split(17):
        small.add(block)
    large.add(rows)
    assert torch.equal(small.moments().scatter, large.moments().scatter)
    assert torch.allclose(small.moments().covariance, torch.cov(rows.double().T))


def test_reference_images_may_have_different_sizes(make, images):
    write_images(images, 10, side=64, prefix="large")
    assert make("kid").features().shape == (COUNT + 10, D)


def test_a_layer_whose_length_depends_on_the_size_is_told(make, images, network, monkeypatch):
    write_images(images, 4, side=64, prefix="large")
    extract = network.extract
    monkeypatch.setattr(network, "extract", lambda x: {"24": extract(x)["24"][:, :x.shape[-1] // 4]})
    error = error_of(make().statistics)
    assert error.kind == "recipe" and "10 values for one image and 16 for another" in str(error)


# ---- one pass ----


def test_all_that_several_metrics_need_comes_from_one_pass(make, decoded, network, other):
    looks = Counter()
    for one in (network, other):
        one.extract = lambda x, one=one: (looks.update({id(one): len(x)}), FeatureNetwork.extract(one, x))[1]
    try:
        sets = [make("fid"), make("kid"), make("precision"), make("recall"), make("kid", layer="logits"),
                make("cmmd", network=other, layer="logits")]
        prime(sets)
        assert set(decoded.values()) == {1} and len(decoded) == COUNT
        assert dict(looks) == {id(network): COUNT, id(other): COUNT}
        assert sets[1].features().shape == (COUNT, D) and sets[4].features().shape == (COUNT, 7)
        assert torch.equal(sets[2].features(), sets[1].features())
        assert torch.allclose(sets[0].statistics().mu, sets[1].features().double().mean(dim=0))
        assert set(decoded.values()) == {1}
    finally:
        del network.extract


def test_nothing_is_decoded_again_in_another_process(make, decoded):
    before = make("fid"), make("kid"), make("kid", layer="logits")
    prime(before)
    decoded.clear()
    after = make("fid"), make("kid"), make("kid", layer="logits")
    prime(after)
    assert not decoded
    assert same(after[0].statistics(), before[0].statistics())
    assert all(torch.equal(a.features(), b.features()) for a, b in zip(after[1:], before[1:], strict=True))


def test_features_are_not_stored_where_only_statistics_are_asked_for(make):
    prime([make("fid"), make("fd_dinov2")])
    assert [p.suffix for p in make().cache_dir.glob("reference-*")] == [".npz"]


def test_the_next_batch_is_prepared_before_this_one_is_looked_at(make, network, monkeypatch):
    seen = []
    prepare, extract = network.prepare, network.extract
    monkeypatch.setattr(network, "prepare", lambda x: (seen.append("prepare"), prepare(x))[1])
    monkeypatch.setattr(network, "extract", lambda x: (seen.append("extract"), extract(x))[1])
    make(batch_size=10).statistics()
    assert seen == ["prepare", "prepare", "extract", "prepare", "extract", "extract"]


def test_progress_is_told_in_images(make):
    told = []
    make("kid", report=lambda *progress: told.append(progress)).features()
    assert told[0] == ("loading", 0, COUNT) and told[-1] == ("loading", COUNT, COUNT)
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)


def test_features_are_mapped_and_writing_to_them_changes_no_file(make):
    made = make("kid").features()
    for found in (made, make("kid").features()):
        with open("/proc/self/maps") as maps:  # noqa: PTH123 - read before it changes
            assert any("reference-" in line and ".npy" in line for line in maps)
        found.zero_()
    assert float(make("kid").features().abs().max()) > 0


# ---- what is wrong with them ----


def test_vanished_empty_and_broken_references_are_errors(make, images, tmp_path):
    assert "No such file" in str(error_of(make(reference=Reference(images=tmp_path / "gone")).statistics))
    (tmp_path / "empty").mkdir()
    assert "found 0 images" in str(error_of(make(reference=Reference(images=tmp_path / "empty")).statistics))
    (images / "img_3.png").write_bytes(b"\x89PNG\r\n")
    error = error_of(make("kid").features)
    assert error.kind == "recipe" and error.path == images / "img_3.png"
    assert not [p for p in make().cache_dir.iterdir() if not p.name.startswith("contents-")]  # and leaves nothing half-made


@pytest.mark.parametrize("metric", ["kid", "precision", "recall", "cmmd"])
def test_a_metric_that_needs_images_says_so_and_is_named(make, tmp_path, metric):
    error = error_of(lambda: prime([make(metric, reference=Reference(stats=tmp_path / "s.npz"))]))
    assert error.kind == "recipe" and not error.retryable
    assert f"compute {metric}" in str(error) and "needs reference images" in str(error) and metric in error.hint


def test_a_metric_without_any_reference_is_named(make):
    for metric, hint in (("fid", "reference.images or reference.stats"), ("kid", "set reference.images")):
        error = error_of(lambda metric=metric: prime([make(metric, reference=Reference())]))
        assert f"compute {metric}" in str(error) and "no reference" in str(error) and hint in error.hint


def test_a_wrong_stats_file_is_told_before_any_image_is_read(make, decoded, images, tmp_path):
    (tmp_path / "s.npz").write_bytes(b"PK\x03\x04 not really")
    error = error_of(lambda: prime([make("kid"), make("fid", reference=Reference(images=images, stats=tmp_path / "s.npz"))]))
    assert error.path == tmp_path / "s.npz" and not decoded


# ---- statistics files in place of images ----


def test_stats_give_the_statistics_of_the_images_they_were_made_from(make, tmp_path):
    of_images = make().statistics()
    np.savez(tmp_path / "stats.npz", mu=of_images.mu.numpy(), sigma=of_images.sigma.numpy())
    of_file = make(reference=Reference(stats=tmp_path / "stats.npz"))
    assert same(of_file.statistics(), of_images)
    assert same(make(reference=Reference(stats=tmp_path / "stats.npz")).statistics(), of_images)  # with the kept root


def test_the_root_that_was_kept_belongs_to_the_content_of_the_stats_file(make, tmp_path):
    of_images = make().statistics()
    for factor in (1, 4):
        np.savez(tmp_path / "stats.npz", mu=of_images.mu.numpy(), sigma=of_images.sigma.numpy() * factor)
        found = make(reference=Reference(stats=tmp_path / "stats.npz")).statistics()
        assert torch.allclose(found.root @ found.root.T, of_images.sigma * factor)


def test_with_both_statistics_come_from_the_file_and_features_from_the_images(make, images, tmp_path):
    np.savez(tmp_path / "stats.npz", mu=np.ones(D), sigma=np.eye(D))
    both = Reference(images=images, stats=tmp_path / "stats.npz")
    fid, kid = make("fid", reference=both), make("kid", reference=both)
    prime([fid, kid])
    assert fid.statistics().mu.tolist() == [1] * D and kid.features().shape == (COUNT, D)


# ---- never stale ----


def test_a_changed_image_changes_the_features_though_its_name_stays(make, images, tmp_path):
    before = make("kid").features().clone()
    os.replace(write_images(tmp_path / "other", 1, first=1) / "img_0.png", images / "img_0.png")
    after = make("kid").features()
    assert not torch.equal(before[0], after[0]) and torch.equal(before[1:], after[1:])


def test_the_same_images_elsewhere_are_known(make, images, decoded, tmp_path):
    make("kid").features()
    decoded.clear()
    (tmp_path / "moved").mkdir()
    for image in images.iterdir():
        (tmp_path / "moved" / image.name).write_bytes(image.read_bytes())
    assert make("kid", reference=Reference(images=tmp_path / "moved")).features().shape == (COUNT, D)
    assert not decoded


def test_other_weights_are_another_entry(make, other):
    before = make().statistics()
    assert not same(make(network=other).statistics(), before)


def test_another_layer_is_another_entry(make):
    assert make("kid").features().shape != make("kid", layer="logits").features().shape


# ---- damaged and unwritable caches ----


@pytest.mark.parametrize(("metric", "suffix"), [("fid", ".npz"), ("kid", ".npy")])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "garbage", "longer", "other"])
def test_a_damaged_cache_is_made_anew(make, decoded, metric, suffix, damage):
    def ask():
        found = make(metric)
        return found.statistics().mu if metric == "fid" else found.features()

    before = ask().clone()
    (kept,) = make().cache_dir.glob(f"reference-*{suffix}")
    content = kept.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 0xFF
    if damage == "other":
        np.savez(kept, mu=np.zeros(D)) if suffix == ".npz" else np.save(kept, np.zeros((COUNT, D), np.float32))
    else:
        kept.write_bytes({
            "truncated": content[: len(content) // 2], "flipped": bytes(flipped), "empty": b"", "garbage": b"x" * 99,
            "longer": content + content,
        }[damage])
    decoded.clear()
    assert torch.equal(ask(), before)
    if (suffix, damage) != (".npz", "longer"):  # a zip file appended to another is that zip file
        assert set(decoded.values()) == {1}  # made anew, and kept:
        decoded.clear()
        assert torch.equal(ask(), before)
    assert not decoded


def test_features_that_are_not_finite_in_a_cache_of_statistics_are_not_believed(make, decoded):
    before = make().statistics()
    (kept,) = make().cache_dir.glob("reference-*.npz")
    np.savez(kept, mu=np.full(D, np.nan), sigma=np.eye(D), root=np.eye(D))
    assert same(make().statistics(), before)


def test_a_cache_that_cannot_be_synced_only_costs_time(make, monkeypatch, decoded):
    def full(_):
        raise OSError(28, "No space left on device")

    expected = make("kid").features().clone()
    for kept in make().cache_dir.iterdir():
        kept.unlink()
    monkeypatch.setattr(os, "fsync", full)
    sets = make("fid"), make("kid")
    prime(sets)
    assert torch.equal(sets[1].features(), expected) and float(sets[0].statistics().mu.sum()) > 0
    assert list(make().cache_dir.iterdir()) == []  # and leaves no half-written file
    decoded.clear()
    assert torch.equal(sets[1].features(), expected) and not decoded


def test_a_cache_directory_that_is_gone_only_costs_time(make, tmp_path):
    sets = make("fid", cache_dir=tmp_path / "gone"), make("kid", cache_dir=tmp_path / "gone")
    prime(sets)
    assert sets[1].features().shape == (COUNT, D) and sets[0].statistics().sigma.shape == (D, D)


@pytest.mark.parametrize("room", [0, 100, 128, 1000, 2500])
def test_a_disk_that_fills_up_while_features_are_written_loses_none(tmp_path, room, monkeypatch):
    """A limit on the size of files stands in for the full disk: the kernel refuses, after a part of what was given to it."""
    import resource
    import signal

    rows = torch.arange(24.0 * 25).reshape(25, 24)
    writer = FeatureWriter(tmp_path / "f.npy", 25)
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        for block in rows.split(4):
            writer.add(block)
        found = writer.finish()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert torch.equal(found, rows) and list(tmp_path.iterdir()) == []


def test_an_interrupted_pass_leaves_nothing(make, network, monkeypatch):
    calls = []

    def breaks(x):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return FeatureNetwork.extract(network, x)

    monkeypatch.setattr(network, "extract", breaks)
    with pytest.raises(KeyboardInterrupt):
        make("kid").features()
    assert not list(make().cache_dir.glob("*reference-*"))


def test_features_of_another_number_of_images_are_not_opened(tmp_path):
    writer = FeatureWriter(tmp_path / "f.npy", 3)
    writer.add(torch.ones(3, 2))
    assert torch.equal(writer.finish(), torch.ones(3, 2))
    assert open_features(tmp_path / "f.npy", 4) is None
    assert np.load(tmp_path / "f.npy").tolist() == [[1, 1]] * 3  # any program can read it
