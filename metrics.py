"""Rows in, scores out: how close the answers are to the distributions that were asked for. No model, no GPU.

    python metrics.py runs/tiny/numbers/*.jsonl --out scores.jsonl
    python metrics.py runs/tiny/numbers/*.jsonl --out scores.jsonl --runs runs/tiny/soft runs/tiny/hard --report r.md

Scores of a prompt (an answer is one of its n draws):
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

Over prompts: the mean within a family; over families the median, or the mean for the two rates. Intervals
are 95 %, from 10,000 bootstrap resamples of the families. Rows of the method "target" are the same scores of
n draws from the true distribution, printed with five decimals: what sampling noise alone leaves. A table
without them cannot be read.

Writes rows {model, method, axis, split, metric, value, low, high, n}: n prompts, of which value is made;
value is null where there is none, low and high are null below two families.

Choice where the paper leaves room: its normalization of W1 is not published; the one above is this kit's.
What this file does not do: run models, or know how rows were made.
"""

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
from scipy import stats

from distributions import (
    InputError,
    Parser,
    canonical_outputs,
    prompt_rng,
    read_jsonl,
    run,
    sample_outputs,
    scipy_args,
    write_jsonl,
)

NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
SIGNIFICANCE = 0.01
LEAST_EXPECTED = 5  # draws per chi-square cell
METRICS = {  # name -> heading, statistic over families
    "normalized_w1": ("norm. W1", np.median),
    "logit_kl": ("logit KL", np.median),
    "logit_kl_floor": ("its floor", np.median),
    "excess_kl": ("excess KL", np.median),
    "valid_rate": ("valid", np.mean),
    "gof_pass_rate": ("GOF pass", np.mean),
}

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


def score(row: dict) -> dict[str, float | None]:
    """The scores of one prompt's row; None where there is none."""
    family, params = row["family"], row["params"]
    parsed = [(parse_number(text, family, params), count) for text, count in row["draws"].items()]
    pairs = [(value, count) for value, count in parsed if value is not None]
    scores = {"valid_rate": sum(count for _, count in pairs) / sum(row["draws"].values())}
    scores |= {"normalized_w1": None, "gof_pass_rate": 0.0}
    if pairs:
        values, counts = (np.array(column) for column in zip(*pairs, strict=True))
        texts, probs = canonical_outputs(family, params)
        scores["normalized_w1"] = normalized_w1(values, counts, np.array(texts, float), probs)
        scores["gof_pass_rate"] = float(fits(values, counts, family, params))
    kl, floor = row.get("logit_kl"), row.get("logit_kl_floor")
    scores |= {"logit_kl": kl, "logit_kl_floor": floor}
    return scores | {"excess_kl": None if kl is None or floor is None else kl - floor}


def target_row(row: dict) -> dict:
    """A row as a perfect sampler would have made it: n draws from the true distribution, and the floor as its KL."""
    texts, _ = sample_outputs(row["family"], row["params"], row["n"], prompt_rng(0, row["id"]), max_bins=0)
    return row | {"method": "target", "draws": Counter(texts), "logit_kl": row.get("logit_kl_floor")}


# ------------------------------------------------------------------------------------------------ aggregation


def bootstrap(values: np.ndarray, statistic, resamples: int = 10_000) -> tuple[float | None, float | None]:
    """95 % percentile interval of a statistic of values (F,), resampled with replacement; (None, None) if F < 2."""
    if len(values) < 2:
        return None, None
    picks = np.random.default_rng(0).integers(len(values), size=(resamples, len(values)))
    low, high = np.percentile(statistic(values[picks], axis=1), [2.5, 97.5])
    return float(low), float(high)


def aggregate(rows: list[dict]) -> list[dict]:
    """Score rows of every (model, method, split) and metric, target rows included, in order of appearance."""
    groups, targets = {}, {}
    for row in rows:
        groups.setdefault((row["model"], row["method"], row["split"]), []).append(row)
        targets.setdefault((row["model"], "target", row["split"]), {}).setdefault(row["id"], row)
    for key, by_id in targets.items():
        groups[key] = [target_row(row) for row in by_id.values()]
    out = []
    for (model, method, split), members in groups.items():
        scored = [(row["family"], score(row)) for row in members]
        for metric, (_, statistic) in METRICS.items():
            by_family = {}
            for family, scores in scored:
                if scores[metric] is not None:
                    by_family.setdefault(family, []).append(scores[metric])
            values = np.array([np.mean(v) for v in by_family.values()])
            value = float(statistic(values)) if len(values) else None
            low, high = bootstrap(values, statistic)
            result = {"model": model, "method": method, "axis": "numbers", "split": split, "metric": metric}
            out.append(result | {"value": value, "low": low, "high": high, "n": sum(map(len, by_family.values()))})
    return out


