"""Retention, offline: token perplexity against a sum by hand, and the harness's own tasks on folders that stand in for
the hub's data sets; and an adapter in the hands of other tools."""

import importlib.util
import json
import math
import os
import shutil
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

# ------------------------------------------------------------------------------------------------- perplexity


def by_hand(model, ids, window, stride) -> list[float]:
    """Each token's own prediction, from exactly the tokens that it may see."""
    nats = []
    for t in range(1, len(ids)):
        start = 0 if t < window else ((t - window) // stride + 1) * stride
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([ids[start:t]])).logits[0, -1]
        nats.append(logits.logsumexp(-1).item() - logits[ids[t]].item())
    return nats


@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 12, 13, 30])
def test_each_token_sees_the_window_that_first_reads_it(model, length):
    """With windows of 8 and stride 4, token 8 is the first of the second window's new tokens: it sees 4 to 7."""
    ids = torch.randint(3, 259, (length,), generator=torch.Generator().manual_seed(0)).tolist()
    assert retention.token_nll(model, ids, 8, 4) == pytest.approx(
        by_hand(model, ids, 8, 4), rel=1e-4, abs=1e-5
    )


@pytest.fixture(scope="module")
def long_text() -> str:
    text = "".join(
        f"{i} green bottles, and the heart pumps blood through the body.\n" for i in range(190)
    )
    assert len(text.encode()) > 2 * 2048
    return text


def test_perplexity_of_a_long_text(model, tokenizer, long_text):
    """Windows of 2048 tokens, each sum taken from whole passes by hand: of the first all tokens, then 1024 at a time."""
    ids = torch.tensor(tokenizer(long_text)["input_ids"])
    total, done = 0.0, 1
    for start, end in ((0, 2048), (1024, 3072), (2048, 4096), (3072, len(ids))):
        with torch.inference_mode():
            log_p = model(input_ids=ids[None, start:end]).logits[0].log_softmax(-1)
        for t in range(done, end):
            total -= log_p[t - 1 - start, ids[t]].item()
        done = end
    assert done == len(ids) and 4096 < len(ids) < 5120
    nats = retention.token_nll(model, ids.tolist())
    assert len(nats) == len(ids) - 1 and math.fsum(nats) == pytest.approx(total, rel=1e-5)
    assert math.fsum(retention.token_nll(model, ids.tolist(), 1024, 512)) != pytest.approx(
        total, rel=1e-4
    )
    (row,) = retention.perplexity(
        model, tokenizer, "long", [long_text, "", "x"]
    )  # one token: nothing to score
    assert row["n"] == len(ids) - 1 and row["value"] == pytest.approx(
        math.exp(total / row["n"]), rel=1e-4
    )


def test_the_window_is_not_longer_than_the_models(model, tokenizer, long_text, monkeypatch):
    asked = []
    monkeypatch.setattr(
        retention, "token_nll", lambda model, ids, *sizes: asked.append(sizes) or [1.0]
    )
    retention.perplexity(model, tokenizer, "long", ["x"])
    monkeypatch.setattr(model.config, "max_position_embeddings", 512)
    retention.perplexity(model, tokenizer, "long", ["x"])
    assert asked == [(2048, 1024), (512, 256)]


def test_a_text_is_read_without_bos(model, monkeypatch):
    """Also by a tokenizer that puts one in front by itself."""
    tokenizer, seen = build("llama"), []
    monkeypatch.setattr(
        retention, "token_nll", lambda model, ids, *sizes: seen.append(ids) or [1.0]
    )
    retention.perplexity(model, tokenizer, "x", ["Gaussian 1"])
    bos = tokenizer.convert_tokens_to_ids("<|begin_of_text|>")
    assert tokenizer("Gaussian 1")["input_ids"] == [bos, *seen[0]]


def test_the_harness_thinks_not_and_knows_no_date(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        retention.subprocess, "run", lambda command, **options: asked.append(command)
    )
    with pytest.raises(InputError, match="lm_eval failed"):
        retention.harness(TINY, None, "tinyMMLU", "8", False, tmp_path)
    options = json.loads(asked[0][asked[0].index("--model_args") + 1])
    wanted = {"enable_thinking": False, "reasoning_effort": "low", "date_string": "26 Jul 2024"}
    assert options["chat_template_args"] == wanted and "--apply_chat_template" in asked[0]


