"""Ask a model something many times, before and after training, and see its answers side by side.

    python tests/extras/ask.py "Name a random day of the week." --model tests/tiny
    python tests/extras/ask.py "Name a random planet." --model Qwen/Qwen3-0.6B --n 1000

Draws --n answers from the model and from each of its adapters: the folders in --run that have an
adapter_model.safetensors (default: runs/ and the last part of the model's name, where
`make reproduce` puts them). Answers are drawn at temperature 1 over the full vocabulary. No file is
written.

- An open question is shown as its most frequent answers: the ten that have the largest share under
  any method, sorted by the base model's share, then by the largest share after training.
- A number prompt of the kit is shown as a histogram beside its target. "Generate exactly ONE
  random number from a Gaussian distribution with parameters mu=3.5, sigma=3. Output ONLY the
  number." is one, and so is the same text with any other family or parameters.

Where a terminal has no room for bars, there are only numbers. What goes into a file or a pipe is
plain ASCII, except for the answers themselves.
"""

import math
import re
import shutil
import sys
import textwrap
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[2]))

import distributions
import metrics
import sample
import trie

MAX_TOKENS = 32
TOP = 10  # answers to an open question that are shown
MOST_BINS = 15  # of a histogram
EIGHTHS = " ▏▎▍▌▋▊▉█"  # of a character

Table = dict[str, list[float]]  # label of a line -> the share under each method
Footer = dict[str, list[str]]  # what is printed below the shares


def draw_answers(name: str, adapters: list[Path], prompt: str, n: int, seed: int) -> dict:
    """Draw n answers from the base model and from each adapter: {method: list of n texts}.

    The base model's weights are loaded once, and each adapter is attached to them in turn. All
    methods use the same random numbers. Raises InputError if the model or an adapter is unfit.
    """
    model, tokenizer, end = trie.load(name)
    prompt_ids = trie.chat_ids(tokenizer, prompt)
    uniform = distributions.prompt_rng(seed, prompt).random((n, MAX_TOKENS))
    ends = model.generation_config.eos_token_id

    answers = {}
    for adapter in tqdm([None, *adapters], "draw", leave=False):
        sampler = trie.load_adapter(model, name, adapter) if adapter else model
        paths = trie.walk(sampler, [prompt_ids], ends, uniform)
        method = adapter.name if adapter else "base"
        answers[method] = [sample.to_text(tokenizer, path, ends) for path in paths]
        if adapter:
            model = sampler.unload()  # the base model again
    return answers


# ------------------------------------------------------------------------------ an open question


def frequent_answers(answers: dict[str, list[str]]) -> tuple[Table, Footer]:
    """Count the answers to an open question: their shares, and how many are different."""
    counts = [Counter(map(metrics.parse_answer, texts)) for texts in answers.values()]
    shares = {}
    for answer in {answer for count in counts for answer in count}:
        shares[answer] = [count[answer] / count.total() for count in counts]
    invalid = shares.pop(None, None)  # None is what parse_answer makes of an invalid answer

    def by_largest_share(answer: str) -> tuple:
        return -max(shares[answer]), answer

    def by_base_share(answer: str) -> tuple:
        base, *trained = shares[answer]
        return -base, -max(trained, default=0), answer

    ranked = sorted(shares, key=by_largest_share)
    table = {answer: shares[answer] for answer in sorted(ranked[:TOP], key=by_base_share)}
    if others := [shares[answer] for answer in ranked[TOP:]]:
        table["(other answers)"] = [sum(column) for column in zip(*others, strict=True)]
    if invalid:
        table["(no valid answer)"] = invalid
    return table, {"different answers": [str(len(count.keys() - {None})) for count in counts]}


# ------------------------------------------------------------------------------- a number prompt


def parse_number_prompt(prompt: str) -> dict | None:
    """The row of a number prompt, with the prompt as its id; None for any other prompt.

    >>> row = parse_number_prompt(distributions.make_rows("ood")[3]["prompt"])
    >>> row["family"], row["params"]
    ('poisson', {'lambda': 1.0})
    """
    for family, spec in distributions.FAMILIES.items():
        names = spec.params.split()
        values = ", ".join(f"{name}=(-?[0-9]+(?:[.][0-9]+)?)" for name in names)
        match = re.fullmatch(distributions.PROMPT.format(re.escape(spec.name), values), prompt)
        if match:
            params = dict(zip(names, map(float, match.groups()), strict=True))
            # The pattern matches a little more than the prompts of the kit, such as mu=3.50.
            if spec.prompt(params) == prompt:
                return {"id": prompt, "family": family, "params": params, "prompt": prompt}
    return None


def bin_edges(row: dict) -> np.ndarray:
    """Round numbers that cut the central 98 % of a target into about a dozen bins [low, high)."""
    low, high = distributions.distribution(row).ppf([0.01, 0.99])
    discrete = distributions.is_discrete(row)
    widths = [factor * 10.0**power for power in range(-6, 12) for factor in (1, 2, 2.5, 5)]
    if discrete:
        widths = [width for width in widths if width == round(width)]
    width = next(width for width in widths if (high - low) / width <= MOST_BINS)
    # A discrete bin has to reach beyond the last integer in it.
    first, last = math.floor(low / width), math.ceil((high + discrete) / width)
    return np.arange(first, last + 1) * width


