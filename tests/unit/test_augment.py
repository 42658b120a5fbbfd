"""Augmentation: each operation against a formula, each draw a function of the sample's own number in the stage."""

import colorsys

import numpy as np
import pytest
import torch
from scipy import ndimage

from sparse_mlp_ds import rng
from sparse_mlp_ds.data.augment import augment, normalize, rectangle, to_unit, views
from sparse_mlp_ds.data.loader import Batch
from sparse_mlp_ds.data.sections import Blur, Data, Jitter, RandAugment, View


def jitter(**strength):
    return View(flip=0, jitter=Jitter(**{"p": 1, "brightness": 0, "contrast": 0, "saturation": 0, "hue": 0} | strength))


SINGLE = {
    "rand_augment": View(flip=0, rand_augment=RandAugment()),
    "brightness": jitter(brightness=0.4),
    "contrast": jitter(contrast=0.4),
    "saturation": jitter(saturation=0.4),
    "hue": jitter(hue=0.2),
    "grayscale": View(flip=0, grayscale=1),
    "blur": View(flip=0, blur=Blur(p=1, sigma=(0.5, 2.0))),
    "solarize": View(flip=0, solarize=1),
    "flip": View(flip=1),
    "erase": View(flip=0, erase=1),
}
HALF = View(jitter=Jitter(p=0.5), grayscale=0.5, blur=Blur(p=0.5), solarize=0.5, rand_augment=RandAugment(), erase=0.5)
EVERY_VIEW = pytest.mark.parametrize("view", [*SINGLE.values(), HALF], ids=[*SINGLE, "half of all"])
LUMA = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)


def batch(count=20, side=16, seed=0):
    """Random images of 8 bits and keys."""
    pixels = torch.randint(0, 256, (count, 3, side, side), generator=torch.Generator().manual_seed(seed))
    return pixels / 255, rng.sample_keys(0, torch.arange(count), "view 0")


def run(name, count=20, side=16):
    images, keys = batch(count, side)
    return images, augment(images, SINGLE[name], keys)


# what holds for every operation


@EVERY_VIEW
def test_a_sample_is_augmented_the_same_in_any_batch(view):
    images, keys = batch()
    whole = augment(images, view, keys)
    assert whole.shape == images.shape and whole.dtype == torch.float32
    assert torch.equal(torch.cat([augment(images[n : n + 1], view, keys[n : n + 1]) for n in range(20)]), whole)
    mixed = torch.randperm(20, generator=torch.Generator().manual_seed(1))[:13]
    assert torch.equal(augment(images[mixed], view, keys[mixed]), whole[mixed])


@EVERY_VIEW
def test_torchs_global_generator_is_neither_used_nor_moved(view):
    images, keys = batch()
    results = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        results.append(augment(images, view, keys))
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*results)


@EVERY_VIEW
def test_the_given_images_stay_as_they_are(view):
    images, keys = batch()
    augment(images, view, keys)
    assert torch.equal(images, batch()[0])


@pytest.mark.parametrize("name", [name for name in SINGLE if name not in ("grayscale", "solarize", "flip")])
def test_each_sample_has_draws_of_its_own(name):
    images, keys = batch()
    same = augment(images[:1].expand(20, -1, -1, -1), SINGLE[name], keys)
    assert len({tuple(one.flatten().tolist()) for one in same}) > 15


@EVERY_VIEW
def test_pixels_stay_in_the_unit_interval(view):
    """Every operation keeps them there to the last bit, but the blur, whose weights sum to 1 within rounding."""
    images, keys = batch(60)
    images[0], images[1] = 0, 1
    images[2:30] = images[2:30].round()  # the corners of the cube of colours
    result = augment(images, view, keys)
    slack = 1e-6 if view.blur else 0
    assert result.min() >= -slack and result.max() <= 1 + slack


@pytest.mark.parametrize("name", [name for name in SINGLE if name != "rand_augment"])  # one of its 14 is the identity
def test_probability_one_changes_every_sample(name):
    images, result = run(name)
    assert (result - images).abs().flatten(1).amax(dim=1).min() > 1e-3


def test_probability_zero_changes_nothing():
    images, keys = batch()
    nothing = View(flip=0, jitter=Jitter(p=0), grayscale=0, blur=Blur(p=0), solarize=0, erase=0)
    assert torch.equal(augment(images, nothing, keys), images)
    assert torch.equal(augment(images, jitter(), keys), images)