def test_texts_of_base_and_adapters(adapters, loaded, long_text, tmp_path, capsys):
    (tmp_path / "long.txt").write_text(long_text)
    (tmp_path / "two").write_text("Paris is in France.")
    (tmp_path / "empty").touch()
    texts, out = ("--texts", tmp_path / "long.txt", tmp_path / "two"), ("--out", tmp_path / "out")
    both = ("--adapter", adapters["soft"], "--adapter", adapters["hard"])
    call(retention, "--model", TINY, *both, *texts, *out)
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in capsys.readouterr().out.split("\n")
    ]
    assert lines[0] == ["task", "score", "n", "base", "soft", "hard", "soft - base", "hard - base"]
    rows = {
        (row["task"], row["method"]): row for row in read_rows([tmp_path / "out" / "scores.jsonl"])
    }
    assert len(rows) == 6 and rows["two", "soft"]["metric"] == "token perplexity"
    (alone,) = retention.perplexity(*trie.load(TINY, adapters["hard"])[:2], "long.txt", [long_text])
    assert rows["long.txt", "hard"]["value"] == alone["value"]
    assert (
        rows["two", "base"]["value"]
        == retention.perplexity(*loaded[:2], "two", ["Paris is in France."])[0]["value"]
    )
    values = [rows["two", method]["value"] for method in ("base", "soft", "hard")]
    shown = [f"{x:.3f}" for x in values] + [f"{x - values[0]:+.3f}" for x in values[1:]]
    assert (
        lines[3]
        == [
            "two",
            "token perplexity",
            str(len(loaded[1]("Paris is in France.")["input_ids"]) - 1),
            *shown,
        ]
        and len(set(shown)) == 5
    )

    # What is there stays as it is; one more text is added; what is about another text or adapter is refused.
    stamp = lambda: {file: file.stat().st_mtime_ns for file in (tmp_path / "out").glob("*/*.json")}
    before = stamp()
    line = complaint(retention, "--model", TINY, *texts, tmp_path / "empty", *out)
    assert (
        "did not run: empty (fewer than two tokens)" in line
        and stamp() == before
        and len(before) == 6
    )
    (tmp_path / "two").write_text("Paris is in Texas.")
    line = complaint(retention, "--model", TINY, *texts, *out)
    assert f"{tmp_path / 'out' / 'base' / 'two.json'} was made with another text; remove it" in line
    changed = shutil.copytree(adapters["soft"], tmp_path / "hard")
    line = complaint(retention, "--model", TINY, "--adapter", changed, *texts[:2], *out)
    assert (
        "hard/long.txt.json was made with another adapter; remove it" in line and stamp() == before
    )
    other = shutil.copytree(TINY, tmp_path / "model")
    weights = load_file(other / "model.safetensors")
    save_file(
        {name: tensor * 1.01 for name, tensor in weights.items()},
        other / "model.safetensors",
        {"format": "pt"},
    )
    assert "was made with another model" in complaint(retention, "--model", other, *texts[:2], *out)
    assert "have the same name" in complaint(
        retention, "--model", TINY, *texts, tmp_path / "two", *out
    )
    assert "called base" in complaint(
        retention, "--model", TINY, "--adapter", tmp_path / "base", *texts[:2], *out
    )


# -------------------------------------------------------------------------------------------------- the harness

WORDS = (
    "planet",
    "metal",
    "color",
    "fish",
    "bird",
    "tree",
    "season",
    "sport",
    "dance",
    "river",
    "herb",
    "nut",
)
needs_harness = pytest.mark.skipif(
    not importlib.util.find_spec("lm_eval"), reason="needs requirements-extras.txt"
)


def data_set(folder: Path, name: str, config: str, **splits: list[dict]) -> None:
    """A folder of a data set's name, which the package datasets reads as it would read the hub's."""
    files = "".join(f"  - split: {split}\n    path: {config}-{split}.jsonl\n" for split in splits)
    write_text(
        folder / name / "README.md",
        f"---\nconfigs:\n- config_name: {config}\n  data_files:\n{files}---\n",
    )
    for split, rows in splits.items():
        write_text(folder / name / f"{config}-{split}.jsonl", to_jsonl(rows))


