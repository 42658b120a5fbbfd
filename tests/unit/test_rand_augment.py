"""RandAugment: the paper's 14 operations against Pillow's, and which sample gets which, under every policy."""

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from scipy import ndimage, stats

from sparse_mlp_ds import rng
from sparse_mlp_ds.data.config import RandAugment
from sparse_mlp_ds.data.image_operations import NUMBERS, Changes
from sparse_mlp_ds.data.image_operations import apply as apply_changes
from sparse_mlp_ds.data.rand_augment import POLICIES, rand_augment
from tests.helpers.pictures import noise, smooth

SIDE = 24
PICTURES = [
    noise(SIDE, SIDE),
    smooth(SIDE, SIDE),
    noise(SIDE, SIDE) // 3 + 60,
    smooth(SIDE, SIDE) // 2,
    noise(SIDE, SIDE, 2),
]
UNSIGNED = ("identity", "autocontrast", "equalize", "posterize", "solarize")
OPERATIONS = tuple(POLICIES["paper"].amounts(torch.ones(1), torch.ones(1), SIDE, SIDE))
WARPS = ("rotate", "shear x", "shear y", "translate x", "translate y")
STRENGTHS = [(s, sign) for s in (0.1, 0.45, 0.9, 1.0) for sign in (-1.0, 1.0)]


def tensor(pixels):
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255


def apply(name, images, strength, sign=1.0):
    """One operation of the paper's policy on images [B, 3, H, W]."""
    strength, sign = (torch.as_tensor(v).double().expand(len(images)) for v in (strength, sign))
    amount = POLICIES["paper"].amounts(10 * strength, sign, *images.shape[2:])[name].float()
    chosen = Changes(torch.full((len(images),), NUMBERS[name]), amount, torch.zeros(len(images), 2).long())
    return apply_changes((images * 255).round(), chosen, POLICIES["paper"].style) / 255


def levels(name, pixels, strength, sign=1.0):
    """The same on one picture [H, W, 3] of whole levels, 0 .. 255."""
    return (apply(name, tensor([pixels]), strength, sign)[0].permute(1, 2, 0) * 255).round().double().numpy()


POINTWISE = {
    # Cut down to whole levels as Pillow cuts them, but computed in float32: one level where a value is nearly whole.
    "color": (1, lambda x, s, sign: ImageEnhance.Color(x).enhance(1 + 0.9 * s * sign)),
    "contrast": (1, lambda x, s, sign: ImageEnhance.Contrast(x).enhance(1 + 0.9 * s * sign)),
    "brightness": (1, lambda x, s, sign: ImageEnhance.Brightness(x).enhance(1 + 0.9 * s * sign)),
    "sharpness": (1, lambda x, s, sign: ImageEnhance.Sharpness(x).enhance(1 + 0.9 * s * sign)),
    "autocontrast": (1, lambda x, s, sign: ImageOps.autocontrast(x)),
    "equalize": (0, lambda x, s, sign: ImageOps.equalize(x)),
    "identity": (0, lambda x, s, sign: x),
    "posterize": (0, lambda x, s, sign: ImageOps.posterize(x, 8 - round(4 * s))),
    "solarize": (0, lambda x, s, sign: ImageOps.solarize(x, 256 * (1 - s))),
}


def test_they_are_the_papers_14():
    assert set(OPERATIONS) == {*POINTWISE, *WARPS} and len(OPERATIONS) == 14


@pytest.mark.parametrize("strength, sign", STRENGTHS)
@pytest.mark.parametrize("name", POINTWISE)
def test_colours_change_as_pillow_changes_them(name, strength, sign):
    tolerance, reference = POINTWISE[name]
    for number, pixels in enumerate(PICTURES):
        wanted = np.asarray(reference(Image.fromarray(pixels), strength, sign)).astype(float)
        assert np.abs(levels(name, pixels, strength, sign) - wanted).max() <= tolerance, number


def source_of(name, amount):
    """Pillow's six numbers of an affine map from a result's pixels to the source's, whose middles lie at 1/2."""
    if name == "rotate":  # anticlockwise on the screen about the middle
        c, s, m = math.cos(math.radians(30 * amount)), math.sin(math.radians(30 * amount)), SIDE / 2
        return c, -s, m - c * m + s * m, s, c, m - s * m - c * m
    if name.startswith("shear"):  # about the middle of the first pixel
        shear = 0.3 * amount
        return (1, shear, -shear / 2, 0, 1, 0) if name == "shear x" else (1, 0, 0, shear, 1, -shear / 2)
    shift = 0.45 * amount * SIDE
    return (1, 0, shift, 0, 1, 0) if name == "translate x" else (1, 0, 0, 0, 1, shift)


def warped(channel, name, amount):
    image = Image.fromarray(channel.astype(np.float32))
    return np.asarray(image.transform(image.size, Image.Transform.AFFINE, source_of(name, amount), Image.BILINEAR))


