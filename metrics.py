"""Score draws: how close are they to the distributions that were asked for?

    python metrics.py runs/tiny/*/*.jsonl --out scores.jsonl --report report.md

The script reads the rows that sample.py wrote, prints a table for each axis, and writes one row for
each score: {model, method, axis, split, seed, metric, value, low, high, n}.

First, each draw becomes a value: a number, an answer, or the position (A to D) of an exam's correct
answer. Then the values of a prompt become its scores, such as the distance between its draws and
its target. Finally, scores are summarized:

    numbers     the mean within each family, then the median across families (for rates, the mean)
    open        the mean across questions (for the support, the median)
    mcq         all draws together

low and high are a 95% bootstrap interval, obtained by resampling families, questions or draws.

For numbers and exams, the tables also have a method `target`: a perfect sampler that makes as many
draws. Its scores show what sampling noise alone does; compare every score with them.

A prompt without a single valid draw has an infinite W1, and so has its family. Infinity is written
as null. If rows come from several seeds, as in `runs/tiny*/*/*.jsonl`, scores are shown as mean ±
standard deviation.

If you are here for the scores, skip the parsing and begin at "values become scores".

To add a metric, let a score_* function return it, and give it a heading and a statistic in METRICS.

This file runs no model.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import stats

import distributions

# The other JSONL files of a run's folder, which hold no draws for the tables.
NOT_DRAWS = ("log", "novelty", "published", "scores")

# ------------------------------------------------------------------------- a draw becomes a value


def without_thoughts(text: str) -> str:
    """What follows a thinking block or an analysis channel; "" if the thoughts never end."""
    text = re.split(r"</think>|<\|channel\|>final<\|message\|>", text)[-1]
    return "" if "<think>" in text or "<|channel|>" in text else text


def tagged_answer(text: str) -> str:
    """The answer of an SSOT draw (sample.SSOT): what is between <answer> and </answer>.

    Only what follows the random string and the thoughts counts. If the tagged answers differ, there
    is no answer. gpt-oss may omit the tags; then all that is left of its final channel is the
    answer.

    >>> thoughts = "<random_string>x7</random_string><thinking>7 is odd.</thinking>"
    >>> tagged_answer(thoughts + "<answer>3.5</answer>"), tagged_answer(thoughts + "3.5")
    ('3.5', '')
    """
    has_final_channel = "<|channel|>final<|message|>" in text
    text = without_thoughts(text)
    text = re.split("</random_string>|</thinking>", text)[-1]
    tags = re.findall("<(/?answer|thinking|random_string)>", text)
    if has_final_channel and not tags:
        return text.strip()
    if tags != ["answer", "/answer"] * (len(tags) // 2):
        return ""  # a tag without its partner, or thoughts that begin again
    answers = re.findall("<answer>(.*?)</answer>", text, flags=re.DOTALL)
    answers = {answer.strip() for answer in answers}
    return answers.pop() if len(answers) == 1 else ""


def answers_of(row: dict) -> list[str]:
    """A row's answers: its draws or, if a protocol was used, the text inside their answer tags."""
    if row.get("protocol") == "ssot":
        return [tagged_answer(draw) for draw in row["draws"]]
    return row["draws"]


NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")


def parse_number(text: str, low: float, high: float, discrete: bool) -> float | None:
    """The value of a valid number: one number, in the support, whole if the family is discrete.

    >>> parse_number(" 3.50\\n", 0, 10, discrete=False)
    3.5
    >>> parse_number("3.5 or so", 0, 10, discrete=False)    # None
    """
    text = text.strip()
    if not NUMBER.fullmatch(text):
        return None
    value = float(text)
    if not low <= value <= high or abs(value) >= 1e100:  # so that no sum of values overflows
        return None
    return None if discrete and value != round(value) else value


def parse_choice(text: str, outputs: list[str]) -> int | None:
    """The index of the output that an answer matches, ignoring case and a final full stop.

    >>> parse_choice("heads.", ["Heads", "Tails"]), parse_choice("the edge", ["Heads", "Tails"])
    (0, None)
    """

    def loose(text):
        return text.strip().removesuffix(".").casefold()

    if text.strip() in outputs:
        return outputs.index(text.strip())
    matches = [i for i, output in enumerate(outputs) if loose(output) == loose(text)]
    return matches[0] if matches else None


QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "«": "»", "‹": "›", "„": "“", "「": "」"}


def parse_answer(text: str) -> str | None:
    """An open answer: its first line, without thoughts, code fences, outer quotes and bold marks.

    None if it was cut off in that line, or has no letter, digit or pictograph.

    >>> parse_answer('**"Paris"**'), parse_answer("Well, there are so many…")
    ('Paris', None)
    """
    text = unicodedata.normalize("NFC", without_thoughts(text))
    lines = [" ".join(line.split()) for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("```")]
    was_cut_off = len(lines) == 1 and lines[0].endswith("…")  # see sample.to_text
    if not lines or was_cut_off:
        return None

    answer = lines[0].strip("*_` ")
    while len(answer) > 1 and QUOTES.get(answer[0]) == answer[-1]:
        inside = answer[1:-1]
        between = re.sub(r"\w'(?=\w)", "", inside)  # an apostrophe is not a quote
        if answer[0] in between or answer[-1] in between:
            break  # 'this' and 'that'
        answer = inside.strip("*_` ")

    def is_content(character):  # "\ufffd" stands for bytes that are not UTF-8
        is_pictograph = unicodedata.category(character) == "So" and character != "\ufffd"
        return character.isalnum() or is_pictograph

    return answer if any(is_content(character) for character in answer) else None


# The labels of an exam (sample.MCQ), in order. The explanation may contain more lettered lines.
LABELS = ["question:", "a.", "b.", "c.", "d.", "correct answer:", "explanation:"]
LABEL = re.compile(
    r"^((?i:question:|correct answer:|explanation:)|[A-H][.)](?=\s))", flags=re.MULTILINE
)


def bare(text: str) -> str:
    """A text without case, and without the symbols and spaces at its ends."""
    return re.sub(r"^\W+|\W+$", "", text).casefold()


def parse_question(text: str) -> int | None:
    """The position, 0 to 3, of a generated exam's correct answer; None if it is not well-formed.

    A well-formed exam begins with the first of the seven LABELS. They follow in order, each at the
    start of a line and with some text after it. The explanation, which comes last, may contain
    lettered lines (A. to H.), but no second "Question:", for example. Bold marks, headings and "A)"
    for "A." are allowed, and so is repeating the correct option's text after its letter.
    """
    text = re.sub(r"\*\*|__|^[ #]+", "", without_thoughts(text), flags=re.MULTILINE)
    labels = [label.lower().replace(")", ".") for label in LABEL.findall(text)]
    begins_again = any(label.endswith(":") for label in labels[7:])
    if labels[:7] != LABELS or begins_again:
        return None

    # The parts of the split: what is before the first label, then label, body, label, body, ...
    before, *parts = LABEL.split(text, maxsplit=7)
    bodies = [body.strip() for body in parts[1::2]]
    has_text = all(any(character.isalnum() for character in body) for body in bodies)
    if before.strip() or not has_text:
        return None

    _question, *options, correct, _explanation = bodies
    answer = re.fullmatch(r"\(?([A-D])\b\W*(.*)", correct, re.DOTALL)
    if not answer:
        return None
    place = "ABCD".index(answer[1])
    repeated = bare(answer[2])
    return place if repeated in ("", bare(options[place])) else None


# ------------------------------------------------------------------- values become scores


def spread(support: np.ndarray, probs: np.ndarray) -> float:
    """E|X - median|: the Wasserstein-1 distance of the best constant answer from the target."""
    median = support[np.searchsorted(np.cumsum(probs), 0.5)]
    return float(probs @ np.abs(support - median))


def normalized_w1(values: np.ndarray, support: np.ndarray, probs: np.ndarray) -> float:
    """The Wasserstein-1 distance of values from the target, divided by the target's spread.

    So 0 is perfect, and 1 is as bad as always answering the median. This is our choice; the paper
    does not specify its normalization. Unlike the interquartile range, the spread is not zero for
    Bernoulli(.1); and heavy tails, such as Cauchy's, weigh less in it than in a standard deviation.

    values (n,); support (N,), in ascending order; probs (N,).
    """
    return stats.wasserstein_distance(values, support, None, probs) / spread(support, probs)


