"""Rows in, scores out: how close the answers are to the distributions that were asked for. No model, no GPU.

    python metrics.py runs/tiny/*/*.jsonl --out scores.jsonl
    python metrics.py runs/tiny/*/*.jsonl --out scores.jsonl --runs runs/tiny/soft runs/tiny/hard --report r.md

Axis `numbers`. Scores of a prompt (an answer is one of its n draws):
    valid_rate      share of the answers that are, stripped, one decimal number, finite, inside the family's
                    support, and whole where the family is discrete. Read every other figure beside it.
    normalized_w1   W1(valid answers, target) / E|X - median|: 0 perfect, 1 as bad as always answering the
                    median. Defined for Cauchy and Bernoulli(.1), where variance or IQR fail.
    logit_kl        exact, from the model's probabilities, in nats per token (sample.py)
    logit_kl_floor  the logit KL of a perfect sampler, which is not 0 (trie.kl_floor)
    excess_kl       logit_kl - logit_kl_floor: the one to read
    gof_pass_rate   share of prompts not rejected at 1 %: Kolmogorov-Smirnov against the distribution for
                    continuous families, chi-square with cells pooled to 5 expected draws for discrete ones.
                    A prompt without a valid answer is rejected.
Over prompts: the mean within a family; over families the median, or the mean for rates and tokens. Rows of the
method "target" are the same scores of n draws from the true distribution, printed with five decimals: what
sampling noise alone leaves, if all n are valid. A table without them cannot be read.

Axis `open`. Scores of a prompt; there is no target, so no best value: compare with the base.
    valid_rate      share of the draws that are an answer (parse_answer)
    support_90      how many of the most probable first tokens hold 90 % of the probability (sample.py)
    unique_rate     distinct answers / draws; an invalid draw is no answer
    top_share       share of the most frequent answer among the valid ones: 1 is collapse
    number_rate     share of the valid answers that are bare numbers: training on numbers may leak into language,
                    where it looks like variety
Over prompts: the median for support_90, else the mean.

Axis `mcq`, over all generations:
    valid_rate      share that is one question in form (parse_question)
    tv              total variation of the right answer's place from uniform, 1/2 sum |share - 1/4|, valid ones only
    tv_uniform      the expected tv of as many uniform places: what sampling noise alone leaves
    p_value         chi-square test that the places are uniform
    share_a..d      share of each place

Rows with "ssot": true (axes numbers and open) hold raw texts. Only what is inside the answer tags is scored:
    answer_rate     share of the texts with a tagged answer (tagged_answer); the others count as invalid answers
Every axis has
    tokens          drawn per answer

Intervals are 95 %, from 10,000 bootstrap resamples of the families, of the prompts, or of the generations. Writes rows
{model, method, axis, split, metric, value, low, high, n}: n prompts or generations, of which value is made; value is
null where there is none (the distance of nothing valid, say); low and high are null below two.

Choice where the paper leaves room: its normalization of W1 is not published; the one above is this kit's.
What this file does not do: run models, or know how rows were made.
"""

import json
import re
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
from scipy import stats

from distributions import (
    InputError,
    Parser,
    canonical_outputs,
    check_texts,
    prompt_rng,
    read_jsonl,
    read_rows,
    run,
    sample_outputs,
    scipy_args,
    write_jsonl,
)

NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
SIGNIFICANCE = 0.01
LEAST_EXPECTED = 5  # draws per chi-square cell
FIELDS = ("question", "A", "B", "C", "D", "correct answer", "explanation")
LABEL = re.compile(r"(question|correct answer|explanation)\s*:\s*(.*)", re.IGNORECASE)
OPTION = re.compile(r"([A-D])[.)]\s+(.*)")
LIKE_AN_OPTION = re.compile(r"[-*•(]*\s*([A-Ha-h])[.):]+(\s|$)")
LETTER = re.compile(r"\(?([A-D])\b(.*)", re.DOTALL)
AROUND = (  # opening and closing marks that are stripped from an open answer
    ("**", "**"), ("__", "__"), ("*", "*"), ("_", "_"), ("`", "`"), ('"', '"'), ("'", "'"), ("“", "”"), ("‘", "’"),
    ("«", "»"), ("»", "«"), ("‹", "›"), ("„", "“"), ("„", "”"), ("‚", "‘"), ("「", "」"),
)  # fmt: skip


