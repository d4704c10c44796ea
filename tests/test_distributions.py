"""Families, grids and canonical outputs, against hand-written formulas; rows with a target of their own."""

import json
import math
import tracemalloc
from collections import Counter

import numpy as np
import pytest
from conftest import ROOT, complaint, script
from scipy import stats

import distributions as d

ALL = [row for split in ("train", "unseen", "ood") for row in d.make_rows(split)]
HELD_OUT = [row for row in ALL if row["split"] != "train"]


def target(family, **params):
    return {"family": family, "params": params}


POISSON = target("poisson", **{"lambda": 4})


def test_counts_ids_and_families():
    count = Counter(row["split"] for row in ALL)
    assert count == {"train": 1988, "unseen": 24, "ood": 18}
    assert d.make_rows("train") == d.make_rows(
        "train"
    )  # grids are lists, not iterators that a first call uses up
    assert len({row["id"] for row in ALL}) == len(ALL)
    assert len({row["family"] for row in ALL if row["split"] == "train"}) == 24
    assert not {r["family"] for r in ALL if r["split"] == "ood"} & {
        r["family"] for r in ALL if r["split"] == "train"
    }
    grid = {(r["family"], *r["params"].values()) for r in ALL if r["split"] == "train"}
    assert not any((r["family"], *r["params"].values()) in grid for r in HELD_OUT)


def test_prompts_read_as_in_the_paper():
    (gaussian,) = [r for r in ALL if r["id"] == "unseen-gaussian-000"]
    assert gaussian["prompt"] == (
        "Generate exactly ONE random number from a Gaussian distribution with parameters mu=3.5, sigma=3. "
        "Output ONLY the number."
    )
    (hyper,) = [r for r in ALL if r["id"] == "unseen-hypergeometric-000"]
    assert hyper["params"] == {"M": 100, "K": 50, "N": 20}
    geometric_mean = [
        r for r in ALL if r["family"] == "gaussian" and r["params"]["sigma"] == 0.5743
    ]
    assert geometric_mean and "sigma=0.5743." in geometric_mean[0]["prompt"]
    # K = round(M f), halves to even: 30 * .35 = 10.5 -> 10, 50 * .35 = 17.5 -> 18
    ks = {(r["params"]["M"], r["params"]["K"]) for r in ALL if r["family"] == "hypergeometric"}
    assert {(30, 10), (50, 18), (30, 20), (50, 32)} <= ks


@pytest.mark.parametrize(
    "x, shown",
    [
        (0.5743491774985174, 0.5743),
        (2, 2),
        (3.0, 3),
        (2.2 - 2.2000000000000006, 0),
        (-1.23456, -1.235),
    ],
)
def test_significant(x, shown):
    assert d.significant(x) == shown and isinstance(d.significant(x), int) == (shown == int(shown))


def test_files_are_the_same_bytes_every_time(tmp_path, data):
    assert script("distributions.py", "--out", tmp_path).returncode == 0
    for split, lines in (("train", 1988), ("unseen", 24), ("ood", 18)):
        text = (tmp_path / f"{split}.jsonl").read_bytes()
        assert text == (data / f"{split}.jsonl").read_bytes() and text.count(b"\n") == lines


def test_the_prompts_are_those_of_the_committed_results(data):
    """The grids, to the last digit."""
    runs = [path.read_text() for path in ROOT.glob("tests/results/*/*/run.json")]
    assert len(runs) >= 4 and all(d.digest(data / "train.jsonl") in run for run in runs)
    assert [d.digest(data / f"{split}.jsonl")[:8] for split in ("unseen", "ood")] == [
        "6114b8f6",
        "a16e94ab",
    ]