def cdf_gap(values: np.ndarray, row: dict) -> float:
    """The largest difference between the distribution functions of the values and the target.

    This is the Kolmogorov distance. One wild draw among n changes it by at most 1/n. Unlike W1, it
    compares the values with all numbers of the lattice, not only with the canonical outputs.

    Between two neighbouring values, the function of the draws is flat, and that of the target can
    only rise. So the difference is largest at one of the values, or just below one.
    """
    target = distributions.lattice(row)
    places = np.round(values * target.scale, 6)  # 0.29 * 100 is 28.999999999999996
    places, counts = np.unique(places, return_counts=True)
    draws_at = np.cumsum(counts) / len(values)
    draws_below = draws_at - counts / len(values)
    # A value with more decimals lies between two places of the lattice; floor and ceil find them.
    target_at = target.at_most(np.floor(places))
    target_below = target.at_most(np.ceil(places) - 1)
    gaps = np.abs([draws_at - target_at, draws_below - target_below])
    return float(gaps.max())


def total_variation(shares: np.ndarray, probs: np.ndarray) -> np.ndarray:
    """The total variation between distributions: half the sum of |share - prob| (last axis)."""
    return np.abs(shares - probs).sum(-1) / 2


def unevenness(places: np.ndarray, axis: int = -1) -> np.ndarray:
    """How unevenly places from 0 to 3 occur: the total variation from a quarter for each.

    places (..., n) is reduced along an axis.
    """
    shares = np.stack([(places == place).mean(axis) for place in range(4)], -1)
    return total_variation(shares, np.full(4, 0.25))


def score_list(row: dict, answers: list[str]) -> dict[str, float]:
    """A prompt that lists its outputs: the total variation of the valid answers from its probs."""
    places = [parse_choice(answer, row["outputs"]) for answer in answers]
    valid = [place for place in places if place is not None]
    if not valid:
        return {"tv": 1.0, "valid_rate": 0.0}
    shares = np.bincount(valid, minlength=len(row["probs"])) / len(valid)
    tv = float(total_variation(shares, np.array(row["probs"])))
    return {"tv": tv, "valid_rate": len(valid) / len(answers)}


def score_values(row: dict, answers: list[str]) -> dict[str, float]:
    """A prompt for numbers: the distances of its valid draws from the target."""
    low, high = distributions.distribution(row).support()
    discrete = distributions.is_discrete(row)
    values = [parse_number(answer, low, high, discrete) for answer in answers]
    valid = np.array([value for value in values if value is not None])
    if not len(valid):
        return {"normalized_w1": np.inf, "cdf_gap": 1.0, "valid_rate": 0.0}
    texts, probs, _ = distributions.canonical_outputs(row)
    return {
        "normalized_w1": normalized_w1(valid, np.array(texts, float), probs),
        "cdf_gap": cdf_gap(valid, row),
        "valid_rate": len(valid) / len(answers),
    }


def score_numbers(row: dict, answers: list[str]) -> dict[str, float]:
    """A number prompt: the scores of its draws, and its excess KL, if the row has a logit KL.

    The excess has two parts: form, lost on tokens that are in no answer, and shape, lost by
    preferring the wrong answers (sample.logit_kl).
    """
    scores = score_list(row, answers) if "outputs" in row else score_values(row, answers)
    if "logit_kl" in row:
        kl, form, floor = (row[key] for key in ("logit_kl", "logit_kl_form", "logit_kl_floor"))
        scores |= {"logit_kl": kl, "logit_kl_floor": floor, "excess_kl": kl - floor}
        scores |= {"form_kl": form, "shape_kl": kl - floor - form}
    return scores


def score_open(row: dict, answers: list[str]) -> dict[str, float | None]:
    """An open question. top_share and number_rate are shares of the valid answers only."""
    counts = Counter(parse_answer(answer) for answer in answers)
    invalid = counts.pop(None, 0)
    valid = len(answers) - invalid
    scores = {
        "valid_rate": valid / len(answers),
        "support_90": row.get("support_90"),
        "unique_rate": len(counts) / len(answers),
    }
    if valid:
        numbers = sum(count for answer, count in counts.items() if NUMBER.fullmatch(answer))
        scores |= {"top_share": max(counts.values()) / valid, "number_rate": numbers / valid}
    return scores


