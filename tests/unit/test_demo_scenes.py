"""The demo's pictures follow from their seeds, and their captions say what they show."""

import numpy as np
import pytest
from PIL import Image

from ckptwatch.demo import scenes


def test_a_scene_follows_from_its_seed():
    picture, caption, labels = scenes.scene(7)
    again = scenes.scene(7)
    assert picture.shape == (64, 64, 3)
    assert picture.dtype == np.uint8
    assert np.array_equal(picture, again[0])
    assert (caption, labels) == again[1:]
    assert not np.array_equal(picture, scenes.scene(8)[0])


def test_a_scene_is_the_same_alone_and_among_others():
    together = scenes.render(scenes.seeded(range(20)))
    for seed in (0, 7, 19):
        assert np.array_equal(together[seed], scenes.scene(seed)[0])


@pytest.mark.parametrize("seed", range(12))
def test_caption_and_labels_name_what_is_shown(seed):
    picture, caption, labels = scenes.scene(seed)
    colour, background = scenes.COLOURS[labels["colour"]], scenes.BACKGROUNDS[labels["background"]]
    assert caption == scenes.caption(scenes.SHAPES[labels["shape"]], colour, background)
    assert labels["class"] == labels["shape"] * len(scenes.COLOURS) + labels["colour"]
    alike = [
        shown for other in range(40) if other != seed
        for shown, _, its in [scenes.scene(other)] if its["background"] == labels["background"]
    ]
    # Corners show the background; light changes it by at most an eighth.
    assert all(abs(float(picture[0].mean()) - float(shown[0].mean())) < 64 for shown in alike)


def test_every_caption_exists_once():
    captions = scenes.all_captions()
    assert len(captions) == len(set(captions)) == len(scenes.SHAPES) * len(scenes.COLOURS) * len(scenes.BACKGROUNDS)


def test_object_colours_and_backgrounds_share_no_word():
    assert not set(scenes.COLOURS) & set(scenes.BACKGROUNDS)


def test_originals_and_prompts_belong_together_in_order(tmp_path):
    scenes.write_references(tmp_path, 9)
    reference, prompts = scenes.write_references(tmp_path, 5, seed=100)
    files = sorted(reference.iterdir())
    assert [file.name for file in files] == [f"{i:06d}.png" for i in range(5)]
    lines = prompts.read_text(encoding="utf-8").splitlines()
    for index, file in enumerate(files):
        picture, caption, _ = scenes.scene(100 + index)
        assert np.array_equal(np.asarray(Image.open(file)), picture)
        assert lines[index] == caption
