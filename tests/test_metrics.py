"""Scores by hand: what counts as an answer, normalized W1, CDF gap, goodness of fit, the excess KL's two parts, total
variation, aggregation, target rows."""

import math
import re
import time

import numpy as np
import pytest
from conftest import call, complaint
from scipy import stats

import metrics
from distributions import (
    canonical_outputs,
    distribution,
    is_discrete,
    make_rows,
    read_rows,
    sample_outputs,
    to_jsonl,
    write_text,
)

NORMAL = {"family": "gaussian", "params": {"mu": 0, "sigma": 1}}
COUNT = {"family": "poisson", "params": {"lambda": 4}}
COIN = {"family": "bernoulli", "params": {"p": 0.5}}


def parsed(text, row) -> float | None:
    return metrics.parse_number(text, *distribution(row).support(), is_discrete(row))


@pytest.mark.parametrize(
    "text, value",
    [
        ("3.14159", 3.14159), ("-2", -2.0), ("+1.5", 1.5), (".5", 0.5), ("5.", 5.0), ("0", 0.0), ("-0.0", 0.0),
        ("  7.25\n", 7.25), ("1e3", 1000.0), ("1E-3", 0.001), ("-.5e+1", -5.0), ("\x1c5.5", 5.5), ("007", 7.0),
        ("", None), ("   ", None), (".", None), ("-", None), ("e5", None), ("1e", None), ("1.2.3", None),
        ("1,234", None), ("1 2", None), ("--1", None), ("+-1", None), ("3.5 is my number", None), ("x=3.5", None),
        ("3.5.", None), ("nan", None), ("NaN", None), ("inf", None), ("-Infinity", None), ("1e999", None),
        ("0x10", None), ("1_000", None), ("½", None), ("٣", None), ("３.５", None), ("2/3", None), ("50%", None),
        ("1e99", 1e99), ("1.7e308", None), ("-1.7e308", None), ("1e100", None), ("9" * 400, None), ("1e-400", 0.0),
        ("3.5<|endoftext|>", None), ("3.14159265358979…", None), ("\u22122.5", None), ("**3.5**", None),
    ],
)  # fmt: skip
def test_parse_number(text, value):
    assert parsed(text, NORMAL) == value


@pytest.mark.parametrize(
    "text, family, params, valid",
    [
        *((text, *COUNT.values(), True) for text in ("3", "3.0", "3e0", "50")),
        *((text, *COUNT.values(), False) for text in ("3.5", "-1")),
        ("0", "geometric", {"p": 0.5}, False), ("1", "geometric", {"p": 0.5}, True),
        ("-0.1", "exponential", {"lambda": 1}, False), ("1e6", "exponential", {"lambda": 1}, True),
        ("1.2", "beta", {"alpha": 2, "beta": 2}, False), ("3.4", "pareto", {"alpha": 6.5, "xm": 3.5}, False),
        ("2", "bernoulli", {"p": 0.5}, False), ("11", "uniform", {"a": 3.5, "b": 10.5}, False),
        ("3.5", "uniform", {"a": 3.5, "b": 10.5}, True), ("-5", "skellam", {"mu1": 2, "mu2": 2}, True),
        ("1.01", "truncnorm", {"mu": 0, "sigma": 1, "lower": -1, "upper": 1}, False),
    ],
)  # fmt: skip
def test_valid_means_inside_the_support(text, family, params, valid):
    assert (parsed(text, {"family": family, "params": params}) is not None) == valid


def by_hand(statistic, *arrays):
    return statistic(*(np.array(array, float) for array in arrays))


def test_normalized_w1_by_hand():
    # Target 0, 1, 2 with 1/4, 1/2, 1/4: median 1, E|X - 1| = 1/2.
    support, probs = [0, 1, 2], [0.25, 0.5, 0.25]
    w1 = lambda values: by_hand(metrics.normalized_w1, values, support, probs)
    assert w1([1] * 5) == pytest.approx(1)  # the median, always
    assert w1([2, 1, 0, 1]) == pytest.approx(0)  # the target itself
    assert w1([1, 1, 2, 1]) == pytest.approx(0.5)  # 1/4 of the mass one step off
    assert w1([4]) == pytest.approx(6)  # everything moves 3 on average


def test_cdf_gap_by_hand():
    # The target's distribution function: 1/4 from 0, 3/4 from 1, 1 from 2.
    gap = lambda values: metrics.cdf_gap(
        np.array(values), {"family": "binomial", "params": {"n": 2, "p": 0.5}}
    )
    assert gap([2, 1, 0, 1]) == pytest.approx(0)
    assert gap([1] * 5) == pytest.approx(0.25)  # at 0, where none of the draws lie, and at 1
    assert gap([0, 0, 1, 2]) == pytest.approx(0.25)  # at 0: 1/2 for 1/4
    assert gap([0, 0, 0, 2]) == pytest.approx(0.5)  # at 0: 3/4 for 1/4
    assert gap([4]) == gap([1e99]) == pytest.approx(1)  # at 2; however far the wild draw
    assert gap([-3, 0, 1, 1]) == pytest.approx(
        0.25
    )  # at -3, below the whole support, and at 0 and 1


@pytest.mark.parametrize("row", [NORMAL, COUNT], ids=["gaussian", "poisson"])
def test_cdf_gap_is_scipy_s_statistic(row):
    drawn, _ = sample_outputs(row, 300, np.random.default_rng(0), max_bins=None)
    values = np.array(drawn, float) + 1
    if is_discrete(row):  # scipy's is for continuous functions; by hand, at the integers
        exact = max(abs((values <= k).mean() - distribution(row).cdf(k)) for k in range(-1, 40))
    else:
        exact = stats.kstest(values, distribution(row).cdf).statistic
    assert metrics.cdf_gap(values, row) == pytest.approx(
        exact, abs=1e-5 if is_discrete(row) else 1e-4
    )