def score_mcq(row: dict, answers: list[str]) -> dict[str, list]:
    """An exam prompt: for each metric, a list with one value per draw, or per valid draw."""
    places = [parse_question(answer) for answer in answers]
    valid = [place for place in places if place is not None]
    scores = {"valid_rate": [place is not None for place in places]}
    scores["tv"] = valid  # not yet a TV: `unevenness` (see METRICS) makes one from all rows' places
    for place, letter in enumerate("abcd"):
        scores[f"share_{letter}"] = [found == place for found in valid]
    return scores


def score(row: dict) -> dict[str, float | list | None]:
    """A row's scores: a value, or None where there is none, or a list with one for each draw."""
    answers = answers_of(row)
    score_axis = {"numbers": score_numbers, "open": score_open, "mcq": score_mcq}[row["axis"]]
    scores = score_axis(row, answers)
    if row.get("protocol"):
        scores["answer_rate"] = np.mean([answer != "" for answer in answers])
    if row.get("tokens"):
        scores["tokens"] = row["tokens"] / len(answers)
    return scores


# ------------------------------------------------------------------------------- the target rows


def seed_of(row: dict) -> int:
    return row.get("seed", 0)


# A well-formed exam, for the target row of that axis.
EXAM = "Question: 1\nA. 1\nB. 2\nC. 3\nD. 4\nCorrect Answer: {}\nExplanation: 1"


def target_row(row: dict, name: str = "target") -> dict:
    """A row as a perfect sampler would have made it, with as many draws."""
    n = len(row["draws"])
    rng = distributions.prompt_rng(seed_of(row), row["id"])
    target = row | {"method": name, "tokens": None, "protocol": None}
    if row["axis"] == "mcq":
        target["draws"] = [EXAM.format("ABCD"[place]) for place in rng.integers(4, size=n)]
        return target
    target["draws"], _ = distributions.sample_outputs(row, n, rng, max_bins=None)
    if "logit_kl" in row:
        target |= {"logit_kl": row["logit_kl_floor"], "logit_kl_form": 0.0}
    return target


def target_rows(rows: list[dict]) -> list[dict]:
    """The target rows of all number prompts and exams.

    If methods drew different numbers of answers, there is one set of rows for each number n. The
    one with the largest n is called "target"; the others are called, for example, "target, n=50".
    """
    asked, largest = {}, {}
    for row in sorted(rows, key=lambda row: "logit_kl" not in row):  # prefer rows with a logit KL
        axis, n = row["axis"], len(row["draws"])
        if axis in ("numbers", "mcq"):
            asked.setdefault((row["model"], axis, n, seed_of(row), row["id"]), row)
            largest[axis] = max(n, largest.get(axis, 0))

    targets = []
    for row in asked.values():
        n = len(row["draws"])
        name = "target" if n == largest[row["axis"]] else f"target, n={n}"
        targets.append(target_row(row, name))
    return targets


# --------------------------------------------------------------------------- scores become a table


class Metric(NamedTuple):
    heading: str
    statistic: Callable  # of the values of all families, prompts or draws; takes NumPy's `axis`


MIN_EXAMS = 30  # the TV of fewer well-formed exams is mostly noise, and not shown
COSTS = {"answer_rate": Metric("answered", np.mean), "tokens": Metric("tokens", np.mean)}
METRICS = {
    "numbers": {
        "normalized_w1": Metric("norm. W1", np.median),
        "cdf_gap": Metric("CDF gap", np.median),
        "tv": Metric("TV", np.median),
        "logit_kl": Metric("logit KL", np.median),
        "logit_kl_floor": Metric("its floor", np.median),
        "excess_kl": Metric("excess KL", np.median),
        "form_kl": Metric("form part", np.median),
        "shape_kl": Metric("shape part", np.median),
        "valid_rate": Metric("valid", np.mean),
        **COSTS,
    },
    "open": {
        "valid_rate": Metric("valid", np.mean),
        "support_90": Metric("support 90 %", np.median),
        "unique_rate": Metric("unique", np.mean),
        "top_share": Metric("top answer", np.mean),
        "number_rate": Metric("bare numbers", np.mean),
        **COSTS,
    },
    "mcq": {
        "valid_rate": Metric("valid", np.mean),
        "tv": Metric("TV", unevenness),
        "share_a": Metric("A", np.mean),
        "share_b": Metric("B", np.mean),
        "share_c": Metric("C", np.mean),
        "share_d": Metric("D", np.mean),
        **COSTS,
    },
}


