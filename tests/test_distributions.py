"""Families, grids and canonical outputs, against hand-written formulas."""

import math
import tracemalloc
from collections import Counter

import numpy as np
import pytest
from conftest import script
from scipy import stats

import distributions as d

ALL = [row for split in ("train", "unseen", "ood") for row in d.make_rows(split)]
HELD_OUT = [row for row in ALL if row["split"] != "train"]


def params_of(row):
    return pytest.param(row["family"], row["params"], id=row["id"])


def test_counts_ids_and_families():
    count = Counter(row["split"] for row in ALL)
    assert count == {"train": 1988, "unseen": 24, "ood": 18}
    assert d.make_rows("train") == d.make_rows("train")  # grids are lists, not iterators that a first call uses up
    assert len({row["id"] for row in ALL}) == len(ALL)
    assert len({row["family"] for row in ALL if row["split"] == "train"}) == 24
    assert not {r["family"] for r in ALL if r["split"] == "ood"} & {r["family"] for r in ALL if r["split"] == "train"}
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
    geometric_mean = [r for r in ALL if r["family"] == "gaussian" and r["params"]["sigma"] == 0.5743]
    assert geometric_mean and "sigma=0.5743." in geometric_mean[0]["prompt"]
    # K = round(M f), halves to even: 30 * .35 = 10.5 -> 10, 50 * .35 = 17.5 -> 18
    ks = {(r["params"]["M"], r["params"]["K"]) for r in ALL if r["family"] == "hypergeometric"}
    assert {(30, 10), (50, 18), (30, 20), (50, 32)} <= ks


@pytest.mark.parametrize(
    "x, shown", [(0.5743491774985174, 0.5743), (2, 2), (3.0, 3), (2.2 - 2.2000000000000006, 0), (-1.23456, -1.235)]
)
def test_significant(x, shown):
    assert d.significant(x) == shown and isinstance(d.significant(x), int) == (shown == int(shown))


def test_files_are_the_same_bytes_every_time(tmp_path, data):
    assert script("distributions.py", "--out", tmp_path).returncode == 0
    for split, lines in (("train", 1988), ("unseen", 24), ("ood", 18)):
        text = (tmp_path / f"{split}.jsonl").read_bytes()
        assert text == (data / f"{split}.jsonl").read_bytes() and text.count(b"\n") == lines


# Distribution functions written out by hand, at one parameter set each.
BY_HAND = {
    ("exponential", 7): lambda x: 1 - math.exp(-7 * x),
    ("uniform", 3.5, 10.5): lambda x: (x - 3.5) / 7,
    ("gaussian", 3.5, 3): lambda x: (1 + math.erf((x - 3.5) / 3 / math.sqrt(2))) / 2,
    ("lognormal", 0.5, 0.75): lambda x: (1 + math.erf((math.log(x) - 0.5) / 0.75 / math.sqrt(2))) / 2,
    ("rayleigh", 3): lambda x: 1 - math.exp(-(x**2) / 18),
    ("cauchy", 3.5, 3): lambda x: 0.5 + math.atan((x - 3.5) / 3) / math.pi,
    ("laplace", 3.5, 3): lambda x: math.exp((x - 3.5) / 3) / 2 if x < 3.5 else 1 - math.exp(-(x - 3.5) / 3) / 2,
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
    ("poisson", 1): lambda x: sum(math.exp(-1) / math.factorial(k) for k in range(math.floor(x) + 1)),
}


@pytest.mark.parametrize("key", BY_HAND, ids=lambda key: key[0])
def test_masses_are_cdf_differences(key):
    family, *values = key
    params = dict(zip(d.FAMILIES[family].params, values, strict=True))
    texts, probs = d.canonical_outputs(family, params)
    x = [float(text) for text in texts]
    assert x == sorted(x)
    for i in range(len(x) - 1):
        middle = x[i] if d.FAMILIES[family].discrete else (x[i] + x[i + 1]) / 2
        assert probs[: i + 1].sum() == pytest.approx(BY_HAND[key](middle), abs=1e-9)


@pytest.mark.parametrize("family, params", [params_of(row) for row in HELD_OUT])
def test_cdf_is_within_half_a_bin(family, params):
    texts, probs = d.canonical_outputs(family, params)
    spec, args = d.scipy_args(family, params)
    assert probs.sum() == pytest.approx(1, abs=1e-12) and (probs > 0).all() and len(set(texts)) == len(texts)
    x, cumulative = np.array(texts, float), np.cumsum(probs)[:-1]
    half = 0 if spec.discrete else np.diff(x) / 2 + 1e-9
    assert (spec.dist.cdf(x[:-1] - half, *args) <= cumulative + 1e-9).all()
    assert (cumulative <= spec.dist.cdf(x[:-1] + half, *args) + 1e-9).all()
    if not spec.discrete:
        assert len(texts) <= 1001 and all(len(text.split(".")[1]) == 5 for text in texts)
        assert spec.dist.cdf(x[0] - 1e-5, *args) <= 0.001 <= spec.dist.cdf(x[0], *args) + 1e-12


