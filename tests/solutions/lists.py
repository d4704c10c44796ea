"""Exercise 7, targets of your own: train on 24 families *and* fifty weighted lists.

    python tests/solutions/lists.py --out runs/lists-data
    make reproduce METHODS=soft AXES=numbers RUN=runs/lists DATA=runs/lists-data

A prompt names the items and the weight of each. The right probabilities can therefore be read from
the prompt, as they can for a Gaussian:

    Choose ONE of these at random: oak (46 %), maple (31 %), birch (23 %). Output ONLY the answer.

The script reads the item lists of tests/tiny/lists.txt and writes three files to OUT: train.jsonl,
with the 1988 number prompts and fifty lists; unseen.jsonl, with the usual 24 prompts and ten lists
that are held out (split "lists"); and ood.jsonl, which is the usual one.

Does a model that has learned the weights of fifty lists follow those of a list it has never seen?
And do the numbers suffer? Read `TV`, the total variation, beside the row `target`, which is what as
many true draws score.
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))
import distributions

LISTS = Path(__file__).parents[1] / "tiny" / "lists.txt"
TRAINED, HELD_OUT = 50, 10


def list_row(number: int, category: str, items: list[str]) -> dict:
    """A prompt row with two to six of the items, whose weights are whole per cent, at least 1."""
    rng = distributions.prompt_rng(0, category)
    shuffled = rng.permutation(items)
    outputs = shuffled[: rng.integers(2, 7)].tolist()
    shares = rng.dirichlet(np.ones(len(outputs)))
    weights = 1 + rng.multinomial(100 - len(outputs), shares)

    shown = [f"{text} ({weight} %)" for text, weight in zip(outputs, weights, strict=True)]
    return {
        "id": f"list-{number:03d}",
        "split": "train" if number % 6 else "lists",  # every sixth list is held out
        "prompt": f"Choose ONE of these at random: {', '.join(shown)}. Output ONLY the answer.",
        "outputs": outputs,
        "probs": (weights / 100).tolist(),
    }


def list_rows() -> list[dict]:
    """A prompt row for each of the first sixty lists."""
    lines = LISTS.read_text("utf-8").splitlines()
    rows = []
    for number, line in enumerate(lines[: TRAINED + HELD_OUT]):
        category, items = line.split(": ")
        rows.append(list_row(number, category, items.split(", ")))
    return rows


def main() -> None:
    parser = distributions.Parser(description=__doc__)
    parser.add_argument(
        "--out", required=True, type=Path, help="folder for train.jsonl, unseen.jsonl and ood.jsonl"
    )
    out = parser.parse_args().out

    rows = list_rows()
    trained = [row for row in rows if row["split"] == "train"]
    held_out = [row for row in rows if row["split"] == "lists"]
    files = {
        "unseen": distributions.make_rows("unseen") + held_out,
        "ood": distributions.make_rows("ood"),
        "train": distributions.make_rows("train") + trained,
    }
    for name, prompts in files.items():
        path = out / f"{name}.jsonl"
        distributions.write_text(path, distributions.to_jsonl(prompts))
        written = distributions.read_prompts([path])  # which checks every row
        print(f"{path}: {len(written)} prompts")


if __name__ == "__main__":
    distributions.run(main)
