"""Scores checked by hand: valid answers, distances, the parts of the KL, headlines and tables."""

import math
import time
from collections import defaultdict

import numpy as np
import pytest
from conftest import assert_mentions, call, complaint
from scipy import stats

import distributions
import metrics

NORMAL = {"family": "gaussian", "params": {"mu": 0, "sigma": 1}}
COUNT = {"family": "poisson", "params": {"lambda": 4}}
COIN = {"family": "bernoulli", "params": {"p": 0.5}}
COLORS = {
    "id": "colors",
    "split": "own",
    "prompt": "Name a color.",
    "outputs": ["red", "green", "blue"],
    "probs": [0.5, 0.25, 0.25],
}
OOD = distributions.make_rows("ood")


def unseen(family: str) -> dict:
    """The only unseen prompt of a family."""
    (row,) = [row for row in distributions.make_rows("unseen") if row["family"] == family]
    return row


def result(prompt: dict, **changes) -> dict:
    """A prompt's result row, as sample.py writes it: here, 1000 times the answer "1"."""
    fields = {
        "axis": "numbers",
        "model": "m",
        "method": "base",
        "protocol": None,
        "draws": ["1"] * 1000,
        "tokens": 4000,
        "seconds": 1.0,
        "logit_kl": 2.0,
        "logit_kl_form": 0.4,
        "logit_kl_floor": 0.5,
    }
    return prompt | fields | changes


def without_kl(row: dict) -> dict:
    """A result row without its exact probabilities, as a protocol's rows are."""
    return {key: value for key, value in row.items() if not key.startswith("logit_kl")}


def values(rows, method="base") -> dict:
    """The score row of each metric."""
    return {row["metric"]: row for row in metrics.aggregate(rows) if row["method"] == method}


def cells(line: str) -> list[str]:
    """The cells of a line of a Markdown table."""
    return [cell.strip() for cell in line.split("|")[1:-1]]


def median_text(prompt: dict) -> str:
    """The canonical output at the target's median."""
    texts, probs, _ = distributions.canonical_outputs(prompt)
    return texts[int(np.searchsorted(np.cumsum(probs), 0.5))]


# ------------------------------------------------------------------------------- numbers: validity


def parsed(text, prompt) -> float | None:
    low, high = distributions.distribution(prompt).support()
    return metrics.parse_number(text, low, high, distributions.is_discrete(prompt))


@pytest.mark.parametrize(
    "text, value",
    [
        ("3.14159", 3.14159), ("-2", -2.0), ("+1.5", 1.5), (".5", 0.5), ("5.", 5.0), ("0", 0.0),
        ("-0.0", 0.0), ("  7.25\n", 7.25), ("1e3", 1000.0), ("1E-3", 0.001), ("-.5e+1", -5.0),
        ("\x1c5.5", 5.5), ("007", 7.0), ("1e-400", 0.0), ("1e99", 1e99),
        ("1e100", None), ("1.7e308", None), ("-1.7e308", None), ("1e999", None), ("9" * 400, None),
        ("", None), ("   ", None), (".", None), ("-", None), ("e5", None), ("1e", None),
        ("1.2.3", None), ("1,234", None), ("1 2", None), ("--1", None), ("+-1", None),
        ("3.5 is my number", None), ("x=3.5", None), ("3.5.", None), ("nan", None), ("NaN", None),
        ("inf", None), ("-Infinity", None), ("0x10", None), ("1_000", None), ("½", None),
        ("٣", None), ("３.５", None), ("2/3", None), ("50%", None), ("3.5<|endoftext|>", None),
        ("3.14159265358979…", None), ("\u22122.5", None), ("**3.5**", None),
    ],
)  # fmt: skip
def test_a_valid_answer_is_one_decimal_number(text, value):
    assert parsed(text, NORMAL) == value


@pytest.mark.parametrize(
    "text, family, params, valid",
    [
        ("3", "poisson", {"lambda": 4}, True),
        ("3.0", "poisson", {"lambda": 4}, True),
        ("3e0", "poisson", {"lambda": 4}, True),
        ("50", "poisson", {"lambda": 4}, True),
        ("3.5", "poisson", {"lambda": 4}, False),
        ("-1", "poisson", {"lambda": 4}, False),
        ("0", "geometric", {"p": 0.5}, False),
        ("1", "geometric", {"p": 0.5}, True),
        ("-0.1", "exponential", {"lambda": 1}, False),
        ("1e6", "exponential", {"lambda": 1}, True),
        ("1.2", "beta", {"alpha": 2, "beta": 2}, False),
        ("3.4", "pareto", {"alpha": 6.5, "xm": 3.5}, False),
        ("2", "bernoulli", {"p": 0.5}, False),
        ("11", "uniform", {"a": 3.5, "b": 10.5}, False),
        ("3.5", "uniform", {"a": 3.5, "b": 10.5}, True),
        ("-5", "skellam", {"mu1": 2, "mu2": 2}, True),
        ("1.01", "truncnorm", {"mu": 0, "sigma": 1, "lower": -1, "upper": 1}, False),
    ],
)
def test_a_valid_answer_lies_in_the_support(text, family, params, valid):
    value = parsed(text, {"family": family, "params": params})
    assert (value is not None) == valid


# ------------------------------------------------------------------------------ numbers: distances


def test_normalized_w1_by_hand():
    """The target is 0, 1, 2 with 1/4, 1/2, 1/4: its median is 1, and E|X - 1| = 1/2."""

    def w1(draws):
        support, probs = np.array([0.0, 1, 2]), np.array([0.25, 0.5, 0.25])
        return metrics.normalized_w1(np.array(draws, float), support, probs)

    assert w1([1] * 5) == pytest.approx(1)  # always the median
    assert w1([2, 1, 0, 1]) == pytest.approx(0)  # the target itself
    assert w1([1, 1, 2, 1]) == pytest.approx(0.5)  # 1/4 of the mass is one step off
    assert w1([4]) == pytest.approx(6)  # all the mass moves, on average by 3