# Distribution functions of all families written out by hand, at one parameter set each.
phi = lambda z: (1 + math.erf(z / math.sqrt(2))) / 2
upto = lambda pmf: lambda x: sum(map(pmf, range(math.floor(x) + 1)))
poisson_pmf = lambda rate, k: math.exp(-rate) * rate**k / math.factorial(k)
beta_function = lambda a, b: math.gamma(a) * math.gamma(b) / math.gamma(a + b)
BY_HAND = {
    ("exponential", 7): lambda x: 1 - math.exp(-7 * x),
    ("uniform", 3.5, 10.5): lambda x: (x - 3.5) / 7,
    ("gaussian", 3.5, 3): lambda x: phi((x - 3.5) / 3),
    ("lognormal", 0.5, 0.75): lambda x: phi((math.log(x) - 0.5) / 0.75),
    ("rayleigh", 3): lambda x: 1 - math.exp(-(x**2) / 18),
    ("cauchy", 3.5, 3): lambda x: 0.5 + math.atan((x - 3.5) / 3) / math.pi,
    ("laplace", 3.5, 3): lambda x: (
        math.exp((x - 3.5) / 3) / 2 if x < 3.5 else 1 - math.exp(-(x - 3.5) / 3) / 2
    ),
    ("logistic", 3.5, 3): lambda x: 1 / (1 + math.exp(-(x - 3.5) / 3)),
    ("pareto", 6.5, 3.5): lambda x: 1 - (3.5 / x) ** 6.5,
    ("gumbel", 3.5, 3): lambda x: math.exp(-math.exp(-(x - 3.5) / 3)),
    ("lomax", 6, 4.5): lambda x: 1 - (1 + x / 4.5) ** -6,
    ("weibull", 1.5, 1.5): lambda x: 1 - math.exp(-((x / 1.5) ** 1.5)),
    ("chi", 2): lambda x: 1 - math.exp(-(x**2) / 2),
    ("chi_square", 2): lambda x: 1 - math.exp(-x / 2),
    ("triangular", 2, 3, 6): lambda x: (x - 2) ** 2 / 4 if x < 3 else 1 - (6 - x) ** 2 / 12,
    ("beta", 2, 1): lambda x: x**2,
    ("gamma", 1, 4): lambda x: 1 - math.exp(-x / 4),
    ("bernoulli", 0.1): lambda x: 0.9 if x < 1 else 1,
    ("geometric", 0.125): lambda x: 1 - 0.875 ** math.floor(x),
    ("binomial", 2, 0.3): lambda x: [0.49, 0.91, 1][math.floor(x)],
    ("poisson", 1): upto(lambda k: poisson_pmf(1, k)),
    ("maxwell", 1.5): lambda x: (
        2 * phi(x / 1.5) - 1 - math.sqrt(2 / math.pi) * x / 1.5 * math.exp(-(x**2) / 4.5)
    ),
    ("inverse_gaussian", 5, 7): lambda x: (
        phi(math.sqrt(7 / x) * (x / 5 - 1))
        + math.exp(14 / 5) * phi(-math.sqrt(7 / x) * (x / 5 + 1))
    ),
    ("truncnorm", 1, 1.5, -1, 2): lambda x: (
        (phi((x - 1) / 1.5) - phi(-2 / 1.5)) / (phi(1 / 1.5) - phi(-2 / 1.5))
    ),
    ("f_distribution", 2, 6): lambda x: 1 - (1 + x / 3) ** -3,
    ("student_t", 2): lambda x: 0.5 + x / 2 / math.sqrt(2 + x * x),
    ("negative_binomial", 3, 0.15): upto(lambda k: math.comb(k + 2, 2) * 0.15**3 * 0.85**k),
    ("hypergeometric", 30, 10, 5): upto(
        lambda k: math.comb(10, k) * math.comb(20, 5 - k) / math.comb(30, 5)
    ),
    ("skellam", 2, 3): lambda x: sum(
        poisson_pmf(2, i) * poisson_pmf(3, j) for i in range(60) for j in range(60) if i - j <= x
    ),
    ("beta_binomial", 10, 2, 3): upto(
        lambda k: math.comb(10, k) * beta_function(k + 2, 13 - k) / beta_function(2, 3)
    ),
}


