"""The target distributions: 30 families, their parameter grids, prompts and exact output probabilities.

    python distributions.py --out data          # train.jsonl (1988 prompts), unseen.jsonl (24), ood.jsonl (18)

A model asked for "ONE random number from a Gaussian distribution with parameters mu=3.5, sigma=3" can
print only finitely many answers. This file says which strings those are and how probable each one
should be. It knows nothing of tokens or models.

A continuous answer has five decimals, a discrete one is an integer. The canonical outputs of a
continuous family are the multiples of 10^-5 between its .001 and .999 quantiles, thinned to
`max_bins` of them; each takes the probability of everything nearer to it than to its neighbours.
Families, grids and prompts are those of the paper (arXiv 2605.11845) and its published code.

Choices where the paper leaves room, or where this kit differs from its published code:
1. Parameters are rounded to 4 significant digits, and the rounded numbers define the target, so that
   prompt and target agree exactly and prompts stay short.
2. `max_bins` is 1001 for soft training and for every score, 16384 for hard training, as published.

What this file does not do: fit anything, or guess. An unknown family or an impossible parameter is an
InputError that says so.
"""

import argparse
import itertools
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

PROMPT = (
    "Generate exactly ONE random number from a {name} distribution with parameters {params}. Output ONLY the number."
)
DECIMALS = 5
UNIT = 10**DECIMALS  # continuous values are held as integer multiples of 1/UNIT: exact, and never "-0.00000"
MAX_BINS = 1001
TAIL = 0.001  # canonical outputs span the TAIL and 1 - TAIL quantiles


class InputError(ValueError):
    """A user's mistake, told in one line: what is wrong, where, and how to mend it."""


# ------------------------------------------------------------------------------------- families and grids

# What a parameter may be: how to say it, and the test.
REAL = ("a number", lambda v: True)
POSITIVE = ("> 0", lambda v: v > 0)
PROBABILITY = ("strictly between 0 and 1", lambda v: 0 < v < 1)
COUNT = ("a positive integer", lambda v: v > 0 and v == int(v))


@dataclass(frozen=True)
class Family:
    """One family of distributions. To add one, add an entry to FAMILIES; everything downstream follows."""

    name: str  # as the prompt says it
    params: dict[str, tuple]  # name -> what it may be, in prompt order
    dist: stats.rv_continuous | stats.rv_discrete
    args: Callable[..., tuple]  # parameters, in prompt order -> arguments of `dist` (shapes, loc, scale)
    train: Iterable[tuple] = ()  # training grid
    unseen: tuple[tuple, ...] = ()  # parameters outside the training grid
    ood: tuple[tuple, ...] = ()  # a family with these is never trained on
    rule: tuple = ("", lambda *v: True)  # a condition on several parameters: how to say it, and the test

    @property
    def discrete(self) -> bool:
        return isinstance(self.dist, stats.rv_discrete)


def lin(low, high, n):
    return np.linspace(low, high, n).tolist()


def geo(low, high, n):
    return np.geomspace(low, high, n).tolist()


def product(*axes, repeat=1):
    return list(itertools.product(*axes, repeat=repeat))


LOCATION_SCALE = product(lin(-2, 2, 11), geo(0.5, 2, 11))
BINOMIAL_P = (0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.65, 0.7, 0.75, 0.8)
GEOMETRIC_P = (0.2, 0.225, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.65, 0.7, 0.75, 0.775, 0.8)
PARETO_ALPHA = (2, 2.25, 2.5, 2.75, 3, 3.5, 4, 4.5, 5)


def each(values):
    return [(v,) for v in values]