@pytest.mark.parametrize("row", make_rows("unseen") + make_rows("ood"), ids=lambda row: row["id"])
def test_the_constant_median_scores_one(row):
    """Also for Cauchy and Bernoulli(.1), where variance or IQR are of no use."""
    texts, probs, _ = canonical_outputs(row)
    middle = int(np.searchsorted(np.cumsum(probs), 0.5))
    scores = metrics.score(row | base_fields(draws=[texts[middle]] * 10))
    assert scores["normalized_w1"] == pytest.approx(1, abs=1e-9) and scores["valid_rate"] == 1
    below, above = float(texts[middle]) + np.array([-1, 0] if is_discrete(row) else [-5e-6, 5e-6])
    gaps = distribution(row).cdf(below), 1 - distribution(row).cdf(above)
    assert scores["cdf_gap"] == pytest.approx(max(gaps), abs=1e-9)


@pytest.mark.parametrize("row", [NORMAL, COUNT], ids=["gaussian", "poisson"])
def test_a_large_sample_of_the_target_scores_zero(row):
    texts, _ = sample_outputs(row, 200_000, np.random.default_rng(0), max_bins=None)
    support, probs, _ = canonical_outputs(row)
    values = np.array(texts, float)
    assert metrics.normalized_w1(values, np.array(support, float), probs) < 0.01
    assert metrics.cdf_gap(values, row) < 0.005


def test_target_row_matches_theory():
    """For n true draws E W1 is about the integral of E|F_n - F| = sqrt(2 F (1 - F) / (pi n)), over E|X - median|;
    and sqrt(n) times the CDF gap has Kolmogorov's mean, sqrt(pi / 2) log 2."""
    (row,) = [r for r in make_rows("unseen") if r["family"] == "gaussian"]
    scores = [metrics.score(metrics.target_row(row | base_fields(id=str(i)))) for i in range(40)]
    z = np.linspace(-8, 8, 4001)
    phi = np.array([(1 + math.erf(x / math.sqrt(2))) / 2 for x in z])
    theory = np.trapezoid(np.sqrt(2 * phi * (1 - phi) / (math.pi * 1000)), z) / math.sqrt(
        2 / math.pi
    )
    assert np.mean([s["normalized_w1"] for s in scores]) == pytest.approx(theory, rel=0.15)
    kolmogorov = math.sqrt(math.pi / 2) * math.log(2) / math.sqrt(1000)
    assert np.mean([s["cdf_gap"] for s in scores]) == pytest.approx(kolmogorov, rel=0.15)


def test_target_row_passes_and_has_no_excess():
    rows = [r | base_fields() for r in make_rows("unseen") + make_rows("ood")]
    scored = [metrics.score(metrics.target_row(row)) for row in rows]
    assert all(
        s["valid_rate"] == 1 and s["excess_kl"] == s["form_kl"] == s["shape_kl"] == 0
        for s in scored
    )
    assert sum(s["gof_pass_rate"] for s in scored) >= 40  # of 42, at the 1 % level


@pytest.mark.parametrize(
    "family, params, decimals",
    [
        ("poisson", {"lambda": 1000}, 5),
        ("binomial", {"n": 100000, "p": 0.5}, 5),
        ("binomial", {"n": 10**10, "p": 0.3}, 5),
        ("binomial", {"n": 20.0, "p": 0.5}, 5),  # as a table of numbers may have it
        ("beta", {"alpha": 0.5, "beta": 0.5}, 2),  # 5 % of it is 0.01
        ("gaussian", {"mu": 0, "sigma": 1e-4}, 5),  # a unit is a tenth of sigma
        ("gaussian", {"mu": 0, "sigma": 1}, 1),
        ("pareto", {"alpha": 2, "xm": 0.275}, 2),  # it begins at 0.28, and 0.28 * 100 is above 28
        ("uniform", {"a": 0.275, "b": 0.395}, 2),  # 0.29 * 100 is below 29
    ],
)
def test_perfect_samplers_of_coarse_and_of_huge_supports_pass(family, params, decimals):
    row = {"family": family, "params": params, "decimals": decimals}
    scores = [metrics.score(metrics.target_row(row | base_fields(id=str(i)))) for i in range(30)]
    assert sum(s["gof_pass_rate"] for s in scores) >= 28
    assert np.mean([s["normalized_w1"] for s in scores]) < (
        0.12 if family == "pareto" else 0.07
    )  # a heavy tail
    assert np.mean([s["cdf_gap"] for s in scores]) < 0.03


@pytest.mark.parametrize("row", [NORMAL, COUNT], ids=["gaussian", "poisson"])
def test_goodness_of_fit(row):
    good, _ = sample_outputs(row, 1000, np.random.default_rng(1), max_bins=None)
    passed = {}
    for name, draws in {"good": good, "constant": ["1"] * 1000}.items():
        passed[name] = metrics.score(row | base_fields(draws=draws))["gof_pass_rate"]
    assert passed == {"good": 1, "constant": 0}


def kolmogorov(x: float) -> float:
    """P(sqrt(n) sup |F_n - F| > x) for large n, Kolmogorov's series."""
    return 2 * sum((-1) ** (k - 1) * math.exp(-2 * k * k * x * x) for k in range(1, 20))


@pytest.mark.parametrize(
    "shift, p, passes", [(0.0480, 0.018, 1), (0.0550, 0.0044, 0), (0.0600, 0.0014, 0)]
)
def test_the_level_of_the_continuous_test_is_one_percent(shift, p, passes):
    """1000 evenly spread values of the uniform distribution on 0..1, all moved by as much as `shift`."""
    row = {"family": "uniform", "params": {"a": 0, "b": 1}}
    draws = [f"{min((i + 0.5) / 1000 + shift, 1):.5f}" for i in range(1000)]
    assert kolmogorov(math.sqrt(1000) * (shift + 0.0005)) == pytest.approx(p, rel=0.1)
    assert metrics.score(row | base_fields(draws=draws))["gof_pass_rate"] == passes


