"""Families, grids and canonical outputs against formulas written by hand; rows that bring a target.

The six families of the split `ood` are held out: no model is trained on them.
"""

import math
import tracemalloc
from collections import Counter

import numpy as np
import pytest
from conftest import ROOT, assert_mentions, complaint, script
from scipy import stats

import distributions

TRAIN = distributions.make_rows("train")
UNSEEN = distributions.make_rows("unseen")
OOD = distributions.make_rows("ood")
ALL = TRAIN + UNSEEN + OOD


def target(family, **params):
    return {"family": family, "params": params}


def poisson(rate):
    return target("poisson", **{"lambda": rate})


def row_id(row: dict) -> str:
    return row["id"]


# ------------------------------------------------------------------------------------- the prompts


def test_counts_ids_and_families():
    assert (len(TRAIN), len(UNSEEN), len(OOD)) == (1988, 24, 18)
    for split, rows in (("train", TRAIN), ("unseen", UNSEEN), ("ood", OOD)):
        assert {row["split"] for row in rows} == {split}
        assert distributions.make_rows(split) == rows  # a second call finds the grids again
    assert len({row["id"] for row in ALL}) == len(ALL)

    trained = {row["family"] for row in TRAIN}
    assert len(trained) == 24
    assert not trained & {row["family"] for row in OOD}
    grid = {(row["family"], *row["params"].values()) for row in TRAIN}
    for row in UNSEEN + OOD:
        assert (row["family"], *row["params"].values()) not in grid


def test_prompts_read_as_in_the_paper():
    (gaussian,) = [row for row in UNSEEN if row["family"] == "gaussian"]
    assert gaussian["id"] == "unseen-gaussian-000"
    assert gaussian["prompt"] == (
        "Generate exactly ONE random number from a Gaussian distribution "
        "with parameters mu=3.5, sigma=3. Output ONLY the number."
    )
    (hypergeometric,) = [row for row in UNSEEN if row["family"] == "hypergeometric"]
    assert hypergeometric["id"] == "unseen-hypergeometric-000"
    assert hypergeometric["params"] == {"M": 100, "K": 50, "N": 20}


def test_a_prompt_shows_the_rounded_parameters_of_its_target():
    """The grid has 0.5743491774985174."""
    gaussians = [row for row in TRAIN if row["family"] == "gaussian"]
    rounded = [row for row in gaussians if row["params"]["sigma"] == 0.5743]
    assert rounded
    for row in rounded:
        assert "sigma=0.5743. Output" in row["prompt"]


def test_hypergeometric_parameters_are_rounded_halves_to_even():
    """K = round(M f): 30 * .35 = 10.5 gives 10, and 50 * .35 = 17.5 gives 18."""
    params = [row["params"] for row in TRAIN if row["family"] == "hypergeometric"]
    pairs = {(p["M"], p["K"]) for p in params}
    assert {(30, 10), (50, 18), (30, 20), (50, 32)} <= pairs


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
def test_parameters_have_four_significant_digits(x, shown):
    rounded = distributions.significant(x)
    assert rounded == shown
    assert isinstance(rounded, int) == (shown == int(shown))


def test_files_are_the_same_bytes_every_time(tmp_path, data):
    assert script("distributions.py", "--out", tmp_path).returncode == 0
    for split, lines in (("train", 1988), ("unseen", 24), ("ood", 18)):
        content = (tmp_path / f"{split}.jsonl").read_bytes()
        assert content == (data / f"{split}.jsonl").read_bytes()
        assert content.count(b"\n") == lines


def test_the_prompts_are_those_of_the_committed_results(data):
    """Any change of a grid, in its last digit, would change these checksums."""
    train = distributions.digest(data / "train.jsonl")
    records = [path.read_text() for path in ROOT.glob("tests/results/*/soft/run.json")]
    assert len(records) >= 2
    for record in records:
        assert train in record
    assert distributions.digest(data / "unseen.jsonl").startswith("6114b8f6")
    assert distributions.digest(data / "ood.jsonl").startswith("a16e94ab")


