"""The scripts as a user runs them: the whole chain on a few prompts, kills and reruns, and every kind of bad input."""

import argparse
import json
import os
import resource
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import BRIEF, ENV, ROOT, TINY, call, command, complaint, script, train
from safetensors.torch import load_file, save_file

import distributions
import metrics
import sample as sample_script
import train_hard
import train_soft
import trie
from distributions import InputError, read_rows, run, to_jsonl, write_text

METRICS = {
    "normalized_w1",
    "cdf_gap",
    "tv",
    "excess_tv",
    "logit_kl",
    "logit_kl_floor",
    "excess_kl",
    "form_kl",
    "shape_kl",
    "valid_rate",
}
METRICS |= {"gof_pass_rate", "answer_rate", "tokens"}
SOURCE = {
    "model",
    "method",
    "axis",
    "protocol",
    "draws",
    "tokens",
    "seconds",
}  # what sample.py adds to every row


def sample(out, *flags) -> list[dict]:
    """sample.py on the embedded model; the rows it wrote."""
    call(sample_script, *flags, "--model", TINY, "--out", out)
    assert not out.with_name(out.name + ".partial").exists()
    return read_rows([out])


# ------------------------------------------------------------------------------------------------- the chain


@pytest.mark.parametrize("method, steps", [("soft", 3), ("hard", 3)])
def test_training_writes_adapter_log_and_provenance(adapters, method, steps):
    out = adapters[method]
    assert {p.name for p in out.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "log.jsonl",
        "run.json",
    }
    log = read_rows([out / "log.jsonl"], ("step", "loss", "floor", "lr", "tokens", "seconds"))
    assert [entry["step"] for entry in log] == list(range(1, steps + 1))
    assert all(0 < entry["floor"] < entry["loss"] and entry["tokens"] > 0 for entry in log)
    assert log[-1]["loss"] < log[0]["loss"]
    record = json.loads((out / "run.json").read_text())
    assert record["args"]["limit"] == 48 and record["args"]["seed"] == 0
    assert (
        record["versions"]["torch"]
        and record["device"]
        and record["identity"] == trie.identity(TINY) != TINY
    )
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (16, 32, 0.05)
    assert config["target_modules"] == [
        "k_proj",
        "o_proj",
        "q_proj",
        "v_proj",
    ]  # in this order, whatever the run


def test_defaults_are_the_papers_recipe(data, tmp_path):
    """189 steps of 32 prompts for soft, 1988 of 32 completions for hard: counted by a scheduler that stops at once."""
    for method, steps, epochs, draws in (("soft", 189, 3, 1), ("hard", 1988, 2, 16)):
        code = (
            f"import sys; sys.argv = ['x', '--model', {TINY!r}, '--data', {str(data / 'train.jsonl')!r}, '--out', "
            f"{str(tmp_path / method)!r}]; import train_{method} as t\n"
            "def stop(optimizer, warmup, steps): print('STEPS', steps, warmup); raise SystemExit\n"
            "t.get_cosine_schedule_with_warmup = stop; t.main()"
        )
        result = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=ENV, capture_output=True, text=True
        )
        assert f"STEPS {steps} {round(0.03 * steps)}" in result.stdout, result.stderr
        args = json.loads((tmp_path / method / "run.json").read_text())["args"]
        wanted = {"batch": 32, "epochs": epochs, "lr": 2e-4, "draws": draws, "branches": 1}
        assert {key: args[key] for key in wanted} == wanted


def test_another_seed_is_another_adapter_and_accumulation_changes_nothing(adapters, data, tmp_path):
    weights = load_file(adapters["soft"] / "adapter_model.safetensors")
    other = load_file(
        train("soft", tmp_path / "other", data, *BRIEF, "--seed", 1) / "adapter_model.safetensors"
    )
    assert any(not torch.equal(weights[key], other[key]) for key in weights)
    for method in ("soft", "hard"):
        logs = []
        for parts in (1, 3):
            flags = (
                "--limit",
                24,
                "--epochs",
                1,
                "--draws",
                2,
                "--branches",
                2,
                "--accumulate",
                parts,
            )
            out = train(method, tmp_path / f"{method}{parts}", data, *flags)
            logs.append(read_rows([out / "log.jsonl"])[0])
        assert (
            logs[0]["floor"] == pytest.approx(logs[1]["floor"])
            and logs[0]["tokens"] == logs[1]["tokens"]
        )
        # LoRA starts at 0: dropout has no effect yet
        assert logs[0]["loss"] == pytest.approx(logs[1]["loss"], rel=1e-5)


def test_two_trainings_alike_give_the_same_bytes(adapters, data, tmp_path):
    again = train("soft", tmp_path / "soft", data, *BRIEF)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (again / name).read_bytes() == (adapters["soft"] / name).read_bytes()