@pytest.mark.parametrize("heads, p, passes", [(538, 0.0162, 1), (545, 0.0044, 0), (550, 0.0016, 0)])
def test_the_level_of_the_discrete_test_is_one_percent(heads, p, passes):
    """1000 tosses: chi-square with one degree of freedom, (heads - 500)^2 / 250."""
    assert math.erfc((heads - 500) / math.sqrt(250) / math.sqrt(2)) == pytest.approx(p, rel=0.03)
    draws = ["1"] * heads + ["0"] * (1000 - heads)
    assert metrics.score(COIN | base_fields(draws=draws))["gof_pass_rate"] == passes


@pytest.mark.parametrize(
    "seen, wanted, pooled",
    [
        ([1, 2, 3, 4, 7], [1, 4, 6, 4, 2], ([3, 3, 11], [5, 6, 6])),
        ([1, 2, 10], [6, 6, 1], ([1, 12], [6, 7])),
        ([8, 5], [7, 6], ([8, 5], [7, 6])),
    ],
)
def test_pooling_joins_cells_from_the_left(monkeypatch, seen, wanted, pooled):
    """Until each expects five; what is left over goes to the last."""
    tested, chisquare = [], stats.chisquare
    monkeypatch.setattr(
        metrics.stats, "chisquare", lambda *cells: tested.append(cells) or chisquare(*cells)
    )
    values = np.repeat(np.arange(len(seen)), seen)
    metrics.chi_square_p(values, np.arange(len(seen)), np.array(wanted) / sum(wanted))
    ((observed, expected),) = tested
    assert observed.tolist() == pooled[0] and expected == pytest.approx(pooled[1])


def base_fields(**changes) -> dict:
    fields = {
        "axis": "numbers",
        "model": "m",
        "method": "base",
        "protocol": None,
        "draws": ["1"] * 1000,
    }
    fields |= {
        "logit_kl": 2.0,
        "logit_kl_form": 0.4,
        "logit_kl_floor": 0.5,
        "seconds": 1.0,
        "tokens": 4000,
    }
    return fields | changes


def test_a_list_is_scored_by_its_total_variation():
    """A row with outputs of its own, which have no order: 1/2 sum |share - prob| over the valid draws, and no W1."""
    own = {
        "id": "a",
        "split": "own",
        "prompt": "p",
        "outputs": ["red", "green", "blue"],
        "probs": [0.5, 0.25, 0.25],
    }
    row = own | base_fields(draws=["red"] * 30 + [" green\n"] * 30 + ["Red", "red or so", ""])
    scores = metrics.score(row)
    assert scores["valid_rate"] == 60 / 63 and scores["tv"] == pytest.approx(0.25)
    assert scores["excess_tv"] == pytest.approx(
        0.25 - metrics.expected_tv(60, np.array([0.5, 0.25, 0.25]))
    )
    assert (
        scores["gof_pass_rate"] == 0
        and scores.get("normalized_w1") is None
        and scores["excess_kl"] == 1.5
    )
    nothing = metrics.score(own | base_fields(draws=["pink"]))
    assert [nothing[m] for m in ("valid_rate", "tv", "excess_tv", "gof_pass_rate")] == [0, 1, 1, 0]
    target = values([row], "target")
    assert target["valid_rate"]["value"] == target["gof_pass_rate"]["value"] == 1
    assert (
        0 < target["tv"]["value"] < 0.25
        and target["normalized_w1"]["n"] == target["cdf_gap"]["n"] == 0
    )


def test_a_perfect_sampler_s_total_variation_is_what_simulation_gives():
    """Its excess is 0 on average, whatever the number of draws; by hand for one draw, and for one certain outcome."""
    probs = np.array([0.5, 0.3, 0.15, 0.05])
    for n in (1, 7, 200):
        shares = np.random.default_rng(0).multinomial(n, probs, 20_000) / n
        simulated = np.abs(shares - probs).sum(1).mean() / 2
        assert metrics.expected_tv(n, probs) == pytest.approx(simulated, rel=0.02)
    assert (
        metrics.expected_tv(1, np.array([0.5, 0.5])) == 0.5
        and metrics.expected_tv(9, np.array([1.0, 0.0])) == 0
    )


def values(rows, method="base") -> dict:
    """metric -> its score row."""
    return {row["metric"]: row for row in metrics.aggregate(rows) if row["method"] == method}


def test_the_excess_is_form_and_shape():
    scores = metrics.score(COIN | base_fields())
    assert (scores["logit_kl"], scores["logit_kl_floor"], scores["excess_kl"]) == (2, 0.5, 1.5)
    assert (scores["form_kl"], scores["shape_kl"]) == pytest.approx((0.4, 1.1))


@pytest.mark.filterwarnings("error")
def test_nothing_valid_is_an_infinite_w1():
    (row,) = [r for r in make_rows("unseen") if r["family"] == "gaussian"]
    row |= base_fields(draws=["Sure!"] * 7 + ["3.5 or so"] * 3)
    scores = metrics.score(row)
    assert (
        scores["valid_rate"] == 0
        and scores["normalized_w1"] == math.inf
        and scores["gof_pass_rate"] == 0
    )
    assert scores["cdf_gap"] == 1 and scores["excess_kl"] == 1.5
    found = values([row])
    assert found["normalized_w1"]["value"] is None and found["normalized_w1"]["n"] == 1
    assert found["valid_rate"]["value"] == 0
    assert '"value": null' in to_jsonl([found["normalized_w1"]])
    line = metrics.table(list(found.values()), "numbers")[2]
    assert [cell.strip() for cell in line.split("|")][4].startswith("∞")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("silent, headline", [(1, 1), (2, 1), (3, math.inf), (5, math.inf)])
