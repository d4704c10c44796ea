"""Exercise 3, the exact trie: these functions in the place of train_soft.py's prepare.

No bins: a prefix such as "-1.2" is an interval of the line, and its mass a difference of the CDF, so every five-decimal
value is a leaf and a perfect sampler's loss is 0. For tokenizers with one token per character of a number (Qwen3,
Gemma 3, SmolLM2, the embedded model).
"""

import re

import numpy as np

import trie
from distributions import InputError, is_discrete, lattice, sample_outputs

MANY = 10**15


def spans(prefix: str, decimals: int) -> list[tuple[int, int]]:
    """The integers k, as ranges (first, last), for which the text of k / 10^decimals begins with a prefix."""
    form = re.fullmatch(r"(-?)(0|[1-9]\d*|)(?:(\.)(\d*))?", prefix)
    if not form or (form[3] and (not form[2] or not decimals or len(form[4]) > decimals)):
        return []
    sign, whole, point, part = form.groups(default="")
    if not whole:
        found = [(0, MANY)]
    elif point or whole == "0":
        unit = 10 ** (decimals - len(part))
        found = [(int(whole + part) * unit, (int(whole + part) + 1) * unit - 1)]
    else:  # more digits of the whole part may follow
        found = [
            (int(whole) * 10**m, (int(whole) + 1) * 10**m - 1)
            for m in range(decimals, decimals + 10)
        ]
    if sign:  # there is no -0
        found = [(-b, -max(a, 1)) for a, b in found]
    return found if prefix else [(-MANY, MANY)]


def prepare(tokenizer, end: int, row: dict, draws: int, rng: np.random.Generator) -> dict:
    """One prompt's ids and `draws` sampled answers, each with the exact targets along it; a perfect sampler loses 0."""
    texts, _ = sample_outputs(row, draws, rng, max_bins=None)
    tokens = trie.encode(tokenizer, texts, end)
    if [*map(len, texts)] != ((tokens != trie.PAD).sum(1) - 1).tolist():
        raise InputError("this tokenizer writes several characters of a number as one token")
    token_of = {char: trie.encode_one(tokenizer, char)[0] for char in "-.0123456789"}
    cdf, unit, first, last = lattice(row)
    decimals = len(str(unit)) - 1

    def mass(low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """Probability of the values low to high of the lattice: its two ends take the tails."""
        low, high = low.clip(first, last + 1), high.clip(first - 1, last)
        below = np.where(low == first, 0.0, cdf(low - 0.5))
        above = np.where(high == last, 1.0, cdf(high + 0.5))
        return np.where(low <= high, above - below, 0.0).clip(min=0)

    prefixes = sorted({text[:i] for text in texts for i in range(len(text) + 1)})
    longer = [prefix + char for prefix in prefixes for char in token_of]
    ranges = [(n, *span) for n, prefix in enumerate(longer) for span in spans(prefix, decimals)]
    owner, low, high = (np.array(column) for column in zip(*ranges, strict=True))
    masses = np.bincount(owner, mass(low, high), len(longer)).reshape(len(prefixes), -1)
    # A number by itself is followed by the end token; of a discrete family it may also be the start of another.
    number = re.compile(r"0|-?[1-9]\d*" if is_discrete(row) else rf"-?\d+\.\d{{{decimals}}}")
    k = np.array(
        [
            round(float(prefix) * unit) if number.fullmatch(prefix) else last + 1
            for prefix in prefixes
        ]
    )
    masses = np.column_stack([masses, mass(k, k)])
    children = np.array([*token_of.values(), end], np.int32)
    targets = {
        p: (children[own > 0], own[own > 0] / own.sum())
        for p, own in zip(prefixes, masses, strict=True)
    }
    answers = [
        {
            "path": line[line != trie.PAD],
            "targets": [targets[text[:i]] for i in range(len(text) + 1)],
        }
        for text, line in zip(texts, tokens, strict=True)
    ]
    return {
        "prompt": trie.chat_ids(tokenizer, row["prompt"]),
        "answers": [answer | {"weight": 1, "floor": 0.0} for answer in answers],
    }
