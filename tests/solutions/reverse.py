"""Exercise 1, reverse KL: a loss that replaces train_soft.py's."""

import math

import torch

import trie

UNIFORM_SHARE = 1e-4  # of the target's probability is spread evenly over all tokens


def loss(logits: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """KL(model || target), averaged over the prefixes of an answer; nats per token, shape (R,).

        KL(prefix) = sum over the full vocabulary of  p(v) * (log p(v) - log t(v))

    Off the trie the target q is 0, and this sum would be infinite. So we mix a little of the
    uniform distribution into the target: t = (1 - 10^-4) * q + 10^-4 / V. Shapes as in
    train_soft.py.
    """
    tokens, q = batch["tokens"], batch["q"]
    real = batch["completions"] != trie.PAD  # (R, L)
    off_trie = UNIFORM_SHARE / logits.shape[-1]  # t of a token that is not in the trie
    on_trie = (1 - UNIFORM_SHARE) * q + off_trie  # (R, L, C), t of a prefix's children

    log_p = logits.float().log_softmax(-1)  # (R, L, V)
    p = log_p.gather(-1, tokens).exp()  # (R, L, C)
    p = p * (q > 0)  # subtle: without this, the padding of C would count token 0 again

    expected_log_t = (p * on_trie.log()).sum(-1)  # (R, L), under the model
    expected_log_t = expected_log_t + (1 - p.sum(-1)) * math.log(off_trie)
    expected_log_p = (log_p.exp() * log_p).sum(-1)
    kl = expected_log_p - expected_log_t
    return (kl * real).sum(1) / real.sum(1)
