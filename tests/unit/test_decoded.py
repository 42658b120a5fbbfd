"""Decoded images that stay in memory: the same crops, fewer decodings, and never more memory than was allowed."""

import io

import numpy as np
import pytest
from PIL import Image

from sparse_mlp_ds.data.bad_samples import BadSampleError
from sparse_mlp_ds.data.config import View
from sparse_mlp_ds.data.decode import Crops
from sparse_mlp_ds.data.decoded import DecodedImages

EXIF_ORIENTATION = 0x0112


def encoded(side: int, orientation: int = 1) -> bytes:
    pixels = np.random.default_rng(side).integers(0, 256, (side, side, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    Image.fromarray(pixels).save(file := io.BytesIO(), "JPEG", exif=exif)
    return file.getvalue()


class Store:
    """Encoded images by number, and how often they were read."""

    def __init__(self, *images: bytes):
        self.images, self.reads = images, 0

    def read(self, sample: int) -> bytes:
        self.reads += 1
        return self.images[sample]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("views", [(), (View(crop_scale=(0.2, 1.0)),)], ids=["central square", "random crop"])
def test_crops_of_a_kept_image_are_those_of_the_encoded_one(orientation, views):
    store, crops = Store(encoded(40, orientation)), Crops(32, views)
    kept = DecodedImages(1, 32)
    for number in range(4):
        expected = crops.decode(store.images[0], number)
        np.testing.assert_array_equal(crops.decode(kept.image(0, store.read), number), expected)
    assert store.reads == 1


@pytest.mark.parametrize(
    ("gigabytes", "reads"),
    [(0, 6), (4 * 32 * 32 / 1e9, 4), (2 * 4 * 32 * 32 / 1e9, 2)],
    ids=["nothing", "room for one", "room for both"],
)
def test_as_many_are_kept_as_there_is_room_for(gigabytes, reads):
    store, kept = Store(encoded(32), encoded(32)), DecodedImages(gigabytes, 32)
    for sample in (0, 1) * 3:
        kept.image(sample, store.read)
    assert store.reads == reads


def test_images_that_may_be_decoded_at_a_part_of_their_size_are_not_kept():
    store, kept = Store(encoded(64)), DecodedImages(1, 32)
    assert [kept.image(0, store.read) for _ in range(3)] == [store.images[0]] * 3


def test_a_bad_image_is_bad_every_time():
    store, kept = Store(b"no image"), DecodedImages(1, 32)
    for _ in range(2):
        with pytest.raises(BadSampleError, match="cannot be decoded"):
            kept.image(0, store.read)
