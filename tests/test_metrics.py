"""Scores by hand: parsing, normalized W1, goodness of fit, aggregation and its target row."""

import math
from pathlib import Path

import numpy as np
import pytest

import metrics
from distributions import InputError, canonical_outputs, make_rows, read_jsonl, sample_outputs, write_jsonl

NORMAL, COUNT = ("gaussian", {"mu": 0, "sigma": 1}), ("poisson", {"lambda": 4})


@pytest.mark.parametrize(
    "text, value",
    [
        ("3.14159", 3.14159), ("-2", -2.0), ("+1.5", 1.5), (".5", 0.5), ("5.", 5.0), ("0", 0.0), ("-0.0", 0.0),
        ("  7.25\n", 7.25), ("1e3", 1000.0), ("1E-3", 0.001), ("-.5e+1", -5.0), ("007", 7.0),
        ("", None), ("   ", None), (".", None), ("-", None), ("e5", None), ("1e", None), ("1.2.3", None),
        ("1,234", None), ("1 2", None), ("--1", None), ("+-1", None), ("3.5 is my number", None), ("x=3.5", None),
        ("3.5.", None), ("nan", None), ("NaN", None), ("inf", None), ("-Infinity", None), ("1e999", None),
        ("0x10", None), ("1_000", None), ("½", None), ("٣", None), ("３.５", None), ("2/3", None), ("50%", None),
        ("3.5<|endoftext|>", None), ("3.14159265358979…", None), ("\u22122.5", None), ("**3.5**", None),
    ],
)  # fmt: skip
def test_parse_number(text, value):
    assert metrics.parse_number(text, *NORMAL) == value


@pytest.mark.parametrize(
    "text, family, params, valid",
    [
        ("3", *COUNT, True), ("3.0", *COUNT, True), ("3e0", *COUNT, True), ("3.5", *COUNT, False), ("-1", *COUNT, False),
        ("50", *COUNT, True), ("0", "geometric", {"p": 0.5}, False), ("1", "geometric", {"p": 0.5}, True),
        ("-0.1", "exponential", {"lambda": 1}, False), ("1e6", "exponential", {"lambda": 1}, True),
        ("1.2", "beta", {"alpha": 2, "beta": 2}, False), ("3.4", "pareto", {"alpha": 6.5, "xm": 3.5}, False),
        ("2", "bernoulli", {"p": 0.5}, False), ("11", "uniform", {"a": 3.5, "b": 10.5}, False),
        ("3.5", "uniform", {"a": 3.5, "b": 10.5}, True), ("-5", "skellam", {"mu1": 2, "mu2": 2}, True),
        ("1.01", "truncnorm", {"mu": 0, "sigma": 1, "lower": -1, "upper": 1}, False),
    ],
)  # fmt: skip
def test_valid_means_inside_the_support(text, family, params, valid):
    assert (metrics.parse_number(text, family, params) is not None) == valid


def w1(values, counts, support, probs):
    return metrics.normalized_w1(*(np.array(x, float) for x in (values, counts, support, probs)))


def test_normalized_w1_by_hand():
    # Target 0, 1, 2 with 1/4, 1/2, 1/4: median 1, E|X - 1| = 1/2.
    support, probs = [0, 1, 2], [0.25, 0.5, 0.25]
    assert w1([1], [5], support, probs) == pytest.approx(1)  # the median, always
    assert w1([0, 1, 2], [1, 2, 1], support, probs) == pytest.approx(0)  # the target itself
    assert w1([1, 2], [3, 1], support, probs) == pytest.approx(0.5)  # 1/4 of the mass one step off
    assert w1([4], [1], support, probs) == pytest.approx(6)  # everything moves 3 on average


@pytest.mark.parametrize("row", make_rows("unseen") + make_rows("ood"), ids=lambda row: row["id"])
def test_the_constant_median_scores_one(row):
    """Also for Cauchy and Bernoulli(.1), where variance or IQR are of no use."""
    texts, probs = canonical_outputs(row["family"], row["params"])
    median = texts[int(np.searchsorted(np.cumsum(probs), 0.5))]
    scores = metrics.score(row | {"n": 10, "draws": {median: 10}})
    assert scores["normalized_w1"] == pytest.approx(1, abs=1e-9) and scores["valid_rate"] == 1


def test_a_large_sample_of_the_target_scores_zero():
    for family, params in (NORMAL, COUNT):
        texts, _ = sample_outputs(family, params, 200_000, np.random.default_rng(0), max_bins=0)
        values, counts = np.unique(np.array(texts, float), return_counts=True)
        support, probs = canonical_outputs(family, params)
        assert metrics.normalized_w1(values, counts, np.array(support, float), probs) < 0.01


def test_target_row_matches_theory():
    """For n true draws E W1 is about the integral of E|F_n - F| = sqrt(2 F (1 - F) / (pi n)), over E|X - median|."""
    (row,) = [r for r in make_rows("unseen") if r["family"] == "gaussian"]
    scores = [metrics.score(metrics.target_row(row | {"n": 1000, "id": str(i)}))["normalized_w1"] for i in range(40)]
    z = np.linspace(-8, 8, 4001)
    phi = np.array([(1 + math.erf(x / math.sqrt(2))) / 2 for x in z])
    theory = np.trapezoid(np.sqrt(2 * phi * (1 - phi) / (math.pi * 1000)), z) / math.sqrt(2 / math.pi)
    assert np.mean(scores) == pytest.approx(theory, rel=0.15)


