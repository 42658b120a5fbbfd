"""The file that checkpoints are written in is safetensors, whoever reads it."""

import hashlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from sparse_mlp_ds.checkpoints import tensor_file

TYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64])


@settings(deadline=None)
@given(st.lists(st.tuples(TYPES, st.integers(0, 3000)), max_size=12), st.integers(64, 5000))
def test_the_library_reads_what_is_written(tmp_path_factory, parts, block):
    path = tmp_path_factory.mktemp("file") / "x.safetensors"
    tensors = {f"n{i}@0": torch.arange(size).to(dtype) for i, (dtype, size) in enumerate(parts)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensor_file, "BLOCK", block)
        entry = tensor_file.write(path, tensors)
    content = path.read_bytes()
    assert entry == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    found = load_file(path)
    assert found.keys() == tensors.keys()
    assert all(
        found[name].dtype == tensor.dtype and torch.equal(found[name], tensor) for name, tensor in tensors.items()
    )


def test_a_part_of_a_larger_tensor_is_written_alone(tmp_path):
    whole = torch.arange(100.0)
    entry = tensor_file.write(tmp_path / "x.safetensors", {"part@10": whole[10:20], "every second@0": whole[::2]})
    assert entry["bytes"] < 60 * 4 + 300
    found = load_file(tmp_path / "x.safetensors")
    assert torch.equal(found["part@10"], whole[10:20]) and torch.equal(found["every second@0"], whole[::2])


def test_the_disk_gets_no_second_copy_in_memory(tmp_path):
    """100 MB are written through blocks of their own memory: what Python allocates besides stays far below."""
    import tracemalloc

    tensors = {f"t@{i}": torch.zeros(1 << 20) for i in range(25)}
    tracemalloc.start()
    tensor_file.write(tmp_path / "x.safetensors", tensors)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 8 << 20
