"""One mixture-of-experts layer for models of one's own."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from sparse_mlp_ds import rng
from sparse_mlp_ds.models.layers import Mlp, init_weights
from sparse_mlp_ds.moe.layer import MoELayer, Routing


class MoE(nn.Module):
    """Noisy top-k routing of items to experts (Sparse-MLP, eq. 1 to 5), with its weights initialised.

    A call returns (y, loss): y has the shape of x, [B, T, D], and `loss` is the balance loss, a number to add to the
    objective, already weighted. In `eval()` there is no noise and no capacity limit, and the loss is 0. Items are
    routed within groups of `group_images` of the B entries, so that capacity and loss do not depend on the batch size.
    """

    def __init__(
        self,
        dim: int,
        experts: int,
        top_k: int = 1,
        expert: Callable[[], nn.Module] | None = None,
        *,
        hidden: int | None = None,
        seed: int = 0,
        **routing: Any,
    ):
        """Build the layer.

        Args:
            dim: Length D of an item.
            experts: Number of experts E.
            top_k: Experts per item, K.
            expert: Builds one expert, a module [n, D] -> [n, D], which initialises itself; None builds MLPs of two
                layers with GELU between them.
            hidden: Hidden units of those MLPs; None takes 4 D.
            seed: Seed of the initial weights.
            routing: Fields of `sparse_mlp_ds.moe.layer.Routing`, such as `capacity_factor=1.25`, `noise=0`,
                `priority="importance"` or `group_images=1` (the default here).
        """
        super().__init__()
        options = Routing(**({"group_images": 1} | routing))
        build = (lambda: Mlp(dim, hidden or 4 * dim)) if expert is None else lambda: _Expert(expert())
        self.layer = MoELayer(dim, experts, top_k, build, options)
        if expert is None:
            init_weights(self.layer, seed)
        else:
            init_weights(self.layer.router, seed)

    def forward(self, x: Tensor, keys: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return y [B, T, D] and the balance loss, a scalar.

        x: [B, T, D]. keys: [B] int64, random numbers that the noise follows from; None draws them with torch's
        generator. Raises ValueError if B is not a multiple of `group_images` in training.
        """
        if self.training and keys is None:
            keys = rng.drawn_keys(len(x), x.device)
        y, report = self.layer(x, keys if self.training else None)
        return y, report.balance


class _Expert(nn.Module):
    """An expert of the user's, which takes no random keys."""

    def __init__(self, expert: nn.Module):
        super().__init__()
        self.expert = expert

    def forward(self, rows: Tensor, keys: Tensor | None = None) -> Tensor:
        result: Tensor = self.expert(rows)
        return result
