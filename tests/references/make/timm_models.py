"""Records tiny models of timm: MLP-Mixer, gMLP, ResMLP, ViT and DeiT's distilled ViT. Needs timm and torch."""

from functools import partial

import torch
from torch import nn

from tests.references.make import support

support.torchvision_without_operators()
from timm.layers import GatedMlp  # noqa: E402
from timm.models import deit, mlp_mixer, vision_transformer  # noqa: E402

SMALL = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "num_classes": 5}


def models() -> dict[str, nn.Module]:
    """Build the models of timm's registry in a small size."""
    mixer = partial(mlp_mixer.MlpMixer, num_blocks=2, **SMALL)
    vit = {"depth": 2, "num_heads": 2, "mlp_ratio": 2} | SMALL
    return {
        "mixer": mixer(mlp_ratio=(0.5, 4.0)),
        "gmlp": mixer(mlp_ratio=6, block_layer=mlp_mixer.SpatialGatingBlock, mlp_layer=GatedMlp),
        "resmlp": mixer(mlp_ratio=4, block_layer=mlp_mixer.ResBlock, norm_layer=mlp_mixer.Affine),
        "vit": vision_transformer.VisionTransformer(**vit),
        "deit_distilled": deit.VisionTransformerDistilled(**vit),
    }


def main() -> None:
    """Run timm."""
    for name, model in models().items():
        torch.manual_seed(0)
        images = torch.randn(3, 3, 16, 16)
        for parameter in model.parameters():  # norms start as identities and heads at zero, which hides mistakes
            parameter.data += 0.2 * torch.randn(parameter.shape)
        if name == "vit":
            model.pos_embed.data[:, 0] = 0  # that of the class token, which models with fixed positions do not have
        found = {f"weights/{key}": value.numpy() for key, value in model.state_dict().items()}
        found["images"] = images.numpy()
        with torch.no_grad():
            found["logits"] = model.eval()(images).numpy()
            if name == "deit_distilled":
                model.set_distilled_training(True)
                found["logits of both tokens"] = torch.stack(model.train()(images)).numpy()
        about = "A tiny model of timm: weights, images [B, 3, H, W] and logits."
        repository = "https://github.com/huggingface/pytorch-image-models"
        support.record(f"timm_{name}", found, about, repository, "timm_models", packages=["timm", "torch"])


if __name__ == "__main__":
    main()