# fmt: off
FAMILIES = {
    "uniform": Family("Uniform", {"a": REAL, "b": REAL}, stats.uniform, lambda a, b: (a, b - a),
        train=[(a, a + w) for a in lin(-5, 2, 11) for w in lin(1, 5, 11)], unseen=((3.5, 10.5),),
        rule=("a < b", lambda a, b: a < b)),
    "gaussian": Family("Gaussian", {"mu": REAL, "sigma": POSITIVE}, stats.norm, lambda mu, sigma: (mu, sigma),
        train=LOCATION_SCALE, unseen=((3.5, 3),)),
    "beta": Family("Beta", {"alpha": POSITIVE, "beta": POSITIVE}, stats.beta, lambda a, b: (a, b),
        train=product(geo(.5, 5, 11), repeat=2), unseen=((7, 7),)),
    "binomial": Family("Binomial", {"n": COUNT, "p": PROBABILITY}, stats.binom, lambda n, p: (n, p),
        train=product((5, 10, 15, 20), BINOMIAL_P), unseen=((25, .5),)),
    "exponential": Family("Exponential", {"lambda": POSITIVE}, stats.expon, lambda rate: (0, 1 / rate),
        train=each(geo(.5, 5, 25)), unseen=((7,),)),
    "geometric": Family("Geometric", {"p": PROBABILITY}, stats.geom, lambda p: (p,),
        train=each(GEOMETRIC_P), unseen=((.125,),)),
    "negative_binomial": Family("Negative Binomial", {"r": POSITIVE, "p": PROBABILITY}, stats.nbinom, lambda r, p: (r, p),
        train=product((3, 5, 8, 12), BINOMIAL_P), unseen=((15, .15),)),
    "lognormal": Family("LogNormal", {"mu": REAL, "sigma": POSITIVE}, stats.lognorm, lambda mu, sigma: (sigma, 0, math.exp(mu)),
        train=product(lin(-1, 1.5, 11), geo(.25, 1.25, 11)), unseen=((2.5, 2),)),
    "triangular": Family("Triangular", {"a": REAL, "c": REAL, "b": REAL}, stats.triang, lambda a, c, b: ((c - a) / (b - a), a, b - a),
        train=[(a, a + w * m, a + w) for a in lin(-3, 1, 5) for w in lin(1, 5, 5) for m in (.1, .3, .5, .7, .9)],
        unseen=((2.5, 6, 9.5),), rule=("a <= c <= b and a < b", lambda a, c, b: a <= c <= b and a < b)),
    "rayleigh": Family("Rayleigh", {"sigma": POSITIVE}, stats.rayleigh, lambda sigma: (0, sigma),
        train=each(geo(.5, 2, 25)), unseen=((3,),)),
    "cauchy": Family("Cauchy", {"x0": REAL, "gamma": POSITIVE}, stats.cauchy, lambda x0, gamma: (x0, gamma),
        train=LOCATION_SCALE, unseen=((3.5, 3),)),
    "student_t": Family("Student's t", {"nu": POSITIVE}, stats.t, lambda nu: (nu,),
        train=each((2.5, 2.75, 3, 3.5, 4, 4.5, 5, 6, 7, 8, 9, 10)), unseen=((16,),)),
    "chi_square": Family("Chi-Square", {"nu": POSITIVE}, stats.chi2, lambda nu: (nu,),
        train=each((2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 18, 20)), unseen=((32,),)),
    "f_distribution": Family("F-Distribution", {"d1": POSITIVE, "d2": POSITIVE}, stats.f, lambda d1, d2: (d1, d2),
        train=product((3, 5, 7, 10), (5, 10, 15, 20)), unseen=((12, 24),)),
    "gamma": Family("Gamma", {"alpha": POSITIVE, "beta": POSITIVE}, stats.gamma, lambda alpha, beta: (alpha, 0, beta),
        train=product(geo(1, 5, 11), repeat=2), unseen=((7, 7),)),
    "laplace": Family("Laplace", {"mu": REAL, "b": POSITIVE}, stats.laplace, lambda mu, b: (mu, b),
        train=LOCATION_SCALE, unseen=((3.5, 3),)),
    "logistic": Family("Logistic", {"mu": REAL, "s": POSITIVE}, stats.logistic, lambda mu, s: (mu, s),
        train=LOCATION_SCALE, unseen=((3.5, 3),)),
    "pareto": Family("Pareto", {"alpha": POSITIVE, "xm": POSITIVE}, stats.pareto, lambda alpha, xm: (alpha, 0, xm),
        train=product(PARETO_ALPHA, geo(.5, 2, 11)), unseen=((6.5, 3.5),)),
    "hypergeometric": Family("Hypergeometric", {"M": COUNT, "K": COUNT, "N": COUNT}, stats.hypergeom, lambda M, K, N: (M, K, N),
        train=[(M, round(M * f), N) for M in (30, 50, 80) for N in (5, 10, 15) for f in (.2, .35, .5, .65, .8)],
        unseen=((100, 50, 20),), rule=("K <= M and N <= M", lambda M, K, N: K <= M and N <= M)),
    "gumbel": Family("Gumbel", {"mu": REAL, "beta": POSITIVE}, stats.gumbel_r, lambda mu, beta: (mu, beta),
        train=LOCATION_SCALE, unseen=((3.5, 3),)),
    "skellam": Family("Skellam", {"mu1": POSITIVE, "mu2": POSITIVE}, stats.skellam, lambda mu1, mu2: (mu1, mu2),
        train=product(geo(1, 8, 11), repeat=2), unseen=((10.5, 10.5),)),
    "beta_binomial": Family("Beta-Binomial", {"n": COUNT, "alpha": POSITIVE, "beta": POSITIVE}, stats.betabinom, lambda n, a, b: (n, a, b),
        train=product((10, 20, 30), geo(.5, 5, 5), geo(.5, 5, 5)), unseen=((40, 6.5, 6.5),)),
    "lomax": Family("Lomax", {"alpha": POSITIVE, "lambda": POSITIVE}, stats.lomax, lambda alpha, scale: (alpha, 0, scale),
        train=product(geo(1.5, 4, 11), geo(.5, 3, 11)), unseen=((6, 4.5),)),
    "inverse_gaussian": Family("Inverse Gaussian", {"mu": POSITIVE, "lambda": POSITIVE}, stats.invgauss, lambda mu, lam: (mu / lam, 0, lam),
        train=product(geo(.5, 3, 11), geo(.5, 5, 11)), unseen=((5, 7),)),
    # Held out: never trained on.
    "bernoulli": Family("Bernoulli", {"p": PROBABILITY}, stats.bernoulli, lambda p: (p,),
        ood=((.1,), (.5,), (.9,))),
    "poisson": Family("Poisson", {"lambda": POSITIVE}, stats.poisson, lambda rate: (rate,),
        ood=((1,), (4,), (12,))),
    "weibull": Family("Weibull", {"k": POSITIVE, "lambda": POSITIVE}, stats.weibull_min, lambda k, scale: (k, 0, scale),
        ood=((.5, .5), (1.5, 1.5), (3, 3))),
    "maxwell": Family("Maxwell", {"scale": POSITIVE}, stats.maxwell, lambda scale: (0, scale),
        ood=((.75,), (1.5,), (2.5,))),
    "chi": Family("Chi", {"df": POSITIVE}, stats.chi, lambda df: (df,),
        ood=((2,), (5,), (10,))),
    "truncnorm": Family("TruncNorm", {"mu": REAL, "sigma": POSITIVE, "lower": REAL, "upper": REAL}, stats.truncnorm,
        lambda mu, sigma, low, high: ((low - mu) / sigma, (high - mu) / sigma, mu, sigma),
        ood=((0, 1, -1, 1), (0, 1, -2, 2), (1, 1.5, -1, 2)), rule=("lower < upper", lambda mu, sigma, low, high: low < high)),
}
# fmt: on