def test_cdf_gap_by_hand():
    """The target's distribution function is 1/4 from 0 on, 3/4 from 1 on, and 1 from 2 on."""
    target = {"family": "binomial", "params": {"n": 2, "p": 0.5}}

    def gap(draws):
        return metrics.cdf_gap(np.array(draws), target)

    assert gap([2, 1, 0, 1]) == pytest.approx(0)
    assert gap([1] * 5) == pytest.approx(0.25)  # at 0, where there is no draw, and at 1
    assert gap([0, 0, 1, 2]) == pytest.approx(0.25)  # at 0: 1/2 in place of 1/4
    assert gap([0, 0, 0, 2]) == pytest.approx(0.5)  # at 0: 3/4 in place of 1/4
    assert gap([4]) == pytest.approx(1)  # at 2
    assert gap([1e99]) == pytest.approx(1)  # however far away the draw is
    assert gap([-3, 0, 1, 1]) == pytest.approx(0.25)  # at -3, below the support, and at 0 and 1


@pytest.mark.parametrize("prompt", [NORMAL, COUNT], ids=["gaussian", "poisson"])
def test_cdf_gap_equals_the_kolmogorov_smirnov_statistic(prompt):
    rng = np.random.default_rng(0)
    texts, _ = distributions.sample_outputs(prompt, 300, rng, max_bins=None)
    draws = np.array(texts, float) + 1
    cdf = distributions.distribution(prompt).cdf
    if prompt is NORMAL:
        exact = stats.kstest(draws, cdf).statistic
        tolerance = 1e-4
    else:  # scipy's statistic is for continuous functions; here by hand, at each integer
        exact = max(abs((draws <= k).mean() - cdf(k)) for k in range(-1, 40))
        tolerance = 1e-5
    assert metrics.cdf_gap(draws, prompt) == pytest.approx(exact, abs=tolerance)


@pytest.mark.parametrize(
    "prompt", distributions.make_rows("unseen") + OOD, ids=lambda prompt: prompt["id"]
)
def test_always_answering_the_median_scores_one(prompt):
    """This holds for Cauchy and Bernoulli(.1), too, where the variance or the IQR fails."""
    text = median_text(prompt)
    scores = metrics.score(result(prompt, draws=[text] * 10))
    assert scores["normalized_w1"] == pytest.approx(1, abs=1e-9)
    assert scores["valid_rate"] == 1

    cdf = distributions.distribution(prompt).cdf
    if distributions.is_discrete(prompt):
        below, above = cdf(float(text) - 1), cdf(float(text))
    else:
        below, above = cdf(float(text) - 5e-6), cdf(float(text) + 5e-6)
    assert scores["cdf_gap"] == pytest.approx(max(below, 1 - above), abs=1e-9)


@pytest.mark.parametrize("prompt", [NORMAL, COUNT], ids=["gaussian", "poisson"])
def test_a_large_sample_of_the_target_scores_zero(prompt):
    rng = np.random.default_rng(0)
    texts, _ = distributions.sample_outputs(prompt, 200_000, rng, max_bins=None)
    support, probs, _ = distributions.canonical_outputs(prompt)
    draws = np.array(texts, float)
    assert metrics.normalized_w1(draws, np.array(support, float), probs) < 0.01
    assert metrics.cdf_gap(draws, prompt) < 0.005


@pytest.mark.filterwarnings("error")
def test_an_enormous_integer_is_a_valid_count():
    (prompt,) = [row for row in OOD if row["id"] == "ood-poisson-001"]
    huge = metrics.score(result(prompt, draws=["4"] * 40 + ["1" + "0" * 30] * 60))
    far = metrics.score(result(prompt, draws=["4"] * 40 + ["100"] * 60))
    assert huge["valid_rate"] == 1
    assert huge["normalized_w1"] > 1e20
    assert huge["cdf_gap"] == far["cdf_gap"]


def test_the_excess_kl_is_the_sum_of_form_and_shape():
    scores = metrics.score(result(COIN))
    assert scores["logit_kl"] == 2
    assert scores["logit_kl_floor"] == 0.5
    assert scores["excess_kl"] == 1.5
    assert scores["form_kl"] == pytest.approx(0.4)
    assert scores["shape_kl"] == pytest.approx(1.1)


# ------------------------------------------------------------------------- numbers: the target row


def test_the_target_row_matches_theory():
    """The mean W1 and the mean CDF gap of n true draws have known limits.

    E W1 is about the integral of E|F_n - F| = sqrt(2 F (1 - F) / (pi n)), here over E|X - median|;
    sqrt(n) times the CDF gap has the mean of Kolmogorov's distribution, sqrt(pi / 2) log 2.
    """
    prompt, n = unseen("gaussian"), 1000
    rows = [result(prompt, id=str(i)) for i in range(40)]
    scores = [metrics.score(metrics.target_row(row)) for row in rows]

    z = np.linspace(-8, 8, 4001)
    cdf = np.array([(1 + math.erf(x / math.sqrt(2))) / 2 for x in z])
    integral = np.trapezoid(np.sqrt(2 * cdf * (1 - cdf) / (math.pi * n)), z)
    w1 = integral / math.sqrt(2 / math.pi)
    assert np.mean([s["normalized_w1"] for s in scores]) == pytest.approx(w1, rel=0.15)
    gap = math.sqrt(math.pi / 2) * math.log(2) / math.sqrt(n)
    assert np.mean([s["cdf_gap"] for s in scores]) == pytest.approx(gap, rel=0.15)


# Of true draws, one sample of 1000 in a hundred has a larger CDF gap (Kolmogorov's distribution;
# fewer have where the target is discrete).
GAP_1_PERCENT = stats.kstwo.isf(0.01, 1000)


def test_target_rows_are_valid_have_no_excess_kl_and_fit():
    rows = [result(prompt) for prompt in distributions.make_rows("unseen") + OOD]
    scores = [metrics.score(metrics.target_row(row)) for row in rows]
    assert len(scores) == 42
    for score in scores:
        assert score["valid_rate"] == 1
        assert score["excess_kl"] == score["form_kl"] == score["shape_kl"] == 0
    assert sum(score["cdf_gap"] <= GAP_1_PERCENT for score in scores) >= 40


