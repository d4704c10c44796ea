"""ask.py: what it draws, counts and prints."""

import doctest
import io
import re
import shutil
import sys

import numpy as np
import pytest
from conftest import ROOT, TINY, call, complaint

sys.path.insert(0, str(ROOT / "tests" / "extras"))

import ask

import distributions
import metrics
import sample
import trie

DAY = "Name a random day of the week."
POISSON = distributions.FAMILIES["poisson"].prompt({"lambda": 4})


@pytest.fixture
def printed(capsys, monkeypatch):
    """Runs ask.py and returns its lines: in a terminal of so many columns, or else in a pipe."""

    def run(*arguments, columns=None) -> list[str]:
        monkeypatch.setenv("COLUMNS", str(columns or 80))
        monkeypatch.setattr(sys.stdout, "isatty", lambda: columns is not None)
        call(ask, *arguments, "--model", TINY)
        return capsys.readouterr().out.splitlines()

    return run


@pytest.fixture(scope="module")
def drawn(adapters) -> dict[str, dict[str, list[str]]]:
    """Answers of base, hard and soft to a question and to a number prompt."""
    folders = [adapters["hard"], adapters["soft"]]
    return {prompt: ask.draw_answers(TINY, folders, prompt, 20, 0) for prompt in (DAY, POISSON)}


@pytest.fixture
def redrawn(drawn, printed, monkeypatch):
    """Runs ask.py as `printed` does, with answers that are drawn already."""
    monkeypatch.setattr(ask, "draw_answers", lambda name, adapters, prompt, *rest: drawn[prompt])
    return printed


def percentages(lines: list[str]) -> np.ndarray:
    """The shares in the lines of a table, (lines, methods)."""
    shares = []
    for line in lines:
        numbers = re.findall(r"(\d+) %", line)
        if numbers and not line.startswith("valid"):
            shares.append([int(number) for number in numbers])
    return np.array(shares)


# ------------------------------------------------------------------------------------- the draws


def test_each_method_draws_as_if_it_were_loaded_alone(adapters, monkeypatch):
    """Adapters are attached to one base model in turn; none leaves a trace in the next."""
    loaded = []
    load = trie.load
    monkeypatch.setattr(trie, "load", lambda *names: loaded.append(names) or load(*names))
    folders = [adapters["hard"], adapters["soft"]]
    answers = ask.draw_answers(TINY, folders, POISSON, n=40, seed=3)
    assert loaded == [(TINY,)] and list(answers) == ["base", "hard", "soft"]

    uniform = distributions.prompt_rng(3, POISSON).random((40, 32))
    for method, texts in answers.items():
        model, tokenizer, _ = load(TINY, adapters.get(method))
        ends = model.generation_config.eos_token_id
        paths = trie.walk(model, [trie.chat_ids(tokenizer, POISSON)], ends, uniform)
        assert texts == [sample.to_text(tokenizer, path, ends) for path in paths]
    assert answers["base"] != answers["soft"] != answers["hard"] != answers["base"]


def test_an_adapter_of_another_model_is_one_line(adapters, tmp_path):
    shutil.copytree(TINY, tmp_path / "other")
    (tmp_path / "other" / "more.json").write_text("{}")
    run = adapters["soft"].parent
    line = complaint(ask, DAY, "--model", tmp_path / "other", "--run", run)
    assert "does not fit" in line


# -------------------------------------------------------------------------------- open questions


