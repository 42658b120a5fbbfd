"""MoCo v3's parts over ranks equal one process on the same global batch."""

import pytest
import torch
import torch.nn.functional as F

from sparse_mlp_ds import dist
from sparse_mlp_ds.ssl.contrastive import symmetric_info_nce
from sparse_mlp_ds.ssl.heads import GlobalBatchNorm, mlp_head
from tests.ranks import harness

ROWS = 8


def _mine(x: torch.Tensor, dim: int = 0) -> torch.Tensor:
    return x.chunk(dist.world_size(), dim)[dist.rank()]


def _batch_norm():
    torch.manual_seed(0)
    norm, everything = GlobalBatchNorm(5), torch.randn(ROWS, 5)
    torch.nn.init.normal_(norm.weight)
    weights = torch.randn(ROWS, 5)
    x = _mine(everything).requires_grad_()
    y = norm(x)
    (y * _mine(weights)).sum().backward()
    return y.detach(), x.grad


@pytest.mark.parametrize("world", [1, 2, 4])
def test_batch_norm_is_that_of_the_global_batch(world):
    torch.manual_seed(0)
    everything, scale = torch.randn(ROWS, 5), torch.empty(5)
    torch.nn.init.normal_(scale)
    weights = torch.randn(ROWS, 5)
    everything.requires_grad_()
    expected = F.batch_norm(everything, None, None, scale, torch.zeros(5), training=True)
    (expected * weights).sum().backward()
    results = harness.run(world, _batch_norm)
    torch.testing.assert_close(torch.cat([y for y, _ in results]), expected.detach())
    torch.testing.assert_close(torch.cat([g for _, g in results]), everything.grad)


def _loss():
    torch.manual_seed(0)
    features, keys = torch.randn(2, ROWS, 6), torch.randn(2, ROWS, 4)
    head = mlp_head(2, 6, 16, 4)
    queries = head(_mine(features, 1).flatten(0, 1)).view(2, -1, 4)
    loss = symmetric_info_nce(queries, _mine(keys, 1), temperature=0.2)
    loss.backward()
    return loss.item(), [p.grad for p in head.parameters()]


def _reference() -> tuple[float, list[torch.Tensor]]:
    """MoCo v3, algorithm 1, on one process and written out image by image."""
    torch.manual_seed(0)
    features, keys = torch.randn(2, ROWS, 6), torch.randn(2, ROWS, 4)
    head = mlp_head(2, 6, 16, 4)
    queries = F.normalize(head(features.flatten(0, 1)), dim=1).view(2, ROWS, 4)
    keys, temperature, loss = F.normalize(keys, dim=2), 0.2, 0.0
    for view in range(2):
        for image in range(ROWS):
            similarity = torch.stack([queries[view, image] @ keys[1 - view, other] for other in range(ROWS)])
            log_p = (similarity / temperature).log_softmax(0)
            loss = loss - log_p[image] * 2 * temperature / ROWS
    loss.backward()
    return loss.item(), [p.grad for p in head.parameters()]


@pytest.mark.parametrize("world", [1, 2, 4])
def test_contrastive_loss_and_gradients_are_those_of_the_global_batch(world):
    expected_loss, expected = _reference()
    results = harness.run(world, _loss)
    assert sum(loss for loss, _ in results) / world == pytest.approx(expected_loss, rel=1e-5)
    for position, gradient in enumerate(expected):
        averaged = sum(gradients[position] for _, gradients in results) / world
        torch.testing.assert_close(averaged, gradient, rtol=1e-4, atol=1e-6)
