"""Comparison with published models: the prompts, the figures by hand, the table, the picture."""

import sys

import numpy as np
import pytest
from conftest import ROOT, TINY, call, complaint

sys.path.insert(0, str(ROOT / "tests" / "extras"))

import figures
import published

import sample
from distributions import (
    FAMILIES,
    distribution,
    is_discrete,
    make_rows,
    read_prompts,
    read_rows,
    to_jsonl,
    write_text,
)

PERFECT = "a perfect sampler"
NEEDS_EXTRAS = "needs requirements-extras.txt"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """The bundled model's answers to the published prompts, by the two commands of a user."""
    folder = tmp_path_factory.mktemp("drawn")
    asked, out = folder / "asked.jsonl", folder / "base.jsonl"
    call(published, "prompts", "--out", asked)
    flags = ("--model", TINY, "--n", 20, "--paths", 4, "--out", out)
    call(sample, "numbers", "--prompts", asked, *flags)
    return out


@pytest.fixture
def crafted(drawn, tmp_path):
    """A function that writes these rows again, with other draws and entries; returns the file."""

    def craft(method, draws, **changes):
        rows = [
            row | {"method": method, "draws": draws(row)} | changes for row in read_rows([drawn])
        ]
        write_text(tmp_path / f"{method}.jsonl", to_jsonl(rows))
        return tmp_path / f"{method}.jsonl"

    return craft


@pytest.fixture
def compared(tmp_path, capsys, monkeypatch):
    """A function that compares files.

    It returns the table's cells by model and column, the paragraphs below the table, and the
    picture's panel.
    """
    pytest.importorskip("matplotlib", reason=NEEDS_EXTRAS)
    drawn_figures, picture = [], published.picture

    def keep_picture(*args):
        drawn_figures.append(picture(*args))
        return drawn_figures[-1]

    monkeypatch.setattr(published, "picture", keep_picture)

    def run_compare(*files):
        out = tmp_path / "out"
        capsys.readouterr()
        call(published, "compare", *files, "--out", out)
        text = (out / "published.md").read_text()
        assert capsys.readouterr().out == text
        assert sorted(path.name for path in out.iterdir()) == ["published.md", "published.png"]

        table, *below = text.rstrip().split("\n\n")
        heading, _, *lines = [cells_of(line) for line in table.splitlines()]
        rows = {line[0]: dict(zip(heading[1:], line[1:], strict=True)) for line in lines}
        return rows, below, drawn_figures[-1].axes[0]

    return run_compare


def cells_of(line: str) -> list[str]:
    """The cells of a line of a Markdown table."""
    return [cell.strip() for cell in line.strip("|").split("|")]


def printed(row, value) -> str:
    return str(int(value)) if is_discrete(row) else f"{value:.5f}"


def quantiles(row, n=1000) -> list[str]:
    """Draws that match the target as well as n draws can."""
    values = distribution(row).ppf((np.arange(n) + 0.5) / n)
    return [printed(row, value) for value in values]


def medians(row, n=50) -> list[str]:
    return [printed(row, distribution(row).median())] * n


def no_numbers(row) -> list[str]:
    return ["no number"] * 20


def test_help_is_the_docstring_and_a_wrong_option_is_a_one_line_error(capsys):
    with pytest.raises(SystemExit) as ending:
        call(published, "--help")
    assert ending.value.code == 0
    assert published.__doc__.strip() in capsys.readouterr().out
    assert "--help lists the options" in complaint(published, "prompts", "--nonsense", "1")


# --------------------------------------------------------------------------- the prompts


def test_the_prompts_are_the_published_distributions_in_the_kits_words(drawn):
    asked = read_prompts([drawn.with_name("asked.jsonl")])
    facts = read_rows([published.FACTS])
    assert [list(row) for row in asked] == [list(make_rows("ood")[0])] * 15
    prompt_of = {str((row["family"], row["params"])): row["prompt"] for row in asked}
    listed = dict.fromkeys(str((fact["family"], fact["params"])) for fact in facts)
    assert list(prompt_of) == list(listed)
    assert len(facts) == len({(fact["model"], fact["family"]) for fact in facts}) == 11 * 15

    wording = (
        "Generate exactly ONE random number from a {} distribution with parameters {}. "
        "Output ONLY the number."
    )
    assert asked[0]["id"] == "published-bernoulli-000"
    assert asked[0]["prompt"] == wording.format("Bernoulli", "p=0.7")
    assert wording.format("Weibull", "k=1.5, lambda=1") in [row["prompt"] for row in asked]

    # Where the training grid has the same distribution, the prompt is the same, too.
    trained = {str((row["family"], row["params"])): row["prompt"] for row in make_rows("train")}
    shared = set(trained) & set(prompt_of)
    assert shared and all(trained[key] == prompt_of[key] for key in shared)


