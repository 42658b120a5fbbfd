"""Each operation of a view against a formula."""

import colorsys

import numpy as np
import pytest
import torch
from scipy import ndimage, stats

from sparse_mlp_ds.data.augment import augment, normalize
from sparse_mlp_ds.data.config import Blur, Erase, Pixels, View
from sparse_mlp_ds.data.per_sample import rectangle
from tests.helpers.views import SINGLE, batch

LUMA = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)


def run(name, count=20, side=16):
    images, keys = batch(count, side)
    return images, augment(images, SINGLE[name], keys)


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


def test_erase_with_noise_gives_standard_normal_pixels_where_the_mean_colour_would_be():
    data = Pixels(mean=(0.2, 0.4, 0.6), std=(0.1, 0.2, 0.3))
    images, keys = batch(100, 32)
    erased = (augment(images, SINGLE["erase"], keys) != images).any(dim=1)
    result = augment(images, SINGLE["erase with noise"], keys, data)
    assert torch.equal(result != images, erased[:, None].expand_as(images))
    noise = normalize(result, data).permute(1, 0, 2, 3)[:, erased]  # [3, erased pixels]
    for channel in noise[:, ::7]:
        assert stats.kstest(channel.numpy(), stats.norm.cdf).pvalue > 0.001
    assert (torch.corrcoef(noise) - torch.eye(3)).abs().max() < 0.03, "each channel by itself"
    assert torch.equal(
        augment(images, SINGLE["erase with noise"], keys), augment(images, SINGLE["erase with noise"], keys, Pixels())
    )


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


def test_a_number_is_the_probability_of_erasing():
    assert View(erase=0.25).erase == Erase(p=0.25, fill="mean")
    assert View(erase=0).erase is None and View().erase is None
    for wrong in (1.5, True, "0.2 of them"):
        with pytest.raises(ValueError, match="erase"):
            View(erase=wrong)
