"""What version 0.1.0 wrote is still read, bit for bit."""

import hashlib
import json
import struct

import torch

from sparse_mlp_ds.checkpoints.manifest import open_checkpoint
from sparse_mlp_ds.checkpoints.reader import Reader
from sparse_mlp_ds.hub import SparseVisionModel
from tests.helpers import version_0_1_0 as old


def raw(path):
    """Return every tensor of a safetensors file as bytes, read by its published layout alone: not by our reader."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    header.pop("__metadata__", None)
    start = 8 + length
    return {name: content[start + a : start + b] for name, entry in header.items() for a, b in [entry["data_offsets"]]}


def test_a_checkpoint_is_read_bit_for_bit():
    fragments = {}
    for path in sorted(old.CHECKPOINT.glob("*.safetensors")):
        for key, content in raw(path).items():
            name, _, start = key.rpartition("@")
            fragments.setdefault(name, {})[int(start)] = content
    reader = Reader(open_checkpoint(old.CHECKPOINT))
    assert len(fragments) > 200 and reader.shapes.keys() == fragments.keys()
    for name, parts in fragments.items():
        whole = b"".join(parts[start] for start in sorted(parts))
        values = reader(name, 0, len(whole) // 4)
        assert hashlib.sha256(values.numpy().tobytes()).digest() == hashlib.sha256(whole).digest(), name


def test_an_export_is_read_bit_for_bit():
    model = SparseVisionModel.from_pretrained(old.EXPORT)
    (file,) = old.EXPORT.glob("*.safetensors")
    tensors = raw(file)
    state = model.state_dict()
    assert len(tensors) > 50
    for name, content in tensors.items():
        (ours,) = [value for key, value in state.items() if key == name or key.endswith(f".{name}")]
        assert ours.numpy().tobytes() == content, name
    assert model(torch.zeros(2, 3, 16, 16)).shape == (2, 10)
