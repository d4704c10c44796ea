"""make's one rule: what is there stays as it is, what is missing is made, and what was made otherwise than is asked now
is refused, before any work, in one line.

A small run is made once; each case changes something in a copy of it, and runs make there again.
"""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ENV, FILES, ROOT, TINY
from safetensors.torch import load_file, save_file

BRIEF = "METHODS=soft AXES='numbers open' N=8 FLAGS='--limit 32 --epochs 1 --lr 1e-3' FLAGS_numbers='--paths 8' FLAGS_open='--n 4'"


def make(folder: Path, arguments: str, **changed: str) -> subprocess.CompletedProcess:
    """`make reproduce` with the small run's arguments, changed by NAME='new value' words; changed: by those of Python."""
    words = dict(
        word.split("=", 1) for word in shlex.split(f"PYTHON={sys.executable} {BRIEF} {arguments}")
    )
    words = [f"{name}={value}" for name, value in (words | changed).items()]
    return subprocess.run(
        ["make", "reproduce", *words],
        cwd=folder,
        env=ENV,
        capture_output=True,
        text=True,
        timeout=300,
    )


def would_make(folder: Path, arguments: str = "") -> list[str]:
    """The files and folders that make would have made, in order: its commands are printed in place of being run."""
    result = make(folder, arguments, PYTHON="echo")
    assert result.returncode == 0, result.stderr
    return [
        line.split(" --out ")[1]
        for line in result.stdout.splitlines()
        if " --out " in line and "metrics" not in line
    ]


def snapshot(folder: Path) -> dict:
    """The bytes of every file of a run, and when it was written."""
    files = [path for path in sorted(folder.glob("runs/**/*")) if path.is_file()]
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in files
    }


def complaints(result: subprocess.CompletedProcess) -> list[str]:
    """What was said on stderr, but for make's own lines that a recipe failed."""
    return [
        line
        for line in result.stderr.splitlines()
        if not line.startswith(("make: ***", "make[1]: ***"))
    ]


def new_kit(folder: Path) -> Path:
    (folder / "tests").mkdir(parents=True)
    for name in ("Makefile", *FILES):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(TINY, folder / "tests" / "tiny")
    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """A kit with a finished small run, and with a fork that has answered the open questions alone."""
    folder = new_kit(tmp_path_factory.mktemp("make") / "kit")
    shutil.copy(folder / "train_soft.py", folder / "train_mine.py")
    for arguments in ("METHODS=mine AXES=open", ""):
        result = make(folder, arguments)
        assert result.returncode == 0, result.stderr
    assert "| soft " in result.stdout and "| mine " not in result.stdout
    return folder


@pytest.fixture
def kit(finished, tmp_path) -> Path:
    """A copy of the finished kit, to change things in."""
    return shutil.copytree(finished, tmp_path / "kit")


