"""The target distributions: 30 families, their parameter grids, prompts and exact output probabilities.

    python distributions.py --out data          # train.jsonl (1988 prompts), unseen.jsonl (24), ood.jsonl (18)

A model asked for "ONE random number from a Gaussian distribution with parameters mu=3.5, sigma=3" can print only
finitely many answers. This file says which strings those are and how probable each one should be. Families, grids and
prompts are the paper's (arXiv 2605.11845), but with 4 significant digits: the rounded numbers define the target too.
A prompt is a row `{"id", "split", "family", "params", "prompt"}`, and every function here takes the row. A row may say
`"decimals": 2` (default 5), or bring a target of its own, `"outputs"` (texts) and `"probs"`, in place of a family.
What this file does not do: know tokens or models, or guess. What is impossible is an InputError that says so.
"""

import argparse
import hashlib
import itertools
import json
import math
import os
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import stats

PROMPT = "Generate exactly ONE random number from a {} distribution with parameters {}. Output ONLY the number."
DECIMALS = 5
MAX_BINS = 1001  # canonical outputs of every score
TAIL = 0.001  # canonical outputs span the TAIL and 1 - TAIL quantiles


class InputError(ValueError):
    """A user's mistake, told in one line: what is wrong, where, and how to mend it."""


class Family(NamedTuple):
    """One family of distributions. To add one, add an entry to FAMILIES; everything downstream follows."""

    name: str  # as the prompt says it
    params: str  # their names, in prompt order
    dist: stats.rv_continuous | stats.rv_discrete
    train: Iterable[tuple] = ()  # training grid
    unseen: Iterable[tuple] = ()  # parameters outside the training grid
    ood: Iterable[tuple] = ()  # a family with these is never trained on
    args: Callable[..., tuple] = lambda *values: (
        values
    )  # parameters -> arguments of `dist` (shapes, loc, scale)

    def prompt(self, params: dict) -> str:
        """The paper's prompt, with the parameters in plain decimals."""
        shown = (
            f"{name}={np.format_float_positional(params[name], trim='-')}"
            for name in self.params.split()
        )
        return PROMPT.format(self.name, ", ".join(shown))


lin, geo = np.linspace, np.geomspace
product = lambda *axes, repeat=1: list(itertools.product(*axes, repeat=repeat))
scale_alone = lambda scale: (0, scale)  # arguments of the many families that have no location
shape_scale = lambda shape, scale: (shape, 0, scale)

LOCATION_SCALE = product(lin(-2, 2, 11), geo(0.5, 2, 11))
BINOMIAL_P = (0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.65, 0.7, 0.75, 0.8)