def test_the_prompts_are_the_same_every_time(drawn, tmp_path):
    call(published, "prompts", "--out", tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_bytes() == drawn.with_name("asked.jsonl").read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["again.jsonl"]


# --------------------------------------------------------------------------- the figures


def test_published_figures_are_normalized_as_by_hand(tmp_path, monkeypatch):
    normal, coin = ("gaussian", {"mu": 0, "sigma": 1}), ("bernoulli", {"p": 0.7})
    tosses = ("binomial", {"n": 10, "p": 0.5})
    figures_by_hand = [
        (normal, np.sqrt(2 / np.pi), 1),  # E|X| of a standard normal
        (normal, 0.1, 0.1253),
        (coin, 0.3, 1),
        (coin, 0.15, 0.5),
        (tosses, 10 * 126 / 1024, 1),  # E|X - 5| = 10 * C(9, 4) / 2^10
    ]
    facts = [
        {"model": "M", "family": family, "params": params, "w1": w1, "n": i}
        for i, ((family, params), w1, _) in enumerate(figures_by_hand)
    ]
    write_text(tmp_path / "facts.jsonl", to_jsonl(facts))
    monkeypatch.setattr(published, "FACTS", tmp_path / "facts.jsonl")

    (sampler,) = published.published_samplers()
    expected = [normalized for _, _, normalized in figures_by_hand]
    # The canonical outputs lack a little of a normal's tails.
    assert sampler.w1[:2] == pytest.approx(expected[:2], rel=2e-3)
    assert sampler.w1[2:] == pytest.approx(expected[2:])
    assert sampler.draws == [0, 1, 2, 3, 4]
    assert (sampler.name, sampler.gap, sampler.valid) == ("M", None, None)


def test_models_are_ranked_and_yours_are_in_bold(drawn, crafted, compared):
    table, _, _ = compared(drawn, crafted("truth", quantiles), crafted("middle", medians))
    base, truth, middle = "**tiny, base**", "**tiny, truth**", "**tiny, middle**"
    facts = read_rows([published.FACTS])
    others = {fact["model"] for fact in facts}
    names = list(table)
    assert set(names) == {PERFECT, base, truth, middle, *others} and len(names) == 11 + 3 + 1

    w1 = [float(cells["norm. W1"].replace("∞", "inf")) for cells in table.values()]
    assert names[-2:] == [truth, PERFECT]
    assert w1[:-1] == sorted(w1[:-1], reverse=True)

    columns = ["norm. W1", "of 7 new", "above 1, of 15", "draws", "CDF gap", "valid"]
    assert list(table[middle]) == columns
    *cells, gap, valid = table[middle].values()
    assert (*cells, valid) == ("1.00", "1.00", "0", "50", "1.00")
    assert 0.5 <= float(gap) < 0.6  # about half of the target is on either side

    assert float(table[truth]["norm. W1"]) < 0.02
    assert table[truth]["draws"] == table[PERFECT]["draws"] == "1000"
    assert 0.01 < float(table[PERFECT]["norm. W1"]) < 0.1
    assert table[PERFECT]["above 1, of 15"] == "0" and table[PERFECT]["valid"] == "1.00"
    assert table[base]["draws"] == "20"

    draws = [fact["n"] for fact in facts if fact["model"] == "Qwen3"]
    assert table["Qwen3"]["draws"] == f"{min(draws)}–{max(draws)}"
    assert table["GPT-4o"]["draws"] == "1000"
    assert all(table[model]["CDF gap"] == table[model]["valid"] == "–" for model in others)
    (qwen,) = (one for one in published.published_samplers() if one.name == "Qwen3")
    above = sum(round(value, 2) > 1 for value in qwen.w1)
    assert table["Qwen3"]["above 1, of 15"] == str(above) and above > 7  # its median is above 1


def test_a_method_without_a_valid_draw_is_infinite_and_drawn(crafted, compared):
    def half_silent(row):
        return no_numbers(row) if row["family"] == "gamma" else medians(row)

    table, _, panel = compared(crafted("half", half_silent), crafted("silent", no_numbers))
    assert list(table)[0] == "**tiny, silent**"
    assert list(table["**tiny, silent**"].values()) == ["∞", "∞", "15", "20", "1.00", "0.00"]
    assert list(table["**tiny, half**"].values())[:4] == ["1.00", "1.00", "1", "20–50"]
    assert table["**tiny, half**"]["valid"] == "0.93"  # 14 of 15

    _, *marks = panel.get_lines()
    assert set(marks[0].get_xdata()) == set(marks[1].get_xdata()) == {figures.W1_LIMIT}


def test_the_picture_has_fifteen_dots_and_a_bar_for_each_model(crafted, compared):
    table, _, panel = compared(crafted("soft", medians), crafted("silent", no_numbers))
    names = [label.get_text() for label in panel.get_yticklabels()]
    assert names == [name.strip("*") for name in table] and panel.get_xscale() == "log"
    top, bottom = panel.transData.transform([(1, 0), (1, len(names) - 1)])[:, 1]
    assert top > bottom  # the worst is on top

    median_line, *marks = panel.get_lines()
    assert list(median_line.get_xdata()) == [1, 1]
    assert [len(mark.get_xdata()) for mark in marks] == [15, 1] * len(names)
    assert [set(mark.get_ydata()) for mark in marks] == [{i // 2} for i in range(2 * len(names))]
    low, high = panel.get_xlim()
    assert all(low <= x <= high for mark in marks for x in mark.get_xdata())

    yours = {style.color for style in figures.STYLES}
    for i, name in enumerate(table):
        colors = {marks[2 * i].get_color(), marks[2 * i + 1].get_color()}
        assert len(colors) == 1
        if name == PERFECT:
            assert colors == {"black"}
        elif "*" in name:
            assert colors <= yours
        else:
            assert colors == {"#777777"}


def test_a_perfect_score_is_on_the_logarithmic_axis(crafted, compared):
    _, _, panel = compared(crafted("truth", quantiles))
    values = np.concatenate([mark.get_xdata() for mark in panel.get_lines()[1:]])
    assert values.min() == pytest.approx(0.01)  # W1 is 0 for Bernoulli
    assert 0.001 < panel.get_xlim()[0] <= 0.01


def trained_on(below: list[str]) -> tuple[str, str]:
    """The two lists of the paragraph on what training has in common with the distributions."""
    held_out, same = below[0].split(" In the training grid with exactly these parameters: ")
    return held_out.removeprefix("Held-out families: ").rstrip("."), same.rstrip(".")


def test_the_note_on_training_follows_the_training_grid(drawn, compared, monkeypatch):
    held_out, same = trained_on(compared(drawn)[1])
    assert held_out == "Bernoulli, Poisson, Weibull"
    grid = [(row["family"], row["params"]) for row in make_rows("train")]
    shared = [row for row in read_rows([drawn]) if (row["family"], row["params"]) in grid]
    names = [FAMILIES[row["family"]].name for row in shared]
    assert same.split(", ") == names and "Gaussian" in names and "Uniform" not in names

    for row in shared:  # with a training grid without these families
        family = row["family"]
        monkeypatch.setitem(FAMILIES, family, FAMILIES[family]._replace(train=()))
    held_out, same = trained_on(compared(drawn)[1])
    assert "Bernoulli" in held_out and "Gaussian" in held_out and "Uniform" not in held_out
    assert same == "none"


def test_distributions_outside_the_training_grid_have_a_median_of_their_own(crafted, compared):
    """Perfect on the eight in the training grid, no better than the median on the other seven."""
    grid = {row["prompt"] for row in make_rows("train")}

    def memorized(row):
        return quantiles(row) if row["prompt"] in grid else medians(row)

    table, _, _ = compared(crafted("grid", memorized))
    assert float(table["**tiny, grid**"]["norm. W1"]) < 0.5
    assert table["**tiny, grid**"]["of 7 new"] == "1.00"


def test_several_models_and_methods_share_a_table(drawn, crafted, compared):
    soft, mine = crafted("soft", quantiles), crafted("mine", medians, model="hub/Large-7B")
    table, _, _ = compared(drawn, soft, mine)
    yours = {name for name in table if "*" in name}
    assert yours == {"**tiny, base**", "**tiny, soft**", "**Large-7B, mine**"}


# ---------------------------------------------------------------------------- the errors


def test_other_prompts_are_a_one_line_error(drawn, crafted, tmp_path):
    pytest.importorskip("matplotlib", reason=NEEDS_EXTRAS)
    rows, out = read_rows([drawn]), tmp_path / "out"
    few = crafted("few", medians)
    write_text(few, to_jsonl(read_rows([few])[1:]))
    unlike = crafted("unlike", medians, model="other", prompt="Name a number.")
    questions = tmp_path / "open.jsonl"
    renamed = [row | {"id": f"open-{i}", "axis": "open"} for i, row in enumerate(rows)]
    write_text(questions, to_jsonl(renamed))

    for files, named in [([drawn, few], "few"), ([drawn, unlike], "unlike"), ([questions], "base")]:
        line = complaint(published, "compare", *files, "--out", out)
        assert f", {named}: these are not answers to the published prompts" in line

    line = complaint(published, "compare", drawn, drawn, "--out", out)
    assert "is already in" in line
    assert not out.exists()


def test_without_matplotlib_there_is_a_one_line_error(drawn, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    line = complaint(published, "compare", drawn, "--out", tmp_path / "out")
    assert "pip install -r requirements-extras.txt" in line


def test_the_committed_comparison_is_that_of_the_committed_rows(tmp_path):
    pytest.importorskip("matplotlib", reason=NEEDS_EXTRAS)
    results = ROOT / "tests" / "results"
    call(published, "compare", *sorted(results.glob("*/*/published.jsonl")), "--out", tmp_path)
    committed = (results / "published.md").read_text()
    assert (tmp_path / "published.md").read_text() == committed