def test_every_family_is_checked_by_hand():
    assert {family for family, *_ in BY_HAND} == set(d.FAMILIES)


@pytest.mark.parametrize("key", BY_HAND, ids=lambda key: key[0])
def test_masses_are_cdf_differences(key):
    family, *values = key
    row = target(family, **dict(zip(d.FAMILIES[family].params.split(), values, strict=True)))
    texts, probs, _ = d.canonical_outputs(row)
    x = [float(text) for text in texts]
    assert x == sorted(x)
    for i in range(len(x) - 1):
        middle = x[i] if d.is_discrete(row) else (x[i] + x[i + 1]) / 2
        assert probs[: i + 1].sum() == pytest.approx(BY_HAND[key](middle), abs=1e-9)


@pytest.mark.parametrize("row", HELD_OUT, ids=lambda row: row["id"])
def test_cdf_is_within_half_a_bin(row):
    texts, probs, _ = d.canonical_outputs(row)
    dist, discrete = d.distribution(row), d.is_discrete(row)
    assert (
        probs.sum() == pytest.approx(1, abs=1e-12)
        and (probs > 0).all()
        and len(set(texts)) == len(texts)
    )
    x, cumulative = np.array(texts, float), np.cumsum(probs)[:-1]
    half = 0 if discrete else np.diff(x) / 2 + 1e-9
    assert (dist.cdf(x[:-1] - half) <= cumulative + 1e-9).all()
    assert (cumulative <= dist.cdf(x[:-1] + half) + 1e-9).all()
    if not discrete:
        assert len(texts) <= 1001 and all(len(text.split(".")[1]) == 5 for text in texts)
        assert dist.cdf(x[0] - 1e-5) <= 0.001 <= dist.cdf(x[0]) + 1e-12


def test_every_prompt_builds():
    for row in ALL:
        texts, probs, perfect = d.canonical_outputs(row)
        assert (
            abs(probs.sum() - 1) < 1e-9
            and len(texts) == len(probs) == len(perfect)
            and "-0.00000" not in texts
        )


def test_the_middle_of_a_symmetric_family_is_zero_without_a_sign():
    texts, *_ = d.canonical_outputs(target("gaussian", mu=0, sigma=1))
    assert texts[500] == "0.00000" and texts[0] == "-" + texts[-1]
    assert d.to_texts(np.array([-1, 0, 1, -123456]), 10**5) == [
        "-0.00001",
        "0.00000",
        "0.00001",
        "-1.23456",
    ]
    assert d.to_texts(np.array([-1, 0, 12]), 1) == ["-1", "0", "12"]


def test_few_candidates_are_kept_whole():
    texts, *_ = d.canonical_outputs(target("uniform", a=0, b=0.001))
    assert texts == [
        f"0.{k:05d}" for k in range(1, 100)
    ]  # the quantiles .001 and .999 cut 0 and .001 off


def test_a_wide_grid_is_never_materialized():
    row = target("lognormal", mu=2.5, sigma=2)  # 6e8 five-decimal values
    tracemalloc.start()
    texts, *_ = d.canonical_outputs(row)
    d.sample_outputs(row, 100, np.random.default_rng(0), 16384)
    assert len(texts) == 1001 and tracemalloc.get_traced_memory()[1] < 4e6
    tracemalloc.stop()


def follows(drawn: list[str], texts: list[str], probs: np.ndarray) -> bool:
    """Chi-square over cells that expect five draws or more; the others are one cell."""
    counts, expected = Counter(drawn), probs * len(drawn)
    observed, kept = np.array([counts[text] for text in texts]), expected >= 5
    cells = [*observed[kept], observed[~kept].sum()], [*expected[kept], expected[~kept].sum()]
    cells = cells if cells[1][-1] > 0 else [cell[:-1] for cell in cells]
    return set(counts) <= set(texts) and stats.chisquare(*cells).pvalue > 1e-3


