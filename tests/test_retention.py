"""Retention, offline: token perplexity by hand, the harness, the table, the adapter in other tools.

The harness is the real one; small data sets stand in for the hub's.
"""

import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY, build, call, complaint
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import trie
from distributions import InputError, read_rows, to_jsonl, write_text

sys.path.insert(0, str(ROOT / "tests" / "extras"))
import retention

# -------------------------------------------------------------------------------------- perplexity


def nll_by_hand(model, ids: list[int], window: int, stride: int) -> list[float]:
    """Each token's own prediction, from exactly those tokens that it may see."""
    nats = []
    for t in range(1, len(ids)):
        start = 0 if t < window else ((t - window) // stride + 1) * stride
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([ids[start:t]])).logits[0, -1]
        nats.append(logits.logsumexp(-1).item() - logits[ids[t]].item())
    return nats


@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 12, 13, 30])
def test_each_token_sees_the_first_window_that_holds_it(model, length):
    """With windows of 8 and a stride of 4, token 8 is new in the second window: it sees 4 to 7."""
    ids = torch.randint(3, 259, (length,), generator=torch.Generator().manual_seed(0)).tolist()
    expected = nll_by_hand(model, ids, 8, 4)
    assert retention.token_nll(model, ids, 8, 4) == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.fixture(scope="module")
def long_text() -> str:
    line = "{} green bottles, and the heart pumps blood through the body.\n"
    text = "".join(line.format(i) for i in range(190))
    assert len(text.encode()) > 2 * 2048
    return text


def test_perplexity_of_a_long_text(model, tokenizer, long_text):
    """Windows of 2048 tokens: of the first, all tokens count, then the last 1024 of each."""
    ids = torch.tensor(tokenizer(long_text)["input_ids"])
    assert 4096 < len(ids) < 5120
    total = 0.0
    done = 1
    for start, end in ((0, 2048), (1024, 3072), (2048, 4096), (3072, len(ids))):
        with torch.inference_mode():
            log_p = model(input_ids=ids[None, start:end]).logits[0].log_softmax(-1)
        for t in range(done, end):
            total -= log_p[t - 1 - start, ids[t]].item()
        done = end
    assert done == len(ids)

    nats = retention.token_nll(model, ids.tolist())
    assert len(nats) == len(ids) - 1
    assert math.fsum(nats) == pytest.approx(total, rel=1e-5)
    shorter = retention.token_nll(model, ids.tolist(), 1024, 512)
    assert math.fsum(shorter) != pytest.approx(total, rel=1e-4)

    # An empty text, or one of a single token, has nothing to score.
    (row,) = retention.perplexity(model, tokenizer, "long", [long_text, "", "x"])
    assert row["n"] == len(ids) - 1
    assert row["value"] == pytest.approx(math.exp(total / row["n"]), rel=1e-4)


def test_the_window_is_not_longer_than_the_models_context(model, tokenizer, monkeypatch):
    asked = []

    def token_nll(model, ids, window, stride):
        asked.append((window, stride))
        return [1.0]

    monkeypatch.setattr(retention, "token_nll", token_nll)
    retention.perplexity(model, tokenizer, "long", ["x"])
    monkeypatch.setattr(model.config, "max_position_embeddings", 512)
    retention.perplexity(model, tokenizer, "long", ["x"])
    assert asked == [(2048, 1024), (512, 256)]


def test_a_text_is_read_without_bos(model, monkeypatch):
    """This holds for a tokenizer that puts one in front by itself, too."""
    tokenizer = build("llama")
    seen = []

    def token_nll(model, ids, window, stride):
        seen.append(ids)
        return [1.0]

    monkeypatch.setattr(retention, "token_nll", token_nll)
    retention.perplexity(model, tokenizer, "x", ["Gaussian 1"])
    bos = tokenizer.convert_tokens_to_ids("<|begin_of_text|>")
    assert tokenizer("Gaussian 1")["input_ids"] == [bos, *seen[0]]


# ------------------------------------------------------------------------------- texts of your own