def test_chain_from_rows_to_table(adapters, prompts, tmp_path):
    files = []
    for method in ("base", "soft", "hard"):
        folder = tmp_path / method if method == "base" else adapters[method]
        files.append(folder / "numbers.jsonl")
        adapter = () if method == "base" else ("--adapter", folder)
        rows = sample(files[-1], "numbers", "--prompts", *prompts, "--n", 100, *adapter)
        source = read_rows(prompts)
        assert [{key: row[key] for key in source[0]} for row in rows] == source
        added = SOURCE | {"bins", "logit_kl", "logit_kl_form", "logit_kl_floor"}
        for row in rows:
            assert set(row) - set(source[0]) == added and (row["model"], row["method"]) == (
                TINY,
                method,
            )
            assert len(row["draws"]) == 100 and all(isinstance(text, str) for text in row["draws"])
            assert row["protocol"] is None and 100 < row["tokens"] <= 100 * 32
    report, logs = (
        tmp_path / "report.md",
        [adapters["soft"] / "log.jsonl", adapters["hard"] / "log.jsonl"],
    )
    result = script("metrics.py", *files, *logs, "--out", tmp_path / "s.jsonl", "--report", report)
    assert result.returncode == 0, result.stderr
    for file in files[1:]:
        file.unlink()
    scores = read_rows([tmp_path / "s.jsonl"])
    assert all(
        list(s) == ["model", "method", "axis", "split", "metric", "value", "low", "high", "n"]
        for s in scores
    )
    expected = {
        (m, s, k)
        for m in ("base", "soft", "hard", "target")
        for s in ("unseen", "ood")
        for k in METRICS
    }
    assert {(s["method"], s["split"], s["metric"]) for s in scores} == expected and len(
        scores
    ) == len(expected)
    table = result.stdout.split("\n\n")[1]
    assert table in report.read_text()
    assert [line.split("|")[3].strip() for line in table.split("\n")[2:6]] == [
        "base",
        "soft",
        "hard",
        "target",
    ]


def test_language_and_ssot_from_prompts_to_tables(adapters, prompts, tmp_path, capsys):
    mine = tmp_path / "mine.jsonl"
    write_text(
        mine,
        to_jsonl(
            [{"id": "a", "prompt": "Name a random planet. Output ONLY the answer.", "note": 1}]
        ),
    )
    long = ("--protocol", "ssot", "--n", 6, "--max-tokens", 130)
    files = [tmp_path / f"{name}.jsonl" for name in ("open", "ssot", "mcq", "numbers")]
    rows = {
        "open": sample(
            tmp_path / "open.jsonl", "open", "--prompts", mine, "--adapter", adapters["soft"]
        ),
        "open ssot": sample(tmp_path / "ssot.jsonl", "open", "--prompts", mine, *long),
        "mcq": sample(tmp_path / "mcq.jsonl", "mcq", "--n", 5),
        "numbers ssot": sample(
            tmp_path / "numbers.jsonl", "numbers", "--prompts", prompts[1], *long
        ),
    }
    (row,) = rows["open"]
    assert (
        set(row) == {"id", "prompt", "note", "support_90", "top"} | SOURCE
        and row["method"] == "soft"
    )
    assert len(row["draws"]) == 100 <= row["tokens"]
    assert len(row["top"]) == 20 and all(isinstance(text, str) for text, _ in row["top"])
    probs = [p for _, p in row["top"]]
    assert probs == sorted(probs, reverse=True) and sum(probs[: row["support_90"]]) >= 0.9
    assert sum(probs[: row["support_90"] - 1]) < 0.9
    (row,) = rows["mcq"]
    assert (
        row["id"] == "mcq-000"
        and len(row["draws"]) == 5
        and all(row["draws"])
        and 0 < row["tokens"] <= 5 * 256
    )
    for row in rows["open ssot"] + rows["numbers ssot"]:
        assert (
            row["method"] == row["protocol"] == "ssot"
            and len(row["draws"]) == 6
            and "logit_kl" not in row
        )
        assert (
            any("</" in text for text in row["draws"]) and row["tokens"] > 100
        )  # the raw texts are kept
    assert [row["family"] for row in rows["numbers ssot"]] == [
        row["family"] for row in read_rows([prompts[1]])
    ]
    call(metrics, *files, "--out", tmp_path / "s")
    page = capsys.readouterr().out
    assert (
        all(f"**{axis}**" in page for axis in ("numbers", "open", "mcq"))
        and page.count("| ssot ") == 2
    )
    assert {row["axis"] for row in read_rows([tmp_path / "s"])} == {"numbers", "open", "mcq"}


