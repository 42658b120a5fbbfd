"""Weights from files: three layouts in, the same logits out; other patch grids; what is refused, and how."""

import io
import os
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.models import registry
from sparse_mlp_ds.models.spec import MixerSpec, MoESpec
from sparse_mlp_ds.weights import formats, resize
from sparse_mlp_ds.weights.load import load_into

DENSE = MixerSpec(
    family="mixer", image_size=16, patch_size=4, width=12, token_hidden=10, channel_hidden=20, dense_blocks=3
)
SPARSE = DENSE.model_copy(
    update={
        "family": "sparse_mlp",
        "dense_blocks": 2,
        "sparse_blocks": 1,
        "sparse_tokens": 32,
        "sparse_width": 6,
        "moe_s": MoESpec(experts=3, hidden=14),
        "moe_c": MoESpec(experts=2, top_k=2, hidden=8),
    }
)


def make(spec, seed=0, classes=5):
    """A model all of whose tensors are random, norms, biases and head too."""
    model = registry.build(spec, classes)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def logits(model, size=16):
    images = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(images)[0]


def as_timm(tensors):
    return {name.replace("patch_embed.", "stem."): tensor for name, tensor in tensors.items()}


def as_google(tensors):
    """Flax's names and axes, written independently of the translation under test."""
    arrays = {}
    for name, tensor in tensors.items():
        module, leaf = name.rsplit(".", 1)
        flax_leaf = "bias" if leaf == "bias" else "scale" if "norm" in module else "kernel"
        array = tensor.numpy()
        if flax_leaf == "kernel":
            array = np.einsum("oihw->hwio", array) if array.ndim == 4 else np.einsum("oi->io", array)
        parts = module.split(".")
        if parts[0] == "blocks":
            inner = {
                "norm1": "LayerNorm_0",
                "norm2": "LayerNorm_1",
                "mlp_tokens.fc1": "token_mixing/Dense_0",
                "mlp_tokens.fc2": "token_mixing/Dense_1",
                "mlp_channels.fc1": "channel_mixing/Dense_0",
                "mlp_channels.fc2": "channel_mixing/Dense_1",
            }[".".join(parts[2:])]
            flax = f"MixerBlock_{parts[1]}/{inner}"
        else:
            flax = {"patch_embed.proj": "stem", "norm": "pre_head_layer_norm", "head": "head"}[module]
        arrays[f"{flax}/{flax_leaf}"] = array
    return arrays


def write(folder: Path, layout, tensors) -> Path:
    path = folder / f"{layout}.{'npz' if layout == 'google' else 'safetensors'}"
    if layout == "google":
        np.savez(path, **as_google(tensors))
    elif layout == "timm":
        save_file(as_timm(tensors), path)
    elif layout == "wrapped":
        extra = {"projector.0.weight": torch.ones(2, 2)}
        save_file({f"backbone.{name}": tensor for name, tensor in tensors.items()} | extra, path)
    else:
        save_file(tensors, path)
    return path


def refused(*parts, call, path) -> str:
    """The one line of the UserError that `call` raises; it names the file and all of `parts`."""
    with pytest.raises(UserError) as caught:
        call()
    line = str(caught.value)
    assert "\n" not in line and line.isprintable(), repr(line)
    assert all(part in line for part in (str(path), *parts)), line
    return line


@pytest.mark.parametrize("layout", ["own", "wrapped", "timm", "google"])
def test_every_layout_gives_back_the_logits(tmp_path, layout):
    written, model = make(DENSE), make(DENSE, seed=1)
    coverage = load_into(model, DENSE, write(tmp_path, layout, weights(written)))
    assert torch.equal(logits(model), logits(written))
    assert set(coverage.loaded) == set(weights(model))
    assert (coverage.fresh, coverage.resized, coverage.exact) == ((), (), True)
    assert coverage.skipped == (("projector.0.weight",) if layout == "wrapped" else ())


def test_a_sparse_model_gives_back_its_logits(tmp_path):
    written, model = make(SPARSE), make(SPARSE, seed=1)
    assert load_into(model, SPARSE, write(tmp_path, "own", weights(written))).exact
    assert torch.equal(logits(model), logits(written))