def printed_table(capsys) -> list[list[str]]:
    """The cells of each line that was printed."""
    lines = capsys.readouterr().out.splitlines()
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def snapshot(out: Path) -> dict[Path, int]:
    """When each result was written."""
    return {file: file.stat().st_mtime_ns for file in out.glob("*/*.json")}


@pytest.fixture
def texts(long_text, tmp_path) -> list[Path]:
    (tmp_path / "long.txt").write_text(long_text)
    (tmp_path / "two").write_text("Paris is in France.")
    return [tmp_path / "long.txt", tmp_path / "two"]


def test_texts_read_by_the_base_and_by_adapters(
    adapters, loaded, texts, long_text, tmp_path, capsys
):
    both = ("--adapter", adapters["soft"], "--adapter", adapters["hard"])
    out = tmp_path / "out"
    capsys.readouterr()
    call(retention, "--model", TINY, *both, "--texts", *texts, "--out", out)
    cells = printed_table(capsys)
    methods = ["base", "soft", "hard"]
    assert cells[0] == ["task", "score", "n", *methods, "soft - base", "hard - base"]

    rows = {(row["task"], row["method"]): row for row in read_rows([out / "scores.jsonl"])}
    assert len(rows) == 6
    assert rows["two", "soft"]["metric"] == "token perplexity"
    model, tokenizer, _ = trie.load(TINY, adapters["hard"])
    (alone,) = retention.perplexity(model, tokenizer, "long.txt", [long_text])
    assert rows["long.txt", "hard"]["value"] == alone["value"]
    model, tokenizer, _ = loaded
    (alone,) = retention.perplexity(model, tokenizer, "two", ["Paris is in France."])
    assert rows["two", "base"]["value"] == alone["value"]

    base, *others = (rows["two", method]["value"] for method in methods)
    shown = [f"{value:.3f}" for value in (base, *others)]
    shown += [f"{value - base:+.3f}" for value in others]
    assert len(set(shown)) == 5
    n = len(tokenizer("Paris is in France.")["input_ids"]) - 1
    assert cells[3] == ["two", "token perplexity", str(n), *shown]


def test_results_are_not_mixed_with_those_of_other_inputs(adapters, texts, tmp_path):
    """What is there stays as it is. Another text, adapter or model of the same name is an error."""
    out = tmp_path / "out"
    base = ("--model", TINY, "--out", out)
    call(retention, *base, "--adapter", adapters["hard"], "--texts", *texts)
    before = snapshot(out)
    assert len(before) == 4

    (tmp_path / "empty").touch()
    line = complaint(retention, *base, "--texts", *texts, tmp_path / "empty")
    assert "did not run: base/empty (fewer than two tokens)" in line
    assert snapshot(out) == before

    (tmp_path / "two").write_text("Paris is in Texas.")
    line = complaint(retention, *base, "--texts", *texts)
    assert f"{out / 'base' / 'two.json'} was made with another text; remove it" in line

    changed = shutil.copytree(adapters["soft"], tmp_path / "hard")
    line = complaint(retention, *base, "--adapter", changed, "--texts", texts[0])
    assert "hard/long.txt.json was made with another adapter; remove it" in line

    other = shutil.copytree(TINY, tmp_path / "model")
    weights = load_file(other / "model.safetensors")
    weights = {name: tensor * 1.01 for name, tensor in weights.items()}
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    line = complaint(retention, "--model", other, "--texts", texts[0], "--out", out)
    assert "was made with another model" in line
    assert snapshot(out) == before


def test_names_must_differ(texts, tmp_path):
    base = ("--model", TINY, "--out", tmp_path / "out")
    line = complaint(retention, *base, "--texts", *texts, texts[1])
    assert "have the same name" in line
    line = complaint(retention, *base, "--adapter", tmp_path / "base", "--texts", texts[0])
    assert "called base" in line


# ------------------------------------------------------------------------------------- the harness

WORDS = "planet metal color fish bird tree season sport dance river herb nut".split()
needs_harness = pytest.mark.skipif(
    not importlib.util.find_spec("lm_eval"), reason="needs requirements-extras.txt"
)