def test_a_method_is_a_file(kit):
    """make trains method x with train_x.py and puts it in every table: no other edit."""
    source = (kit / "train_soft.py").read_text()
    line = "    return (kl * real).sum(1) / real.sum(1)\n"
    assert source.count(line) == 1
    (kit / "train_mine.py").write_text(source.replace(line, line.replace("(1)\n", "(1) * 2\n")))
    words = [
        "make",
        f"PYTHON={sys.executable}",
        "METHODS=mine",
        "AXES=open",
        "FLAGS=--lr 1e-3 --limit 32 --epochs 1",
    ]
    words += ["FLAGS_open=--n 4"]
    result = subprocess.run([*words, "reproduce"], cwd=kit, env=ENV, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "| mine " in result.stdout and "| mine " in (kit / "runs/tiny/report.md").read_text()
    assert (
        read_rows([kit / "runs/tiny/mine/log.jsonl"])[0]["loss"] > 1.5
    )  # twice what soft begins with


ARCSINE = """
    "arcsine": Family("Arcsine", "a b", stats.arcsine, args=lambda a, b: (a, b - a),
        train=[(a, a + w) for a in lin(-2, 2, 5) for w in (1, 2, 4)], unseen=((3, 9),)),
"""


def test_a_new_family_is_one_entry(tmp_path, monkeypatch, capsys):
    """Data, training, draws, exact scores and table follow from the entry alone."""
    source = (ROOT / "distributions.py").read_text()
    (tmp_path / "distributions.py").write_text(
        source.replace("FAMILIES = {\n", "FAMILIES = {" + ARCSINE)
    )
    namespace = runpy.run_path(str(tmp_path / "distributions.py"))
    monkeypatch.setattr(distributions, "FAMILIES", namespace["FAMILIES"])
    call(distributions, "--out", tmp_path / "data")
    new = {
        split: [
            r for r in read_rows([tmp_path / f"data/{split}.jsonl"]) if r["family"] == "arcsine"
        ]
        for split in ("train", "unseen")
    }
    assert len(new["train"]) == 15
    assert new["unseen"][0]["prompt"].count("Arcsine distribution with parameters a=3, b=9") == 1
    for split, rows in new.items():
        write_text(tmp_path / f"{split}.jsonl", to_jsonl(rows))
    brief = ("--epochs", 1, "--batch", 8, "--lr", "5e-3")
    call(
        train_soft,
        "--model",
        TINY,
        "--data",
        tmp_path / "train.jsonl",
        "--out",
        tmp_path / "soft",
        *brief,
    )
    for name, adapter in (("none", ()), ("soft", ("--adapter", tmp_path / "soft"))):
        flags = (
            "--prompts",
            tmp_path / "unseen.jsonl",
            "--n",
            50,
            "--out",
            tmp_path / f"{name}.jsonl",
        )
        call(sample_script, "numbers", "--model", TINY, *adapter, *flags)
    call(
        metrics,
        tmp_path / "none.jsonl",
        tmp_path / "soft.jsonl",
        "--out",
        tmp_path / "scores.jsonl",
    )
    scores = {
        (r["method"], r["metric"]): r["value"] for r in read_rows([tmp_path / "scores.jsonl"])
    }
    assert (
        scores["soft", "excess_kl"] < scores["base", "excess_kl"]
        and scores["target", "excess_kl"] == 0
    )
    assert scores["target", "gof_pass_rate"] == 1 and "| target " in capsys.readouterr().out


# ------------------------------------------------------------------------------------------ kills and reruns


def without_time(rows: list[dict]) -> list[dict]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


@pytest.mark.parametrize("kind", ["ssot", "open"])
def test_sampling_killed_midway_ends_the_same(kind, prompts, tmp_path):
    """No row is lost or repeated, and whatever the batch size; with other options it is refused, and kept."""
    (tmp_path / "asked.json").write_text(
        json.dumps([f"Name a random {x}." for x in ("city", "bird", "tree", "fish")])
    )
    flags = {
        "ssot": [
            "numbers",
            "--prompts",
            *prompts,
            "--n",
            6,
            "--protocol",
            "ssot",
            "--max-tokens",
            60,
        ],
        "open": ["open", "--prompts", tmp_path / "asked.json", "--n", 60],
    }[kind]
    whole = without_time(sample(tmp_path / "whole.jsonl", *flags))
    out, partial = tmp_path / "out.jsonl", tmp_path / "out.jsonl.partial"
    flags += ["--rows", 4]
    process = subprocess.Popen(
        command("sample.py", *flags, "--model", TINY, "--out", out),
        env=ENV,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # a shell's background jobs ignore it
    )
    while process.poll() is None and not (partial.exists() and partial.stat().st_size):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT if kind == "open" else signal.SIGKILL)
    said = process.communicate()[1].decode()
    assert kind == "ssot" or said.endswith(
        "sample.py: interrupted; the same command goes on (a training: from its beginning)\n"
    )
    assert "Traceback" not in said and not out.exists() and partial.exists()
    with open(partial, "a") as file:
        file.write('{"id": "cut off in the mid')

    kept, record = partial.read_bytes(), tmp_path / "out.run.json"
    line = complaint(sample_script, *flags, "--model", TINY, "--out", out, "--seed", 5)
    assert f"{partial} was made with other options (see {record})" in line
    moved = record.rename(tmp_path / "elsewhere")
    assert f"{partial} was made with other" in complaint(
        sample_script, *flags, "--model", TINY, "--out", out
    )
    moved.rename(record)
    assert partial.read_bytes() == kept
    assert (
        without_time(sample(out, *flags[:-1], 3)) == whole
    )  # with other --rows, as after running out of memory


