"""Writing a safetensors file piece by piece: the library's own writer first makes a second copy of everything."""

import json
import os
import struct
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from io import FileIO
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from sparse_mlp_ds import files

BLOCK = 16 << 20
"""Bytes written or hashed at once."""
_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64", torch.int64: "I64"}


def write(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, int | str]:
    """Write flat CPU tensors into a safetensors file and wait until it is on disk.

    Returns the manifest's entry of the file: its size (`bytes`) and `sha256`. Raises OSError.
    """
    header, end = {}, 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data starts at a multiple of 8
    head = struct.pack("<Q", len(text)) + text
    with path.open("wb", buffering=0) as file, ThreadPoolExecutor(1) as hashing:
        # Hashing takes as long as the disk does, so neither waits for the other.
        digest = hashing.submit(files.sha256_of, _blocks(head, tensors))
        for block in _blocks(head, tensors):
            _write_all(file, block)
        os.fsync(file.fileno())
        size = file.tell()
    return {"bytes": size, "sha256": digest.result()}


def _blocks(head: bytes, tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """Yield the file's content in blocks: small tensors together, large ones in parts of their own memory."""
    small = bytearray(head)
    for tensor in tensors.values():
        content = memoryview(cast(bytes, tensor.contiguous().view(torch.uint8).numpy()) if tensor.numel() else b"")
        if len(content) < BLOCK // 16:
            small += content
            if len(small) < BLOCK:
                continue
            content = content[:0]
        yield bytes(small)
        small = bytearray()
        for start in range(0, len(content), BLOCK):
            yield content[start : start + BLOCK]
    yield bytes(small)


def _write_all(file: FileIO, block: bytes | memoryview) -> None:
    done = 0
    while done < len(block):
        done += file.write(block[done:])
