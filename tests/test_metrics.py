"""Scores by hand: what counts as an answer, normalized W1, goodness of fit, total variation, aggregation, target rows."""

import math
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import call
from scipy import stats

import metrics
from distributions import InputError, canonical_outputs, make_rows, read_jsonl, read_rows, sample_outputs, write_jsonl

NORMAL, COUNT = ("gaussian", {"mu": 0, "sigma": 1}), ("poisson", {"lambda": 4})


@pytest.mark.parametrize(
    "text, value",
    [
        ("3.14159", 3.14159), ("-2", -2.0), ("+1.5", 1.5), (".5", 0.5), ("5.", 5.0), ("0", 0.0), ("-0.0", 0.0),
        ("  7.25\n", 7.25), ("1e3", 1000.0), ("1E-3", 0.001), ("-.5e+1", -5.0), ("\x1c5.5", 5.5), ("007", 7.0),
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
    scores = metrics.score_numbers(row | {"n": 10, "draws": {median: 10}})
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
    scores = [
        metrics.score_numbers(metrics.target_row(row | {"n": 1000, "id": str(i)}))["normalized_w1"] for i in range(40)
    ]
    z = np.linspace(-8, 8, 4001)
    phi = np.array([(1 + math.erf(x / math.sqrt(2))) / 2 for x in z])
    theory = np.trapezoid(np.sqrt(2 * phi * (1 - phi) / (math.pi * 1000)), z) / math.sqrt(2 / math.pi)
    assert np.mean(scores) == pytest.approx(theory, rel=0.15)


def test_target_row_passes_and_has_no_excess():
    rows = [r | base_fields() for r in make_rows("unseen") + make_rows("ood")]
    scored = [metrics.score_numbers(metrics.target_row(row)) for row in rows]
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
    scores = metrics.score_numbers(row | base_fields(draws={"Sure!": 7, "3.5 or so": 3}))
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
    assert "\n".join(metrics.tables(rows)) in (root.parent / "README.md").read_text()


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
        read_rows([tmp_path / "f.jsonl"], (), metrics.check_row)


@pytest.mark.parametrize(
    "row, message",
    [
        ({"axis": "fish"}, "unknown axis 'fish'"),
        ({"text": "a\ud800"}, "text must be a text"),
        (
            {"axis": "open", "family": "x", "n": 1, "draws": {"a": 1}},
            "a row of the axis open needs .* missing .'support_90'",
        ),
        ({"support_90": 3, "n": 2, "split": 7, "draws": {"Mars": 2}}, "split must be a text"),
        ({"text": 5}, "text must be a text"),
        ({"support_90": 3, "n": 2}, "a row of the axis open needs the keys .* missing .'draws'"),
        ({"support_90": 3, "n": 2, "draws": {"Mars": 1}}, "sum to n = 2"),
    ],
)
def test_bad_rows_of_other_axes(row, message):
    with pytest.raises(InputError, match=message):
        metrics.check_row({"id": "a", "model": "m", "method": "base"} | row)


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
        ('"Hamlet" and "Macbeth"', '"Hamlet" and "Macbeth"'), ("'Schindler's List'", "Schindler's List"), ("\u200bParis", "Paris"),
        ("`", None), ("```\n```", None), ("\ufffd", None), ("~", None), ("'", None), ("____", None), ("St. Paul's", "St. Paul's"), ("Washington D.C.", "Washington D.C."), ("Paris\nIt is…", "Paris"),
        ("", None), ("   \n ", None), ('""', None), ("**", None), ("...", None), ("Well, there are so many…", None),
        ("<think>Rome? Or", None), ("<think>Rome</think>", None), ("…", None),
    ],
)  # fmt: skip
def test_open_answers(text, answer):
    assert metrics.parse_answer(text) == answer


def open_row(draws, **changes):
    row = {"id": "open-000", "prompt": "p", "model": "m", "method": "base", "n": sum(draws.values()), "draws": draws}
    return row | {"support_90": 2, "tokens": 300} | changes


@pytest.mark.filterwarnings("error")
def test_an_enormous_integer_is_one_more_in_the_last_cell():
    (row,) = [r for r in make_rows("ood") if r["id"] == "ood-poisson-001"]
    huge, far = ({"4": 40, text: 60} for text in ("1" + "0" * 30, "100"))
    scores = [metrics.score("numbers", row | base_fields(n=100, draws=draws)) for draws in (huge, far)]
    assert scores[0]["valid_rate"] == 1 and scores[0]["gof_pass_rate"] == scores[1]["gof_pass_rate"] == 0
    assert scores[0]["normalized_w1"] > 1e20


