"""What trained models of images and of text have in common as torch modules."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparse_mlp_ds.hub.config import AnyConfig
from sparse_mlp_ds.hub.huggingface import upload
from sparse_mlp_ds.models import registry
from sparse_mlp_ds.models.base_spec import MoESpec
from sparse_mlp_ds.moe.layer import MoELayer


class TrainedModel(nn.Module):
    """A model with all of its experts in one process.

    Every pass is deterministic, as in evaluation: a sample's result does not depend on the other samples of its batch.
    """

    config: AnyConfig

    def __init__(self, config: AnyConfig, capacity_factor: float | None = None, priority: str = "importance"):
        """Build the model without initialising its weights.

        Args:
            config: The model as data.
            capacity_factor: Items of a sample that an expert takes at most, relative to an even share of them; those
                beyond it are dropped. None drops nothing.
            priority: Which items an expert takes first if it cannot take all: `importance` for those with the largest
                gate weights, `position` for the first ones.
        """
        super().__init__()
        self.config = config

        def make_moe(kind: str, dim: int, spec: MoESpec, dropout: float) -> MoELayer:
            return registry.local_moe(kind, dim, spec, dropout, config.moe.routing(kind, capacity_factor, priority))

        self.backbone = registry.build(config.spec, config.outputs, make_moe)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the logits; empty for a model without classes."""
        return self.config.classes

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def own_weights(self) -> dict[str, Tensor]:
        """Return all weights under the names that an export has them by; they share memory with the model."""
        return {name: parameter.detach() for name, parameter in self.backbone.named_parameters()}

    def fill(self, weights: dict[str, Tensor]) -> None:
        """Copy weights into the model. weights: all of them, under the names of `own_weights`."""
        for name, tensor in self.own_weights().items():
            tensor.copy_(weights[name])

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write the model into a folder, and return the folder."""
        raise NotImplementedError

    def push_to_hub(self, repo_id: str, *, private: bool | None = None, token: str | None = None, **commit: Any) -> str:
        """Upload the model to the Hugging Face Hub.

        Args:
            repo_id: The repository, OWNER/NAME; it is created if it does not exist.
            private: Whether a new repository is private; None for the owner's default.
            token: Access token of the Hub.
            commit: Further arguments of `huggingface_hub.HfApi.upload_folder`, such as `commit_message`.

        Returns the address of the commit. Raises UserError if the upload fails, or without the extra
        `pip install "sparse_mlp_ds[hub]"`.
        """
        return upload(self.save_pretrained, repo_id, private, token, commit)