@pytest.fixture
def scratch(tmp_path, monkeypatch) -> Path:
    """DIR/scratch, where the harness works, with small data sets in it; the test is somewhere else."""
    folder = tmp_path / "out" / "scratch"
    quiz = [
        {
            "input_formatted": f"Which is a {word}?\nA. Mars\nB. iron\nC. red\nD. eel\nAnswer:",
            "answer": 2 - i % 2,
        }
        for i, word in enumerate(WORDS)
    ]
    sums = [
        {"question": f"What is {i} plus 1?", "answer": f"One more.\n#### {i + 1}"} for i in range(6)
    ]
    data_set(folder, "tinyBenchmarks/tinyMMLU", "all", test=quiz, dev=quiz[:1])
    data_set(folder, "tinyBenchmarks/tinyGSM8k", "main", test=sums[:2], train=sums)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv(
        "HF_DATASETS_CACHE", str(tmp_path / "cache")
    )  # or it would find another test's sets, by name
    real = importlib.util.find_spec
    found = lambda name: None if name == "tinyBenchmarks" else real(name)
    monkeypatch.setattr(importlib.util, "find_spec", found)
    return folder


def share_right(model, tokenizer, scratch, chat: bool) -> float:
    """tinyMMLU's accuracy by hand: of each question's letters, is the right one the most probable?"""
    right = []
    for row in read_rows([scratch / "tinyBenchmarks" / "tinyMMLU" / "all-test.jsonl"]):
        text = row["input_formatted"]
        ids = trie.chat_ids(tokenizer, text) if chat else trie.encode_one(tokenizer, text)
        scores = []
        for letter in "ABCD":
            answer = trie.encode_one(tokenizer, letter if chat else f" {letter}")
            with torch.inference_mode():
                log_p = (
                    model(input_ids=torch.tensor([ids + answer]))
                    .logits[0, -len(answer) - 1 : -1]
                    .log_softmax(-1)
                )
            scores.append(log_p[range(len(answer)), answer].sum().item())
        right.append(max(range(4), key=scores.__getitem__) == row["answer"])
    return sum(right) / len(right)


@needs_harness
def test_plain_accuracy_with_the_chat_template(scratch, adapters, loaded, capsys):
    """One call of `lm_eval run` for each of base and adapter, on tinyMMLU's own task."""
    out = scratch.parent
    call(
        retention,
        "--model",
        TINY,
        "--adapter",
        adapters["hard"],
        "--tasks",
        "tinyMMLU",
        "--out",
        out,
    )
    said = capsys.readouterr().out
    assert (
        "pip install git+https://github.com/felipemaiapolo/tinyBenchmarks" in said
        and "hard - base" in said
    )
    model, tokenizer, _ = loaded
    tuned = trie.load(TINY, adapters["hard"])[0]
    rows = {row["method"]: row for row in read_rows([out / "scores.jsonl"])}
    values = {
        "base": share_right(model, tokenizer, scratch, True),
        "hard": share_right(tuned, tokenizer, scratch, True),
    }
    for method, value in values.items():
        row = rows[method]
        assert (row["task"], row["metric"], row["n"]) == ("tinyMMLU", "acc_norm", 12)
        assert row["value"] == pytest.approx(value)
        assert row["stderr"] == pytest.approx(math.sqrt(value * (1 - value) / 11))
    assert values["base"] != share_right(model, tokenizer, scratch, False)  # the template tells

    # What is there is not run again; what cannot run is named, and where gp-IRT appears, plain scores are refused.
    before = {file: file.stat().st_mtime_ns for file in out.glob("*/*.json")}
    line = complaint(retention, "--model", TINY, "--tasks", "tinyMMLU", "tinyArc", "--out", out)
    assert "did not run: tinyArc (lm_eval failed, see above)" in line
    assert {file: file.stat().st_mtime_ns for file in out.glob("*/*.json")} == before


