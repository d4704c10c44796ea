"""The target distributions: 30 families, their prompts, and the exact probability of each answer.

    python distributions.py --out runs/data    # train.jsonl, unseen.jsonl and ood.jsonl

Ask a model for "ONE random number from a Gaussian distribution with parameters mu=3.5, sigma=3",
and all it can do is print text. This file defines which strings are answers and how probable each
of them should be. The families, their parameter grids and the prompt are the paper's (arXiv
2605.11845), with one difference: parameters are rounded to four significant digits, and the target
is computed from the rounded values, so it matches the prompt exactly.

A prompt is a row of JSONL with the keys id, split, family, params and prompt. The splits are
"train", "unseen" (new parameters of the trained families) and "ood" (out of distribution: families
that are held out of training). A row may also set "decimals" (default 5). Instead of a family and
params, it may give its own target: "outputs", a list of strings, and "probs".

This file knows nothing about tokens or models. Invalid input raises InputError. The last third
holds what all scripts share: reading and writing JSONL, and parsing the command line.
"""

import argparse
import hashlib
import itertools
import json
import math
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import stats

DECIMALS = 5  # decimal places of a continuous answer
MAX_BINS = 1001  # the default limit on canonical outputs (explained below)
TAIL = 0.001  # canonical outputs range from the TAIL quantile to the 1 - TAIL quantile


class InputError(ValueError):
    """A user error, reported in one line: what is wrong, where, and how to fix it."""


# ------------------------------------------------------------------------------- the 30 families

PROMPT = (
    "Generate exactly ONE random number from a {} distribution with parameters {}. "
    "Output ONLY the number."
)


# scipy parametrizes some families in its own way. These functions turn a prompt's parameters into
# the arguments of scipy's distribution: first its shape parameters, then location and scale.


def unchanged(*values):
    return values


def scale_only(scale):
    return 0, scale


def shape_and_scale(shape, scale):
    return shape, 0, scale


def rate(lambda_):
    return 0, 1 / lambda_


def start_and_end(a, b):
    return a, b - a


def log_mean(mu, sigma):
    return sigma, 0, math.exp(mu)


def corners(a, c, b):
    return (c - a) / (b - a), a, b - a


def mean_and_shape(mu, lambda_):  # scipy's invgauss(m, 0, scale) has mean m * scale
    return mu / lambda_, 0, lambda_


def standardized_bounds(mu, sigma, lower, upper):
    return (lower - mu) / sigma, (upper - mu) / sigma, mu, sigma


class Family(NamedTuple):
    """One family of distributions. To add a family, add an entry to FAMILIES; the rest follows."""

    name: str  # as written in the prompt
    params: str  # the names of its parameters, in prompt order
    dist: stats.rv_continuous | stats.rv_discrete
    args: Callable[..., tuple] = unchanged  # parameters -> scipy's arguments (shapes, loc, scale)
    train: Iterable[tuple] = ()  # the training grid
    unseen: Iterable[tuple] = ()  # new parameters, outside the training grid
    ood: Iterable[tuple] = ()  # parameters of a held-out family, which has no training grid

    def prompt(self, params: dict) -> str:
        """The paper's prompt, with the parameters as plain decimals."""
        shown = []
        for name in self.params.split():
            value = np.format_float_positional(params[name], trim="-")  # 3, not 3.0; never 1e-05
            shown.append(f"{name}={value}")
        return PROMPT.format(self.name, ", ".join(shown))


def grid(*axes) -> list[tuple]:
    """Every combination of the axes' values."""
    return list(itertools.product(*axes))


lin, geo = np.linspace, np.geomspace
LOCATION_SCALE = grid(lin(-2, 2, 11), geo(0.5, 2, 11))
BINOMIAL_P = (0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.65, 0.7, 0.75, 0.8)

