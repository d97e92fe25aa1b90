"""Copies of one picture, found among others."""

import io

import numpy as np
import pytest
from PIL import Image

from gkd_core.data.duplicates import (
    BITS,
    NEAR,
    SIDE,
    alike,
    groups_of,
    near_pairs,
    perceptual_hash,
    small_grey,
)


def scene(seed: int, size: tuple[int, int] = (240, 180)) -> Image.Image:
    """A picture with something to see: random colours, smoothly joined."""
    colours = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize(size, Image.Resampling.BICUBIC)


def hashed(image: Image.Image) -> np.ndarray:
    return perceptual_hash(np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)))


def saved_again(image: Image.Image) -> Image.Image:
    content = io.BytesIO()
    image.save(content, "JPEG", quality=30)
    return Image.open(content)


@pytest.mark.parametrize(
    "change",
    [
        saved_again,
        lambda image: image.resize((80, 60)),
        lambda image: image.resize((200, 200)),
        lambda image: image.convert("L"),
        lambda image: image.point(lambda value: value * 3 // 4),
    ],
    ids=["saved again", "smaller", "squashed", "grey", "darker"],
)
def test_a_copy_is_near_and_another_picture_is_not(change):
    for seed in range(5):
        assert np.sum(hashed(scene(seed)) != hashed(change(scene(seed)))) <= NEAR
        assert np.sum(hashed(scene(seed)) != hashed(change(scene(seed + 5)))) > 2 * NEAR


def test_near_pairs_are_those_that_comparing_each_with_each_finds():
    random = np.random.default_rng(0)
    hashes = random.random((700, BITS)) < 0.5  # more than one block
    for row, source, flipped in ((10, 3, 5), (650, 20, NEAR), (651, 21, NEAR + 1), (652, 650, 3)):
        hashes[row] = hashes[source]
        hashes[row, random.permutation(BITS)[:flipped]] ^= True
    distances = (hashes[:, None] != hashes[None]).sum(-1)
    expected = np.argwhere(np.triu(distances <= NEAR, 1))
    assert near_pairs(hashes).tolist() == expected.tolist()
    assert [3, 10] in expected.tolist()
    assert [20, 650] in expected.tolist()
    assert [21, 651] not in expected.tolist()


def test_near_hashes_of_pictures_that_do_not_look_alike_are_no_copies():
    # The noise, the same in both, decides the signs of all frequencies but one; the eye sees only that one.
    noise = np.random.default_rng(0).normal(0, 2, (SIDE, SIDE))
    wave = 60 * np.cos(np.pi * np.arange(SIDE) / SIDE * 3)
    waves = [np.clip(128 + noise + each, 0, 255).astype(np.uint8) for each in (wave[:, None], wave[None])]
    pictures = [np.repeat(each[:, :, None], 3, 2) for each in (*waves, waves[0] // 2)]
    hashes = np.array([perceptual_hash(each) for each in pictures])
    pairs = near_pairs(hashes)
    assert pairs.tolist() == [[0, 1], [0, 2], [1, 2]]
    assert alike(pairs, np.array([small_grey(each) for each in pictures])).tolist() == [[0, 2]]


def test_many_equal_hashes_are_one_group_without_a_pair_for_each_two():
    hashes = np.zeros((3000, BITS), dtype=np.bool_)
    hashes[1500:, : 2 * NEAR] = True
    pairs = near_pairs(hashes)
    assert len(pairs) == 2998
    assert len(set(groups_of(3000, pairs))) == 2


def test_no_hashes_have_no_pairs():
    assert near_pairs(np.empty((0, BITS), dtype=np.bool_)).shape == (0, 2)
    assert groups_of(2, np.empty((0, 2), dtype=np.int64)).tolist() == [0, 1]


def test_a_chain_of_pairs_is_one_group():
    assert groups_of(5, np.array([[0, 3], [3, 4]])).tolist() == [0, 1, 2, 0, 0]