@needs_harness
def test_gp_irt_has_its_parameters_before_the_harness_begins(scratch, tmp_path, monkeypatch):
    """A stand-in for the package tinyBenchmarks, which is not on the package index; the path through the harness is
    real. Like the package it fetches a file into the folder where it runs."""
    package = """
from pathlib import Path

def evaluate(items, name):
    if not Path("tinyBenchmarks.pkl").exists():
        Path("tinyBenchmarks.pkl").write_text(f"fetched for {name} of {len(items)} items")
    return {name: {"gpirt": 0.375}}
"""
    write_text(tmp_path / "package" / "tinyBenchmarks.py", package)
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(tmp_path / "package")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'package'}:{os.environ.get('PYTHONPATH', '')}")
    out = scratch.parent
    made = {"model": trie.identity(TINY), "adapter": None, "gp-IRT": False}
    write_text(out / "base" / "tinyMMLU.json", json.dumps({"made": made, "scores": []}))
    line = complaint(retention, "--model", TINY, "--tasks", "tinyMMLU", "--out", out)
    assert "tinyMMLU.json was made with another gp-IRT; remove it to make it anew" in line

    call(retention, "--model", TINY, "--tasks", "tinyGSM8k", "--out", out)
    assert (scratch / "tinyBenchmarks.pkl").read_text() == "fetched for mmlu of 100 items"
    assert not list((tmp_path / "elsewhere").iterdir())
    rows = read_rows([out / "scores.jsonl"])
    assert {row["metric"]: row["value"] for row in rows} == {
        "gp-IRT, strict-match": 0.375, "gp-IRT, flexible-extract": 0.375
    }  # fmt: skip
    assert [row["n"] for row in rows] == [2, 2] and [row["stderr"] for row in rows] == [None, None]


@needs_harness
def test_the_plain_tasks_are_the_harnesss_but_for_the_mean(scratch):
    from lm_eval.tasks._yaml_loader import load_yaml

    retention.prepare(scratch, gp_irt=False)
    tasks = Path(importlib.util.find_spec("lm_eval").origin).parent / "tasks"
    gp_irt = set()
    for file in scratch.glob("tasks/*.yaml"):
        mine, theirs = (
            load_yaml(f, resolve_func=False) for f in (file, tasks / "tinyBenchmarks" / file.name)
        )
        for own, other in zip(mine["metric_list"], theirs["metric_list"], strict=True):
            if "agg_gpirt" in other["aggregation"]:
                gp_irt.add(mine["task"])
                other["aggregation"] = "mean"
            assert own["aggregation"] == "mean"
        assert mine == json.loads(
            json.dumps(theirs).replace(str(tasks / "tinyBenchmarks"), str(scratch / "tasks"))
        )
    group = load_yaml(tasks / "tinyBenchmarks" / "tinyBenchmarks.yaml")["task"]
    assert {*retention.FIVE, "tinyArc"} == {task["task"] for task in group} == gp_irt
    slices = {
        load_yaml(file, resolve_func=False)["dataset_name"]
        for file in tasks.glob("paloma/paloma_*.yaml")
    }
    assert set(retention.PALOMA) < slices and (tasks / "ifeval" / "ifeval.yaml").exists()