def significant(x: float) -> int | float:
    """x to 4 significant digits; an int where the result is whole (so that JSON and prompt say 3, not 3.0)."""
    x = float(f"{round(x, 9):.4g}")  # the inner round clears float dust such as 2.2 - 2.2 = 4e-16
    return int(x) if x == int(x) else x


def make_prompt(family: str, params: dict) -> str:
    shown = (f"{k}={np.format_float_positional(v, trim='-')}" for k, v in params.items())
    return PROMPT.format(name=FAMILIES[family].name, params=", ".join(shown))


def make_rows(split: str) -> list[dict]:
    """The prompts of a split ("train", "unseen" or "ood"), one dict each, in a fixed order."""
    rows = []
    for family, spec in FAMILIES.items():
        for i, values in enumerate(getattr(spec, split)):
            params = dict(zip(spec.params, map(significant, values), strict=True))
            row = {"id": f"{split}-{family}-{i:03d}", "split": split, "family": family, "params": params}
            rows.append(row | {"prompt": make_prompt(family, params)})
    return rows


# ------------------------------------------------------------------------------------------ canonical outputs


def scipy_args(family: str, params: dict) -> tuple[Family, tuple]:
    """The family's entry and the arguments of its scipy distribution.

    Raises InputError for an unknown family, a missing or surplus parameter, or an impossible value.
    """
    if not isinstance(family, str) or family not in FAMILIES:
        raise InputError(f"unknown family {family!r}; known: {', '.join(FAMILIES)}")
    spec = FAMILIES[family]
    if not isinstance(params, dict) or set(params) != set(spec.params):
        raise InputError(f"{family} takes the parameters {', '.join(spec.params)}, got {params}")
    for key, (requirement, test) in spec.params.items():
        value = params[key]
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or not test(value):
            raise InputError(f"{family}: {key} must be {requirement}, got {value!r}")
    values = [params[key] for key in spec.params]
    if not spec.rule[1](*values):
        raise InputError(f"{family}: {spec.rule[0]} must hold, got {params}")
    return spec, spec.args(*values)