FAMILIES = {
    "uniform": Family("Uniform", "a b", stats.uniform,
        [(a, a + w) for a in lin(-5, 2, 11) for w in lin(1, 5, 11)], [(3.5, 10.5)], args=lambda a, b: (a, b - a)),
    "gaussian": Family("Gaussian", "mu sigma", stats.norm, LOCATION_SCALE, [(3.5, 3)]),
    "beta": Family("Beta", "alpha beta", stats.beta, product(geo(.5, 5, 11), repeat=2), [(7, 7)]),
    "binomial": Family("Binomial", "n p", stats.binom, product((5, 10, 15, 20), BINOMIAL_P), [(25, .5)]),
    "exponential": Family("Exponential", "lambda", stats.expon,
        product(geo(.5, 5, 25)), [(7,)], args=lambda rate: (0, 1 / rate)),
    "geometric": Family("Geometric", "p", stats.geom,
        product((.2, .225, .25, .3, .35, .4, .5, .6, .65, .7, .75, .775, .8)), [(.125,)]),
    "negative_binomial": Family("Negative Binomial", "r p", stats.nbinom,
        product((3, 5, 8, 12), BINOMIAL_P), [(15, .15)]),
    "lognormal": Family("LogNormal", "mu sigma", stats.lognorm,
        product(lin(-1, 1.5, 11), geo(.25, 1.25, 11)), [(2.5, 2)], args=lambda mu, sigma: (sigma, 0, math.exp(mu))),
    "triangular": Family("Triangular", "a c b", stats.triang,
        [(a, a + w * m, a + w) for a in lin(-3, 1, 5) for w in lin(1, 5, 5) for m in (.1, .3, .5, .7, .9)], [(2.5, 6, 9.5)],
        args=lambda a, c, b: ((c - a) / (b - a), a, b - a)),
    "rayleigh": Family("Rayleigh", "sigma", stats.rayleigh, product(geo(.5, 2, 25)), [(3,)], args=scale_alone),
    "cauchy": Family("Cauchy", "x0 gamma", stats.cauchy, LOCATION_SCALE, [(3.5, 3)]),
    "student_t": Family("Student's t", "nu", stats.t, product((2.5, 2.75, 3, 3.5, 4, 4.5, 5, 6, 7, 8, 9, 10)), [(16,)]),
    "chi_square": Family("Chi-Square", "nu", stats.chi2,
        product((2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 18, 20)), [(32,)]),
    "f_distribution": Family("F-Distribution", "d1 d2", stats.f, product((3, 5, 7, 10), (5, 10, 15, 20)), [(12, 24)]),
    "gamma": Family("Gamma", "alpha beta", stats.gamma, product(geo(1, 5, 11), repeat=2), [(7, 7)], args=shape_scale),
    "laplace": Family("Laplace", "mu b", stats.laplace, LOCATION_SCALE, [(3.5, 3)]),
    "logistic": Family("Logistic", "mu s", stats.logistic, LOCATION_SCALE, [(3.5, 3)]),
    "pareto": Family("Pareto", "alpha xm", stats.pareto,
        product((2, 2.25, 2.5, 2.75, 3, 3.5, 4, 4.5, 5), geo(.5, 2, 11)), [(6.5, 3.5)], args=shape_scale),
    "hypergeometric": Family("Hypergeometric", "M K N", stats.hypergeom,
        [(M, round(M * f), N) for M in (30, 50, 80) for N in (5, 10, 15) for f in (.2, .35, .5, .65, .8)], [(100, 50, 20)]),
    "gumbel": Family("Gumbel", "mu beta", stats.gumbel_r, LOCATION_SCALE, [(3.5, 3)]),
    "skellam": Family("Skellam", "mu1 mu2", stats.skellam, product(geo(1, 8, 11), repeat=2), [(10.5, 10.5)]),
    "beta_binomial": Family("Beta-Binomial", "n alpha beta", stats.betabinom,
        product((10, 20, 30), geo(.5, 5, 5), geo(.5, 5, 5)), [(40, 6.5, 6.5)]),
    "lomax": Family("Lomax", "alpha lambda", stats.lomax,
        product(geo(1.5, 4, 11), geo(.5, 3, 11)), [(6, 4.5)], args=shape_scale),
    "inverse_gaussian": Family("Inverse Gaussian", "mu lambda", stats.invgauss,
        product(geo(.5, 3, 11), geo(.5, 5, 11)), [(5, 7)], args=lambda mu, lam: (mu / lam, 0, lam)),
    # Held out: never trained on.
    "bernoulli": Family("Bernoulli", "p", stats.bernoulli, ood=[(.1,), (.5,), (.9,)]),
    "poisson": Family("Poisson", "lambda", stats.poisson, ood=[(1,), (4,), (12,)]),
    "weibull": Family("Weibull", "k lambda", stats.weibull_min, ood=[(.5, .5), (1.5, 1.5), (3, 3)], args=shape_scale),
    "maxwell": Family("Maxwell", "scale", stats.maxwell, ood=[(.75,), (1.5,), (2.5,)], args=scale_alone),
    "chi": Family("Chi", "df", stats.chi, ood=[(2,), (5,), (10,)]),
    "truncnorm": Family("TruncNorm", "mu sigma lower upper", stats.truncnorm,
        ood=[(0, 1, -1, 1), (0, 1, -2, 2), (1, 1.5, -1, 2)],
        args=lambda mu, sigma, low, high: ((low - mu) / sigma, (high - mu) / sigma, mu, sigma)),
}  # fmt: skip


def significant(x: float) -> int | float:
    """x to 4 significant digits; an int where the result is whole, so that JSON and prompt say 3, not 3.0."""
    x = float(f"{round(x, 9):.4g}")  # the inner round clears float dust such as 2.2 - 2.2 = 4e-16
    return int(x) if x == int(x) else x


