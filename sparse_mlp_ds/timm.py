"""`import sparse_mlp_ds.timm` registers every vision model of this package in timm.

    import timm, sparse_mlp_ds.timm
    model = timm.create_model("sparse_mlp_b16", num_classes=10)

The models speak timm's interface; their state dicts have this package's names behind `backbone.`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from sparse_mlp_ds import rng
from sparse_mlp_ds.config.recipe import MoE
from sparse_mlp_ds.data.config import Pixels
from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.hub import config as hub_config
from sparse_mlp_ds.hub import shipped
from sparse_mlp_ds.models import registry
from sparse_mlp_ds.models.base_spec import MoESpec
from sparse_mlp_ds.models.deit import DistilledVisionTransformer
from sparse_mlp_ds.models.layers import init_weights
from sparse_mlp_ds.models.presets import IMAGE_PRESETS
from sparse_mlp_ds.models.spec import PatchSpec
from sparse_mlp_ds.models.vit import VisionTransformer
from sparse_mlp_ds.moe.layer import MoELayer
from sparse_mlp_ds.weights import locate


class TimmModel(nn.Module):
    """A model of this package behind timm's interface.

    In training, items are routed with noise and a capacity limit within each image, and `balance_loss` holds the MoE
    layers' balance losses of the last pass, already weighted: add it to the objective. It is 0 without experts.
    """

    balance_loss: Tensor | float = 0.0

    def __init__(
        self,
        spec: PatchSpec,
        num_classes: int = 1000,
        in_chans: int = 3,
        img_size: int | Sequence[int] | None = None,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float | None = None,
        seed: int = 0,
        **overrides: Any,
    ):
        """Build the model and initialise its weights as its paper does.

        Args:
            spec: What the model is.
            num_classes: Outputs of the head; 0 builds none.
            in_chans: Channels of an image, which are 3.
            img_size: Side of the images in pixels, or height and width, which must be equal; None takes the spec's.
            global_pool: "avg" pools as the model does (over patches, or its class token); "" does not pool.
            drop_rate: Dropout before the head.
            drop_path_rate: Stochastic depth of the last block; None takes the spec's.
            seed: Seed of the initial weights.
            overrides: Further sizes to change, by the keys of a recipe's section `model`.

        Raises UserError, or pydantic's ValidationError for a size that the model cannot have.
        """
        super().__init__()
        if in_chans != 3:
            raise UserError(f"in_chans {in_chans}: these models take images of 3 channels; convert them")
        if isinstance(img_size, Sequence):
            if len(set(img_size)) != 1:
                raise UserError(f"img_size {tuple(img_size)}: these models take square images; give one number")
            img_size = img_size[0]
        changes = {"image_size": img_size, "drop_path": drop_path_rate}
        fields = spec.model_dump() | overrides | {name: value for name, value in changes.items() if value is not None}
        self.spec = type(spec).model_validate(fields)
        self.backbone = registry.build(self.spec, num_classes, _moe)
        init_weights(self.backbone, seed)
        self.head_drop = nn.Dropout(drop_rate)
        self.num_classes, self.global_pool = num_classes, global_pool
        self.num_features = self.head_hidden_size = self.embed_dim = spec.width
        self.num_prefix_tokens = len(self.backbone.tokens()) if isinstance(self.backbone, VisionTransformer) else 0
        self.feature_info = [
            {"module": f"backbone.blocks.{number}", "num_chs": spec.width, "reduction": spec.patch_size}
            for number in range(spec.depth)
        ]

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [B, classes] of images [B, 3, H, W]."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """Return normalised tokens [B, T + S, C], T prefix tokens before S patches, of images [B, 3, H, W]."""
        self.spec.check_images(x.shape)
        tokens, reports = self.backbone.forward_tokens(x, self._keys(x))
        self.balance_loss = sum((report.balance for report in reports.values()), x.new_zeros(()))
        return tokens

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return logits [B, classes] of tokens [B, T + S, C]; with `pre_logits`, the pooled features [B, C]."""
        if not self.global_pool:
            return x if pre_logits else self.backbone.head(self.head_drop(x))
        pooled = self.head_drop(self.backbone.pool(x))
        if pre_logits:
            return pooled
        if isinstance(self.backbone, DistilledVisionTransformer):
            tokens = self.head_drop(x[:, :2])
            return (self.backbone.head(tokens[:, 0]) + self.backbone.head_dist(tokens[:, 1])) / 2
        return self.backbone.forward_head(pooled)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: Literal["NCHW", "NLC"] = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Return the normalised tokens [B, T + S, C] and what blocks return, each [B, C, rows, columns] or [B, S, C].

        Args:
            x: Images [B, 3, H, W].
            indices: Numbers of the blocks; the last ones, if it is their count; None takes all.
            return_prefix_tokens: Return pairs of each block's patches and its prefix tokens [B, T, C].
            norm: Apply the last norm to each block's output.
            stop_early: Compute no block behind the last of them; only with `intermediates_only`.
            output_fmt: Shape of what blocks return.
            intermediates_only: Leave out the tokens.
        """
        self.spec.check_images(x.shape)
        taken, last = feature_take_indices(len(self.backbone.blocks), indices)
        outputs = self.backbone.forward_blocks(x, self._keys(x), last if stop_early and intermediates_only else None)
        chosen = [self.backbone.norm(outputs[number]) if norm else outputs[number] for number in sorted(taken)]
        prefix, side = self.num_prefix_tokens, self.spec.image_size // self.spec.patch_size
        parts: list[Any] = [one[:, prefix:] for one in chosen]
        if output_fmt == "NCHW":
            parts = [one.transpose(1, 2).unflatten(2, (side, side)) for one in parts]
        if return_prefix_tokens and prefix:
            parts = [(one, whole[:, :prefix]) for one, whole in zip(parts, chosen, strict=True)]
        return parts if intermediates_only else (self.backbone.norm(outputs[-1]), parts)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the head, and return the numbers of the blocks that `indices` means. Blocks and norm are kept."""
        taken, _ = feature_take_indices(len(self.backbone.blocks), indices)
        if prune_head:
            self.reset_classifier(0, "")
        return list(taken)

    def get_classifier(self) -> nn.Module:
        """Return the last layer."""
        return self.backbone.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head by a new one of zeros; for 0 classes, remove it. global_pool: see the constructor."""
        self.num_classes = num_classes
        self.global_pool = self.global_pool if global_pool is None else global_pool
        self.backbone.reset_head(num_classes)
        self.backbone.to(next(self.parameters()).device)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Choose whether each block is computed again in the backward pass instead of being kept."""
        self.backbone.checkpoint_blocks = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return patterns by which timm groups parameters by depth, for layer-wise decay of the learning rate."""
        stem = r"^backbone\.(?:patch_embed|class_token|distillation_token|positions)"
        return {"stem": stem, "blocks": [(r"^backbone\.blocks\.(\d+)", None), (r"^backbone\.norm", (99999,))]}

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters that are not vectors and do not decay."""
        return {name for name, _ in self.named_parameters() if name.endswith(("_token", ".positions"))}

    def _keys(self, x: Tensor) -> Tensor | None:
        """Return random keys of the images in training, from torch's generator."""
        return rng.drawn_keys(len(x), x.device) if self.training else None