@pytest.mark.parametrize("row", HELD_OUT[::4], ids=lambda row: row["id"])
def test_sampling_follows_the_canonical_probabilities(row):
    texts, probs, of_all = d.canonical_outputs(row, max_bins=9)
    drawn, perfect = d.sample_outputs(row, 4000, np.random.default_rng(0), max_bins=9)
    assert follows(drawn, texts, probs)
    expected = dict(zip(texts, of_all, strict=True))
    assert perfect == pytest.approx([expected[text] for text in drawn], rel=1e-9)


def test_perfect_probs_are_those_of_printing_five_decimals():
    _, probs, perfect = d.canonical_outputs(target("uniform", a=0, b=2))
    assert perfect == pytest.approx(0.5e-5) and probs[1] == pytest.approx(0.998 / 1000, rel=0.01)
    _, probs, perfect = d.canonical_outputs(POISSON)
    assert (perfect == probs).all()


def test_two_decimals_are_a_coarser_lattice():
    row = target("gaussian", mu=0, sigma=1)
    texts, probs, perfect = d.canonical_outputs(row | {"decimals": 2})
    assert texts == [f"{k / 100:.2f}".replace("-0.00", "0.00") for k in range(-309, 310)]
    assert probs[309] == pytest.approx(math.erf(0.005 / math.sqrt(2)), rel=1e-9) == perfect[309]
    drawn, _ = d.sample_outputs(
        row | {"decimals": 2}, 1000, np.random.default_rng(0), max_bins=None
    )
    assert set(drawn) <= set(texts) and len(set(drawn)) > 200
    assert all(row["decimals"] == 2 for row in d.make_rows("ood", 2))
    assert not any("decimals" in row for row in d.make_rows("ood"))
    # A discrete family has no decimals, whatever the row says.
    assert d.canonical_outputs(POISSON | {"decimals": 2})[0] == d.canonical_outputs(POISSON)[0]


@pytest.mark.parametrize(
    "row", [target("binomial", n=40, p=0.3), target("poisson", **{"lambda": 30}), target("skellam", mu1=9, mu2=9)],
    ids=lambda row: row["family"],
)  # fmt: skip
def test_a_thinned_discrete_family_gives_each_kept_value_its_neighbourhood(row):
    """By hand: every integer's probability goes to the nearest kept one, to the lower of two equally near."""
    texts, probs, perfect = d.canonical_outputs(row, max_bins=6)
    kept, mass = [int(text) for text in texts], Counter()
    assert len(kept) == 6 and max(np.diff(kept)) - min(np.diff(kept)) <= 1
    for k in range(-400, 401):
        mass[min(kept, key=lambda value: (abs(k - value), value))] += float(
            d.distribution(row).pmf(k)
        )
    assert probs == pytest.approx([mass[value] for value in kept], abs=1e-9)
    pmf = [float(d.distribution(row).pmf(value)) for value in kept[1:-1]]
    assert perfect[1:-1] == pytest.approx(pmf, rel=1e-6) and (perfect <= probs + 1e-12).all()
    drawn, own = d.sample_outputs(row, 4000, np.random.default_rng(0), max_bins=6)
    assert follows(drawn, texts, probs) and set(own) <= set(perfect)


def test_a_row_may_bring_a_target_of_its_own():
    row = {"outputs": ["red", "green", "blue"], "probs": [0.5, 0.5, 0]}
    texts, probs, perfect = d.canonical_outputs(row)
    assert texts == ["red", "green", "blue"] and probs.tolist() == perfect.tolist() == [0.5, 0.5, 0]
    for bins in (2, None):
        drawn, own = d.sample_outputs(row, 2000, np.random.default_rng(0), bins)
        assert abs(drawn.count("red") - 1000) < 100 and "blue" not in drawn and set(own) == {0.5}