def test_files_made_with_other_settings_are_an_error(tmp_path):
    """The error names the file, and nothing is written."""
    assert script("distributions.py", "--out", tmp_path).returncode == 0
    before = (tmp_path / "train.jsonl").read_bytes()
    line = complaint(distributions, "--out", tmp_path, "--decimals", 2)
    assert_mentions(line, "unseen.jsonl", "already", "different prompts")
    assert (tmp_path / "train.jsonl").read_bytes() == before

    assert script("distributions.py", "--out", tmp_path / "two", "--decimals", 2).returncode == 0
    rows = distributions.read_rows([tmp_path / "two" / "train.jsonl"])
    assert len(rows) == 1988
    assert {row["decimals"] for row in rows} == {2}


# -------------------------------------------------------- distribution functions, written by hand


def phi(z):
    """The standard normal distribution function."""
    return (1 + math.erf(z / math.sqrt(2))) / 2


def beta_function(a, b):
    return math.gamma(a) * math.gamma(b) / math.gamma(a + b)


def poisson_pmf(rate, k):
    return math.exp(-rate) * rate**k / math.factorial(k)


def cdf_of(pmf):
    """The distribution function of a probability mass function on 0, 1, 2, ..."""

    def cdf(x):
        return sum(pmf(k) for k in range(math.floor(x) + 1))

    return cdf


def laplace_cdf(x):
    z = (x - 3.5) / 3
    return math.exp(z) / 2 if z < 0 else 1 - math.exp(-z) / 2


def triangular_cdf(x):
    return (x - 2) ** 2 / 4 if x < 3 else 1 - (6 - x) ** 2 / 12


def maxwell_cdf(x):
    z = x / 1.5
    return 2 * phi(z) - 1 - math.sqrt(2 / math.pi) * z * math.exp(-(z**2) / 2)


def inverse_gaussian_cdf(x):
    root = math.sqrt(7 / x)
    return phi(root * (x / 5 - 1)) + math.exp(14 / 5) * phi(-root * (x / 5 + 1))


def truncnorm_cdf(x):
    low, high = phi(-2 / 1.5), phi(1 / 1.5)
    return (phi((x - 1) / 1.5) - low) / (high - low)


def skellam_cdf(x):
    """The difference of two Poisson counts, with the rates 2 and 3."""
    total = 0.0
    for i in range(60):
        for j in range(60):
            if i - j <= x:
                total += poisson_pmf(2, i) * poisson_pmf(3, j)
    return total


def hypergeometric_pmf(k):
    return math.comb(10, k) * math.comb(20, 5 - k) / math.comb(30, 5)


def beta_binomial_pmf(k):
    return math.comb(10, k) * beta_function(k + 2, 13 - k) / beta_function(2, 3)


