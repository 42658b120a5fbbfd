"""Weights on other patch grids: what interpolation keeps, and which grids are refused."""

import pytest
import torch
import torch.nn.functional as F

from sparse_mlp_ds.models.base_spec import MoESpec
from sparse_mlp_ds.weights import resize
from sparse_mlp_ds.weights.load import load_into
from tests.helpers.weight_files import DENSE, SPARSE, logits, make, refused, weights, write


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
