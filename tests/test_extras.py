"""The scripts beside the pipeline: the real checkpoint's folder, pictures, the README's tables, speed."""

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
import trie
from distributions import make_rows, read_rows, to_jsonl, write_text

# ------------------------------------------------------------------------------------------------- every extra


@pytest.mark.parametrize("name", ["figures", "readme", "speed"])
def test_help_is_the_docstring_and_a_wrong_option_one_line(name, capsys):
    module = sys.modules[name]
    assert len(module.__doc__.splitlines()) <= 25
    with pytest.raises(SystemExit) as ending:
        call(module, "--help")
    assert ending.value.code == 0 and module.__doc__.strip() in capsys.readouterr().out
    assert "--help lists the options" in complaint(module, "--nonsense", "1")


def test_figures_of_a_log_alone_are_refused(tmp_path):
    write_text(tmp_path / "log.jsonl", '{"step": 1}\n')
    assert f"{tmp_path / 'log.jsonl'}:1" in complaint(
        figures, tmp_path / "log.jsonl", "--out", tmp_path / "pictures"
    )


def test_a_script_runs_by_itself_from_another_folder(tmp_path):
    done = script("tests/extras/figures.py", "--help", cwd=tmp_path)
    assert done.returncode == 0 and "overview.png" in done.stdout


# ------------------------------------------------------------------------------------------------- the pictures


@pytest.fixture(scope="module")
def rows(tmp_path_factory, adapters) -> dict:
    """Folders of base and soft rows, in the layout of make, from the embedded model; the adapter's log beside them."""
    folder = tmp_path_factory.mktemp("rows") / "tiny"
    asked = [
        row
        for row in make_rows("unseen") + make_rows("ood")
        if row["family"] in ("gaussian", "poisson", "weibull")
    ]
    write_text(folder / "asked.jsonl", to_jsonl(asked))
    questions = [
        {"id": f"open-{i}", "prompt": f"Name a random {word}."}
        for i, word in enumerate(("bird", "city", "$ bill"))
    ]
    write_text(folder / "questions.jsonl", to_jsonl(questions))
    for method, flags in (("base", ()), ("soft", ("--adapter", adapters["soft"]))):
        flags = ("--model", TINY, *flags, "--n", 20, "--out")
        call(
            sample,
            "numbers",
            "--prompts",
            folder / "asked.jsonl",
            *flags,
            folder / method / "numbers.jsonl",
        )
        call(
            sample,
            "open",
            "--prompts",
            folder / "questions.jsonl",
            *flags,
            folder / method / "open.jsonl",
        )
    (folder / "soft" / "log.jsonl").write_bytes((adapters["soft"] / "log.jsonl").read_bytes())
    return folder


@pytest.fixture
def picture(tmp_path):
    """Draws rows and returns {picture: its pixels (height, width, 4)}."""
    plt = pytest.importorskip("matplotlib.pyplot", reason="needs requirements-extras.txt")

    def draw(*files):
        out = tmp_path / "figures"
        for old in out.glob("*"):
            old.unlink()
        call(figures, *files, "--out", out)
        return {path.name: plt.imread(path) for path in out.iterdir()}

    return draw


def edited(folder, path, out, **changes):
    """A file of rows with some of their entries changed; a change is a value or a function of the row."""
    new = [
        row | {k: v(row) if callable(v) else v for k, v in changes.items()}
        for row in read_rows([folder / path])
    ]
    write_text(out, to_jsonl(new))
    return out


def test_three_pictures_of_a_run(rows, picture):
    drawn = picture(*rows.glob("*/*.jsonl"))
    assert sorted(drawn) == ["excess.png", "families.png", "overview.png"]
    for pixels in drawn.values():
        assert min(pixels.shape[:2]) > 200 and max(pixels.shape[:2]) > 900
        assert (pixels[0, 0] == 1).all() and len(np.unique(pixels.reshape(-1, 4), axis=0)) > 20