@pytest.mark.parametrize("p", [0.2, 0.8])
def test_a_probability_is_the_share_of_samples_and_operations_are_drawn_independently(p):
    """Shares of 3000 have a standard deviation of 0.0073, correlations one of 0.018."""
    images, keys = batch(3000, side=4)
    alone = {
        "flip": View(flip=p),
        "solarize": View(flip=0, solarize=p),
        "grayscale": View(flip=0, grayscale=p),
        "blur": View(flip=0, blur=Blur(p=p, sigma=(1.0, 2.0))),
        "jitter": View(flip=0, jitter=Jitter(p=p)),
        "erase": View(flip=0, erase=p),
    }
    changed = torch.stack([(augment(images, v, keys) != images).flatten(1).any(dim=1) for v in alone.values()])
    seen = dict(zip(alone, changed.float().mean(dim=1).tolist(), strict=True))
    erased = seen.pop("erase")  # 2 % of 4 x 4 pixels may lie between the middles of all of them
    assert seen == pytest.approx(dict.fromkeys(seen, p), abs=0.03) and 0.8 * p < erased < p + 0.03
    assert (torch.corrcoef(changed.float()) - torch.eye(6)).abs().max() < 0.08


def test_operations_follow_one_another_in_the_promised_order():
    images, keys = batch()
    everything = View(
        flip=1,
        jitter=Jitter(p=1),
        grayscale=0.3,
        blur=Blur(p=1),
        solarize=1,
        rand_augment=RandAugment(),
        erase=1,
    )
    chain = images
    for name in ("rand_augment", "jitter", "grayscale", "blur", "solarize", "flip", "erase"):
        chain = augment(chain, View(**{"flip": 0, name: getattr(everything, name)}), keys)
    assert torch.equal(augment(images, everything, keys), chain)


# each operation


def blended(images, result, degenerate, strength):
    """Check `result` = clip(f x images + (1 - f) x degenerate) with one f per sample; return the fs."""
    factors = []
    for image, after, other in zip(images.double(), result.double(), degenerate.double(), strict=True):
        inside = (after > 0) & (after < 1)
        f = ((after - other) * (image - other))[inside].sum() / (image - other)[inside].square().sum()  # least squares
        assert (after - (f * image + (1 - f) * other).clamp(0, 1)).abs().max() < 1e-5
        factors.append(f.item())
    assert 1 - strength - 1e-5 < min(factors) < 1 - strength * 0.7
    assert 1 + strength * 0.7 < max(factors) < 1 + strength + 1e-5
    return factors


def test_brightness_contrast_and_saturation_blend_with_black_mean_and_grey():
    images = batch(60)[0]
    grey = (images * LUMA).sum(dim=1, keepdim=True).expand_as(images)
    degenerate = {"brightness": torch.zeros_like(images), "saturation": grey}
    degenerate["contrast"] = grey.mean(dim=(2, 3), keepdim=True).expand_as(images)
    factors = [blended(images, run(name, 60)[1], other, 0.4) for name, other in degenerate.items()]
    assert np.abs(np.corrcoef(factors) - np.eye(3)).max() < 0.5  # each by a factor of its own: 60 draws give 0.13


def test_hue_turns_every_pixel_of_a_sample_by_the_same_angle():
    images, result = run("hue", count=30, side=5)
    turns = []
    for image, after in zip(images, result, strict=True):
        before, now = (
            np.array([colorsys.rgb_to_hsv(*pixel) for pixel in x.flatten(1).T.double().tolist()])
            for x in (image, after)
        )
        assert np.abs(before[:, 1:] - now[:, 1:]).max() < 1e-4  # saturation and value stay
        turn = (now[:, 0] - before[:, 0] + 0.5) % 1 - 0.5
        assert np.ptp(turn) < 1e-3
        turns.append(turn.mean())
    assert -0.2 < min(turns) < -0.12 and 0.12 < max(turns) < 0.2


def test_grayscale_is_the_luma_in_every_channel():
    images, result = run("grayscale")
    assert torch.allclose(result, (images * LUMA).sum(dim=1, keepdim=True).expand_as(images), atol=1e-6)


def test_solarizing_inverts_the_brighter_half():
    images, result = run("solarize")
    levels = (images * 255).round()
    assert torch.allclose(result * 255, torch.where(levels < 128, levels, 255 - levels), atol=1e-4)


def test_a_flip_mirrors_left_and_right():
    images, result = run("flip")
    assert torch.equal(result, images.flip(-1))


def test_blur_is_a_gaussian():
    images, keys = batch(4)
    result = augment(images, View(flip=0, blur=Blur(p=1, sigma=(1.5, 1.5))), keys)
    wanted = ndimage.gaussian_filter(images.double().numpy(), 1.5, axes=(2, 3), mode="mirror", radius=5)
    assert np.abs(result.numpy() - wanted).max() < 1e-5


def test_blurs_widths_are_uniform_in_their_range():
    point = torch.zeros(400, 3, 17, 17)
    point[:, :, 8, 8] = 1
    result = augment(point, View(flip=0, blur=Blur(p=1, sigma=(0.6, 1.4))), batch(400)[1])
    squares = (torch.arange(17) - 8.0) ** 2
    sigma = (result[:, 0].sum(dim=1) * squares).sum(dim=1).sqrt()
    assert 0.58 < sigma.min() < 0.63 and 1.33 < sigma.max() < 1.4
    assert sigma.mean() == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("side", [1, 2, 3])