def test_half_and_double_precision_become_float32(tmp_path):
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        tensors = {name: tensor.to(dtype) for name, tensor in weights(make(DENSE)).items()}
        model = make(DENSE, seed=1)
        load_into(model, DENSE, write(tmp_path, "timm", tensors))
        assert all(torch.equal(value, tensors[name].float()) for name, value in weights(model).items())


@pytest.mark.parametrize("classes, head", [(7, True), (0, True), (5, False)])
def test_the_head_stays_fresh_where_it_does_not_fit_or_is_not_wanted(tmp_path, classes, head):
    written, model = make(DENSE), make(DENSE, seed=1, classes=classes)
    before = weights(model)
    coverage = load_into(model, DENSE, write(tmp_path, "own", weights(written)), head=head)
    heads = tuple(name for name in before if name.startswith("head."))
    assert coverage.fresh == heads
    assert set(coverage.skipped) == {"head.weight", "head.bias"}
    assert all(torch.equal(before[name], weights(model)[name]) for name in heads)


def test_the_table_names_modules_and_the_verdict(tmp_path):
    spec = DENSE.model_copy(update={"image_size": 24})
    text = load_into(make(spec, classes=7), spec, write(tmp_path, "google", weights(make(DENSE)))).table()
    lines = [" ".join(re.sub("[│┃]", " ", line).split()) for line in text.splitlines()]
    assert "resized 9 blocks 0-2: mlp_tokens" in lines
    assert "fresh 2 head" in lines and "skipped 2 head" in lines
    assert "blocks 0-2: mlp_channels, mlp_tokens, norm1, norm2" in lines
    assert "step 0 not as in the file: 9 token-mixing tensors were resized" in lines


@pytest.mark.parametrize(
    ("layout", "name", "parts"),
    [
        ("timm", "blocks.1.mlp_tokens.fc1.weight", ["'blocks.1.mlp_tokens.fc1.weight' is missing", "rename"]),
        ("timm", "stem.proj.weight", ["'patch_embed.proj.weight' is missing", "rename 'stem.proj.weightx'"]),
        (
            "google",
            "MixerBlock_2/LayerNorm_1/scale",
            ["'blocks.2.norm2.weight' is missing", "rename 'MixerBlock_2/LayerNorm_1/scalex'"],
        ),
        ("own", "norm.bias", ["'norm.bias' is missing", "rename 'norm.biasx'"]),
    ],
)
def test_a_renamed_tensor_is_named_and_nothing_changes(tmp_path, layout, name, parts):
    tensors = weights(make(DENSE))
    if layout == "google":
        path, arrays = tmp_path / "a.npz", as_google(tensors)
        arrays[f"{name}x"] = arrays.pop(name)
        np.savez(path, **arrays)
    else:
        path, tensors = tmp_path / "a.safetensors", as_timm(tensors) if layout == "timm" else tensors
        tensors[f"{name}x"] = tensors.pop(name)
        save_file(tensors, path)
    model = make(DENSE, seed=1)
    before = weights(model)
    refused(*parts, call=lambda: load_into(model, DENSE, path), path=path)
    assert all(torch.equal(before[name], value) for name, value in weights(model).items())


@pytest.mark.parametrize(
    ("update", "parts"),
    [
        ({"dense_blocks": 4}, ["'blocks.3.norm1.weight' is missing", "give the model that wrote the file"]),
        ({"dense_blocks": 2}, ["'blocks.2.", "has no place in the model"]),
        ({"token_hidden": 9}, ["'blocks.0.mlp_tokens.fc1.weight'", "[10, 16]", "[9, 16]", "set model.token_hidden"]),
        ({"channel_hidden": 9}, ["'blocks.0.mlp_channels.fc1.weight'", "set model.channel_hidden"]),
        ({"width": 9}, ["'stem.proj.weight' is of shape [12, 3, 4, 4]", "set model.width and model.patch_size"]),
        ({"patch_size": 8}, ["'stem.proj.weight' is of shape [12, 3, 4, 4]", "[12, 3, 8, 8]"]),
    ],
)
def test_another_model_is_refused(tmp_path, update, parts):
    path = write(tmp_path, "timm", weights(make(DENSE)))
    spec = DENSE.model_copy(update=update)
    refused(*parts, call=lambda: load_into(make(spec), spec, path), path=path)