@pytest.mark.parametrize(
    "family, params, decimals",
    [
        ("poisson", {"lambda": 800}, 5),
        ("binomial", {"n": 1000, "p": 0.5}, 5),
        ("binomial", {"n": 20.0, "p": 0.5}, 5),  # a float, as a table of numbers may have it
        ("beta", {"alpha": 0.5, "beta": 0.5}, 2),  # 5 % of it prints as 0.01
        ("gaussian", {"mu": 0, "sigma": 1e-4}, 5),  # a unit is a tenth of sigma
        ("gaussian", {"mu": 0, "sigma": 1}, 1),
        ("pareto", {"alpha": 2, "xm": 0.275}, 2),  # it begins at 0.28, and 0.28 * 100 > 28
        ("uniform", {"a": 0.275, "b": 0.395}, 2),  # 0.29 * 100 < 29
    ],
)
def test_perfect_samplers_of_coarse_and_of_large_supports_score_well(family, params, decimals):
    prompt = {"family": family, "params": params, "decimals": decimals}
    rows = [result(prompt, id=str(i)) for i in range(30)]
    scores = [metrics.score(metrics.target_row(row)) for row in rows]
    assert sum(score["cdf_gap"] <= GAP_1_PERCENT for score in scores) >= 28
    largest = 0.12 if family == "pareto" else 0.07  # Pareto has a heavy tail
    assert np.mean([score["normalized_w1"] for score in scores]) < largest
    assert np.mean([score["cdf_gap"] for score in scores]) < 0.03


def test_a_smaller_number_of_draws_has_its_own_target_row():
    base = result(OOD[3])
    ssot = without_kl(base) | {
        "method": "ssot",
        "protocol": "ssot",
        "draws": ["<answer>4</answer>"] * 50,
    }
    scores = metrics.aggregate([base, ssot])
    w1 = {row["method"]: row["value"] for row in scores if row["metric"] == "normalized_w1"}
    assert set(w1) == {"base", "ssot", "target", "target, n=50"}
    assert 0 < w1["target"] < w1["target, n=50"] < 1
    assert "ssot" in "\n".join(metrics.table(scores, "numbers"))


# --------------------------------------------------------------------------------- lists of words


@pytest.mark.parametrize(
    "text, place",
    [
        ("red", 0),
        (" green\n", 1),
        ("Red", 0),
        ("RED.", 0),
        ("St. Paul", 2),
        ("st. paul.", 2),
        ("US", 3),
        ("us", 4),
        ("Us", 3),  # as near to one as to the other: the first
        ("", None),
        (".", None),
        ("red or so", None),
        ("red green", None),
        ('"red"', None),
        ("red..", None),
        ("St Paul", None),
    ],
)
def test_a_choice_is_one_of_the_outputs_but_for_case_and_a_full_stop(text, place):
    outputs = ["red", "green", "St. Paul", "US", "us"]
    assert metrics.parse_choice(text, outputs) == place


def test_a_list_is_scored_by_its_total_variation():
    """Words have no order, so 1/2 sum |share - prob| over the valid draws stands in for the W1."""
    draws = ["red"] * 29 + ["Red."] + [" green\n"] * 30 + ["red or so", ""]
    row = result(COLORS, draws=draws)
    scores = metrics.score(row)
    assert scores["valid_rate"] == 60 / 62
    assert scores["tv"] == pytest.approx(0.25)
    assert scores["excess_kl"] == 1.5
    assert scores.get("normalized_w1") is None

    nothing = metrics.score(result(COLORS, draws=["pink"]))
    assert nothing["valid_rate"] == 0
    assert nothing["tv"] == 1

    target = values([row], "target")
    assert target["valid_rate"]["value"] == 1
    assert 0 < target["tv"]["value"] < 0.25
    assert target["normalized_w1"]["n"] == target["cdf_gap"]["n"] == 0


@pytest.mark.parametrize("n", [1, 7, 200])
def test_the_target_row_of_a_list_has_the_total_variation_that_simulation_gives(n):
    probs = [0.5, 0.3, 0.15, 0.05]
    shares = np.random.default_rng(0).multinomial(n, probs, 20_000) / n
    simulated = np.abs(shares - probs).sum(1).mean() / 2

    prompt = COLORS | {"outputs": ["a", "b", "c", "d"], "probs": probs}
    rows = [result(prompt, id=str(i), draws=["a"] * n) for i in range(400)]
    scores = [metrics.score(metrics.target_row(row)) for row in rows]
    assert np.mean([score["tv"] for score in scores]) == pytest.approx(simulated, rel=0.1)


def test_unevenness_by_hand():
    assert metrics.unevenness(np.array([0, 1, 2, 3])) == 0
    assert metrics.unevenness(np.array([2, 2, 2, 2])) == 0.75
    assert metrics.unevenness(np.array([0, 0, 1, 1])) == 0.5
    two = np.array([[0, 1, 2, 2], [0, 0, 0, 1]])
    assert metrics.unevenness(two, axis=1).tolist() == [0.25, 0.5]


# ------------------------------------------------------------------------------ headlines, numbers


@pytest.mark.filterwarnings("error")
def test_nothing_valid_is_an_infinite_w1():
    row = result(unseen("gaussian"), draws=["Sure!"] * 7 + ["3.5 or so"] * 3)
    scores = metrics.score(row)
    assert scores["valid_rate"] == 0
    assert scores["normalized_w1"] == math.inf
    assert scores["cdf_gap"] == 1
    assert scores["excess_kl"] == 1.5

    found = values([row])
    assert found["normalized_w1"]["value"] is None
    assert found["normalized_w1"]["n"] == 1
    assert found["valid_rate"]["value"] == 0
    assert '"value": null' in distributions.to_jsonl([found["normalized_w1"]])
    line = metrics.table(list(found.values()), "numbers")[2]
    assert cells(line)[3].startswith("∞")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("silent, headline", [(1, 1), (2, 1), (3, math.inf), (5, math.inf)])
