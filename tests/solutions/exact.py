"""Exercise 3, the exact trie: functions that replace train_soft.py's prepare.

There are no bins. A prefix such as "-1.2" stands for an interval of the real line, and its mass is
a difference of the CDF. Every five-decimal value is therefore a leaf, and a perfect sampler's loss
is 0.

This needs a tokenizer with one token for each character of a number (Qwen3, Gemma 3, SmolLM2, the
bundled model).
"""

import re

import numpy as np

import distributions
import trie

CHARACTERS = "-.0123456789"
MANY = 10**15  # larger than any integer k on a lattice
MORE_DIGITS = 9  # before the decimal point, at most this many more digits may follow a prefix


def spans(prefix: str, decimals: int) -> list[tuple[int, int]]:
    """The integers k for which the text of k / 10^decimals begins with a prefix.

    They are returned as ranges (first, last), both included.

    >>> spans("1.2", decimals=2), spans("-0.", decimals=1), spans("01", decimals=1)
    ([(120, 129)], [(-9, -1)], [])
    """
    parts = re.fullmatch(r"(-?)(0|[1-9]\d*|)(?:(\.)(\d*))?", prefix)
    if not parts:
        return []
    sign, whole, point, fraction = parts.groups(default="")
    if point and (not whole or decimals == 0 or len(fraction) > decimals):
        return []
    if not prefix:
        return [(-MANY, MANY)]

    if not whole:  # only a sign so far
        magnitudes = [(0, MANY)]
    elif point or whole == "0":
        digits = int(whole + fraction)
        size = 10 ** (decimals - len(fraction))
        magnitudes = [(digits * size, (digits + 1) * size - 1)]
    else:  # more digits may follow before the point
        sizes = [10**zeros for zeros in range(decimals, decimals + MORE_DIGITS + 1)]
        magnitudes = [(int(whole) * size, (int(whole) + 1) * size - 1) for size in sizes]

    if sign:
        return [(-high, -max(low, 1)) for low, high in magnitudes]  # there is no -0
    return magnitudes


def mass(lattice: distributions.Lattice, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """The probability of the values from low to high; the lattice's two ends take the tails."""
    return (lattice.at_most(high) - lattice.at_most(low - 1)).clip(min=0)


def next_masses(row: dict, prefixes: list[str]) -> np.ndarray:
    """The mass of each of CHARACTERS behind each of P prefixes and, last, of the end. (P, 13)"""
    lattice = distributions.lattice(row)
    decimals = len(str(lattice.scale)) - 1

    # Several ranges may belong to one prefix: "1" begins 1, but also 10 to 19, and so on.
    longer = [prefix + character for prefix in prefixes for character in CHARACTERS]
    ranges = []
    for i, text in enumerate(longer):
        ranges += [(i, low, high) for low, high in spans(text, decimals)]
    index, low, high = (np.array(column) for column in zip(*ranges, strict=True))
    masses = np.bincount(index, mass(lattice, low, high), len(longer))
    masses = masses.reshape(len(prefixes), len(CHARACTERS))

    # A complete number may be followed by the end. A whole one may also begin a longer one.
    number = re.compile(rf"-?\d+\.\d{{{decimals}}}" if decimals else r"0|-?[1-9]\d*")
    outside = lattice.last + 1  # has no mass
    values = []
    for prefix in prefixes:
        complete = number.fullmatch(prefix)
        values.append(round(float(prefix) * lattice.scale) if complete else outside)
    values = np.array(values)
    return np.column_stack([masses, mass(lattice, values, values)])


def prepare(tokenizer, end: int, row: dict, draws: int, rng: np.random.Generator) -> dict:
    """Sample a prompt's answers and work out their exact targets, as train_soft.py's prepare does.

    A perfect sampler loses 0. Raises InputError if a token holds several characters of a number.
    """
    texts, _ = distributions.sample_outputs(row, draws, rng, max_bins=None)
    tokens = trie.encode(tokenizer, texts, end)
    paths = [line[line != trie.PAD] for line in tokens]
    if [len(path) for path in paths] != [len(text) + 1 for text in texts]:
        raise distributions.InputError(
            "this tokenizer writes several characters of a number as one token"
        )

    ids = [trie.encode_one(tokenizer, character)[0] for character in CHARACTERS]
    children = np.array([*ids, end], np.int32)
    prefixes = sorted({text[:length] for text in texts for length in range(len(text) + 1)})
    targets = {}
    for prefix, masses in zip(prefixes, next_masses(row, prefixes), strict=True):
        possible = masses > 0
        targets[prefix] = children[possible], masses[possible] / masses.sum()

    answers = []
    for text, path in zip(texts, paths, strict=True):
        along = [targets[text[:length]] for length in range(len(text) + 1)]
        answers.append({"path": path, "targets": along, "weight": 1, "floor": 0.0})
    return {"prompt": trie.chat_ids(tokenizer, row["prompt"]), "answers": answers}
