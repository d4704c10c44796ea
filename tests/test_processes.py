"""Several processes, as `accelerate launch` starts them on GPUs: two on the CPU do the work of one."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ENV, FILES, ROOT, TINY, call
from peft import LoraConfig
from safetensors.torch import load_file

import sample
import train_hard
import train_soft
import trie
from distributions import read_rows, to_jsonl, write_text

# 5 of 10 prompts each, in passes of 3 and 2.
TRAINING = (
    "--model",
    TINY,
    "--limit",
    20,
    "--epochs",
    1,
    "--batch",
    10,
    "--accumulate",
    2,
    "--draws",
    8,
    "--branches",
    4,
)
DRAWING = ("numbers", "--model", TINY, "--rows", 2048)
STEPS = 20 * 8 // 4 // 10

DRIVER = """
import runpy, sys
for line in open("commands"):
    sys.argv = line.split()
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def two(data, tmp_path_factory) -> Path:
    """A folder with what two processes made: soft, hard, numbers.jsonl.

    Started by torchrun, since `accelerate launch` starts several processes on GPUs only; the environment is the same.
    Without dropout, whose masks depend on how rows are laid out.
    """
    folder = tmp_path_factory.mktemp("two")
    for name in FILES:
        shutil.copy(ROOT / name, folder)
    source = (ROOT / "trie.py").read_text()
    assert source.count("lora_dropout=0.05") == 1
    (folder / "trie.py").write_text(source.replace("lora_dropout=0.05", "lora_dropout=0.0"))
    write_text(folder / "prompts.jsonl", to_jsonl(read_rows([data / "ood.jsonl"])[:5]))
    commands = [
        ("train_soft.py", *TRAINING, "--data", data / "train.jsonl", "--out", "soft"),
        ("train_hard.py", *TRAINING, "--data", data / "train.jsonl", "--out", "hard"),
        ("sample.py", *DRAWING, "--prompts", "prompts.jsonl", "--out", "numbers.jsonl"),
    ]
    (folder / "commands").write_text("".join(" ".join(map(str, command)) + "\n" for command in commands))
    (folder / "driver.py").write_text(DRIVER)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "driver.py"]
    result = subprocess.run(launch, cwd=folder, env=ENV, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.mark.parametrize("module", [train_soft, train_hard])
def test_two_processes_train_as_one(module, two, data, tmp_path, monkeypatch):
    monkeypatch.setattr(trie, "LoraConfig", lambda **options: LoraConfig(**options | {"lora_dropout": 0.0}))
    call(module, *TRAINING, "--data", data / "train.jsonl", "--out", tmp_path / "one")
    folders = (two / module.METHOD, tmp_path / "one")
    ours, theirs = (load_file(folder / "adapter_model.safetensors") for folder in folders)
    assert any(value.abs().max() > 1e-5 for key, value in ours.items() if "lora_B" in key)
    assert all(torch.allclose(ours[key], theirs[key], atol=1e-5, rtol=0) for key in theirs)
    logs = [read_rows([folder / "log.jsonl"]) for folder in folders]
    assert len(logs[0]) == len(logs[1]) == STEPS
    assert [row["tokens"] for row in logs[0]] == [row["tokens"] for row in logs[1]]
    assert [row["loss"] for row in logs[0]] == pytest.approx([row["loss"] for row in logs[1]], rel=1e-5)


def test_two_processes_draw_the_rows_of_one(two, tmp_path):
    call(sample, *DRAWING, "--prompts", two / "prompts.jsonl", "--out", tmp_path / "one.jsonl")
    rows, one = (
        [r | {"seconds": 0} for r in read_rows([path])] for path in (two / "numbers.jsonl", tmp_path / "one.jsonl")
    )
    for row in rows:
        row |= {key: pytest.approx(row[key], rel=1e-6) for key in row if key.startswith("logit_kl")}
    assert one == rows and not list(two.glob("*.partial*"))