def bootstrap(values: np.ndarray, statistic: Callable) -> tuple[float | None, float | None]:
    """A 95% percentile interval of a statistic of values (n,); (None, None) if n < 2.

    It comes from 10,000 resamples, a hundred at a time to save memory.
    """
    if len(values) < 2:
        return None, None
    rng = np.random.default_rng(0)
    resampled = []
    for _ in range(100):
        picks = rng.integers(len(values), size=(100, len(values)))
        resampled.append(statistic(values[picks], axis=1))
    # Other methods interpolate, which gives nan between two infinite values.
    low, high = np.quantile(resampled, [0.025, 0.975], method="inverted_cdf")
    return float(low), float(high)


def group(rows: list[dict]) -> dict[tuple, list[dict]]:
    """Group rows: those of one axis, model, method, split and seed belong together."""
    groups = {}
    for row in rows:
        key = (row["axis"], row["model"], row["method"], row.get("split"), seed_of(row))
        groups.setdefault(key, []).append(row)
    return groups


def score_units(rows: list[dict]) -> dict[str, dict]:
    """The scores of one group's rows, as {metric: {unit: its values}}.

    A unit is what the bootstrap resamples: a family (with a value for each of its prompts), an open
    question (with one value), or a draw of an exam (with one value).
    """
    axis = rows[0]["axis"]
    units = {metric: {} for metric in METRICS[axis]}
    for row in rows:
        name = row.get("family", row["id"]) if axis == "numbers" else row["id"]
        for metric, scored in score(row).items():
            if isinstance(scored, list):
                units[metric] |= {(name, i): [value] for i, value in enumerate(scored)}
            elif scored is not None:
                units[metric].setdefault(name, []).append(scored)
    if axis == "mcq" and len(units["tv"]) < MIN_EXAMS:
        units["tv"] = {}
    return units


def summarize(units: dict, statistic: Callable) -> dict:
    """Summarize units: the mean within each, a statistic across all, and its interval."""
    means = np.array([np.mean(values) for values in units.values()])
    value = float(statistic(means)) if len(means) else None
    low, high = bootstrap(means, statistic)

    def finite(x):  # JSON has no infinity
        return None if x == np.inf else x

    n = sum(len(values) for values in units.values())
    return {"value": finite(value), "low": finite(low), "high": finite(high), "n": n}


def aggregate(rows: list[dict]) -> list[dict]:
    """All scores of the rows and of their targets: group the rows, score them, summarize."""
    out = []
    for key, members in group(rows + target_rows(rows)).items():
        axis, model, method, split, seed = key
        units = score_units(members)
        for metric, (_, statistic) in METRICS[axis].items():
            about = {"model": model, "method": method, "axis": axis, "split": split, "seed": seed}
            out.append(about | {"metric": metric} | summarize(units[metric], statistic))
    return out


def show(x: float | None, digits: int) -> str:
    if x is None:  # infinity, as summarize writes it
        return "∞"
    return f"{x:.{digits}f}" if abs(x) < 1000 else f"{x:.0e}"


def cell(seeds: list[dict]) -> str:
    """One score as text: with its interval or, over several seeds, mean ± standard deviation."""
    # A seed without this score has n = 0. (With n > 0, a value of null is infinite.)
    seeds = [row for row in seeds if row["n"]]
    if not seeds:
        return "–"
    values = [row["value"] for row in seeds]
    mean = None if None in values else np.mean(values)
    if len(seeds) > 1:
        deviation = "" if mean is None else f" ± {show(np.std(values, ddof=1), 3)}"
        return show(mean, 3) + deviation
    low, high = seeds[0]["low"], seeds[0]["high"]
    has_interval = low is not None or mean is None  # null bounds of an infinite mean are infinite
    return show(mean, 3) + (f" [{show(low, 2)}, {show(high, 2)}]" if has_interval else "")