FAMILIES = {
    "uniform": Family("Uniform", "a b", stats.uniform, start_and_end,
        train=[(a, a + width) for a in lin(-5, 2, 11) for width in lin(1, 5, 11)],
        unseen=[(3.5, 10.5)]),
    "gaussian": Family("Gaussian", "mu sigma", stats.norm,
        train=LOCATION_SCALE, unseen=[(3.5, 3)]),
    "beta": Family("Beta", "alpha beta", stats.beta,
        train=grid(geo(.5, 5, 11), geo(.5, 5, 11)), unseen=[(7, 7)]),
    "binomial": Family("Binomial", "n p", stats.binom,
        train=grid((5, 10, 15, 20), BINOMIAL_P), unseen=[(25, .5)]),
    "exponential": Family("Exponential", "lambda", stats.expon, rate,
        train=grid(geo(.5, 5, 25)), unseen=[(7,)]),
    "geometric": Family("Geometric", "p", stats.geom,
        train=grid((.2, .225, .25, .3, .35, .4, .5, .6, .65, .7, .75, .775, .8)),
        unseen=[(.125,)]),
    "negative_binomial": Family("Negative Binomial", "r p", stats.nbinom,
        train=grid((3, 5, 8, 12), BINOMIAL_P), unseen=[(15, .15)]),
    "lognormal": Family("LogNormal", "mu sigma", stats.lognorm, log_mean,
        train=grid(lin(-1, 1.5, 11), geo(.25, 1.25, 11)), unseen=[(2.5, 2)]),
    "triangular": Family("Triangular", "a c b", stats.triang, corners,
        train=[(a, a + width * mode, a + width)
               for a in lin(-3, 1, 5) for width in lin(1, 5, 5) for mode in (.1, .3, .5, .7, .9)],
        unseen=[(2.5, 6, 9.5)]),
    "rayleigh": Family("Rayleigh", "sigma", stats.rayleigh, scale_only,
        train=grid(geo(.5, 2, 25)), unseen=[(3,)]),
    "cauchy": Family("Cauchy", "x0 gamma", stats.cauchy,
        train=LOCATION_SCALE, unseen=[(3.5, 3)]),
    "student_t": Family("Student's t", "nu", stats.t,
        train=grid((2.5, 2.75, 3, 3.5, 4, 4.5, 5, 6, 7, 8, 9, 10)), unseen=[(16,)]),
    "chi_square": Family("Chi-Square", "nu", stats.chi2,
        train=grid((2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 18, 20)), unseen=[(32,)]),
    "f_distribution": Family("F-Distribution", "d1 d2", stats.f,
        train=grid((3, 5, 7, 10), (5, 10, 15, 20)), unseen=[(12, 24)]),
    # In the paper's prompts, beta is the scale of a Gamma distribution, not its rate.
    "gamma": Family("Gamma", "alpha beta", stats.gamma, shape_and_scale,
        train=grid(geo(1, 5, 11), geo(1, 5, 11)), unseen=[(7, 7)]),
    "laplace": Family("Laplace", "mu b", stats.laplace,
        train=LOCATION_SCALE, unseen=[(3.5, 3)]),
    "logistic": Family("Logistic", "mu s", stats.logistic,
        train=LOCATION_SCALE, unseen=[(3.5, 3)]),
    "pareto": Family("Pareto", "alpha xm", stats.pareto, shape_and_scale,
        train=grid((2, 2.25, 2.5, 2.75, 3, 3.5, 4, 4.5, 5), geo(.5, 2, 11)),
        unseen=[(6.5, 3.5)]),
    "hypergeometric": Family("Hypergeometric", "M K N", stats.hypergeom,
        train=[(M, round(M * share), N)
               for M in (30, 50, 80) for N in (5, 10, 15) for share in (.2, .35, .5, .65, .8)],
        unseen=[(100, 50, 20)]),
    "gumbel": Family("Gumbel", "mu beta", stats.gumbel_r,
        train=LOCATION_SCALE, unseen=[(3.5, 3)]),
    "skellam": Family("Skellam", "mu1 mu2", stats.skellam,
        train=grid(geo(1, 8, 11), geo(1, 8, 11)), unseen=[(10.5, 10.5)]),
    "beta_binomial": Family("Beta-Binomial", "n alpha beta", stats.betabinom,
        train=grid((10, 20, 30), geo(.5, 5, 5), geo(.5, 5, 5)), unseen=[(40, 6.5, 6.5)]),
    "lomax": Family("Lomax", "alpha lambda", stats.lomax, shape_and_scale,
        train=grid(geo(1.5, 4, 11), geo(.5, 3, 11)), unseen=[(6, 4.5)]),
    "inverse_gaussian": Family("Inverse Gaussian", "mu lambda", stats.invgauss, mean_and_shape,
        train=grid(geo(.5, 3, 11), geo(.5, 5, 11)), unseen=[(5, 7)]),
    # The held-out families.
    "bernoulli": Family("Bernoulli", "p", stats.bernoulli, ood=[(.1,), (.5,), (.9,)]),
    "poisson": Family("Poisson", "lambda", stats.poisson, ood=[(1,), (4,), (12,)]),
    "weibull": Family("Weibull", "k lambda", stats.weibull_min, shape_and_scale,
        ood=[(.5, .5), (1.5, 1.5), (3, 3)]),
    "maxwell": Family("Maxwell", "scale", stats.maxwell, scale_only,
        ood=[(.75,), (1.5,), (2.5,)]),
    "chi": Family("Chi", "df", stats.chi, ood=[(2,), (5,), (10,)]),
    "truncnorm": Family("TruncNorm", "mu sigma lower upper", stats.truncnorm, standardized_bounds,
        ood=[(0, 1, -1, 1), (0, 1, -2, 2), (1, 1.5, -1, 2)]),
}  # fmt: skip


