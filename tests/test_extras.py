"""The scripts beside the pipeline: a real checkpoint, pictures, README's tables, speed."""

import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, call, complaint, script
from transformers import Qwen3Config

sys.path.insert(0, str(ROOT / "tests" / "extras"))

import figures
import readme
import shapes
import speed

import metrics
import sample
import train_soft
import trie
from distributions import make_rows, read_rows, to_jsonl, write_text

NEEDS_EXTRAS = "needs requirements-extras.txt"

# ----------------------------------------------------------------------- every script


@pytest.mark.parametrize("name", ["figures", "readme", "speed"])
def test_help_is_the_docstring_and_a_wrong_option_is_a_one_line_error(name, capsys):
    module = sys.modules[name]
    assert len(module.__doc__.splitlines()) <= 25
    with pytest.raises(SystemExit) as ending:
        call(module, "--help")
    assert ending.value.code == 0
    assert module.__doc__.strip() in capsys.readouterr().out
    assert "--help lists the options" in complaint(module, "--nonsense", "1")


def test_a_script_runs_by_itself_from_another_folder(tmp_path):
    done = script("tests/extras/figures.py", "--help", cwd=tmp_path)
    assert done.returncode == 0 and "overview.png" in done.stdout


# ----------------------------------------------------------------------- the pictures

FEW_FAMILIES = ("gaussian", "poisson", "weibull")


@pytest.fixture(scope="module")
def rows(tmp_path_factory, adapters):
    """A folder of base and soft rows of the bundled model, laid out as by make.

    The adapter's log lies beside its rows.
    """
    folder = tmp_path_factory.mktemp("rows") / "tiny"
    asked = [row for split in ("unseen", "ood") for row in make_rows(split)]
    asked = [row for row in asked if row["family"] in FEW_FAMILIES]
    write_text(folder / "asked.jsonl", to_jsonl(asked))
    questions = [
        {"id": f"open-{i}", "prompt": f"Name a random {word}."}
        for i, word in enumerate(("bird", "city", "$ bill"))
    ]
    write_text(folder / "questions.jsonl", to_jsonl(questions))

    files = {"numbers": folder / "asked.jsonl", "open": folder / "questions.jsonl"}
    for method, adapter in (("base", ()), ("soft", ("--adapter", adapters["soft"]))):
        for axis, prompts in files.items():
            out = ("--out", folder / method / f"{axis}.jsonl")
            call(sample, axis, "--model", TINY, *adapter, "--prompts", prompts, "--n", 20, *out)
    (folder / "soft" / "log.jsonl").write_bytes((adapters["soft"] / "log.jsonl").read_bytes())
    return folder


@pytest.fixture
def plt():
    pyplot = pytest.importorskip("matplotlib.pyplot", reason=NEEDS_EXTRAS)
    pyplot.switch_backend("agg")
    yield pyplot
    pyplot.close("all")


@pytest.fixture
def draw(tmp_path, plt):
    """A function that draws files of rows; it returns {name: pixels (height, width, 4)}."""

    def draw_files(*files):
        out = tmp_path / "figures"
        for old in out.glob("*"):
            old.unlink()
        call(figures, *files, "--out", out)
        return {path.name: plt.imread(path) for path in out.iterdir()}

    return draw_files


def edited(path, out, **changes):
    """Write a file of rows again, with some entries changed; returns the new file.

    A change is a value, or a function of the row.
    """
    new = []
    for row in read_rows([path]):
        for key, value in changes.items():
            row = row | {key: value(row) if callable(value) else value}
        new.append(row)
    write_text(out, to_jsonl(new))
    return out


ALL_THREE = {"excess.png", "families.png", "overview.png"}


def test_a_run_has_three_pictures(rows, draw):
    pictures = draw(*rows.glob("*/*.jsonl"))
    assert set(pictures) == ALL_THREE
    for pixels in pictures.values():
        assert min(pixels.shape[:2]) > 200 and max(pixels.shape[:2]) > 900
        assert (pixels[0, 0] == 1).all()  # white
        assert len(np.unique(pixels.reshape(-1, 4), axis=0)) > 20


def has(pixels, color: str) -> bool:
    """Whether a picture has enough of exactly this color for a line or a mark."""
    wanted = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    equal = np.abs(pixels[..., :3] - wanted).max(-1) < 0.004
    return int(equal.sum()) > 30


