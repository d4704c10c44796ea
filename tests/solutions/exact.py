"""Exercise 3, the exact trie: these functions in the place of train_soft.py's prepare.

No bins: a prefix such as "-1.2" is an interval of the line, and its mass a difference of the CDF, so every five-decimal
value is a leaf and a perfect sampler's loss is 0. For tokenizers with one token per character of a number (Qwen3,
Gemma 3, the embedded model).
"""

import re

import numpy as np

import trie
from distributions import UNIT, InputError, candidate_range, sample_outputs, scipy_args

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
        found = [(int(whole) * 10**m, (int(whole) + 1) * 10**m - 1) for m in range(decimals, decimals + 10)]
    if sign:  # there is no -0
        found = [(-b, -max(a, 1)) for a, b in found]
    return found if prefix else [(-MANY, MANY)]


def prepare(tokenizer, end: int, row: dict, paths: int, rng: np.random.Generator) -> dict:
    """One prompt's ids, `paths` sampled paths with their exact targets, and the loss of a perfect sampler: 0."""
    spec, args = scipy_args(row["family"], row["params"])
    texts, _ = sample_outputs(row["family"], row["params"], paths, rng, max_bins=0)
    tokens = trie.encode(tokenizer, texts, end)
    if [*map(len, texts)] != ((tokens != trie.PAD).sum(1) - 1).tolist():
        raise InputError("this tokenizer writes several characters of a number as one token")
    token_of = {char: trie.encode_one(tokenizer, char)[0] for char in "-.0123456789"}
    first, last = candidate_range(spec, args)
    decimals, unit = (0, 1) if spec.discrete else (5, UNIT)

    def mass(low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """Probability of first..last, low to high: the two ends take the tails, as in canonical_outputs."""
        low, high = low.clip(first, last + 1), high.clip(first - 1, last)
        half = 0 if spec.discrete else 0.5
        below = np.where(low == first, 0.0, spec.dist.cdf((low - 1 + half) / unit, *args))
        above = np.where(high == last, 1.0, spec.dist.cdf((high + half) / unit, *args))
        return np.where(low <= high, above - below, 0.0).clip(min=0)

    prefixes = sorted({text[:i] for text in texts for i in range(len(text) + 1)})
    longer = [prefix + char for prefix in prefixes for char in token_of]
    ranges = [(n, *span) for n, prefix in enumerate(longer) for span in spans(prefix, decimals)]
    owner, low, high = (np.array(column) for column in zip(*ranges, strict=True))
    masses = np.bincount(owner, mass(low, high), len(longer)).reshape(len(prefixes), -1)
    # A number by itself is followed by the end token; of a discrete family it may also be the start of another.
    number = re.compile(r"0|-?[1-9]\d*" if spec.discrete else rf"-?\d+\.\d{{{decimals}}}")
    k = np.array([round(float(prefix) * unit) if number.fullmatch(prefix) else last + 1 for prefix in prefixes])
    masses = np.column_stack([masses, mass(k, k)])
    children = np.array([*token_of.values(), end], np.int32)
    targets = {p: (children[row > 0], row[row > 0] / row.sum()) for p, row in zip(prefixes, masses, strict=True)}
    return {
        "prompt": trie.chat_ids(tokenizer, row["prompt"]),
        "paths": [line[line != trie.PAD] for line in tokens],
        "targets": [[targets[text[:i]] for i in range(len(text) + 1)] for text in texts],
        "floor": 0.0,
    }
