"""Records MoCo v3's objective, momentum encoder, schedules, LARS and ViT, from its authors' code.

Needs torch, torchvision and timm 0.4.9, the release that the reference was written for.
"""

from functools import partial
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

from tests.references.make import support

IMAGES, WIDTH, HIDDEN, DIM, MOMENTUM = 16, 12, 24, 8, 0.9
EPOCHS, WARMUP_EPOCHS, STEPS_PER_EPOCH, PEAK = 300, 40, 312, 2.4e-3
Arrays = dict[str, np.ndarray]


class Features(nn.Module):
    """An encoder without a body: what goes in are the features, and the projector is all that it has."""

    def __init__(self, num_classes: int, width: int = WIDTH):
        super().__init__()
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x)


def objective(builder) -> Arrays:
    """One step of algorithm 1: the two views' features are far apart, as those of the two views' augmentations are."""
    found: Arrays = {}
    for temperature in (1.0, 0.2):
        torch.manual_seed(0)
        moco = builder.MoCo_ViT(Features, DIM, HIDDEN, temperature)
        for parameter in moco.parameters():  # norms start as identities and both encoders alike, which hides mistakes
            parameter.data += (0.2 if parameter.ndim == 1 else 0.05) * torch.randn(parameter.shape)
        one = torch.randn(IMAGES, WIDTH)
        two = 0.5 * one + 0.7 * torch.randn(IMAGES, WIDTH) + torch.randn(WIDTH)
        views = [one.requires_grad_(), two.requires_grad_()]
        case = f"T{temperature}"
        put(found, f"{case}/online", moco.base_encoder.head.state_dict())
        put(found, f"{case}/predictor", moco.predictor.state_dict())
        put(found, f"{case}/momentum", moco.momentum_encoder.head.state_dict())
        found[f"{case}/features"] = torch.stack([view.detach() for view in views]).numpy()
        queries, keys = _outputs(moco.predictor), _outputs(moco.momentum_encoder)
        loss = moco(*views, MOMENTUM)
        loss.backward()
        found[f"{case}/queries"] = torch.stack(queries).detach().numpy()
        found[f"{case}/gradient of queries"] = torch.stack([query.grad for query in queries]).numpy()
        found[f"{case}/keys"] = torch.stack(keys).numpy()
        found[f"{case}/loss"] = loss.detach().numpy()
        found[f"{case}/gradient of features"] = torch.stack([view.grad for view in views]).numpy()
        put(found, f"{case}/gradient of online", {n: p.grad for n, p in moco.base_encoder.head.named_parameters()})
        put(found, f"{case}/gradient of predictor", {n: p.grad for n, p in moco.predictor.named_parameters()})
        put(found, f"{case}/momentum after", moco.momentum_encoder.head.state_dict())
    return found


def _outputs(module: nn.Module) -> list[torch.Tensor]:
    """Return a list into which a module's outputs go, the first view's first, and later their gradients."""
    outputs: list[torch.Tensor] = []

    def keep(_, __, output: torch.Tensor) -> None:
        if output.requires_grad:
            output.retain_grad()
        outputs.append(output)

    module.register_forward_hook(keep)
    return outputs


def put(found: Arrays, name: str, tensors) -> None:
    """Enter tensors by name; batch norm's running statistics, which training does not use, stay out."""
    for key, tensor in tensors.items():
        if "running" not in key and "num_batches" not in key:
            found[f"{name}/{key}"] = tensor.detach().numpy().copy()


def schedules(main_moco) -> Arrays:
    """Learning rate and momentum at some steps of 300 epochs, the first 40 a warm-up."""
    steps = np.unique(np.linspace(0, EPOCHS * STEPS_PER_EPOCH - 1, 97).round().astype(int))
    steps = np.union1d(steps, np.arange(-2, 3) + WARMUP_EPOCHS * STEPS_PER_EPOCH)
    told = SimpleNamespace(lr=PEAK, epochs=EPOCHS, warmup_epochs=WARMUP_EPOCHS, moco_m=0.99)
    optimizer = SimpleNamespace(param_groups=[])
    rates = [main_moco.adjust_learning_rate(optimizer, step / STEPS_PER_EPOCH, told) for step in steps]
    momenta = [main_moco.adjust_moco_momentum(step / STEPS_PER_EPOCH, told) for step in steps]
    told_of = np.array([EPOCHS * STEPS_PER_EPOCH, WARMUP_EPOCHS * STEPS_PER_EPOCH])
    return {"steps": steps, "total and warm-up": told_of, "rates": np.array(rates), "momenta": np.array(momenta)}