def test_an_infinite_w1_stays_in_the_median_over_families(silent, headline):
    """Of five families, `silent` have no valid answer, and the others always answer the median.

    The headline stays 1 until the silent families are the majority.
    """
    rows = []
    for i, family in enumerate(("gaussian", "laplace", "gumbel", "uniform", "cauchy")):
        prompt = unseen(family)
        answer = "I cannot" if i < silent else median_text(prompt)
        rows.append(result(prompt, draws=[answer] * 20))
    score = values(rows)["normalized_w1"]
    assert score["n"] == 5
    assert score["value"] == (None if headline == math.inf else pytest.approx(1))
    assert score["high"] is None
    assert (score["low"] is None) == (silent == 5)
    cell = cells(metrics.table(metrics.aggregate(rows), "numbers")[2])[3]
    assert cell.startswith("1.000 [" if headline == 1 else "∞ [")


def test_one_silent_prompt_makes_its_familys_mean_infinite():
    rows = [result(prompt) for prompt in OOD if prompt["family"] in ("bernoulli", "poisson")]
    rows[0]["draws"] = ["no"] * 20
    assert values(rows)["normalized_w1"]["value"] is None
    assert values(rows[1:])["normalized_w1"]["value"] > 0


def test_a_headline_is_the_median_over_families_of_the_mean_over_prompts():
    kl = {"bernoulli": [1, 2, 3], "poisson": [5, 5, 8], "weibull": [9, 9, 9]}  # means 2, 6, 9
    rows = []
    for family, of_prompts in kl.items():
        prompts = [row for row in OOD if row["family"] == family]
        for prompt, value in zip(prompts, of_prompts, strict=True):
            rows.append(result(prompt, logit_kl=float(value), logit_kl_floor=0.0))
    headline = values(rows)["logit_kl"]
    assert headline["value"] == 6
    assert headline["n"] == 9
    assert (headline["low"], headline["high"]) == (2, 9)
    assert (headline["axis"], headline["split"], headline["model"]) == ("numbers", "ood", "m")


def test_a_headline_is_a_median_but_for_rates_a_mean():
    invalid = {"bernoulli": 0, "poisson": 1, "weibull": 8}  # of ten draws
    kl = {"bernoulli": 4.0, "poisson": 36.0, "weibull": 100.0}
    rows = []
    for prompt in OOD:
        family = prompt["family"]
        if family in invalid:
            draws = ["1"] * (10 - invalid[family]) + ["no"] * invalid[family]
            rows.append(result(prompt, draws=draws, logit_kl=kl[family]))
    scores_of = defaultdict(list)
    for row in rows:
        scores_of[row["family"]].append(metrics.score(row))

    found = values(rows)
    names = ("normalized_w1", "cdf_gap", "logit_kl", "excess_kl", "shape_kl", "valid_rate")
    for name in names:
        of_families = [np.mean([s[name] for s in scores]) for scores in scores_of.values()]
        mean, median = np.mean(of_families), np.median(of_families)
        assert abs(mean - median) > 1e-3, name
        expected = mean if name == "valid_rate" else median
        assert found[name]["value"] == pytest.approx(expected), name


def test_the_bootstrap_covers_and_needs_two_values():
    assert metrics.bootstrap(np.array([3.0]), np.mean) == (None, None)
    low, high = metrics.bootstrap(np.arange(100.0), np.mean)
    standard_error = 2.89  # sqrt((100 ** 2 - 1) / 12 / 100)
    assert low == pytest.approx(49.5 - 1.96 * standard_error, abs=0.6)
    assert high == pytest.approx(49.5 + 1.96 * standard_error, abs=0.6)


# --------------------------------------------------------------------------------- SSOT's answers

BEFORE = "<random_string>x7Qa</random_string><thinking>7 is odd.</thinking>"
ANALYSIS = "<|channel|>analysis<|message|>"
FINAL = "<|end|><|start|>assistant<|channel|>final<|message|>"


@pytest.mark.parametrize(
    "text, answer",
    [
        (BEFORE + "<answer>3.5</answer>", "3.5"),
        (BEFORE + "\n<answer>\n 3.5 \n</answer>\n", "3.5"),
        ("<answer>3.5</answer>", "3.5"),
        (BEFORE + "<answer>New\nYork</answer>", "New\nYork"),
        (BEFORE + "<answer>3</answer> so <answer>3</answer>", "3"),
        ("<think>First <answer>1</answer></think>" + BEFORE + "<answer>2</answer>", "2"),
        ("<thinking>Maybe <answer>1</answer>?</thinking><answer>2</answer>", "2"),
        # gpt-oss thinks in one channel and answers in another, sometimes without a tag.
        (ANALYSIS + "<answer>1</answer>" + FINAL + "<answer>2</answer>", "2"),
        (ANALYSIS + "Seven." + FINAL + "3.5\n", "3.5"),
        ("<|channel|>final<|message|>3.5", "3.5"),
        ("<|channel|>final<|message|><answer>3.5", ""),
        ("<|channel|>final<|message|>" + BEFORE + "3.5", "3.5"),
        ("<|channel|>final<|message|><thinking>3.5", ""),
        (ANALYSIS + "<answer>1</answer>", ""),
        # Tags that are missing, cut off, nested or contradictory give no answer.
        ("", ""),
        ("3.5", ""),
        (BEFORE, ""),
        (BEFORE + "3.5", ""),
        (BEFORE + "3.5</answer>", ""),
        (BEFORE + "<answer>3.5", ""),
        (BEFORE + "<answer>3.5…", ""),
        (BEFORE + "<answer>3.5</answer", ""),
        (BEFORE + "<answer></answer>", ""),
        (BEFORE + "<answer><answer>3.5</answer></answer>", ""),
        (BEFORE + "<answer>3<answer>5</answer>", ""),
        (BEFORE + "<answer>3</answer><answer>5</answer>", ""),
        (BEFORE + "<answer>3</answer><answer>5", ""),
        ("<Answer>3.5</Answer>", ""),
        # An answer inside the thoughts or the random string does not count.
        ("<think><answer>3.5</answer>", ""),
        ("<thinking>maybe <answer>1</answer>? no, let me", ""),
        ("<thinking><answer>1</answer></thinking>", ""),
        ("<random_string><answer>1</answer></random_string>", ""),
        ("<random_string>a</random_string><thinking>b<answer>1</answer>", ""),
    ],
)
def test_tagged_answers(text, answer):
    assert metrics.tagged_answer(text) == answer