def significant(x: float) -> int | float:
    """Round x to four significant digits; a whole number becomes an int (3, not 3.0)."""
    x = round(x, 9)  # clears floating-point dust: 0.1 + 0.2 - 0.3 is 6e-17
    x = float(f"{x:.4g}")
    return int(x) if x == int(x) else x


def make_rows(split: str, decimals: int = DECIMALS) -> list[dict]:
    """The prompts of a split ("train", "unseen" or "ood"), one row each, in a fixed order.

    >>> row = make_rows("ood")[3]
    >>> row["id"], row["params"]
    ('ood-poisson-000', {'lambda': 1})
    >>> row["prompt"].split(". ")[0]
    'Generate exactly ONE random number from a Poisson distribution with parameters lambda=1'
    """
    rows = []
    for family, spec in FAMILIES.items():
        for i, values in enumerate(getattr(spec, split)):
            rounded = [significant(value) for value in values]
            params = dict(zip(spec.params.split(), rounded, strict=True))
            row = {"id": f"{split}-{family}-{i:03d}", "split": split}
            row |= {"family": family, "params": params}
            if decimals != DECIMALS:
                row["decimals"] = decimals
            row["prompt"] = spec.prompt(params)
            rows.append(row)
    return rows


def distribution(row: dict):
    """The row's distribution, as a frozen scipy distribution.

    Raises InputError if the family is unknown, or if the params are not valid for it.
    """
    family, params = row["family"], row["params"]
    if family not in FAMILIES:
        raise InputError(f"unknown family {family!r}; known: {', '.join(FAMILIES)}")
    spec = FAMILIES[family]
    names = spec.params.split()
    if set(params) != set(names):
        raise InputError(f"{family} takes the parameters {', '.join(names)} (got {params})")

    try:
        values = [params[name] for name in names]
        # Other tools may write 3 as 3.0. As ints, both give bit-identical probabilities.
        values = [int(value) if value == int(value) else value for value in values]
        with np.errstate(all="ignore"):
            frozen = spec.dist(*spec.args(*values))
            valid = not np.isnan(frozen.support()).any()  # invalid parameters give nan
    except (ArithmeticError, TypeError, ValueError):  # such as 1 / 0, or a string
        valid = False
    if not valid:
        raise InputError(f"{family}: there is no such distribution with the parameters {params}")
    return frozen


def is_discrete(row: dict) -> bool:
    return "outputs" in row or isinstance(FAMILIES[row["family"]].dist, stats.rv_discrete)


# --------------------------------------------------------------------------- canonical outputs
# A draw from a continuous distribution could be any of millions of five-decimal numbers. We keep at
# most 1001 of them, evenly spaced; each stands for all the numbers nearest to it. These are the
# *canonical outputs*. canonical_outputs() finds them in three steps. For a Gaussian with mu=3.5 and
# sigma=3, for example:
#
#     lattice     all numbers from -5.77069 to 12.77069, as integers: -577069, -577068, ...
#     thin        1001 of these: -577069, -575215, ...
#     to_texts    "-5.77069", "-5.75215", ...
#
# For a discrete family, every whole number in the range is an output.


class Lattice(NamedTuple):
    """The numbers that a target covers: k / scale, for the integers k from first to last.

    scale is 10^decimals for a continuous family and 1 for a discrete one.
    """

    # cdf(k) is the probability of everything up to k / scale. Only for a discrete family do the end
    # numbers take the tails: there it is 0 below `first`, and 1 from `last` on.
    cdf: Callable[[np.ndarray], np.ndarray]
    scale: int
    first: int
    last: int

    def probability(self, k: np.ndarray) -> np.ndarray:
        """The probability that an exact sample rounds to k / scale. For the tails, see `cdf`."""
        return self.cdf(k + 0.5) - self.cdf(k - 0.5)

    def at_most(self, k: np.ndarray) -> np.ndarray:
        """The probability of the numbers up to k / scale, where the end numbers take the tails."""
        inside = np.where(k < self.last, self.cdf(k + 0.5), 1.0)
        return np.where(k < self.first, 0.0, inside)