def make_rows(split: str, decimals: int = DECIMALS) -> list[dict]:
    """The prompts of a split ("train", "unseen" or "ood"), one row each, in a fixed order.

    >>> make_rows("ood")[3]["prompt"]
    'Generate exactly ONE random number from a Poisson distribution with parameters lambda=1. Output ONLY the number.'
    """
    rows = []
    for family, spec in FAMILIES.items():
        for i, values in enumerate(getattr(spec, split)):
            params = dict(zip(spec.params.split(), map(significant, values), strict=True))
            row = {
                "id": f"{split}-{family}-{i:03d}",
                "split": split,
                "family": family,
                "params": params,
            }
            row |= {"decimals": decimals} if decimals != DECIMALS else {}
            rows.append(row | {"prompt": spec.prompt(params)})
    return rows


def distribution(row: dict):
    """The row's distribution, as scipy's frozen one. Raises InputError if there is none with its family and params."""
    family, params = row["family"], row["params"]
    if not (spec := FAMILIES.get(family)):
        raise InputError(f"unknown family {family!r}; known: {', '.join(FAMILIES)}")
    if set(params) != set(names := spec.params.split()):
        raise InputError(f"{family} takes the parameters {', '.join(names)}, got {params}")
    with (
        np.errstate(all="ignore"),
        suppress(ArithmeticError, TypeError, ValueError),
    ):  # a division by zero, or a text
        dist = spec.dist(
            *spec.args(*(x if x != int(x) else int(x) for x in (params[name] for name in names)))
        )
        if not np.isnan(dist.support()).any():
            return dist
    raise InputError(f"{family}: there is none with {params}")


def is_discrete(row: dict) -> bool:
    return "outputs" in row or isinstance(FAMILIES[row["family"]].dist, stats.rv_discrete)


def lattice(row: dict) -> tuple:
    """What can be printed: (cdf, unit, first, last), of values k / unit for integers k from first to last. cdf(k) is the
    probability up to k. They reach from the .001 to the .999 quantile; those of a discrete family as far as its support,
    if (a choice) at most MAX_BINS. First and last take the tails. unit is 10^decimals, or 1. Raises InputError."""
    dist, discrete = distribution(row), is_discrete(row)
    unit = 1 if discrete else 10 ** int(row.get("decimals", DECIMALS))
    with np.errstate(all="ignore"):
        quantiles = dist.ppf([TAIL, 1 - TAIL]) * unit
        whole = np.where(discrete & np.isfinite(dist.support()), dist.support(), quantiles)
        low, high = whole if np.ptp(whole) < MAX_BINS else quantiles
    if (
        unit < 1 or not max(abs(low), abs(high)) < 1e11
    ):  # in float64 one value's probability would be lost beyond
        raise InputError(
            f"{row['family']}: too large for so many decimals, or these below 0, {row['params']}"
        )
    # The tolerance keeps a quantile such as 3.507, which is 350700.00000000006 units, inside.
    first, last = math.ceil(low - 1e-12 * abs(low)), math.floor(high + 1e-12 * abs(high))
    if first >= last or (discrete and dist.var() == 0):
        raise InputError(
            f"{row['family']}: fewer than two numbers of this precision, {row['params']}"
        )
    if not discrete:
        return (lambda k: dist.cdf(k / unit)), unit, first, last
    return (
        (lambda k: np.where(k < first, 0.0, np.where(k < last, dist.cdf(np.floor(k)), 1.0))),
        1,
        first,
        last,
    )


def thin(first: int, last: int, max_bins: int) -> tuple[np.ndarray, np.ndarray]:
    """At most max_bins integers from first to last, evenly spaced by index (N,), and the midpoints between (N - 1,)."""
    values = first + np.rint(np.linspace(0, last - first, min(last - first + 1, max_bins))).astype(
        np.int64
    )
    return values, (values[:-1] + values[1:]) / 2