def test_of_ssot_only_the_tagged_answers_are_scored():
    draws = [
        BEFORE + "<answer>1</answer>",
        "so <answer>1</answer>",
        "1",
        BEFORE + "<answer>one</answer>",
    ]
    row = without_kl(result(OOD[1], draws=draws, protocol="ssot", tokens=400))
    scores = metrics.score(row)
    assert scores["valid_rate"] == 0.5
    assert scores["answer_rate"] == 0.75
    assert scores["tokens"] == 100
    assert scores["normalized_w1"] == pytest.approx(1)
    assert "excess_kl" not in scores

    counts = {BEFORE + "<answer>Mars</answer>": 2, "Mars": 1, '<answer>"Mars"</answer>': 1}
    scores = metrics.score(open_row(counts, protocol="ssot", support_90=None))
    assert scores["valid_rate"] == 0.75
    assert scores["answer_rate"] == 0.75
    assert scores["unique_rate"] == 0.25


# ------------------------------------------------------------------------------------ open answers


@pytest.mark.parametrize(
    "text, answer",
    [
        ("Paris", "Paris"), ("paris", "paris"), ("  Paris \n", "Paris"), ("Paris\nIt is…", "Paris"),
        ("\n\nParis\n\nIt is a city in France.", "Paris"), ("New \t York", "New York"),
        # outer quotes and marks
        ('"Paris"', "Paris"), ("'Paris'", "Paris"), ("“Paris”", "Paris"), ("«Paris»", "Paris"),
        ("‹Paris›", "Paris"), ("「東京」", "東京"), ("**Paris**", "Paris"), ("`Paris`", "Paris"),
        ('**"Paris"**', "Paris"), ("```\nParis\n```", "Paris"), ("```text\nParis", "Paris"),
        # quotes and marks that belong to the answer
        ("D'Artagnan", "D'Artagnan"), ('7" disc', '7" disc'), ("St. Paul's", "St. Paul's"),
        ("Washington D.C.", "Washington D.C."), ("'Schindler's List'", "Schindler's List"),
        ('"Hamlet" and "Macbeth"', '"Hamlet" and "Macbeth"'),
        # other scripts, composed and decomposed letters, pictographs
        ("Zürich", "Zürich"), ("Zu\u0308rich", "Zürich"), ("北京", "北京"), ("🎲", "🎲"),
        # thoughts
        ("<think>\nRome? No.\n</think>\n\nParis", "Paris"), ("<think></think>Paris", "Paris"),
        ("<think>Rome? Or", None), ("<think>Rome</think>", None),
        # no answer
        ("", None), ("   \n ", None), ('""', None), ("**", None), ("...", None), ("…", None),
        ("`", None), ("```\n```", None), ("\ufffd", None), ("~", None), ("'", None),
        ("____", None), ("Well, there are so many…", None),
    ],
)  # fmt: skip
def test_open_answers(text, answer):
    assert metrics.parse_answer(text) == answer


def open_row(counts: dict[str, int], **changes) -> dict:
    """A result row of the axis `open`, with each text as often as `counts` says."""
    fields = {
        "id": "open-000",
        "prompt": "p",
        "axis": "open",
        "model": "m",
        "method": "base",
        "protocol": None,
        "draws": [text for text, count in counts.items() for _ in range(count)],
        "support_90": 2,
        "tokens": 300,
    }
    return fields | changes


def test_open_scores_by_hand():
    scores = metrics.score(open_row({"Mars": 5, '"Mars"': 1, "0.25": 2, "": 1, "Well, I…": 1}))
    assert scores == {
        "valid_rate": 0.8,
        "support_90": 2,
        "unique_rate": 0.2,
        "top_share": 0.75,
        "number_rate": 0.25,
        "tokens": 30,
    }
    nothing = metrics.score(open_row({"": 4}))
    assert "top_share" not in nothing
    assert nothing["unique_rate"] == 0
    assert nothing["valid_rate"] == 0


def test_open_headlines_are_the_median_support_and_mean_rates():
    rows = [
        open_row({"a": 4}, support_90=1, id="one"),
        open_row({"a": 2, "b": 2}, support_90=2, id="two"),
        open_row({"a": 1, "b": 1, "c": 1, "d": 1}, support_90=9, id="three"),
    ]
    found = values(rows)
    assert found["support_90"]["value"] == 2
    assert (found["support_90"]["low"], found["support_90"]["high"]) == (1, 9)
    assert found["unique_rate"]["value"] == pytest.approx((0.25 + 0.5 + 1) / 3)
    assert found["unique_rate"]["n"] == 3
    assert found["top_share"]["value"] == pytest.approx((1 + 0.5 + 0.25) / 3)
    assert found["top_share"]["axis"] == "open"


# ------------------------------------------------------------------------------ generated questions

GOOD = """Question: Which organ makes insulin?
A. Heart
B. Pancreas
C. Liver
D. Kidney
Correct Answer: B
Explanation: The pancreas makes insulin."""
SECOND_EXPLANATION = "insulin.\nA. is wrong: the heart pumps.\n\nThat is all."


