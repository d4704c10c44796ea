r"""Exercise 7: train on words as well as numbers, and ask about topics that were held out.

    python tests/solutions/mixed.py --out runs/mixed-data
    ln -s train_soft.py train_mixed.py
    make reproduce METHODS="soft mixed" RUN=runs/mixed \
        FLAGS_mixed="--draws 8 --branches 8 --data runs/mixed-data/train.jsonl" \
        FLAGS_numbers="--prompts runs/mixed-data/held_out.jsonl"

(This --data replaces the Makefile's, and these --prompts are added to the Makefile's. --draws and
--branches are what soft uses on the model tests/tiny. Leave them out for another model, which is
better for this exercise: tests/tiny knows so few of these words that it learns to make some up.)

The paper trains on numbers alone, and names that as its first limitation. Here the model also
learns from prompts about words whose probabilities are known, of two kinds:

1) Weighted lists. The prompt names the items and their weights, so the right probabilities can be
   read from it, as they can for a Gaussian:

       Choose ONE of these at random: oak (46 %), maple (31 %), birch (23 %). ...

2) Uniform choices. The prompt only names a small, closed set that everyone knows:

       Name a random continent. Output ONLY the answer.

The script writes two files to OUT: train.jsonl, with the 1988 number prompts, 50 lists, and 80
choices in two wordings each; and held_out.jsonl, with ten other lists (split "lists") and 22 other
choices (split "words"). The 22 are all choices from four topics: time, games, the sky and sport.
Each is asked in one wording that was used in training and in one that was not. (A question with a
wording of its own, such as "Toss a coin.", is asked as it stands.) No trained choice is among the
open questions of sample.py.

Does the model choose evenly in topics that it has never trained on? Compare `TV`, the total
variation, with that of the row `target`, a perfect sampler. And do the numbers suffer?
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))
import distributions

# ---------------------------------------------------------------------------------- weighted lists

LISTS = Path(__file__).parents[1] / "tiny" / "lists.txt"
N_LISTS = 60  # every sixth is held out


def list_row(number: int, category: str, items: list[str]) -> dict:
    """A prompt row with two to six of the items, weighted by whole percentages, at least 1."""
    rng = distributions.prompt_rng(0, category)
    shuffled = rng.permutation(items)
    outputs = shuffled[: rng.integers(2, 7)].tolist()
    shares = rng.dirichlet(np.ones(len(outputs)))
    weights = 1 + rng.multinomial(100 - len(outputs), shares)

    shown = [f"{text} ({weight} %)" for text, weight in zip(outputs, weights, strict=True)]
    return {
        "id": f"list-{number:03d}",
        "split": "train" if number % 6 else "lists",
        "prompt": f"Choose ONE of these at random: {', '.join(shown)}. Output ONLY the answer.",
        "outputs": outputs,
        "probs": (weights / 100).tolist(),
    }


def list_rows() -> list[dict]:
    """A prompt row for each of the first N_LISTS lists."""
    lines = LISTS.read_text("utf-8").splitlines()
    rows = []
    for number, line in enumerate(lines[:N_LISTS]):
        category, items = line.split(": ")
        rows.append(list_row(number, category, items.split(", ")))
    return rows


# --------------------------------------------------------------------------------- uniform choices

CHOICES = Path(__file__).with_name("choices.txt")
TRAINED_WORDINGS = ("Name a random {}.", "Choose any {} at random.")
NEW_WORDING = "Select one {}, with equal probability for each."


def choice_rows() -> list[dict]:
    """The prompt rows of choices.txt, where "# trained: X" or "# held out: X" stands above a topic.

    A line such as "season: Spring, Summer, Autumn, Winter" is asked in two wordings; if it is held
    out, the second is new. One such as "Toss a coin.: Heads, Tails" is asked as it stands.
    """
    rows = []
    trained = False
    lines = [line for line in CHOICES.read_text("utf-8").splitlines() if line]
    for line in lines:
        if line.startswith("# "):
            trained = line.startswith("# trained")
            continue
        thing, items = line.split(": ")
        outputs = items.split(", ")
        wordings = TRAINED_WORDINGS if trained else (TRAINED_WORDINGS[0], NEW_WORDING)
        prompts = [thing] if thing.endswith(".") else [text.format(thing) for text in wordings]
        for prompt in prompts:
            row = {
                "id": f"choice-{len(rows):03d}",
                "split": "train" if trained else "words",
                "prompt": f"{prompt} Output ONLY the answer.",
                "outputs": outputs,
                "probs": [1 / len(outputs)] * len(outputs),
            }
            rows.append(row)
    return rows


# ------------------------------------------------------------------------------------- the script


def main() -> None:
    parser = distributions.Parser(description=__doc__)
    parser.add_argument(
        "--out", required=True, type=Path, help="folder for train.jsonl and held_out.jsonl"
    )
    out = parser.parse_args().out

    rows = list_rows() + choice_rows()
    trained = [row for row in rows if row["split"] == "train"]
    files = {
        "train": distributions.make_rows("train") + trained,
        "held_out": [row for row in rows if row["split"] != "train"],
    }
    for name, prompts in files.items():
        path = out / f"{name}.jsonl"
        distributions.write_text(path, distributions.to_jsonl(prompts))
        written = distributions.read_prompts([path])  # which checks every row
        print(f"{path}: {len(written)} prompts")


if __name__ == "__main__":
    distributions.run(main)
