"""Exercise 5, on-policy training: functions that replace train_soft.py's prepare.

The loop of train_soft.py also needs the second and third of these lines, after the first:

            answers = answers_of(part)
            prompts = [examples[unit.prompt]["prompt"] for unit in part]
            draw(model, end, prompts, answers)

train_soft.py shows the model the prefixes that the target would write. Here the model
writes its own prefixes, as it does when it is used, and learns the target at each of
them. This is DAgger (Ross et al. 2011, arXiv 1011.0686); for language models it is called
on-policy distillation (Agarwal et al. 2023, arXiv 2306.13649).

Where the model's answer leaves the trie, there is no target. From there on the target
writes the rest. Otherwise the model would never see how a number with five decimals ends.
"""

import numpy as np

import distributions
import trie

MAX_TOKENS = 32  # of an answer that the model draws


def prepare(tokenizer, end: int, row: dict, draws: int, rng: np.random.Generator) -> dict:
    """Prepare `draws` answers: their trie, and random numbers to draw each of them with.

    Returns the prompt's token ids and the answers, as train_soft.py's prepare does. draw()
    adds their paths and targets. They have no floor: that would be an average over the
    paths of a perfect sampler, and these paths are the model's.
    """
    texts, probs, _ = distributions.canonical_outputs(row)
    tree = trie.Trie(trie.encode(tokenizer, texts, end), probs)
    answers = []
    for uniform in rng.random((draws, MAX_TOKENS)):
        answers.append({"path": [], "tree": tree, "uniform": uniform, "weight": 1})
    return {"prompt": trie.chat_ids(tokenizer, row["prompt"]), "answers": answers}


def draw(model, end: int, prompts: list[list[int]], answers: list[dict]) -> None:
    """Give each answer a path, drawn from the model as it is now, and the targets along it.

    The answers to a prompt are consecutive, with equally many for each of the prompts.
    """
    uniform = np.stack([answer["uniform"] for answer in answers])
    model.eval()  # no dropout: draw from the model as it will be used
    drawn = trie.walk(model, prompts, [end], uniform)
    model.train()

    for answer, drawn_path in zip(answers, drawn, strict=True):
        tree = answer["tree"]
        width = tree.tokens.shape[1]
        path = np.full(width, trie.PAD - 1)  # what comes after the drawn path matches no leaf
        drawn_path = drawn_path[:width]
        path[: len(drawn_path)] = drawn_path

        # For each leaf, the number of tokens that it shares with the drawn path before they part.
        shared = (tree.tokens == path).cumprod(1).sum(1)  # (N,)
        # Among the leaves that share the most, the target chooses, with the last random number.
        probs = np.where(shared == shared.max(), tree.probs, 0)
        cumulative = probs.cumsum()
        leaf = np.searchsorted(cumulative, answer["uniform"][-1] * cumulative[-1], "right")
        answer["path"] = tree.path(leaf)
        answer["targets"] = tree.path_targets(leaf)
