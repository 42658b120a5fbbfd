"""RUN/STAGE.hits.json: which held-out images a finished stage classifies correctly, one bit for each image.

Two models that were measured on the same images can then be compared image by image.
"""

import base64
import binascii
from typing import Any

import numpy as np

LEFT_OUT, WRONG, RIGHT = 0, 1, 2
"""What is said of an image: it could not be decoded and was not counted, it was classified wrongly, or correctly."""


def file_name(stage: str) -> str:
    """Return the name of a stage's file in the run folder."""
    return f"{stage}.hits.json"


def packed(marks: np.ndarray, data: str) -> dict[str, Any]:
    """Return the content of the file.

    Args:
        marks: [images], LEFT_OUT, WRONG or RIGHT for each held-out image, in the order of the index.
        data: Digest of the held-out images and their labels.
    """
    bits = np.packbits(marks == RIGHT).tobytes()
    left_out = np.flatnonzero(marks == LEFT_OUT).tolist()
    return {"data": data, "images": len(marks), "right": base64.b64encode(bits).decode(), "left_out": left_out}


def unpacked(record: dict[str, Any]) -> np.ndarray:
    """Return the marks [images] from the content of the file. Raises ValueError if it is damaged."""
    try:
        images, left_out = int(record["images"]), [int(number) for number in record["left_out"]]
        bits = np.frombuffer(base64.b64decode(record["right"], validate=True), np.uint8)
        if len(bits) != -(-images // 8) or any(not 0 <= number < images for number in left_out):
            raise ValueError(f"not {images} images")
    except (KeyError, TypeError, binascii.Error) as error:
        raise ValueError(f"hits of images are damaged ({error})") from None
    marks = WRONG + np.unpackbits(bits, count=images)
    marks[left_out] = LEFT_OUT
    return marks