BY_HAND = {  # a family and its parameters -> its distribution function
    ("uniform", 3.5, 10.5): lambda x: (x - 3.5) / 7,
    ("gaussian", 3.5, 3): lambda x: phi((x - 3.5) / 3),
    ("beta", 2, 1): lambda x: x**2,
    ("binomial", 2, 0.3): lambda x: [0.49, 0.91, 1][math.floor(x)],
    ("exponential", 7): lambda x: 1 - math.exp(-7 * x),
    ("geometric", 0.125): lambda x: 1 - 0.875 ** math.floor(x),
    ("negative_binomial", 3, 0.15): cdf_of(lambda k: math.comb(k + 2, 2) * 0.15**3 * 0.85**k),
    ("lognormal", 0.5, 0.75): lambda x: phi((math.log(x) - 0.5) / 0.75),
    ("triangular", 2, 3, 6): triangular_cdf,
    ("rayleigh", 3): lambda x: 1 - math.exp(-(x**2) / 18),
    ("cauchy", 3.5, 3): lambda x: 0.5 + math.atan((x - 3.5) / 3) / math.pi,
    ("student_t", 2): lambda x: 0.5 + x / 2 / math.sqrt(2 + x * x),
    ("chi_square", 2): lambda x: 1 - math.exp(-x / 2),
    ("f_distribution", 2, 6): lambda x: 1 - (1 + x / 3) ** -3,
    ("gamma", 1, 4): lambda x: 1 - math.exp(-x / 4),
    ("laplace", 3.5, 3): laplace_cdf,
    ("logistic", 3.5, 3): lambda x: 1 / (1 + math.exp(-(x - 3.5) / 3)),
    ("pareto", 6.5, 3.5): lambda x: 1 - (3.5 / x) ** 6.5,
    ("hypergeometric", 30, 10, 5): cdf_of(hypergeometric_pmf),
    ("gumbel", 3.5, 3): lambda x: math.exp(-math.exp(-(x - 3.5) / 3)),
    ("skellam", 2, 3): skellam_cdf,
    ("beta_binomial", 10, 2, 3): cdf_of(beta_binomial_pmf),
    ("lomax", 6, 4.5): lambda x: 1 - (1 + x / 4.5) ** -6,
    ("inverse_gaussian", 5, 7): inverse_gaussian_cdf,
    ("bernoulli", 0.1): lambda x: 0.9 if x < 1 else 1,
    ("poisson", 1): cdf_of(lambda k: poisson_pmf(1, k)),
    ("weibull", 1.5, 1.5): lambda x: 1 - math.exp(-((x / 1.5) ** 1.5)),
    ("maxwell", 1.5): maxwell_cdf,
    ("chi", 2): lambda x: 1 - math.exp(-(x**2) / 2),
    ("truncnorm", 1, 1.5, -1, 2): truncnorm_cdf,
}


def test_every_family_is_checked_by_hand():
    assert {family for family, *_ in BY_HAND} == set(distributions.FAMILIES)


@pytest.mark.parametrize("key", BY_HAND, ids=lambda key: key[0])
def test_probabilities_are_differences_of_the_distribution_function(key):
    family, *values = key
    names = distributions.FAMILIES[family].params.split()
    row = target(family, **dict(zip(names, values, strict=True)))
    texts, probs, _ = distributions.canonical_outputs(row)
    x = [float(text) for text in texts]
    assert x == sorted(x)
    for i in range(len(x) - 1):
        middle = x[i] if distributions.is_discrete(row) else (x[i] + x[i + 1]) / 2
        assert probs[: i + 1].sum() == pytest.approx(BY_HAND[key](middle), abs=1e-9)


# ------------------------------------------------------------------------------- canonical outputs


@pytest.mark.parametrize("row", UNSEEN + OOD, ids=row_id)
def test_cumulative_probabilities_are_within_half_a_bin_of_the_cdf(row):
    texts, probs, _ = distributions.canonical_outputs(row)
    cdf = distributions.distribution(row).cdf
    assert probs.sum() == pytest.approx(1, abs=1e-12)
    assert (probs > 0).all()
    assert len(set(texts)) == len(texts)

    x, cumulative = np.array(texts, float), np.cumsum(probs)[:-1]
    half = 0 if distributions.is_discrete(row) else np.diff(x) / 2 + 1e-9
    assert (cdf(x[:-1] - half) <= cumulative + 1e-9).all()
    assert (cumulative <= cdf(x[:-1] + half) + 1e-9).all()

    if not distributions.is_discrete(row):
        assert len(texts) <= 1001
        for text in texts:
            assert len(text.split(".")[1]) == 5
        assert cdf(x[0] - 1e-5) <= 0.001 <= cdf(x[0]) + 1e-12


def test_every_prompt_has_canonical_outputs():
    for row in ALL:
        texts, probs, perfect = distributions.canonical_outputs(row)
        assert abs(probs.sum() - 1) < 1e-9
        assert len(texts) == len(probs) == len(perfect)
        assert "-0.00000" not in texts