def candidate_range(spec: Family, args: tuple) -> tuple[int, int]:
    """First and last canonical value: integers, in units of 10^-5 for a continuous family."""
    if spec.discrete:
        start, end = spec.dist.support(*args)
        first = start if np.isfinite(start) else math.floor(spec.dist.ppf(TAIL, *args))
        last = end if np.isfinite(end) else math.ceil(spec.dist.ppf(1 - TAIL, *args))
        return int(first), int(last)
    low, high = spec.dist.ppf([TAIL, 1 - TAIL], *args)
    # The tolerance keeps a quantile such as 3.507, which is 350700.00000000006 units, inside.
    first = math.ceil(low * UNIT - 1e-12 * abs(low * UNIT))
    last = math.floor(high * UNIT + 1e-12 * abs(high * UNIT))
    if first > last:
        raise InputError(f"{spec.name}: narrower than the 10^-{DECIMALS} grid of canonical outputs")
    return first, last


def candidates(first: int, last: int, max_bins: int) -> np.ndarray:
    """At most max_bins integers from first to last, evenly spaced by index. (N,) int64, ascending."""
    if last - first < max_bins:
        return np.arange(first, last + 1)
    return first + np.rint(np.linspace(0, last - first, max_bins)).astype(np.int64)


def to_texts(spec: Family, values: np.ndarray) -> list[str]:
    """Integers, or for a continuous family integer multiples of 1 / UNIT, as the prompts want them printed."""
    if spec.discrete:
        return [str(v) for v in values.tolist()]
    signs = np.where(values < 0, "-", "").tolist()
    whole, part = (column.tolist() for column in np.divmod(np.abs(values), UNIT))
    return [f"{sign}{w}.{p:0{DECIMALS}d}" for sign, w, p in zip(signs, whole, part, strict=True)]


def canonical_outputs(family: str, params: dict, max_bins: int = MAX_BINS) -> tuple[list[str], np.ndarray]:
    """Every canonical output and its probability.

    Continuous: the CDF difference between the midpoints to the neighbours. Discrete: the pmf (max_bins
    does not apply). The first and the last output take the tails, so the probabilities sum to 1.
    Returns texts, in ascending value, and probs (N,) float64. Raises InputError (see scipy_args).
    """
    spec, args = scipy_args(family, params)
    values = candidates(*candidate_range(spec, args), math.inf if spec.discrete else max_bins)
    cdf = spec.dist.cdf(values[:-1] if spec.discrete else (values[:-1] + values[1:]) / 2 / UNIT, *args)
    probs = np.diff(cdf, prepend=0.0, append=1.0)
    return to_texts(spec, values), probs


