"""Write the exercises' objectives as forks of train_soft.py and train_hard.py.

    python tests/solutions/make_forks.py .             # write them
    python tests/solutions/make_forks.py . --remove    # remove them again

The script writes a train_NAME.py for each entry of FORKS to the given folder, which must be the one
that contains the Makefile. Then it prints the settings with which `make reproduce` trains, on the
bundled model, every trainer in that folder: soft, hard, the forks and your own. (It skips symbolic
links, such as train_mixed.py of the seventh exercise: they need flags of their own.) `make board`
runs this script, and `make reproduce` with those settings.
"""

import ast
import shlex
import sys
from pathlib import Path
from typing import NamedTuple

SOLUTIONS = Path(__file__).parent
ROOT = SOLUTIONS.parents[1]
sys.path.insert(0, str(ROOT))
import distributions


class Fork(NamedTuple):
    """How a fork differs from the trainer that it is a copy of."""

    base: str
    idea: str  # one sentence, which becomes its docstring
    flags: str  # training options
    functions: dict[str, str] = {}  # name of a function -> the solution that replaces it
    pieces: dict[str, str] = {}  # piece of code -> what replaces it


SOFT_FLAGS = "--draws 8 --branches 8"
FEW_FLAGS = "--limit 72 --epochs 1 --batch 4"
FORKS = {
    "reverse": Fork(
        "train_soft.py",
        "Train with KL(model ‖ target), the opposite direction.",
        SOFT_FLAGS,
        functions={"loss": "reverse.py"},
    ),
    "all": Fork(
        "train_soft.py",
        "Train on every leaf of the trie, weighted by its probability, instead of a sampled one.",
        # A part of a step is one prompt, because the prompts have different numbers of leaves.
        f"{FEW_FLAGS} --accumulate 4 --draws 1001 --branches 1001",
        pieces={
            "tree.quantile_leaves(rng.random(draws))": "range(len(tree.probs))",
            '"weight": 1': '"weight": tree.probs[leaf]',
        },
    ),
    "few": Fork(
        "train_soft.py",
        "Soft with one answer to each of the 72 prompts that `all` sees.",
        FEW_FLAGS,
    ),
    "exact": Fork(
        "train_soft.py",
        "Take the targets from all numbers instead of 1001 of them.",
        SOFT_FLAGS,
        functions={"prepare": "exact.py"},
    ),
    "smooth": Fork(
        "train_hard.py",
        "Hard with label smoothing of 0.1.",
        "--branches 16",
        pieces={'reduction="none"': 'reduction="none", label_smoothing=0.1'},
    ),
    "onpolicy": Fork(
        "train_soft.py",
        "Let the model draw the paths, and take the targets along them from the trie.",
        SOFT_FLAGS,
        functions={"prepare": "onpolicy.py"},
        pieces={
            "            answers = answers_of(part)\n": """\
            answers = answers_of(part)
            prompts = [examples[unit.prompt]["prompt"] for unit in part]
            draw(model, end, prompts, answers)
"""
        },
    ),
    "batch8": Fork(
        "train_soft.py",
        "Take four times as many steps, of eight prompts each.",
        f"{SOFT_FLAGS} --batch 8",
    ),
    "early": Fork(
        "train_soft.py",
        "Weight each token of an answer half as much as the one before it.",
        SOFT_FLAGS,
        pieces={
            # The floor is left out, because it is that of an unweighted mean.
            '"weight": 1, "floor": floor': '"weight": 1',
            "    return kl.sum(1) / real.sum(1)\n": """\
    share = real * 0.5 ** torch.arange(real.shape[1], device=real.device)
    return (kl * share).sum(1) / share.sum(1)
""",
        },
    ),
    "mlp": Fork(
        "train_soft.py",
        "Train LoRA on the MLP layers too, in steps of eight prompts.",
        f"{SOFT_FLAGS} --batch 8",
        pieces={
            'target_modules=["q_proj", "k_proj", "v_proj", "o_proj"]': 'target_modules="all-linear"'
        },
    ),
}