def test_the_lattice_is_what_can_be_printed():
    """A value is k / unit, for integers k from first to last; cdf(k) is the probability up to k."""
    lattice = distributions.lattice(target("binomial", n=2, p=0.5))
    assert (lattice.scale, lattice.first, lattice.last) == (1, 0, 2)
    assert [float(lattice.cdf(k)) for k in (-1, 0, 1, 2)] == pytest.approx([0, 0.25, 0.75, 1])

    # The quantiles .001 and .999 cut 0 and .001 off.
    cdf, unit, first, last = distributions.lattice(target("uniform", a=0, b=0.001))
    assert (unit, first, last) == (10**5, 1, 99)
    assert cdf(50) == pytest.approx(0.5)


def test_the_middle_of_a_symmetric_family_is_zero_without_a_sign():
    texts, *_ = distributions.canonical_outputs(target("gaussian", mu=0, sigma=1))
    assert texts[500] == "0.00000"
    assert texts[0] == "-" + texts[-1]

    texts = distributions.to_texts(np.array([-1, 0, 1, -123456]), 10**5)
    assert texts == ["-0.00001", "0.00000", "0.00001", "-1.23456"]
    assert distributions.to_texts(np.array([-1, 0, 12]), 1) == ["-1", "0", "12"]


def test_a_small_number_of_candidates_is_not_thinned():
    """The quantiles .001 and .999 cut 0 and .001 off."""
    texts, *_ = distributions.canonical_outputs(target("uniform", a=0, b=0.001))
    assert texts == [f"0.{k:05d}" for k in range(1, 100)]


def test_a_wide_grid_is_never_materialized():
    row = target("lognormal", mu=2.5, sigma=2)  # 6e8 five-decimal values
    tracemalloc.start()
    texts, *_ = distributions.canonical_outputs(row)
    distributions.sample_outputs(row, 100, np.random.default_rng(0), 16384)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(texts) == 1001
    assert peak < 4e6


def test_perfect_is_the_probability_of_printing_five_decimals():
    _, probs, perfect = distributions.canonical_outputs(target("uniform", a=0, b=2))
    assert perfect == pytest.approx(0.5e-5)
    assert probs[1] == pytest.approx(0.998 / 1000, rel=0.01)
    _, probs, perfect = distributions.canonical_outputs(poisson(4))
    assert (perfect == probs).all()


def test_two_decimals_are_a_coarser_lattice():
    row = target("gaussian", mu=0, sigma=1) | {"decimals": 2}
    texts, probs, perfect = distributions.canonical_outputs(row)
    assert texts == [f"{k / 100:.2f}".replace("-0.00", "0.00") for k in range(-309, 310)]
    middle = math.erf(0.005 / math.sqrt(2))  # the probability of -.005 to .005
    assert probs[309] == pytest.approx(middle, rel=1e-9)
    assert perfect[309] == pytest.approx(middle, rel=1e-9)

    rng = np.random.default_rng(0)
    drawn, _ = distributions.sample_outputs(row, 1000, rng, max_bins=None)
    assert set(drawn) <= set(texts)
    assert len(set(drawn)) > 200


def test_only_rows_with_other_decimals_state_them():
    for row in distributions.make_rows("ood", 2):
        assert row["decimals"] == 2
    for row in distributions.make_rows("ood"):
        assert "decimals" not in row


def test_a_discrete_family_has_no_decimals():
    with_decimals, *_ = distributions.canonical_outputs(poisson(4) | {"decimals": 2})
    texts, *_ = distributions.canonical_outputs(poisson(4))
    assert with_decimals == texts


def test_a_row_may_bring_its_own_target():
    row = {"outputs": ["red", "green", "blue"], "probs": [0.5, 0.5, 0]}
    texts, probs, perfect = distributions.canonical_outputs(row)
    assert texts == ["red", "green", "blue"]
    assert probs.tolist() == perfect.tolist() == [0.5, 0.5, 0]
    for bins in (2, None):
        drawn, of_draws = distributions.sample_outputs(row, 2000, np.random.default_rng(0), bins)
        assert abs(drawn.count("red") - 1000) < 100
        assert "blue" not in drawn
        assert set(of_draws) == {0.5}


# ---------------------------------------------------------------------------------------- sampling