@pytest.mark.parametrize(
    "old, new, place",
    [
        ("", "", 1),
        ("Answer: B", "Answer: A", 0),
        ("Answer: B", "Answer: D", 3),
        # white space, and other ways to write the labels
        ("\n", "\n\n", 1),
        ("\n", "  \r\n", 1),
        (". ", ") ", 1),
        ("Question:", "**Question:**", 1),
        ("Question:", "### Question:", 1),
        ("Correct Answer: B", "**Correct Answer**: B", 1),
        ("Correct Answer", "Correct answer", 1),
        # other ways to write the answer
        ("Answer: B", "Answer: B. Pancreas", 1),
        ("Answer: B", "Answer: B) pancreas", 1),
        ("Answer: B", "Answer: (B)", 1),
        ("Answer: B", "Answer: B.", 1),
        ("Answer: B", "Answer: **B**", 1),
        ("Answer: B", "Answer:\nB", 1),
        ("Answer: B", "Answer: B (Pancreas)", 1),
        ("Answer: B", "Answer: B - Pancreas", 1),
        ("Answer: B", "Answer: B\nPancreas", 1),
        ("Answer: B", 'Answer: B. "Pancreas"', 1),
        # several lines, cut explanations, and letters with a period that are no labels
        ("insulin.", SECOND_EXPLANATION, 1),
        ("insulin.", "insu", 1),
        ("Question: ", "Question:\nA 50-year-old man is thirsty.\n", 1),
        ("Heart", "E. coli", 1),
        ("Which organ", "C. difficile or what", 1),
        ("Pancreas", "Pancreas and\nS. aureus", 1),
        ("C. Liver", "C. Caf\u00e9\nau lait", 1),
        # thoughts
        ("Question: W", "<think>A or B?</think>\n\nQuestion: W", 1),
        ("Question: ", "<think>Let me see. Question: x</think>\n", None),
        # a field that is missing or empty
        (GOOD, "", None),
        ("Question: ", "", None),
        ("Which organ makes insulin?", "-", None),
        ("A. Heart", "Heart", None),
        ("A. Heart\n", "", None),
        ("D. Kidney\n", "", None),
        ("Heart", "", None),
        ("Heart", ".", None),
        ("C. Liver", "C.\nD. Liver", None),
        ("D. Kidney", "D.\nE. Lung", None),
        ("Correct Answer: B\n", "", None),
        ("Explanation: The pancreas makes insulin.", "", None),
        ("The pancreas makes insulin.", "", None),
        # a field too many, or in the wrong place
        ("makes", "treats\nE. coli and makes", None),
        ("makes", "treats\nA. baumannii or makes", None),
        ("D. Kidney", "D. Kidney\nE. Lung", None),
        ("A. Heart", "A. Heart\nA. Lung", None),
        ("B. Pancreas\nC. Liver", "C. Liver\nB. Pancreas", None),
        ("Correct Answer: B", "Correct Answer: B\nCorrect Answer: C", None),
        ("insulin.", "insulin.\nCorrect Answer: B", None),
        ("insulin.", "insulin.\n" + GOOD, None),
        ("Question: ", "Sure, here it is!\nQuestion: ", None),
        ("\n", " ", None),
        (". ", ".", None),
        # no answer, or not one of the four
        ("Answer: B", "Answer: E", None),
        ("Answer: B", "Answer: ", None),
        ("Answer: B", "Answer: A and B", None),
        ("Answer: B", "Answer: b", None),
        ("Answer: B", "Answer: B. Heart", None),
        ("Answer: B", "Answer: Pancreas", None),
    ],
)
def test_the_place_of_the_right_answer(old, new, place):
    """The place is 0 to 3; None means that the question is not well-formed."""
    text = GOOD.replace(old, new)
    assert not old or text != GOOD
    assert metrics.parse_question(text) == place


@pytest.mark.parametrize("option", ["Vitamin C (ascorbic acid)", ">140 mmHg", '"Islets"', "3 €"])
def test_an_option_with_symbols_at_its_ends_may_be_repeated(option):
    text = GOOD.replace("Pancreas", option)
    assert metrics.parse_question(text.replace("Answer: B", f"Answer: B. {option}")) == 1
    assert metrics.parse_question(text.replace("Answer: B", f"Answer: A. {option}")) is None


DEGENERATE = {
    "options": "Question: x\n" + "A. x\nB. y\nC. z\nD. w\n" * 3000,
    "questions": (GOOD.rsplit("\n", 1)[0] + "\n") * 2000,
    "tags": "<answer>" * 20_000,
    "marks": "**" * 20_000,
}


@pytest.mark.parametrize("text", DEGENERATE.values(), ids=DEGENERATE)
def test_parsers_take_linear_time(text):
    """A degenerate model repeats itself, which makes a careless regular expression backtrack."""
    for parse in (metrics.parse_question, metrics.parse_answer, metrics.tagged_answer):
        start = time.process_time()
        parse(text)
        assert time.process_time() - start < 5


def mcq_row(texts: list[str], **changes) -> dict:
    """A result row of the axis `mcq`, ten tokens for each text."""
    fields = {
        "id": "mcq-000",
        "axis": "mcq",
        "model": "m",
        "method": "base",
        "protocol": None,
        "draws": texts,
        "tokens": 10 * len(texts),
    }
    return fields | changes


def question(letter: str) -> str:
    """A well-formed question whose right answer is at this letter."""
    return GOOD.replace("Answer: B", f"Answer: {letter}")


def test_mcq_scores_count_invalid_questions_and_need_valid_ones():
    texts = [question("C")] * 60 + [question("A")] * 20 + ["I cannot"] * 20
    found = values([mcq_row(texts)])
    assert found["valid_rate"]["value"] == 0.8
    assert found["valid_rate"]["n"] == 100
    assert found["tv"]["value"] == 0.5
    assert found["tv"]["n"] == 80
    assert found["tv"]["low"] <= 0.5 <= found["tv"]["high"]
    assert found["share_c"]["value"] == 0.75
    assert found["tokens"]["value"] == 10

    nothing = values([mcq_row(["no", "nothing"])])
    assert nothing["valid_rate"]["value"] == 0
    for metric in ("tv", "share_a"):
        assert nothing[metric]["value"] is None
        assert nothing[metric]["n"] == 0
    page = "\n".join(metrics.table(list(nothing.values()), "mcq"))
    assert "0.000" in page
    assert "TV" not in page  # a column without a value is not shown


