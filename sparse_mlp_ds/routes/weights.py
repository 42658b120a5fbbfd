"""What the experts look at in the image, read from weights: through re-represent layers, where a block has them.

Inside a sparse block with re-represent layers, a "patch" is a mixture of all patches of the image; its weights for them
are a row of the first re-represent layer's matrix W [S1, S]. Norms and GELU between the layers are left out here, so
that these are pictures of weights, as those of MLP-Mixer (its figure 5), and no derivatives.
"""

import torch
from torch import Tensor, nn

from sparse_mlp_ds.distributed import comm
from sparse_mlp_ds.models.backbone import Backbone
from sparse_mlp_ds.models.mixer import MixerBlock
from sparse_mlp_ds.models.sparse_mlp import Rerepresent, SparseBlock
from sparse_mlp_ds.routes.layers import Layer
from sparse_mlp_ds.routes.record import Row, TokenMixing

UNITS = 12
"""Hidden units that are shown of a dense block or an expert: those with the largest norms."""


def field(backbone: Backbone, layer: Layer, by_item: Tensor, expert_fields: dict[int, Tensor]) -> tuple[Row, ...]:
    """Return how much each expert of a layer depends on each patch of the image, over its mean: [E][S].

    An expert of MoE_S reads all patches: the root mean square over its hidden units of their weights for the patch. One
    of MoE_C reads the items that it got: their number, each times the absolute weight of the patch in it.

    Args:
        backbone: The model.
        layer: The layer.
        by_item: [T, E] in how many images an item went to the expert.
        expert_fields: Expert -> [S] for the experts of MoE_S, from `of_experts`.
    """
    if layer.kind == "moe_s":
        fields = torch.stack([expert_fields[number] for number in range(layer.experts)])
    else:
        matrix = _through(backbone, layer)
        fields = by_item.T.cpu().float()
        if matrix is not None:
            fields = fields @ matrix.abs().cpu()
    return rows(fields / fields.mean(dim=1, keepdim=True).clamp_min(1e-12))


def of_experts(backbone: Backbone, layers: list[Layer]) -> dict[str, dict[int, tuple[Tensor, Tensor]]]:
    """Return of each MoE_S layer its experts' fields [S], and their hidden units' weights [UNITS, S].

    Collective, because ranks hold different experts; every rank gets all of them.
    """
    own: dict[str, dict[int, tuple[Tensor, Tensor]]] = {}
    for layer in layers:
        if layer.kind != "moe_s":
            continue
        matrix = _through(backbone, layer)
        own[layer.name] = {}
        for name, expert in layer.moe.experts.items():
            weight = _first(expert)
            weight = weight if matrix is None else weight @ matrix
            own[layer.name][int(name)] = weight.square().mean(dim=0).sqrt().cpu(), _largest(weight)
    whole: dict[str, dict[int, tuple[Tensor, Tensor]]] = {name: {} for name in own}
    for part in comm.gather_objects(own):
        for name, experts in part.items():
            whole[name] |= experts
    return whole


def token_mixing(backbone: Backbone, experts: dict[str, dict[int, tuple[Tensor, Tensor]]]) -> tuple[TokenMixing, ...]:
    """Return the weights that mix patches in the dense blocks and in the experts of MoE_S.

    experts: from `of_experts`.
    """
    dense = [
        TokenMixing(name=f"block {number}", units=rows(_largest(_first(block.mlp_tokens))))
        for number, block in enumerate(backbone.blocks)
        if isinstance(block, MixerBlock)
    ]
    sparse = [
        TokenMixing(name=f"{layer} expert {number}", units=rows(units))
        for layer, members in experts.items()
        for number, (_, units) in sorted(members.items())
    ]
    return (*dense, *sparse)


def rows(values: Tensor) -> tuple[Row, ...]:
    """Return [N, M] as rows of numbers with four significant digits, which pictures do not need more of."""
    return tuple(tuple(float(f"{value:.4g}") for value in row) for row in values.tolist())


def _through(backbone: Backbone, layer: Layer) -> Tensor | None:
    """Return W [S1, S] of the re-represent layer in front of an MoE layer; None if there is none."""
    block = backbone.blocks[int(layer.name.partition(".")[0])]
    if isinstance(block, SparseBlock) and isinstance(block.rerepresent1, Rerepresent):
        return block.rerepresent1.tokens.weight.detach().float()
    return None


def _first(mlp: nn.Module) -> Tensor:
    """Return the weights [hidden, D] of an MLP's first layer."""
    return mlp.get_parameter("fc1.weight").detach().float()


def _largest(weight: Tensor) -> Tensor:
    """Return the rows with the largest norms: [UNITS, S], on the CPU."""
    best = weight.norm(dim=1).topk(min(UNITS, len(weight))).indices
    return weight[best].cpu()
