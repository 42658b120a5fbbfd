"""Records DeiT's distillation loss, hard and soft, with its gradients, from its authors' code. Needs torch."""

import numpy as np
import torch
from torch import nn

from tests.references.make import support


def main() -> None:
    """Run the reference at its default weights, alpha 0.5 and tau 1, and at another alpha and tau."""
    path = support.checkout(__doc__)
    import losses

    torch.manual_seed(0)
    logits, distilled, teacher = torch.randn(3, 6, 5)
    labels = torch.randint(5, (6,))
    found: dict[str, np.ndarray] = {
        "logits": logits.numpy(),
        "distilled logits": distilled.numpy(),
        "teacher logits": teacher.numpy(),
        "labels": labels.numpy(),
    }
    for kind in ("hard", "soft"):
        for alpha, tau in ((0.5, 1.0), (0.1, 3.0)):
            loss = losses.DistillationLoss(nn.CrossEntropyLoss(), nn.Identity(), kind, alpha, tau)
            both = [logits.clone().requires_grad_(), distilled.clone().requires_grad_()]
            value = loss(teacher, tuple(both), labels)
            value.backward()
            case = f"{kind} alpha {alpha} tau {tau}"
            found[f"{case}/loss"] = value.detach().numpy()
            found[f"{case}/gradients"] = torch.stack([x.grad for x in both]).numpy()
    about = "Distillation losses of a student with two heads: logits and labels in, losses and gradients out."
    support.record(
        "deit_distillation", found, about, "https://github.com/facebookresearch/deit", "deit", path, ["torch"]
    )


if __name__ == "__main__":
    main()
