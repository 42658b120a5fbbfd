"""Our code against packages that nobody here wrote, on inputs drawn anew; `make test-references` runs it.

The name of this file keeps it out of `make test`, where these packages are not installed.
"""

import flax.linen
import numpy as np
import optax
import pytest
import torch
from torch import nn

from sparse_mlp_ds.models.attention import Attention
from sparse_mlp_ds.train import evaluate, schedule
from sparse_mlp_ds.train.lamb_lars import Lamb
from sparse_mlp_ds.weights import layouts
from tests.helpers.references import fill
from tests.references import test_language
from tests.references.make import g_mlp_pytorch, support
from tests.references.test_models import build, gmlp_names, logits

support.torchvision_without_operators()
from timm.layers import GatedMlp  # noqa: E402
from timm.models import mlp_mixer, vision_transformer  # noqa: E402
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error  # noqa: E402

SMALL = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "num_classes": 5}
seeds = pytest.mark.parametrize("seed", range(3))


def shaken(model: nn.Module, seed: int) -> tuple[nn.Module, torch.Tensor]:
    """Draw weights, the norms' and biases' too, and images."""
    torch.manual_seed(seed)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape)
    return model.eval(), torch.randn(3, 3, 16, 16)


def assert_same_logits(ours: nn.Module, theirs: nn.Module, images: torch.Tensor, atol: float = 5e-5) -> None:
    with torch.no_grad():
        torch.testing.assert_close(logits(ours, images), theirs(images), rtol=1e-4, atol=atol)


@seeds
def test_mixer_of_timm(seed):
    theirs, images = shaken(mlp_mixer.MlpMixer(num_blocks=2 + seed, **SMALL), seed)
    ours = build("mixer_s16", dense_blocks=2 + seed, token_hidden=12, channel_hidden=96)
    fill(ours, layouts.to_own_names(theirs.state_dict(), "timm").tensors)
    assert_same_logits(ours, theirs, images)


@seeds
def test_gmlp_of_timm(seed):
    kind = {"mlp_ratio": 6, "block_layer": mlp_mixer.SpatialGatingBlock, "mlp_layer": GatedMlp}
    theirs, images = shaken(mlp_mixer.MlpMixer(num_blocks=2 + seed, **kind, **SMALL), seed)
    ours = build("gmlp_ti16", depth=2 + seed, hidden=144)
    fill(ours, gmlp_names(theirs.state_dict()))
    assert_same_logits(ours, theirs, images, atol=5e-4)  # the norms inside the gates differ in their epsilon


@seeds
def test_vit_of_timm(seed):
    kind = {"depth": 2 + seed, "num_heads": 2, "mlp_ratio": 2}
    theirs, images = shaken(vision_transformer.VisionTransformer(**kind, **SMALL), seed)
    ours = build("vit_s16", depth=2 + seed, heads=2, channel_hidden=48, positions="learned")
    fill(ours, layouts.to_own_names(theirs.state_dict(), "timm").tensors)
    assert_same_logits(ours, theirs, images)


@seeds
def test_attention_of_flax(seed):
    width, heads = 24, 3
    torch.manual_seed(seed)
    x, ours = torch.randn(2, 7, width), Attention(width, heads, width // heads, width)
    query, key, value = (part.view(heads, -1, width).permute(2, 0, 1) for part in ours.qkv.weight.detach().chunk(3))
    biases = [part.view(heads, -1) for part in ours.qkv.bias.detach().chunk(3)]
    parts = zip(("query", "key", "value"), (query, key, value), biases, strict=True)
    variables = {name: {"kernel": w.numpy(), "bias": b.numpy()} for name, w, b in parts}
    out = ours.proj.weight.detach().T.reshape(heads, -1, width).numpy()
    variables["out"] = {"kernel": out, "bias": ours.proj.bias.detach().numpy()}
    theirs = flax.linen.MultiHeadDotProductAttention(heads).apply({"params": variables}, x.numpy())
    torch.testing.assert_close(ours(x).detach(), torch.from_numpy(np.array(theirs)), rtol=1e-4, atol=1e-5)


@seeds
def test_lamb_of_optax(seed):
    generator = np.random.default_rng(seed)
    start = generator.normal(size=(5, 7)).astype(np.float32)
    theirs, weight = start, nn.Parameter(torch.from_numpy(start.copy()))
    optimizer = optax.lamb(0.02, weight_decay=0.1, eps=1e-6)
    state = optimizer.init(theirs)
    ours = Lamb([{"params": [weight], "weight_decay": 0.1, "vectors": False}], lr=0.02)
    for _ in range(5):
        gradient = generator.normal(size=(5, 7)).astype(np.float32)
        update, state = optimizer.update(gradient, state, theirs)
        theirs = optax.apply_updates(theirs, update)
        weight.grad = torch.from_numpy(gradient)
        ours.step()
    torch.testing.assert_close(weight.detach(), torch.from_numpy(np.array(theirs)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kind", "decay"), [("cosine", optax.cosine_decay_schedule), ("linear", None)])
def test_schedules_of_optax(kind, decay):
    total, warmup, peak = 1000, 100, 0.3
    rate = decay(peak, total - warmup) if decay else optax.linear_schedule(peak, 0.0, total - warmup)
    for step in range(warmup, total, 37):
        expected = float(rate(step - warmup))
        assert schedule.learning_rate(step, total, peak, warmup, kind) == pytest.approx(expected, rel=1e-3, abs=1e-7)


@seeds
def test_metrics_of_torchmetrics(seed):
    torch.manual_seed(seed)
    scores, labels = 3 * torch.randn(500, 9), torch.randint(9, (500,))
    scores[torch.arange(500), labels] += 2
    found = evaluate._outcome(evaluate._counts(scores, labels, 9), 9).metrics()
    error = multiclass_calibration_error(scores.softmax(dim=1), labels, num_classes=9, n_bins=evaluate.BINS)
    accuracies = [multiclass_accuracy(scores, labels, 9, average="micro", top_k=k).item() for k in (1, 5)]
    assert [found["top1"], found["top5"]] == pytest.approx(accuracies)
    assert found["ece"] == pytest.approx(error.item(), rel=1e-4)


@seeds
@pytest.mark.parametrize(("family", "attention"), [("gmlp", None), ("amlp", 8)])
def test_gmlp_for_text_of_g_mlp_pytorch(family, attention, seed):
    theirs = g_mlp_pytorch.model(attention, 10 + seed)
    shape = (g_mlp_pytorch.VOCABULARY, g_mlp_pytorch.WIDTH, g_mlp_pytorch.TOKENS, g_mlp_pytorch.DEPTH)
    ours, tokens = test_language.build(family, *shape), torch.randint(shape[0], (3, shape[2]))
    fill(ours, test_language.text_names(theirs.state_dict()))
    with torch.no_grad():
        found = test_language.logits(ours, tokens, theirs.to_logits[1].bias)
        torch.testing.assert_close(found, theirs(tokens), rtol=1e-4, atol=5e-5)