def data_set(folder: Path, name: str, config: str, **splits: list[dict]) -> None:
    """A folder of a data set's name, which the package datasets reads as it would the hub's."""
    header = f"---\nconfigs:\n- config_name: {config}\n  data_files:\n"
    for split, rows in splits.items():
        file = f"{config}-{split}.jsonl"
        write_text(folder / name / file, to_jsonl(rows))
        header += f"  - split: {split}\n    path: {file}\n"
    write_text(folder / name / "README.md", f"{header}---\n")


@pytest.fixture
def scratch(tmp_path, monkeypatch) -> Path:
    """DIR/scratch, where the harness runs, with small data sets in it; the test runs elsewhere."""
    folder = tmp_path / "out" / "scratch"
    question = "Which is a {}?\nA. Mars\nB. iron\nC. red\nD. eel\nAnswer:"
    quiz = []
    for i, word in enumerate(WORDS):
        quiz.append({"input_formatted": question.format(word), "answer": 2 - i % 2})
    sums = []
    for i in range(6):
        sums.append({"question": f"What is {i} plus 1?", "answer": f"One more.\n#### {i + 1}"})
    data_set(folder, "tinyBenchmarks/tinyMMLU", "all", test=quiz, dev=quiz[:1])
    data_set(folder, "tinyBenchmarks/tinyGSM8k", "main", test=sums[:2], train=sums)

    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    # The cache goes by name, and would hold the data sets of another test.
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def without_gp_irt(monkeypatch) -> None:
    """The package that computes gp-IRT is not installed."""
    find_spec = importlib.util.find_spec

    def find_another(name):
        return None if name == "tinyBenchmarks" else find_spec(name)

    monkeypatch.setattr(importlib.util, "find_spec", find_another)


def test_the_harness_does_not_think_and_does_not_know_the_date(tmp_path, monkeypatch):
    commands = []

    def run(command, **options):
        commands.append(command)
        return subprocess.CompletedProcess(command, returncode=1)

    monkeypatch.setattr(retention.subprocess, "run", run)
    with pytest.raises(InputError, match="lm_eval failed"):
        retention.harness(TINY, None, "tinyMMLU", "8", False, tmp_path)
    (command,) = commands
    options = json.loads(command[command.index("--model_args") + 1])
    expected = {"enable_thinking": False, "reasoning_effort": "low", "date_string": "26 Jul 2024"}
    assert options["chat_template_args"] == expected
    assert "--apply_chat_template" in command


def test_a_harness_that_runs_out_of_memory_is_one_line(tmp_path, monkeypatch):
    """The system kills such a process; here, the process kills itself."""
    code = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{code}"\n')
    python.chmod(0o755)
    monkeypatch.setattr(retention.sys, "executable", str(python))
    with pytest.raises(InputError, match="lack of memory; try a smaller --batch"):
        retention.harness(TINY, None, "tinyMMLU", "8", False, tmp_path)


def accuracy_by_hand(model, tokenizer, scratch: Path, chat: bool) -> float:
    """tinyMMLU's accuracy: how often the right letter is the most probable of the four."""
    right = []
    for row in read_rows([scratch / "tinyBenchmarks" / "tinyMMLU" / "all-test.jsonl"]):
        text = row["input_formatted"]
        ids = trie.chat_ids(tokenizer, text) if chat else trie.encode_one(tokenizer, text)
        scores = []
        for letter in "ABCD":
            answer = trie.encode_one(tokenizer, letter if chat else f" {letter}")
            with torch.inference_mode():
                logits = model(input_ids=torch.tensor([ids + answer])).logits[0]
            log_p = logits[-len(answer) - 1 : -1].log_softmax(-1)
            scores.append(log_p[range(len(answer)), answer].sum().item())
        right.append(scores.index(max(scores)) == row["answer"])
    return sum(right) / len(right)