def perfect_probs(family: str, params: dict, max_bins: int = MAX_BINS) -> np.ndarray:
    """Probability that a perfect sampler prints each canonical output. (N,), aligned with canonical_outputs.

    For a continuous family this is CDF(x + 10^-5/2) - CDF(x - 10^-5/2): it spreads over every five-decimal
    value, not only over the max_bins ones the target keeps. The two differ; see trie.kl_floor.
    """
    spec, args = scipy_args(family, params)
    if spec.discrete:
        return canonical_outputs(family, params)[1]
    return printed_probs(spec, args, candidates(*candidate_range(spec, args), max_bins))


def printed_probs(spec: Family, args: tuple, values: np.ndarray) -> np.ndarray:
    edges = np.stack([values - 0.5, values + 0.5]) / UNIT
    return np.diff(spec.dist.cdf(edges, *args), axis=0)[0]


def sample_outputs(family: str, params: dict, n: int, rng: np.random.Generator, max_bins: int = MAX_BINS):
    """n canonical outputs drawn from their probabilities, without computing these.

    A draw from the distribution itself, moved to the nearest candidate, has exactly the probabilities of
    canonical_outputs: each candidate owns what is nearer to it than to its neighbours. max_bins=0 keeps
    every five-decimal value. Returns (texts, the perfect_probs of each (n,)).
    """
    spec, args = scipy_args(family, params)
    first, last = candidate_range(spec, args)
    x = spec.dist.rvs(*args, size=n, random_state=rng)
    if spec.discrete:
        values = np.clip(x, first, last).astype(np.int64)
        inner = spec.dist.pmf(values, *args)
        upper = np.where(values == last, spec.dist.sf(last - 1, *args), inner)
        return to_texts(spec, values), np.where(values == first, spec.dist.cdf(first, *args), upper)
    if max_bins:
        values = candidates(first, last, max_bins)
        values = values[np.searchsorted((values[:-1] + values[1:]) / 2, x * UNIT)]
    else:
        values = np.clip(np.rint(x * UNIT), first, last).astype(np.int64)
    return to_texts(spec, values), printed_probs(spec, args, values)


# ------------------------------------------------------------------------------------- order and randomness


def prompt_rng(seed: int, prompt_id: str) -> np.random.Generator:
    """A random stream of a prompt's own: its draws depend on no other prompt, nor on the order of work."""
    return np.random.default_rng([seed, *prompt_id.encode()])