def other_weights(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file(
        {name: tensor * 1.5 for name, tensor in weights.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )


# ------------------------------------------------------------------------------------------------ refused

# What is changed in the folder (a shell command), what is asked of make, the file that is named, what it was made with,
# what is asked now, and what the line says to remove.
NUMBERS, OPEN, ADAPTER = (
    f"runs/tiny/{name}"
    for name in ("base/numbers.jsonl", "base/open.jsonl", "soft/adapter_config.json")
)
REFUSED = [
    ("", "N=30", NUMBERS, "--n 8", "--n 30", NUMBERS),
    ("", "FLAGS='--limit 32 --epochs 1 --lr 2e-3'", ADAPTER, "--lr 1e-3", "--lr 2e-3", "runs/tiny/soft"),
    ("", "FLAGS_soft='--draws 8 --branches 8 --lr 2e-3'", ADAPTER, "--branches 8;", "--lr 2e-3", "runs/tiny/soft"),
    ("", "FLAGS='--limit 32 --epochs 1 --lr 1e-3 --seed 1'", ADAPTER, "--lr 1e-3", "--seed 1", "runs/tiny/soft"),
    ("touch train_soft.py", "FLAGS='--lr 0'", ADAPTER, "--lr 1e-3", "--lr 0", "runs/tiny/soft"),
    ("", "FLAGS_numbers='--paths 8 --seed 1'", NUMBERS, "--paths 8", "--seed 1", NUMBERS),
    ("", "FLAGS_open='--n 5'", OPEN, "--n 4", "--n 5", OPEN),
    ("", "FLAGS_data='--decimals 2'", "runs/data/train.jsonl", "distributions.py", "--decimals 2", "runs/data"),
    ("sed -i s/ONE/one/ runs/data/ood.jsonl", "", NUMBERS, "ood.jsonl", "ood.jsonl", NUMBERS),
    ("sed -i s/ONE/one/ runs/data/train.jsonl", "", ADAPTER, "train.jsonl", "train.jsonl", "runs/tiny/soft"),
    ("echo '# new' >> train_soft.py", "", ADAPTER, "train_soft.py", "train_soft.py", "runs/tiny/soft"),
    ("echo '# new' >> train_mine.py", "METHODS=mine AXES=open", "runs/tiny/mine/adapter_config.json", "train_mine.py", "train_mine.py", "runs/tiny/mine"),
    ("rm runs/tiny/soft/numbers.jsonl", "N=30", NUMBERS, "--n 8", "--n 30", NUMBERS),
    ("rm -r runs/tiny/soft", "N=30", NUMBERS, "--n 8", "--n 30", NUMBERS),
    ("rm runs/tiny/base/numbers.jsonl.asked", "", NUMBERS, "no runs/tiny/base/numbers.jsonl.asked", "", NUMBERS),
]  # fmt: skip


def refused(folder: Path, result: subprocess.CompletedProcess, before: dict) -> str:
    """The one line of a refusal that left everything as it was."""
    assert result.returncode != 0 and result.stdout == ""
    (line,) = complaints(result)
    assert snapshot(folder) == before
    return line


@pytest.mark.parametrize("change, arguments, file, made_with, asked_now, remove", REFUSED)
def test_what_was_made_otherwise_is_refused(
    kit, change, arguments, file, made_with, asked_now, remove
):
    subprocess.run(change, shell=True, cwd=kit, check=True)
    before = snapshot(kit)
    line = refused(kit, make(kit, arguments), before)
    assert line.startswith(f"{file}: ") and line.endswith(f" remove {remove} to make it anew")
    made, _, asked = line.partition("asked now: ")
    assert made_with in made and asked_now in asked and (not asked_now or "made with: " in made)


def test_another_model_is_refused(kit):
    """Other weights in the same folder, and another model of the same last name."""
    shutil.copytree(kit / "tests" / "tiny", kit / "other" / "tiny")
    other_weights(kit / "other" / "tiny")
    before = snapshot(kit)
    flags = "FLAGS_soft='--draws 8 --branches 8' MODEL=other/tiny"  # what the Makefile has for the embedded model alone
    line = refused(kit, make(kit, flags), before)
    assert line.startswith(f"{NUMBERS}: made with: model ") and "asked now: model " in line
    other_weights(kit / "tests" / "tiny")
    assert refused(kit, make(kit, ""), before).startswith(f"{NUMBERS}: made with: model ")


def test_a_file_that_lost_a_row_is_refused_by_metrics(kit):
    (kit / "runs/tiny/soft/numbers.jsonl").write_text(
        "".join((kit / "runs/tiny/soft/numbers.jsonl").read_text().splitlines(True)[:-1])
    )
    before = snapshot(kit)
    line = refused(kit, make(kit, ""), before)
    assert line.startswith("metrics.py: error: tests/tiny, numbers: ")
    assert "was asked of base and not of soft" in line and "ood-truncnorm-002" in line


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("MODEL=", "MODEL is empty"),
        ("METHODS=' '", "METHODS is empty"),
        ("AXES=", "AXES is empty"),
        ("N=", "N is empty"),
        ("MODEL='`touch bad`'", "only words of A-Z a-z 0-9 . _ / - can be used"),
        ("MODEL='$(shell touch bad)'", "only words of A-Z a-z 0-9 . _ / - can be used"),
        ("METHODS='soft; touch bad'", "only words of A-Z a-z 0-9 . _ / - can be used"),
        ("METHODS='$(shell touch bad)'", "only words of A-Z a-z 0-9 . _ / - can be used"),
        ("AXES='numbers $$(touch bad)'", "only words of A-Z a-z 0-9 . _ / - can be used"),
        ("MODEL='my model'", "MODEL=my model: one path, without spaces"),
        ("RUN='my run'", "RUN=my run: one path, without spaces"),
        ("DATA='my data'", "DATA=my data: one path, without spaces"),
        ("METHODS='soft base'", "a method cannot be called base"),
        ("METHODS=target-soft", "a method cannot be called target-soft"),
        ("METHODS=figures", "a method cannot be called figures"),
        ("METHODS=../x", "a method cannot be called ../x"),
        ("METHODS=sotf", "there is no train_sotf.py"),
        ("METHODS='soft soft'", "METHODS=soft soft: one of them is there twice"),
        ("AXES='numbers numbers'", "AXES=numbers numbers: one of them is there twice"),
        ("AXES=nubmers", "nubmers is not one of numbers open mcq"),
        ("SEEDS=", "SEEDS is empty"),
        ("SEEDS='0 0'", "METHODS=soft soft: one of them is there twice"),
    ],
)
def test_names_that_cannot_be_are_refused_at_once(kit, arguments, message):
    before = snapshot(kit)
    result = make(kit, arguments)
    assert result.returncode != 0 and result.stdout == "" and snapshot(kit) == before
    (line,) = result.stderr.strip().splitlines()
    assert message in line and not (kit / "bad").exists()


