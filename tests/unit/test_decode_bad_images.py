"""Bytes that are no usable image: pixels of the right shape or a BadSampleError of one line, nothing else."""

import io
import struct
import subprocess
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from sparse_mlp_ds.data import decode
from sparse_mlp_ds.data.bad_samples import TOO_LARGE, UNDECODABLE, BadSampleError
from sparse_mlp_ds.data.decode import FORMATS, MAX_PIXELS, Picture, center_box
from tests.helpers.pictures import encode, noise, smooth, turned

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # about metadata
SIDE = 8


def refusal(content):
    """The BadSampleError that these bytes meet, or None if they give the pixels they should."""
    try:
        picture = Picture(content)
        cut = picture.crop([center_box(picture.size, 1.0), (0, 0, *picture.size)], SIDE)
    except BadSampleError as error:
        assert len(str(error).splitlines()) == 1 and len(str(error)) < 200
        return error
    assert (cut.shape, cut.dtype) == ((2, 3, SIDE, SIDE), np.uint8)
    return None


def chunk(name, content):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png_of(width, height):
    """A well-formed PNG that claims a size and holds almost nothing."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = (b"IHDR", header), (b"IDAT", zlib.compress(bytes(10))), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


JPEG, PNG = encode(smooth(), "jpeg"), encode(noise())
BROKEN = {
    "nothing": b"",
    "text": b"This is no image at all.\n" * 20,
    "zeros": bytes(1000),
    "jpeg cut in its header": JPEG[:100],
    "jpeg cut in its pixels": JPEG[: len(JPEG) * 2 // 3],
    "progressive jpeg cut": (lambda c: c[: len(c) // 2])(encode(smooth(), "jpeg", progressive=True)),
    "jpeg's first bytes alone": JPEG[:3],
    "png cut in its pixels": PNG[: len(PNG) // 2],
    "png's header alone": PNG[:33],
    "png without its pixels": png_of(40, 30),
    "png with a wrong checksum": PNG[:60] + bytes(40) + PNG[100:],
    "png of no pixels": png_of(0, 30),
    "gif cut": encode(noise(), "gif")[:200],
    "webp cut": encode(noise(), "webp")[:200],
    "tiff cut": encode(noise(), "tiff")[:60],
    "a format that is not opened": encode(noise(), "ppm"),
    "a tar": b"0.cls".ljust(257, b"\0") + b"ustar  \0" + bytes(1000),
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN.keys())
def test_broken_bytes_are_undecodable(content):
    error = refusal(content)
    assert error is not None and error.reason == UNDECODABLE
    assert str(error).startswith("cannot be decoded (") and len(str(error)) > len("cannot be decoded ()")


def test_what_is_no_image_is_told_what_could_be():
    assert str(refusal(b"text")) == f"cannot be decoded (none of {', '.join(FORMATS)})"


def test_half_a_jpeg_is_also_refused_where_it_would_be_decoded_smaller():
    content = encode(smooth(400, 300), "jpeg")
    assert refusal(content) is None
    assert refusal(content[: len(content) // 2]).reason == UNDECODABLE


@pytest.mark.parametrize("kind", [ValueError, SyntaxError, AssertionError, IndexError, MemoryError, struct.error])
def test_whatever_a_decoder_raises_makes_a_bad_sample(kind, monkeypatch):
    def fail(*args, **options):
        raise kind("a\nb\x1e\u2028c")

    for place in ((ImageFile.ImageFile, "load"), (Image, "open")):
        monkeypatch.setattr(*place, fail)
        error = refusal(JPEG)
        assert error.reason == UNDECODABLE and str(error) == "cannot be decoded (a b c)"


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
DOS_EPS = b"\xc5\xd0\xd3\xc6" + struct.pack("<II", 32, len(POSTSCRIPT)) + bytes(20) + POSTSCRIPT


@pytest.mark.parametrize("content", [POSTSCRIPT, DOS_EPS], ids=["plain", "with a DOS header"])
def test_postscript_never_reaches_an_interpreter(content, monkeypatch):
    called = []
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *args, **options: called.append("Ghostscript"))
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **options: called.append("Popen"))
    assert Image.open(io.BytesIO(content)).format == "EPS"  # what Pillow would make of it
    assert "EPS" not in FORMATS
    error = refusal(content)
    assert error.reason == UNDECODABLE and "none of JPEG" in str(error)
    assert not called


def test_a_claim_of_too_many_pixels_is_refused_before_anything_is_decoded(monkeypatch):
    loaded = []
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: loaded.append(image))
    monkeypatch.setattr(Image.core, "new", lambda *args: loaded.append(args))
    error = refusal(png_of(100_000, 100_000))
    assert error.reason == TOO_LARGE and str(error) == f"has 100000 x 100000 pixels, more than {MAX_PIXELS:,}"
    assert not loaded


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "gif", "bmp", "tiff"])
def test_the_limit_counts_pixels(kind, monkeypatch):
    monkeypatch.setattr(decode, "MAX_PIXELS", 1200)
    assert refusal(encode(noise(40, 30), kind)) is None
    for size in ((41, 30), (40, 31)):
        assert refusal(encode(noise(*size), kind)).reason == TOO_LARGE


def test_the_largest_of_imagenet_are_allowed():
    assert MAX_PIXELS > 33_000_000
    assert Picture(png_of(9000, 10_000)).size == (9000, 10_000)
    assert refusal(png_of(9000, 10_001)).reason == TOO_LARGE


ORIGINALS = {
    "jpeg": encode(smooth(), "jpeg"),
    "progressive jpeg": encode(smooth(), "jpeg", progressive=True),
    "turned jpeg": encode(smooth(), "jpeg", exif=turned(6)),
    "cmyk jpeg": encode(Image.fromarray(smooth()).convert("CMYK"), "jpeg"),
    "png": encode(noise(12, 9)),
    "palette png": encode(Image.fromarray(noise(12, 9, 6)).convert("P"), transparency=3),
    "16-bit png": encode(Image.fromarray(noise(12, 9).astype(np.uint16)[..., 0] * 257)),
    "turned png": encode(noise(12, 9), exif=turned(5)),
    "gif": encode(noise(12, 9), "gif"),
    "tiff": encode(noise(12, 9), "tiff", compression="tiff_lzw"),
    "webp": encode(noise(12, 9), "webp"),
    "bmp": encode(noise(12, 9), "bmp"),
}


def mutated(content, other, seed):
    """Bits flipped, a piece cut out, doubled or overwritten, the end cut off, or two files spliced."""
    draw = np.random.default_rng(seed)
    content, (first, last) = bytearray(content), sorted(draw.integers(0, len(content) + 1, 2))
    kind = seed % 6
    if kind == 0:
        for place in draw.integers(0, len(content), draw.integers(1, 9)):
            content[place] ^= 1 << draw.integers(0, 8)
    elif kind == 1:
        del content[first:last]
    elif kind == 2:
        content[first:first] = content[first:last]
    elif kind == 3:
        content[first : first + 8] = draw.bytes(8)
    elif kind == 4:
        del content[last:]
    else:
        content[first:] = other[draw.integers(0, len(other)) :]
    return bytes(content)


def with_right_checksums(png):
    """A PNG's checksums made to fit again, so that what was changed comes as far as the decoder."""
    made, place = bytearray(png), 8
    while place + 12 <= len(made):
        (length,) = struct.unpack(">I", made[place : place + 4])
        end = place + 8 + length
        if end + 4 > len(made):
            break
        made[end : end + 4] = struct.pack(">I", zlib.crc32(made[place + 4 : end]))
        place = end + 4
    return bytes(made)


