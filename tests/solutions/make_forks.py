"""Writes the exercises' trainings as forks of train_soft.py and train_hard.py, and prints how to run them. The table:

python tests/solutions/make_forks.py . | sh        # on the embedded model; then rm the train_*.py it wrote
"""

import argparse
import ast
from pathlib import Path

SOLUTIONS = Path(__file__).parent
OWN = "                own = answers_of(part)\n"
DRAW = '                draw(model, end, [data[i]["prompt"] for i, _ in part], own)\n'
SOFT = "--draws 8 --branches 8"
FORKS = {  # method: what it is a fork of, {what is replaced: by what}, its FLAGS. A solution replaces a whole function.
    "reverse": ("train_soft.py", {"loss": "reverse.py"}, SOFT),
    "all": (
        "train_soft.py",
        {"tree.quantile_leaves(rng.random(draws))": "range(len(tree.probs))", '"weight": 1': '"weight": tree.probs[leaf]'},
        "--limit 72 --epochs 1 --batch 4 --accumulate 4 --draws 1001 --branches 1001",
    ),
    "few": ("train_soft.py", {}, "--limit 72 --epochs 1 --batch 4"),
    "exact": ("train_soft.py", {"prepare": "exact.py"}, SOFT),
    "smooth": ("train_hard.py", {'reduction="none"': 'reduction="none", label_smoothing=0.1'}, "--branches 16"),
    "onpolicy": ("train_soft.py", {"prepare": "onpolicy.py", OWN: OWN + DRAW}, SOFT),
}  # fmt: skip


def fork(name: str) -> str:
    """The source of a fork."""
    base, replaced, _ = FORKS[name]
    source = (SOLUTIONS.parents[1] / base).read_text()
    for old, new in replaced.items():
        if new.endswith(".py"):
            (node,) = [
                node for node in ast.parse(source).body if getattr(node, "name", None) == old
            ]
            old, new = (
                ast.get_source_segment(source, node),
                (SOLUTIONS / new).read_text().split('"""', 2)[2].strip(),
            )
        assert source.count(old) == 1, old
        source = source.replace(old, new)
    return source


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="folder for the train_*.py: that of the Makefile")
    out = parser.parse_args().out
    for name in FORKS:
        (out / f"train_{name}.py").write_text(fork(name))
    flags = " ".join(f'FLAGS_{name}="{flags}"' for name, (*_, flags) in FORKS.items())
    print(f'make reproduce AXES=numbers METHODS="soft hard {" ".join(FORKS)}" {flags}')
