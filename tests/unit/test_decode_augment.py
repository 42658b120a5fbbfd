"""From bytes to augmented pixels: each a function of the sample's own numbers, whatever batch it comes in."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from sparse_mlp_ds import rng
from sparse_mlp_ds.data.augment import augment, normalize, to_unit
from sparse_mlp_ds.data.decode import center_crop, decode, random_resized_crop
from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.recipe import Blur, Data, Jitter, View


def picture(width=40, height=30, mode="RGB"):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encode(image, kind="png"):
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


KINDS = [("RGB", "png"), ("L", "png"), ("1", "png"), ("P", "png"), ("LA", "png"), ("RGBA", "png"), ("RGBA", "webp"),
         ("L", "jpeg"), ("CMYK", "jpeg")]  # fmt: skip


@pytest.mark.parametrize("mode, kind", KINDS)
def test_any_mode_decodes_to_rgb_of_the_same_brightness(mode, kind):
    flat = Image.new("RGB", (9, 5), (160, 160, 160))
    image = flat.convert(mode, dither=Image.Dither.NONE, palette=Image.Palette.ADAPTIVE)
    decoded = decode(encode(image, kind), "here")
    assert (decoded.mode, decoded.size) == ("RGB", (9, 5))
    assert np.abs(np.asarray(decoded).astype(int) - (255 if mode == "1" else 160)).max() <= 3


def test_lossless_colours_come_back_as_they_were():
    assert decode(encode(picture()), "here").tobytes() == picture().tobytes()


BROKEN = {
    "garbage": b"no image at all",
    "nothing": b"",
    "cut off": encode(picture(), "jpeg")[:600],
    "flipped": encode(picture())[:60] + b"\0" * 40 + encode(picture())[100:],
    "header alone": encode(picture())[:33],
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN.keys())
def test_undecodable_bytes_name_the_sample(content):
    with pytest.raises(UserError, match="^a.tar: sample 'x': cannot be decoded .*; remake the shard without it$"):
        decode(content, "a.tar: sample 'x'")


def crop(seed=1, number=2, stream=0, view=View(), image=None):
    return random_resized_crop(image or picture(), view, 16, seed, number, stream)


def test_a_crop_is_a_function_of_seed_number_and_stream():
    first = crop()
    assert (first.shape, first.dtype) == ((3, 16, 16), np.uint8)
    assert np.array_equal(first, crop())
    for other in (crop(seed=2), crop(number=3), crop(stream=1)):
        assert not np.array_equal(first, other)


def test_a_crops_area_and_shape_stay_in_their_ranges():
    """Two ramps tell where a crop began and ended."""
    across, down = np.meshgrid(np.arange(256), np.arange(256))
    ramps = Image.fromarray(np.stack([across, down, across], axis=-1).astype(np.uint8))
    view = View(crop_scale=(0.2, 0.5), crop_ratio=(0.8, 1.25))
    areas, ratios = [], []
    for number in range(200):
        pixels = crop(number=number, view=view, image=ramps).astype(float)
        # the centres of the outer pixels lie 15/16 of the side apart
        width, height = (pixels[0, 8, -1] - pixels[0, 8, 0]) * 16 / 15, (pixels[1, -1, 8] - pixels[1, 0, 8]) * 16 / 15
        areas.append(width * height / 256**2)
        ratios.append(width / height)
    assert 0.18 < min(areas) < 0.23 and 0.46 < max(areas) < 0.52
    assert 0.77 < min(ratios) < 0.84 and 1.19 < max(ratios) < 1.3


def test_a_shape_that_never_fits_becomes_the_central_square():
    wide = picture(200, 10)
    assert np.array_equal(crop(image=wide, view=View(crop_scale=(1, 1))), center_crop(wide, 16, 1.0))


def test_center_crop_keeps_the_middle():
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[4:16, 14:26] = (10, 20, 30)
    cut = center_crop(Image.fromarray(pixels), 12, 0.6)
    assert (cut.shape, cut.dtype) == ((3, 12, 12), np.uint8)
    assert (cut == np.array([10, 20, 30])[:, None, None]).all()
    assert np.array_equal(center_crop(picture(30, 30), 30, 1.0), np.asarray(picture(30, 30)).transpose(2, 0, 1))


def jitter(**strength):
    return Jitter(**{"p": 1, "brightness": 0, "contrast": 0, "saturation": 0, "hue": 0} | strength)


OPERATIONS = {
    "brightness": View(flip=0, jitter=jitter(brightness=0.4)),
    "contrast": View(flip=0, jitter=jitter(contrast=0.4)),
    "saturation": View(flip=0, jitter=jitter(saturation=0.4)),
    "hue": View(flip=0, jitter=jitter(hue=0.2)),
    "grayscale": View(flip=0, grayscale=1),
    "blur": View(flip=0, blur=Blur(p=1, sigma=(0.5, 2.0))),
    "solarize": View(flip=0, solarize=1),
    "flip": View(flip=1),
}
MIXED = View(flip=0.5, jitter=Jitter(p=0.8), grayscale=0.2, blur=Blur(p=0.5), solarize=0.2)
VIEWS = pytest.mark.parametrize("view", [*OPERATIONS.values(), MIXED], ids=[*OPERATIONS, "mixed"])


def batch(count=20):
    images = torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return images, rng.sample_keys(0, torch.arange(count), "view 0")


@VIEWS
def test_a_sample_is_augmented_the_same_in_any_batch(view):
    images, keys = batch()
    whole = augment(images, view, keys)
    assert whole.shape == images.shape
    assert torch.equal(torch.cat([augment(images[n : n + 1], view, keys[n : n + 1]) for n in range(20)]), whole)
    mixed = torch.randperm(20, generator=torch.Generator().manual_seed(1))[:13]
    assert torch.equal(augment(images[mixed], view, keys[mixed]), whole[mixed])


@VIEWS
def test_pixels_stay_in_the_unit_interval(view):
    images, keys = batch()
    images[0], images[1] = 0, 1
    result = augment(images, view, keys)
    assert result.min() >= -1e-6 and result.max() <= 1 + 1e-6  # a blur's weights add up to 1 within rounding


@pytest.mark.parametrize("view", OPERATIONS.values(), ids=OPERATIONS.keys())
def test_probability_one_changes_every_sample(view):
    images, keys = batch()
    assert (augment(images, view, keys) - images).abs().flatten(1).amax(dim=1).min() > 1e-3


def test_probability_zero_changes_nothing():
    images, keys = batch()
    nothing = View(flip=0, jitter=Jitter(p=0), grayscale=0, blur=Blur(p=0), solarize=0)
    assert torch.equal(augment(images, nothing, keys), images)
    assert torch.equal(augment(images, View(flip=0, jitter=jitter()), keys), images)


def test_operations_do_what_they_are_called():
    images, keys = batch()
    done = {name: augment(images, view, keys) for name, view in OPERATIONS.items()}
    assert torch.equal(done["flip"], images.flip(-1))
    assert torch.equal(done["solarize"], torch.where(images >= 0.5, 1 - images, images))
    grey = done["grayscale"]
    assert torch.equal(grey[:, 0], grey[:, 1]) and torch.equal(grey[:, 0], grey[:, 2])
    assert (done["blur"].flatten(1).std(dim=1) < images.flatten(1).std(dim=1)).all()


@pytest.mark.parametrize("p", [0.2, 0.8])
def test_a_probability_is_the_share_of_samples(p):
    images, keys = torch.rand(4000, 3, 2, 2), rng.sample_keys(0, torch.arange(4000), "view 0")
    flipped = (augment(images, View(flip=p), keys) != images).flatten(1).any(dim=1)
    assert flipped.float().mean().item() == pytest.approx(p, abs=0.03)
    solarized = (augment(images, View(flip=0, solarize=p), keys) != images).flatten(1).any(dim=1)
    assert torch.corrcoef(torch.stack([flipped.float(), solarized.float()]))[0, 1].abs() < 0.1


def test_normalisation_is_by_channel():
    data = Data(train="a", val="b", classes=2, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 1.0))
    images = to_unit(torch.tensor([[0, 255], [51, 102]], dtype=torch.uint8).expand(1, 3, 2, 2))
    assert images.flatten()[:4].tolist() == pytest.approx([0, 1, 0.2, 0.4])
    result = normalize(images, data)
    assert result[0, :, 0, 1].tolist() == pytest.approx([0.9 / 0.5, 0.8 / 0.25, 0.7])
    assert result[0, :, 1, 0].tolist() == pytest.approx([0.1 / 0.5, 0.0, -0.1], abs=1e-6)


def test_sixteen_bits_are_scaled_not_clipped():
    pixels = np.array([[0, 257 * 100], [257 * 200, 65535]], dtype=np.uint16)
    assert np.asarray(decode(encode(Image.fromarray(pixels)), "x"))[:, :, 0].tolist() == [[0, 100], [200, 255]]


def test_the_two_views_of_a_sample_are_drawn_independently():
    equal = sum((crop(number=n, stream=0) == crop(number=n, stream=1)).all() for n in range(300))
    assert equal == 0