EXTREMES = [
    target("gaussian", mu=0, sigma=1e14), target("gaussian", mu=0, sigma=2e13), target("gaussian", mu=1e15, sigma=1),
    target("pareto", alpha=0.001, xm=1), target("pareto", alpha=0.1, xm=1), target("cauchy", x0=0, gamma=1e9),
    target("poisson", **{"lambda": 1e15}), target("poisson", **{"lambda": 1e6}), target("binomial", n=10**10, p=0.5),
    target("binomial", n=10**6, p=1e-6), target("geometric", p=1e-9), target("lognormal", mu=0, sigma=50),
    target("weibull", k=0.01, **{"lambda": 1}), target("beta", alpha=1e-3, beta=1e-3), target("student_t", nu=0.05),
    target("hypergeometric", M=10**9, K=10**8, N=10**6), target("bernoulli", p=1), target("gamma", alpha=1e-3, beta=1),
    target("truncnorm", mu=0, sigma=1, lower=30, upper=40), target("gaussian", mu=float("inf"), sigma=1),
    target("chi_square", nu=1e12), target("negative_binomial", r=1e-3, p=0.5), target("exponential", **{"lambda": 0}),
]  # fmt: skip


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("row", EXTREMES, ids=lambda row: f"{row['family']} {row['params']}")
def test_extreme_parameters_work_or_are_refused(row):
    try:
        texts, probs, perfect = d.canonical_outputs(row)
        drawn, own = d.sample_outputs(row, 50, np.random.default_rng(0), max_bins=1001)
    except d.InputError as error:
        assert row["family"] in str(error) and "\n" not in str(error)
    else:
        assert len(set(texts)) == len(texts) >= 2 and set(drawn) <= set(texts)
        assert (
            abs(probs.sum() - 1) < 1e-9
            and (probs >= 0).all()
            and (perfect >= 0).all()
            and (own >= 0).all()
        )


def test_batches_mix_families_to_the_last_one():
    families = [row["family"] for row in ALL if row["split"] == "train"]
    batches = d.mixed_batches(families, 32, np.random.default_rng(0))
    assert len(batches) == 63 and sorted(np.concatenate(batches).tolist()) == list(range(1988))
    assert {len(batch) for batch in batches} == {31, 32}
    share = Counter(families)
    for batch in batches:
        for family, count in Counter(families[i] for i in batch).items():
            assert abs(count - share[family] * len(batch) / 1988) <= 2
    last_rayleigh = max(
        b for b, batch in enumerate(batches) for i in batch if families[i] == "rayleigh"
    )
    assert last_rayleigh > 59
    again = d.mixed_batches(families, 32, np.random.default_rng(0))
    assert all((a == b).all() for a, b in zip(batches, again, strict=True))


def test_each_prompt_has_its_own_stream():
    a, b, c = d.prompt_rng(0, "x-1"), d.prompt_rng(0, "x-2"), d.prompt_rng(1, "x-1")
    values = [tuple(rng.random(3)) for rng in (a, b, c)]
    assert len(set(values)) == 3 and tuple(d.prompt_rng(0, "x-1").random(3)) == values[0]


@pytest.mark.parametrize(
    "family, params, message",
    [
        ("normal", {}, "unknown family 'normal'"),
        ("gaussian", {"mu": 1}, "takes the parameters mu, sigma"),
        ("gaussian", {"mu": 1, "sigma": 1, "nu": 2}, "takes the parameters mu, sigma"),
        ("gaussian", {"mu": 1, "sigma": 0}, "gaussian: there is none with .*'sigma': 0"),
        ("gaussian", {"mu": 1, "sigma": -1}, "gaussian: there is none with .*'sigma': -1"),
        ("gaussian", {"mu": float("nan"), "sigma": 1}, "there is none with .*nan"),
        ("gaussian", {"mu": "1", "sigma": 1}, "there is none with .*'1'"),
        ("uniform", {"a": 2, "b": 2}, "uniform: there is none"),
        ("bernoulli", {"p": 1.5}, "bernoulli: there is none"),
        ("binomial", {"n": 2.5, "p": 0.5}, "binomial: there is none"),
        ("triangular", {"a": 0, "c": 3, "b": 2}, "triangular: there is none"),
        ("triangular", {"a": 2, "c": 2, "b": 2}, "triangular: there is none"),
        ("hypergeometric", {"M": 5, "K": 6, "N": 2}, "hypergeometric: there is none"),
        ("truncnorm", {"mu": 0, "sigma": 1, "lower": 1, "upper": 1}, "truncnorm: there is none"),
        ("gaussian", {"mu": 0.000005, "sigma": 1e-9}, "fewer than two numbers of this precision"),
        ("bernoulli", {"p": 0}, "fewer than two numbers of this precision"),
        ("binomial", {"n": 5, "p": 1}, "fewer than two numbers of this precision"),
        ("gaussian", {"mu": 0, "sigma": 1e14}, "too large for so many decimals"),
    ],
)
def test_impossible_parameters_are_named(family, params, message):
    with pytest.raises(d.InputError, match=message):
        d.canonical_outputs(target(family, **params))