def _moe(kind: str, dim: int, spec: MoESpec, dropout: float) -> MoELayer:
    routing = MoE(group_images=1).routing(kind)
    return registry.local_moe(kind, dim, spec, dropout, routing)


def _own_names(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of one of this package's exports under the names of a `TimmModel`."""
    return {name if name.startswith("backbone.") else f"backbone.{name}": tensor for name, tensor in state.items()}


def _cfg(spec: PatchSpec, data: Pixels = Pixels(crop_fraction=0.875), **more: Any) -> dict[str, Any]:
    """Return what timm wants to know of a model's input and head."""
    heads = ("backbone.head", "backbone.head_dist") if getattr(spec, "distillation_token", False) else "backbone.head"
    return {
        "input_size": (3, spec.image_size, spec.image_size), "fixed_input_size": True, "pool_size": None,
        "crop_pct": data.crop_fraction, "interpolation": "bilinear", "mean": data.mean, "std": data.std,
        "first_conv": "backbone.patch_embed.proj", "classifier": heads, "num_classes": 1000, "url": "", **more,
    }  # fmt: skip


def _shipped() -> dict[str, dict[str, Any]]:
    """Return the entries of the trained models that come with the package, as `MODEL.NAME`."""
    folder = shipped.folder("cifar10")
    assert folder is not None
    found = hub_config.of_images(hub_config.read(folder / locate.CONFIG), folder)
    cfg = _cfg(found.spec, found.data, num_classes=len(found.classes), file=str(folder / locate.WEIGHTS))
    return {f"{found.name}.cifar10": cfg}


def _entry(name: str) -> Callable[..., nn.Module]:
    def create(pretrained: bool = False, **options: Any) -> nn.Module:
        features = {"out_indices": 3, "feature_cls": "getter"}
        make = lambda **given: TimmModel(IMAGE_PRESETS[name], **given)  # noqa: E731
        built: nn.Module = build_model_with_cfg(
            make, name, pretrained, pretrained_filter_fn=_own_names, feature_cfg=features, **options
        )
        return built

    create.__name__ = create.__qualname__ = name
    create.__doc__ = f"Return the model {name} of sparse_mlp_ds."
    return create


_ours = _shipped()
default_cfgs = generate_default_cfgs(
    {name: _cfg(spec) for name, spec in IMAGE_PRESETS.items() if f"{name}.cifar10" not in _ours} | _ours
)
for _name in IMAGE_PRESETS:
    register_model(_entry(_name))
