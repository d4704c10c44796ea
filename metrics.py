"""Rows in, scores out: how close the answers are to the distributions that were asked for.

    python metrics.py runs/tiny/*/*.jsonl --out scores.jsonl --report report.md

Reads rows of sample.py, prints tables, and writes a row {model, method, axis, split, metric, value, low, high, n} for
each metric. Of number prompts the value is the mean within a family and the median over families (of rates the mean),
of open prompts the mean (of the support the median), of `mcq` over all draws; low and high a 95 % bootstrap interval
over families, prompts or draws. Nothing valid is an infinite W1, and counts; infinity is null. The method "target" is
as many true draws: what sampling noise leaves. Tables have seeds (soft, soft-s1) as mean ± standard deviation.
What this file does not do: run a model, or know how rows were made.
"""

import random
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from scipy import stats

import distributions as dist

OTHERS = (
    "log",
    "novelty",
    "published",
    "scores",
)  # files of a run that the tables and pictures pass over
row_name = lambda row: f"{row['method']} on {row['id']} ({row['model']}, {row['axis']})"
NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "«": "»", "‹": "›", "„": "“", "「": "」"}
LABEL = re.compile(r"^((?i:question:|correct answer:|explanation:)|[A-H][.)](?=\s))", re.MULTILINE)
FORM = re.compile(
    "question:a.b.c.d.correct answer:explanation:([a-h].)*"
)  # an explanation may have such lines too


def without_thoughts(text: str) -> str:
    """What follows a thinking block or an analysis channel; all of a text that has none; "" if it is not closed."""
    text = re.split(r"</think>|<\|channel\|>final<\|message\|>", text)[-1]
    return "" if "<think>" in text or "<|channel|>" in text else text