def table(scores: list[dict], axis: str) -> list[str]:
    """A Markdown table of an axis: methods x metrics, without empty columns."""

    def place(key):  # unseen before ood; base first, targets last, others in the order given
        model, split, method = key
        is_target = method.startswith("target")
        return model, split != "unseen", split or "", method != "base", is_target

    cells = {}
    for row in scores:
        if row["axis"] == axis:
            by_metric = cells.setdefault((row["model"], row["split"], row["method"]), {})
            by_metric.setdefault(row["metric"], []).append(row)

    headings = [metric.heading for metric in METRICS[axis].values()]
    lines = [["model", "split", "method", *headings]]
    for key in sorted(cells, key=place):
        model, split, method = key
        texts = [cell(cells[key].get(metric, [])) for metric in METRICS[axis]]
        lines.append([model, split or "–", method, *texts])
    columns = zip(*lines, strict=True)
    return markdown(column for column in columns if set(column[1:]) != {"–"})


def markdown(columns: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table. Each column begins with its heading."""
    padded = []
    for column in columns:
        width = max(len(text) for text in column)
        heading, *texts = [text.ljust(width) for text in column]
        padded.append([heading, "-" * width, *texts])
    return ["| " + " | ".join(line) + " |" for line in zip(*padded, strict=True)]


def tables(scores: list[dict]) -> list[str]:
    """All tables, one for each axis that has scores, with their headings."""
    lines = []
    for axis in METRICS:
        if any(row["axis"] == axis for row in scores):
            lines += [f"**{axis}**", "", *table(scores, axis), ""]
    return lines


# ----------------------------------------------------------------------------- the command line


def name_of_row(row: dict) -> str:
    """Names a row in errors. read_rows() does not accept two rows with the same name."""
    about = f"{row['model']}, {row['axis']}, seed {seed_of(row)}"
    return f"{row['method']} on {row['id']} ({about})"


def check_same_prompts(rows: list[dict]) -> None:
    """Raises InputError if two methods of a model were not asked the same prompts on an axis."""
    methods, asked = {}, {}
    for row in rows:
        key = row["model"], row["axis"]
        what = ("bins", "prompt", "params", "decimals", "outputs", "probs")
        question = str([row.get(field) for field in what])
        methods.setdefault(key, set()).add(row["method"])
        asked.setdefault((*key, row["id"], question), set()).add(row["method"])
    for (model, axis, prompt_id, _), some in asked.items():
        others = methods[model, axis] - some
        if others:
            raise distributions.InputError(
                f"{model}, {axis}: {prompt_id} was asked of {', '.join(sorted(some))} but "
                f"not of {', '.join(sorted(others))}, or with another wording, target or bins; "
                "draw the rows of one of them again"
            )


def check_same_weights(rows: list[dict]) -> None:
    """Raises InputError if rows of one model were drawn from different weights of that name."""
    weights_of = {}
    for row in rows:
        weights = row.get("weights")
        if weights and weights_of.setdefault(row["model"], weights) != weights:
            raise distributions.InputError(
                f"{name_of_row(row)}: its model has different weights ({weights}) than in "
                f"earlier rows ({weights_of[row['model']]}); draw the rows of one of them again"
            )


def check_output(path: str | None, beginnings: tuple[str, ...]) -> None:
    """Raises InputError if a file exists that this script did not write."""
    if path and Path(path).exists() and not Path(path).read_text().startswith(beginnings):
        raise distributions.InputError(
            f"{path} already exists, and metrics.py did not write it; choose another name"
        )


def main() -> None:
    parser = distributions.Parser(description=__doc__)
    parser.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="rows written by sample.py (a run's other files are skipped)",
    )
    parser.add_argument("--out", required=True, help="JSONL file for the scores")
    parser.add_argument("--report", help="Markdown file for the tables")
    args = parser.parse_args()
    check_output(args.out, ('{"model"',))  # as the rows of aggregate() begin
    check_output(args.report, tuple(f"**{axis}**\n" for axis in METRICS))

    # If every file is one of these, read them anyway: the error then says which keys a row needs.
    files = [file for file in args.files if Path(file).stem not in NOT_DRAWS] or args.files
    keys = ("id", "model", "method", "axis", "draws")
    rows = distributions.read_rows(files, keys, name_of_row)
    # Other tools, such as pandas, write null where a row has no such key.
    rows = [{key: value for key, value in row.items() if value is not None} for row in rows]
    check_same_prompts(rows)
    check_same_weights(rows)

    scores = aggregate(rows)
    lines = tables(scores)
    distributions.write_text(args.out, distributions.to_jsonl(scores))
    if args.report:
        distributions.write_text(args.report, "\n".join(lines))
    print("\n".join(lines).rstrip())


if __name__ == "__main__":
    distributions.run(main)
