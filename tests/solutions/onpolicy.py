"""Exercise 5, on-policy: these functions in the place of train_soft.py's prepare, and one new line in its loop,

                own = answers_of(part)
                draw(model, end, [data[i]["prompt"] for i, _ in part], own)

train_soft.py shows the model the prefixes that the target would write. Here the model writes them, as it does when it is
used, and learns the target at each of them (DAgger, Ross et al. 2011, arXiv 1011.0686; for language models on-policy
distillation, Agarwal et al. 2023, arXiv 2306.13649). Where its answer leaves the trie there is no target; from there on
the target writes the rest: without it the model would never see how a number with five decimals ends.
"""

import numpy as np

import trie
from distributions import canonical_outputs


def prepare(tokenizer, end: int, row: dict, draws: int, rng: np.random.Generator) -> dict:
    """One prompt's ids and `draws` answers that are still to be drawn: the trie, and 32 random numbers for each."""
    texts, probs, _ = canonical_outputs(row)
    tree = trie.Trie(trie.encode(tokenizer, texts, end), probs)
    answers = [
        {"path": [], "tree": tree, "uniform": uniform, "weight": 1}
        for uniform in rng.random((draws, 32))
    ]
    return {"prompt": trie.chat_ids(tokenizer, row["prompt"]), "answers": answers}


def draw(model, end: int, prompts: list[list[int]], answers: list[dict]) -> None:
    """Give each answer a path, drawn from the model as it is now, and the targets along it."""
    model.eval()
    drawn = trie.walk(model, prompts, [end], np.stack([answer["uniform"] for answer in answers]))
    model.train()
    for answer, own in zip(answers, drawn, strict=True):
        tree, width = answer["tree"], answer["tree"].tokens.shape[1]
        own = np.array(
            (own + [trie.PAD - 1] * width)[:width]
        )  # what follows the answer agrees with no leaf
        agrees = (tree.tokens == own).cumprod(1).sum(1)  # (N,): with each leaf, for so many tokens
        closest = np.where(agrees == agrees.max(), tree.probs, 0).cumsum()
        leaf = np.searchsorted(closest, answer["uniform"][-1] * closest[-1], "right")
        answer["path"], answer["targets"] = tree.path(leaf), tree.path_targets(leaf)