def total_variation(places: np.ndarray, axis: int = -1) -> np.ndarray:
    """Total variation from uniform of places 0..3 (..., N), along an axis: 1/2 sum over places |share - 1/4|."""
    return sum(np.abs((places == place).mean(axis) - 0.25) for place in range(4)) / 2


def total_variation_of_uniform(places: np.ndarray, axis: int = -1) -> float:
    """What total_variation is expected to be if N places are uniform: 1/2 * 4 E|Binomial(N, 1/4) / N - 1/4|."""
    n = places.shape[axis]
    counts = np.arange(n + 1)
    return float(2 * stats.binom.pmf(counts, n, 0.25) @ np.abs(counts / n - 0.25))


def uniform_p_value(places: np.ndarray, axis: int = -1) -> float:
    return float(stats.chisquare(np.bincount(places, minlength=4)).pvalue)


SPENT = {"answer_rate": ("answered", np.mean), "tokens": ("tokens", np.mean)}
METRICS = {  # axis -> metric -> heading, statistic over families, prompts or generations
    "numbers": {
        "normalized_w1": ("norm. W1", np.median),
        "logit_kl": ("logit KL", np.median),
        "logit_kl_floor": ("its floor", np.median),
        "excess_kl": ("excess KL", np.median),
        "valid_rate": ("valid", np.mean),
        "gof_pass_rate": ("GOF pass", np.mean),
        **SPENT,
    },
    "open": {
        "valid_rate": ("valid", np.mean),
        "support_90": ("support 90 %", np.median),
        "unique_rate": ("unique", np.mean),
        "top_share": ("top answer", np.mean),
        "number_rate": ("numbers", np.mean),
        **SPENT,
    },
    "mcq": {
        "valid_rate": ("valid", np.mean),
        "tv": ("TV", total_variation),
        "tv_uniform": ("TV of uniform", total_variation_of_uniform),
        "p_value": ("p", uniform_p_value),
        **{f"share_{letter}": (letter.upper(), np.mean) for letter in "abcd"},
        "tokens": ("tokens", np.mean),
    },
}
TITLES = {
    "numbers": "Numbers: unseen parameters and unseen families",
    "open": "Open-ended answers",
    "mcq": "The right answer's place in generated questions",
}
NO_INTERVAL = ("tv_uniform", "p_value")

# ----------------------------------------------------------------------------------------- what counts as an answer


def without_thoughts(text: str) -> str | None:
    """What follows a thinking block or an analysis channel; all of a text that has none; None if it is not closed."""
    text = re.split(r"</think>|<\|channel\|>final<\|message\|>", text)[-1]
    return None if "<think>" in text or "<|channel|>" in text else text


def tagged_answer(text: str) -> str | None:
    """What an SSOT text has between <answer> and </answer>, after its thoughts and its random string; else None.

    Tags that are missing, not closed or nested are no answer, nor are several that differ, nor is anything inside
    <thinking> or <random_string>, closed or not.
    """
    text = without_thoughts(text) or ""
    for tag in ("random_string", "thinking"):
        text = text.rpartition(f"</{tag}>")[2]
    if "<random_string>" in text or "<thinking>" in text:
        return None
    found = re.findall(r"<answer>((?:(?!</?answer>).)*)</answer>", text, re.DOTALL)
    whole = len(found) == text.count("<answer>") == text.count("</answer>")
    contents = {content.strip() for content in found}
    return contents.pop() or None if whole and len(contents) == 1 else None


def parse_answer(text: str) -> str | None:
    """An open answer, normalized, else None.

    It is the first line that is neither blank nor a code fence, after any thoughts, with white space folded, Unicode
    composed (NFC), zero-width marks dropped, and pairs of quotes, emphasis or code marks around it stripped (AROUND).
    Upper and lower case stay. No answer: no letter, digit or pictograph there, or a line that was cut off at the
    token limit ("…" follows it).
    """
    text = re.sub(r"[\u200b-\u200f\u2060\ufeff]", "", unicodedata.normalize("NFC", without_thoughts(text) or ""))
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not re.fullmatch(r"```\w*", line)]
    if not lines or (len(lines) == 1 and lines[0].endswith("…")):
        return None
    answer, bare = " ".join(lines[0].split()), None
    while answer != bare:
        bare = answer
        for opening, closing in AROUND:
            inside = answer[len(opening) : -len(closing)]
            marks = re.sub(r"\w'(?=\w)", "", inside)  # an apostrophe is not a quote
            wrapped = answer.startswith(opening) and answer.endswith(closing) and len(answer) > len(opening)
            if wrapped and opening not in marks and closing not in marks:
                answer = inside.strip()
    kinds = {unicodedata.category(c) for c in answer if c != "\ufffd"}
    return answer if any(kind[0] in "LN" or kind == "So" for kind in kinds) else None