def test_open_scores_by_hand():
    scores = metrics.score("open", open_row({"Mars": 5, '"Mars"': 1, "0.25": 2, "": 1, "Well, I…": 1}))
    assert scores == {
        "valid_rate": 0.8, "support_90": 2, "unique_rate": 0.2, "top_share": 0.75, "number_rate": 0.25, "tokens": 30,
        "answer_rate": None,
    }  # fmt: skip
    nothing = metrics.score("open", open_row({"": 4}))
    assert nothing["top_share"] is None and nothing["unique_rate"] == 0 and nothing["valid_rate"] == 0


def test_open_headlines_are_median_support_and_mean_rates():
    sizes, draws = (1, 2, 9), ({"a": 4}, {"a": 2, "b": 2}, {"a": 1, "b": 1, "c": 1, "d": 1})
    rows = [open_row(d, support_90=s, id=str(s)) for s, d in zip(sizes, draws, strict=True)]
    out = {r["metric"]: r for r in metrics.aggregate(rows)}
    assert out["support_90"]["value"] == 2 and (out["support_90"]["low"], out["support_90"]["high"]) == (1, 9)
    assert out["unique_rate"]["value"] == pytest.approx((0.25 + 0.5 + 1) / 3) and out["unique_rate"]["n"] == 3
    assert out["top_share"]["value"] == pytest.approx((1 + 0.5 + 0.25) / 3) and out["top_share"]["axis"] == "open"


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
        ("3.5", None), ("", None), (BEFORE, None), (BEFORE + "3.5", None), (BEFORE + "<answer>3.5", None),
        (BEFORE + "3.5</answer>", None), (BEFORE + "<answer></answer>", None), (BEFORE + "<answer>3.5</answer", None),
        (BEFORE + "<answer><answer>3.5</answer></answer>", None), (BEFORE + "<answer>3<answer>5</answer>", None),
        (BEFORE + "<answer>3</answer><answer>5</answer>", None), (BEFORE + "<answer>3</answer><answer>5", None),
        ("<think><answer>3.5</answer>", None), ("<Answer>3.5</Answer>", None), (BEFORE + "<answer>3.5…", None),
        ("<thinking>maybe <answer>1</answer>? no, let me", None), ("<random_string><answer>1</answer></random_string>", None),
        ("<random_string>a</random_string><thinking>b<answer>1</answer>", None),
        ("<thinking><answer>1</answer></thinking>", None), ("<|channel|>analysis<|message|><answer>1</answer>", None),
    ],
)  # fmt: skip
def test_tagged_answer(text, answer):
    assert metrics.tagged_answer(text) == answer


def test_ssot_scores_only_the_tagged_answers():
    draws = {BEFORE + "<answer>1</answer>": 1, "so <answer>1</answer>": 1, "1": 1, BEFORE + "<answer>one</answer>": 1}
    row = make_rows("ood")[1] | base_fields(n=4, draws=draws, ssot=True, logit_kl=None, logit_kl_floor=None, tokens=400)
    scores = metrics.score("numbers", row)
    assert (scores["valid_rate"], scores["answer_rate"], scores["tokens"]) == (0.5, 0.75, 100)
    assert scores["normalized_w1"] == pytest.approx(1) and scores["excess_kl"] is None
    draws = {BEFORE + "<answer>Mars</answer>": 2, "Mars": 1, '<answer>"Mars"</answer>': 1}
    scores = metrics.score("open", open_row(draws, ssot=True, support_90=None))
    assert (scores["valid_rate"], scores["answer_rate"]) == (0.75, 0.75) and scores["unique_rate"] == 0.25


def test_a_smaller_n_gets_a_target_row_of_its_own():
    row = make_rows("ood")[3] | base_fields()
    ssot = row | {"method": "ssot", "n": 50, "draws": {"<answer>4</answer>": 50}, "ssot": True, "logit_kl_floor": None}
    w1 = {r["method"]: r["value"] for r in metrics.aggregate([row, ssot]) if r["metric"] == "normalized_w1"}
    assert set(w1) == {"base", "ssot", "target", "target, n=50"} and 0 < w1["target"] < w1["target, n=50"] < 1
    assert "ssot" in "\n".join(metrics.table(metrics.aggregate([row, ssot]), "numbers"))


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
        ("Answer: B", 'Answer: B. "Pancreas"', 1), ("Pancreas", "Pancreas and\nS. aureus", 1), ("makes", "treats\nE. coli and makes", 1),
        ("C. Liver", "C. Caf\u00e9\nau lait", 1),
        # not in form
        ("D. Kidney", "D. Kidney\n(E) Lung", None), ("D. Kidney", "D. Kidney\nE: Lung", None), ("D. Kidney", "D. Kidney\n- E. Lung", None),
        ("D. Kidney", "D. Kidney\ne. Lung", None), ("Heart", ".", None), ("Which organ makes insulin?", "-", None),
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
    assert metrics.total_variation(np.array([[0, 1, 2, 2], [0, 0, 0, 1]]), axis=1).tolist() == [0.25, 0.5]