# ------------------------------------------------------------------------------------------- nothing is redone

NOTHING = [
    "",
    "touch train_soft.py sample.py distributions.py trie.py metrics.py Makefile runs/data/*.jsonl tests/tiny/*",
    "echo '# new' | tee -a sample.py trie.py train_hard.py > train_other.py",
    "touch runs/tiny/soft/adapter_config.json runs/data/unseen.jsonl",
]


@pytest.mark.parametrize("change", NOTHING)
def test_a_touched_or_edited_file_does_nothing(kit, change):
    subprocess.run(change, shell=True, cwd=kit, check=True)
    before = snapshot(kit)
    result = make(kit, "")
    assert result.returncode == 0, result.stderr
    assert snapshot(kit) == before and "| soft " in result.stdout  # the tables are shown again


@pytest.mark.parametrize(
    "arguments",
    [
        "FLAGS='--limit 32 --epochs 1 --lr 1e-3 --accumulate 2'",
        "FLAGS_soft='--draws 8 --branches 8 --accumulate 2' FLAGS_numbers='--rows 7 --paths 8'",
        "FLAGS_open='--n 4 --rows 7' FLAGS_numbers='--paths 8 --rows=7'",
        "MODEL=./tests/tiny",
        "MODEL=tests/tiny/",
        "MODEL=tests/../tests/tiny",
        "JOBS=1 LAUNCH=false",
    ],
)
def test_what_changes_no_result_does_nothing(kit, arguments):
    before = snapshot(kit)
    result = make(kit, arguments)
    assert result.returncode == 0 and snapshot(kit) == before, result.stderr


def test_data_are_made_by_one_process_whatever_starts_the_rest(tmp_path):
    kit = new_kit(tmp_path / "kit")
    assert make(kit, "LAUNCH=false").returncode and (kit / "runs/data/train.jsonl").exists()


def test_the_kits_folder_may_have_a_space(finished, tmp_path):
    kit = shutil.copytree(finished, tmp_path / "my kit")
    before = snapshot(kit)
    result = make(kit, "")
    assert result.returncode == 0 and snapshot(kit) == before, result.stderr


def test_an_absolute_path_is_the_same_model(kit):
    before = snapshot(kit)
    assert make(kit, f"MODEL={kit}/tests/tiny").returncode == 0 and snapshot(kit) == before


