"""Draws beside published ones: the prompts, the figures normalized by hand, the table's order, what is drawn."""

import sys

import numpy as np
import pytest
from conftest import ROOT, TINY, call, complaint

sys.path.insert(0, str(ROOT / "tests" / "extras"))

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


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """The published prompts and the embedded model's answers to them, by the real chain."""
    folder = tmp_path_factory.mktemp("drawn")
    call(published, "prompts", "--out", folder / "asked.jsonl")
    flags = ("--model", TINY, "--n", 20, "--paths", 4, "--out", folder / "base.jsonl")
    call(sample, "numbers", "--prompts", folder / "asked.jsonl", *flags)
    return folder / "base.jsonl"


@pytest.fixture
def crafted(drawn, tmp_path):
    """A function that writes the same rows with the draws and other entries that it is given, and returns the file."""

    def craft(method, draws, **changes):
        rows = [
            row | {"method": method, "draws": draws(row)} | changes for row in read_rows([drawn])
        ]
        write_text(tmp_path / f"{method}.jsonl", to_jsonl(rows))
        return tmp_path / f"{method}.jsonl"

    return craft


@pytest.fixture
def compared(tmp_path, capsys, monkeypatch):
    """A function that compares files; it returns the table's cells by model, the lines below it, and the panel."""
    pytest.importorskip("matplotlib", reason="needs requirements-extras.txt")
    figures, picture = [], published.picture
    monkeypatch.setattr(
        published, "picture", lambda *args: figures.append(picture(*args)) or figures[-1]
    )

    def run_compare(*files):
        capsys.readouterr()
        call(published, "compare", *files, "--out", tmp_path / "out")
        text = (tmp_path / "out" / "published.md").read_text()
        assert capsys.readouterr().out == text
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
            "published.md",
            "published.png",
        ]
        table, *below = text.rstrip().split("\n\n")
        heading, _, *rows = [
            [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()
        ]
        return (
            {row[0]: dict(zip(heading[1:], row[1:], strict=True)) for row in rows},
            below,
            figures[-1].axes[0],
        )

    return run_compare


def printed(row, value) -> str:
    return str(int(value)) if is_discrete(row) else f"{value:.5f}"


def quantiles(row, n=1000) -> list[str]:
    return [printed(row, value) for value in distribution(row).ppf((np.arange(n) + 0.5) / n)]


def medians(row, n=50) -> list[str]:
    return [printed(row, distribution(row).median())] * n


def test_help_is_the_docstring_and_a_wrong_option_one_line(capsys):
    with pytest.raises(SystemExit) as ending:
        call(published, "--help")
    assert ending.value.code == 0 and published.__doc__.strip() in capsys.readouterr().out
    assert "--help lists the options" in complaint(published, "prompts", "--nonsense", "1")


# ------------------------------------------------------------------------------------------------- the prompts


def test_the_prompts_are_the_published_distributions_in_the_kits_words(drawn, tmp_path):
    asked, facts = read_prompts([drawn.with_name("asked.jsonl")]), read_rows([published.FACTS])
    assert [list(row) for row in asked] == [list(make_rows("ood")[0])] * 15
    of = {str((row["family"], row["params"])): row for row in asked}
    assert list(of) == list(dict.fromkeys(str((fact["family"], fact["params"])) for fact in facts))
    assert len(facts) == len({(fact["model"], fact["family"]) for fact in facts}) == 11 * 15

    one = "Generate exactly ONE random number from a {} distribution with parameters {}. Output ONLY the number."
    assert asked[0]["id"] == "published-bernoulli-000" and asked[0]["prompt"] == one.format(
        "Bernoulli", "p=0.7"
    )
    assert one.format("Weibull", "k=1.5, lambda=1") in [row["prompt"] for row in asked]
    met = [row for row in make_rows("train") if str((row["family"], row["params"])) in of]
    assert met and all(
        row["prompt"] == of[str((row["family"], row["params"]))]["prompt"] for row in met
    )

    call(published, "prompts", "--out", tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_bytes() == drawn.with_name("asked.jsonl").read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["again.jsonl"]


# ------------------------------------------------------------------------------------------------- the figures


def test_published_figures_are_normalized_as_by_hand(tmp_path, monkeypatch):
    normal, coin = ("gaussian", {"mu": 0, "sigma": 1}), ("bernoulli", {"p": 0.7})
    tosses = ("binomial", {"n": 10, "p": 0.5})  # E|X - 5| = 10 * C(9, 4) / 2^10
    w1 = [
        (normal, np.sqrt(2 / np.pi)),
        (normal, 0.1),
        (coin, 0.3),
        (coin, 0.15),
        (tosses, 10 * 126 / 1024),
    ]
    facts = [
        {"model": "M", "family": of[0], "params": of[1], "w1": x, "n": i}
        for i, (of, x) in enumerate(w1)
    ]
    write_text(tmp_path / "facts.jsonl", to_jsonl(facts))
    monkeypatch.setattr(published, "FACTS", tmp_path / "facts.jsonl")
    (one,) = published.published()
    assert one.w1[:2] == pytest.approx(
        [1, 0.1253], rel=2e-3
    )  # the canonical outputs lack a little of the tails
    assert one.w1[2:] == pytest.approx([1, 0.5, 1])
    assert (one.name, one.draws, one.gap, one.valid) == ("M", [0, 1, 2, 3, 4], None, None)


def test_models_are_ranked_and_ours_are_marked(drawn, crafted, compared):
    truth, middle = crafted("truth", quantiles), crafted("middle", medians)
    bold = {"base": "**tiny, base**", "truth": "**tiny, truth**", "middle": "**tiny, middle**"}
    table, _, _ = compared(drawn, truth, middle)
    names, w1 = list(table), [float(row["norm. W1"].replace("∞", "inf")) for row in table.values()]
    others = {fact["model"] for fact in read_rows([published.FACTS])}
    assert set(names) == {PERFECT, *bold.values(), *others} and len(names) == 11 + 3 + 1
    assert (
        names[-1] == PERFECT
        and w1[:-1] == sorted(w1[:-1], reverse=True)
        and names[-2] == bold["truth"]
    )

    always, true, perfect = table[bold["middle"]], table[bold["truth"]], table[PERFECT]
    assert list(always) == ["norm. W1", "of 7 new", "above 1, of 15", "draws", "CDF gap", "valid"]
    assert [*list(always.values())[:4], always["valid"]] == ["1.00", "1.00", "0", "50", "1.00"]
    assert 0.5 <= float(always["CDF gap"]) < 0.6  # about half of the target is on either side
    assert float(true["norm. W1"]) < 0.02 and true["draws"] == perfect["draws"] == "1000"
    assert (
        0.01 < float(perfect["norm. W1"]) < 0.1
        and perfect["above 1, of 15"] == "0"
        and perfect["valid"] == "1.00"
    )
    assert table[bold["base"]]["draws"] == "20"

    qwen = [fact for fact in read_rows([published.FACTS]) if fact["model"] == "Qwen3"]
    draws = [fact["n"] for fact in qwen]
    assert (
        table["Qwen3"]["draws"] == f"{min(draws)}–{max(draws)}"
        and table["GPT-4o"]["draws"] == "1000"
    )
    assert all(table[model]["CDF gap"] == table[model]["valid"] == "–" for model in others)
    above = sum(
        round(x, 2) > 1 for one in published.published() if one.name == "Qwen3" for x in one.w1
    )
    assert table["Qwen3"]["above 1, of 15"] == str(above) and above > 7  # its median is above 1


def test_a_method_without_a_valid_draw_is_infinite_and_drawn(crafted, compared):
    silent = crafted("silent", lambda row: ["no number"] * 20)
    half = crafted(
        "half", lambda row: ["no number"] * 20 if row["family"] == "gamma" else medians(row)
    )
    table, _, panel = compared(half, silent)
    assert list(table)[0] == "**tiny, silent**"
    assert list(table["**tiny, silent**"].values()) == ["∞", "∞", "15", "20", "1.00", "0.00"]
    assert list(table["**tiny, half**"].values())[:4] == ["1.00", "1.00", "1", "20–50"]
    assert table["**tiny, half**"]["valid"] == "0.93"  # 14 of 15

    names = [label.get_text() for label in panel.get_yticklabels()]
    assert names == [name.strip("*") for name in table] and panel.get_xscale() == "log"
    top, bottom = panel.transData.transform([(1, 0), (1, len(names) - 1)])[:, 1]
    assert top > bottom  # the worst is above
    line, *marks = panel.get_lines()
    assert list(line.get_xdata()) == [1, 1]
    assert [len(mark.get_xdata()) for mark in marks] == [15, 1] * len(names)
    assert [set(mark.get_ydata()) for mark in marks] == [{i // 2} for i in range(2 * len(names))]
    low, high = panel.get_xlim()
    assert all(low <= x <= high for mark in marks for x in mark.get_xdata())
    assert set(marks[0].get_xdata()) == set(marks[1].get_xdata()) == {published.MOST}
    for i, name in enumerate(table):
        colors = {marks[2 * i].get_color(), marks[2 * i + 1].get_color()}
        ours = {ink[0] for ink in published.INKS}
        assert len(colors) == 1 and colors <= (
            ours if "*" in name else {"black"} if name == PERFECT else {"#777777"}
        )


def test_a_perfect_score_is_on_the_logarithmic_axis(crafted, compared):
    _, _, panel = compared(crafted("truth", quantiles))
    values = np.concatenate([mark.get_xdata() for mark in panel.get_lines()[1:]])
    assert (
        values.min() == pytest.approx(0.01) and 0.001 < panel.get_xlim()[0] <= 0.01
    )  # Bernoulli's W1 is 0


def test_what_was_trained_on_is_computed(drawn, compared, monkeypatch):
    new, same = (
        compared(drawn)[1][0]
        .rstrip(".")
        .split(". In the training grid with exactly these parameters: ")
    )
    assert new == "Of a family never trained on: Bernoulli, Poisson, Weibull"
    grid = [(row["family"], row["params"]) for row in make_rows("train")]
    met = [
        FAMILIES[row["family"]].name
        for row in read_rows([drawn])
        if (row["family"], row["params"]) in grid
    ]
    assert same.split(", ") == met and "Gaussian" in met and "Uniform" not in met

    for family in [family for family in FAMILIES if FAMILIES[family].name in met]:
        monkeypatch.setitem(FAMILIES, family, FAMILIES[family]._replace(train=()))
    new, same = (
        compared(drawn)[1][0]
        .rstrip(".")
        .split(". In the training grid with exactly these parameters: ")
    )
    assert "Bernoulli" in new and "Gaussian" in new and "Uniform" not in new and same == "none"


def test_what_was_not_trained_on_has_a_median_of_its_own(crafted, compared):
    """Perfect on the eight that are in the training grid, no better than the median on the seven others."""
    grid = {row["prompt"] for row in make_rows("train")}
    table, _, _ = compared(
        crafted("grid", lambda row: (quantiles if row["prompt"] in grid else medians)(row))
    )
    assert (
        float(table["**tiny, grid**"]["norm. W1"]) < 0.5
        and table["**tiny, grid**"]["of 7 new"] == "1.00"
    )


def test_two_models_of_several_methods_stand_in_one_table(drawn, crafted, compared):
    table, _, _ = compared(
        drawn, crafted("soft", quantiles), crafted("mine", medians, model="hub/Large-7B")
    )
    assert {name for name in table if "*" in name} == {
        "**tiny, base**",
        "**tiny, soft**",
        "**Large-7B, mine**",
    }


# ------------------------------------------------------------------------------------------------- what is refused


def test_other_prompts_are_one_line(drawn, crafted, tmp_path):
    pytest.importorskip("matplotlib", reason="needs requirements-extras.txt")
    rows = read_rows([drawn])
    few, open_rows = crafted("few", medians), crafted("open", medians)
    write_text(few, to_jsonl(read_rows([few])[1:]))
    write_text(
        open_rows,
        to_jsonl([row | {"id": f"open-{i}", "axis": "open"} for i, row in enumerate(rows)]),
    )
    unlike = crafted("unlike", medians, model="other", prompt="Name a number.")
    for file, named in ((few, "not of few"), (unlike, "not of unlike"), (open_rows, "not of base")):
        line = complaint(
            published,
            "compare",
            *([] if file is open_rows else [drawn]),
            file,
            "--out",
            tmp_path / "out",
        )
        assert "was asked of " in line and named in line
    assert "it may occur only once" in complaint(
        published, "compare", drawn, drawn, "--out", tmp_path / "out"
    )
    assert not (tmp_path / "out").exists()


def test_without_matplotlib_there_is_one_line(drawn, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    line = complaint(published, "compare", drawn, "--out", tmp_path / "out")
    assert "pip install -r requirements-extras.txt" in line