def has(pixels, ink: str) -> bool:
    """Whether a picture has enough of exactly this colour for a line or a mark."""
    color = np.array([int(ink[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return int((np.abs(pixels[..., :3] - color).max(-1) < 0.004).sum()) > 30


def test_each_method_has_its_colour_whatever_its_company(rows, picture, tmp_path):
    base, soft, hard = (figures.INKS[i][0] for i in range(3))
    both, alone = picture(*rows.glob("*/numbers.jsonl")), picture(rows / "soft" / "numbers.jsonl")
    assert all(
        has(pixels, base) and has(pixels, soft) and not has(pixels, hard)
        for pixels in both.values()
    )
    assert all(has(pixels, soft) and not has(pixels, base) for pixels in alone.values())
    more = [rows / "base" / "numbers.jsonl", rows / "soft" / "numbers.jsonl"]
    for i in range(7):  # more methods than colours
        more.append(
            edited(
                rows, "soft/numbers.jsonl", tmp_path / f"m{i}" / "numbers.jsonl", method=f"mine-{i}"
            )
        )
    crowded = picture(*more)
    assert [
        (name, ink[0]) for name in crowded for ink in figures.INKS if not has(crowded[name], ink[0])
    ] == []


def test_what_is_missing_is_left_out(rows, picture, tmp_path):
    assert set(picture(rows / "base" / "open.jsonl")) == set()  # nothing before and after
    assert set(picture(rows / "base" / "open.jsonl", rows / "soft" / "open.jsonl")) == {
        "overview.png"
    }
    assert set(picture(rows / "base" / "numbers.jsonl")) == {
        "excess.png",
        "families.png",
        "overview.png",
    }
    bare = tmp_path / "bare.jsonl"
    kept = [
        {k: v for k, v in row.items() if "kl" not in k}
        for row in read_rows([rows / "soft" / "numbers.jsonl"])
    ]
    write_text(bare, to_jsonl(kept))
    assert set(picture(bare)) == {"families.png", "overview.png"}
    ssot = edited(
        rows, "base/numbers.jsonl", tmp_path / "ssot.jsonl", method="ssot", protocol="ssot"
    )
    assert set(picture(ssot)) == set()
    own = edited(rows, "base/open.jsonl", tmp_path / "mcq.jsonl", axis="mcq")
    assert set(picture(own, rows / "base" / "numbers.jsonl")) == {
        "excess.png",
        "families.png",
        "overview.png",
    }


def test_prompts_without_a_valid_draw_are_drawn(rows, picture, tmp_path, monkeypatch):
    files = []
    for method in ("base", "soft"):
        nothing = lambda row: (
            ["no number"] * 20
            if "gaussian" in row["id"] or "poisson" in row["id"]
            else row["draws"]
        )
        files.append(
            edited(
                rows, f"{method}/numbers.jsonl", tmp_path / method / "numbers.jsonl", draws=nothing
            )
        )
    drawn = {}
    plot = figures.by_family
    monkeypatch.setattr(figures, "by_family", lambda *args: drawn.setdefault(args[1:], plot(*args)))
    assert len(picture(*files)) == 3
    assert drawn["base", "normalized_w1"]["gaussian"] == np.inf  # at the edge of the picture
    assert drawn["target", "normalized_w1"]["gaussian"] < 1


def test_the_cdf_ends_at_the_share_of_valid_draws(rows):
    plt = pytest.importorskip("matplotlib.pyplot", reason="needs requirements-extras.txt")
    plt.switch_backend("agg")
    (row,) = (
        row
        for row in read_rows([rows / "base" / "numbers.jsonl"])
        if row["id"] == "unseen-gaussian-000"
    )
    row["draws"] = ["no", "4", "-1", "2.5", "2.5"]
    figure, panel = plt.subplots()
    figures.draw_cdf(panel, [row], {"base": figures.INKS[0]})
    target, line = panel.get_lines()
    at = lambda x: line.get_ydata()[np.searchsorted(line.get_xdata(), x, "right") - 1]
    assert [at(x) for x in (-2, 0, 3, 5)] == pytest.approx([0, 0.2, 0.6, 0.8])
    middle = target.get_ydata()[
        np.searchsorted(target.get_xdata(), 3.5)
    ]  # the median of this Gaussian
    assert middle == pytest.approx(0.5, abs=0.01)
    assert "Gaussian, mu=3.5, sigma=3" in panel.get_title()
    plt.close(figure)


def test_the_bars_add_up_to_the_excess(rows):
    numbers = [row for row in read_rows([rows / "base" / "numbers.jsonl"]) if row["split"] == "ood"]
    form, shape, excess = (
        figures.by_family(numbers, "base", part) for part in ("form_kl", "shape_kl", "excess_kl")
    )
    assert list(form) == ["poisson", "weibull"]
    own = [row["logit_kl"] - row["logit_kl_floor"] for row in numbers if row["family"] == "weibull"]
    assert len(own) == 3 and excess["weibull"] == pytest.approx(np.mean(own))
    assert all(
        form[name] + shape[name] == pytest.approx(excess[name]) and form[name] > 0 for name in form
    )


def test_two_runs_are_not_drawn_as_one(rows, tmp_path):
    line = complaint(
        figures, rows / "base/numbers.jsonl", rows / "base/numbers.jsonl", "--out", tmp_path / "out"
    )
    assert "it may occur only once" in line
    few = tmp_path / "few.jsonl"
    write_text(few, to_jsonl(read_rows([rows / "soft" / "numbers.jsonl"])[:2]))
    assert "redo one" in complaint(
        figures, rows / "base/numbers.jsonl", few, "--out", tmp_path / "out"
    )


def test_two_models_are_not_drawn_as_one(rows, tmp_path):
    pytest.importorskip("matplotlib", reason="needs requirements-extras.txt")
    other = edited(rows, "base/numbers.jsonl", tmp_path / "other.jsonl", model="other")
    line = complaint(figures, rows / "base" / "numbers.jsonl", other, "--out", tmp_path / "out")
    assert "several models" in line and "other" in line


def test_without_matplotlib_there_is_one_line(rows, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    line = complaint(figures, rows / "base" / "numbers.jsonl", "--out", tmp_path / "out")
    assert "pip install -r requirements-extras.txt" in line


# ------------------------------------------------------------------------------------------------- the README


def test_tables_go_between_the_markers_and_nowhere_else(rows, tmp_path):
    call(metrics, *rows.glob("*/*.jsonl"), "--out", tmp_path / "scores.jsonl")
    scores = read_rows([tmp_path / "scores.jsonl"])
    page = tmp_path / "page.md"
    text = "first\n<!-- headline -->\nold\n<!-- /headline -->\nmiddle\n<!-- results -->\n<!-- /results -->\nlast\n"
    page.write_text(text)
    for _ in range(2):  # a second time changes nothing
        call(readme, page, "--results", tmp_path)
        before, short, middle, long, after = (part for part in split(page.read_text()))
        assert (before, middle, after) == ("first\n", "\nmiddle\n", "\nlast\n")
        assert short.split("\n") == readme.headline(scores) and "old" not in page.read_text()
        assert long == "\n".join(metrics.tables(scores)).strip()

    page.write_text("only\n<!-- results -->\n<!-- /results -->")
    call(readme, page, "--results", tmp_path)
    assert page.read_text() == f"only\n<!-- results -->\n{long}\n<!-- /results -->"


def split(text: str) -> list[str]:
    """before, the headline, what is between, the results, after"""
    before, rest = text.split("<!-- headline -->\n")
    short, rest = rest.split("\n<!-- /headline -->")
    middle, rest = rest.split("<!-- results -->\n")
    return [before, short, middle, *rest.split("\n<!-- /results -->")]


@pytest.mark.parametrize(
    "text", ["no markers", "<!-- results -->\nopen", "<!-- /results -->\n<!-- results -->\n"]
)
def test_a_page_without_its_markers_is_refused_and_kept(text, tmp_path):
    row = {"model": "m", "method": "base", "axis": "numbers", "split": "ood", "metric": "excess_kl"}
    write_text(
        tmp_path / "scores.jsonl",
        to_jsonl([row | {"value": 1.0, "low": None, "high": None, "n": 1}]),
    )
    (tmp_path / "page.md").write_text(text)
    assert "lacks marker lines" in complaint(readme, tmp_path / "page.md", "--results", tmp_path)
    assert (tmp_path / "page.md").read_text() == text


def test_the_headline_has_four_rows_for_each_model():
    def scored(model, method, axis, split, metric, value, n=24):
        keys = ("model", "method", "axis", "split", "metric", "value", "n")
        return dict(zip(keys, (model, method, axis, split, metric, value, n), strict=True))

    scores = []
    for model in ("own/a", "b"):
        for i, method in enumerate(("base", "mine", "hard", "soft", "target")):
            for split in ("unseen", "ood"):
                scores.append(
                    scored(
                        model,
                        method,
                        "numbers",
                        split,
                        "normalized_w1",
                        None if i == 0 else 0.1 * i,
                    )
                )
                scores.append(
                    scored(
                        model,
                        method,
                        "numbers",
                        split,
                        "excess_kl",
                        -0.001 if split == "ood" else 2.5,
                    )
                )
            if method != "target":
                scores.append(scored(model, method, "open", None, "unique_rate", 0.25))
                scores.append(scored(model, method, "mcq", None, "valid_rate", 0.5))
                scores.append(scored(model, method, "mcq", None, "tv", 0.3, 500 if i == 0 else 0))
                scores.append(
                    scored(model, method, "mcq", None, "tv_uniform", 0.02, 500 if i == 0 else 0)
                )
    table = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in readme.headline(scores)
    ]
    assert len(table[0]) == 6 and all(len(line) == 6 for line in table)
    assert [line[:2] for line in table[2:6]] == [
        ["a", m] for m in ("base", "soft", "hard", "a perfect sampler")
    ]
    assert [line[0] for line in table[6:]] == ["b"] * 4
    assert table[2][2:] == ["∞, ∞", "2.50, 0.00", "0.25", "0.30 (50% valid)"]
    assert table[3][2:] == ["0.30, 0.30", "2.50, 0.00", "0.25", "– (50% valid)"]
    assert table[5][2:] == ["0.40, 0.40", "2.50, 0.00", "–", "0.02"]


def test_memory_by_hand():
    """Of Qwen3-0.6B, in GB: 596 M parameters, by its card; LoRA of 4.6 M, as PEFT says, with gradients and two moments
    in float32; a step needs more than its logits."""
    need = shapes.memory("qwen3-0.6b")
    assert need["weights"] == pytest.approx(2 * 0.596, rel=0.01)
    assert need["adapter"] == pytest.approx(16 * 4_587_520 / 1e9)
    logits = 12 * 32 * 11 * 151936 / 1e9
    assert (
        need["weights"] + need["adapter"] + logits
        < need["soft"]
        < need["hard, 16 draws"]
        < 17 * need["soft"]
    )
    cache = (
        2 * 2 * 28 * 8 * 128 * 56
    )  # of a row, which is more than its logits: there are two while rows fork
    assert need["draws"] == pytest.approx(need["weights"] + 1024 * 2 * cache / 1e9)


@pytest.fixture
def small(loaded):
    """A random model of a toy shape, with LoRA, and what speed.py asks it."""
    config = Qwen3Config(
        vocab_size=1536, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=512, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    model = trie.add_lora(speed.random_model(config, loaded[1], loaded[2]), seed=0)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    return model


def test_every_stage_of_a_shape_can_be_measured(small, loaded, capsys):
    _, tokenizer, end = loaded
    stages = speed.stages(small, tokenizer, end, speed.random_prompt, 40, [1536], texts=3, length=8)
    rows = list(speed.measure(small, stages, rounds=1))
    training = ["training step, soft", "training step, hard", "training step, 16 branches"]
    assert [row["name"] for row in rows] == [
        *training,
        "logit KL of 128 paths",
        "40 draws",
        "3 long answers",
    ]
    assert all(row["ratio"] == pytest.approx(row["plain_seconds"] / row["seconds"]) for row in rows)
    assert all(row["ratio_to_floor"] > 0.3 and row["floor_seconds"] > 0 for row in rows)
    assert "logit KL of 128 paths, seconds" in capsys.readouterr().out


def test_the_plain_way_is_the_same_training(small, loaded):
    """Loss and gradient of whole rows are those of branches: what is compared in time is the same work."""
    _, tokenizer, end = loaded
    small.eval()  # without dropout
    prompts = [speed.random_prompt(text)[i:] for i, text in enumerate("abc")]
    texts = trie.encode(tokenizer, ["3.50000", "-12.00000", "7", "0", "1.5", "10"], end)
    completions, found = torch.from_numpy(texts).long(), []
    branches = trie.branch(small, trie.prefill(small, prompts), completions)
    for logits in (branches, speed.whole_rows(small, prompts, completions)):
        small.zero_grad()
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), completions.flatten(), ignore_index=trie.PAD
        )
        loss.backward()
        found.append(torch.cat([p.grad.flatten() for p in small.parameters() if p.requires_grad]))
    assert (found[0] - found[1]).norm() < 1e-5 * found[1].norm()


def test_a_shape_s_draws_are_short_numbers_and_its_long_answers_long(small, loaded):
    _, tokenizer, end = loaded
    uniform = np.random.default_rng(0).random((200, 32))
    draws = trie.walk(small, [speed.random_prompt("a")], [end], uniform)
    digits = set(tokenizer.convert_tokens_to_ids(list("0123456789")))
    assert {token for path in draws for token in path} == digits | {end}
    assert 5 < np.mean([len(path) for path in draws]) < 15
    assert all(
        len(path) == 8
        for path in trie.walk(small, [speed.random_prompt("a")], [1536], uniform[:, :8])
    )


def test_memory_is_printed_as_a_table(capsys):
    call(speed, "--memory")
    lines = capsys.readouterr().out.splitlines()
    assert lines == shapes.memory_table() and len(lines) == 2 + 12