def test_target_row_passes_and_has_no_excess():
    rows = [r | base_fields() for r in make_rows("unseen") + make_rows("ood")]
    scored = [metrics.score(metrics.target_row(row)) for row in rows]
    assert all(s["valid_rate"] == 1 and s["excess_kl"] == 0 for s in scored)
    assert sum(s["gof_pass_rate"] for s in scored) >= 40  # of 42, at the 1 % level


@pytest.mark.parametrize("family, params", [NORMAL, COUNT])
def test_goodness_of_fit(family, params):
    rng = np.random.default_rng(1)
    good, _ = sample_outputs(family, params, 1000, rng, max_bins=0)
    passed = {}
    for name, values in {"good": np.array(good, float), "constant": np.full(1000, 1.0)}.items():
        passed[name] = metrics.fits(*np.unique(values, return_counts=True), family, params)
    assert passed == {"good": True, "constant": False}


def test_pooling_joins_cells_from_the_left():
    observed, expected = metrics.pool(np.array([1, 2, 3, 4, 5]), np.array([1.0, 4.0, 6.0, 4.0, 2.0]))
    assert expected.tolist() == [5, 6, 6] and observed.tolist() == [3, 3, 9]
    observed, expected = metrics.pool(np.array([1, 2, 3]), np.array([6.0, 6.0, 1.0]))
    assert expected.tolist() == [6, 7] and observed.tolist() == [1, 5]


def base_fields(**changes) -> dict:
    fields = {"model": "m", "method": "base", "n": 1000, "draws": {"1": 1000}, "logit_kl": 2.0, "logit_kl_floor": 0.5}
    return fields | {"seconds": 1.0} | changes


def test_nothing_valid_has_no_w1():
    (row,) = [r for r in make_rows("unseen") if r["family"] == "gaussian"]
    scores = metrics.score(row | base_fields(draws={"Sure!": 7, "3.5 or so": 3}))
    assert scores["valid_rate"] == 0 and scores["normalized_w1"] is None and scores["gof_pass_rate"] == 0
    assert scores["excess_kl"] == 1.5
    out = {
        r["metric"]: r for r in metrics.aggregate([row | base_fields(draws={"Sure!": 1000})]) if r["method"] == "base"
    }
    assert out["normalized_w1"]["value"] is None and out["normalized_w1"]["n"] == 0 and out["valid_rate"]["value"] == 0


def test_aggregation_is_the_median_over_families_of_the_mean_over_prompts():
    kl = {"bernoulli": (1, 2, 3), "poisson": (5, 5, 8), "weibull": (9, 9, 9)}  # family means 2, 6, 9
    rows, seen = [], {}
    for row in make_rows("ood"):
        if row["family"] in kl:
            i = seen[row["family"]] = seen.get(row["family"], -1) + 1
            rows.append(row | base_fields(logit_kl=float(kl[row["family"]][i]), logit_kl_floor=0.0))
    (result,) = [r for r in metrics.aggregate(rows) if r["metric"] == "logit_kl" and r["method"] == "base"]
    assert result["value"] == 6 and result["n"] == 9 and result["low"] == 2 and result["high"] == 9
    assert (result["axis"], result["split"], result["model"]) == ("numbers", "ood", "m")


def test_bootstrap_covers_and_needs_two():
    assert metrics.bootstrap(np.array([3.0]), np.mean) == (None, None)
    low, high = metrics.bootstrap(np.arange(100.0), np.mean)
    assert low == pytest.approx(49.5 - 1.96 * 2.89, abs=0.6) and high == pytest.approx(49.5 + 1.96 * 2.89, abs=0.6)


def test_the_readme_shows_the_scores_it_was_made_from():
    root = Path(__file__).parent
    rows = read_jsonl(root / "tiny" / "scores.jsonl")
    assert "\n".join(metrics.table(rows)) in (root.parent / "README.md").read_text()


def test_report_goes_between_the_markers(tmp_path):
    page = tmp_path / "README.md"
    page.write_text("before\n<!-- results -->\nold\n<!-- /results -->\nafter\n")
    metrics.insert(page, ["| new |"])
    assert page.read_text() == "before\n<!-- results -->\n| new |\n<!-- /results -->\nafter\n"
    metrics.insert(tmp_path / "report.md", ["| new |"])
    assert (tmp_path / "report.md").read_text() == "| new |\n"


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"draws": {"1": 999}}, "f.jsonl:2: draws must map answers to positive counts that sum to n = 1000"),
        ({"draws": []}, "f.jsonl:2: draws must map"),
        ({"family": "normal"}, "f.jsonl:2: unknown family"),
        ({}, "f.jsonl:2: base on .* was already at .*f.jsonl:1"),
    ],
)
def test_bad_rows_are_named(tmp_path, changes, message):
    row = make_rows("ood")[0] | base_fields()
    write_jsonl(tmp_path / "f.jsonl", [row, row | changes])
    with pytest.raises(InputError, match=message):
        metrics.read_rows([tmp_path / "f.jsonl"])
