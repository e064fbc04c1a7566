"""Originals are looked at once, not for every checkpoint; memory for that is bounded, and stale looks are not kept."""

import os

import pytest
import torch

from ckptwatch.evaluate.engine import Engine
from ckptwatch.evaluate.networks import LpipsNetwork
from ckptwatch.evaluate.pairs import PairCache
from ckptwatch.model import Reference, Sampler
from tests.parity.evaluation_kit import again, make_job, metrics, scores, write_images
from tests.parity.tiny_networks import write_lpips


def features(kilobytes):
    return (torch.zeros(kilobytes * 128), torch.zeros(kilobytes * 128))  # float32: half each


def fill(cache, *keys, kilobytes=4):
    seen = []
    for key in keys:
        cache.get(key, lambda key=key: seen.append(key) or features(kilobytes))
    return seen


def test_what_was_seen_is_not_seen_again():
    cache = PairCache()
    assert fill(cache, "a", "b", "a") == ["a", "b"]


def test_what_does_not_fit_is_seen_each_time_and_the_rest_stays():
    cache = PairCache(budget=10 << 10)
    assert fill(cache, "a", "b", "c") == ["a", "b", "c"]
    cache.begin()
    assert fill(cache, "a", "b", "c") == ["c"]


def test_what_an_evaluation_does_not_use_makes_room_for_the_next():
    cache = PairCache(budget=10 << 10)
    fill(cache, "a", "b")
    cache.begin()
    fill(cache, "a")
    cache.begin()
    assert fill(cache, "a", "x") == ["x"]
    cache.begin()
    assert fill(cache, "a", "x") == []


@pytest.fixture
def job(tmp_path):
    generated, originals = write_images(tmp_path / "g", 12), write_images(tmp_path / "o", 12, first=7000)
    lpips = write_lpips(tmp_path / "lpips.pt")
    made = make_job(tmp_path, sampler=Sampler(images=str(generated)), metrics=metrics("lpips"),
                    reference=Reference(paired=originals))
    from dataclasses import replace

    return replace(made, recipe=replace(made.recipe, networks=replace(made.recipe.networks, lpips_weights=lpips)))


def test_originals_go_through_the_network_once_for_all_checkpoints(job, monkeypatch):
    looks = []
    see = LpipsNetwork.reference
    monkeypatch.setattr(LpipsNetwork, "reference", lambda self, images: looks.append(len(images)) or see(self, images))
    engine = Engine("cpu")
    first = scores(job, engine)
    assert sum(looks) == 12
    assert scores(again(job), engine) == first and sum(looks) == 12


def test_an_original_that_changed_is_looked_at_again(job):
    engine = Engine("cpu")
    first = scores(job, engine)
    originals = job.recipe.reference.paired
    (originals / "img_3.png").write_bytes((originals / "img_4.png").read_bytes())
    os.utime(originals / "img_3.png", (1, 1))
    assert scores(again(job), engine) != first