def test_decimals_below_0_are_refused():
    with pytest.raises(d.InputError, match="gaussian: .*decimals.*below 0"):
        d.canonical_outputs(target("gaussian", mu=0, sigma=1) | {"decimals": -1})


FINE = {
    "id": "a",
    "split": "ood",
    "prompt": "Toss a coin.",
    "outputs": ["heads", "tails"],
    "probs": [0.5, 0.5],
}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"probs": [0.5, 0.4]}, ":2: probs must be above 0, and must sum to 1; they sum to 0.9"),
        ({"probs": [1.5, -0.5]}, ":2: probs must be above 0"),
        ({"probs": [1, 0]}, ":2: probs must be above 0"),
        (
            {"probs": [1.0]},
            ":2: outputs must be two or more different texts without outer spaces, and probs a number each",
        ),
        ({"outputs": ["heads", "heads"]}, ":2: outputs must be two or more different texts"),
        ({"outputs": ["heads"], "probs": [1]}, ":2: outputs must be two or more different texts"),
        ({"outputs": [1, 2]}, ":2: outputs must be two or more different texts"),
        (
            {"outputs": ["heads", "tails "]},
            ":2: outputs must be two or more different texts without outer spaces",
        ),
        ({"prompt": 5}, ":2: id, split, prompt must be texts"),
        ({"id": "a"}, ":2: id 'a' was already at .*:1"),
    ],
)
def test_bad_rows_of_one_s_own_are_named(tmp_path, changes, message):
    file = tmp_path / "f.jsonl"
    d.write_text(file, d.to_jsonl([FINE, FINE | {"id": "b"} | changes]))
    with pytest.raises(d.InputError, match=message):
        d.read_prompts([file])
    d.write_text(file, d.to_jsonl([FINE, FINE | {"id": "b", "prompt": "Toss it again."}]))
    assert [row["id"] for row in d.read_prompts([file])] == ["a", "b"]


def test_a_limit_keeps_families_mixed(data):
    kept = d.read_prompts([data / "train.jsonl"], limit=48)
    assert (
        len(kept) == len({row["id"] for row in kept}) == 48
        and len({row["family"] for row in kept}) > 15
    )
    assert len(d.read_prompts([data / "ood.jsonl"], limit=99)) == 18


def test_files_made_otherwise_are_refused(tmp_path):
    """A second run writes the same files; one with other decimals names the file, and writes nothing."""
    assert script("distributions.py", "--out", tmp_path).returncode == 0
    before = (tmp_path / "train.jsonl").read_bytes()
    line = complaint(d, "--out", tmp_path, "--decimals", 2)
    assert "unseen.jsonl is there already, with other prompts" in line
    assert (tmp_path / "train.jsonl").read_bytes() == before
    assert script("distributions.py", "--out", tmp_path / "two", "--decimals", 2).returncode == 0
    rows = [
        json.loads(line) for line in (tmp_path / "two" / "train.jsonl").read_text().splitlines()
    ]
    assert len(rows) == 1988 and all(row["decimals"] == 2 for row in rows)