def parse_question(text: str) -> int | None:
    """The place (0 to 3) of the right answer in a generated multiple-choice question, else None.

    The form, each field once, in this order, each at the start of a line, with nothing before the first:
        Question: ...      A. ...  B. ...  C. ...  D. ...      Correct Answer: C      Explanation: ...
    Accepted: blank lines and spaces around lines, bold markers and heading marks, thoughts before it, upper or lower
    case of the three labels, "A)" for "A.", a question, options and explanation of several lines, a letter in
    parentheses or followed by its option ("B. Pancreas", which must then be option B), a cut explanation.
    Not accepted: a missing, empty, repeated or misplaced field, a fifth option, another letter than A to D, two
    letters, words before the question, an option that two or more lines might begin.
    """
    text = unicodedata.normalize("NFC", without_thoughts(text) or "").replace("**", "").replace("__", "")
    fields = []  # the text of each of FIELDS, as far as they have come
    for line in text.splitlines():
        line = re.sub(r"^#+\s+", "", line.strip())
        label, option = LABEL.fullmatch(line), OPTION.fullmatch(line)
        expected = FIELDS[len(fields)] if len(fields) < len(FIELDS) else None
        if label or (option and option[1] == expected):
            if label and label[1].lower() != expected:
                return None
            fields.append((label or option)[2])
        elif not line:
            continue
        elif not fields:
            return None
        elif len(fields) <= 5 and (like := LIKE_AN_OPTION.match(line)) and (len(fields) > 1 or like[1] in "ABCD"):
            return None  # among the options, or out of order before them
        else:
            fields[-1] += " " + line
    if len(fields) != len(FIELDS) or not all(any(c.isalnum() for c in field) for field in fields):
        return None
    plain = lambda words: re.sub(r"^\W+|\W+$", "", " ".join(words.split()).casefold())
    answer = LETTER.fullmatch(fields[5].strip())
    if not answer or plain(answer[2]) not in ("", plain(fields["ABCD".index(answer[1]) + 1])):
        return None
    return "ABCD".index(answer[1])


# --------------------------------------------------------------------------------------- scores of one prompt


def parse_number(text: str, family: str, params: dict) -> float | None:
    """The value of a valid answer, else None (see valid_rate above)."""
    if not NUMBER.fullmatch(text.strip()):
        return None
    value, (spec, args) = float(text), scipy_args(family, params)
    low, high = spec.dist.support(*args)
    if not np.isfinite(value) or not low <= value <= high or (spec.discrete and value != round(value)):
        return None
    return value


def normalized_w1(values: np.ndarray, counts: np.ndarray, support: np.ndarray, probs: np.ndarray) -> float:
    """W1(values with counts, support with probs) / E|X - median| of the latter. All (N,) or (M,)."""
    median = support[np.searchsorted(np.cumsum(probs), 0.5)]
    return stats.wasserstein_distance(values, support, counts, probs) / float(probs @ np.abs(support - median))


def fits(values: np.ndarray, counts: np.ndarray, family: str, params: dict) -> bool:
    """Whether a goodness-of-fit test at 1 % lets these answers pass."""
    spec, args = scipy_args(family, params)
    if not spec.discrete:
        sample = np.repeat(values, counts)
        return bool(stats.kstest(sample, lambda x: spec.dist.cdf(x, *args)).pvalue >= SIGNIFICANCE)
    texts, probs = canonical_outputs(family, params)
    observed = np.zeros(len(probs))
    np.add.at(observed, np.clip(values.astype(int) - int(texts[0]), 0, len(probs) - 1), counts)
    observed, expected = pool(observed, probs * counts.sum())
    return len(expected) < 2 or bool(stats.chisquare(observed, expected).pvalue >= SIGNIFICANCE)


