"""What a worker does to an image: decode it and cut squares of uint8 pixels out of it; the rest runs on the device."""

import io
import math
import warnings
from collections.abc import Sequence

import numpy as np
from PIL import Image, UnidentifiedImageError

from sparse_mlp_ds.data.defects import TOO_LARGE, UNDECODABLE, BadSampleError
from sparse_mlp_ds.data.sections import View

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""What is opened, whatever a member is called. Pillow knows more, some of which it hands to programs outside (EPS)."""
MAX_PIXELS = 90_000_000
"""Larger images are refused before they are decoded; the largest of ImageNet has 33 million."""
_ORIENTATION = 0x0112  # EXIF
_SIDEWAYS = (5, 6, 7, 8)  # orientations that swap width and height
_MIRRORED = ((2, 3, 6, 7), (3, 4, 7, 8))  # those that run against the stored rows or columns in x, and in y
_TO_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
Image.MAX_IMAGE_PIXELS = None  # checked here, where it can be named
warnings.filterwarnings("ignore", module=r"PIL\.")  # about metadata, once per image

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, pixels of the upright image."""


class Picture:
    """An encoded image of which only the header has been read."""

    def __init__(self, content: bytes | Image.Image):
        """content: the encoded image, or one of Pillow's that is decoded already. Raises BadSampleError."""
        try:
            opened = isinstance(content, Image.Image)
            self._image = content if opened else Image.open(io.BytesIO(content), formats=FORMATS)
            self._orientation = _orientation(self._image)
        except Exception as error:  # decoders raise anything on hostile bytes
            raise BadSampleError(UNDECODABLE, f"cannot be decoded ({_brief(error)})") from None
        self.format: str | None = self._image.format
        """Pillow's name of the format that it is in; None of an image that never was a file."""
        width, height = self._image.size
        if width * height > MAX_PIXELS:
            raise BadSampleError(TOO_LARGE, f"has {width} x {height} pixels, more than {MAX_PIXELS:,}")
        self.size = (height, width) if self._orientation in _SIDEWAYS else (width, height)
        """Width and height of the upright image, pixels."""
        self._factor = 1  # by which it was decoded smaller

    def cut(self, boxes: Sequence[Box], side: int) -> np.ndarray:
        """Decode once and return each box scaled to a square: [V, 3, side, side] uint8. Raises BadSampleError.

        A JPEG of which every box has at least twice the wanted side is decoded at 1/2, 1/4 or 1/8 of its size.
        """
        image = self.upright(min(min(b[2] - b[0], b[3] - b[1]) for b in boxes) / side)
        limit = (*image.size, *image.size)
        # A smaller JPEG may end in a partial row and column, which its orientation may have turned to the front.
        partial = [now - full / self._factor for now, full in zip(image.size, self.size, strict=True)]
        start = [part if self._orientation in turned else 0 for part, turned in zip(partial, _MIRRORED, strict=True)]
        parts = []
        for box in boxes:
            edges = zip(box, (*start, *start), limit, strict=True)
            scaled = tuple(min(edge / self._factor + first, most) for edge, first, most in edges)
            part = image.resize((side, side), Image.Resampling.BILINEAR, box=scaled)
            parts.append(np.asarray(part).transpose(2, 0, 1))  # [H, W, 3] -> [3, H, W]
        return np.stack(parts)

    def upright(self, spare: float = 1.0) -> Image.Image:
        """Decode; return the RGB image, where it is a JPEG at most `spare` times smaller. Raises BadSampleError."""
        image = self._image
        try:
            spare = min(spare, *image.size)
            if spare >= 2:
                factor = 2 ** min(int(math.log2(spare)), 3)
                # Rounded down: a size that was rounded up could not be had from an odd one by this factor.
                if image.draft(None, (image.width // factor, image.height // factor)):
                    self._factor = factor
            if self._orientation in _TO_UPRIGHT:  # exif_transpose would write all metadata anew, and fail at odd ones
                image = image.transpose(_TO_UPRIGHT[self._orientation])
            if image.mode.startswith("I"):  # 16 bits per pixel, which convert() would clip to white
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            return image.convert("RGB")
        except Exception as error:
            raise BadSampleError(UNDECODABLE, f"cannot be decoded ({_brief(error)})") from None


def random_box(size: tuple[int, int], view: View, seed: int, number: int, stream: int) -> Box:
    """Return a random part of an image of width and height `size` (Szegedy et al., 2015, as every trainer since).

    The part is a function of (seed, number, stream): the sample's number in the stage and which of its views this is.
    """
    # The stream goes into the counter's highest word: in the lowest, one stream would be another one shifted.
    draw = np.random.Generator(np.random.Philox(key=[seed, number], counter=stream << 192))
    width, height = size
    low, high = math.log(view.crop_ratio[0]), math.log(view.crop_ratio[1])
    for _ in range(10):
        area = width * height * draw.uniform(*view.crop_scale)
        ratio = math.exp(draw.uniform(low, high))
        w, h = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if w <= width and h <= height:
            left, top = draw.uniform(0, width - w), draw.uniform(0, height - h)
            return left, top, left + w, top + h
    return center_box(size, 1.0)  # no part of such a shape fits into such an image


def center_box(size: tuple[int, int], fraction: float) -> Box:
    """Return the central square, `fraction` of the shorter side."""
    width, height = size
    side = min(width, height) * fraction
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation. Metadata that cannot be read make no image bad: it is taken as upright."""
    try:
        return image.getexif().get(_ORIENTATION, 1) if "exif" in image.info else 1
    except Exception:  # the parser raises anything, too
        return 1


def _brief(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return f"none of {', '.join(FORMATS)}"
    return " ".join(str(error).split())[:120] or type(error).__name__