def test_a_method_has_the_same_color_in_any_company(rows, draw):
    base, soft, hard = (style.color for style in figures.STYLES[:3])
    for pixels in draw(*rows.glob("*/numbers.jsonl")).values():
        assert has(pixels, base) and has(pixels, soft) and not has(pixels, hard)
    for pixels in draw(rows / "soft" / "numbers.jsonl").values():
        assert has(pixels, soft) and not has(pixels, base)


def test_more_methods_than_colors_can_be_drawn(rows, draw, tmp_path):
    soft = rows / "soft" / "numbers.jsonl"
    files = [rows / "base" / "numbers.jsonl", soft]
    for i in range(7):
        out = tmp_path / f"m{i}" / "numbers.jsonl"
        files.append(edited(soft, out, method=f"mine-{i}"))
    for name, pixels in draw(*files).items():
        missing = [style.color for style in figures.STYLES if not has(pixels, style.color)]
        assert (name, missing) == (name, [])


def test_a_picture_without_data_is_left_out(rows, draw, tmp_path):
    base, soft = rows / "base", rows / "soft"
    assert set(draw(base / "open.jsonl")) == set()  # there is no "after"
    assert set(draw(base / "open.jsonl", soft / "open.jsonl")) == {"overview.png"}
    assert set(draw(base / "numbers.jsonl")) == ALL_THREE

    without_kl = [
        {key: value for key, value in row.items() if "kl" not in key}
        for row in read_rows([soft / "numbers.jsonl"])
    ]
    write_text(tmp_path / "bare.jsonl", to_jsonl(without_kl))
    assert set(draw(tmp_path / "bare.jsonl")) == {"families.png", "overview.png"}

    prompted = {"method": "ssot", "protocol": "ssot"}
    ssot = edited(base / "numbers.jsonl", tmp_path / "ssot.jsonl", **prompted)
    assert set(draw(ssot)) == set()
    exam = edited(base / "open.jsonl", tmp_path / "mcq.jsonl", axis="mcq")
    assert set(draw(exam, base / "numbers.jsonl")) == ALL_THREE


def test_prompts_without_a_valid_draw_are_drawn(rows, draw, tmp_path, monkeypatch):
    def often_silent(row):
        silent = row["family"] in ("gaussian", "poisson")
        return ["no number"] * 20 if silent else row["draws"]

    files = []
    for method in ("base", "soft"):
        out = tmp_path / method / "numbers.jsonl"
        files.append(edited(rows / method / "numbers.jsonl", out, draws=often_silent))
    drawn, by_family = {}, figures.by_family

    def keep_means(numbers, method, metric):
        drawn[method, metric] = by_family(numbers, method, metric)
        return drawn[method, metric]

    monkeypatch.setattr(figures, "by_family", keep_means)
    assert len(draw(*files)) == 3
    assert drawn["base", "normalized_w1"]["gaussian"] == np.inf  # at the edge of the picture
    assert drawn["target", "normalized_w1"]["gaussian"] < 1


def test_a_cdf_ends_at_the_share_of_valid_draws(rows, plt):
    numbers = read_rows([rows / "base" / "numbers.jsonl"])
    (row,) = (row for row in numbers if row["id"] == "unseen-gaussian-000")
    row["draws"] = ["no", "4", "-1", "2.5", "2.5"]
    _, panel = plt.subplots()
    figures.draw_cdf(panel, [row], figures.method_styles(["base"]))
    target, line = panel.get_lines()

    def share_up_to(x):
        return line.get_ydata()[np.searchsorted(line.get_xdata(), x, "right") - 1]

    assert [share_up_to(x) for x in (-2, 0, 3, 5)] == pytest.approx([0, 0.2, 0.6, 0.8])
    median = np.searchsorted(target.get_xdata(), 3.5)
    assert target.get_ydata()[median] == pytest.approx(0.5, abs=0.01)


def test_pictures_say_what_is_new_to_the_model(rows, plt):
    numbers = read_rows([rows / "base" / "numbers.jsonl"])
    styles = figures.method_styles(["base"])
    first, second = figures.overview(plt, numbers, [], {}, styles).axes
    assert first.get_title() == "Gaussian, mu=3.5, sigma=3: new parameters"
    assert second.get_title() == "Weibull, k=1.5, lambda=1.5: held-out family"

    excess = figures.excess(plt, numbers, styles)
    titles = [panel.get_title() for panel in excess.axes]
    assert titles == ["new parameters", "held-out families"]
    labels = [text.get_text() for text in excess.legends[0].get_texts()]
    assert labels == ["form: on tokens that are in no answer", "shape: on which answer"]

    (panel,) = figures.families(plt, numbers, styles).axes
    names = {label.get_text() for label in panel.get_yticklabels()}
    assert names == {"Gaussian", "Poisson (held out)", "Weibull (held out)"}