def lattice(row: dict) -> Lattice:
    """The numbers that a row's target covers, from the .001 quantile to the .999 quantile.

    Where the support of a discrete family is bounded, the range extends to the bound.

    Raises InputError if the numbers are too large for their decimals, or if there are fewer than
    two numbers, or more than 1001 for a discrete family.
    """
    frozen = distribution(row)
    discrete = is_discrete(row)
    about = f"{row['family']} with {row['params']}"
    decimals = 0 if discrete else int(row.get("decimals", DECIMALS))
    if decimals < 0:
        raise InputError(f"{about}: decimals must not be negative (got {decimals})")
    scale = 10**decimals

    with np.errstate(all="ignore"):
        low, high = frozen.ppf([TAIL, 1 - TAIL]) * scale
    if discrete:
        start, end = frozen.support()
        low = start if np.isfinite(start) else low
        high = end if np.isfinite(end) else high

    # Far beyond 10^11, float64 cannot resolve the probability of a single number.
    if not (abs(low) < 1e11 and abs(high) < 1e11):  # "not <" is also true for nan
        raise InputError(f"{about}: its numbers are too large for {decimals} decimals")
    if discrete and high - low >= MAX_BINS:
        raise InputError(f"{about}: more than {MAX_BINS} outputs, the limit for discrete families")

    # The tolerance keeps a quantile such as 3.507 inside: times 10^5 it is 350700.00000000006.
    first = math.ceil(low - 1e-12 * abs(low))
    last = math.floor(high + 1e-12 * abs(high))
    has_one_value = discrete and frozen.var() == 0  # such as Bernoulli with p = 0
    if first >= last or has_one_value:
        raise InputError(f"{about}: fewer than two possible answers with {decimals} decimals")

    def continuous_cdf(k):
        return frozen.cdf(k / scale)

    def discrete_cdf(k):
        inside = np.where(k < last, frozen.cdf(np.floor(k)), 1.0)
        return np.where(k < first, 0.0, inside)

    return Lattice(discrete_cdf if discrete else continuous_cdf, scale, first, last)


def thin(first: int, last: int, max_bins: int) -> tuple[np.ndarray, np.ndarray]:
    """At most max_bins integers from first to last, evenly spaced, and the midpoints between them.

    >>> thin(0, 9, 4)
    (array([0, 3, 6, 9]), array([1.5, 4.5, 7.5]))
    """
    count = min(last - first + 1, max_bins)
    offsets = np.linspace(0, last - first, count)
    values = first + np.rint(offsets).astype(np.int64)
    return values, (values[:-1] + values[1:]) / 2


def to_texts(values: np.ndarray, scale: int) -> list[str]:
    """The numbers values / scale as canonical strings, all with the same number of decimals.

    >>> to_texts(np.array([-1, 0, 350000]), scale=10**5)    # zero has no sign
    ['-0.00001', '0.00000', '3.50000']
    """
    if scale == 1:
        return [str(value) for value in values.tolist()]
    texts = []
    for value in values.tolist():
        sign = "-" if value < 0 else ""
        whole, fraction = divmod(abs(value), scale)
        digits = str(scale + fraction)[1:]  # 100000 + 7 -> "00007"
        texts.append(f"{sign}{whole}.{digits}")
    return texts