@pytest.mark.parametrize("valid", [1, 29, 30])
def test_the_total_variation_needs_thirty_valid_questions(valid):
    """That of a few questions says nothing: that of one is always .75."""
    found = values([mcq_row([question("C")] * valid + ["I cannot"] * 10)])
    enough = valid >= 30
    assert found["valid_rate"]["value"] == valid / (valid + 10)
    assert found["share_c"]["value"] == 1
    assert (found["tv"]["value"] is not None) == enough
    assert found["tv"]["n"] == (valid if enough else 0)
    heading, _, line = metrics.table(list(found.values()), "mcq")
    assert ("TV" in heading) == enough
    assert ("0.750" in line) == enough

    both = [mcq_row([question("C")] * valid) | {"id": name} for name in ("one", "two")]
    assert values(both)["tv"]["n"] == (2 * valid if 2 * valid >= 30 else 0)


def test_mcq_has_a_target_row():
    """It has as many well-formed questions as the base has answers, at uniformly drawn places."""
    rows = [mcq_row([question("C")] * 600 + ["I cannot"] * 400)]
    target = values(rows, "target")
    assert {row["axis"] for row in target.values()} == {"mcq"}
    assert target["valid_rate"]["value"] == 1
    assert target["valid_rate"]["n"] == 1000
    assert target["tv"]["n"] == 1000
    assert 0 < target["tv"]["value"] < 0.06  # drawn, not dealt evenly; on average .022
    for letter in "abcd":
        share = target[f"share_{letter}"]
        assert share["value"] == pytest.approx(0.25, abs=0.05)

    headings, _, *lines = [cells(line) for line in metrics.table(metrics.aggregate(rows), "mcq")]
    column = headings.index("method")
    assert [line[column] for line in lines] == ["base", "target"]


def test_a_smaller_number_of_questions_has_its_own_target_row():
    rows = [mcq_row([GOOD] * 400), mcq_row([GOOD] * 50, method="soft")]
    scores = metrics.aggregate(rows)
    tv = {row["method"]: row for row in scores if row["metric"] == "tv"}
    assert set(tv) == {"base", "soft", "target", "target, n=50"}
    assert tv["target"]["n"] == 400
    assert tv["target, n=50"]["n"] == 50
    assert 0 < tv["target"]["value"] < 0.1
    assert 0 < tv["target, n=50"]["value"] < 0.3
    for method in ("target", "target, n=50"):
        assert values(rows, method)["valid_rate"]["value"] == 1


# ------------------------------------------------------------------------------------------ tables


@pytest.mark.parametrize(
    "value, low, high, shown",
    [
        (0.5, 0.25, 0.75, "0.500 [0.25, 0.75]"),
        (0.5, None, None, "0.500"),
        (0.5, 0.25, None, "0.500 [0.25, ∞]"),
        (None, 0.25, None, "∞ [0.25, ∞]"),
        (2e7, 0.5, 2e9, "2e+07 [0.50, 2e+09]"),
    ],
)
def test_a_cell_is_a_value_and_its_interval(value, low, high, shown):
    row = {"metric": "normalized_w1", "value": value, "low": low, "high": high, "n": 5}
    assert metrics.cell([row]) == shown
    absent = row | {"value": None, "low": None, "high": None, "n": 0}
    assert metrics.cell([absent]) == metrics.cell([]) == "–"
    assert metrics.cell([absent, row]) == metrics.cell([row, absent]) == shown  # two seeds


def test_each_axis_has_one_table():
    rows = [result(OOD[0]), open_row({"Mars": 3}), mcq_row([GOOD] * 30)]
    scores = metrics.aggregate(rows)
    page = "\n".join(metrics.tables(scores))
    for axis in ("numbers", "open", "mcq"):
        assert page.count(f"**{axis}**") == 1
    for heading in ("W1", "CDF gap", "form", "support 90", "TV"):
        assert heading in page
    assert "answered" not in page  # this column is for SSOT's rows, and there are none
    assert "**mcq**" not in "\n".join(metrics.tables(metrics.aggregate(rows[:2])))

    # Each axis has its own number of draws, and its own target row where it has a target.
    expected = {"numbers": {"base", "target"}, "open": {"base"}, "mcq": {"base", "target"}}
    for axis, methods in expected.items():
        assert {row["method"] for row in scores if row["axis"] == axis} == methods


def test_two_models_share_a_table():
    """Each model has its own methods and its own target row."""
    rows = []
    for model, answer in (("a/small", "1"), ("b/large", "12")):
        for method in ("soft", "base"):
            for prompt in OOD[3:6]:
                rows.append(result(prompt, model=model, method=method, draws=[answer] * 20))
    scores = metrics.aggregate(rows)
    lines = [cells(line)[:3] for line in metrics.table(scores, "numbers")[2:]]
    assert lines == [
        ["a/small", "ood", "base"],
        ["a/small", "ood", "soft"],
        ["a/small", "ood", "target"],
        ["b/large", "ood", "base"],
        ["b/large", "ood", "soft"],
        ["b/large", "ood", "target"],
    ]
    w1 = {(r["model"], r["method"]): r["value"] for r in scores if r["metric"] == "normalized_w1"}
    assert len(w1) == 6
    assert w1["a/small", "base"] == w1["a/small", "soft"] != w1["b/large", "base"]


def rows_of_three_seeds() -> list[dict]:
    """Rows of `soft` with the seeds 0, 1 and 2; those of seed 0 do not state it."""
    rows = []
    for prompt in OOD[3:9]:
        rows.append(result(prompt, method="base", logit_kl=3.0))
        rows.append(result(prompt, method="soft", logit_kl=1.0))
        rows.append(result(prompt, method="soft", logit_kl=1.1, seed=1))
        rows.append(result(prompt, method="soft", logit_kl=1.3, seed=2))
        rows.append(result(prompt, method="soft-slow", logit_kl=2.0))
    return rows


