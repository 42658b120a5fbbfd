"""Small images and their bytes, for the tests of decoding."""

import io

import numpy as np
from PIL import Image

ORIENTATION = 0x0112
"""EXIF's tag."""


def noise(width=40, height=30, colours=256, seed=0):
    """[height, width, 3] uint8 of unrelated pixels; `colours` levels per channel."""
    levels = np.random.default_rng(seed).integers(0, colours, (height, width, 3))
    return (levels * (255 // (colours - 1))).astype(np.uint8)


def smooth(width=40, height=30, block=12):
    """[height, width, 3] uint8 that JPEG hardly changes."""
    coarse = Image.fromarray(noise(-(-width // block), -(-height // block)))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


def encode(image, kind="png", **options):
    """Bytes of a Pillow image or of pixels."""
    image = image if isinstance(image, Image.Image) else Image.fromarray(np.ascontiguousarray(image))
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turned(orientation):
    """Metadata that say how the stored pixels are to be turned."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif
