"""What a worker does to an image: decode it and cut out a square of uint8 pixels; the rest runs on the device."""

import io
import math

import numpy as np
from PIL import Image, UnidentifiedImageError

from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.recipe import View

Image.MAX_IMAGE_PIXELS = 200_000_000  # the largest ImageNet image has 33 million


def decode(content: bytes, where: str) -> Image.Image:
    """Return the image as RGB. `where` names the sample in the UserError that undecodable bytes raise."""
    try:
        image = Image.open(io.BytesIO(content))
        if image.mode.startswith("I"):  # 16 bits per pixel, which convert() would clip to white
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        return image.convert("RGB")
    except UnidentifiedImageError:
        raise UserError(
            f"{where}: cannot be decoded (no image format that is known); remake the shard without it"
        ) from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{where}: cannot be decoded ({error}); remake the shard without it") from None


def random_resized_crop(image: Image.Image, view: View, size: int, seed: int, number: int, stream: int) -> np.ndarray:
    """Cut a random part and scale it: [3, size, size] uint8 (Szegedy et al., 2015, as every trainer since does).

    The part is a function of (seed, number, stream): the sample's number in the stage and which of its views this is.
    """
    # The stream goes into the counter's highest word: in the lowest, one stream would be another one shifted.
    draw = np.random.Generator(np.random.Philox(key=[seed, number], counter=stream << 192))
    width, height = image.size
    low, high = math.log(view.crop_ratio[0]), math.log(view.crop_ratio[1])
    for _ in range(10):
        area = width * height * draw.uniform(*view.crop_scale)
        ratio = math.exp(draw.uniform(low, high))
        w, h = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if w <= width and h <= height:
            left, top = draw.uniform(0, width - w), draw.uniform(0, height - h)
            return _pixels(image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + w, top + h)))
    return center_crop(image, size, 1.0)  # no part of such a shape fits into such an image


def center_crop(image: Image.Image, size: int, fraction: float) -> np.ndarray:
    """Cut the central square, `fraction` of the shorter side, and scale it: [3, size, size] uint8."""
    width, height = image.size
    side = min(width, height) * fraction
    left, top = (width - side) / 2, (height - side) / 2
    return _pixels(image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side)))


def _pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).transpose(2, 0, 1)  # [H, W, 3] -> [3, H, W]