def histogram(row: dict, answers: dict[str, list[str]]) -> tuple[Table, Footer]:
    """Count the numbers: shares of the target, then of each method; W1 and valid rate of each."""
    target, discrete = distributions.distribution(row), distributions.is_discrete(row)
    edges = bin_edges(row)
    lows = [f"{edge:.12g}" for edge in edges]
    highs = [f"{edge:.12g}" for edge in edges - discrete]  # integers 3, 4, 5 are "3 to 5"
    inner = [a if a == b else f"{a} to {b}" for a, b in zip(lows[:-1], highs[1:], strict=True)]
    labels = [f"below {lows[0]}", *inner, f"above {highs[-1]}", "(no valid number)"]

    columns = [[*np.diff(target.cdf(edges - discrete), prepend=0, append=1), 0.0]]
    for texts in answers.values():
        numbers = [metrics.parse_number(text, *target.support(), discrete) for text in texts]
        valid = [number for number in numbers if number is not None]
        bins = np.searchsorted(edges, valid, "right")  # 0 is below the first edge
        counts = [*np.bincount(bins, minlength=len(edges) + 1), len(texts) - len(valid)]
        columns.append([count / len(texts) for count in counts])
    table = dict(zip(labels, zip(*columns, strict=True), strict=True))
    table = {label: shares for label, shares in table.items() if max(shares) > 0}

    # The target's own scores are those of as many true draws: what sampling noise leaves.
    as_many = row | {"axis": "numbers", "draws": answers["base"]}
    true_draws = metrics.target_row(as_many)["draws"]
    scores = [metrics.score_numbers(row, texts) for texts in (true_draws, *answers.values())]
    distances = [f"{score['normalized_w1']:.2f}" for score in scores]
    return table, {"normalized W1": distances, "valid": [percent(s["valid_rate"]) for s in scores]}


# ------------------------------------------------------------------------------------- the lines


def columns_of(text: str) -> int:
    """How many columns of a terminal a text takes: Chinese characters two, combining marks none."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    marks = sum(unicodedata.category(character) in ("Mn", "Me") for character in text)
    return len(text) + wide - marks


def fit(text: str, width: int, dots: str) -> str:
    """A text in exactly `width` columns: filled up with spaces, or cut and ended with dots."""
    if columns_of(text) > width:
        while text and columns_of(text + dots) > width:
            text = text[:-1]
        text = (text + dots)[:width]
    return text + " " * (width - columns_of(text))


def percent(share: float) -> str:
    """A share in at most five characters.

    >>> percent(1.0), percent(0.125), percent(0.004), percent(0.0)
    ('100 %', '12 %', '<1 %', '0 %')
    """
    rounded = round(100 * share)
    return "<1 %" if share > 0 and rounded == 0 else f"{rounded} %"


def bar(part: float, width: int, blocks: bool) -> str:
    """A bar that fills `part` (0 to 1) of its width."""
    whole, eighths = divmod(round(part * width * 8), 8)
    text = "█" * whole + EIGHTHS[eighths].strip() if blocks else "#" * round(part * width)
    return text.ljust(width)


def lines_of(
    heading: str, methods: list[str], table: Table, footer: Footer, width: int, blocks: bool
) -> list[str]:
    """The lines of a table, none wider than `width`: bars if there is room, else only numbers.

    All bars have one scale: the largest share fills its bar.
    """
    # Labels get a third of the width, or 18 columns; the methods share what remains.
    longest = max(columns_of(label) for label in (heading, *table, *footer))
    room = (width - min(longest, max(width // 3, 18))) // len(methods)
    bar_width = min(room - len("   100 %"), 24)
    if bar_width < 4:
        bar_width = 0
    cells = [2 + max(len(method), bar_width + len(" 100 %")) for method in methods]
    label_width = max(4, min(longest, width - sum(cells)))
    dots = "…" if blocks else "..."

    rows = {heading: methods}
    largest = max(max(shares) for shares in table.values())
    for label, shares in table.items():
        bars = [bar(share / largest, bar_width, blocks) for share in shares]
        rows[label] = [f"{left} {percent(x):>5}" for left, x in zip(bars, shares, strict=True)]

    lines = []
    for label, texts in (rows | footer).items():
        # A control character in an answer could move the cursor.
        label = "".join(character if character.isprintable() else "?" for character in label)
        line = fit(label, label_width, dots)
        line += "".join(text.rjust(cell) for text, cell in zip(texts, cells, strict=True))
        lines.append(fit(line, width, "").rstrip())
    return lines


def main() -> None:
    parser = distributions.Parser(description=__doc__)
    add = parser.add_argument
    add("prompt", metavar="PROMPT", help="what to ask")
    add("--model", required=True, help="hub id or folder of a chat model")
    add("--run", type=Path, help="folder whose subfolders are adapters (default: runs/MODEL)")
    add("--n", type=int, default=200, help="answers from each method (200)")
    add("--seed", type=int, default=0)
    args = parser.parse_args()
    if not args.prompt.strip():
        raise distributions.InputError("the prompt is empty: ask something")

    run = args.run or Path("runs") / Path(args.model).name
    adapters = [path.parent for path in run.glob("*/adapter_model.safetensors")]
    adapters.sort(key=lambda adapter: (adapter.name != "soft", adapter.name))  # soft comes first
    row = parse_number_prompt(args.prompt)
    if row:
        distributions.lattice(row)  # raises InputError for impossible parameters
    answers = draw_answers(args.model, adapters, args.prompt, args.n, args.seed)
    table, footer = histogram(row, answers) if row else frequent_answers(answers)
    methods = ["target", *answers] if row else list(answers)

    sys.stdout.reconfigure(errors="replace")  # prints "?" for what the encoding does not have
    width = shutil.get_terminal_size().columns
    blocks = sys.stdout.isatty() and sys.stdout.encoding.lower().startswith("utf")
    if not adapters:
        no_adapter = f"There is no adapter in {run} yet (make reproduce): this is the base model."
        print(textwrap.fill(no_adapter, width))
    print(textwrap.fill(args.prompt, width))
    print("\n".join(lines_of(f"of {args.n} answers", methods, table, footer, width, blocks)))


if __name__ == "__main__":
    distributions.run(main)