def test_every_prompt_builds():
    for row in ALL:
        texts, probs = d.canonical_outputs(row["family"], row["params"])
        assert abs(probs.sum() - 1) < 1e-9 and len(texts) == len(probs) and "-0.00000" not in texts


def test_the_middle_of_a_symmetric_family_is_zero_without_a_sign():
    texts, _ = d.canonical_outputs("gaussian", {"mu": 0, "sigma": 1})
    assert texts[500] == "0.00000" and texts[0] == "-" + texts[-1]
    assert d.to_texts(d.FAMILIES["gaussian"], np.array([-1, 0, 1, -123456])) == [
        "-0.00001", "0.00000", "0.00001", "-1.23456",
    ]  # fmt: skip


def test_few_candidates_are_kept_whole():
    texts, _ = d.canonical_outputs("uniform", {"a": 0, "b": 0.001})
    assert texts == [f"0.{k:05d}" for k in range(1, 100)]  # the quantiles .001 and .999 cut 0 and .001 off


def test_a_wide_grid_is_never_materialized():
    tracemalloc.start()
    texts, _ = d.canonical_outputs("lognormal", {"mu": 2.5, "sigma": 2})  # 6e8 five-decimal values
    d.sample_outputs("lognormal", {"mu": 2.5, "sigma": 2}, 100, np.random.default_rng(0), 16384)
    assert len(texts) == 1001 and tracemalloc.get_traced_memory()[1] < 4e6
    tracemalloc.stop()


@pytest.mark.parametrize("family, params", [params_of(row) for row in HELD_OUT[::4]])
def test_sampling_follows_the_canonical_probabilities(family, params):
    texts, probs = d.canonical_outputs(family, params, max_bins=9)
    drawn, perfect = d.sample_outputs(family, params, 4000, np.random.default_rng(0), max_bins=9)
    counts = Counter(drawn)
    assert set(counts) <= set(texts)
    kept = probs * 4000 >= 5
    observed = np.array([counts[text] for text in texts])
    cells = [*observed[kept], observed[~kept].sum()], [*probs[kept] * 4000, probs[~kept].sum() * 4000]
    assert stats.chisquare(*(c if cells[1][-1] > 0 else c[:-1] for c in cells)).pvalue > 1e-3
    expected = dict(zip(texts, d.perfect_probs(family, params, 9), strict=True))
    assert perfect == pytest.approx([expected[text] for text in drawn], rel=1e-9)


def test_perfect_probs_are_those_of_printing_five_decimals():
    texts, probs = d.canonical_outputs("uniform", {"a": 0, "b": 2})
    perfect = d.perfect_probs("uniform", {"a": 0, "b": 2})
    assert perfect == pytest.approx(0.5e-5) and probs[1] == pytest.approx(0.998 / 1000, rel=0.01)
    assert (d.perfect_probs("poisson", {"lambda": 4}) == d.canonical_outputs("poisson", {"lambda": 4})[1]).all()


def test_batches_mix_families_to_the_last_one():
    families = [row["family"] for row in ALL if row["split"] == "train"]
    batches = d.mixed_batches(families, 32, np.random.default_rng(0))
    assert len(batches) == 63 and sorted(np.concatenate(batches).tolist()) == list(range(1988))
    assert {len(batch) for batch in batches} == {31, 32}
    share = Counter(families)
    for batch in batches:
        for family, count in Counter(families[i] for i in batch).items():
            assert abs(count - share[family] * len(batch) / 1988) <= 2
    last_rayleigh = max(b for b, batch in enumerate(batches) for i in batch if families[i] == "rayleigh")
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
        ("gaussian", {"mu": 1, "sigma": 0}, "sigma must be > 0, got 0"),
        ("gaussian", {"mu": 1, "sigma": -1}, "sigma must be > 0, got -1"),
        ("gaussian", {"mu": float("nan"), "sigma": 1}, "mu must be a number, got nan"),
        ("gaussian", {"mu": "1", "sigma": 1}, "mu must be a number, got '1'"),
        ("uniform", {"a": 2, "b": 2}, "a < b must hold"),
        ("bernoulli", {"p": 1.5}, "p must be strictly between 0 and 1"),
        ("binomial", {"n": 2.5, "p": 0.5}, "n must be a positive integer, got 2.5"),
        ("triangular", {"a": 0, "c": 3, "b": 2}, "a <= c <= b"),
        ("hypergeometric", {"M": 5, "K": 6, "N": 2}, "K <= M"),
        ("truncnorm", {"mu": 0, "sigma": 1, "lower": 1, "upper": 1}, "lower < upper"),
        ("gaussian", {"mu": 0.000005, "sigma": 1e-9}, "narrower"),
    ],
)
def test_impossible_parameters_are_named(family, params, message):
    with pytest.raises(d.InputError, match=message):
        d.canonical_outputs(family, params)