def replace_piece(source: str, old: str, new: str) -> str:
    """Replace a piece of code. Raises InputError unless it occurs exactly once."""
    count = source.count(old)
    if count != 1:
        raise distributions.InputError(
            f"the piece {old.strip()!r} must occur exactly once in the source of the trainer, "
            f"but occurs {count} times"
        )
    return source.replace(old, new)


def replace_function(source: str, name: str, solution: str) -> str:
    """Replace a function with all of a solution's code, imports included, except its docstring."""
    found = [node for node in ast.parse(source).body if getattr(node, "name", None) == name]
    if len(found) != 1:
        raise distributions.InputError(
            f"the function {name} must be defined exactly once in the source of the trainer, "
            f"but is defined {len(found)} times"
        )
    solution_lines = solution.splitlines()
    docstring = ast.parse(solution).body[0]
    code = "\n".join(solution_lines[docstring.end_lineno :]).strip()
    lines = source.splitlines()
    first, last = found[0].lineno - 1, found[0].end_lineno
    return "\n".join([*lines[:first], code, *lines[last:]]) + "\n"


def replace_docstring(source: str, idea: str, base: str) -> str:
    """Replace a trainer's docstring with a fork's idea and its origin."""
    docstring = ast.parse(source).body[0]
    code = source.splitlines(True)[docstring.end_lineno :]
    return f'"""{idea}\n\nA fork of {base}, written by make_forks.py.\n"""\n' + "".join(code)


def fork(name: str) -> str:
    """The source of a fork. Raises InputError if its trainer lacks a piece that it replaces."""
    spec = FORKS[name]
    source = (ROOT / spec.base).read_text("utf-8")
    try:
        for old, new in spec.pieces.items():
            source = replace_piece(source, old, new)
        for function, solution in spec.functions.items():
            source = replace_function(source, function, (SOLUTIONS / solution).read_text("utf-8"))
    except distributions.InputError as error:
        raise distributions.InputError(f"{name}, a fork of {spec.base}: {error}") from None
    return replace_docstring(source, spec.idea, spec.base)


def settings(names: list[str]) -> str:
    """The variables with which the Makefile trains the methods, quoted for a shell.

    Your own trainers get soft's flags.

    >>> settings(["soft", "mine"])
    "'METHODS=soft mine' 'FLAGS_mine=--draws 8 --branches 8'"
    """
    words = [f"METHODS={' '.join(names)}"]
    for name in names:
        if name not in ("soft", "hard"):  # the Makefile sets the flags of these
            flags = FORKS[name].flags if name in FORKS else SOFT_FLAGS
            words.append(f"FLAGS_{name}={flags}")
    return shlex.join(words)


def main() -> None:
    parser = distributions.Parser(description=__doc__)
    parser.add_argument("out", type=Path, help="folder of the Makefile")
    parser.add_argument("--remove", action="store_true", help="remove the forks that were written")
    args = parser.parse_args()

    sources = {args.out / f"train_{name}.py": fork(name) for name in FORKS}
    if args.remove:
        for file, source in sources.items():
            if file.exists() and file.read_text("utf-8") == source:
                file.unlink()
            elif file.exists():
                print(f"kept {file}, which differs from the solution")
        return

    for file, source in sources.items():  # all of them are written, or none
        if file.exists() and file.read_text("utf-8") != source:
            raise distributions.InputError(
                f"{file} exists and differs from the solution; rename it, or remove it"
            )
    for file, source in sources.items():
        file.write_text(source, "utf-8")

    files = [file for file in args.out.glob("train_*.py") if not file.is_symlink()]
    found = sorted(file.stem.removeprefix("train_") for file in files)
    print(settings(list(dict.fromkeys(["soft", "hard", *FORKS, *found]))))


if __name__ == "__main__":
    distributions.run(main)