def test_paloma_is_read_document_by_document(loaded, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets", reason="needs requirements-extras.txt")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    texts = ["The heart pumps blood.", "", "Name a random planet.", "P"]
    data_set(
        tmp_path,
        "allenai/paloma",
        "ptb",
        test=[{"text": text} for text in texts],
        val=[{"text": "no"}],
    )
    flags = ("--model", TINY, "--out", tmp_path / "out", "--tasks")
    call(retention, *flags, "paloma_ptb")
    (row,) = read_rows([tmp_path / "out" / "scores.jsonl"])
    assert (
        row["n"] == sum(max(len(loaded[1](text)["input_ids"]) - 1, 0) for text in texts)
        and row["task"] == "paloma_ptb"
    )
    assert row["value"] == retention.perplexity(*loaded[:2], "ptb", texts)[0]["value"]
    assert "did not run: paloma_c4_en (" in complaint(
        retention, *flags, "paloma_ptb", "paloma_c4_en"
    )


def test_without_the_harness_one_line_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    line = complaint(retention, "--model", TINY, "--out", tmp_path, "--tasks", "ifeval")
    assert "pip install -r requirements-extras.txt" in line


def test_mean_of_six_and_differences():
    """Worked by hand."""

    def rows(method, kind, values, flexible):
        source = {"model": "a/b", "method": method, "axis": "retention", "stderr": None, "n": 100}
        out = [
            source | {"task": t, "metric": kind, "value": v}
            for t, v in zip(retention.FIVE, values, strict=True)
        ]
        out[-1]["metric"] += ", strict-match"
        return [
            *out,
            out[-1] | {"metric": f"{kind}, flexible-extract", "value": flexible, "stderr": 0.03},
        ]

    base = rows("base", "gp-IRT", (0.5, 0.25, 0.5, 0.75, 0.5), 0.5)
    soft = rows("soft", "gp-IRT", (0.5, 0.0, 0.5, 0.75, 0.25), 0.25)
    means = [retention.mean_of_six(own) for own in (base, soft)]
    assert [(m["task"], m["metric"], m["value"], m["n"]) for (m,) in means] == [
        ("mean of six", "gp-IRT", 0.5, 600), ("mean of six", "gp-IRT", 0.375, 600)
    ]  # fmt: skip
    arc = base[0] | {"task": "tinyArc", "value": 0.0}
    assert retention.mean_of_six([*base, arc])[0]["value"] == 0.5  # ARC is not among the paper's
    plain = rows("base", "acc_norm", (0.5, 0.25, 0.5, 0.75, 0.5), 0.5)
    assert retention.mean_of_six(plain)[0]["metric"] == "accuracy"
    assert retention.mean_of_six(base[1:]) == retention.mean_of_six([*plain[:3], *base[3:]]) == []
    assert retention.mean_of_six([base[0] | {"value": None}, *base[1:]]) == []

    lines = retention.table([*base, *means[0], *soft, *means[1], arc])
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert cells[0] == ["task", "score", "n", "base", "soft", "soft - base"]
    assert cells[3] == ["tinyHellaswag", "gp-IRT", "100", "0.250", "0.000", "-0.250"]
    assert cells[7] == [
        "tinyGSM8k",
        "gp-IRT, flexible-extract",
        "100",
        "0.500 ± 0.030",
        "0.250 ± 0.030",
        "-0.250",
    ]
    assert cells[8] == ["mean of six", "gp-IRT", "600", "0.500", "0.375", "-0.125"]
    assert cells[9] == ["tinyArc", "gp-IRT", "100", "0.000", "–", "–"]


# ------------------------------------------------------------------------------------ the adapter in other tools

IDS = torch.arange(40)[None]


def test_an_adapter_loads_in_peft_alone_and_merges(adapters, model):
    with torch.inference_mode():
        wanted = trie.load(TINY, adapters["soft"])[0](input_ids=IDS).logits
        base = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
        tuned = PeftModel.from_pretrained(base, adapters["soft"]).eval()
        assert torch.equal(tuned(input_ids=IDS).logits, wanted)
        merged = tuned.merge_and_unload()
        assert torch.allclose(merged(input_ids=IDS).logits, wanted, atol=1e-3)
        assert not torch.allclose(model(input_ids=IDS).logits, wanted, atol=1e-2)


def test_vllm_can_take_the_adapter(adapters):
    """What `vllm serve --enable-lora --max-lora-rank 16` asks of a folder, as far as it can be seen without a GPU."""
    for folder in adapters.values():
        config = json.loads((folder / "adapter_config.json").read_text())
        assert (
            config["peft_type"] == "LORA"
            and config["task_type"] == "CAUSAL_LM"
            and config["r"] == 16
        )
        assert config["bias"] == "none" and not config["use_dora"] and not config["modules_to_save"]
        assert (
            not config["rank_pattern"]
            and not config["alpha_pattern"]
            and not config["layers_to_transform"]
        )
        assert set(config["target_modules"]) == {"q_proj", "k_proj", "v_proj", "o_proj"}
        weights = load_file(folder / "adapter_model.safetensors")
        sizes = json.loads((Path(TINY) / "config.json").read_text())
        heads, groups = (
            sizes[key] * sizes["head_dim"] for key in ("num_attention_heads", "num_key_value_heads")
        )
        widths = {"q": (sizes["hidden_size"], heads), "k": (sizes["hidden_size"], groups)}
        widths |= {"v": widths["k"], "o": (heads, sizes["hidden_size"])}
        expected = {}
        for layer in range(sizes["num_hidden_layers"]):
            for name, (width, height) in widths.items():
                stem = f"base_model.model.model.layers.{layer}.self_attn.{name}_proj.lora_"
                expected |= {f"{stem}A.weight": (16, width), f"{stem}B.weight": (height, 16)}
        assert {key: tuple(value.shape) for key, value in weights.items()} == expected


def test_help_is_the_docstring(capsys):
    with pytest.raises(SystemExit) as ending:
        call(retention, "--help")
    assert ending.value.code == 0 and retention.__doc__.strip() in capsys.readouterr().out
    assert len(retention.__doc__.splitlines()) <= 25
    assert "--help lists the options" in complaint(retention, "--nonsense")