def test_memory_options_after_other_options_change_nothing(finished):
    """FLAGS_soft may hold nothing else."""
    folder = finished.parent / "memory"
    shutil.copytree(finished, folder, ignore=shutil.ignore_patterns("tiny"))
    shutil.copytree(finished / "tests" / "tiny", folder / "other")
    made = would_make(folder, "MODEL=other")
    assert "runs/other/soft" in made
    for name in made:  # as if they had been made
        path = folder / (name if name.endswith("jsonl") else f"{name}/adapter_config.json")
        path.write_text("")
    assert (
        would_make(folder, "MODEL=other")
        == would_make(folder, "MODEL=other FLAGS_soft='--accumulate 2'")
        == []
    )


@pytest.mark.parametrize(
    "written", ["--prompts=mine.json", '--prompts "m=i ne.json"', "--prompts ~/mine.json"]
)
def test_a_file_that_flags_name_is_watched(kit, written, monkeypatch):
    monkeypatch.setitem(ENV, "HOME", str(kit))
    flags = f"METHODS=soft AXES=open FLAGS_open='{written} --n 4'"
    for file in kit.glob("runs/tiny/*/open.jsonl*"):
        file.unlink()
    (mine := kit / ("m=i ne.json" if '"' in written else "mine.json")).write_text(
        '["Name a city."]'
    )
    assert make(kit, flags).returncode == make(kit, flags).returncode == 0
    mine.write_text('["Name a bird."]')
    before = snapshot(kit)
    assert "remove runs/tiny/base/open.jsonl to make it anew" in refused(
        kit, make(kit, flags), before
    )


def tables_only(before: dict, after: dict) -> bool:
    tables = {f"runs/tiny/{name}" for name in ("scores.jsonl", "report.md", "scores.asked")}
    return (
        before.keys() == after.keys()
        and {name for name in before if before[name] != after[name]} <= tables
    )


def test_methods_and_axes_choose_what_is_shown(kit):
    """Another order, fewer and more methods and axes: rows and adapters stay, and the tables are about what is asked."""
    before = snapshot(kit)
    for methods in ("mine soft", "soft mine"):
        result = make(kit, f"METHODS='{methods}' AXES=open")
        first, second = methods.split()
        assert tables_only(before, snapshot(kit)) and "| unseen |" not in result.stdout
        assert result.stdout.index(f"| {first} ") < result.stdout.index(f"| {second} ")
    assert "| soft " not in make(kit, "METHODS=mine AXES=open").stdout and tables_only(
        before, snapshot(kit)
    )
    assert would_make(kit, "AXES='mcq open numbers'") == [
        "runs/tiny/base/mcq.jsonl",
        "runs/tiny/soft/mcq.jsonl",
    ]


def test_edited_scores_remake_the_tables_alone(kit):
    """The tables hold nothing that their rows do not: they are made again where metrics.py has changed, or they are gone."""
    before = snapshot(kit)
    (kit / "metrics.py").write_text(
        (kit / "metrics.py").read_text().replace('"norm. W1"', '"W1 / W1"')
    )
    assert "| W1 / W1 " in make(kit, "").stdout and tables_only(before, snapshot(kit))
    for name in ("report.md", "scores.jsonl"):
        (kit / "runs/tiny" / name).unlink()
        assert "| W1 / W1 " in make(kit, "").stdout and tables_only(before, snapshot(kit))
    asked = (kit / "runs/tiny/scores.asked").read_text()
    (kit / "distributions.py").write_text((kit / "distributions.py").read_text() + "# new\n")
    assert make(kit, "").returncode == 0 and (kit / "runs/tiny/scores.asked").read_text() != asked


# ------------------------------------------------------------------------------------- only what is missing is made