def test_a_partial_file_of_other_inputs_or_code_is_refused_and_kept(adapters, prompts, tmp_path):
    """What another model, other prompts or another version of the code has drawn never ends in one file with the rest."""
    out, partial = tmp_path / "out.jsonl", tmp_path / "out.jsonl.partial"
    flags = ("numbers", "--n", 3, "--paths", 2, "--model", TINY, "--out", out)
    call(sample_script, *flags, "--prompts", *prompts)
    whole = out.read_text()
    partial.write_text(kept := whole[: whole.index("\n") + 1])
    out.unlink()

    changed = shutil.copytree(TINY, tmp_path / "changed")
    (changed / "chat_template.jinja").write_text(
        (changed / "chat_template.jinja").read_text() + " "
    )
    for other in (
        ("--prompts", prompts[0]),
        ("--prompts", *prompts, "--adapter", adapters["soft"]),
        ("--prompts", *prompts, "--model", changed),
    ):
        assert "was made with other inputs" in complaint(sample_script, *flags, *other)
    record = json.loads((tmp_path / "out.run.json").read_text())
    write_text(tmp_path / "out.run.json", json.dumps(record | {"code": "of another day"}))
    assert "was made with other code" in complaint(sample_script, *flags, "--prompts", *prompts)
    write_text(tmp_path / "out.run.json", json.dumps(record))
    assert partial.read_text() == kept and not out.exists()
    call(sample_script, *flags, "--prompts", *prompts)
    assert out.read_text().startswith(kept) and without_time(read_rows([out])) == without_time(
        map(json.loads, whole.splitlines())
    )


def test_partial_files_are_told_from_backups_and_missing_rows_are_named(tmp_path):
    """A FILE.partial.bak is a user's own, FILE.v1 and FILE.v2 have records of their own, and a machine that cannot see
    the rows of the others, or never got theirs, says so and keeps its own."""
    out, args, asked = (
        tmp_path / "rows.v1",
        argparse.Namespace(model=TINY),
        [{"id": "a"}, {"id": "b"}],
    )
    (tmp_path / "rows.v1.partial.bak").write_text("mine\n")
    write = lambda answer: sample_script.write_rows(out, args, {}, asked, answer)
    with pytest.raises(
        InputError, match="no row of b: another run took it, or machines do not share"
    ):
        write(lambda todo: todo[:1])
    assert not out.exists() and read_rows([tmp_path / "rows.v1.partial"]) == asked[:1]
    write(lambda todo: todo)
    assert read_rows([out]) == asked
    assert {path.name for path in tmp_path.iterdir()} == {
        "rows.v1",
        "rows.v1.partial.bak",
        "rows.v1.run.json",
    }


def test_result_rows_are_not_prompts(prompts, tmp_path):
    """A protocol's rows would keep the base model's logit KL; and who trains on what was drawn, trains on the evaluation."""
    out = tmp_path / "base.jsonl"
    sample(out, "numbers", "--prompts", *prompts, "--n", 2, "--paths", 2)
    flags = ("numbers", "--model", TINY, "--protocol", "batch", "--out", tmp_path / "batch.jsonl")
    assert f"{out}:1: id, split, prompt must be texts, and there must be no draws" in complaint(
        sample_script, *flags, "--prompts", out
    )
    training = ("--model", TINY, "--data", out, "--out", tmp_path / "soft")
    assert "there must be no draws yet" in complaint(train_soft, *training)
    asked = sample(tmp_path / "open.jsonl", "open", "--prompts", *prompts, "--n", 2)
    flags = ("open", "--model", TINY, "--out", tmp_path / "again.jsonl")
    assert (
        "no draws yet" in complaint(sample_script, *flags, "--prompts", tmp_path / "open.jsonl")
        and len(asked) == 4
    )


def test_prompts_given_in_two_options_are_all_asked(prompts, tmp_path):
    flags = ("--prompts", prompts[0], "--prompts", prompts[1], "--n", 2, "--paths", 2)
    assert len(sample(tmp_path / "rows.jsonl", "numbers", *flags)) == 4


