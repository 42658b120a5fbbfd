"""Records a tiny gMLP and aMLP for text of g-mlp-pytorch, with Toeplitz matrices in its gates. Needs it and torch."""

import torch
from g_mlp_pytorch import gMLP
from torch import nn

from tests.references.make import support

VOCABULARY, WIDTH, TOKENS, DEPTH = 50, 24, 12, 2


def model(attention: int | None, seed: int) -> gMLP:
    """Build a gMLP, or an aMLP with `attention` channels, with random weights.

    Its output shares the embedding's matrix, and the matrices W of its gates have equal numbers along each diagonal, as
    in gMLP's paper: the package's own `circulant_matrix` is something different. Norms add 1e-6 to the variance.
    """
    torch.manual_seed(seed)
    made = gMLP(num_tokens=VOCABULARY, dim=WIDTH, depth=DEPTH, seq_len=TOKENS, ff_mult=2, attn_dim=attention)
    for parameter in made.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape)
    for module in made.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-6
    for name, parameter in made.named_parameters():
        if name.endswith("sgu.weight"):  # [1, n, n]
            distances = 0.3 * torch.randn(2 * TOKENS - 1)
            for row in range(TOKENS):
                for column in range(TOKENS):
                    parameter.data[0, row, column] = distances[row - column + TOKENS - 1]
    made.to_logits[1].weight.data = made.to_embed.weight.data
    return made.eval()


def main() -> None:
    """Run g-mlp-pytorch."""
    found = {}
    for name, attention in (("gmlp", None), ("amlp", 8)):
        made = model(attention, 0)
        tokens = torch.randint(VOCABULARY, (3, TOKENS))
        found |= {f"{name}/weights/{key}": value.numpy() for key, value in made.state_dict().items()}
        with torch.no_grad():
            found |= {f"{name}/tokens": tokens.numpy(), f"{name}/logits": made(tokens).numpy()}
    about = "A tiny gMLP and aMLP for text: weights, tokens [B, n] and logits [B, n, V] of every token."
    repository = "https://github.com/lucidrains/g-mlp-pytorch"
    support.record("g_mlp_pytorch", found, about, repository, "g_mlp_pytorch", packages=["g-mlp-pytorch", "torch"])


if __name__ == "__main__":
    main()
