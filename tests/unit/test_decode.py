"""From bytes to squares of uint8 pixels: every valid oddity decodes right, and crops hold what their box says."""

import io
import struct
import tarfile

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from sparse_mlp_ds.data.config import View
from sparse_mlp_ds.data.decode import Picture, center_box, random_box
from sparse_mlp_ds.data.loader import ShardDataset
from sparse_mlp_ds.data.order import BatchIndices
from sparse_mlp_ds.shards import scan
from tests.helpers.pictures import ORIENTATION, encode, noise, smooth, turned

TO_UPRIGHT = {  # the EXIF standard's eight: where the stored pixels' first row and column lie in the upright image
    1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, -1), 7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}  # fmt: skip


def decoded(content):
    return np.asarray(Picture(content).upright()).astype(int)


# valid oddities


@pytest.mark.parametrize("kind, options", [("png", {}), ("bmp", {}), ("tiff", {}), ("webp", {"lossless": True})])
def test_lossless_colours_come_back_as_they_were(kind, options):
    assert np.array_equal(decoded(encode(noise(), kind, **options)), noise())


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"subsampling": 0}], ids=["plain", "progressive", "444"]
)
def test_jpegs_come_back_nearly_as_they_were(options):
    assert np.abs(decoded(encode(smooth(), "jpeg", quality=95, **options)) - smooth()).mean() < 3


def test_of_several_images_in_a_file_the_first_counts():
    for kind in ("MPO", "GIF", "WEBP", "TIFF"):
        first, second = (Image.new("RGB", (40, 30), (value, value, value)) for value in (50, 200))
        content = encode(first, kind, save_all=True, append_images=[second])
        assert np.abs(decoded(content) - 50).max() <= 2, kind


@pytest.mark.parametrize("kind", ["png", "gif", "tiff", "bmp"])
def test_palettes_become_their_colours(kind):
    few = noise(colours=6)  # 216 colours, which a palette holds exactly
    image = Image.fromarray(few).convert("P", palette=Image.Palette.ADAPTIVE, colors=256)
    assert np.array_equal(np.asarray(image.convert("RGB")), few)
    assert np.array_equal(decoded(encode(image, kind)), few)


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
@pytest.mark.parametrize("transparency", [3, bytes(range(0, 250, 10))], ids=["one colour", "by degrees"])
def test_transparency_of_a_palette_is_dropped(transparency):
    few = noise(colours=6)
    image = Image.fromarray(few).convert("P", palette=Image.Palette.ADAPTIVE, colors=256)
    assert np.array_equal(decoded(encode(image, transparency=transparency)), few)


@pytest.mark.parametrize("kind", ["png", "webp"])
def test_an_alpha_channel_is_dropped_and_not_blended(kind):
    alpha = np.random.default_rng(1).integers(0, 256, (30, 40, 1), np.uint8)
    options = {"lossless": True, "exact": True} if kind == "webp" else {}
    assert np.array_equal(decoded(encode(np.concatenate([noise(), alpha], 2), kind, **options)), noise())


def test_grey_is_repeated_over_the_channels():
    grey, alpha = noise()[..., 0], noise(seed=1)[..., 0]
    wanted = np.repeat(grey[..., None], 3, axis=2)
    assert np.array_equal(decoded(encode(grey)), wanted)
    assert np.array_equal(decoded(encode(Image.fromarray(np.stack([grey, alpha], -1), "LA"))), wanted)
    bits = Image.fromarray(grey > 127)
    assert bits.mode == "1" and np.array_equal(decoded(encode(bits))[..., 1], np.where(grey > 127, 255, 0))
    soft = smooth()[..., 0]
    assert np.abs(decoded(encode(soft, "jpeg", quality=95)) - soft[..., None]).mean() < 2