@needs_harness
def test_plain_accuracy_with_the_chat_template(scratch, without_gp_irt, adapters, loaded, capsys):
    """One call of `lm_eval run` each for the base and an adapter, on tinyMMLU's own task."""
    out = scratch.parent
    flags = ("--adapter", adapters["hard"], "--tasks", "tinyMMLU")
    call(retention, "--model", TINY, *flags, "--out", out)
    printed = capsys.readouterr().out
    assert "pip install git+https://github.com/felipemaiapolo/tinyBenchmarks" in printed
    assert "hard - base" in printed

    model, tokenizer, _ = loaded
    tuned, _, _ = trie.load(TINY, adapters["hard"])
    expected = {
        "base": accuracy_by_hand(model, tokenizer, scratch, chat=True),
        "hard": accuracy_by_hand(tuned, tokenizer, scratch, chat=True),
    }
    rows = {row["method"]: row for row in read_rows([out / "scores.jsonl"])}
    for method, value in expected.items():
        row = rows[method]
        assert (row["task"], row["metric"], row["n"]) == ("tinyMMLU", "acc_norm", 12)
        assert row["value"] == pytest.approx(value)
        assert row["stderr"] == pytest.approx(math.sqrt(value * (1 - value) / 11))
    # The chat template makes a difference, so it was used.
    assert expected["base"] != accuracy_by_hand(model, tokenizer, scratch, chat=False)

    # What is there does not run again, and what cannot run is named.
    before = snapshot(out)
    line = complaint(retention, "--model", TINY, "--tasks", "tinyMMLU", "tinyArc", "--out", out)
    assert "did not run: base/tinyArc (lm_eval failed; see above)" in line
    assert snapshot(out) == before


@needs_harness
def test_gp_irt_has_its_parameters_before_the_harness_begins(scratch, tmp_path, monkeypatch):
    """A stand-in takes the place of the package tinyBenchmarks, which is not on the package index.

    Like the package, it fetches a file into the folder where it runs. The harness is real.
    """
    package = """
from pathlib import Path

def evaluate(items, name):
    if not Path("tinyBenchmarks.pkl").exists():
        Path("tinyBenchmarks.pkl").write_text(f"fetched for {name} of {len(items)} items")
    return {name: {"gpirt": 0.375}}
"""
    folder = tmp_path / "package"
    write_text(folder / "tinyBenchmarks.py", package)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", f"{folder}:{os.environ.get('PYTHONPATH', '')}")

    # A plain accuracy that is already there is not mixed with gp-IRT.
    out = scratch.parent
    made = {"model": trie.identity(TINY), "adapter": None, "gp-IRT": False}
    write_text(out / "base" / "tinyMMLU.json", json.dumps({"made": made, "scores": []}))
    line = complaint(retention, "--model", TINY, "--tasks", "tinyMMLU", "--out", out)
    assert "tinyMMLU.json was made with another gp-IRT; remove it to redo it" in line

    call(retention, "--model", TINY, "--tasks", "tinyGSM8k", "--out", out)
    assert (scratch / "tinyBenchmarks.pkl").read_text() == "fetched for mmlu of 100 items"
    assert not list((tmp_path / "elsewhere").iterdir())
    rows = read_rows([out / "scores.jsonl"])
    assert {row["metric"]: row["value"] for row in rows} == {
        "gp-IRT, strict-match": 0.375,
        "gp-IRT, flexible-extract": 0.375,
    }
    assert [row["n"] for row in rows] == [2, 2]
    assert [row["stderr"] for row in rows] == [None, None]


@needs_harness
def test_the_plain_tasks_differ_from_the_harnesss_in_the_mean_only(scratch):
    from lm_eval.tasks._yaml_loader import load_yaml

    retention.prepare(scratch, gp_irt=False)
    tasks = Path(importlib.util.find_spec("lm_eval").origin).parent / "tasks"
    with_gp_irt = set()
    for file in scratch.glob("tasks/*.yaml"):
        plain = load_yaml(file, resolve_func=False)
        original = load_yaml(tasks / "tinyBenchmarks" / file.name, resolve_func=False)
        for metric, expected in zip(plain["metric_list"], original["metric_list"], strict=True):
            assert metric["aggregation"] == "mean"
            if "agg_gpirt" in expected["aggregation"]:
                with_gp_irt.add(plain["task"])
                expected["aggregation"] = "mean"
        moved = json.dumps(original).replace(str(tasks / "tinyBenchmarks"), str(scratch / "tasks"))
        assert plain == json.loads(moved)

    group = load_yaml(tasks / "tinyBenchmarks" / "tinyBenchmarks.yaml")["task"]
    assert {task["task"] for task in group} == {*retention.FIVE, "tinyArc"} == with_gp_irt