@pytest.mark.parametrize(
    "change, arguments, made",
    [
        ("rm -r runs/tiny/soft", "", ["soft", "soft/numbers.jsonl", "soft/open.jsonl"]),
        ("rm runs/tiny/soft/open.jsonl", "", ["soft/open.jsonl"]),
        ("rm -r runs/tiny/base", "", ["base/numbers.jsonl", "base/open.jsonl"]),
        ("", "METHODS='soft mine-two' FLAGS_mine-two='--seed 1'", ["mine-two", "mine-two/numbers.jsonl", "mine-two/open.jsonl"]),
        ("", "METHODS='ssot soft' AXES='open mcq'", ["base/mcq.jsonl", "ssot/open.jsonl", "soft/mcq.jsonl"]),
    ],
)  # fmt: skip
def test_only_what_is_missing_is_made(kit, change, arguments, made):
    subprocess.run(change, shell=True, cwd=kit, check=True)
    before = snapshot(kit)
    assert sorted(would_make(kit, arguments)) == sorted(f"runs/tiny/{name}" for name in made)
    after = snapshot(kit)
    assert all(after[name] == before[name] for name in before if not name.endswith(".asked"))


def test_prompts_that_are_gone_are_made_again(kit):
    """They come out the same, so what was made with them stays."""
    before = snapshot(kit)
    shutil.rmtree(kit / "runs/data")
    result = make(kit, "")
    assert result.returncode == 0, result.stderr
    after = snapshot(kit)
    assert {name: content for name, (content, _) in after.items()} == {
        name: content for name, (content, _) in before.items()
    }
    assert all(after[name] == before[name] for name in before if "/data/" not in name)


def test_any_stage_can_be_asked_for_by_name(kit):
    before = snapshot(kit)
    for name in ("soft/adapter_config.json", "mine/open.jsonl", "base/open.jsonl"):
        words = shlex.split(f"make runs/tiny/{name} PYTHON={sys.executable} {BRIEF}")
        result = subprocess.run(words, cwd=kit, env=ENV, capture_output=True, text=True)
        assert result.returncode == 0 and snapshot(kit) == before, result.stderr


def test_each_method_has_its_file_and_flags(kit):
    """Methods of one file differ by their flags, which are added to FLAGS; ssot is not trained, and asks no questions."""
    result = make(
        kit, "METHODS='ssot hard hard-matched' AXES='numbers mcq'", PYTHON="echo", MODEL="x/y"
    )
    assert result.returncode == 0, result.stderr
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    trained = "--model x/y --data runs/data/train.jsonl --limit 32 --epochs 1 --lr 1e-3"
    assert f"train_hard.py {trained} --out runs/y/hard" in lines
    assert f"train_hard.py {trained} --branches 16 --epochs 3 --out runs/y/hard-matched" in lines
    numbers = "sample.py numbers --model x/y {} --prompts runs/data/unseen.jsonl runs/data/ood.jsonl --n 8 --paths 8 --out runs/y/{}/numbers.jsonl"
    for method, own in (
        ("hard-matched", "--adapter runs/y/hard-matched"),
        ("ssot", "--protocol ssot"),
    ):
        assert numbers.format(own, method) in lines
    assert sum("sample.py" in line for line in lines) == 7 and not any(
        "ssot/mcq" in line or "train_ssot" in line for line in lines
    )


@pytest.mark.parametrize(
    "methods",
    [
        "METHODS='soft hard-matched batch' SEEDS='0 1'",
        "METHODS='soft soft-s1 hard-matched hard-matched-s1 batch'",
    ],
)
def test_a_method_is_made_once_for_each_seed(kit, methods):
    """soft-s1 is soft with its flags and another seed, in training and in drawing; what trains nothing has one seed."""
    words = f"{methods} AXES=open FLAGS_open="
    result = make(kit, words, PYTHON="echo", MODEL="x/y", FLAGS_soft="--draws 8")
    assert result.returncode == 0, result.stderr
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    trained = "--model x/y --data runs/data/train.jsonl --limit 32 --epochs 1 --lr 1e-3"
    for end in ("--out runs/y/soft", "--seed 1 --out runs/y/soft-s1"):
        assert f"train_soft.py {trained} --draws 8 {end}" in lines
    for end in ("--out runs/y/hard-matched", "--seed 1 --out runs/y/hard-matched-s1"):
        assert f"train_hard.py {trained} --branches 16 --epochs 3 {end}" in lines
    drawn = sorted(line for line in lines if line.startswith("sample.py"))
    assert drawn == sorted(
        f"sample.py open --model x/y {own} --out runs/y/{method}/open.jsonl".replace("  ", " ")
        for method, own in {
            "base": "",
            "batch": "--protocol batch",
            "soft": "--adapter runs/y/soft",
            "soft-s1": "--adapter runs/y/soft-s1 --seed 1",
            "hard-matched": "--adapter runs/y/hard-matched",
            "hard-matched-s1": "--adapter runs/y/hard-matched-s1 --seed 1",
        }.items()
    )