def test_the_answers_of_all_methods_stand_side_by_side(adapters, drawn, printed):
    lines = printed(DAY, "--run", adapters["soft"].parent, "--n", 20)
    assert lines[0] == DAY
    assert lines[1].split() == ["of", "20", "answers", "base", "soft", "hard"]
    assert lines[-1].startswith("different answers")
    answers = drawn[DAY]
    assert lines[-1].split()[2:] == [str(len(set(texts))) for texts in answers.values()]

    shares = percentages(lines)  # of 20 answers, so multiples of 5 %
    assert shares.sum(0).tolist() == [100, 100, 100]
    tuesdays = [100 * texts.count("Tuesday") // 20 for texts in answers.values()]
    assert shares[[line.startswith("Tuesday") for line in lines[2:-1]]].tolist() == [tuesdays]


def test_the_ten_largest_shares_of_any_method_are_kept():
    """Twenty answers that the base model gave once do not hide what a trained model gives."""
    base = ["often"] * 20 + [f"once {number:02d}" for number in range(20)]
    trained = ["rare"] * 10 + ["frequent"] * 20 + ["once 19"] * 10
    table, footer = ask.frequent_answers({"base": base, "mine": trained})
    once = [f"once {number:02d}" for number in range(6)]
    assert list(table) == ["often", "once 19", *once, "frequent", "rare", "(other answers)"]
    assert table["often"] == [0.5, 0] and table["frequent"] == [0, 0.5]
    assert table["(other answers)"] == [pytest.approx(13 / 40), 0]
    assert footer == {"different answers": ["21", "3"]}


def test_answers_are_normalized_and_invalid_ones_are_grouped():
    base = ["Monday", ' "Monday"\n', "**Monday**", "...", "and so on, and so on…"]
    table, footer = ask.frequent_answers({"base": base})
    assert table == {"Monday": [0.6], "(no valid answer)": [0.4]}
    assert footer == {"different answers": ["1"]}
    table, footer = ask.frequent_answers({"base": ["", "!"]})
    assert table == {"(no valid answer)": [1.0]} and footer == {"different answers": ["0"]}


# -------------------------------------------------------------------------------- number prompts


def test_a_number_prompt_is_a_histogram_beside_its_target(adapters, drawn, printed):
    lines = printed(POISSON, "--run", adapters["soft"].parent, "--n", 20)
    assert [line.split() for line in lines if line.startswith("of 20")] == [
        ["of", "20", "answers", "target", "base", "soft", "hard"]
    ]
    shares = percentages(lines)
    assert shares[:, 1:].sum(0).tolist() == [100, 100, 100]
    assert abs(shares[:, 0].sum() - 100) <= len(shares) / 2  # each of them is rounded
    distances, valid = lines[-2:]
    row = ask.parse_number_prompt(POISSON)
    scores = [metrics.score_numbers(row, texts) for texts in drawn[POISSON].values()]
    assert distances.split()[3:] == [f"{score['normalized_w1']:.2f}" for score in scores]
    rates = [f"{100 * score['valid_rate']:.0f}" for score in scores]
    assert valid.replace("%", "").split() == ["valid", "100", *rates]


@pytest.mark.parametrize("split", ["train", "unseen", "ood"])
def test_every_prompt_of_the_kit_is_recognized(split):
    for row in distributions.make_rows(split)[::7]:
        found = ask.parse_number_prompt(row["prompt"])
        assert (found["family"], found["params"]) == (row["family"], row["params"])


@pytest.mark.parametrize(
    "change", [("lambda=4", "lambda=4.0"), ("lambda=4", "mu=4"), ("=4", "=x"), ("only", "")]
)
def test_another_prompt_is_an_open_question(change):
    prompt = POISSON.replace("ONLY", "only") if change[0] == "only" else POISSON
    assert ask.parse_number_prompt(prompt.replace(*change)) is None


@pytest.mark.parametrize("split", ["unseen", "ood"])
def test_bins_cover_the_middle_of_every_target(split):
    """About a dozen bins, from the 1st to the 99th percentile; fewer for a few integers."""
    for row in distributions.make_rows(split):
        discrete = distributions.is_discrete(row)
        low, high = distributions.distribution(row).ppf([0.01, 0.99])
        edges = ask.bin_edges(row)
        assert edges[0] <= low and high <= edges[-1] - discrete
        fewest = min(8, high - low + 1) if discrete else 8
        assert fewest <= len(edges) - 1 <= 17, row["id"]


@pytest.mark.parametrize("family", ["gaussian", "cauchy", "beta", "hypergeometric", "skellam"])
def test_the_target_s_shares_are_those_of_its_draws(family):
    (row,) = (row for row in distributions.make_rows("unseen") if row["family"] == family)
    draws, _ = distributions.sample_outputs(row, 10_000, np.random.default_rng(0), None)
    table, footer = ask.histogram(row, {"base": draws})
    shares = np.array(list(table.values()))
    assert shares.sum(0) == pytest.approx([1, 1])
    assert abs(shares[:, 0] - shares[:, 1]).max() < 0.02  # four standard deviations
    assert footer["valid"] == ["100 %", "100 %"]


def test_a_histogram_by_hand():
    row = {"id": "a", "family": "binomial", "params": {"n": 80, "p": 0.5}, "prompt": ""}
    answers = ["29", "30", "31", "32", "49", "50", "52", "80", "40.5", "heads"]
    table, footer = ask.histogram(row, {"base": answers})
    twos = [f"{low} to {low + 1}" for low in range(30, 52, 2)]
    assert list(table) == ["below 30", *twos, "above 51", "(no valid number)"]
    base = [shares[1] for shares in table.values()]
    assert base == [0.1, 0.2, 0.1, 0, 0, 0, 0, 0, 0, 0, 0.1, 0.1, 0.2, 0.2]
    target = distributions.distribution(row)
    assert table["40 to 41"][0] == pytest.approx(target.pmf([40, 41]).sum())
    assert table["below 30"][0] == pytest.approx(target.cdf(29))
    assert footer["valid"] == ["100 %", "80 %"]


def test_a_histogram_without_a_valid_number():
    table, footer = ask.histogram(ask.parse_number_prompt(POISSON), {"base": ["no", "-1"]})
    assert table["(no valid number)"] == (0, 1) and table["4"][1] == 0
    assert footer["normalized W1"][1] == "inf" and footer["valid"] == ["100 %", "0 %"]


# ----------------------------------------------------------------------------- terminal and pipe


@pytest.mark.parametrize("prompt", [DAY, POISSON])
def test_a_pipe_gets_plain_text(prompt, adapters, redrawn):
    lines = redrawn(prompt, "--run", adapters["soft"].parent)
    assert "\n".join(lines).isascii() and any("###" in line for line in lines)


@pytest.mark.parametrize("columns", [10, 24, 36, 50, 80, 200])
def test_no_line_of_a_terminal_is_broken(columns, adapters, redrawn):
    for prompt in (DAY, POISSON):
        lines = redrawn(prompt, "--run", adapters["soft"].parent, columns=columns)
        assert max(map(len, lines)) <= columns and not any("#" in line for line in lines)
        assert any("█" in line for line in lines) == (columns >= 80)
        if columns >= 50:  # the numbers of all methods
            assert percentages(lines).shape[1] == 3 + (prompt == POISSON)


def test_wide_and_invisible_characters_keep_the_columns_aligned():
    """Chinese characters take two columns, a combining accent takes none, control codes show."""
    answers = ["星期三", "Mie\u0301rcoles", "a\x1b[2Jb", "x" * 90]
    table = {answer: [0.25, 0.5] for answer in answers}
    footer = {"different answers": ["4", "4"]}
    for width in (30, 44, 80):
        lines = ask.lines_of("of 4 answers", ["base", "soft"], table, footer, width, True)
        assert {ask.columns_of(line) for line in lines[1:5]} == {ask.columns_of(lines[0])}
        assert ask.columns_of(lines[0]) <= width and "\x1b" not in "".join(lines)
    assert ask.columns_of("星期三") == 6 and ask.columns_of("e\u0301") == 1


def test_bars_have_one_scale():
    assert ask.bar(1.0, 8, True) == "████████" and ask.bar(0.5, 8, False) == "####    "
    assert ask.bar(0.55, 8, True) == "████▍   " and ask.bar(0, 8, True) == " " * 8
    table = {"a": [0.5, 0.1], "b": [0.25, 0.0]}
    lines = ask.lines_of("", ["base", "soft"], table, {}, 60, False)
    assert [line.count("#") for line in lines] == [0, 25, 10]


def test_what_the_encoding_lacks_is_a_question_mark(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(ask, "draw_answers", lambda *arguments: {"base": ["Zürich"]})
    call(ask, "Name a city.", "--model", TINY)
    stream.flush()
    assert b"Z?rich" in stream.buffer.getvalue() and b"100 %" in stream.buffer.getvalue()


# ----------------------------------------------------------------------------- without an adapter


def test_without_an_adapter_the_base_model_answers_alone(printed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = printed(DAY)
    assert "no adapter in runs/tiny yet" in lines[0] and lines[1] == DAY
    assert lines[2].split() == ["of", "200", "answers", "base"]


def test_the_default_run_is_named_after_the_model(adapters, printed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(adapters["soft"], tmp_path / "runs" / "tiny" / "soft-s1")
    (tmp_path / "runs" / "tiny" / "unfinished").mkdir()
    lines = printed(DAY)
    assert lines[1].split() == ["of", "200", "answers", "base", "soft-s1"]


# --------------------------------------------------------------------------------------- mistakes


def test_help_is_the_docstring_and_a_wrong_option_is_one_line(capsys):
    with pytest.raises(SystemExit) as ending:
        call(ask, "--help")
    assert ending.value.code == 0 and ask.__doc__.strip() in capsys.readouterr().out
    assert "--help lists the options" in complaint(ask, DAY, "--nonsense", "1")


@pytest.mark.parametrize("prompt", ["", " \n"])
def test_an_empty_prompt_is_one_line(prompt):
    assert "the prompt is empty" in complaint(ask, prompt, "--model", "nowhere")


def test_impossible_parameters_are_one_line():
    prompt = POISSON.replace("lambda=4", "lambda=-4")
    assert "poisson" in complaint(ask, prompt, "--model", "nowhere")


def test_examples_in_docstrings():
    found = doctest.testmod(ask)
    assert found.attempted >= 3 and found.failed == 0