def test_an_infinite_w1_stays_in_the_median_over_families(silent, headline):
    """Of five families that all answer their median, so many say nothing: the median is 1 until they are the most."""
    rows = []
    for i, family in enumerate(("gaussian", "laplace", "gumbel", "uniform", "cauchy")):
        (row,) = [r for r in make_rows("unseen") if r["family"] == family]
        texts, probs, _ = canonical_outputs(row)
        median = texts[int(np.searchsorted(np.cumsum(probs), 0.5))]
        rows.append(row | base_fields(draws=["I cannot" if i < silent else median] * 20))
    score = values(rows)["normalized_w1"]
    assert score["n"] == 5 and score["value"] == (
        None if headline == math.inf else pytest.approx(1)
    )
    assert score["high"] is None and (score["low"] is None) == (silent == 5)
    cell = metrics.table(metrics.aggregate(rows), "numbers")[2].split("|")[4]
    assert cell.strip().startswith("1.000 [" if headline == 1 else "∞ [")


def test_one_silent_prompt_makes_its_family_s_mean_infinite():
    rows = [
        row | base_fields() for row in make_rows("ood") if row["family"] in ("bernoulli", "poisson")
    ]
    rows[0]["draws"] = ["no"] * 20
    assert (
        values(rows)["normalized_w1"]["value"] is None
        and values(rows[1:])["normalized_w1"]["value"] > 0
    )


def test_aggregation_is_the_median_over_families_of_the_mean_over_prompts():
    kl = {
        "bernoulli": (1, 2, 3),
        "poisson": (5, 5, 8),
        "weibull": (9, 9, 9),
    }  # family means 2, 6, 9
    rows, seen = [], {}
    for row in make_rows("ood"):
        if row["family"] in kl:
            i = seen[row["family"]] = seen.get(row["family"], -1) + 1
            rows.append(row | base_fields(logit_kl=float(kl[row["family"]][i]), logit_kl_floor=0.0))
    result = values(rows)["logit_kl"]
    assert result["value"] == 6 and result["n"] == 9 and result["low"] == 2 and result["high"] == 9
    assert (result["axis"], result["split"], result["model"]) == ("numbers", "ood", "m")


def test_the_headline_is_a_median_and_of_rates_a_mean():
    bad, kl = (
        {"bernoulli": 0, "poisson": 1, "weibull": 8},
        {"bernoulli": 4.0, "poisson": 36.0, "weibull": 100.0},
    )
    rows = [
        row
        | base_fields(draws=["1"] * (10 - bad[family]) + ["no"] * bad[family], logit_kl=kl[family])
        for row in make_rows("ood")
        if (family := row["family"]) in bad
    ]
    found, families = values(rows), {}
    for row in rows:
        families.setdefault(row["family"], []).append(metrics.score(row))
    for name in (
        "normalized_w1",
        "cdf_gap",
        "logit_kl",
        "excess_kl",
        "shape_kl",
        "valid_rate",
        "gof_pass_rate",
    ):
        means = [np.mean([scores[name] for scores in own]) for own in families.values()]
        wanted, other = (np.mean(means), np.median(means))[:: 1 if name.endswith("rate") else -1]
        assert found[name]["value"] == pytest.approx(wanted), name
        assert abs(wanted - other) > 1e-3, name