def test_methods_and_seeds_may_stand_in_the_environment(kit):
    env = ENV | {
        "METHODS": "soft",
        "SEEDS": "0 1",
        "AXES": "open",
        "MODEL": "x/y",
        "PYTHON": "echo",
    }
    result = subprocess.run(["make", "reproduce"], cwd=kit, env=env, capture_output=True, text=True)
    assert result.returncode == 0 and "--seed 1 --out runs/y/soft-s1/open.jsonl" in result.stdout, (
        result.stderr
    )


def test_data_may_lie_in_the_folder_of_a_run(kit):
    assert (
        would_make(kit, "RUN=runs/n DATA=runs/n/data")[0] == "runs/n/data"
    )  # a folder, not runs/n/data/train.jsonl


def test_novelty_installs_what_its_draws_need_first(kit):
    for path in ROOT.glob("requirements*.txt"):
        shutil.copy(path, kit)
    plan = subprocess.run(
        ["make", "-n", "novelty"], cwd=kit, env=ENV, capture_output=True, text=True
    ).stdout
    assert (
        0 < plan.find("requirements-extras.txt &&") < plan.find("out=runs/tiny/base/novelty.jsonl")
    )


def test_compare_asks_every_method_the_published_prompts(kit):
    before = snapshot(kit)
    words = shlex.split(f"make compare MODEL=x/y PYTHON=echo {BRIEF} SEEDS='0 1'")
    result = subprocess.run(words, cwd=kit, env=ENV, capture_output=True, text=True)
    assert result.returncode == 0 and all(snapshot(kit)[name] == before[name] for name in before), (
        result.stderr
    )
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert "tests/extras/published.py prompts --out runs/data/published.jsonl" in lines
    asked = "sample.py numbers --model x/y {}--prompts runs/data/published.jsonl --n 200 {}--out runs/y/{}/published.jsonl"
    for method, own, seed in (
        ("base", "", ""), ("soft", "--adapter runs/y/soft ", ""), ("soft-s1", "--adapter runs/y/soft-s1 ", "--seed 1 "),
    ):  # fmt: skip
        assert asked.format(own, seed, method) in lines
    files = " ".join(f"runs/y/{method}/published.jsonl" for method in ("base", "soft", "soft-s1"))
    assert f"tests/extras/published.py compare {files} --out runs/y" in lines


def test_a_sweep_names_what_it_skipped(kit):
    """One model that cannot be loaded does not stop the others; their rows end in one table."""
    before = snapshot(kit)
    words = shlex.split(f"make sweep MODELS='no/such tests/tiny' PYTHON={sys.executable} {BRIEF}")
    result = subprocess.run(words, cwd=kit, env=ENV, capture_output=True, text=True)
    assert result.returncode != 0 and "sweep: skipped no/such" in result.stdout
    assert "cannot load the model 'no/such'" in result.stderr and "Traceback" not in result.stderr
    table = (kit / "runs/sweep.md").read_text()
    assert "| tests/tiny | unseen | soft " in table and "no/such" not in table
    assert all(snapshot(kit)[name] == before[name] for name in before)


def test_a_sweep_without_its_table_has_failed(kit):
    (kit / "runs/sweep.md").mkdir()
    words = shlex.split(f"make sweep MODELS=tests/tiny PYTHON={sys.executable} {BRIEF}")
    result = subprocess.run(words, cwd=kit, env=ENV, capture_output=True, text=True)
    assert result.returncode != 0 and "metrics.py: error" in result.stderr