def follows(drawn: list[str], texts: list[str], probs: np.ndarray) -> bool:
    """A chi-square test, in which outputs that expect fewer than five draws are one cell."""
    counts = Counter(drawn)
    observed = np.array([counts[text] for text in texts])
    expected = probs * len(drawn)
    kept = expected >= 5
    seen = [*observed[kept], observed[~kept].sum()]
    wanted = [*expected[kept], expected[~kept].sum()]
    if wanted[-1] == 0:  # no output is left for the last cell
        del seen[-1], wanted[-1]
    return set(counts) <= set(texts) and stats.chisquare(seen, wanted).pvalue > 1e-3


@pytest.mark.parametrize("row", (UNSEEN + OOD)[::4], ids=row_id)
def test_draws_follow_the_canonical_probabilities(row):
    texts, probs, of_texts = distributions.canonical_outputs(row, max_bins=9)
    rng = np.random.default_rng(0)
    drawn, of_draws = distributions.sample_outputs(row, 4000, rng, max_bins=9)
    assert follows(drawn, texts, probs)
    expected = dict(zip(texts, of_texts, strict=True))
    assert of_draws == pytest.approx([expected[text] for text in drawn], rel=1e-9)


@pytest.mark.parametrize(
    "row",
    [target("binomial", n=40, p=0.3), poisson(30), target("skellam", mu1=9, mu2=9)],
    ids=lambda row: row["family"],
)
def test_a_thinned_discrete_family_gives_each_kept_value_its_neighborhood(row):
    """By hand: an integer's probability goes to the nearest kept value, in a tie to the lower."""
    texts, probs, perfect = distributions.canonical_outputs(row, max_bins=6)
    kept = [int(text) for text in texts]
    assert len(kept) == 6
    assert max(np.diff(kept)) - min(np.diff(kept)) <= 1

    pmf = distributions.distribution(row).pmf
    mass = Counter()
    for k in range(-400, 401):
        nearest = min(kept, key=lambda value: (abs(k - value), value))
        mass[nearest] += float(pmf(k))
    assert probs == pytest.approx([mass[value] for value in kept], abs=1e-9)
    inner = [float(pmf(value)) for value in kept[1:-1]]
    assert perfect[1:-1] == pytest.approx(inner, rel=1e-6)
    assert (perfect <= probs + 1e-12).all()

    rng = np.random.default_rng(0)
    drawn, of_draws = distributions.sample_outputs(row, 4000, rng, max_bins=6)
    assert follows(drawn, texts, probs)
    assert set(of_draws) <= set(perfect)


def test_each_prompt_has_its_own_random_stream():
    def first_three(seed, prompt):
        return tuple(distributions.prompt_rng(seed, prompt).random(3))

    streams = {first_three(0, "x-1"), first_three(0, "x-2"), first_three(1, "x-1")}
    assert len(streams) == 3
    assert first_three(0, "x-1") in streams


def test_batches_mix_families_to_the_last_one():
    families = [row["family"] for row in TRAIN]
    batches = distributions.mixed_batches(families, 32, np.random.default_rng(0))
    assert len(batches) == 63
    assert sorted(np.concatenate(batches).tolist()) == list(range(1988))
    assert {len(batch) for batch in batches} == {31, 32}

    total = Counter(families)
    for batch in batches:
        for family, count in Counter(families[i] for i in batch).items():
            assert abs(count - total[family] * len(batch) / 1988) <= 2
    with_rayleigh = [
        b for b, batch in enumerate(batches) for i in batch if families[i] == "rayleigh"
    ]
    assert max(with_rayleigh) > 59

    again = distributions.mixed_batches(families, 32, np.random.default_rng(0))
    for batch, same in zip(batches, again, strict=True):
        assert (batch == same).all()


# --------------------------------------------------------------------- extremes and impossible rows