def test_the_test_of_fit_counts_valid_draws_alone():
    """A gap of .1 is nothing much for 50 draws, and would be for 1000."""
    draws = [f"{min((i + 0.5) / 50 + 0.1, 1):.5f}" for i in range(50)]
    for invalid, valid in ((0, 50), (950, 50), (0, 1000)):
        row = {"family": "uniform", "params": {"a": 0, "b": 1}}
        row |= base_fields(draws=draws * (valid // 50) + ["no"] * invalid)
        assert metrics.score(row)["gof_pass_rate"] == (valid == 50)


def test_bootstrap_covers_and_needs_two():
    assert metrics.bootstrap(np.array([3.0]), np.mean) == (None, None)
    low, high = metrics.bootstrap(np.arange(100.0), np.mean)
    assert low == pytest.approx(49.5 - 1.96 * 2.89, abs=0.6) and high == pytest.approx(
        49.5 + 1.96 * 2.89, abs=0.6
    )


@pytest.mark.parametrize("numbers, shown", [((0.5, 0.25, 0.75), "0.500 [0.25, 0.75]"), ((0.5, None, None), "0.500"),
    ((0.5, 0.25, None), "0.500 [0.25, ∞]"), ((None, 0.25, None), "∞ [0.25, ∞]"), ((2e7, 0.5, 2e9), "2e+07 [0.50, 2e+09]")])  # fmt: skip
def test_a_cell_is_a_value_and_its_interval(numbers, shown):
    row = dict(zip(("value", "low", "high"), numbers, strict=True)) | {
        "metric": "normalized_w1",
        "n": 5,
    }
    assert (
        metrics.cell([row]) == shown and metrics.cell([row | {"n": 0}]) == metrics.cell([]) == "–"
    )


def test_two_models_share_a_table():
    """Each with its own methods and its own target row."""
    rows = [
        row | base_fields(model=model, method=method, draws=[answer] * 20)
        for row in make_rows("ood")[3:6]
        for model, answer in (("a/small", "1"), ("b/large", "12"))
        for method in ("soft", "base")
    ]
    scores = metrics.aggregate(rows)
    lines = [
        [cell.strip() for cell in line.split("|")[1:4]]
        for line in metrics.table(scores, "numbers")[2:]
    ]
    assert lines == [
        [m, "ood", method] for m in ("a/small", "b/large") for method in ("base", "soft", "target")
    ]
    w1 = {(r["model"], r["method"]): r["value"] for r in scores if r["metric"] == "normalized_w1"}
    assert len(w1) == 6 and w1["a/small", "base"] == w1["a/small", "soft"] != w1["b/large", "base"]


def write(path, rows):
    write_text(path, to_jsonl(rows))
    return path


@pytest.mark.parametrize(
    "changes, message",
    [
        ({}, "f.jsonl:2: base on .* was already at .*f.jsonl:1"),
        (
            {"draws": None},
            "f.jsonl:2: needs an object with the keys id, model, method, axis, draws",
        ),
        ({"family": "normal", "id": "x"}, "unknown family 'normal'"),
    ],
)
def test_bad_rows_are_named(tmp_path, changes, message):
    row = make_rows("ood")[0] | base_fields(draws=["1"] * 20)
    other = {
        key: value
        for key, value in (row | changes).items()
        if value is not None or key not in changes
    }
    line = complaint(
        metrics, write(tmp_path / "f.jsonl", [row, other]), "--out", tmp_path / "s.jsonl"
    )
    assert re.search(message, line) and not (tmp_path / "s.jsonl").exists()


@pytest.mark.parametrize("axis", ["numbers", "open"])
def test_methods_on_different_prompts_are_refused(tmp_path, axis, capsys):
    rows = (
        make_rows("ood")[:3]
        if axis == "numbers"
        else [{"id": f"open-{i}", "prompt": "p"} for i in range(3)]
    )
    rows = [row | base_fields(axis=axis, draws=["1"] * 20) for row in rows]
    base = write(tmp_path / "base.jsonl", rows)
    changes = (
        {"id": "another"},
        {"prompt": "p."},
        {"bins": 16384},
        {"decimals": 2},
        {"params": {"p": 0.2}},
    )
    others = [
        [*rows[:2], rows[2] | change] for change in (changes if axis == "numbers" else changes[:2])
    ]
    for soft in (rows[:2], [*rows, rows[0] | {"id": "one more"}], *others):
        other = write(tmp_path / "soft.jsonl", [row | {"method": "soft"} for row in soft])
        line = complaint(metrics, base, other, "--out", tmp_path / "s.jsonl")
        assert (
            f"m, {axis}" in line
            and "base" in line
            and "soft" in line
            and not (tmp_path / "s.jsonl").exists()
        )
    # Another model, or another axis, may have other prompts.
    other = write(tmp_path / "soft.jsonl", [row | {"model": "another"} for row in rows[:2]])
    call(metrics, base, other, "--out", tmp_path / "s.jsonl")
    assert "| another " in capsys.readouterr().out
    assert {row["model"] for row in read_rows([tmp_path / "s.jsonl"])} == {"m", "another"}


# ------------------------------------------------------------------------------------------------- open answers


@pytest.mark.parametrize(
    "text, answer",
    [
        ("Paris", "Paris"), ("  Paris \n", "Paris"), ('"Paris"', "Paris"), ("'Paris'", "Paris"), ("“Paris”", "Paris"),
        ("«Paris»", "Paris"), ("**Paris**", "Paris"), ('**"Paris"**', "Paris"), ("`Paris`", "Paris"),
        ("\n\nParis\n\nIt is a city in France.", "Paris"), ("New \t York", "New York"), ("paris", "paris"),
        ("<think>\nRome? No.\n</think>\n\nParis", "Paris"), ("<think></think>Paris", "Paris"),
        ("D'Artagnan", "D'Artagnan"), ('7" disc', '7" disc'), ("Zürich", "Zürich"), ("Zu\u0308rich", "Zürich"), ("北京", "北京"),
        ("🎲", "🎲"), ("```\nParis\n```", "Paris"), ("```text\nParis", "Paris"), ("‹Paris›", "Paris"), ("「東京」", "東京"),
        ('"Hamlet" and "Macbeth"', '"Hamlet" and "Macbeth"'), ("'Schindler's List'", "Schindler's List"),
        ("`", None), ("```\n```", None), ("\ufffd", None), ("~", None), ("'", None), ("____", None), ("St. Paul's", "St. Paul's"), ("Washington D.C.", "Washington D.C."), ("Paris\nIt is…", "Paris"),
        ("", None), ("   \n ", None), ('""', None), ("**", None), ("...", None), ("Well, there are so many…", None),
        ("<think>Rome? Or", None), ("<think>Rome</think>", None), ("…", None),
    ],
)  # fmt: skip
def test_open_answers(text, answer):
    assert metrics.parse_answer(text) == answer


def open_row(counts, **changes):
    draws = [text for text, n in counts.items() for _ in range(n)]
    row = {
        "id": "open-000",
        "prompt": "p",
        "axis": "open",
        "model": "m",
        "method": "base",
        "protocol": None,
    }
    return row | {"draws": draws, "support_90": 2, "tokens": 300} | changes


@pytest.mark.filterwarnings("error")
def test_an_enormous_integer_is_one_more_in_the_last_cell():
    (row,) = [r for r in make_rows("ood") if r["id"] == "ood-poisson-001"]
    huge, far = (["4"] * 40 + [text] * 60 for text in ("1" + "0" * 30, "100"))
    scores = [metrics.score(row | base_fields(draws=draws)) for draws in (huge, far)]
    assert (
        scores[0]["valid_rate"] == 1
        and scores[0]["gof_pass_rate"] == scores[1]["gof_pass_rate"] == 0
    )
    assert scores[0]["normalized_w1"] > 1e20 and scores[0]["cdf_gap"] == scores[1]["cdf_gap"]


def test_open_scores_by_hand():
    scores = metrics.score(open_row({"Mars": 5, '"Mars"': 1, "0.25": 2, "": 1, "Well, I…": 1}))
    assert scores == {
        "valid_rate": 0.8, "support_90": 2, "unique_rate": 0.2, "top_share": 0.75, "number_rate": 0.25, "tokens": 30,
    }  # fmt: skip
    nothing = metrics.score(open_row({"": 4}))
    assert "top_share" not in nothing and nothing["unique_rate"] == 0 and nothing["valid_rate"] == 0


def test_open_headlines_are_median_support_and_mean_rates():
    sizes, draws = (1, 2, 9), ({"a": 4}, {"a": 2, "b": 2}, {"a": 1, "b": 1, "c": 1, "d": 1})
    rows = [open_row(d, support_90=s, id=str(s)) for s, d in zip(sizes, draws, strict=True)]
    out = {r["metric"]: r for r in metrics.aggregate(rows)}
    assert out["support_90"]["value"] == 2 and (
        out["support_90"]["low"],
        out["support_90"]["high"],
    ) == (1, 9)
    assert (
        out["unique_rate"]["value"] == pytest.approx((0.25 + 0.5 + 1) / 3)
        and out["unique_rate"]["n"] == 3
    )
    assert (
        out["top_share"]["value"] == pytest.approx((1 + 0.5 + 0.25) / 3)
        and out["top_share"]["axis"] == "open"
    )


# ------------------------------------------------------------------------------------------------ SSOT's tags

BEFORE = "<random_string>x7Qa</random_string><thinking>7 is odd.</thinking>"


@pytest.mark.parametrize(
    "text, answer",
    [
        (BEFORE + "<answer>3.5</answer>", "3.5"), (BEFORE + "\n<answer>\n 3.5 \n</answer>\n", "3.5"),
        ("<answer>3.5</answer>", "3.5"), (BEFORE + "<answer>New\nYork</answer>", "New\nYork"),
        (BEFORE + "<answer>3</answer> so <answer>3</answer>", "3"),
        ("<think>First <answer>1</answer></think>" + BEFORE + "<answer>2</answer>", "2"),
        ("<thinking>Maybe <answer>1</answer>?</thinking><answer>2</answer>", "2"),
        ("<|channel|>analysis<|message|><answer>1</answer><|end|><|start|>assistant<|channel|>final<|message|><answer>2</answer>", "2"),
        ("<|channel|>analysis<|message|>Seven.<|end|><|start|>assistant<|channel|>final<|message|>3.5\n", "3.5"),
        ("<|channel|>final<|message|>3.5", "3.5"), ("<|channel|>final<|message|><answer>3.5", ""),
        ("<|channel|>final<|message|>" + BEFORE + "3.5", "3.5"), ("<|channel|>final<|message|><thinking>3.5", ""),
        ("3.5", ""), ("", ""), (BEFORE, ""), (BEFORE + "3.5", ""), (BEFORE + "<answer>3.5", ""),
        (BEFORE + "3.5</answer>", ""), (BEFORE + "<answer></answer>", ""), (BEFORE + "<answer>3.5</answer", ""),
        (BEFORE + "<answer><answer>3.5</answer></answer>", ""), (BEFORE + "<answer>3<answer>5</answer>", ""),
        (BEFORE + "<answer>3</answer><answer>5</answer>", ""), (BEFORE + "<answer>3</answer><answer>5", ""),
        ("<think><answer>3.5</answer>", ""), ("<Answer>3.5</Answer>", ""), (BEFORE + "<answer>3.5…", ""),
        ("<thinking>maybe <answer>1</answer>? no, let me", ""), ("<random_string><answer>1</answer></random_string>", ""),
        ("<random_string>a</random_string><thinking>b<answer>1</answer>", ""),
        ("<thinking><answer>1</answer></thinking>", ""), ("<|channel|>analysis<|message|><answer>1</answer>", ""),
    ],
)  # fmt: skip
def test_tagged_answer(text, answer):
    assert metrics.tagged_answer(text) == answer


def test_ssot_scores_only_the_tagged_answers():
    draws = [
        BEFORE + "<answer>1</answer>",
        "so <answer>1</answer>",
        "1",
        BEFORE + "<answer>one</answer>",
    ]
    row = make_rows("ood")[1] | base_fields(draws=draws, protocol="ssot", tokens=400)
    row = {key: value for key, value in row.items() if not key.startswith("logit_kl")}
    scores = metrics.score(row)
    assert (scores["valid_rate"], scores["answer_rate"], scores["tokens"]) == (0.5, 0.75, 100)
    assert scores["normalized_w1"] == pytest.approx(1) and "excess_kl" not in scores
    draws = {BEFORE + "<answer>Mars</answer>": 2, "Mars": 1, '<answer>"Mars"</answer>': 1}
    scores = metrics.score(open_row(draws, protocol="ssot", support_90=None))
    assert (scores["valid_rate"], scores["answer_rate"]) == (0.75, 0.75) and scores[
        "unique_rate"
    ] == 0.25


def test_a_smaller_n_gets_a_target_row_of_its_own():
    row = make_rows("ood")[3] | base_fields()
    ssot = row | {"method": "ssot", "draws": ["<answer>4</answer>"] * 50, "protocol": "ssot"}
    ssot = {key: value for key, value in ssot.items() if not key.startswith("logit_kl")}
    w1 = {
        r["method"]: r["value"]
        for r in metrics.aggregate([row, ssot])
        if r["metric"] == "normalized_w1"
    }
    assert (
        set(w1) == {"base", "ssot", "target", "target, n=50"}
        and 0 < w1["target"] < w1["target, n=50"] < 1
    )
    assert "ssot" in "\n".join(metrics.table(metrics.aggregate([row, ssot]), "numbers"))


# ---------------------------------------------------------------------------------------- twenty, or five with odds


@pytest.mark.parametrize(
    "text, found",
    [
        ("0.5\n-1.25\n3", ["0.5", "-1.25", "3"]), ("1. 0.5\n2. -1.25\n10) 3", ["0.5", "-1.25", "3"]),
        ("- 0.5\n* -1.25\n\n\n• 3\n", ["0.5", "-1.25", "3"]), ("0.5, -1.25, 3", ["0.5", "-1.25", "3"]),
        ("0.5; -1.25", ["0.5", "-1.25"]), ("Paris, France\nRome", ["Paris, France", "Rome"]), ("1.5\n2.5", ["1.5", "2.5"]),
        ("<think>1, 2</think>3, 4", ["3", "4"]), ("<think>1, 2", []), ("", []), (" \n ", []), ("7", ["7"]),
    ],
)  # fmt: skip
def test_listed_answers(text, found):
    assert [answer for answer, _ in metrics.listed_answers(text)] == found


@pytest.mark.parametrize(
    "text, found",
    [
        ("a | 0.25\nb | .75", [("a", 0.25), ("b", 0.75)]), ("1. New York | 25 %\n2. b|75%", [("New York", 0.25), ("b", 0.75)]),
        ("a\nb | 1", [("a", 0), ("b", 1)]), ("-1.5 | 0.5\n- 2 | 0.5", [("-1.5", 0.5), ("2", 0.5)]),
        ("a | likely\nb | 0.5", [("b", 0.5)]), ("a | 0.5 | 0.5\nb | 1", [("b", 1)]), (" | 0.5\nb | 1", [("b", 1)]),
    ],
)  # fmt: skip
def test_stated_probabilities(text, found):
    assert metrics.listed_answers(text) == found


def test_a_batch_is_twenty_answers_and_its_cost_is_shared():
    """What a reply lacks is not valid, and what it has beyond twenty does not count."""
    draws = ["\n".join(["1"] * 15), "\n".join(["2"] * 30), "Sure!"]
    scores = metrics.score(
        make_rows("ood")[3] | base_fields(draws=draws, protocol="batch", tokens=600)
    )
    assert (scores["valid_rate"], scores["tokens"]) == (35 / 60, 10) and scores[
        "answer_rate"
    ] == 36 / 60
    row = make_rows("ood")[3] | base_fields(draws=draws, protocol="batch")
    assert len(metrics.target_row(row)["draws"]) == 60


def test_a_stated_probability_may_be_absurd():
    row = {"id": "x", "protocol": "verbalized", "draws": [f"a | {'9' * 400}\nb | 0.1"]}
    assert metrics.answers_of(row) == ["a"]


def test_a_verbalized_answer_is_drawn_by_its_stated_probability():
    """One of each reply, the same every time; what states no probability is no answer."""
    row = {"id": "x", "protocol": "verbalized", "draws": ["a | 20 %\nb | 0.4\nc | 0.2\nd"] * 2000}
    answers = metrics.answers_of(row)
    assert answers == metrics.answers_of(row) and set(answers) == {"a", "b", "c"}
    assert answers.count("b") / 2000 == pytest.approx(0.5, abs=0.04)  # of .2 + .4 + .2
    assert metrics.answers_of(row | {"draws": ["a\nb", "", "a | 0"]}) == ["", "", ""]


# ---------------------------------------------------------------------------------------------------- seeds


def test_seeds_are_one_line_with_mean_and_deviation():
    """soft, soft-s1 and soft-s2 are soft, with the interval of the first; the scores keep each."""
    rows = [
        row | base_fields(method=method, logit_kl=kl)
        for row in make_rows("ood")[3:9]
        for method, kl in (
            ("base", 3.0),
            ("soft", 1.0),
            ("soft-s1", 1.1),
            ("soft-s2", 1.3),
            ("soft-slow", 2.0),
        )
    ]
    scores = metrics.aggregate(rows)
    assert {"soft", "soft-s1", "soft-s2"} <= {row["method"] for row in scores}
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in metrics.table(scores, "numbers")
    ]
    column = lines[0].index("excess KL")
    assert [line[2] for line in lines[2:]] == ["base", "soft", "soft-slow", "target"]
    assert [line[column] for line in lines[2:5]] == [
        "2.500 [2.50, 2.50]",
        "0.633 ± 0.153 [0.50, 0.50]",
        "1.500 [1.50, 1.50]",
    ]
    infinite = [row | {"value": None} if row["method"] == "soft-s1" else row for row in scores]
    assert any(
        line.split("|")[3].strip() == "soft" and "∞ [" in line
        for line in metrics.table(infinite, "numbers")
    )


# ------------------------------------------------------------------------------------------- generated questions

GOOD = """Question: Which organ makes insulin?
A. Heart
B. Pancreas
C. Liver
D. Kidney
Correct Answer: B
Explanation: The pancreas makes insulin."""


@pytest.mark.parametrize(
    "old, new, place",
    [
        ("", "", 1), ("Answer: B", "Answer: A", 0), ("Answer: B", "Answer: D", 3),
        ("\n", "\n\n", 1), ("\n", "  \r\n", 1), ("Answer: B", "Answer: B. Pancreas", 1), ("Answer: B", "Answer: B) pancreas", 1),
        ("Answer: B", "Answer: (B)", 1), ("Answer: B", "Answer: B.", 1), ("Answer: B", "Answer: **B**", 1), ("Answer: B", "Answer:\nB", 1),
        ("Question:", "**Question:**", 1), ("Correct Answer: B", "**Correct Answer**: B", 1), ("Correct Answer", "Correct answer", 1),
        ("Question:", "### Question:", 1), (". ", ") ", 1), ("insulin.", "insulin.\nA. is wrong: the heart pumps.\n\nThat is all.", 1),
        ("insulin.", "insu", 1), ("Question: ", "Question:\nA 50-year-old man is thirsty.\n", 1), ("Heart", "E. coli", 1),
        ("Question: ", "<think>Let me see. Question: x</think>\n", None), ("Question: W", "<think>A or B?</think>\n\nQuestion: W", 1),
        ("Which organ", "C. difficile or what", 1),
        ("Answer: B", "Answer: B (Pancreas)", 1), ("Answer: B", "Answer: B - Pancreas", 1), ("Answer: B", "Answer: B\nPancreas", 1),
        ("Answer: B", 'Answer: B. "Pancreas"', 1), ("Pancreas", "Pancreas and\nS. aureus", 1),
        ("C. Liver", "C. Caf\u00e9\nau lait", 1),
        # not in form
        ("makes", "treats\nE. coli and makes", None), ("Heart", ".", None), ("Which organ makes insulin?", "-", None),
        ("C. Liver", "C.\nD. Liver", None), ("D. Kidney", "D.\nE. Lung", None), (". ", ".", None), ("makes", "treats\nA. baumannii or makes", None),
        (GOOD, "", None), ("Question: ", "", None), ("A. Heart\n", "", None), ("D. Kidney\n", "", None), ("Heart", "", None),
        ("D. Kidney", "D. Kidney\nE. Lung", None), ("A. Heart", "A. Heart\nA. Lung", None), ("B. Pancreas\nC. Liver", "C. Liver\nB. Pancreas", None),
        ("Answer: B", "Answer: E", None), ("Answer: B", "Answer: ", None), ("Answer: B", "Answer: A and B", None), ("Answer: B", "Answer: b", None),
        ("Answer: B", "Answer: B. Heart", None), ("Answer: B", "Answer: Pancreas", None), ("Correct Answer: B\n", "", None),
        ("Explanation: The pancreas makes insulin.", "", None), ("The pancreas makes insulin.", "", None), ("insulin.", "insulin.\n" + GOOD, None),
        ("Question: ", "Sure, here it is!\nQuestion: ", None), ("\n", " ", None), ("Correct Answer: B", "Correct Answer: B\nCorrect Answer: C", None),
        ("insulin.", "insulin.\nCorrect Answer: B", None), ("A. Heart", "Heart", None),
    ],
)  # fmt: skip
def test_questions(old, new, place):
    text = GOOD.replace(old, new)
    assert not old or text != GOOD
    assert metrics.parse_question(text) == place


def test_parsers_take_linear_time():
    """Loops of a degenerate model, which a regular expression over the whole text would try in every combination."""
    lines = "A. x\nB. y\nC. z\nD. w\n"
    for text in (
        "Question: x\n" + lines * 3000,
        (GOOD.rsplit("\n", 1)[0] + "\n") * 2000,
        "<answer>" * 20_000,
        "**" * 20_000,
    ):
        for parse in (metrics.parse_question, metrics.parse_answer, metrics.tagged_answer):
            start = time.process_time()
            parse(text)
            assert time.process_time() - start < 5


def test_total_variation_by_hand():
    assert metrics.total_variation(np.array([0, 1, 2, 3])) == 0
    assert metrics.total_variation(np.array([2, 2, 2, 2])) == 0.75
    assert metrics.total_variation(np.array([0, 0, 1, 1])) == 0.5
    assert metrics.total_variation(np.array([[0, 1, 2, 2], [0, 0, 0, 1]]), axis=1).tolist() == [
        0.25,
        0.5,
    ]


def test_the_total_variation_of_uniform_places_is_what_simulation_gives():
    assert metrics.tv_of_uniform(np.zeros(1)) == 0.75
    assert metrics.tv_of_uniform(np.zeros(2)) == pytest.approx(0.25 * 0.75 + 0.75 * 0.5)
    places = np.random.default_rng(0).integers(4, size=(20_000, 50))
    simulated = metrics.total_variation(places, axis=1).mean()
    assert metrics.tv_of_uniform(np.zeros(50)) == pytest.approx(simulated, rel=0.01)


def mcq_row(texts):
    row = {"id": "mcq-000", "axis": "mcq", "model": "m", "method": "base", "protocol": None}
    return row | {"draws": texts, "tokens": 10 * len(texts)}


def at(letter):
    return GOOD.replace("Answer: B", f"Answer: {letter}")


def test_mcq_scores_count_the_invalid_and_say_nothing_of_nothing():
    found = values([mcq_row([at("C")] * 60 + [at("A")] * 20 + ["I cannot"] * 20)])
    assert found["valid_rate"]["value"] == 0.8 and found["valid_rate"]["n"] == 100
    assert (
        found["tv"]["value"] == 0.5 and found["tv"]["n"] == 80 and found["share_c"]["value"] == 0.75
    )
    assert found["p_value"]["value"] == pytest.approx(
        float(stats.chi2.sf((0 + 400 + 400 + 1600) / 20, 3))
    )
    assert found["tv"]["low"] <= 0.5 <= found["tv"]["high"] and found["p_value"]["low"] is None
    assert found["tokens"]["value"] == 10
    assert found["tv_uniform"]["value"] == metrics.tv_of_uniform(np.zeros(80))
    nothing = values([mcq_row(["no", "nothing"])])
    assert nothing["valid_rate"]["value"] == 0
    assert all(
        nothing[m]["value"] is None and nothing[m]["n"] == 0
        for m in ("tv", "tv_uniform", "p_value", "share_a")
    )
    page = "\n".join(metrics.table(list(nothing.values()), "mcq"))
    assert "0.000" in page and "TV" not in page  # a column without a value is not shown


@pytest.mark.parametrize("valid", [1, 29, 30])
def test_a_total_variation_needs_thirty_valid_questions(valid):
    """Of a few it says nothing; and no p either, which would be 1 of one question's four equal places."""
    found = values([mcq_row([at("C")] * valid + ["I cannot"] * 10)])
    few = valid < 30
    assert found["valid_rate"]["value"] == valid / (valid + 10) and found["share_c"]["value"] == 1
    for metric in ("tv", "tv_uniform", "p_value"):
        assert (found[metric]["value"] is None) == few and found[metric]["n"] == (
            0 if few else valid
        )
    line = metrics.table(list(found.values()), "mcq")
    assert ("TV" in line[0]) == (not few) == ("0.750" in line[2])


def test_one_table_per_axis():
    rows = [make_rows("ood")[0] | base_fields(), open_row({"Mars": 3}), mcq_row([GOOD] * 30)]
    page = "\n".join(metrics.tables(metrics.aggregate(rows)))
    assert [page.count(f"**{axis}**") for axis in ("numbers", "open", "mcq")] == [1, 1, 1]
    assert all(
        heading in page
        for heading in ("norm. W1", "CDF gap", "of it form", "support 90 %", "TV of uniform")
    )
    assert "answered" not in page  # no SSOT rows, no column of theirs
    assert "**mcq**" not in "\n".join(metrics.tables(metrics.aggregate(rows[:2])))
