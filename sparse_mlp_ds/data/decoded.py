"""Decoded images that stay in memory, for data sets of small images, whose decoding takes longer than all else."""

from collections.abc import Callable

from PIL import Image

from sparse_mlp_ds.data.decode import Picture

_BYTES = 4
"""Bytes that Pillow takes for a pixel of an RGB image."""


class DecodedImages:
    """The first images that a process decodes, as many as fit; they stay until it ends, and crops of them are the same.

    An image whose shorter side is twice that of the crops or more is not kept: a JPEG of that size may be decoded at a
    part of its size, depending on the crop.
    """

    def __init__(self, gigabytes: float, size: int):
        """Begin without images.

        Args:
            gigabytes: What the images may take, in units of 10^9 bytes; 0 keeps none.
            size: Side of the crops, pixels.
        """
        self._left = gigabytes * 1e9
        self._size = size
        self._images: dict[int, Image.Image] = {}

    def image(self, sample: int, read: Callable[[int], bytes]) -> bytes | Image.Image:
        """Return an image that is kept, or the encoded one as `read` returns it.

        sample: Its number in the index. Raises BadSampleError.
        """
        kept = self._images.get(sample)
        if kept is not None:
            return kept
        content = read(sample)
        if self._left <= 0:
            return content
        picture = Picture(content)
        width, height = picture.size
        needed = width * height * _BYTES
        if min(width, height) >= 2 * self._size or needed > self._left:
            return content
        self._left -= needed
        self._images[sample] = upright = picture.upright()
        upright.info.clear()  # it would be turned again as its EXIF orientation says
        return upright
