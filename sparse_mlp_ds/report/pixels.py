"""Values as small images inside the page, where thousands of SVG elements would make it slow."""

import base64
import io

import numpy as np
from PIL import Image

from sparse_mlp_ds.report.markup import Markup, element

COLOUR = (58, 122, 230)
"""Colour of the largest value; smaller ones let more of the page shine through, light or dark."""


def data_uri(content: bytes, kind: str) -> str:
    """Return a file's content as an address that holds it. kind: its media type, such as image/png."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def heat(values: np.ndarray, label: str, height: str | None = None) -> Markup:
    """Return an image of values, one pixel each, enlarged by the browser.

    Args:
        values: [rows, columns] from 0 to 1.
        label: What is drawn, for readers who do not see it.
        height: Height as CSS; None keeps pixels square.
    """
    alpha = (255 * np.nan_to_num(values).clip(0, 1)).round().astype(np.uint8)
    pixels = np.empty((*alpha.shape, 4), np.uint8)
    pixels[..., :3], pixels[..., 3] = COLOUR, alpha
    buffer = io.BytesIO()
    Image.fromarray(pixels, "RGBA").save(buffer, "png", optimize=True)
    style = f"height:{height}" if height else None
    return element("img", src=data_uri(buffer.getvalue(), "image/png"), alt=label, class_="heat", style=style)