@pytest.mark.parametrize("strength, sign", STRENGTHS)
@pytest.mark.parametrize("name", WARPS)
def test_pixels_move_as_pillow_moves_them_and_black_comes_in(name, strength, sign):
    """Cut down to whole levels, which float32 coordinates, off by 1e-5 pixels, may bring to the next one."""
    framed = np.pad(np.ones((SIDE - 2, SIDE - 2)), 1)
    inner = warped(framed, name, strength * sign) > 1 - 1e-6
    outer = ndimage.binary_erosion(warped(np.ones((SIDE, SIDE)), name, strength * sign) == 0, np.ones((3, 3)))
    assert inner.sum() > 100 and (outer.any() or strength < 0.9)
    for pixels in PICTURES:
        result = levels(name, pixels, strength, sign)
        for channel in range(3):
            wanted = warped(pixels[..., channel], name, strength * sign)
            assert np.abs(result[..., channel] - np.floor(wanted + 1e-3))[inner].max() <= 1
            assert (result[..., channel][outer] == 0).all()


def test_rotation_is_pillows_own():
    """Its `rotate`, which says that positive angles turn anticlockwise; its map is rounded to 15 digits."""
    turned = Image.fromarray(PICTURES[1]).rotate(30 * 0.9, Image.BILINEAR)
    inside = np.s_[6:-6, 6:-6]
    assert np.abs(levels("rotate", PICTURES[1], 0.9) - np.asarray(turned))[inside].max() <= 1  # of rounding to levels


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name not in ("autocontrast", "equalize")])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_strength_zero_changes_nothing(name, sign):
    for pixels in PICTURES:
        assert np.abs(levels(name, pixels, 0.0, sign) - pixels).max() < 0.01


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name not in UNSIGNED])
def test_the_sign_goes_both_ways(name):
    images = tensor(PICTURES)
    less, more = apply(name, images, 0.5, -1.0), apply(name, images, 0.5, 1.0)
    assert (less - more).abs().flatten(1).amax(dim=1).min() > 0.003
    mirrored = {"rotate": [3], "translate x": [3], "translate y": [2]}.get(name)
    if mirrored:  # a mirrored picture goes the other way
        assert torch.allclose(apply(name, images.flip(mirrored), 0.5, 1.0).flip(mirrored), less, atol=1e-4)


@pytest.mark.parametrize("name", UNSIGNED)
def test_the_sign_means_nothing_to_the_rest(name):
    images = tensor(PICTURES)
    assert torch.equal(apply(name, images, 0.5, -1.0), apply(name, images, 0.5, 1.0))


@pytest.mark.parametrize("name", OPERATIONS)
def test_each_sample_of_a_batch_has_its_own_strength_and_sign(name):
    images, strength = tensor(PICTURES), torch.tensor([0.0, 0.3, 0.5, 0.9, 1.0])
    sign = torch.tensor([1.0, -1, 1, -1, 1])
    whole = apply(name, images, strength, sign)
    assert whole.shape == images.shape and whole.dtype == torch.float32
    for n in range(5):
        assert torch.equal(apply(name, images[n : n + 1], strength[n : n + 1], sign[n : n + 1])[0], whole[n])


@pytest.mark.parametrize("name", OPERATIONS)
def test_flat_black_and_white_pictures_pass(name):
    for value in (0.0, 128 / 255, 1.0):
        flat = torch.full((2, 3, 8, 8), value)
        result = apply(name, flat, 0.9, torch.tensor([-1.0, 1.0]))
        assert result.isfinite().all()
        if name in ("autocontrast", "equalize", "contrast", "color", "sharpness"):
            assert torch.allclose(result, flat, atol=1e-6)


# beyond magnitude 10: the same formulas, Pillow's where it has them, up to where they would leave nothing


BEYOND = [(s, sign) for s in (1.5, 2.0, 3.0) for sign in (-1.0, 1.0)]


@pytest.mark.parametrize("strength, sign", BEYOND)
@pytest.mark.parametrize("name", ["color", "contrast", "brightness", "sharpness"])
def test_a_blend_grows_upwards_and_keeps_a_tenth_downwards(name, strength, sign):
    tolerance, _ = POINTWISE[name]
    enhance = getattr(ImageEnhance, name.capitalize())
    factor = 1 + 0.9 * strength if sign > 0 else 0.1
    for pixels in PICTURES:
        wanted = np.asarray(enhance(Image.fromarray(pixels)).enhance(factor)).astype(float)
        assert np.abs(levels(name, pixels, strength, sign) - wanted).max() <= tolerance


@pytest.mark.parametrize("strength, bits", [(1.5, 2), (1.75, 1), (2.0, 1), (3.0, 1)])
def test_posterize_keeps_a_bit(strength, bits):
    for pixels in PICTURES:
        wanted = np.asarray(ImageOps.posterize(Image.fromarray(pixels), bits)).astype(float)
        assert np.abs(levels("posterize", pixels, strength) - wanted).max() <= 0.01


def test_solarize_inverts_all_from_magnitude_10_on():
    for strength in (1.0, 1.5, 3.0):
        assert np.abs(levels("solarize", PICTURES[0], strength) - (255.0 - PICTURES[0])).max() < 0.01