def test_a_dense_file_for_a_sparse_model_points_to_upcycling(tmp_path):
    path = write(tmp_path, "own", weights(make(DENSE)))
    refused("blocks.2 is dense in the file", "upcycling", call=lambda: load_into(make(SPARSE), SPARSE, path), path=path)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".PTH", ".ckpt"])
def test_pickles_are_refused_with_the_way_to_convert_them(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    torch.save(weights(make(DENSE)), path)
    refused("pickles", "weights_only=True", "save_file", call=lambda: formats.read(path), path=path)


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("opened",)


def test_a_pickle_inside_an_npz_is_not_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("a.npz", **{"stem/kernel": np.array([Harmful()], dtype=object)})
    refused("cannot be read as npz", "allow_pickle=False", call=lambda: formats.read("a.npz"), path="a.npz")
    for name in ("b.npz", "b.safetensors"):
        np.save("b.npy", np.array([Harmful()], dtype=object))
        os.replace("b.npy", name)
        refused("cannot be read", call=lambda: formats.read(name), path=name)  # noqa: B023 - called at once
    assert not Path("opened").exists()


def test_what_is_not_a_file_of_weights_is_refused(tmp_path):
    good = write(tmp_path, "own", weights(make(DENSE)))
    (tmp_path / "folder.npz").mkdir()
    (tmp_path / "empty.safetensors").touch()
    (tmp_path / "half.safetensors").write_bytes(good.read_bytes()[:-100])
    np.savez(tmp_path / "whole.npz", x=np.ones(3))
    (tmp_path / "half.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:-100])
    os.symlink(tmp_path / "nowhere", tmp_path / "link.npz")
    for name, part in {
        "absent.npz": "no such file",
        "link.npz": "no such file",
        "folder.npz": "a folder",
        "empty.safetensors": "cannot be read",
        "half.safetensors": "cannot be read",
        "half.npz": "cannot be read",
        "weights.h5": "not a weights file",
        "noending": "not a weights file",
        "x" * 300 + ".npz": "cannot be read",
    }.items():
        refused(part, call=lambda: formats.read(tmp_path / name), path=tmp_path)  # noqa: B023 - called at once


@pytest.mark.parametrize(
    "name", ["../../stem.proj.weight", "/stem/kernel", "stem//x", "a\\b", "a\x1b[31mb", "a b", "a\n"]
)
def test_tensor_names_that_could_be_paths_or_escapes_are_refused(tmp_path, name):
    path = tmp_path / "a.safetensors"
    save_file({name: torch.ones(2)}, path)
    refused("is no tensor name", call=lambda: formats.read(path), path=path)
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}.npy", array_file(np.ones(2)))
    refused("is no tensor name", call=lambda: formats.read(path), path=path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.npz", "a.safetensors"]


def array_file(array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("arrays", "part"),
    [
        ({"stem/bias": np.array([1.0, np.nan])}, "'stem/bias' holds NaN or infinity"),
        ({"stem/bias": np.array([1e300])}, "'stem/bias' holds NaN or infinity"),
        ({"stem/bias": np.ones((0, 3))}, "'stem/bias' is empty"),
        ({"stem/bias": np.ones(3, int)}, "'stem/bias' is of type int64"),
        ({"bias@0": np.ones(3)}, "--resume"),
        ({"stem/bias": np.ones(3), "stem/bias.npy": np.ones(3)}, "two arrays have the same name"),
    ],
)
def test_values_that_are_no_weights_are_refused(tmp_path, arrays, part):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            archive.writestr(name if name.endswith(".npy") else f"{name}.npy", array_file(array))
    refused(part, call=lambda: formats.read(path), path=path)


def test_an_npz_that_claims_to_be_huge_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "LARGEST", 1 << 10)
    path = tmp_path / "a.npz"
    np.savez_compressed(path, x=np.zeros(4096))
    refused("unpacks to more", call=lambda: formats.read(path), path=path)


def test_tensors_of_an_unknown_layout_are_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"conv1.weight": torch.ones(2)}, path)
    refused("'conv1.weight'", "stem.proj.weight", call=lambda: load_into(make(DENSE), DENSE, path), path=path)
    assert formats.to_own_names(
        {"stem/bias": torch.ones(1), "MixerBlock_0/head/bias": torch.ones(1)}, path
    ).unknown == ("MixerBlock_0/head/bias",)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("before, after", [(4, 6), (14, 10), (3, 9), (9, 3), (5, 5), (1, 4)])