EXTREMES = [
    target("gaussian", mu=0, sigma=1e14),
    target("gaussian", mu=0, sigma=2e13),
    target("gaussian", mu=1e15, sigma=1),
    target("gaussian", mu=float("inf"), sigma=1),
    target("pareto", alpha=0.001, xm=1),
    target("pareto", alpha=0.1, xm=1),
    target("cauchy", x0=0, gamma=1e9),
    target("lognormal", mu=0, sigma=50),
    target("weibull", k=0.01, **{"lambda": 1}),
    target("beta", alpha=1e-3, beta=1e-3),
    target("student_t", nu=0.05),
    target("gamma", alpha=1e-3, beta=1),
    target("chi_square", nu=1e12),
    target("truncnorm", mu=0, sigma=1, lower=30, upper=40),
    target("exponential", **{"lambda": 0}),
    target("bernoulli", p=1),
    target("binomial", n=10**10, p=0.5),
    target("binomial", n=10**6, p=1e-6),
    target("geometric", p=1e-9),
    target("hypergeometric", M=10**9, K=10**8, N=10**6),
    target("negative_binomial", r=1e-3, p=0.5),
    poisson(1e6),
    poisson(1e15),
]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("row", EXTREMES, ids=lambda row: f"{row['family']} {row['params']}")
def test_extreme_parameters_work_or_are_one_error(row):
    try:
        texts, probs, perfect = distributions.canonical_outputs(row)
        rng = np.random.default_rng(0)
        drawn, of_draws = distributions.sample_outputs(row, 50, rng, max_bins=1001)
    except distributions.InputError as error:
        assert row["family"] in str(error)
        assert "\n" not in str(error)
    else:
        assert len(set(texts)) == len(texts) >= 2
        assert set(drawn) <= set(texts)
        assert abs(probs.sum() - 1) < 1e-9
        for values in (probs, perfect, of_draws):
            assert (values >= 0).all()


@pytest.mark.parametrize(
    "row",
    [
        poisson(1e6),
        poisson(1000),  # its outputs begin at 0
        target("binomial", n=10**10, p=0.3),
        target("binomial", n=100000, p=0.5),  # its whole support counts, not only what is probable
        target("geometric", p=1e-3),
        target("beta_binomial", n=1010, alpha=1, beta=1),  # uniform on 0 to 1010
    ],
    ids=lambda row: f"{row['family']} {row['params']}",
)
def test_more_than_1001_outputs_of_a_discrete_family_are_an_error(tmp_path, row):
    with pytest.raises(distributions.InputError, match=f"{row['family']}.*1001"):
        distributions.canonical_outputs(row)
    for bins in (1001, None):
        with pytest.raises(distributions.InputError, match=f"{row['family']}.*1001"):
            distributions.sample_outputs(row, 5, np.random.default_rng(0), bins)

    file = tmp_path / "f.jsonl"
    fine = {"id": "a", "split": "own", "prompt": "p"} | poisson(4)
    bad = {"id": "b", "split": "own", "prompt": "p"} | row
    distributions.write_text(file, distributions.to_jsonl([fine, bad]))
    with pytest.raises(distributions.InputError) as error:
        distributions.read_prompts([file])
    assert_mentions(error.value, f"{file}:2", row["family"], "1001")


def test_1001_outputs_of_a_discrete_family_are_not_too_many():
    row = target("beta_binomial", n=1000, alpha=1, beta=1)  # uniform on 0 to 1000
    texts, probs, _ = distributions.canonical_outputs(row)
    assert texts == [str(k) for k in range(1001)]
    assert probs == pytest.approx(1 / 1001)


