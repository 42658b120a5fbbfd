"""Records timm's LAMB, its mixup and CutMix, and torchmetrics' calibration error. Needs timm and torchmetrics."""

from unittest import mock

import numpy as np
import torch
from torch import nn

from tests.references.make import support

support.torchvision_without_operators()
from timm.data.mixup import Mixup  # noqa: E402
from timm.optim import Lamb  # noqa: E402
from torchmetrics.functional.classification import multiclass_calibration_error  # noqa: E402

Arrays = dict[str, np.ndarray]


def lamb() -> Arrays:
    """Six steps on a matrix, a vector, a matrix that starts at zero, and one whose gradient is zero."""
    torch.manual_seed(1)
    made = {"matrix": torch.randn(5, 7), "vector": torch.randn(6), "zero": torch.zeros(3, 4)}
    made["still"] = torch.randn(2, 3)
    parameters = {name: nn.Parameter(value) for name, value in made.items()}
    found = {f"start/{name}": p.detach().numpy().copy() for name, p in parameters.items()}
    groups = [
        {"params": [p for p in parameters.values() if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in parameters.values() if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = Lamb(groups, lr=0.02, max_grad_norm=None)
    for step in range(6):
        for name, parameter in parameters.items():
            parameter.grad = torch.randn(parameter.shape) * (name != "still")
            found[f"gradient {step}/{name}"] = parameter.grad.numpy().copy()
        optimizer.step()
        found.update({f"after {step}/{name}": p.detach().numpy().copy() for name, p in parameters.items()})
    return found


def mixed() -> Arrays:
    """Images and targets that timm mixes pair by pair, with a given share and, for CutMix, a given middle."""
    torch.manual_seed(2)
    images, labels = torch.randn(2, 3, 16, 16), torch.tensor([1, 3])
    found: Arrays = {"images": images.numpy(), "labels": labels.numpy()}
    for kind, share in (("mixup", 0.7), ("mixup", 0.2), ("cutmix", 0.7), ("cutmix", 0.36)):
        mixing = Mixup(**{f"{kind}_alpha": 1.0}, mode="pair", label_smoothing=0.1, num_classes=5)
        beta = mock.patch("numpy.random.beta", return_value=np.array([share]))
        middle = mock.patch("numpy.random.randint", return_value=5)
        with beta, middle:
            pixels, targets = mixing(images.clone(), labels)
        found[f"{kind} {share}/images"], found[f"{kind} {share}/targets"] = pixels.numpy(), targets.numpy()
    return found


def calibration() -> Arrays:
    """The expected calibration error of some logits over 15 bins."""
    torch.manual_seed(3)
    logits, labels = 3 * torch.randn(400, 7), torch.randint(7, (400,))
    logits[torch.arange(400), labels] += 2
    error = multiclass_calibration_error(logits.softmax(dim=1), labels, num_classes=7, n_bins=15, norm="l1")
    return {"logits": logits.numpy(), "labels": labels.numpy(), "error": error.numpy()}


def main() -> None:
    """Run timm and torchmetrics."""
    timm = {"repository": "https://github.com/huggingface/pytorch-image-models", "packages": ["timm", "torch"]}
    torchmetrics = {"repository": "https://github.com/Lightning-AI/torchmetrics", "packages": ["torchmetrics", "torch"]}
    about = "Six steps of timm's LAMB at its defaults without clipping: parameters, gradients, parameters."
    support.record("timm_lamb", lamb(), about, script="timm_training", **timm)
    about = "A pair of images mixed at given shares, and their smoothed targets."
    support.record("timm_mixup", mixed(), about, script="timm_training", **timm)
    support.record("torchmetrics_ece", calibration(), calibration.__doc__, script="timm_training", **torchmetrics)


if __name__ == "__main__":
    main()