def test_the_total_variation_of_uniform_places_is_what_simulation_gives():
    assert metrics.total_variation_of_uniform(np.zeros(1)) == 0.75
    assert metrics.total_variation_of_uniform(np.zeros(2)) == pytest.approx(0.25 * 0.75 + 0.75 * 0.5)
    places = np.random.default_rng(0).integers(4, size=(20_000, 50))
    simulated = metrics.total_variation(places, axis=1).mean()
    assert metrics.total_variation_of_uniform(np.zeros(50)) == pytest.approx(simulated, rel=0.01)


def mcq_rows(texts):
    return [{"id": f"mcq-{i}", "model": "m", "method": "base", "text": t, "tokens": 10} for i, t in enumerate(texts)]


def test_mcq_scores_count_the_invalid_and_say_nothing_of_nothing():
    at = lambda letter: GOOD.replace("Answer: B", f"Answer: {letter}")
    out = {r["metric"]: r for r in metrics.aggregate(mcq_rows([at("C")] * 6 + [at("A")] * 2 + ["I cannot"] * 2))}
    assert out["valid_rate"]["value"] == 0.8 and out["valid_rate"]["n"] == 10
    assert out["tv"]["value"] == 0.5 and out["tv"]["n"] == 8 and out["share_c"]["value"] == 0.75
    assert out["p_value"]["value"] == pytest.approx(float(stats.chi2.sf((4 + 4 + 0 + 16) / 2, 3)))
    assert out["tv"]["low"] <= 0.5 <= out["tv"]["high"] and out["p_value"]["low"] is None
    nothing = {r["metric"]: r for r in metrics.aggregate(mcq_rows(["no", "nothing"]))}
    assert nothing["valid_rate"]["value"] == 0
    assert all(nothing[m]["value"] is None and nothing[m]["n"] == 0 for m in ("tv", "tv_uniform", "p_value", "share_a"))
    page = "\n".join(metrics.table(list(nothing.values()), "mcq"))
    assert "0.000" in page and "TV" not in page  # a column without a value is not shown


def test_one_table_per_axis():
    rows = [make_rows("ood")[0] | base_fields(), open_row({"Mars": 3}), *mcq_rows([GOOD])]
    page = "\n".join(metrics.tables(metrics.aggregate(rows)))
    assert [page.count(title) for title in metrics.TITLES.values()] == [1, 1, 1, 0, 0]
    assert all(heading in page for heading in ("norm. W1", "support 90 %", "TV of uniform"))
    assert "answered" not in page  # no SSOT rows, no column of theirs


# ---------------------------------------------------------------------------------------------------- pictures


def test_pictures_show_what_the_rows_say(tmp_path):
    plt = pytest.importorskip("matplotlib.pyplot", reason="needs requirements-figures.txt")
    row = make_rows("unseen")[0] | base_fields() | {"n": 4, "draws": {"4.00000": 1, "9.00000": 2, "no": 1}}
    inks = {"base": metrics.INKS[0], "soft": metrics.INKS[1]}
    _, axes = plt.subplots(3, 5)
    metrics.draw_cdfs(axes, [row, row | {"method": "soft", "draws": {"5.00000": 4}}], inks)
    target, base, soft = axes[0, 0].get_lines()
    assert base.get_xdata().tolist() == [4, 9, 9] and base.get_ydata() == pytest.approx([1 / 3, 2 / 3, 1])
    assert soft.get_label() == "soft" and set(soft.get_xdata()) == {5}
    assert target.get_ydata()[-1] == pytest.approx(1) and not axes[0, 1].get_visible()
    _, panels = plt.subplots(1, 2)
    answers = [open_row({"Mars": 3}) | {"top": [["M", 0.75], ["V", 0.25]], "prompt": "p", "method": m} for m in inks]
    metrics.draw_first_tokens(panels, answers, inks)
    assert [bar.get_height() for bar in panels[1].patches] == [0.75, 0.25]
    assert [label.get_text() for label in panels[1].get_xticklabels()] == ["M", "V"]
    plt.close("all")
    write_jsonl(tmp_path / "rows.jsonl", [row, *answers])
    (tmp_path / "soft").mkdir()
    write_jsonl(tmp_path / "soft" / "log.jsonl", [{"step": 1, "loss": 2.0, "floor": 1.0}])
    call(metrics, "figures", tmp_path / "rows.jsonl", "--runs", tmp_path / "soft", "--out", tmp_path / "out")
    pictures = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    assert set(pictures) == {"cdf.png", "families.png", "first_tokens.png", "losses.png"}
    assert all(data.startswith(b"\x89PNG") and len(data) > 5000 for data in pictures.values())