@pytest.mark.parametrize(
    "family, params, facts",
    [
        ("normal", {}, ("family", "'normal'")),
        ("gaussian", {"mu": 1}, ("gaussian", "mu, sigma")),
        ("gaussian", {"mu": 1, "sigma": 1, "nu": 2}, ("gaussian", "mu, sigma")),
        ("gaussian", {"mu": 1, "sigma": 0}, ("gaussian", "'sigma': 0")),
        ("gaussian", {"mu": 1, "sigma": -1}, ("gaussian", "'sigma': -1")),
        ("gaussian", {"mu": float("nan"), "sigma": 1}, ("gaussian", "'mu': nan")),
        ("gaussian", {"mu": "1", "sigma": 1}, ("gaussian", "'mu': '1'")),
        ("uniform", {"a": 2, "b": 2}, ("uniform", "'a': 2", "'b': 2")),
        ("bernoulli", {"p": 1.5}, ("bernoulli", "'p': 1.5")),
        ("binomial", {"n": 2.5, "p": 0.5}, ("binomial", "'n': 2.5")),
        ("triangular", {"a": 0, "c": 3, "b": 2}, ("triangular", "'c': 3")),
        ("triangular", {"a": 2, "c": 2, "b": 2}, ("triangular", "'c': 2")),
        ("hypergeometric", {"M": 5, "K": 6, "N": 2}, ("hypergeometric", "'K': 6")),
        (
            "truncnorm",
            {"mu": 0, "sigma": 1, "lower": 1, "upper": 1},
            ("truncnorm", "'lower': 1", "'upper': 1"),
        ),
        ("gaussian", {"mu": 0.000005, "sigma": 1e-9}, ("gaussian", "fewer than two")),
        ("bernoulli", {"p": 0}, ("bernoulli", "fewer than two")),
        ("binomial", {"n": 5, "p": 1}, ("binomial", "fewer than two")),
        ("gaussian", {"mu": 0, "sigma": 1e14}, ("gaussian", "too large", "decimals")),
    ],
)
def test_impossible_parameters_are_named(family, params, facts):
    with pytest.raises(distributions.InputError) as error:
        distributions.canonical_outputs(target(family, **params))
    assert_mentions(error.value, *facts)


def test_negative_decimals_are_an_error():
    row = target("gaussian", mu=0, sigma=1) | {"decimals": -1}
    with pytest.raises(distributions.InputError, match="gaussian.*decimals"):
        distributions.canonical_outputs(row)


# --------------------------------------------------------------------------------- files of prompts

TOSS = {
    "id": "a",
    "split": "ood",
    "prompt": "Toss a coin.",
    "outputs": ["heads", "tails"],
    "probs": [0.5, 0.5],
}


@pytest.mark.parametrize(
    "changes, facts",
    [
        ({"probs": [0.5, 0.4]}, ("probs", "sum to 1", "0.9")),
        ({"probs": [1.5, -0.5]}, ("probs", "positive")),
        ({"probs": [1, 0]}, ("probs", "positive")),
        ({"probs": [1.0]}, ("outputs", "probs")),
        ({"outputs": ["heads", "heads"]}, ("outputs", "different")),
        ({"outputs": ["heads"], "probs": [1]}, ("outputs", "two or more")),
        ({"outputs": [1, 2]}, ("outputs", "string")),
        ({"outputs": ["heads", "tails "]}, ("outputs", "space")),
        ({"prompt": 5}, ("prompt", "string")),
        ({"id": "a"}, ("id 'a'", "already", ":1")),
    ],
)
def test_bad_rows_with_their_own_target_are_named(tmp_path, changes, facts):
    file = tmp_path / "f.jsonl"
    distributions.write_text(file, distributions.to_jsonl([TOSS, TOSS | {"id": "b"} | changes]))
    with pytest.raises(distributions.InputError) as error:
        distributions.read_prompts([file])
    assert_mentions(error.value, f"{file}:2: ")
    assert_mentions(str(error.value).replace(str(file), ""), *facts)


def test_good_rows_with_their_own_target_are_read(tmp_path):
    file = tmp_path / "f.jsonl"
    again = TOSS | {"id": "b", "prompt": "Toss it again."}
    distributions.write_text(file, distributions.to_jsonl([TOSS, again]))
    assert distributions.read_prompts([file]) == [TOSS, again]


def test_a_limit_keeps_families_mixed(data):
    kept = distributions.read_prompts([data / "train.jsonl"], limit=48)
    assert len(kept) == len({row["id"] for row in kept}) == 48
    assert len({row["family"] for row in kept}) > 15
    everything = distributions.read_prompts([data / "ood.jsonl"])
    assert distributions.read_prompts([data / "ood.jsonl"], limit=99) == everything