@pytest.fixture
def small_disk():
    """No file may grow above 60 kB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, before[1]))
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, before)
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_loses_nothing(adapters, data, tmp_path, small_disk):
    flags = (
        "numbers",
        "--prompts",
        data / "unseen.jsonl",
        "--adapter",
        adapters["hard"],
        "--model",
        TINY,
    )
    assert "File too large" in complaint(sample_script, *flags, "--out", tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()
    line = complaint(
        train_soft,
        "--model",
        TINY,
        "--data",
        data / "train.jsonl",
        "--out",
        tmp_path / "soft",
        *BRIEF,
    )
    assert "File too large" in line and not (tmp_path / "soft" / "adapter_config.json").exists()
    small_disk()
    kept = (tmp_path / "out.jsonl.partial").read_bytes().rpartition(b"\n")[0]
    assert kept.count(b"\n") >= 1
    call(sample_script, *flags, "--out", tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_bytes().startswith(kept) and len(
        read_rows([tmp_path / "out.jsonl"])
    ) == 24


def test_out_of_memory_names_the_option(prompts, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.")

    monkeypatch.setattr(trie, "extend", full)
    line = complaint(
        sample_script,
        "numbers",
        "--prompts",
        *prompts,
        "--model",
        TINY,
        "--out",
        tmp_path / "out.jsonl",
    )
    assert "out of memory" in line and "lower --rows" in line and "--accumulate" in line


# ------------------------------------------------------------------------------------------- what is there already


def test_what_is_there_is_not_overwritten(adapters, data, prompts, tmp_path):
    """Each script called by hand refuses an --out that is there, and says what to remove."""
    before = (adapters["soft"] / "run.json").read_bytes()
    for module in (train_soft, train_hard):
        line = complaint(
            module, "--model", TINY, "--data", data / "train.jsonl", "--out", adapters["soft"]
        )
        assert (
            f"{adapters['soft']}/adapter_config.json is there already; remove {adapters['soft']} to make"
            in line
        )
    assert (adapters["soft"] / "run.json").read_bytes() == before

    numbers = ("numbers", "--model", TINY, "--prompts", *prompts, "--n", 2, "--paths", 2, "--out")
    rows = sample(tmp_path / "rows.jsonl", *numbers[:-1])
    for out in (tmp_path / "rows.jsonl", prompts[0], tmp_path):  # rows, an input, a folder
        assert f"{out} is there already; remove {out} to make it anew" in complaint(
            sample_script, *numbers, out
        )
    assert read_rows([tmp_path / "rows.jsonl"]) == rows and len(read_rows(prompts)) == 4

    write_text(tmp_path / "data" / "ood.jsonl", to_jsonl(rows))
    line = complaint(distributions, "--out", tmp_path / "data")
    assert f"{tmp_path / 'data' / 'ood.jsonl'} is there already, with other prompts" in line
    assert read_rows([tmp_path / "data" / "ood.jsonl"]) == rows


def test_rows_that_pandas_joined_score_as_before(prompts, tmp_path):
    """What is missing in some rows is null in them."""
    base, own = tmp_path / "base.jsonl", tmp_path / "own.jsonl"
    rows = sample(base, "numbers", "--prompts", prompts[0], "--n", 2, "--paths", 2)
    write_text(tmp_path / "coin.jsonl", json.dumps(OWN) + "\n")
    rows += sample(own, "numbers", "--prompts", tmp_path / "coin.jsonl", "--n", 2, "--paths", 2)
    keys = {key for row in rows for key in row}
    write_text(
        tmp_path / "joined.jsonl", to_jsonl({key: row.get(key) for key in keys} for row in rows)
    )
    call(metrics, base, own, "--out", tmp_path / "apart")
    call(metrics, tmp_path / "joined.jsonl", "--out", tmp_path / "joined")
    assert (tmp_path / "apart").read_text() == (tmp_path / "joined").read_text()


def test_scores_replace_nothing_but_scores(prompts, tmp_path):
    rows = tmp_path / "rows.jsonl"
    before = sample(rows, "numbers", "--prompts", *prompts, "--n", 2, "--paths", 2)
    notes = tmp_path / "README.md"
    notes.write_text("# Notes\n")
    for out in (rows, prompts[0]):
        assert f"{out} is there, and metrics.py did not write it" in complaint(
            metrics, rows, "--out", out
        )
    assert (
        str(notes) in complaint(metrics, rows, "--out", notes) and notes.read_text() == "# Notes\n"
    )
    assert read_rows([rows]) == before and len(read_rows(prompts)) == 4
    for _ in range(2):
        call(metrics, rows, "--out", tmp_path / "scores.jsonl")
    assert str(rows) in complaint(
        metrics, rows, "--out", tmp_path / "scores.jsonl", "--report", rows
    )
    log, scores = tmp_path / "log.jsonl", tmp_path / "scores.jsonl"
    log.write_text('{"step": 1}\n')
    kept = scores.read_text()
    assert f"{log}:1" in complaint(metrics, log, "--out", scores) and scores.read_text() == kept
    notes.write_text("**Notes**\n")
    assert str(notes) in complaint(
        metrics, rows, "--out", tmp_path / "scores.jsonl", "--report", notes
    )
    assert read_rows([rows]) == before and notes.read_text() == "**Notes**\n"
    for _ in range(2):
        call(metrics, rows, "--out", tmp_path / "scores.jsonl", "--report", tmp_path / "report.md")


def test_one_warning_of_transformers_is_silenced_and_no_other():
    code = "import warnings, trie\nfor text in ('`is_gradient_checkpointing` is deprecated', 'Another one'):\n"
    code += "    warnings.warn(text, FutureWarning)"
    env = {key: value for key, value in ENV.items() if key != "PYTHONWARNINGS"}
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True
    ).stderr
    assert "Another one" in said and "is_gradient" not in said


@pytest.mark.parametrize(
    "name", ["base", "ssot", "batch", "verbalized", "target", "target-soft", "figures"]
)
def test_names_that_mean_something_else_are_refused(adapters, data, tmp_path, name):
    """Before training, and not after; and where an adapter is used under such a name."""
    arguments = ("--model", TINY, "--data", data / "train.jsonl", "--out", tmp_path / "new" / name)
    assert (
        f"a method cannot be called '{name}'" in complaint(train_soft, *arguments)
        and not (tmp_path / "new").exists()
    )
    adapter = shutil.copytree(adapters["soft"], tmp_path / name)
    arguments = ("open", "--model", TINY, "--adapter", adapter, "--out", tmp_path / "rows.jsonl")
    assert f"a method cannot be called '{name}'" in complaint(sample_script, *arguments)


# ------------------------------------------------------------------------------------------------- bad input


def test_an_adapter_without_effect_is_refused(adapters, tmp_path):
    idle = shutil.copytree(adapters["soft"], tmp_path / "idle")
    weights = load_file(idle / "adapter_model.safetensors")
    zeroed = {
        key: torch.zeros_like(value) if "lora_B" in key else value for key, value in weights.items()
    }
    for variant in (
        zeroed,
        {key.replace("q_proj", "other"): value for key, value in zeroed.items()},
    ):
        save_file(variant, idle / "adapter_model.safetensors")
        with pytest.raises(InputError, match="changes nothing"):
            trie.load(TINY, str(idle))
    diverged = {key: torch.full_like(value, torch.nan) for key, value in weights.items()}
    save_file(diverged, idle / "adapter_model.safetensors")
    with pytest.raises(InputError, match="not finite"):
        trie.load(TINY, str(idle))


ROW = {"id": "a", "split": "ood", "family": "poisson", "params": {"lambda": 4}, "prompt": "p"}
OWN = {"id": "a", "split": "ood", "prompt": "p", "outputs": ["1", "2"], "probs": [0.5, 0.5]}


@pytest.mark.parametrize(
    "lines, message",
    [
        ("", "f.jsonl:1: "),
        ('{"id": 1}\n', "f.jsonl:1: needs an object with the keys id, split, prompt"),
        ("[1]\n", "f.jsonl:1: needs an object"),
        (json.dumps(ROW) + "\n{oops\n", "f.jsonl:2: "),
        (json.dumps(ROW) + "\n" + json.dumps(ROW) + "\n", "f.jsonl:2: id 'a' was already at"),
        (
            json.dumps(ROW | {"params": {"lambda": float("nan")}}) + "\n",
            "f.jsonl:1: invalid literal for int() with base 10: 'N",
        ),
        (
            json.dumps(ROW | {"note": float("nan")}) + "\n",
            "f.jsonl:1: invalid literal for int() with base 10: 'N",
        ),
        (json.dumps(ROW | {"family": "fish"}) + "\n", "f.jsonl:1: unknown family 'fish'"),
        (
            json.dumps(ROW | {"params": {"lambda": -4}}) + "\n",
            "f.jsonl:1: poisson: there is none with {'lambda': -4}",
        ),
        (
            json.dumps(ROW | {"params": {"lambda": "four"}}) + "\n",
            "f.jsonl:1: poisson: there is none with",
        ),
        (json.dumps(ROW | {"id": 7}) + "\n", "f.jsonl:1: id, split, prompt must be texts"),
        (json.dumps(ROW | {"params": {}}) + "\n", "f.jsonl:1: poisson takes the parameters lambda"),
        (
            json.dumps({k: v for k, v in ROW.items() if k != "family"}) + "\n",
            "f.jsonl:1: unknown family None",
        ),
        (
            json.dumps(OWN | {"outputs": ["1", "1"]}) + "\n",
            "f.jsonl:1: outputs must be two or more different texts",
        ),
        (
            json.dumps(OWN | {"probs": [0.5, 0.4]}) + "\n",
            "f.jsonl:1: probs must be above 0, and must sum to 1",
        ),
    ],
)
def test_bad_rows_are_one_line_with_file_and_line(tmp_path, lines, message):
    (tmp_path / "f.jsonl").write_text(lines)
    for module in (train_soft, train_hard, sample_script):
        arguments = ["numbers", "--prompts"] if module is sample_script else ["--data"]
        arguments += [tmp_path / "f.jsonl", "--model", TINY, "--out", tmp_path / "out"]
        assert message in complaint(module, *arguments)
        assert not (tmp_path / "out").exists()


def test_a_complaint_is_all_that_is_printed(adapters, prompts, tmp_path):
    """One line, also after a model was loaded, and nothing at all where nothing is wrong but the progress bar."""
    quiet = {key: value for key, value in ENV.items() if key != "PYTHONWARNINGS"}
    adapter = shutil.copytree(adapters["soft"], tmp_path / "broken")
    (adapter / "adapter_config.json").write_text("{")
    asked = [
        "numbers",
        "--model",
        TINY,
        "--prompts",
        *prompts,
        "--n",
        2,
        "--paths",
        2,
        "--out",
        tmp_path / "rows.jsonl",
    ]
    for arguments in (["numbers", "--n", 0], [*asked, "--adapter", adapter]):
        result = subprocess.run(
            command("sample.py", *arguments), env=quiet, capture_output=True, text=True
        )
        assert result.returncode == 1 and result.stdout == "" and result.stderr.count("\n") == 1, (
            result.stderr
        )
    flags = ["--adapter", adapters["soft"]]
    result = subprocess.run(
        command("sample.py", *asked, *flags), env=quiet, capture_output=True, text=True
    )
    assert result.returncode == 0 and result.stdout == "", result.stderr
    assert all(
        line.startswith(f"{tmp_path}/rows.jsonl: ")
        for line in result.stderr.split("\n")
        if line.strip()
    )
    train = ["--model", TINY, "--data", *prompts[:1], "--epochs", 1, "--out", tmp_path / "soft"]
    result = subprocess.run(
        command("train_soft.py", *train), env=quiet, capture_output=True, text=True
    )
    assert result.returncode == 0 and "arning" not in result.stderr, result.stderr


@pytest.mark.parametrize(
    "module, arguments, message",
    [
        (distributions, [], "--out"),
        (distributions, ["--out", "/proc/nowhere"], "/proc/nowhere"),
        (distributions, ["--out", "OUT", "--decimals", "0"], "--decimals must be a positive number, got 0"),
        (sample_script, [], "numbers"),
        (sample_script, ["numbers", "--model", TINY, "--prompts", "PROMPTS", "--out", "OUT", "--n", "0"], "--n must be a positive number, got 0"),
        (sample_script, ["numbers", "--model", TINY, "--prompts", "PROMPTS", "--out", "OUT", "--n", "-3"], "--n must be a positive number, got -3"),
        (sample_script, ["numbers", "--n", "x"], "--n: "),
        (sample_script, ["numbers", "--model", "/no/model", "--prompts", "PROMPTS", "--out", "OUT"], "cannot load the model '/no/model'"),
        (sample_script, ["numbers", "--model", "no/model", "--prompts", "PROMPTS", "--out", "OUT"], "cannot load the model 'no/model'"),
        (sample_script, ["numbers", "--model", TINY, "--prompts", "/no/file", "--out", "OUT"], "/no/file"),
        (sample_script, ["numbers", "--model", TINY, "--prompts", "PROMPTS", "--out", "/proc/x/y.jsonl"], "/proc/x"),
        (sample_script, ["numbers", "--model", TINY, "--adapter", "/no/a", "--prompts", "PROMPTS", "--out", "OUT"], "'adapter_config.json' at '/no/a'"),
        (train_soft, ["--model", TINY, "--data", "PROMPTS", "--out", "OUT", "--epochs", "0"], "--epochs must be a positive number"),
        (train_soft, ["--model", TINY, "--data", "PROMPTS", "--out", "OUT", "--lr", "nan"], "--lr must be a positive number"),
        (train_soft, ["--model", TINY, "--data", "PROMPTS", "--out", "OUT", "--lr", "0"], "--lr must be a positive number"),
        (train_soft, ["--model", TINY, "--data", "PROMPTS", "--out", "/proc/x"], "/proc/x"),
        (train_soft, ["--model", "no/model", "--data", "PROMPTS", "--out", "OUT"], "cannot load the model 'no/model'"),
        (train_hard, ["--model", TINY, "--data", "PROMPTS", "--out", "OUT", "--branches", "3"], "--branches 3 must divide --draws 16"),
        (train_hard, ["--model", TINY, "--data", "PROMPTS", "--out", "OUT", "--what"], "unrecognized arguments: --what"),
        (metrics, ["/no/file", "--out", "OUT"], "/no/file"),
        (sample_script, ["open", "--model", TINY, "--prompts", "/no/file", "--out", "OUT"], "/no/file"),
        (sample_script, ["open", "--model", TINY, "--seed", "-1", "--out", "OUT"], "--seed must be a positive number, got -1"),
        (sample_script, ["open", "--model", TINY, "--max-tokens", "0", "--out", "OUT"], "--max-tokens must be a positive number"),
        (sample_script, ["mcq", "--model", TINY, "--protocol", "ssot", "--out", "OUT"], "--protocol"),
        (sample_script, ["open", "--model", TINY, "--protocol", "cot", "--out", "OUT"], "--protocol: invalid choice: 'cot'"),
        (metrics, ["PROMPTS", "--out", "OUT"], "ood.jsonl:1: needs an object with the keys"),
    ],
)  # fmt: skip
def test_bad_arguments_are_one_line(prompts, tmp_path, module, arguments, message):
    known = {"PROMPTS": prompts[1], "OUT": tmp_path / "out"}
    assert message in complaint(module, *(known.get(argument, argument) for argument in arguments))
    assert not (tmp_path / "out").exists()


def test_bad_model_folders_are_one_line(prompts, tmp_path):
    """No causal language model, one whose weights are cut off or missing, one without a chat template."""
    config = json.loads((Path(TINY) / "config.json").read_text())

    def broken(change) -> str:
        folder = shutil.copytree(TINY, tmp_path / "broken", dirs_exist_ok=True)
        change(folder)
        return complaint(sample_script, "open", "--model", folder, "--out", tmp_path / "out")

    said = f"cannot load the model '{tmp_path / 'broken'}'"
    vision = json.dumps({"model_type": "vit", "architectures": ["ViTModel"]})
    assert said in broken(lambda folder: (folder / "config.json").write_text(vision))
    assert said in broken(lambda folder: (folder / "config.json").write_text("{"))
    weights = lambda folder: folder / "model.safetensors"
    assert said in broken(
        lambda folder: weights(folder).write_bytes(weights(folder).read_bytes()[:5000])
    )
    for wrong in (
        {"num_hidden_layers": 8},
        {"hidden_size": 96},
    ):  # its layer_types are fewer; its weights are larger
        wrong = json.dumps(config | wrong)
        assert said in broken(
            lambda folder, wrong=wrong: (folder / "config.json").write_text(wrong)
        )
    more = json.dumps(config | {"num_hidden_layers": 7, "layer_types": None})
    assert "lacks " in broken(lambda folder: (folder / "config.json").write_text(more))
    assert "chat template" in broken(lambda folder: (folder / "chat_template.jinja").unlink())
    shutil.rmtree(tmp_path / "broken")
    (tmp_path / "broken").mkdir()
    assert said in complaint(
        sample_script, "open", "--model", tmp_path / "broken", "--out", tmp_path / "out"
    )
    assert not (tmp_path / "out").exists()


def test_a_models_folder_may_have_a_space(prompts, tmp_path):
    folder = shutil.copytree(TINY, tmp_path / "my model")
    out = tmp_path / "rows.jsonl"
    call(
        sample_script,
        "numbers",
        "--model",
        folder,
        "--prompts",
        prompts[1],
        "--n",
        2,
        "--paths",
        2,
        "--out",
        out,
    )
    assert {row["model"] for row in read_rows([out])} == {str(folder)}


def test_an_adapter_belongs_to_what_its_model_is(adapters, prompts, tmp_path):
    """A copy of the model, or another way to write its name, is the same model; the same folder with other weights is
    not."""
    arguments = (
        "numbers",
        "--adapter",
        adapters["soft"],
        "--prompts",
        *prompts,
        "--n",
        2,
        "--paths",
        2,
    )
    other = shutil.copytree(TINY, tmp_path / "other")
    call(sample_script, *arguments, "--model", other, "--out", tmp_path / "copy.jsonl")
    call(
        sample_script,
        *arguments,
        "--model",
        os.path.relpath(TINY),
        "--out",
        tmp_path / "path.jsonl",
    )
    weights = load_file(other / "model.safetensors")
    save_file(
        {k: v * 1.5 for k, v in weights.items()}, other / "model.safetensors", {"format": "pt"}
    )
    line = complaint(sample_script, *arguments, "--model", other, "--out", tmp_path / "out")
    assert "was trained on" in line and TINY in line


def test_broken_adapters_are_one_line(adapters, prompts, tmp_path):
    arguments = (
        "numbers",
        "--prompts",
        *prompts,
        "--out",
        tmp_path / "out",
        "--model",
        TINY,
        "--adapter",
    )
    adapter = shutil.copytree(adapters["soft"], tmp_path / "a")
    weights, config = adapter / "adapter_model.safetensors", adapter / "adapter_config.json"
    whole, settings = weights.read_bytes(), json.loads(config.read_text())
    weights.write_bytes(whole[:5000])
    assert f"the adapter {adapter} does not fit" in complaint(sample_script, *arguments, adapter)
    weights.write_bytes(whole)
    for text in (
        "{",
        json.dumps(settings | {"r": 8}),
        json.dumps(settings | {"target_modules": ["no_proj"]}),
        "[]",
    ):
        config.write_text(text)
        assert f"the adapter {adapter} does not fit" in complaint(
            sample_script, *arguments, adapter
        ), text
    config.unlink()
    assert f"'adapter_config.json' at '{adapter}'" in complaint(sample_script, *arguments, adapter)


def test_every_script_has_help(monkeypatch, capsys):
    for module in (distributions, train_soft, train_hard, sample_script, metrics):
        monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", "--help"])
        with pytest.raises(SystemExit) as ending:
            run(module.main)
        assert ending.value.code == 0 and f"python {module.__name__}.py" in capsys.readouterr().out