def canonical_outputs(
    row: dict, max_bins: int = MAX_BINS
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Every canonical output of a row: texts, in ascending order, probs (N,) and perfect (N,).

    probs is the target. If there are more than max_bins numbers, max_bins of them are kept, evenly
    spaced, and each takes the probability of everything that is nearer to it than to its
    neighbours; the first and the last take the tails. So probs sums to 1.

    perfect is the probability that a perfect sampler prints exactly this string. It may print any
    number, not only the ones we keep, so perfect sums to less than 1. (trie.kl_floor uses it.)
    Where all numbers of a discrete family are kept, perfect equals probs.

    >>> texts, probs, _ = canonical_outputs({"family": "binomial", "params": {"n": 2, "p": 0.5}})
    >>> dict(zip(texts, probs.round(2).tolist()))
    {'0': 0.25, '1': 0.5, '2': 0.25}
    """
    if "outputs" in row:  # these stay in their own order
        probs = np.array(row["probs"], float)
        return row["outputs"], probs, probs
    numbers = lattice(row)
    values, midpoints = thin(numbers.first, numbers.last, max_bins)
    probs = np.diff(numbers.cdf(midpoints), prepend=0.0, append=1.0)  # between the midpoints
    return to_texts(values, numbers.scale), probs, numbers.probability(values)


# ------------------------------------------------------------------- exact samples and batches


def sample_outputs(
    row: dict, n: int, rng: np.random.Generator, max_bins: int | None
) -> tuple[list[str], np.ndarray]:
    """Draw n exact samples from a row's target: strings, and the probability `perfect` of each.

    Snapping each draw to the nearest canonical output gives every output exactly its target
    probability, without computing any of these. max_bins=None keeps every number of the lattice.
    """
    if "outputs" in row:
        texts, probs, perfect = canonical_outputs(row)
        drawn = rng.choice(len(texts), n, p=probs)
        return [texts[i] for i in drawn], perfect[drawn]

    numbers = lattice(row)
    draws = distribution(row).rvs(size=n, random_state=rng) * numbers.scale
    if max_bins is None:
        values = np.rint(draws).clip(numbers.first, numbers.last).astype(np.int64)
    else:
        kept, midpoints = thin(numbers.first, numbers.last, max_bins)
        values = kept[np.searchsorted(midpoints, draws)]
    return to_texts(values, numbers.scale), numbers.probability(values)


def prompt_rng(seed: int, prompt_id: str) -> np.random.Generator:
    """A random stream for one prompt: its draws do not depend on other prompts or their order."""
    return np.random.default_rng([seed, *prompt_id.encode()])


def mixed_batches(families: list[str], size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Shuffle items into batches of at most `size`; families[i] is the family of item i.

    Every family is spread evenly. Returns the items' indices, an array for each batch.

    Think of the epoch as the interval [0, 1). For a family of m members, we divide it into m equal
    slots, and put one member at a random place in each. Then we sort all items by place, and divide
    them into batches. So even a small family appears at regular intervals.

    >>> families = ["a"] * 6 + ["b"] * 2
    >>> batches = mixed_batches(families, 4, np.random.default_rng(0))
    >>> [sorted(families[i] for i in batch) for batch in batches]
    [['a', 'a', 'a', 'b'], ['a', 'a', 'a', 'b']]
    """
    _, family_of, counts = np.unique(families, return_inverse=True, return_counts=True)
    slot = np.empty(len(families))
    for number, count in enumerate(counts):
        slot[family_of == number] = rng.permutation(count)
    place = (slot + rng.random(len(families))) / counts[family_of]
    return np.array_split(np.argsort(place), math.ceil(len(families) / size))


# -------------------------------------------------------------------------------- JSONL files


def refuse_constant(name: str):
    """Python's json reads NaN and Infinity, but they are not JSON, and other tools reject them."""
    raise ValueError(f"{name} is not a JSON number")


def read_rows(
    paths: Iterable[str | Path],
    keys: Iterable[str] = (),
    name: Callable[[dict], str] | None = None,
) -> list[dict]:
    """Read JSONL files. Every line must be an object that has all of `keys`.

    name(row) checks a row and returns its name; no two rows may have the same name. Raises
    InputError, which names the file and the line.
    """
    rows, line_of = [], {}
    for path in paths:
        lines = Path(path).read_bytes().splitlines() or [b""]  # an empty file is an error, too
        for number, line in enumerate(lines, 1):
            where = f"{path}:{number}"
            try:
                row = json.loads(line, parse_constant=refuse_constant)
                if not isinstance(row, dict) or not set(keys) <= set(row):
                    raise InputError(f"expected an object with the keys {', '.join(keys)}")
                row_name = name(row) if name else where
            except KeyError as error:
                raise InputError(f"{where}: the key {error} is missing") from None
            except (ValueError, TypeError) as error:  # an InputError is a ValueError, too
                raise InputError(f"{where}: {error}") from None
            if row_name in line_of:
                first = line_of[row_name]
                raise InputError(f"{where}: {row_name} is already in {first}; keep one of them")
            line_of[row_name] = where
            rows.append(row)
    return rows


def check_prompt(row: dict) -> str:
    """Check that a prompt is valid and can be scored, and return its name for error messages."""
    for key in ("id", "split", "prompt"):
        if not isinstance(row[key], str):
            raise InputError(f"{key} must be a string")
    if "draws" in row:
        raise InputError("expected a prompt, but this is a result, which already has draws")

    if "outputs" not in row:
        lattice(row)  # raises an error if the family, parameters or decimals are wrong
        return f"id {row['id']!r}"
    outputs, probs = row["outputs"], row["probs"]
    # The valid strings; fewer than outputs if some are not valid, or not different.
    texts = {text for text in outputs if isinstance(text, str) and text and text == text.strip()}
    if not 2 <= len(texts) == len(outputs) == len(probs):
        raise InputError(
            "outputs must be two or more different strings without leading or trailing spaces, and "
            "probs must have a number for each of them"
        )
    if not (min(probs) > 0 and abs(sum(probs) - 1) <= 1e-8):
        raise InputError(f"probs must be positive and sum to 1; they sum to {sum(probs):.9g}")
    return f"id {row['id']!r}"


def read_prompts(paths: Iterable[str | Path], limit: int | None = None) -> list[dict]:
    """Read prompts from files; with a limit, keep that many of them, evenly spaced."""
    rows = read_rows(paths, ("id", "split", "prompt"), check_prompt)
    if limit is None or limit >= len(rows):
        return rows
    return [rows[i * len(rows) // limit] for i in range(limit)]


def write_text(path: str | Path, text: str) -> None:
    """Write a file whole or not at all, by renaming a temporary file in the same folder."""
    temporary = Path(f"{path}.tmp")
    temporary.parent.mkdir(parents=True, exist_ok=True)
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def to_jsonl(rows: Iterable[dict]) -> str:
    lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows]
    return "".join(lines)


def digest(path: str | Path) -> str:
    """The SHA-256 checksum of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ------------------------------------------------------------------------------ command lines


def must_be_new(finished: Path, remove: Path | None = None) -> None:
    """Raises InputError if a result already exists: finished work is never overwritten."""
    if finished.exists():
        remove = remove or finished
        raise InputError(f"{finished} already exists; to make it again, remove {remove}")


def check_method(name: str) -> None:
    """Raises InputError if the name of an adapter's folder is reserved.

    base, ssot and target are methods without an adapter, and figures is the folder for pictures.
    """
    if name in ("base", "ssot", "figures") or name.startswith("target"):
        raise InputError(f"a method cannot be called {name!r}; choose another name for its folder")


class Parser(argparse.ArgumentParser):
    """An ArgumentParser with one-line errors. Every number must be positive (a seed may be 0)."""

    def __init__(self, **kwargs):
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)

    def error(self, message):
        raise InputError(f"{message}; --help lists the options")

    def parse_known_args(self, args=None, namespace=None):  # parse_args calls this, too
        known, others = super().parse_known_args(args, namespace)
        for key, value in vars(known).items():
            is_number = type(value) in (int, float)
            may_be_zero = key == "seed" and value == 0
            if is_number and not may_be_zero and not 0 < value < math.inf:
                option = key.replace("_", "-")
                raise InputError(f"--{option} must be a positive number (got {value})")
        return known, others


def run(main: Callable[[], None]) -> None:
    """Run a script's main(). A user error becomes one line on stderr, and exit status 1."""
    script = Path(sys.argv[0]).name
    hints = {  # other errors that users may hit: the name of the class, and what helps
        "OutOfMemoryError": "; lower --rows or, in training, raise --accumulate",
        "SafetensorError": "",  # its own message is enough
    }
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(f"{script}: interrupted; run the same command again to continue")
    except Exception as error:
        kind = type(error).__name__
        if not isinstance(error, InputError | OSError) and kind not in hints:
            raise
        line = " ".join(str(error).split())[:900]
        sys.exit(f"{script}: error: {line}{hints.get(kind, '')}")


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--out", required=True, help="folder for the three files")
    parser.add_argument(
        "--decimals",
        type=int,
        default=DECIMALS,
        help="decimal places of continuous answers (%(default)s)",
    )
    args = parser.parse_args()
    for split in ("unseen", "ood", "train"):  # the Makefile waits for train.jsonl, the last one
        path = Path(args.out) / f"{split}.jsonl"
        rows = make_rows(split, args.decimals)
        text = to_jsonl(rows)
        if not path.exists():
            write_text(path, text)
            families = {row["family"] for row in rows}
            print(f"{path}: {len(rows)} prompts, {len(families)} families")
        elif path.read_text() != text:
            raise InputError(
                f"{path} already exists with different prompts; to make it again, remove it"
            )


if __name__ == "__main__":
    run(main)