@pytest.mark.parametrize("name", WARPS)
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_warps_grow_and_leave_something_in_sight(name, sign):
    images = torch.ones(1, 3, SIDE, SIDE)
    seen = [apply(name, images, strength, sign).mean().item() for strength in (1.0, 1.5, 2.0, 3.0)]
    assert seen[0] > seen[1] + 0.01 and min(seen) > 0.05


def test_at_magnitude_15_translation_is_half_as_far_again():
    images = torch.zeros(1, 3, 40, 40)
    images[..., 0] = 1  # the first column
    result = apply("translate x", images, 1.5, -1.0)[0, 0, 20]
    assert result.argmax() == 27 and result.sum() == 1  # 0.45 x 1.5 x 40


@pytest.mark.parametrize("magnitude", [15, 30])
def test_strong_augmentation_stays_in_the_unit_interval(magnitude):
    images = torch.rand(200, 3, 18, 18, generator=torch.Generator().manual_seed(0))
    keys = rng.sample_keys(1, torch.arange(200), "x")
    result = rand_augment(images, RandAugment(ops=2, magnitude=magnitude), keys)
    assert result.isfinite().all() and result.min() >= 0 and result.max() <= 1
    assert not torch.equal(result, rand_augment(images, RandAugment(ops=2, magnitude=10), keys))


# which sample gets which


COUNT = 500


@pytest.fixture(scope="module")
def drawn():
    """Images between 0.2 and 0.8, what one operation makes of them, and every (name, sign) that gives just that."""
    # 18 x 18: of fewer than 256 pixels equalize makes nothing
    values = torch.randint(51, 205, (COUNT, 3, 18, 18), generator=torch.Generator().manual_seed(0))
    images, keys = values / 255, rng.sample_keys(0, torch.arange(COUNT), "view 0")
    result = rand_augment(images, RandAugment(ops=1, magnitude=8), keys)
    which = [[] for _ in range(COUNT)]
    for name in OPERATIONS:
        for sign in (-1.0, 1.0):
            equal = (apply(name, images, 0.8, sign) == result).flatten(1).all(dim=1)
            for n in equal.nonzero()[:, 0].tolist():
                which[n].append((name, sign))
    return images, keys, result, which


def test_each_sample_gets_one_operation_each_as_likely_as_any(drawn):
    which = drawn[3]
    assert all(which) and all(len({name for name, _ in found}) == 1 for found in which)
    counts = [sum(found[0][0] == name for found in which) for name in OPERATIONS]
    assert min(counts) > 0 and stats.chisquare(counts).pvalue > 0.001


def test_signs_are_drawn_as_likely_either_way(drawn):
    signs = [found[0] for found in drawn[3] if len(found) == 1]
    assert {name for name, _ in signs} == {name for name in OPERATIONS if name not in UNSIGNED}
    assert len(set(signs)) == 18  # 9 operations, either sign
    assert stats.binomtest(sum(sign > 0 for _, sign in signs), len(signs)).pvalue > 0.001


def test_the_second_operation_follows_the_first_and_is_drawn_anew(drawn):
    images, keys, first, which = drawn
    second = rand_augment(images, RandAugment(ops=2, magnitude=8), keys)
    pairs = np.zeros((14, 14))
    for row, name in enumerate(OPERATIONS):
        for sign in (-1.0, 1.0):
            equal = (apply(name, first, 0.8, sign) == second).flatten(1).all(dim=1)
            for n in equal.nonzero()[:, 0].tolist():
                pairs[list(OPERATIONS).index(which[n][0][0]), row] += 1
    assert pairs.any(axis=0).all() and pairs.any(axis=1).all()
    assert (pairs > 0).sum() > 130  # of 196; under one stream for both it would be 14


def test_a_sample_is_treated_alike_in_any_batch(drawn):
    images, keys, first, _ = drawn
    some = torch.randperm(COUNT, generator=torch.Generator().manual_seed(1))[:40]
    assert torch.equal(rand_augment(images[some], RandAugment(ops=1, magnitude=8), keys[some]), first[some])
    assert torch.equal(rand_augment(images[:1], RandAugment(ops=1, magnitude=8), keys[:1]), first[:1])


def test_pixels_stay_in_the_unit_interval_after_every_operation():
    images = torch.rand(200, 3, 8, 8, generator=torch.Generator().manual_seed(0)).round()
    result = rand_augment(images, RandAugment(ops=4, magnitude=10), rng.sample_keys(1, torch.arange(200), "x"))
    assert result.min() >= 0 and result.max() <= 1 and result.shape == images.shape


def test_at_magnitude_zero_only_contrast_and_histogram_are_stretched(drawn):
    images, keys, _, which = drawn
    result = rand_augment(images, RandAugment(ops=1, magnitude=0), keys)
    changed = (result - images).abs().flatten(1).amax(dim=1) > 1e-4
    assert changed.tolist() == [found[0][0] in ("autocontrast", "equalize") for found in which]