def tagged_answer(text: str) -> str:
    """What an SSOT text has between <answer> and </answer>, after its random string and its thoughts; else "". Several
    that differ are none. gpt-oss may leave the tags out: what its final channel says is an answer too.

    >>> tagged_answer("<random_string>x7</random_string><thinking>7 is odd.</thinking><answer>3.5</answer>")
    '3.5'
    """
    final = "<|channel|>final<|message|>" in text
    text = re.split("</random_string>|</thinking>", without_thoughts(text))[-1]
    before, *parts = re.split(
        "<(/?answer|thinking|random_string)>", text
    )  # text, tag, text, tag, text ...
    tags, contents = parts[::2], {part.strip() for part in parts[1::4]}
    if final and not tags:
        return before.strip()
    return (
        contents.pop()
        if len(contents) == 1 and tags == ["answer", "/answer"] * (len(tags) // 2)
        else ""
    )


def listed_answers(text: str) -> list[tuple[str, float]]:
    """The answers that a reply lists, one a line or between commas, each with its stated probability (0 if none is).

    >>> listed_answers("1. heads | 0.25\\n2. tails | 75 %")
    [('heads', 0.25), ('tails', 0.75)]
    """
    text = without_thoughts(text).strip()
    lines = re.split("\n+" if "\n" in text else "[,;]", text)
    pattern = re.compile(
        r"\s*(?:(?:[0-9]+[.)]|[-*•])\s)?\s*([^|]*[^|\s])\s*(?:\|\s*([0-9]*\.?[0-9]+)\s*(%?)\s*)?"
    )
    found = [match.groups() for line in lines if (match := pattern.fullmatch(line))]
    return [
        (answer, min(float(p or 0), 1e9) / (100 if percent else 1)) for answer, p, percent in found
    ]


def answers_of(row: dict) -> list[str]:
    """A row's answers: its draws or, where a protocol asked for them, what the draws hold."""
    draws = row["draws"]
    if row.get("protocol") == "ssot":
        return [tagged_answer(draw) for draw in draws]
    if row.get("protocol") == "batch":  # twenty, or what is missing is not valid
        return [
            answer for draw in draws for answer, _ in [*listed_answers(draw), *[("", 0)] * 20][:20]
        ]
    if (
        row.get("protocol") == "verbalized"
    ):  # one, by the stated probabilities; none if nothing has any
        chooser = random.Random(row["id"])
        return [
            chooser.choices(*zip(*listed_answers(draw), ("", 1e-99), strict=True))[0]
            for draw in draws
        ]
    return draws


def parse_number(text: str, low: float, high: float, discrete: bool) -> float | None:
    """The value of a valid answer: one decimal number, finite, inside the support low..high, whole if discrete.

    >>> parse_number(" 3.50\\n", 0, 10, discrete=False), parse_number("3.5 or so", 0, 10, discrete=False)
    (3.5, None)
    """
    value = float(text) if NUMBER.fullmatch(text := text.strip()) else np.nan
    inside = (
        abs(value) < 1e100 and low <= value <= high
    )  # beyond that, sums of it would not be finite
    return value if inside and not (discrete and value != round(value)) else None


def parse_answer(text: str) -> str | None:
    """An open answer: the first line with text, after thoughts and code fences, without outer quotes and marks; None if
    it was cut off or has no letter, digit or pictograph ("\ufffd", which is what is not UTF-8, is none).

    >>> parse_answer('**"Paris"**'), parse_answer("Well, there are so many…")
    ('Paris', None)
    """
    lines = [
        " ".join(line.split())
        for line in unicodedata.normalize("NFC", without_thoughts(text)).splitlines()
    ]
    lines = [line for line in lines if line and not line.startswith("```")]
    if not lines or (len(lines) == 1 and lines[0].endswith("…")):
        return None
    answer = lines[0].strip("*_` ")
    while len(answer) > 1 and QUOTES.get(answer[0]) == answer[-1]:
        inside = re.sub(r"\w'(?=\w)", "", answer[1:-1])  # an apostrophe is not a quote
        if answer[0] in inside or answer[-1] in inside:
            break
        answer = answer[1:-1].strip("*_` ")
    return (
        answer
        if any(c.isalnum() or unicodedata.category(c) == "So" for c in answer if c != "\ufffd")
        else None
    )


def parse_question(text: str) -> int | None:
    """The place (0 to 3) of the right answer in a generated question, or None if that is not in form: sample.MCQ's
    fields, each once, in order, at the start of a line, with text in each and none before. Marks of bold and headings,
    "A)" for "A.", several lines, a letter followed by its own option do not hurt."""
    text = re.sub(r"\*\*|__|^[ #]+", "", without_thoughts(text), flags=re.MULTILINE)
    before, *fields = LABEL.split(text, maxsplit=7)
    labels, bodies = "".join(LABEL.findall(text)).lower(), [body.strip() for body in fields[1::2]]
    if (
        before.strip()
        or not FORM.fullmatch(labels)
        or not all(any(c.isalnum() for c in body) for body in bodies)
    ):
        return None
    options = [body.strip(" .").casefold() for body in bodies[1:5]]
    answer = re.fullmatch(r"\(?([A-D])\b\W*(.*)", bodies[5], re.DOTALL)
    place = "ABCD".index(answer[1]) if answer else None
    return place if answer and answer[2].strip(' .)"').casefold() in ("", options[place]) else None


def normalized_w1(values: np.ndarray, support: np.ndarray, probs: np.ndarray) -> float:
    """W1(values, support with probs) / E|X - median| of the latter: 0 perfect, 1 as bad as always the median. A choice:
    defined for Cauchy and Bernoulli(.1), where variance or IQR fail. values (N,), support and probs (M,)."""
    median = support[np.searchsorted(np.cumsum(probs), 0.5)]
    return stats.wasserstein_distance(values, support, None, probs) / float(
        probs @ np.abs(support - median)
    )


def cdf_gap(values: np.ndarray, row: dict) -> float:
    """sup |F_values - F_target|, the Kolmogorov distance. A choice: from all numbers, not from the thinned outputs."""
    cdf, unit, first, last = dist.lattice(row)
    target = lambda k: np.where(
        k < first, 0.0, np.where(k < last, cdf(k + 0.5), 1.0)
    )  # F at k / unit, for integers k
    points, counts = np.unique(
        np.round(values * unit, 6), return_counts=True
    )  # 0.29 * 100 is 28.999999999999996
    upto, own = (
        np.cumsum(counts) / len(values),
        counts / len(values),
    )  # just below a point F_values lacks its own share
    return float(
        np.abs([upto - target(np.floor(points)), upto - own - target(np.ceil(points) - 1)]).max()
    )


def chi_square_p(values: np.ndarray, support: np.ndarray, probs: np.ndarray) -> float:
    """The p-value of a chi-square test of values (N,) of a discrete target, over cells pooled to 5 expected draws."""
    observed = np.bincount(
        np.searchsorted((support[:-1] + support[1:]) / 2, values), minlength=len(support)
    )
    expected, starts = probs * len(values), [0]
    for i in range(1, len(expected)):
        if min(expected[starts[-1] : i].sum(), expected[i:].sum()) >= 5:
            starts.append(i)
    observed, expected = np.add.reduceat(observed, starts), np.add.reduceat(expected, starts)
    return stats.chisquare(observed, expected).pvalue if len(expected) > 1 else 1.0


def score_numbers(row: dict, answers: list[str]) -> dict[str, float]:
    texts, probs, _ = dist.canonical_outputs(row)
    if "outputs" in row:  # a list has no order: a value is a place in it
        values = np.array([texts.index(text) for text in map(str.strip, answers) if text in texts])
        support, n = np.arange(len(texts)), len(values)
        tv = total_variation(values, probs=probs) if n else 1.0
        scores = {"tv": tv, "excess_tv": tv - expected_tv(n, probs) if n else 1.0}
    else:
        discrete, (low, high) = dist.is_discrete(row), dist.distribution(row).support()
        values = [
            value
            for answer in answers
            if (value := parse_number(answer, low, high, discrete)) is not None
        ]
        values, support, n = np.array(values), np.array(texts, float), len(values)
        scores = {"normalized_w1": normalized_w1(values, support, probs) if n else np.inf}
        scores["cdf_gap"] = cdf_gap(values, row) if n else 1.0
    scores["valid_rate"] = n / len(answers)
    p = (
        chi_square_p(values, support, probs)
        if dist.is_discrete(row)
        else stats.kstwo.sf(scores["cdf_gap"], n or 1)
    )
    scores["gof_pass_rate"] = float(n > 0 and p >= 0.01)
    if "logit_kl" in row:  # the excess is form, and shape above the floor, which belongs to it
        kl, floor, form = row["logit_kl"], row["logit_kl_floor"], row["logit_kl_form"]
        scores |= {"logit_kl": kl, "logit_kl_floor": floor, "excess_kl": kl - floor}
        scores |= {"form_kl": form, "shape_kl": kl - floor - form}
    return scores


def score_open(row: dict, answers: list[str]) -> dict[str, float]:
    counts, n = Counter(map(parse_answer, answers)), len(answers)
    valid = n - counts.pop(None, 0)
    scores = {
        "valid_rate": valid / n,
        "support_90": row.get("support_90"),
        "unique_rate": len(counts) / n,
    }
    if valid:
        bare = sum(count for answer, count in counts.items() if NUMBER.fullmatch(answer))
        scores |= {"top_share": max(counts.values()) / valid, "number_rate": bare / valid}
    return scores


def score_mcq(row: dict, answers: list[str]) -> dict[str, list]:
    """Of each draw: whether it is in form and, of the valid ones, the right answer's place, if they are enough."""
    places = [parse_question(answer) for answer in answers]
    found = [place for place in places if place is not None]
    enough = found if len(found) >= 30 else []
    scores = {
        "valid_rate": [place is not None for place in places],
        "tv": enough,
        "tv_uniform": enough,
    }
    return (
        scores
        | {"p_value": enough}
        | {f"share_{x}": [place == i for place in found] for i, x in enumerate("abcd")}
    )


def score(row: dict) -> dict:
    """The scores of a row: {metric: a value, or None where there is none, or one value for each draw}."""
    answers = answers_of(row)
    scores = {"numbers": score_numbers, "open": score_open, "mcq": score_mcq}[row["axis"]](
        row, answers
    )
    if row.get("protocol"):
        scores["answer_rate"] = np.mean([answer != "" for answer in answers])
    return scores | {"tokens": row["tokens"] / len(answers) if row.get("tokens") else None}


def target_row(row: dict, name: str = "target") -> dict:
    """A row as a perfect sampler would have made it: as many true draws, and the floor as its KL."""
    texts, _ = dist.sample_outputs(
        row, len(answers_of(row)), dist.prompt_rng(0, row["id"]), max_bins=None
    )
    exact = {"logit_kl": row["logit_kl_floor"], "logit_kl_form": 0.0} if "logit_kl" in row else {}
    return row | {"method": name, "draws": texts, "tokens": None, "protocol": None} | exact


def total_variation(
    places: np.ndarray, axis: int = -1, probs: Sequence = (0.25,) * 4
) -> np.ndarray:
    """Total variation of places 0..M-1 (..., N), along an axis, from probs (M,): 1/2 sum over places |share - prob|."""
    shares = np.stack([(places == place).mean(axis) for place in range(len(probs))], -1)
    return np.abs(shares - probs).sum(-1) / 2


def expected_tv(n: int, probs: np.ndarray) -> float:
    """1/2 sum E|share - p|, the total variation of n true draws from probs (M,), by De Moivre's formula for the mean
    deviation of a binomial (Diaconis and Zabell 1991, doi 10.1214/ss/1177011699)."""
    above = np.floor(n * probs) + 1
    return float((above * (1 - probs) * stats.binom.pmf(above, n, probs)).sum() / n)


tv_of_uniform = lambda places: expected_tv(len(places), np.full(4, 0.25))
uniform_p_value = lambda places: stats.chisquare(np.bincount(places, minlength=4)).pvalue
COSTS = {"answer_rate": ("answered", np.mean), "tokens": ("tokens", np.mean)}
METRICS = {  # axis -> metric -> heading, statistic over families, prompts or draws
    "numbers": {
        "normalized_w1": ("norm. W1", np.median), "cdf_gap": ("CDF gap", np.median),
        "tv": ("TV", np.median), "excess_tv": ("excess TV", np.median),
        "logit_kl": ("logit KL", np.median), "logit_kl_floor": ("its floor", np.median),
        "excess_kl": ("excess KL", np.median), "form_kl": ("of it form", np.median), "shape_kl": ("shape", np.median),
        "valid_rate": ("valid", np.mean), "gof_pass_rate": ("GOF pass", np.mean), **COSTS},
    "open": {
        "valid_rate": ("valid", np.mean), "support_90": ("support 90 %", np.median), "unique_rate": ("unique", np.mean),
        "top_share": ("top answer", np.mean), "number_rate": ("numbers", np.mean), **COSTS},
    "mcq": {
        "valid_rate": ("valid", np.mean), "tv": ("TV", total_variation), "tv_uniform": ("TV of uniform", tv_of_uniform),
        "p_value": ("p", uniform_p_value), **{f"share_{x}": (x.upper(), np.mean) for x in "abcd"}, **COSTS},
}  # fmt: skip


def bootstrap(
    values: np.ndarray, statistic, resamples: int = 10_000
) -> tuple[float | None, float | None]:
    """95 % percentile interval (Efron 1981) of a statistic of values (F,), resampled; (None, None) if F < 2."""
    if len(values) < 2 or statistic in (tv_of_uniform, uniform_p_value):
        return None, None
    picks = np.random.default_rng(0).integers(len(values), size=(resamples, len(values)))
    return tuple(
        np.quantile(
            statistic(values[picks], axis=1), [0.025, 0.975], method="inverted_cdf"
        ).tolist()
    )


def aggregate(rows: list[dict]) -> list[dict]:
    """Score rows of every (axis, model, method, split) and metric; also of targets, a set for each count of answers."""
    numbers, asked = [row for row in rows if row["axis"] == "numbers"], {}
    for row in sorted(numbers, key=lambda row: "logit_kl" not in row):
        asked.setdefault((row["model"], len(answers_of(row)), row["id"]), row)
    most = max((n for _, n, _ in asked), default=0)
    targets = [
        target_row(row, "target" if n == most else f"target, n={n}")
        for (_, n, _), row in asked.items()
    ]

    groups, out = {}, []
    for row in rows + targets:
        groups.setdefault((row["axis"], row["model"], row["method"], row.get("split")), []).append(
            row
        )
    for (axis, model, method, split), members in groups.items():
        scored = [
            (row.get("family", row["id"]) if axis == "numbers" else row["id"], score(row))
            for row in members
        ]
        for metric, (_, statistic) in METRICS[axis].items():
            units = {}  # what the bootstrap resamples: a family, a prompt or a draw
            for unit, scores in scored:
                for i, one in enumerate(np.atleast_1d(scores.get(metric))):
                    if one is not None:
                        units.setdefault((unit, i), []).append(one)
            values = np.array([own[0] if len(own) == 1 else np.mean(own) for own in units.values()])
            found = (
                float(statistic(values)) if len(values) else None,
                *bootstrap(values, statistic),
            )
            value, low, high = (None if x in (None, np.inf) else x for x in found)
            result = {
                "model": model,
                "method": method,
                "axis": axis,
                "split": split,
                "metric": metric,
            }
            out.append(
                result
                | {"value": value, "low": low, "high": high, "n": sum(map(len, units.values()))}
            )
    return out


def cell(seeds: list[dict]) -> str:
    """A value, of several seeds the mean ± standard deviation, and the (first) interval; – is nothing, ∞ infinite."""
    if not seeds or not (first := seeds[0])["n"]:
        return "–"
    short = lambda x, digits: (
        "∞" if x is None else f"{x:.{digits}f}" if abs(x) < 1000 else f"{x:.0e}"
    )
    values = [row["value"] for row in seeds]
    mean = short(None if None in values else np.mean(values), 3)
    spread = (
        f" ± {short(np.std(values, ddof=1), 3)}" if len(values) > 1 and None not in values else ""
    )
    interval = f" [{short(first['low'], 2)}, {short(first['high'], 2)}]"
    return mean + spread + ("" if first["low"] is None and first["value"] is not None else interval)


def table(scores: list[dict], axis: str) -> list[str]:
    """A Markdown table of an axis: methods, base first and targets last, x metrics, without columns that are empty."""
    cells, rank = {}, lambda method: -1 if method == "base" else method.startswith("target")
    for row in (row for row in scores if row["axis"] == axis):
        key = row["model"], row["split"], re.sub(r"-s[0-9]+$", "", row["method"])
        cells.setdefault(key, {}).setdefault(row["metric"], []).append(row)
    lines = [["model", "split", "method", *(heading for heading, _ in METRICS[axis].values())]]
    for key in sorted(
        cells, key=lambda key: (key[0], key[1] != "unseen", key[1] or "", rank(key[2]))
    ):
        lines.append(
            [
                key[0],
                key[1] or "–",
                key[2],
                *(cell(cells[key].get(metric, [])) for metric in METRICS[axis]),
            ]
        )
    return markdown(column for column in zip(*lines, strict=True) if set(column[1:]) != {"–"})


def markdown(columns: Iterable[tuple[str, ...]]) -> list[str]:
    """The lines of a Markdown table of columns, each with its heading first."""
    columns = [[text.ljust(max(map(len, column))) for text in column] for column in columns]
    columns = [[column[0], "-" * len(column[0]), *column[1:]] for column in columns]
    return ["| " + " | ".join(line) + " |" for line in zip(*columns, strict=True)]


def tables(scores: list[dict]) -> list[str]:
    """All tables, one per axis, with their headings."""
    axes = [axis for axis in METRICS if any(row["axis"] == axis for row in scores)]
    return [line for axis in axes for line in (f"**{axis}**", "", *table(scores, axis), "")]


def check_same_prompts(rows: list[dict]) -> None:
    """Raises InputError if two methods of a model and axis were not asked the same prompts."""
    methods, asked = {}, {}
    for row in rows:
        question = str(
            [
                row.get(key)
                for key in ("id", "bins", "prompt", "params", "decimals", "outputs", "probs")
            ]
        )
        methods.setdefault((row["model"], row["axis"]), set()).add(row["method"])
        asked.setdefault((row["model"], row["axis"], question), set()).add(row["method"])
    for (model, axis, question), own in asked.items():
        if others := methods[model, axis] - own:
            said = f"was asked of {', '.join(sorted(own))} and not of {', '.join(sorted(others))}"
            raise dist.InputError(f"{model}, {axis}: {question[:99]} {said}; redo one")


def main() -> None:
    parser = dist.Parser(description=__doc__)
    parser.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="rows of sample.py; logs among them are passed over",
    )
    parser.add_argument("--out", required=True, help="JSONL file for the scores")
    parser.add_argument("--report", help="Markdown file for the tables")
    args = parser.parse_args()
    files = [file for file in args.files if Path(file).stem not in OTHERS] or args.files
    for path, begins in {
        args.out: '{"model"',
        args.report: tuple(f"**{axis}**\n" for axis in METRICS),
    }.items():
        if path and Path(path).exists() and not Path(path).read_text().startswith(begins):
            raise dist.InputError(
                f"{path} is there, and metrics.py did not write it; choose another name"
            )
    rows = dist.read_rows(files, ("id", "model", "method", "axis", "draws"), row_name)
    rows = [
        {key: value for key, value in row.items() if value is not None} for row in rows
    ]  # pandas fills with null
    check_same_prompts(rows)
    scores = aggregate(rows)
    dist.write_text(args.out, dist.to_jsonl(scores))
    if args.report:
        dist.write_text(args.report, "\n".join(tables(scores)))
    print("\n".join(tables(scores)).rstrip())


if __name__ == "__main__":
    dist.run(main)