def test_interpolation_is_torchs_and_keeps_constants(mode, before, after):
    matrix = resize.interpolation(before, after, mode)
    torch.testing.assert_close(matrix.sum(dim=1), torch.ones(after**2).double())
    grid = torch.randn(1, 1, before, before, dtype=torch.float64)
    expected = F.interpolate(grid, size=(after, after), mode=mode, antialias=True)
    torch.testing.assert_close((matrix @ grid.flatten()).view_as(expected), expected)
    if before == after:
        torch.testing.assert_close(matrix, torch.eye(before**2).double())


def same(tensors, spec, mode="bilinear"):
    return resize.to_patches(tensors, spec, "f", mode)


@pytest.mark.parametrize("mode", resize.MODES)
def test_the_same_grid_is_the_identity(mode):
    for spec in (DENSE, SPARSE):
        tensors = weights(make(spec))
        assert same(tensors, spec, mode) == (tensors, ())


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [8, 24, 28])
def test_a_constant_image_of_tokens_gives_the_same_response(mode, size):
    spec = SPARSE.model_copy(update={"image_size": size, "sparse_tokens": 2 * (size // 4) ** 2})
    old = weights(make(SPARSE))
    new, resized = same(old, spec, mode)
    assert len(resized) == 2 * 3 + 3 * 3 + 1 + 4
    reading = ["blocks.0.mlp_tokens.fc1", "blocks.2.moe_s.router"]
    reading += [f"blocks.2.moe_s.experts.{expert}.fc1" for expert in range(3)]
    response = {name: (old[f"{name}.weight"].sum(dim=1), new[f"{name}.weight"].sum(dim=1)) for name in reading}
    for before, after in response.values():
        torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-6)

    # Re-represent layers write patches too: the same response, interpolated.
    grid = resize.interpolation(4, size // 4, mode).float()
    for name, inner in {"blocks.2.rerepresent1.tokens": 2, "blocks.2.rerepresent2.tokens": 1}.items():
        before, after = (tensors[f"{name}.weight"].sum(dim=1) for tensors in (old, new))
        torch.testing.assert_close(after, torch.kron(torch.eye(inner), grid) @ before, rtol=1e-5, atol=1e-6)

    constant = {name: torch.ones_like(tensor) for name, tensor in old.items()}
    for name, tensor in same(constant, spec, mode)[0].items():
        if name.endswith(("fc2.weight", "fc2.bias", "tokens.bias")):  # a constant output stays constant
            torch.testing.assert_close(tensor, torch.ones_like(tensor))


def test_a_resized_layer_reads_the_new_grid_through_the_old_one():
    """A signal on the new grid gives the pre-activations that it gives, interpolated, on the old one."""
    old = weights(make(DENSE))
    for size in (64, 8):
        side = size // 4
        new, _ = same(old, DENSE.model_copy(update={"image_size": size}))
        signal = torch.randn(1, 1, side, side)
        seen = F.interpolate(signal, size=(4, 4), mode="bilinear", antialias=True).flatten()
        name = "blocks.0.mlp_tokens.fc1.weight"
        torch.testing.assert_close(new[name] @ signal.flatten(), old[name] @ seen, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("before, after, patch", [(224, 160, 16), (16, 24, 4)])
def test_models_load_at_another_resolution(tmp_path, before, after, patch, mode):
    update = {"patch_size": patch, "image_size": before, "sparse_tokens": 2 * (before // patch) ** 2}
    written = SPARSE.model_copy(update=update)
    path = write(tmp_path, "own", weights(make(written)))
    for tokens in (update["sparse_tokens"], 2 * (after // patch) ** 2):
        spec = written.model_copy(update={"image_size": after, "sparse_tokens": tokens})
        model = make(spec, seed=1)
        coverage = load_into(model, spec, path, mode=mode)
        assert not coverage.exact and "resized" in coverage.reason and coverage.fresh == ()
        assert logits(model, after).isfinite().all()
        experts = [name for name in coverage.resized if ".experts." in name]
        assert len(experts) == (0 if tokens == update["sparse_tokens"] else 9)


def test_sparse_blocks_without_rerepresent_are_resized_too(tmp_path):
    written = SPARSE.model_copy(update={"rerepresent": False, "dense_blocks": 0, "sparse_blocks": 2})
    spec = written.model_copy(update={"image_size": 24})
    coverage = load_into(make(spec), spec, write(tmp_path, "own", weights(make(written))))
    assert len(coverage.resized) == 2 * (3 * 3 + 1)


@pytest.mark.parametrize(
    ("update", "mode", "parts"),
    [
        ({"image_size": 24, "sparse_tokens": 71}, "bilinear", ["32 inner patches for 16", "to 32,", "or to 72"]),
        ({"sparse_tokens": 48}, "bilinear", ["model has 48 for 16", "set model.sparse_tokens to 32"]),
        ({"image_size": 24, "sparse_tokens": 72}, "block", ["'block'", "4 to 6", "resize bilinear"]),
        ({"image_size": 8, "sparse_tokens": 8}, "block", ["'block'", "4 to 2"]),
        ({"image_size": 32}, "block", ["'block'", "for S1 too"]),
        ({"image_size": 32}, "bicubi", ["did you mean 'bicubic'?"]),
    ],
)
def test_grids_that_do_not_fit_are_refused(update, mode, parts):
    tensors, spec = weights(make(SPARSE)), SPARSE.model_copy(update=update)
    refused(*parts, call=lambda: same(tensors, spec, mode), path="f")


def test_files_whose_tensors_disagree_or_are_not_square_are_refused():
    tensors, larger = weights(make(DENSE)), DENSE.model_copy(update={"image_size": 24})
    name = "blocks.1.mlp_tokens.fc2.bias"
    refused(name, "[15]", call=lambda: same(tensors | {name: torch.ones(15)}, DENSE), path="f")
    refused(name, "1 axes", call=lambda: same(tensors | {name: torch.ones(16, 1)}, DENSE), path="f")
    few = {"blocks.0.mlp_tokens.fc2.bias": torch.ones(15)}
    refused("15 patches are not a square", call=lambda: same(few, larger), path="f")


def test_block_mode_applies_the_old_model_to_each_window():
    old_spec = SPARSE
    spec = old_spec.model_copy(
        update={
            "image_size": 32,
            "token_hidden": 40,
            "sparse_tokens": 128,
            "moe_s": MoESpec(experts=3, hidden=56),
        }
    )
    old = weights(make(old_spec))
    new, _ = same(old, spec, "block")
    model = make(spec, seed=1)
    assert {name: list(new[name].shape) for name in new} == {n: list(p.shape) for n, p in model.named_parameters()}

    def mlp(tensors, x):
        prefix = "blocks.0.mlp_tokens."
        hidden = F.gelu(F.linear(x, tensors[f"{prefix}fc1.weight"], tensors[f"{prefix}fc1.bias"]))
        return F.linear(hidden, tensors[f"{prefix}fc2.weight"], tensors[f"{prefix}fc2.bias"])

    image = torch.randn(8, 8)
    whole = mlp(new, image.flatten()).view(8, 8)
    for top in (0, 4):
        for left in (0, 4):
            window = image[top : top + 4, left : left + 4]
            expected = mlp(old, window.flatten()).view(4, 4)
            torch.testing.assert_close(whole[top : top + 4, left : left + 4], expected)

    inner = torch.randn(2, 4, 4).repeat_interleave(1, 0).tile(1, 2, 2)  # [2 grids, 8, 8], all windows alike
    gate = "blocks.2.moe_s.router.weight"
    torch.testing.assert_close(new[gate] @ inner.flatten(), old[gate] @ inner[:, :4, :4].flatten())


def test_block_mode_needs_the_hidden_width_to_grow(tmp_path):
    path = write(tmp_path, "own", weights(make(DENSE)))
    spec = DENSE.model_copy(update={"image_size": 32})
    refused(
        "'blocks.0.mlp_tokens.fc1.weight' is of shape [40, 64]",
        "[10, 64]",
        "set model.token_hidden",
        call=lambda: load_into(make(spec), spec, path, mode="block"),
        path=path,
    )