def lars(optimizer) -> Arrays:
    """Five steps on a matrix, a vector, a matrix that starts at zero, and one whose gradient is zero."""
    torch.manual_seed(1)
    made = {"matrix": torch.randn(5, 7), "vector": torch.randn(6), "zero": torch.zeros(3, 4)}
    made["still"] = torch.randn(2, 3)
    parameters = {name: nn.Parameter(value) for name, value in made.items()}
    found = {f"start/{name}": p.detach().numpy().copy() for name, p in parameters.items()}
    optimizer = optimizer.LARS(parameters.values(), lr=0.3, weight_decay=1e-2, momentum=0.9, trust_coefficient=1e-3)
    for step in range(5):
        for name, parameter in parameters.items():
            parameter.grad = torch.randn(parameter.shape) * (name != "still")
            found[f"gradient {step}/{name}"] = parameter.grad.numpy().copy()
        optimizer.step()
        found.update({f"after {step}/{name}": p.detach().numpy().copy() for name, p in parameters.items()})
    return found


def vit(vits, builder) -> Arrays:
    """A tiny ViT's weights, images and features; positions of another size; what the full ViT-S starts with."""
    build = partial(vits.VisionTransformerMoCo, qkv_bias=True, norm_layer=partial(nn.LayerNorm, eps=1e-6))
    torch.manual_seed(2)
    model = build(img_size=16, patch_size=4, embed_dim=16, depth=2, num_heads=2, num_classes=0).eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1 or name == "cls_token":
            parameter.data += 0.2 * torch.randn(parameter.shape)
    images = torch.randn(3, 3, 16, 16)
    found: Arrays = {}
    put(found, "weights", model.state_dict())
    found["images"] = images.numpy()
    with torch.no_grad():
        found["features"] = model.forward_features(images).numpy()
    found["positions"] = build(img_size=24, patch_size=4, embed_dim=24, depth=1, num_heads=2).pos_embed.numpy()

    torch.manual_seed(3)
    small = builder.MoCo_ViT(lambda num_classes: vits.vit_small(num_classes=num_classes), 256, 4096)
    named = dict(small.base_encoder.named_parameters(prefix="base_encoder"))
    named |= dict(small.predictor.named_parameters(prefix="predictor"))
    named = {name: p.detach() for name, p in named.items() if ".blocks." not in name or ".blocks.0." in name}
    found["names"] = np.array(list(named))
    summary = [[float(f(p)) for f in (torch.mean, _std, torch.min, torch.max)] for p in named.values()]
    found["mean, std, min, max"] = np.array(summary, np.float32)
    return found


def _std(x: torch.Tensor) -> torch.Tensor:
    return x.std(unbiased=False)


def main() -> None:
    """Run the reference on one process, without a GPU."""
    path = support.checkout(__doc__)
    support.torchvision_without_operators()
    torch.Tensor.cuda = lambda self, *_: self  # the reference moves its labels to a GPU
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    import main_moco
    import moco.builder
    import moco.optimizer
    import vits

    files = {
        "moco_v3": (objective(moco.builder), "Algorithm 1: weights and features in, loss and gradients out."),
        "moco_v3_schedules": (schedules(main_moco), "Learning rate and momentum of the momentum encoder, by step."),
        "moco_v3_lars": (lars(moco.optimizer), "Five steps of LARS: parameters, gradients, parameters."),
        "moco_v3_vit": (vit(vits, moco.builder), "A tiny ViT, and how ViT-S, its projector and its predictor start."),
    }
    for name, (arrays, about) in files.items():
        repository = "https://github.com/facebookresearch/moco-v3"
        support.record(name, arrays, about, repository, "moco_v3", path, ["torch", "timm"])


if __name__ == "__main__":
    main()
