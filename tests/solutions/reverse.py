"""Exercise 1, reverse KL: this function in the place of train_soft.py's loss."""

import math

import torch

import trie


def loss(logits: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """KL(model || target) at each prefix, averaged over an answer's prefixes. Nats per token, (R,).

        KL(prefix) = sum over the full vocabulary of  p(v) (log p(v) - log t(v))

    Off the trie the target is 0 and this would be infinite, so 10^-4 of it lies on all tokens alike:
    t = (1 - 10^-4) q + 10^-4 / V. Shapes as in train_soft.py.
    """
    tokens, q, real = batch["tokens"], batch["q"], batch["completions"] != trie.PAD
    everywhere = 1e-4 / logits.shape[-1]
    log_p = logits.float().log_softmax(-1)  # (R, L, V)
    p = log_p.gather(-1, tokens).exp() * (q > 0)  # (R, L, C)
    cross = (p * ((1 - 1e-4) * q + everywhere).log()).sum(-1) + (1 - p.sum(-1)) * math.log(
        everywhere
    )
    kl = (log_p.exp() * log_p).sum(-1) - cross  # (R, L)
    return (kl * real).sum(1) / real.sum(1)