# ----------------------------------------------------------------------------------------------------- tables


def cell(row: dict | None) -> str:
    if row is None or row["value"] is None:
        return "–"
    short = lambda x, digits: f"{x:.{digits}f}" if abs(x) < 1000 else f"{x:.0e}"  # one wild draw can make a W1 huge
    interval = "" if row["low"] is None else f" [{short(row['low'], 2)}, {short(row['high'], 2)}]"
    return short(row["value"], 3) + interval


def table(scores: list[dict]) -> list[str]:
    """A Markdown table: methods (base first, target last) x metrics, one block per split."""
    cells = {(r["model"], r["split"], r["method"], r["metric"]): r for r in scores}
    rank = {"base": -1, "target": 1}
    keys = sorted(dict.fromkeys(key[:3] for key in cells), key=lambda k: (k[0], k[1] != "unseen", rank.get(k[2], 0)))
    lines = [["model", "split", "method", *(heading for heading, _ in METRICS.values())]]
    lines += [[*key, *(cell(cells.get((*key, metric))) for metric in METRICS)] for key in keys]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return [
        "| " + " | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]


def report(scores: list[dict], rows: list[dict], runs: list[Path]) -> list[str]:
    """The table, what it cost, and with which options and on which hardware it was made."""
    lines = [*table(scores), ""]
    lines += ["Value and 95 % bootstrap interval over families; `target` = the same scores of true draws.", ""]
    cost = {}
    for row in rows:
        cost[row["method"]] = cost.get(row["method"], 0.0) + row.get("seconds", 0.0)
    lines += [
        "| method | training steps | training minutes | scoring minutes | options |",
        "| --- | --- | --- | --- | --- |",
    ]
    hardware = None
    trained = {folder.name: folder for folder in runs}
    for method, seconds in cost.items():
        steps = minutes = options = "–"
        if method in trained:
            record = json.loads((trained[method] / "run.json").read_text())
            log = read_jsonl(trained[method] / "log.jsonl")
            steps, minutes = len(log), f"{sum(entry['seconds'] for entry in log) / 60:.1f}"
            hidden = ("model", "data", "out", "limit", "accumulate")
            options = ", ".join(f"{k} {v:g}" for k, v in record["args"].items() if k not in hidden and v is not None)
            hardware = f"{record['device']}, {record['cores']} cores, {record['threads']} thread(s) per stage"
            hardware += f", torch {record['versions']['torch']}"
        lines.append(f"| {method} | {steps} | {minutes} | {seconds / 60:.1f} | {options} |")
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


KEYS = ("id", "split", "family", "params", "model", "method", "n", "draws")


def read_rows(paths: list[str]) -> list[dict]:
    """Rows of sample.py's files, checked. Raises InputError with file:line."""
    rows, seen = [], {}
    for path in paths:
        for number, row in enumerate(read_jsonl(path, KEYS), 1):
            where = f"{path}:{number}"
            try:
                scipy_args(row["family"], row["params"])
            except InputError as error:
                raise InputError(f"{where}: {error}") from None
            counts = row["draws"].values() if isinstance(row["draws"], dict) else ()
            if not counts or any(not isinstance(c, int) or c < 1 for c in counts) or sum(counts) != row["n"]:
                raise InputError(f"{where}: draws must map answers to positive counts that sum to n = {row['n']}")
            key = (row["model"], row["method"], row["id"])
            if key in seen:
                raise InputError(
                    f"{where}: {row['method']} on {row['id']} was already at {seen[key]}; give each file once"
                )
            seen[key] = where
            rows.append(row)
    return rows


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
    rows = read_rows(args.files)
    scores = aggregate(rows)
    write_jsonl(args.out, scores)
    print("\n".join(table(scores)))
    if args.report:
        insert(Path(args.report), report(scores, rows, [Path(run) for run in args.runs]))
        print(f"\nreport: {args.report}")


if __name__ == "__main__":
    run(main)
