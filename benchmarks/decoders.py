"""What a core can do with each JPEG decoder: random crops of 224 pixels out of a tar of images, as in training.

`python -m benchmarks.decoders TAR` decodes with every decoder that is installed, one after the other in `--rounds`
rounds, at a reduced size where the crop allows it and the decoder can, and scales with Pillow. It prints images per
processor second, which neighbours disturb less than time on the clock, and the mean difference from Pillow's pixels.
`pip install simplejpeg opencv-python-headless imagecodecs PyTurboJPEG` installs what it knows.
"""

import argparse
import io
import math
import statistics
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from sparse_mlp_ds.data.config import View
from sparse_mlp_ds.data.decode import Box, Picture, random_box

SIDE = 224
OURS = "Pillow, as in training"
Decoder = Callable[[bytes, int], np.ndarray]
"""From a JPEG, and by how much it may be reduced (1, 2, 4, 8), to pixels [H, W, 3]."""


def main() -> None:
    """Time all decoders and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tar", type=Path, help="tar of JPEGs")
    parser.add_argument("--rounds", type=int, default=6, help="how often each decoder runs (6)")
    args = parser.parse_args()
    with tarfile.open(args.tar) as tar:
        files = [tar.extractfile(member).read() for member in tar if member.name.endswith((".jpg", ".jpeg", ".JPEG"))]
    boxes = [random_box(Picture(content).size, View(), 0, number, 0) for number, content in enumerate(files)]
    crops: dict[str, Callable[[bytes, Box], np.ndarray]] = {OURS: _ours}
    crops |= {name: lambda content, box, decode=decode: _crop(content, box, decode) for name, decode in _decoders()}
    seconds: dict[str, list[float]] = {name: [] for name in crops}
    pixels = {}
    for _ in range(args.rounds):
        for name, crop in crops.items():
            started = time.process_time()
            pixels[name] = [crop(content, box) for content, box in zip(files, boxes, strict=True)]
            seconds[name].append((time.process_time() - started) / len(files))
    print(f"{len(files)} files of {sum(map(len, files)) / len(files) / 1000:.0f} kB; images per second of a core")
    for name, taken in seconds.items():
        off = np.mean(
            [np.abs(a - b).mean() for a, b in zip(pixels[name], pixels["Pillow, as in training"], strict=True)]
        )
        rate = f"{1 / statistics.median(taken):6.0f} ({1 / max(taken):.0f} .. {1 / min(taken):.0f})"
        print(f"{name:<24} {rate}, {off:.3f} levels from Pillow")


def _ours(content: bytes, box: Box) -> np.ndarray:
    return Picture(content).crop([box], SIDE)[0].transpose(1, 2, 0).astype(np.float32)


def _crop(content: bytes, box: Box, decode: Decoder) -> np.ndarray:
    largest = min(box[2] - box[0], box[3] - box[1]) / SIDE
    width = Image.open(io.BytesIO(content)).width
    image = Image.fromarray(decode(content, 2 ** min(max(int(math.log2(largest)), 0), 3) if largest > 1 else 1))
    factor = width / image.width
    scaled = [min(edge / factor, side) for edge, side in zip(box, image.size * 2, strict=True)]
    return np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=scaled), np.float32)


def _decoders() -> Iterator[tuple[str, Decoder]]:
    """Yield the decoders that are installed, by name; say why others are not tried."""
    for name, make in {"simplejpeg": _simplejpeg, "OpenCV": _opencv, "imagecodecs": _imagecodecs,
                       "PyTurboJPEG": _turbojpeg}.items():  # fmt: skip
        try:
            yield name, make()
        except (ImportError, RuntimeError) as error:
            print(f"{name} is left out: {str(error).splitlines()[0]}")


def _simplejpeg() -> Decoder:
    import simplejpeg

    def decode(content: bytes, factor: int) -> np.ndarray:
        height, width, *_ = simplejpeg.decode_jpeg_header(content)
        least = {"min_height": math.ceil(height / factor), "min_width": math.ceil(width / factor)}
        return simplejpeg.decode_jpeg(content, "RGB", **least)

    return decode


def _opencv() -> Decoder:
    import cv2

    cv2.setNumThreads(1)
    reduced = {factor: getattr(cv2, f"IMREAD_REDUCED_COLOR_{factor}") for factor in (2, 4, 8)} | {1: cv2.IMREAD_COLOR}

    def decode(content: bytes, factor: int) -> np.ndarray:
        flags = reduced[factor] | cv2.IMREAD_IGNORE_ORIENTATION
        return cv2.cvtColor(cv2.imdecode(np.frombuffer(content, np.uint8), flags), cv2.COLOR_BGR2RGB)

    return decode


def _imagecodecs() -> Decoder:
    import imagecodecs

    return lambda content, factor: imagecodecs.jpeg8_decode(content, outcolorspace="RGB")


def _turbojpeg() -> Decoder:
    from turbojpeg import TJPF_RGB, TurboJPEG

    turbo = TurboJPEG()
    return lambda content, factor: turbo.decode(content, pixel_format=TJPF_RGB, scaling_factor=(1, factor))


if __name__ == "__main__":
    main()