def test_form_and_shape_add_up_to_the_excess(rows):
    numbers = read_rows([rows / "base" / "numbers.jsonl"])
    numbers = [row for row in numbers if row["split"] == "ood"]
    form = figures.by_family(numbers, "base", "form_kl")
    shape = figures.by_family(numbers, "base", "shape_kl")
    excess = figures.by_family(numbers, "base", "excess_kl")
    assert list(form) == ["poisson", "weibull"]

    weibull = [row for row in numbers if row["family"] == "weibull"]
    expected = [row["logit_kl"] - row["logit_kl_floor"] for row in weibull]
    assert len(expected) == 3 and excess["weibull"] == pytest.approx(np.mean(expected))
    for family in form:
        assert form[family] > 0
        assert form[family] + shape[family] == pytest.approx(excess[family])


def test_only_a_log_is_a_one_line_error(tmp_path, plt):
    log = tmp_path / "log.jsonl"
    write_text(log, '{"step": 1}\n')
    assert f"{log}:1" in complaint(figures, log, "--out", tmp_path / "figures")


def test_rows_that_do_not_belong_together_are_a_one_line_error(rows, tmp_path, plt):
    base, out = rows / "base" / "numbers.jsonl", ("--out", tmp_path / "out")
    assert "is already in" in complaint(figures, base, base, *out)

    few = tmp_path / "few.jsonl"
    write_text(few, to_jsonl(read_rows([rows / "soft" / "numbers.jsonl"])[:2]))
    assert "draw the rows of one of them again" in complaint(figures, base, few, *out)

    for change, named in (({"model": "other"}, "other, seed 0"), ({"seed": 3}, "seed 3")):
        other = edited(base, tmp_path / "other.jsonl", **change)
        line = complaint(figures, base, other, *out)
        assert "several models or seeds" in line and named in line