def test_the_smallest_images_can_be_blurred_and_erased(side):
    images, keys = batch(5, side)
    result = augment(images, View(flip=0, blur=Blur(p=1), erase=1), keys)
    assert result.shape == images.shape and result.isfinite().all()


def test_erase_fills_one_rectangle_with_the_mean_colour():
    """Rounding to whole pixels moves each side of the rectangle by half a pixel at most."""
    images, result = run("erase", count=300, side=64)
    erased = (result != images).any(dim=1)  # [B, H, W]
    mean = images.mean(dim=(2, 3), keepdim=True).expand_as(images)
    assert torch.equal(result, torch.where(erased[:, None], mean, images))
    h, w = erased.any(dim=2).sum(dim=1).float(), erased.any(dim=1).sum(dim=1).float()
    assert torch.equal(erased.flatten(1).sum(dim=1).float(), h * w)  # no holes
    inner, outer = (h - 1) * (w - 1) / 64**2, (h + 1) * (w + 1) / 64**2
    assert (outer > 0.02).all() and (inner < 1 / 3).all()  # the paper allows 0.02 .. 0.4
    assert ((h + 1) / (w - 1) > 0.3).all() and ((h - 1) / (w + 1) < 3.3).all()
    assert (h / w).log().mean().abs() < 0.1 and 0.55 < (h / w).log().std() < 0.75  # 0.69 if none were cut at the border
    area = h * w / 64**2
    assert area.min() < 0.04 and area.max() > 0.3 and area.mean() == pytest.approx((0.02 + 1 / 3) / 2, abs=0.02)
    assert erased.any(dim=2).any(dim=0).all() and erased.any(dim=1).any(dim=0).all()  # every row and column is hit


def test_a_rectangle_holds_the_pixels_whose_middles_it_covers():
    draw = torch.Generator().manual_seed(0)
    top, left, h, w = (torch.rand(40, generator=draw) * 8 - shift for shift in (3, 3, 0, 0))
    inside = rectangle(top, left, h, w, 5, 7)
    assert (inside.shape, inside.dtype) == ((40, 5, 7), torch.bool)
    for n, y, x in np.ndindex(40, 5, 7):
        wanted = top[n] <= y + 0.5 < top[n] + h[n] and left[n] <= x + 0.5 < left[n] + w[n]
        assert inside[n, y, x] == wanted
    whole, nothing = rectangle(*torch.tensor([[0.0, 1], [0, 1], [5, 0], [7, 0]]), 5, 7)
    assert whole.all() and not nothing.any()


# a micro-batch


def two_views(numbers, seed=3):
    """A batch whose pixels are a function of the sample's number, as the loader's are."""
    every = torch.randint(0, 256, (50, 2, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return views(Batch(every[numbers], torch.zeros(len(numbers)), numbers), (HALF, SINGLE["hue"]), seed)


def test_views_take_bytes_and_give_each_view_of_each_sample():
    numbers = torch.arange(10, 30)
    images, keys = two_views(numbers)
    assert (images.shape, images.dtype, keys.shape) == ((2, 20, 3, 8, 8), torch.float32, (2, 20))
    assert images.min() >= -1e-6 and 0.9 < images.max() <= 1 + 1e-6
    assert len(set(keys.flatten().tolist())) == 40
    assert torch.equal(keys[1], rng.sample_keys(3, numbers, "view 1"))
    assert not torch.equal(two_views(numbers, seed=4)[0], images)


def test_views_depend_on_no_batch_and_no_rank():
    images, keys = two_views(torch.arange(24))
    for part in (torch.arange(8, 16), torch.tensor([3, 23, 0]), torch.tensor([7])):
        own, own_keys = two_views(part)
        assert torch.equal(own, images[:, part]) and torch.equal(own_keys, keys[:, part])


def test_bytes_may_lie_channels_last_as_they_are_decoded():
    first = torch.randint(0, 256, (6, 1, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    last = first.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    assert to_unit(last[:, 0]).is_contiguous()
    either = [views(Batch(x, torch.zeros(6), torch.arange(6)), (HALF,), 3)[0] for x in (first, last)]
    assert torch.equal(*either)


def test_bytes_become_floats_and_are_normalised_by_channel():
    data = Data(train="a", val="b", classes=2, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 1.0))
    images = to_unit(torch.tensor([[0, 255], [51, 102]], dtype=torch.uint8).expand(2, 3, 2, 2))
    assert images.dtype == torch.float32 and images.flatten()[:4].tolist() == pytest.approx([0, 1, 0.2, 0.4])
    result = normalize(images, data)
    assert result[1, :, 0, 1].tolist() == pytest.approx([0.9 / 0.5, 0.8 / 0.25, 0.7])
    assert result[0, :, 1, 0].tolist() == pytest.approx([0.1 / 0.5, 0.0, -0.1], abs=1e-6)