@pytest.mark.parametrize("name", ORIGINALS)
def test_mutated_images_give_pixels_or_are_bad_samples(name):
    others = list(ORIGINALS.values())
    assert refusal(ORIGINALS[name]) is None
    reasons = []
    for seed in range(120):
        content = mutated(ORIGINALS[name], others[seed % len(others)], seed)
        for version in (content, with_right_checksums(content)) if name.endswith("png") else (content,):
            error = refusal(version)
            reasons.append(error.reason if error else None)
    assert set(reasons) <= {None, UNDECODABLE, TOO_LARGE}
    assert len(set(reasons)) > 1  # some were hit and some survived


RAMP = np.linspace(0, 1, 40 * 30, dtype=np.float32).reshape(30, 40)
WITHOUT_A_RANGE = {
    "float from 0 to 1": RAMP,
    "float from 0 to 255": RAMP * 255,
    "int32 from 0 to 255": (RAMP * 255).astype(np.int32),
    "int32 from 0 to 65535": (RAMP * 65535).astype(np.int32),
}


@pytest.mark.parametrize("kind", WITHOUT_A_RANGE)
def test_pixels_of_32_bits_are_refused_instead_of_turning_black_or_white(kind):
    error = refusal(encode(Image.fromarray(WITHOUT_A_RANGE[kind]), "tiff"))
    assert error is not None and "32 bits per channel" in str(error) and "8 or 16 bits" in str(error)


def test_16_bits_are_still_read():
    for form in ("tiff", "png"):
        picture = Picture(encode(Image.fromarray((RAMP * 65535).astype(np.uint16)), form))
        pixels = np.asarray(picture.upright())[:, :, 0]
        assert np.abs(pixels.astype(float) - RAMP * 255).max() <= 1.0, form


def test_a_png_with_a_large_colour_profile_is_read():
    profile = chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(2 << 20)))
    assert refusal(PNG[:33] + profile + PNG[33:]) is None