def mixed_batches(families: list[str], size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Shuffled indices in batches of at most `size`, each with the families in equal proportion.

    Row number r of a shuffled family of m rows takes the position (r + u) / m, u uniform; sorting by
    position spreads even the smallest family over the whole epoch. Batch sizes differ by at most one.
    """
    _, inverse, counts = np.unique(families, return_inverse=True, return_counts=True)
    ranks = np.empty(len(families))
    for i, count in enumerate(counts):
        ranks[inverse == i] = rng.permutation(count)
    order = np.argsort((ranks + rng.random(len(families))) / counts[inverse])
    return np.array_split(order, math.ceil(len(order) / size))


# -------------------------------------------------------------------------------------------------- JSONL


def read_jsonl(path: str | Path, keys: Iterable[str] = ()) -> list[dict]:
    """Rows of a JSONL file. Raises InputError with file:line for anything that is not an object with `keys`."""

    def refuse(constant):
        raise ValueError(f"{constant} is not JSON; use null")

    rows = []
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line.decode(), parse_constant=refuse)
            except ValueError as error:  # not UTF-8, or not JSON
                raise InputError(f"{path}:{number}: malformed JSON ({error})") from None
            missing = [key for key in keys if not isinstance(row, dict) or key not in row]
            if missing or not isinstance(row, dict):
                raise InputError(f"{path}:{number}: needs an object with the keys {', '.join(keys)}; missing {missing}")
            rows.append(row)
    if not rows:
        raise InputError(f"{path}: empty; expected one JSON object per line")
    return rows


def check_texts(row: dict, *keys: str) -> None:
    """Raises InputError if one of these is not a text, or one that no file could hold."""
    for key in keys:
        if not isinstance(row[key], str) or re.search("[\ud800-\udfff]", row[key]):
            raise InputError(f"{key} must be a text, got {row[key]!r}")


def read_rows(paths: Iterable[str | Path], keys: Iterable[str], check: Callable[[dict], str]) -> list[dict]:
    """Rows of several files. check(row) raises InputError, or names the row; a name may occur only once."""
    rows, seen = [], {}
    for path in paths:
        for number, row in enumerate(read_jsonl(path, keys), 1):
            where = f"{path}:{number}"
            try:
                name = check(row)
            except InputError as error:
                raise InputError(f"{where}: {error}") from None
            if name in seen:
                raise InputError(f"{where}: {name} was already at {seen[name]}; it may occur only once")
            seen[name] = where
            rows.append(row)
    return rows


def read_prompts(paths: Iterable[str | Path], limit: int | None = None) -> list[dict]:
    """Number prompts of several files, checked: known family, possible parameters, ids used once.

    limit: keep only so many, evenly spaced, so that the families stay mixed.
    """

    def check(row):
        check_texts(row, "id", "split", "prompt")
        scipy_args(row["family"], row["params"])
        return f"id {row['id']!r}"

    rows = read_rows(paths, ("id", "split", "family", "params", "prompt"), check)
    if limit and limit < len(rows):
        rows = [rows[i * len(rows) // limit] for i in range(limit)]
    return rows


def write_jsonl(path: str | Path, rows: Iterable[dict]) -> None:
    """Write rows whole or not at all: to a temporary file beside `path`, then renamed over it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    os.replace(temporary, path)


def write_text(path: Path, text: str) -> None:
    """The same for a text."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


# ---------------------------------------------------------------------------------------- command lines


class Parser(argparse.ArgumentParser):
    """argparse whose complaints are one line, like every other complaint, instead of a usage page."""

    def __init__(self, **kwargs):
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)

    def error(self, message):
        raise InputError(f"{message}; --help lists the options")


def natural(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 up, got {text!r}")
    return int(text)


def positive_int(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be a positive integer, got {text!r}")
    return int(text)


def positive_float(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a positive number, got {text!r}")
    return value


def run(main: Callable[[], None]) -> None:
    """Run a script's main(). A user's mistake, or the system's no, is one line on stderr and status 1."""
    name = Path(sys.argv[0]).name
    try:
        main()
    except (InputError, OSError) as error:
        sys.exit(f"{name}: error: {error}")
    except KeyboardInterrupt:
        sys.exit(f"{name}: interrupted; run the same command again to go on")
    except Exception as error:  # two of libraries that this file does not know: torch, and safetensors
        advice = "lower --rows or, in training, raise --accumulate or add --gradient-checkpointing"
        known = {"OutOfMemoryError": f"the GPU is out of memory; {advice}, and run the command again to go on"}
        known["SafetensorError"] = f"cannot write or read weights: {error}"
        if type(error).__name__ not in known:
            raise
        sys.exit(f"{name}: error: {known[type(error).__name__]}")


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--out", required=True, help="folder for train.jsonl, unseen.jsonl and ood.jsonl")
    out = Path(parser.parse_args().out)
    for split in ("unseen", "ood", "train"):  # train.jsonl last: where it is, all are
        rows = make_rows(split)
        write_jsonl(out / f"{split}.jsonl", rows)
        print(f"{out / split}.jsonl: {len(rows)} prompts, {len({r['family'] for r in rows})} families")


if __name__ == "__main__":
    run(main)