@needs_harness
def test_the_harness_knows_the_other_tasks():
    from lm_eval.tasks._yaml_loader import load_yaml

    tasks = Path(importlib.util.find_spec("lm_eval").origin).parent / "tasks"
    slices = set()
    for file in tasks.glob("paloma/paloma_*.yaml"):
        slices.add(load_yaml(file, resolve_func=False)["dataset_name"])
    assert set(retention.PALOMA) < slices
    assert (tasks / "ifeval" / "ifeval.yaml").exists()


def test_paloma_is_read_document_by_document(loaded, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets", reason="needs requirements-extras.txt")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    texts = ["The heart pumps blood.", "", "Name a random planet.", "P"]
    documents = [{"text": text} for text in texts]
    data_set(tmp_path, "allenai/paloma", "ptb", test=documents, val=[{"text": "no"}])
    flags = ("--model", TINY, "--out", tmp_path / "out", "--tasks")
    call(retention, *flags, "paloma_ptb")

    (row,) = read_rows([tmp_path / "out" / "scores.jsonl"])
    model, tokenizer, _ = loaded
    assert row["task"] == "paloma_ptb"
    assert row["n"] == sum(max(len(tokenizer(text)["input_ids"]) - 1, 0) for text in texts)
    (expected,) = retention.perplexity(model, tokenizer, "ptb", texts)
    assert row["value"] == expected["value"]
    line = complaint(retention, *flags, "paloma_ptb", "paloma_c4_en")
    assert "did not run: base/paloma_c4_en (" in line


def test_without_the_harness_one_line_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    line = complaint(retention, "--model", TINY, "--out", tmp_path, "--tasks", "ifeval")
    assert "pip install -r requirements-extras.txt" in line


# -------------------------------------------------------------------------- the mean and the table


def six_rows(method: str, metric: str, values: tuple, flexible: float) -> list[dict]:
    """Scores of the five tasks, and GSM8K's second score, which is `flexible`."""
    source = {"model": "a/b", "method": method, "axis": "retention", "stderr": None, "n": 100}
    rows = []
    for task, value in zip(retention.FIVE, values, strict=True):
        rows.append(source | {"task": task, "metric": metric, "value": value})
    gsm8k = rows[-1]
    gsm8k["metric"] = f"{metric}, strict-match"
    second = {"metric": f"{metric}, flexible-extract", "value": flexible, "stderr": 0.03}
    return [*rows, gsm8k | second]


BASE = six_rows("base", "gp-IRT", (0.5, 0.25, 0.5, 0.75, 0.5), 0.5)
SOFT = six_rows("soft", "gp-IRT", (0.5, 0.0, 0.5, 0.75, 0.25), 0.25)
PLAIN = six_rows("base", "acc_norm", (0.5, 0.25, 0.5, 0.75, 0.5), 0.5)
ARC = BASE[0] | {"task": "tinyArc", "value": 0.0}  # not one of the paper's six scores


@pytest.mark.parametrize(
    "rows, metric, value",
    [
        (BASE, "gp-IRT", 0.5),
        (SOFT, "gp-IRT", 0.375),
        ([*BASE, ARC], "gp-IRT", 0.5),
        (PLAIN, "accuracy", 0.5),
    ],
)
def test_the_mean_of_six(rows, metric, value):
    (mean,) = retention.mean_of_six(rows)
    assert mean["task"] == "mean of six"
    assert (mean["metric"], mean["value"], mean["n"]) == (metric, value, 600)


@pytest.mark.parametrize(
    "rows",
    [BASE[1:], [*PLAIN[:3], *BASE[3:]], [BASE[0] | {"value": None}, *BASE[1:]]],
    ids=["five scores", "two kinds", "no value"],
)
def test_there_is_no_mean_of_less(rows):
    assert retention.mean_of_six(rows) == []


def test_the_table_shows_differences_to_the_base():
    means = [*retention.mean_of_six(BASE), *retention.mean_of_six(SOFT)]
    lines = retention.table([*BASE, means[0], *SOFT, means[1], ARC])
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    flexible = "gp-IRT, flexible-extract"
    assert cells[0] == ["task", "score", "n", "base", "soft", "soft - base"]
    assert cells[3] == ["tinyHellaswag", "gp-IRT", "100", "0.250", "0.000", "-0.250"]
    scores = ["0.500 ± 0.030", "0.250 ± 0.030", "-0.250"]
    assert cells[7] == ["tinyGSM8k", flexible, "100", *scores]
    assert cells[8] == ["mean of six", "gp-IRT", "600", "0.500", "0.375", "-0.125"]
    assert cells[9] == ["tinyArc", "gp-IRT", "100", "0.000", "–", "–"]


def test_without_scores_of_the_base_there_are_no_differences():
    lines = retention.table(SOFT)
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert cells[0] == ["task", "score", "n", "base", "soft", "soft - base"]
    assert cells[2][3] == cells[2][5] == "–"


# ---------------------------------------------------------------------- the adapter in other tools

IDS = torch.arange(40)[None]


def test_an_adapter_loads_in_peft_alone_and_merges(adapters, model):
    with torch.inference_mode():
        expected = trie.load(TINY, adapters["soft"])[0](input_ids=IDS).logits
        base = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
        tuned = PeftModel.from_pretrained(base, adapters["soft"]).eval()
        assert torch.equal(tuned(input_ids=IDS).logits, expected)
        merged = tuned.merge_and_unload()
        assert torch.allclose(merged(input_ids=IDS).logits, expected, atol=1e-3)
        assert not torch.allclose(model(input_ids=IDS).logits, expected, atol=1e-2)


@pytest.mark.parametrize("method", ["soft", "hard"])
def test_vllm_can_take_the_adapter(adapters, method):
    """What `vllm serve --enable-lora --max-lora-rank 16` needs, as far as we can see on a CPU."""
    config = json.loads((adapters[method] / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    assert config["task_type"] == "CAUSAL_LM"
    assert config["r"] == 16
    assert config["bias"] == "none"
    for option in ("use_dora", "modules_to_save", "rank_pattern", "alpha_pattern"):
        assert not config[option]
    assert not config["layers_to_transform"]
    assert set(config["target_modules"]) == {"q_proj", "k_proj", "v_proj", "o_proj"}

    sizes = json.loads((Path(TINY) / "config.json").read_text())
    width = sizes["hidden_size"]
    query_width = sizes["num_attention_heads"] * sizes["head_dim"]
    key_width = sizes["num_key_value_heads"] * sizes["head_dim"]
    inputs_and_outputs = {
        "q": (width, query_width),
        "k": (width, key_width),
        "v": (width, key_width),
        "o": (query_width, width),
    }
    expected = {}
    for layer in range(sizes["num_hidden_layers"]):
        for name, (inputs, outputs) in inputs_and_outputs.items():
            stem = f"base_model.model.model.layers.{layer}.self_attn.{name}_proj.lora_"
            expected[f"{stem}A.weight"] = (16, inputs)
            expected[f"{stem}B.weight"] = (outputs, 16)
    weights = load_file(adapters[method] / "adapter_model.safetensors")
    assert {key: tuple(value.shape) for key, value in weights.items()} == expected


def test_help_prints_the_docstring(capsys):
    with pytest.raises(SystemExit) as ending:
        call(retention, "--help")
    assert ending.value.code == 0
    assert retention.__doc__.strip() in capsys.readouterr().out
    assert len(retention.__doc__.splitlines()) <= 25


def test_a_wrong_option_is_one_line():
    assert "--help lists the options" in complaint(retention, "--nonsense")