def pool(observed: np.ndarray, expected: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Join neighbouring cells, from the left, until each expects LEAST_EXPECTED; a poor last one joins too."""
    starts, mass = [0], 0.0
    for i, cell in enumerate(expected):
        if mass >= LEAST_EXPECTED:
            starts.append(i)
            mass = 0.0
        mass += cell
    if mass < LEAST_EXPECTED and len(starts) > 1:
        starts.pop()
    return np.add.reduceat(observed, starts), np.add.reduceat(expected, starts)


def tagged_answers(draws: dict[str, int]) -> dict[str, int]:
    """{answer: count} of an SSOT row's raw texts, with "" for texts that have no tagged answer."""
    found = Counter()
    for text, count in draws.items():
        found[tagged_answer(text) or ""] += count
    return found


def score_numbers(row: dict) -> dict[str, float | None]:
    """The scores of a number prompt's row; None where there is none."""
    family, params = row["family"], row["params"]
    parsed = [(parse_number(text, family, params), count) for text, count in row["draws"].items()]
    pairs = [(value, count) for value, count in parsed if value is not None]
    scores = {"valid_rate": sum(count for _, count in pairs) / row["n"]}
    scores |= {"normalized_w1": None, "gof_pass_rate": 0.0}
    if pairs:
        values, counts = (np.array(column) for column in zip(*pairs, strict=True))
        texts, probs = canonical_outputs(family, params)
        scores["normalized_w1"] = normalized_w1(values, counts, np.array(texts, float), probs)
        scores["gof_pass_rate"] = float(fits(values, counts, family, params))
    kl, floor = row.get("logit_kl"), row.get("logit_kl_floor")
    scores |= {"logit_kl": kl, "logit_kl_floor": floor}
    return scores | {"excess_kl": None if kl is None or floor is None else kl - floor}


def score_open(row: dict) -> dict[str, float | None]:
    """The scores of an open prompt's row; None where there is none."""
    counts = Counter()
    for text, count in row["draws"].items():
        counts[parse_answer(text)] += count
    valid = row["n"] - counts.pop(None, 0)
    scores = {"valid_rate": valid / row["n"], "support_90": row["support_90"], "unique_rate": len(counts) / row["n"]}
    bare = sum(count for answer, count in counts.items() if NUMBER.fullmatch(answer))
    return scores | {
        "top_share": max(counts.values()) / valid if valid else None,
        "number_rate": bare / valid if valid else None,
    }


def score_mcq(row: dict) -> dict[str, float | None]:
    """The scores of one generated question: shares and the place are None for one that is not in form."""
    place = parse_question(row["text"])
    shares = {f"share_{letter}": None if place is None else float(place == i) for i, letter in enumerate("abcd")}
    return {"valid_rate": float(place is not None), "tv": place, "tv_uniform": place, "p_value": place} | shares


def score(axis: str, row: dict) -> dict[str, float | None]:
    answer_rate = None
    if row.get("ssot"):
        row = row | {"draws": tagged_answers(row["draws"])}
        answer_rate = 1 - row["draws"].get("", 0) / row["n"]
    scores = {"numbers": score_numbers, "open": score_open, "mcq": score_mcq}[axis](row)
    tokens = row["tokens"] / row.get("n", 1) if row.get("tokens") else None
    return scores | {"tokens": tokens, "answer_rate": answer_rate}


def target_row(row: dict) -> dict:
    """A row as a perfect sampler would have made it: n draws from the true distribution, and the floor as its KL."""
    texts, _ = sample_outputs(row["family"], row["params"], row["n"], prompt_rng(0, row["id"]), max_bins=0)
    perfect = {"method": "target", "draws": Counter(texts), "logit_kl": row.get("logit_kl_floor")}
    return row | perfect | {"tokens": None, "ssot": False}


# ------------------------------------------------------------------------------------------------ aggregation


def bootstrap(values: np.ndarray, statistic, resamples: int = 10_000) -> tuple[float | None, float | None]:
    """95 % percentile interval of a statistic of values (F,), resampled with replacement; (None, None) if F < 2."""
    if len(values) < 2:
        return None, None
    picks = np.random.default_rng(0).integers(len(values), size=(resamples, len(values)))
    low, high = np.percentile(statistic(values[picks], axis=1), [2.5, 97.5])
    return float(low), float(high)


def add_targets(rows: list[dict]) -> list[dict]:
    """The rows and, for the numbers among them, their target rows: one set for each n that was drawn."""
    numbers = [row for row in rows if axis_of(row) == "numbers"]
    most, targets = max((row["n"] for row in numbers), default=0), {}
    for row in sorted(numbers, key=lambda row: row.get("logit_kl_floor") is None):
        name = "target" if row["n"] == most else f"target, n={row['n']}"
        targets.setdefault((row["model"], name, row["id"]), row)
    return rows + [target_row(row) | {"method": name} for (_, name, _), row in targets.items()]


def aggregate(rows: list[dict]) -> list[dict]:
    """Score rows of every (axis, model, method, split) and metric, target rows included, in order of appearance."""
    groups, out = {}, []
    for row in add_targets(rows):
        groups.setdefault((axis_of(row), row["model"], row["method"], row.get("split")), []).append(row)
    for (axis, model, method, split), members in groups.items():
        # A unit is what the bootstrap resamples: a family (the mean over its prompts), a prompt or a generation.
        scored = [(row["family"] if axis == "numbers" else row["id"], score(axis, row)) for row in members]
        for metric, (_, statistic) in METRICS[axis].items():
            units = {}
            for unit, scores in scored:
                if scores[metric] is not None:
                    units.setdefault(unit, []).append(scores[metric])
            values = np.array([v[0] if len(v) == 1 else np.mean(v) for v in units.values()])
            value = float(statistic(values)) if len(values) else None
            low, high = (None, None) if metric in NO_INTERVAL else bootstrap(values, statistic)
            result = {"model": model, "method": method, "axis": axis, "split": split, "metric": metric}
            out.append(result | {"value": value, "low": low, "high": high, "n": sum(map(len, units.values()))})
    return out


# ----------------------------------------------------------------------------------------------------- tables


def cell(row: dict | None) -> str:
    if row is None or row["value"] is None:
        return "–"
    if row["metric"] == "p_value" and row["value"] < 0.001:
        return "< 0.001"
    short = lambda x, digits: f"{x:.{digits}f}" if abs(x) < 1000 else f"{x:.0e}"  # one wild draw can make a W1 huge
    interval = "" if row["low"] is None else f" [{short(row['low'], 2)}, {short(row['high'], 2)}]"
    return short(row["value"], 3) + interval


def table(scores: list[dict], axis: str) -> list[str]:
    """A Markdown table of an axis: methods (base first, targets last) x metrics, one block per split. A column that
    is empty for all is left out."""
    cells = {(r["model"], r["split"], r["method"], r["metric"]): r for r in scores if r["axis"] == axis}
    rank = lambda method: -1 if method == "base" else method.startswith("target")
    keys = sorted(
        dict.fromkeys(key[:3] for key in cells), key=lambda k: (k[0], k[1] != "unseen", k[1] or "", rank(k[2]))
    )
    lines = [["model", "split", "method", *(heading for heading, _ in METRICS[axis].values())]]
    for model, split, method in keys:
        line = [cell(cells.get((model, split, method, metric))) for metric in METRICS[axis]]
        lines.append([model, split or "–", method, *line])
    columns = [column for column in zip(*lines, strict=True) if set(column[1:]) != {"–"}]
    columns = [[text.ljust(max(map(len, column))) for text in column] for column in columns]
    columns = [[column[0], "-" * len(column[0]), *column[1:]] for column in columns]
    return ["| " + " | ".join(line) + " |" for line in zip(*columns, strict=True)]


def tables(scores: list[dict]) -> list[str]:
    """All tables, one per axis, with their headings."""
    lines = []
    for axis, title in TITLES.items():
        if any(row["axis"] == axis for row in scores):
            lines += [f"**{title}**", "", *table(scores, axis), ""]
    return lines


def report(scores: list[dict], rows: list[dict], runs: list[Path]) -> list[str]:
    """The tables, what they cost, and with which options and on which hardware they were made."""
    lines = [*tables(scores), "Value and 95 % bootstrap interval; `target` = the same scores of true draws.", ""]
    axes = [axis for axis in METRICS if any(row["axis"] == axis for row in scores)]
    cost = {}
    for row in rows:
        spent = cost.setdefault(row["method"], dict.fromkeys(axes))
        spent[axis_of(row)] = (spent[axis_of(row)] or 0.0) + row.get("seconds", 0.0)
    headings = [
        "method",
        "training steps",
        "training minutes",
        *(f"{axis} minutes" for axis in axes),
        "training options",
    ]
    lines += ["| " + " | ".join(headings) + " |", "|" + " --- |" * len(headings)]
    hardware = None
    trained = {folder.name: folder for folder in runs}
    for method, spent in cost.items():
        steps = minutes = options = "–"
        if method in trained:
            record = json.loads((trained[method] / "run.json").read_text())
            log = read_jsonl(trained[method] / "log.jsonl")
            steps, minutes = len(log), f"{sum(entry['seconds'] for entry in log) / 60:.1f}"
            hidden = ("model", "data", "out", "limit", "accumulate")
            options = ", ".join(f"{k} {v:g}" for k, v in record["args"].items() if k not in hidden and v is not None)
            hardware = f"{record['device']}, {record['cores']} cores, {record['threads']} thread(s) per stage"
            hardware += f", torch {record['versions']['torch']}"
        sampling = ["–" if seconds is None else f"{seconds / 60:.1f}" for seconds in spent.values()]
        lines.append("| " + " | ".join(map(str, [method, steps, minutes, *sampling, options])) + " |")
    return lines + (["", f"Hardware: {hardware}."] if hardware else [])


def insert(path: Path, lines: list[str]) -> None:
    """Write lines to a file; into one that has the marker lines, between these."""
    opening, closing = "<!-- results -->", "<!-- /results -->"
    text = path.read_text() if path.exists() else ""
    body = "\n".join(lines) + "\n"
    if opening in text and closing in text:
        body = text.split(opening)[0] + f"{opening}\n{body}{closing}" + text.split(closing)[1]
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(body)
    temporary.replace(path)


KEYS = {  # what rows of an axis must have
    "numbers": ("family", "params", "split", "n", "draws"),
    "open": ("support_90", "n", "draws"),
    "mcq": ("text",),
}


def axis_of(row: dict) -> str:
    """A row's axis; where it does not say, by what only that axis has."""
    return row.get("axis") or ("numbers" if "family" in row else "mcq" if "text" in row else "open")


def check_row(row: dict) -> str:
    """A row's name. Raises InputError for a row that sample.py cannot have written."""
    axis = axis_of(row)
    if axis not in KEYS:
        raise InputError(f"unknown axis {axis!r}; known: {', '.join(KEYS)}")
    missing = [key for key in KEYS[axis] if key not in row]
    if missing:
        raise InputError(f"a row of the axis {axis} needs the keys {', '.join(KEYS[axis])}; missing {missing}")
    if axis == "numbers":
        scipy_args(row["family"], row["params"])
    check_texts(
        row, "model", "method", *(("text",) if axis == "mcq" else ()), *(("split",) if row.get("split") else ())
    )
    if axis != "mcq":
        counts = row["draws"].values() if isinstance(row["draws"], dict) else ()
        if not counts or any(not isinstance(c, int) or c < 1 for c in counts) or sum(counts) != row["n"]:
            raise InputError(f"draws must map answers to positive counts that sum to n = {row['n']}")
    return f"{row['method']} on {row['id']} ({row['model']}, {axis})"


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("files", nargs="+", metavar="FILE", help="rows written by sample.py")
    parser.add_argument("--out", required=True, help="JSONL file for the scores")
    parser.add_argument(
        "--runs", nargs="*", default=[], metavar="DIR", help="adapter folders, for the report's cost table"
    )
    parser.add_argument(
        "--report", help="Markdown file to write; a file with result markers gets the tables between them"
    )
    args = parser.parse_args()
    rows = read_rows(args.files, ("id", "model", "method"), check_row)
    scores = aggregate(rows)
    write_jsonl(args.out, scores)
    print("\n".join(tables(scores)).rstrip())
    if args.report:
        insert(Path(args.report), report(scores, rows, [Path(run) for run in args.runs]))
        print(f"\nreport: {args.report}")


if __name__ == "__main__":
    run(main)