def test_the_speed_of_a_shape_needs_no_training(kit):
    for words, wanted in (
        ("SHAPE=qwen3-0.6b", "--shape qwen3-0.6b --out runs/qwen3-0.6b.jsonl"),
        ("MODEL=x/y", "--model x/y --adapter runs/y/soft --out runs/y/speed.jsonl"),
    ):
        command = shlex.split(f"make bench {words} PYTHON=echo")
        lines = subprocess.run(
            command, cwd=kit, env=ENV, capture_output=True, text=True
        ).stdout.splitlines()
        assert lines[-1] == f"tests/extras/speed.py {wanted}"
        assert any("train_soft.py" in line for line in lines) == (words == "MODEL=x/y")


def test_help_lists_every_target(kit):
    result = subprocess.run(["make", "help"], cwd=kit, env=ENV, capture_output=True, text=True)
    assert result.returncode == 0 and result.stderr == ""
    targets = re.findall(r"^([a-z0-9]+):.* ## ", (kit / "Makefile").read_text(), re.MULTILINE)
    assert {"help", "reproduce", "test"} < set(targets) and "tests/tiny" in result.stdout
    assert all(f"make {name} " in result.stdout for name in targets)


# --------------------------------------------------------------------------------------------- partial files, kills


def without_time(text: str) -> list[dict]:
    return [
        {k: v for k, v in json.loads(line).items() if k != "seconds"} for line in text.splitlines()
    ]


def test_a_partial_file_goes_on(kit):
    """A run that was killed between two rows: what it had is kept to the byte, and the rest is as it would have been.
    Where the code that draws has changed since, it is refused, and kept."""
    out = kit / "runs/tiny/soft/open.jsonl"
    whole = out.read_text()
    some = "".join(whole.splitlines(True)[:90])
    out.rename(partial := out.with_name("open.jsonl.partial"))
    partial.write_text(some)

    sampler = (kit / "sample.py").read_text()
    (kit / "sample.py").write_text(sampler + "# new\n")
    before = snapshot(kit)
    result = make(kit, "")
    assert result.returncode != 0 and complaints(result)[-1].startswith(
        "sample.py: error: runs/tiny/soft/open.jsonl.partial was made with other code"
    )
    after = snapshot(kit)
    assert all(after[name] == before[name] for name in before if not name.endswith(".asked"))
    result = make(kit, "FLAGS_open='--n 5'")
    assert result.returncode != 0 and partial.read_text() == some

    (kit / "sample.py").write_text(sampler)
    result = make(kit, "FLAGS_open='--n 4 --rows 9'")
    assert result.returncode == 0, result.stderr
    assert out.read_text().startswith(some) and without_time(out.read_text()) == without_time(whole)
    assert not partial.exists()


def test_a_chain_killed_at_random_moments_ends_with_the_same_bytes(finished, tmp_path):
    """Ten kills of everything that make has started, from data to table; then it is left alone."""
    folder = new_kit(tmp_path / "kit")
    words = shlex.split(f"make reproduce PYTHON={sys.executable} {BRIEF}")
    for moment in np.random.default_rng(0).uniform(1, 10, 10):
        process = subprocess.Popen(
            words,
            cwd=folder,
            env=ENV,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(moment)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    result = make(folder, "")
    assert result.returncode == 0 and "| soft " in result.stdout, result.stderr

    kit = shutil.copytree(finished, tmp_path / "whole")
    shutil.rmtree(kit / "runs/tiny/mine")
    ours, theirs = snapshot(folder), snapshot(kit)
    assert ours.keys() == theirs.keys()
    timed = {
        "report.md",
        "scores.asked",
    }  # the minutes that it took; checksums of rows with their seconds
    for name in (name for name in ours if Path(name).name not in timed):
        own, whole = ours[name][0], theirs[name][0]
        if name.endswith(".jsonl"):
            own, whole = without_time(own.decode()), without_time(whole.decode())
        assert own == whole, name