def test_without_matplotlib_there_is_a_one_line_error(rows, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    line = complaint(figures, rows / "base" / "numbers.jsonl", "--out", tmp_path / "out")
    assert "pip install -r requirements-extras.txt" in line


# ------------------------------------------------------------------- README's tables


def cells_of(line: str) -> list[str]:
    """The cells of a line of a Markdown table."""
    return [cell.strip() for cell in line.strip("|").split("|")]


def block(marker: str, body: str) -> str:
    return f"<!-- {marker} -->\n{body}<!-- /{marker} -->"


def test_tables_go_between_the_markers_and_nowhere_else(rows, tmp_path):
    scores_file, page = tmp_path / "scores.jsonl", tmp_path / "page.md"
    call(metrics, *rows.glob("*/*.jsonl"), "--out", scores_file)
    scores = read_rows([scores_file])
    headline = "\n".join(readme.headline(scores)) + "\n"
    board_file = ROOT / "tests" / "results" / "board.jsonl"
    board = "\n".join(readme.board(read_rows([board_file]))) + "\n"

    def page_of(first, second):
        first, second = block("headline", first), block("board", second)
        return f"first\n{first}\nmiddle\n{second}\nlast\n"

    page.write_text(page_of("old\n", ""))
    for _ in range(2):  # a second time changes nothing
        call(readme, page, "--results", tmp_path, "--board", board_file)
        assert page.read_text() == page_of(headline, board)

    assert "marker lines for board" in complaint(readme, page, "--results", tmp_path)
    assert page.read_text() == page_of(headline, board)

    page.write_text("only\n" + block("headline", ""))
    call(readme, page, "--results", tmp_path)
    assert page.read_text() == "only\n" + block("headline", headline)


@pytest.mark.parametrize(
    "text",
    [
        "no markers",
        "<!-- costs -->\nopen",
        "<!-- /costs -->\n<!-- costs -->\n",
        "<!-- costs -->\nopen\n<!-- costs -->\n<!-- /costs -->",
    ],
)
def test_a_page_without_its_markers_is_an_error_and_is_kept(text, tmp_path):
    row = {"model": "m", "method": "base", "axis": "numbers", "split": "ood"}
    row |= {"metric": "excess_kl", "value": 1.0, "low": None, "high": None, "n": 1}
    write_text(tmp_path / "scores.jsonl", to_jsonl([row]))
    page = tmp_path / "page.md"
    page.write_text(text)
    assert "lacks marker lines" in complaint(readme, page, "--results", tmp_path)
    assert page.read_text() == text


def scored(model, method, axis, split, metric, value, n=24) -> dict:
    """A row of scores, without its interval."""
    row = {"model": model, "method": method, "axis": axis, "split": split}
    return row | {"metric": metric, "value": value, "n": n}


def scores_of(model: str) -> list[dict]:
    """Scores of four methods and of a perfect sampler; the base's W1 is infinite."""
    scores = []
    for i, method in enumerate(("base", "mine", "hard", "soft", "target")):
        w1 = 0.1 * i if i else None
        for split, excess in (("unseen", 2.5), ("ood", -0.001)):
            scores.append(scored(model, method, "numbers", split, "normalized_w1", w1))
            scores.append(scored(model, method, "numbers", split, "excess_kl", excess))
            scores.append(scored(model, method, "numbers", split, "cdf_gap", i / 8))
        scores.append(scored(model, method, "numbers", "ood", "valid_rate", 0.75))
        if method != "target":
            enough = 500 if method == "base" else 0
            scores.append(scored(model, method, "open", None, "unique_rate", 0.25))
            scores.append(scored(model, method, "mcq", None, "valid_rate", 0.5))
            scores.append(scored(model, method, "mcq", None, "tv", 0.3, n=enough))
    return scores


def test_the_headline_has_three_rows_for_each_model():
    perfect = [
        scored("folder/a", "target", "mcq", None, "valid_rate", 1.0, n=500),
        scored("folder/a", "target", "mcq", None, "tv", 0.02, n=500),
    ]
    lines = readme.headline([*scores_of("folder/a"), *perfect, *scores_of("b")])
    heading, _, *table = [cells_of(line) for line in lines]
    assert len(heading) == 8 and all(len(line) == 8 for line in table)
    methods = ["base", "soft", "a perfect sampler"]
    assert [line[:2] for line in table] == [[model, m] for model in "ab" for m in methods]

    base, soft, target = (line[2:] for line in table[:3])
    assert base == ["2.50, 0.00", "0.00, 0.00", "∞, ∞", "–, 0.75", "0.25", "0.30 (50% valid)"]
    assert soft == ["2.50, 0.00", "0.38, 0.38", "0.30, 0.30", "–, 0.75", "0.25", "– (50% valid)"]
    assert target == ["2.50, 0.00", "0.50, 0.50", "0.40, 0.40", "–, 0.75", "–", "0.02"]
    assert table[-1][-1] == "–"  # not on mcq


def test_the_headline_shows_the_first_of_several_seeds():
    first = [score | {"seed": 0} for score in scores_of("a")]
    second = [score | {"seed": 1, "value": 9.0} for score in scores_of("a")]
    assert readme.headline(first + second) == readme.headline(first)


def test_words_stand_beside_what_they_cost_in_numbers():
    scores = scores_of("folder/a") + scores_of("b")  # b was never asked words
    for split, tv, valid in (("lists", 0.125, 0.5), ("words", 0.25, 1.0)):
        for method in ("base", "mine", "target"):
            scores.append(scored("folder/a", method, "numbers", split, "tv", tv))
            scores.append(scored("folder/a", method, "numbers", split, "valid_rate", valid))
    heading, _, *table = [cells_of(line) for line in readme.words(scores)]
    assert heading[2:4] == ["TV (lists, choices)", "valid (lists, choices)"]
    assert [line[1] for line in table] == ["base", "mine", "a perfect sampler"]
    assert table[1] == ["a", "mine", "0.12, 0.25", "0.50, 1.00", "2.50, 0.00"]


def test_each_model_has_its_own_table_of_benchmarks(tmp_path):
    folders = [tmp_path / name for name in ("a", "b", "c")]
    for folder, value in zip(folders[:2], (2.0, 4.0), strict=True):
        row = {"model": f"models/{folder.name}", "task": "LICENSE", "n": 262}
        row |= {"method": "base", "metric": "token perplexity", "value": value}
        soft = row | {"method": "soft", "value": value + 1}
        write_text(folder / "retention.jsonl", to_jsonl([row, soft]))
    lines = readme.benchmarks(folders)
    assert [line for line in lines if "|" not in line] == ["`a`:", "", "", "`b`:", ""]
    tables = [cells_of(line) for line in lines if "LICENSE" in line]
    assert tables == [
        ["LICENSE", "token perplexity", "262", "2.000", "3.000", "+1.000"],
        ["LICENSE", "token perplexity", "262", "4.000", "5.000", "+1.000"],
    ]


# -------------------------------------------------------------------- memory and speed


def test_memory_by_hand():
    """Of Qwen3-0.6B, in GB.

    Its model card says 596 M parameters. PEFT says 4.6 M for LoRA, with gradients and two moments
    in float32. A step needs more than its logits.
    """
    need = shapes.memory("qwen3-0.6b")
    assert need["weights"] == pytest.approx(2 * 0.596, rel=0.01)
    assert need["adapter"] == pytest.approx(16 * 4_587_520 / 1e9)
    logits = 12 * 32 * 11 * 151936 / 1e9
    assert need["weights"] + need["adapter"] + logits < need["soft"]
    assert need["soft"] < need["hard, 16 draws"] < 17 * need["soft"]
    # A row's cache is larger than its logits, and there are two of it while rows fork.
    cache = 2 * 2 * 28 * 8 * 128 * 56
    assert need["draws"] == pytest.approx(need["weights"] + 1024 * 2 * cache / 1e9)


def test_memory_is_printed_as_a_table(capsys):
    call(speed, "--memory")
    lines = capsys.readouterr().out.splitlines()
    assert lines == shapes.memory_table() and len(lines) == 2 + 12


@pytest.fixture
def small(loaded):
    """A random model of a toy shape, with LoRA, prepared as speed.py does it."""
    config = Qwen3Config(
        vocab_size=1536,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    _, tokenizer, end = loaded
    model = train_soft.add_lora(speed.random_model(config, tokenizer, end), seed=0)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    return model


def test_every_stage_of_a_shape_can_be_measured(small, loaded, capsys):
    _, tokenizer, end = loaded
    stages = speed.stages(small, tokenizer, end, speed.random_prompt, 40, [1536], texts=3, length=8)
    measured = list(speed.measure(small, stages, rounds=1))
    assert [row["name"] for row in measured] == [
        "training step, soft",
        "training step, hard",
        "training step, 16 branches",
        "logit KL of 128 paths",
        "40 draws",
        "3 long answers",
    ]
    for row in measured:
        assert row["ratio"] == pytest.approx(row["plain_seconds"] / row["seconds"])
        assert row["ratio_to_floor"] > 0.3 and row["floor_seconds"] > 0
    assert "logit KL of 128 paths, seconds" in capsys.readouterr().out


def test_the_plain_way_does_the_same_work(small, loaded):
    """Whole rows and branches have the same loss and gradient, so their times can be compared."""
    _, tokenizer, end = loaded
    small.eval()  # without dropout
    prompts = [speed.random_prompt(text)[i:] for i, text in enumerate("abc")]
    texts = ["3.50000", "-12.00000", "7", "0", "1.5", "10"]
    completions = torch.from_numpy(trie.encode(tokenizer, texts, end)).long()
    branches = trie.branch(small, trie.prefill(small, prompts), completions)

    gradients, losses = [], []
    for logits in (branches, speed.whole_rows(small, prompts, completions)):
        small.zero_grad()
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), completions.flatten(), ignore_index=trie.PAD
        )
        loss.backward()
        losses.append(loss.item())
        trained = [p.grad.flatten() for p in small.parameters() if p.requires_grad]
        gradients.append(torch.cat(trained))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert (gradients[0] - gradients[1]).norm() < 1e-5 * gradients[1].norm()


def test_a_shape_draws_short_numbers_and_long_answers(small, loaded):
    _, tokenizer, end = loaded
    prompt = speed.random_prompt("a")
    uniform = np.random.default_rng(0).random((200, 32))
    draws = trie.walk(small, [prompt], [end], uniform)
    digits = set(tokenizer.convert_tokens_to_ids(list("0123456789")))
    assert {token for path in draws for token in path} == digits | {end}
    assert 5 < np.mean([len(path) for path in draws]) < 15

    # No token ends a long answer, so each has the most tokens that it may have.
    answers = trie.walk(small, [prompt], [1536], uniform[:, :8])
    assert [len(path) for path in answers] == [8] * 200
