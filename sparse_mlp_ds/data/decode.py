"""What a loader process does to an image: it decodes it and cuts squares of uint8 pixels out of it.

All other operations run on the device.
"""

import io
import itertools
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from sparse_mlp_ds.data.bad_samples import TOO_LARGE, UNDECODABLE, BadSampleError
from sparse_mlp_ds.data.config import View
from sparse_mlp_ds.errors import one_line

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""Image formats that are opened, whatever a file is called. Pillow passes some others, like EPS, to other programs."""
MAX_PIXELS = 90_000_000
"""Images with more pixels are refused before they are decoded; the largest image of ImageNet has 33 million."""
_ORIENTATION = 0x0112  # EXIF
_SIDEWAYS = (5, 6, 7, 8)  # orientations that swap width and height
_MIRRORED = ((2, 3, 6, 7), (3, 4, 7, 8))  # orientations that reverse the stored columns (x), and the stored rows (y)
_TO_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
PngImagePlugin.MAX_TEXT_CHUNK = 1 << 26  # bytes; a colour profile may exceed Pillow's limit of a megabyte
Image.MAX_IMAGE_PIXELS = None  # Picture checks the size, so that its error message can name the sample
warnings.filterwarnings("ignore", module=r"PIL\.")  # Pillow warns of odd metadata, once per image

Box = tuple[float, float, float, float]
"""Left, top, right and bottom edge of a part of the upright image, pixels."""


class Picture:
    """An encoded image of which only the header has been read."""

    def __init__(self, content: bytes | Image.Image):
        """Read the header of `content`: an encoded image, or a Pillow image, which may be decoded already.

        Raises BadSampleError.
        """
        try:
            if isinstance(content, bytes):
                content = Image.open(io.BytesIO(content), formats=FORMATS)
            self._image: Image.Image = content
            self._orientation = _orientation(self._image)
        except Exception as error:  # Pillow's decoders raise exceptions of any type on hostile bytes
            raise BadSampleError(UNDECODABLE, f"cannot be decoded ({_brief(error)})") from None
        self.format: str | None = self._image.format
        """Pillow's name of the image's format; None if the image does not come from a file."""
        width, height = self._image.size
        if width * height > MAX_PIXELS:
            raise BadSampleError(TOO_LARGE, f"has {width} x {height} pixels, more than {MAX_PIXELS:,}")
        if self._image.mode == "F" or (self._image.mode == "I" and self.format == "TIFF"):
            text = "has 32 bits per channel, and the file does not say which values are black and white"
            raise BadSampleError(UNDECODABLE, f"{text}; store it with 8 or 16 bits")
        self.size = (height, width) if self._orientation in _SIDEWAYS else (width, height)
        """Width and height of the upright image, pixels."""
        self._factor = 1  # the decoded image is smaller by this factor

    def crop(self, boxes: Sequence[Box], side: int, interpolations: Sequence[str] = ("bilinear",)) -> np.ndarray:
        """Decode the image once and return V boxes of it, each scaled to a square.

        A JPEG is decoded at 1/2, 1/4 or 1/8 of its size if every box stays at least as large as the square.

        Args:
            boxes: The V parts to cut out.
            side: Side of the squares, pixels.
            interpolations: How each box is scaled, `bilinear` or `bicubic`; a single one holds for all boxes.

        Returns:
            [V, 3, side, side] uint8.

        Raises:
            BadSampleError: The image cannot be decoded.
        """
        image = self.upright(min(min(b[2] - b[0], b[3] - b[1]) for b in boxes) / side)
        # A JPEG decoded at a smaller size may end in a partial row and column. Turning the image upright may have moved
        # them to the start; then every box begins later by that part of a pixel.
        partial = [now - full / self._factor for now, full in zip(image.size, self.size, strict=True)]
        x, y = (part if self._orientation in group else 0 for part, group in zip(partial, _MIRRORED, strict=True))
        width, height = image.size
        squares = []
        filters = [Image.Resampling[name.upper()] for name in interpolations]
        for (left, top, right, bottom), resampling in zip(boxes, itertools.cycle(filters), strict=False):
            scaled = (
                min(left / self._factor + x, width),
                min(top / self._factor + y, height),
                min(right / self._factor + x, width),
                min(bottom / self._factor + y, height),
            )
            square = image.resize((side, side), resampling, box=scaled)
            squares.append(np.asarray(square).transpose(2, 0, 1))  # [H, W, 3] -> [3, H, W]
        return np.stack(squares)

    def upright(self, max_reduction: float = 1.0) -> Image.Image:
        """Decode the image and return it as RGB, turned upright as its EXIF orientation says.

        max_reduction: How many times smaller a JPEG may be decoded. Raises BadSampleError.
        """
        image = self._image
        try:
            max_reduction = min(max_reduction, *image.size)
            if max_reduction >= 2:
                factor = 2 ** min(int(math.log2(max_reduction)), 3)
                # Rounded down: libjpeg cannot reach a size that was rounded up by exactly this factor.
                if image.draft(None, (image.width // factor, image.height // factor)):
                    self._factor = factor
            # ImageOps.exif_transpose would write all metadata anew, and fail on metadata that are odd.
            if self._orientation in _TO_UPRIGHT:
                image = image.transpose(_TO_UPRIGHT[self._orientation])
            if image.mode.startswith("I"):  # 16 bits per pixel, which convert() would clip to white
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            return image.convert("RGB")
        except Exception as error:
            raise BadSampleError(UNDECODABLE, f"cannot be decoded ({_brief(error)})") from None


@dataclass(frozen=True)
class Crops:
    """Makes crops of encoded images: a random one for each view, or the central square if there are no views."""

    size: int
    """Side of the crops, pixels."""
    views: tuple[View, ...] = ()
    """The V views that crops are drawn for."""
    seed: int = 0
    """Seed of the run."""
    crop_fraction: float = 1.0
    """Without views, side of the central square as a share of the image's shorter side."""

    def decode(self, content: bytes | Image.Image, number: int) -> np.ndarray:
        """Return the crops of an image, [V, 3, size, size] uint8, with V = 1 if there are no views.

        Args:
            content: The encoded image, or the upright image itself.
            number: The sample's number in the stage, which keys the random crops.

        Raises BadSampleError.
        """
        picture = Picture(content)
        if not self.views:
            return picture.crop([center_box(picture.size, self.crop_fraction)], self.size)
        boxes = [random_box(picture.size, view, self.seed, number, stream) for stream, view in enumerate(self.views)]
        return picture.crop(boxes, self.size, [view.interpolation for view in self.views])

    def blank(self) -> np.ndarray:
        """Return black crops, which take the place of a bad image where it is masked, [V, 3, size, size] uint8."""
        return np.zeros((max(len(self.views), 1), 3, self.size, self.size), np.uint8)