@pytest.mark.parametrize("kind, order", [("png", "<"), ("tiff", "<"), ("tiff", ">")])
def test_sixteen_bits_are_scaled_and_not_clipped(kind, order):
    values = np.random.default_rng(0).integers(0, 65536, (30, 40)).astype(f"{order}u2")
    image = Image.frombytes("I;16" if order == "<" else "I;16B", (40, 30), values.tobytes())
    result = decoded(encode(image, kind))
    assert np.array_equal(result, np.repeat(values[..., None] // 256, 3, axis=2))
    assert (result == 255).mean() < 0.02


def test_cmyk_becomes_the_light_that_ink_leaves():
    """Pillow stores ink inverted, as Adobe does, and marks it so. 4 levels are what JPEG loses at quality 100."""
    ink = np.dstack([smooth(), smooth()[::-1, :, :1] // 2]).astype(float)
    content = encode(Image.fromarray(ink.astype(np.uint8), "CMYK"), "jpeg", quality=100, subsampling=0)
    assert b"Adobe" in content
    light = (255 - ink[..., :3]) * (255 - ink[..., 3:]) / 255
    assert np.abs(decoded(content) - light).max() <= 4


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "tiff"])
def test_exif_orientations_are_set_upright(kind, orientation):
    stored = smooth()
    lossless = {"jpeg": {"quality": 95}, "webp": {"lossless": True}}.get(kind, {})
    content = encode(stored, kind, exif=turned(orientation), **lossless)
    upright = TO_UPRIGHT[orientation](stored)
    assert Picture(content).size == upright.shape[1::-1]
    assert np.abs(decoded(content) - upright).mean() < (3 if kind == "jpeg" else 1e-9)
    picture = Picture(content)
    cut = picture.crop([(0, 0, 10, 10)], 10)[0].transpose(1, 2, 0)
    assert np.abs(cut - upright[:10, :10].astype(int)).mean() < (3 if kind == "jpeg" else 1e-9)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_odd_metadata_make_no_image_bad():
    def exif(*entries):
        table = b"".join(struct.pack("<HHII", *entry) for entry in entries)
        return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + table + bytes(4)

    sideways, upright = (ORIENTATION, 3, 1, 6), (30, 40)
    for content, size in [
        (exif(sideways, (0x0100, 12, 1, 3)), upright),  # a width that is no integer: cannot be written again
        (exif(sideways, (0x011A, 5, 1, 99999)), upright),  # a resolution behind the end
        (exif((ORIENTATION, 3, 1, 77)), (40, 30)),
        (exif((ORIENTATION, 2, 1, 0x36)), (40, 30)),  # a text
        (b"Exif\0\0II*\0\xff\xff\xff\xff", (40, 30)),
    ]:
        picture = Picture(encode(smooth(), "jpeg", exif=content))
        assert picture.size == size and picture.upright().size == size


def test_content_decides_and_not_a_members_name(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, content in (("0.jpg", encode(noise(8, 8))), ("0.cls", b"1")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    batch = ShardDataset(scan.make_index(tmp_path), 8, 2)[BatchIndices(np.array([0]), np.array([0]))]
    assert np.array_equal(batch.inputs[0, 0].numpy(), noise(8, 8).transpose(2, 0, 1)) and not batch.bad_samples


# cutting


def triangle(pixels, box, side):
    """Bilinear scaling by hand: each pixel is a mean, weighed by a triangle twice as wide as what it stands for."""

    def weights(low, high, size):
        scale = max((high - low) / side, 1)
        middles = low + (np.arange(side) + 0.5) * (high - low) / side
        w = np.clip(1 - np.abs((np.arange(size) + 0.5)[None] - middles[:, None]) / scale, 0, None)
        return w / w.sum(1, keepdims=True)

    rows, columns = weights(box[1], box[3], len(pixels)), weights(box[0], box[2], pixels.shape[1])
    return np.einsum("yh,hwc,xw->cyx", rows, pixels.astype(float), columns)


BOXES = [(0, 0, 40, 30), (3, 5, 35, 21), (24, 14, 40, 30), (0, 0, 7, 7), (1.25, 2.5, 39.75, 27.1), (38, 28, 40, 30)]


def test_boxes_are_scaled_to_squares():
    cut = Picture(encode(noise())).crop(BOXES, 16)
    assert (cut.shape, cut.dtype) == ((6, 3, 16, 16), np.uint8)
    for part, box in zip(cut, BOXES, strict=True):
        # 1: Pillow rounds twice, between the axes and at the end
        assert np.abs(part - triangle(noise(), box, 16)).max() <= 1.01, box
        assert np.array_equal(part, Picture(encode(noise())).crop([box], 16)[0])


def test_a_box_of_the_wanted_size_is_copied():
    cut = Picture(encode(noise())).crop([(5, 7, 17, 19)], 12)
    assert np.array_equal(cut[0], noise()[7:19, 5:17].transpose(2, 0, 1))


def test_a_box_may_pass_the_border_by_a_rounding_error():
    cut = Picture(encode(noise())).crop([(40 - 12, 30 - 12, 40 + 1e-5, 30 + 1e-5)], 12)
    assert np.array_equal(cut[0], noise()[-12:, -12:].transpose(2, 0, 1))


@pytest.mark.parametrize("size", [(1, 1), (1, 30), (30, 1)])
def test_the_smallest_images_can_be_cut(size):
    picture = Picture(encode(np.full((size[1], size[0], 3), 77, np.uint8)))
    boxes = [center_box(size, 1.0), *(random_box(size, View(), 0, number, 0) for number in range(50))]
    assert (picture.crop(boxes, 4) == 77).all()


def test_the_centre_is_a_square_of_the_shorter_side():
    assert center_box((40, 30), 1.0) == (5, 0, 35, 30)
    assert center_box((30, 41), 0.5) == (7.5, 13, 22.5, 28)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("side, factor", [(112, 2), (56, 4), (28, 8)])
def test_a_jpeg_is_decoded_smaller_where_boxes_leave_room(side, factor, orientation):
    """Odd sizes, whose last decoded row and column are partial ones. One pixel aside would differ by 20 levels."""
    content = encode(smooth(501, 375, 4 * factor), "jpeg", quality=95, exif=turned(orientation))
    picture, full = Picture(content), Picture(encode(Picture(content).upright()))
    width, height = full.size
    assert picture.size == full.size
    boxes = [(0, 0, 2 * 112, 2 * 112), (width - 225, height - 240, width, height), (0, 0, width, height)]
    cut, wanted = picture.crop(boxes, side), full.crop(boxes, side)
    assert np.abs(cut.astype(int) - wanted).mean() < 4
    smaller = Picture(content).upright(factor + 0.5).size
    assert smaller == (-(-width // factor), -(-height // factor))


def test_one_small_box_asks_for_all_pixels():
    content, boxes = encode(smooth(300, 200), "jpeg"), [(0, 0, 200, 200), (0, 0, 31, 50)]
    full = Picture(encode(Picture(content).upright()))
    assert np.array_equal(Picture(content).crop(boxes, 16), full.crop(boxes, 16))
    assert not np.array_equal(Picture(content).crop(boxes[:1], 16), full.crop(boxes[:1], 16))


def test_only_jpegs_can_be_decoded_smaller():
    assert Picture(encode(noise())).upright(8).size == (40, 30)
    assert Picture(encode(noise(3, 3), "jpeg")).upright(1.9).size == (3, 3)


# random boxes


def boxes(size=(256, 256), view=View(), count=2000, **other):
    """[count, 4]; tests/references has torchvision's boxes for the same draws."""
    return np.array([random_box(size, view, **({"seed": 1, "number": n, "stream": 0} | other)) for n in range(count)])


def test_a_box_is_a_function_of_seed_number_and_stream():
    first = random_box((50, 40), View(), seed=1, number=2, stream=0)
    assert first == random_box((50, 40), View(), seed=1, number=2, stream=0)
    others = [random_box((50, 40), View(), *place) for place in ((2, 2, 0), (1, 3, 0), (1, 2, 1), (2, 1, 0), (0, 2, 1))]
    assert len({first, *others}) == 6


def test_boxes_of_neighbours_and_of_two_views_are_independent():
    """Under independence a correlation of 2000 pairs has a standard deviation of 0.022."""
    one, other = boxes(), boxes(stream=1)
    assert not (one == other).all(axis=1).any()
    for column in range(4):
        assert abs(np.corrcoef(one[:, column], other[:, column])[0, 1]) < 0.09
        assert abs(np.corrcoef(one[1:, column], one[:-1, column])[0, 1]) < 0.09


@pytest.mark.parametrize("size", [(256, 256), (500, 375), (33, 97), (3, 2)])
def test_boxes_lie_inside_the_image_and_keep_their_ranges(size):
    view = View(crop_scale=(0.1, 0.4), crop_ratio=(0.5, 1.5))
    found = boxes(size, view, 500)
    left, top, right, bottom = found.T
    assert found.dtype == int and (right > left).all() and (bottom > top).all()
    assert (left >= 0).all() and (top >= 0).all() and (right <= size[0]).all() and (bottom <= size[1]).all()
    w, h, pixels = right - left, bottom - top, size[0] * size[1]  # each side rounded by half a pixel at most
    assert ((w + 0.5) * (h + 0.5) > 0.1 * pixels).all() and ((w - 0.5) * (h - 0.5) < 0.4 * pixels).all()
    assert ((w + 0.5) / (h - 0.5) > 0.5).all() and ((w - 0.5) / (h + 0.5) < 1.5).all()


def test_a_second_try_repeats_no_other_views_first():
    """Where half of the shapes do not fit: a stream that is another one shifted would come to the same boxes."""
    size = (90, 40)
    one, other = boxes(size), boxes(size, stream=1)
    same = (one == other).all(axis=1)
    assert same.mean() < 0.02 and (one[same] == (18, 0, 71, 40)).all()  # where ten tries were in vain


def test_area_shape_and_place_have_the_promised_distributions():
    """All of these shapes fit, so that none is drawn again; whole pixels are spread by half a pixel.

    A true null falls below 0.001 once in a thousand.
    """
    left, top, right, bottom = boxes(view=View(crop_scale=(0.2, 0.5), crop_ratio=(0.8, 1.25))).T
    w, h = right - left, bottom - top
    half = np.random.default_rng(0).uniform(-0.5, 0.5, (4, len(w)))
    across, down = w + half[0], h + half[1]
    for value, low, high in [
        (across * down / 256**2, 0.2, 0.5),
        (np.log(across / down), np.log(0.8), np.log(1.25)),
        ((left + 0.5 + half[2]) / (257 - w), 0, 1),
        ((top + 0.5 + half[3]) / (257 - h), 0, 1),
    ]:
        assert stats.kstest(value, stats.uniform(low, high - low).cdf).pvalue > 0.001


def test_a_shape_that_never_fits_becomes_the_largest_in_the_middle_that_keeps_the_range():
    assert random_box((200, 10), View(crop_scale=(1, 1)), 0, 0, 0) == (93, 0, 106, 10)
    assert random_box((10, 200), View(crop_scale=(1, 1)), 0, 0, 0) == (0, 93, 10, 106)
    assert random_box((40, 30), View(crop_ratio=(50, 60)), 0, 0, 0) == (0, 14, 40, 15)