def test_every_seed_has_its_own_scores():
    scores = metrics.aggregate(rows_of_three_seeds())
    excess = {}
    for row in scores:
        if row["metric"] == "excess_kl":
            excess[row["method"], row["seed"]] = row["value"]
    assert excess["base", 0] == pytest.approx(2.5)
    assert excess["soft", 0] == pytest.approx(0.5)
    assert excess["soft", 1] == pytest.approx(0.6)
    assert excess["soft", 2] == pytest.approx(0.8)
    assert excess["soft-slow", 0] == pytest.approx(1.5)


def test_a_table_shows_the_mean_and_standard_deviation_over_seeds():
    """Of .5, .6 and .8 the mean is .633, and the sample standard deviation .153."""
    scores = metrics.aggregate(rows_of_three_seeds())
    headings, _, *lines = [cells(line) for line in metrics.table(scores, "numbers")]
    column = headings.index("excess KL")
    assert [line[2] for line in lines] == ["base", "soft", "soft-slow", "target"]
    assert lines[0][column] == "2.500 [2.50, 2.50]"
    assert lines[1][column].startswith("0.633 ± 0.153")
    assert lines[2][column] == "1.500 [1.50, 1.50]"

    # A mean of which one value is infinite is infinite, and has no standard deviation.
    for row in scores:
        if row["method"] == "soft" and row["seed"] == 1:
            row["value"] = None
    lines = [cells(line) for line in metrics.table(scores, "numbers")]
    (soft,) = [line for line in lines if line[2] == "soft"]
    assert soft[column].startswith("∞")
    assert "±" not in soft[column]


# ----------------------------------------------------------------------------------- files of rows


def write(path, rows):
    distributions.write_text(path, distributions.to_jsonl(rows))
    return path


@pytest.mark.parametrize(
    "changes, facts",
    [
        ({}, ("f.jsonl:2: base", "already", "f.jsonl:1")),
        ({"draws": None}, ("f.jsonl:2: ", "draws")),
        ({"family": "normal", "id": "x"}, ("family", "'normal'")),
    ],
    ids=["a repetition", "no draws", "an unknown family"],
)
def test_a_bad_result_row_is_named(tmp_path, changes, facts):
    row = result(OOD[0], draws=["1"] * 20)
    other = row | changes
    if other["draws"] is None:
        del other["draws"]
    file = write(tmp_path / "f.jsonl", [row, other])
    line = complaint(metrics, file, "--out", tmp_path / "scores.jsonl")
    assert_mentions(line, *facts)
    assert not (tmp_path / "scores.jsonl").exists()


def test_rows_of_two_seeds_are_not_a_repetition(tmp_path):
    """A row without a seed counts as one of seed 0."""
    row = result(OOD[0], method="soft", draws=["1"] * 20)
    seeds = write(tmp_path / "seeds.jsonl", [row, row | {"seed": 1}])
    call(metrics, seeds, "--out", tmp_path / "scores.jsonl")
    scores = distributions.read_rows([tmp_path / "scores.jsonl"])
    assert {score["seed"] for score in scores if score["method"] == "soft"} == {0, 1}

    same = write(tmp_path / "same.jsonl", [row, row | {"seed": 0}])
    line = complaint(metrics, same, "--out", tmp_path / "none.jsonl")
    assert_mentions(line, "same.jsonl:2: soft", "already", "same.jsonl:1")


ASKED = {
    "numbers": OOD[:3],
    "open": [{"id": f"open-{i}", "prompt": "p"} for i in range(3)],
}
DIFFERENCES = {
    "numbers": [
        {"id": "another"},
        {"prompt": "p."},
        {"bins": 16384},
        {"decimals": 2},
        {"params": {"p": 0.2}},
    ],
    "open": [{"id": "another"}, {"prompt": "p."}],
}


@pytest.mark.parametrize("axis", ["numbers", "open"])
def test_methods_that_were_asked_different_prompts_are_an_error(tmp_path, axis, capsys):
    base = [result(prompt, axis=axis, model="a/model", draws=["1"] * 20) for prompt in ASKED[axis]]
    soft = [row | {"method": "soft"} for row in base]
    base_file = write(tmp_path / "base.jsonl", base)
    scores = tmp_path / "scores.jsonl"

    variants = [[*soft[:2], soft[2] | change] for change in DIFFERENCES[axis]]
    variants.append(soft[:2])  # one prompt fewer
    variants.append([*soft, soft[0] | {"id": "one more"}])
    for variant in variants:
        soft_file = write(tmp_path / "soft.jsonl", variant)
        line = complaint(metrics, base_file, soft_file, "--out", scores)
        assert_mentions(line, f"a/model, {axis}", "base", "soft")
        assert not scores.exists()

    # Another model may have been asked other prompts.
    other_file = write(tmp_path / "soft.jsonl", [row | {"model": "another"} for row in soft[:2]])
    call(metrics, base_file, other_file, "--out", scores)
    assert "| another " in capsys.readouterr().out
    models = {row["model"] for row in distributions.read_rows([scores])}
    assert models == {"a/model", "another"}


def test_rows_of_one_model_that_has_different_weights_are_an_error(tmp_path):
    """Rows that do not state their weights, such as those of other tools, may stand beside any."""
    base = result(OOD[0], model="a/model", draws=["1"] * 20, weights="0123456789ab")
    scores = tmp_path / "scores.jsonl"
    for changes, is_error in (
        ({}, False),
        ({"weights": "ba9876543210"}, True),
        ({"weights": "ba9876543210", "model": "another"}, False),
        ({"weights": None}, False),
    ):
        soft = base | {"method": "soft"} | changes
        file = write(tmp_path / "rows.jsonl", [base, soft])
        if is_error:
            line = complaint(metrics, file, "--out", scores)
            assert_mentions(line, "soft", "a/model", "0123456789ab", "ba9876543210")
            assert not scores.exists()
        else:
            call(metrics, file, "--out", scores)
            scores.unlink()