def random_box(size: tuple[int, int], view: View, seed: int, number: int, stream: int) -> Box:
    """Return a random part of an image (Szegedy et al., 2015) in whole pixels, as torchvision's RandomResizedCrop does.

    The part is a function of (seed, number, stream).

    Args:
        size: Width and height of the upright image, pixels.
        view: Ranges of the part's area and of its width over height.
        seed: Seed of the run.
        number: The sample's number in the stage.
        stream: Which of the sample's views this is.
    """
    # The stream goes into the counter's highest word: in the lowest, two streams would be shifted copies of each other.
    draw = np.random.Generator(np.random.Philox(key=[seed, number], counter=stream << 192))
    width, height = size
    low, high = math.log(view.crop_ratio[0]), math.log(view.crop_ratio[1])
    for _ in range(10):
        area = width * height * draw.uniform(*view.crop_scale)
        ratio = math.exp(draw.uniform(low, high))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top, left = int(draw.integers(height - h + 1)), int(draw.integers(width - w + 1))
            return left, top, left + w, top + h
    return _largest_box(size, view.crop_ratio)


def _largest_box(size: tuple[int, int], ratios: tuple[float, float]) -> Box:
    """Return the largest central part of an image whose width over height is in a range, in whole pixels."""
    width, height = size
    w, h = min(width, round(height * ratios[1])), min(height, round(width / ratios[0]))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def center_box(size: tuple[int, int], fraction: float) -> Box:
    """Return the central square of an image of width and height `size`; its side is `fraction` of the shorter side."""
    width, height = size
    side = min(width, height) * fraction
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation. An image whose metadata cannot be read counts as upright, not as bad."""
    try:
        return image.getexif().get(_ORIENTATION, 1) if "exif" in image.info else 1
    except Exception:  # the metadata parser, too, raises exceptions of any type
        return 1


def _brief(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return f"none of {', '.join(FORMATS)}"
    return one_line(error, 120)
