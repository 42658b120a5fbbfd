"""MoCo v3's parts over ranks equal one process on the same global batch, where each view is normalised by itself."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparse_mlp_ds.distributed import process_group
from sparse_mlp_ds.models.layers import init_weights
from sparse_mlp_ds.rng import stream_id
from sparse_mlp_ds.ssl.heads import GlobalBatchNorm, MlpHead
from sparse_mlp_ds.ssl.loss import symmetric_info_nce
from tests.helpers import harness

VIEWS, IMAGES, DIM = 2, 8, 5
SPLITS = [(8,), (4, 4), (6, 2), (2, 2, 2, 2)]
"""Images of each rank."""


def _views() -> torch.Tensor:
    """Two views that are as different as MoCo v3's augmentations make them: [2, B, D]."""
    torch.manual_seed(0)
    return torch.randn(VIEWS, IMAGES, DIM) + torch.tensor([0.0, 3.0])[:, None, None]


def _of_this_rank(x: torch.Tensor, images: tuple[int, ...]) -> torch.Tensor:
    return x.split(images, dim=1)[process_group.rank()]


def _batch_norm(images: tuple[int, ...]):
    everything, norm = _views(), GlobalBatchNorm(DIM)
    nn.init.normal_(norm.weight)
    weights = torch.randn(VIEWS, IMAGES, DIM)
    x = _of_this_rank(everything, images).requires_grad_()
    y = norm(x)
    (y * _of_this_rank(weights, images)).sum().backward()
    return y.detach(), x.grad


@pytest.mark.parametrize("images", [*SPLITS, (3, 0, 5)])
def test_batch_norm_is_that_of_each_views_global_batch(images):
    everything, scale = _views(), torch.empty(DIM)
    nn.init.normal_(scale)
    weights = torch.randn(VIEWS, IMAGES, DIM)
    everything.requires_grad_()
    views = [F.batch_norm(view, None, None, scale, torch.zeros(DIM), training=True) for view in everything]
    expected = torch.stack(views)
    (expected * weights).sum().backward()
    results = harness.run(len(images), _batch_norm, images)
    torch.testing.assert_close(torch.cat([y for y, _ in results], dim=1), expected.detach())
    torch.testing.assert_close(torch.cat([g for _, g in results], dim=1), everything.grad)


def test_heads_start_as_torchs_linear_layers_do():
    head = MlpHead(3, 6, 16, 4)
    init_weights(head, seed=3)
    for position, (width_in, width_out) in {0: (6, 16), 3: (16, 16), 6: (16, 4)}.items():
        torch.manual_seed(stream_id(f"3/{position}.weight"))
        assert torch.equal(head[position].weight, nn.Linear(width_in, width_out, bias=False).weight)
    for norm in (head[1], head[4]):
        assert torch.equal(norm.weight, torch.ones(16)) and torch.equal(norm.bias, torch.zeros(16))


def _made() -> tuple[torch.Tensor, torch.Tensor, MlpHead]:
    features, keys = _views(), torch.randn(VIEWS, IMAGES, 4)
    return features, keys, MlpHead(2, DIM, 16, 4)


def _loss(images: tuple[int, ...]):
    features, keys, head = _made()
    queries = head(_of_this_rank(features, images))
    loss = symmetric_info_nce(queries, _of_this_rank(keys, images), temperature=0.2, images=images)
    loss = loss * len(images) * queries.shape[1] / IMAGES  # the mean over ranks is then the mean over images
    loss.backward()
    return loss.item(), [p.grad for p in head.parameters()]


def _reference() -> tuple[float, list[torch.Tensor]]:
    """MoCo v3, algorithm 1, on one process: torch's own batch norm for each view, and the loss image by image."""
    features, keys, head = _made()
    norms = {1: nn.BatchNorm1d(16), 4: nn.BatchNorm1d(4, affine=False)}
    modules = nn.Sequential(*(norms.get(position, module) for position, module in enumerate(head)))
    queries, keys = [F.normalize(modules(view), dim=1) for view in features], F.normalize(keys, dim=2)
    temperature, loss = 0.2, 0.0
    for view in range(VIEWS):
        for image in range(IMAGES):
            similarity = torch.stack([queries[view][image] @ keys[1 - view, other] for other in range(IMAGES)])
            log_p = (similarity / temperature).log_softmax(0)
            loss = loss - log_p[image] * 2 * temperature / IMAGES
    loss.backward()
    return loss.item(), [p.grad for p in modules.parameters()]


@pytest.mark.parametrize("images", SPLITS)
def test_contrastive_loss_and_gradients_are_those_of_the_global_batch(images):
    expected_loss, expected = _reference()
    results, world = harness.run(len(images), _loss, images), len(images)
    assert sum(loss for loss, _ in results) / world == pytest.approx(expected_loss, rel=1e-5)
    for position, gradient in enumerate(expected):
        averaged = sum(gradients[position] for _, gradients in results) / world
        torch.testing.assert_close(averaged, gradient, rtol=1e-4, atol=1e-6)
