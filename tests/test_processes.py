"""Several processes, as `accelerate launch` starts them on GPUs: two on the CPU do the work of one."""

import shutil
import subprocess
import sys

import pytest
import torch
from conftest import ENV, ROOT, TINY, call
from safetensors.torch import load_file

import sample
from distributions import read_jsonl, write_jsonl

FLAGS = ("--limit", 20, "--epochs", 1, "--batch", 10, "--branches", 4)


def two_processes(*command, folder=ROOT) -> None:
    """torchrun, since `accelerate launch` starts several processes on GPUs only; the environment is the same."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *map(str, command)]
    result = subprocess.run(launch, cwd=folder, env=ENV, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("method", ["soft", "hard"])
def test_two_processes_train_as_one(method, data, tmp_path):
    """Without dropout, whose masks depend on how rows are laid out. 5 of 10 prompts each, in passes of 3 and 2."""
    for name in ("distributions.py", "trie.py"):
        shutil.copy(ROOT / name, tmp_path)
    source = (ROOT / f"train_{method}.py").read_text()
    assert source.count("lora_dropout=0.05") == 1
    (tmp_path / f"train_{method}.py").write_text(source.replace("lora_dropout=0.05", "lora_dropout=0.0"))
    command = (f"train_{method}.py", "--model", TINY, "--data", data / "train.jsonl", *FLAGS, "--accumulate", 2)
    two_processes(*command, "--out", "two", folder=tmp_path)
    one = [sys.executable, *map(str, command), "--out", "one"]
    assert subprocess.run(one, cwd=tmp_path, env=ENV, capture_output=True).returncode == 0
    ours, theirs = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("two", "one"))
    assert any(value.abs().max() > 1e-5 for key, value in ours.items() if "lora_B" in key)
    assert all(torch.allclose(ours[key], theirs[key], atol=1e-5, rtol=0) for key in theirs)
    logs = [read_jsonl(tmp_path / name / "log.jsonl") for name in ("two", "one")]
    assert [row["tokens"] for row in logs[0]] == [row["tokens"] for row in logs[1]]
    assert [row["loss"] for row in logs[0]] == pytest.approx([row["loss"] for row in logs[1]], rel=1e-5)


def test_two_processes_draw_the_rows_of_one(data, tmp_path):
    write_jsonl(tmp_path / "prompts.jsonl", read_jsonl(data / "ood.jsonl")[:5])
    command = ("numbers", "--model", TINY, "--prompts", tmp_path / "prompts.jsonl", "--out")
    two_processes(ROOT / "sample.py", *command, tmp_path / "two.jsonl")
    call(sample, *command, tmp_path / "one.jsonl")
    two, one = ([row | {"seconds": 0} for row in read_jsonl(tmp_path / f"{n}.jsonl")] for n in ("two", "one"))
    assert two == one and not list(tmp_path.glob("*.partial*"))