def to_texts(values: np.ndarray, unit: int) -> list[str]:
    """The values k / unit as the prompts want them printed: integers, or always so many decimals.

    >>> to_texts(np.array([-1, 0, 350000]), 10**5)      # there is no -0.00000
    ['-0.00001', '0.00000', '3.50000']
    """
    if unit == 1:
        return [str(v) for v in values.tolist()]
    return [
        f"{'-' * (v < 0)}{abs(v) // unit}.{str(unit + abs(v) % unit)[1:]}" for v in values.tolist()
    ]


def canonical_outputs(
    row: dict, max_bins: int = MAX_BINS
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Every canonical output of a row: texts, in ascending value, probs (N,), which sum to 1, and perfect (N,).
    probs is the target: of the lattice's values, thinned to max_bins, each has the probability of all that is nearer to
    it than to its neighbours. perfect is what a perfect sampler prints, which spreads over all values; trie.kl_floor.

    >>> texts, probs, _ = canonical_outputs({"family": "binomial", "params": {"n": 2, "p": 0.5}})
    >>> dict(zip(texts, probs.round(2).tolist()))
    {'0': 0.25, '1': 0.5, '2': 0.25}
    """
    if "outputs" in row:
        return row["outputs"], np.array(row["probs"], float), np.array(row["probs"], float)
    cdf, unit, first, last = lattice(row)
    values, middles = thin(first, last, max_bins)
    probs = np.diff(cdf(middles), prepend=0.0, append=1.0)
    return to_texts(values, unit), probs, cdf(values + 0.5) - cdf(values - 0.5)


def sample_outputs(row: dict, n: int, rng: np.random.Generator, max_bins: int | None):
    """n draws from a row's canonical outputs, without computing all of these: texts, and `perfect` of each (n,). A draw
    is moved to the nearest output, so each has exactly its probability. max_bins=None: to any value of the lattice."""
    if "outputs" in row:
        texts, probs, perfect = canonical_outputs(row)
        drawn = rng.choice(len(texts), n, p=probs)
        return [texts[i] for i in drawn], perfect[drawn]
    cdf, unit, first, last = lattice(row)
    values = distribution(row).rvs(size=n, random_state=rng) * unit
    if max_bins is None:
        values = np.rint(values).clip(first, last).astype(np.int64)
    else:
        kept, middles = thin(first, last, max_bins)
        values = kept[np.searchsorted(middles, values)]
    return to_texts(values, unit), cdf(values + 0.5) - cdf(values - 0.5)


def prompt_rng(seed: int, prompt_id: str) -> np.random.Generator:
    """A random stream of a prompt's own: its draws depend on no other prompt, nor on the order of work."""
    return np.random.default_rng([seed, *prompt_id.encode()])


def mixed_batches(families: list[str], size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Shuffled indices in batches of at most `size`, each with the families in proportion: number r of a shuffled
    family of m takes the position (r + u) / m, u uniform, so that even the smallest spreads over the whole epoch."""
    _, inverse, counts = np.unique(families, return_inverse=True, return_counts=True)
    ranks = np.empty(len(families))
    for i, count in enumerate(counts):
        ranks[inverse == i] = rng.permutation(count)
    order = np.argsort((ranks + rng.random(len(families))) / counts[inverse])
    return np.array_split(order, math.ceil(len(order) / size))


def read_rows(
    paths: Iterable[str | Path], keys: Iterable[str] = (), name: Callable[[dict], str] | None = None
):
    """Rows of JSONL files with `keys`. name(row) checks and names a row, no two alike. InputErrors say file:line."""
    rows, seen = [], {}
    for path in paths:
        for number, line in enumerate(Path(path).read_bytes().splitlines() or [b""], 1):
            where = f"{path}:{number}"
            try:
                row = json.loads(line, parse_constant=int)  # which refuses NaN and Infinity
                if not isinstance(row, dict) or not set(keys) <= set(row):
                    raise InputError(f"needs an object with the keys {', '.join(keys)}")
                called = name(row) if name else where
            except (
                ValueError,
                KeyError,
                TypeError,
            ) as error:  # an InputError, or what is not UTF-8, JSON or a row
                raise InputError(f"{where}: {error}") from None
            if called in seen:
                raise InputError(
                    f"{where}: {called} was already at {seen[called]}; it may occur only once"
                )
            seen[called] = where
            rows.append(row)
    return rows


def prompt_name(row: dict) -> str:
    """What read_rows calls a number prompt. Raises InputError if it cannot be asked or scored."""
    if not all(isinstance(row[key], str) for key in ("id", "split", "prompt")) or "draws" in row:
        raise InputError("id, split, prompt must be texts, and there must be no draws yet")
    texts = {
        text
        for text in row.get("outputs", ())
        if isinstance(text, str) and text and text == text.strip()
    }
    if "outputs" not in row:
        lattice({"family": None, "params": None} | row)
    elif not 2 <= len(texts) == len(row["outputs"]) == len(row["probs"]):
        raise InputError(
            "outputs must be two or more different texts without outer spaces, and probs a number each"
        )
    elif not (min(row["probs"]) > 0 and abs(sum(row["probs"]) - 1) <= 1e-8):
        raise InputError(
            f"probs must be above 0, and must sum to 1; they sum to {sum(row['probs']):.9g}"
        )
    return f"id {row['id']!r}"


def read_prompts(paths: Iterable[str | Path], limit: int | None = None) -> list[dict]:
    """Number prompts of several files. limit: keep only so many, evenly spaced, so that families stay mixed."""
    rows = read_rows(paths, ("id", "split", "prompt"), prompt_name)
    return (
        rows
        if limit is None
        else [rows[i * len(rows) // limit] for i in range(min(limit, len(rows)))]
    )


def write_text(path: str | Path, text: str) -> None:
    """Write a file whole or not at all: to a temporary file beside it, then renamed over it."""
    temporary = Path(f"{path}.tmp")
    temporary.parent.mkdir(parents=True, exist_ok=True)
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def to_jsonl(rows: Iterable[dict]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)


def digest(path: str | Path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def refuse(out: Path, finished: Path | None = None) -> None:
    """Raises InputError if what a stage would make is there already, or if its folder's name means something else."""
    if finished and finished.exists():
        raise InputError(
            f"{finished} is there already; remove {out} to make it anew, or choose another --out"
        )
    if out != finished and (
        out.name in "base ssot batch verbalized figures".split() or out.name[:6] == "target"
    ):
        raise InputError(f"a method cannot be called {out.name!r}; choose another name")


class Parser(argparse.ArgumentParser):
    """argparse whose complaints are one line, like every other, and whose numbers are positive (a seed may be 0)."""

    def __init__(self, **kwargs):
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)

    def error(self, message):
        raise InputError(f"{message}; --help lists the options")

    def parse_args(self):
        args = super().parse_args()
        for key, value in vars(args).items():
            if type(value) in (int, float) and not (
                0 < value < math.inf or (key, value) == ("seed", 0)
            ):
                raise InputError(
                    f"--{key.replace('_', '-')} must be a positive number, got {value}"
                )
        return args


def run(main: Callable[[], None]) -> None:
    """Run a script's main(). A user's mistake, or the system's no, is one line on stderr and status 1."""
    name = Path(sys.argv[0]).name
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(f"{name}: interrupted; the same command goes on (a training: from its beginning)")
    except Exception as error:
        known = {
            "OutOfMemoryError": "; lower --rows or, in training, raise --accumulate",
            "SafetensorError": "",
        }
        if not isinstance(error, InputError | OSError) and type(error).__name__ not in known:
            raise
        sys.exit(
            f"{name}: error: {' '.join(str(error).split())[:900]}{known.get(type(error).__name__, '')}"
        )


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--out", required=True, help="folder for train.jsonl, unseen.jsonl and ood.jsonl"
    )
    parser.add_argument(
        "--decimals", type=int, default=DECIMALS, help="of continuous answers (default 5)"
    )
    args = parser.parse_args()
    for split in ("unseen", "ood", "train"):  # train.jsonl last: where it is, all are
        path, rows = Path(args.out) / f"{split}.jsonl", make_rows(split, args.decimals)
        if path.exists() and path.read_text() != to_jsonl(rows):
            raise InputError(
                f"{path} is there already, with other prompts; remove it, or choose another --out"
            )
        write_text(path, to_jsonl(rows))
        print(f"{path}: {len(rows)} prompts, {len({row['family'] for row in rows})} families")


if __name__ == "__main__":
    run(main)
