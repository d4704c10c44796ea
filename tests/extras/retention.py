"""What training cost elsewhere: the paper's benchmarks and perplexities of the base model and of adapters.

    python tests/extras/retention.py --model Qwen/Qwen3-0.6B --adapter runs/Qwen3-0.6B/soft runs/Qwen3-0.6B/hard \\
        --out runs/Qwen3-0.6B/retention
    python tests/extras/retention.py --model tests/tiny --texts LICENSE --out small            # seconds, and no hub

A task is one call of lm-evaluation-harness's own command, `lm_eval run`, with the chat template, thinking off: five of
tinyBenchmarks (arXiv 2402.14992: gp-IRT estimates the accuracy on a whole benchmark from 100 items; the paper's mean is
over their six scores) and IFEval. Without the package tinyBenchmarks they are the plain accuracies on these items,
under the harness's names. paloma_X is read here: the token perplexity of PALOMA's slice X, a gated data set (accept its
terms on the hub, and log in). --texts takes any plain texts in place of all tasks.

Results are kept one by one, DIR/<method>/<task>.json: what is there is not run again, and what was made otherwise is
refused. DIR/scores.jsonl has a row {model, method, axis, task, metric, value, stderr, n} for each score. The harness
works in DIR/scratch. A task that fails is named at the end; the others run.

Choice where the paper leaves room: each of PALOMA's documents is read on its own, and its first token is not scored.
What this file does not do: ask for numbers (sample.py). The tasks need requirements-extras.txt.
"""

import importlib.util
import json
import math
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
import metrics
import trie
from distributions import InputError, Parser, digest, run, to_jsonl, write_text

FIVE = ("tinyMMLU", "tinyHellaswag", "tinyTruthfulQA", "tinyWinogrande", "tinyGSM8k")  # the last has two scores
PALOMA = ("wikitext_103", "c4_en", "dolma-v1_5", "mc4", "ptb", "redpajama", "falcon-refinedweb")
TASKS = (*FIVE, "ifeval", *(f"paloma_{name}" for name in PALOMA))
PACKAGE = "git+https://github.com/felipemaiapolo/tinyBenchmarks"


@torch.inference_mode()
def token_nll(model, ids: list[int], window: int = 2048, stride: int = 1024) -> list[float]:
    """-log p, in nats, of each token of a text but the first, which nothing precedes: no BOS is put in front.

    Windows begin `stride` tokens apart, and of each only the tokens that none before it held are scored.
    """
    ids, nats, done = torch.tensor(ids, device=model.device), [], 1
    for start in range(0, len(ids), stride):
        end = min(start + window, len(ids))
        if end > done:
            new = ids[done:end]
            logits = model(input_ids=ids[None, start:end], use_cache=False, logits_to_keep=len(new) + 1).logits
            nats += torch.nn.functional.cross_entropy(logits[0, :-1].float(), new, reduction="none").tolist()
            done = end
    return nats


def perplexity(model, tokenizer, task: str, texts: list[str]) -> list[dict]:
    """The token perplexity of texts, as a score."""
    window = min(2048, model.config.get_text_config().max_position_embeddings)
    nats = [x for text in texts for x in token_nll(model, trie.encode_one(tokenizer, text), window, window // 2)]
    if not nats:
        raise InputError("fewer than two tokens")
    value = math.exp(math.fsum(nats) / len(nats))
    return [{"task": task, "metric": "token perplexity", "value": value, "stderr": None, "n": len(nats)}]


def read_texts(task: str, files: dict[str, str]) -> list[str]:
    """A text of one's own, or the documents of a slice of PALOMA."""
    if task in files:
        return [Path(files[task]).read_text(encoding="utf-8")]
    from datasets import load_dataset

    return [row["text"] for row in load_dataset("allenai/paloma", task.removeprefix("paloma_"), split="test")]


def prepare(scratch: Path, gp_irt: bool) -> None:
    """Fetch gp-IRT's item parameters, which the package would do after hours of work; without the package, write the
    harness's tasks down with the plain mean in gp-IRT's place. Raises InputError."""
    scratch.mkdir(exist_ok=True)
    if not (found := importlib.util.find_spec("lm_eval")):
        raise InputError("lm_eval is missing: pip install -r requirements-extras.txt")
    if gp_irt:
        code = "import numpy, tinyBenchmarks; tinyBenchmarks.evaluate(numpy.arange(100) % 2, 'mmlu')"
        if subprocess.run([sys.executable, "-c", code], cwd=scratch).returncode:
            raise InputError("cannot fetch gp-IRT's item parameters, see above")
        return
    print(
        f"tinyBenchmarks is not installed: plain accuracies on its items, not gp-IRT; for that, pip install {PACKAGE}"
    )
    tasks = Path(found.origin).parent / "tasks" / "tinyBenchmarks"
    for file in (*tasks.glob("tiny[!B]*.yaml"), *tasks.glob("utils_*.py")):
        write_text(scratch / "tasks" / file.name, re.sub(r"!function agg_functions\.\w+", "mean", file.read_text()))


def harness(model: str, adapter: str | None, task: str, batch: str, gp_irt: bool, scratch: Path) -> list[dict]:
    """The scores that `lm_eval run` finds: {task, metric, value, stderr, n}. Raises InputError."""
    whole = lambda name: str(Path(name).resolve()) if Path(name).exists() else name  # it runs in another folder
    options = {"pretrained": whole(model)} | ({"peft": whole(adapter)} if adapter else {})
    options["dtype"] = "bfloat16" if torch.cuda.is_available() else "float32"
    options["chat_template_args"] = {"enable_thinking": False, "reasoning_effort": "low"}
    options["chat_template_args"]["date_string"] = trie.DATE.strftime("%d %b %Y")
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--model_args", json.dumps(options)]
    command += ["--tasks", task, "--apply_chat_template", "--batch_size", batch]
    command += [] if gp_irt else ["--include_path", "tasks"]
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        done = subprocess.run([*command, "--output_path", f"{Path(folder).name}/found.json"], cwd=scratch)
        files = list(Path(folder).glob("*.json"))
        if done.returncode or not files:
            raise InputError("lm_eval failed, see above")
        found = json.loads(files[0].read_text())

    rows = []
    number = lambda x: x if isinstance(x, int | float) and math.isfinite(x) else None
    for name, counts in found["n-samples"].items():  # several where the task is a group
        scores = found["results"][name]
        for key, value in scores.items():
            metric, comma, chosen = key.partition(",")
            if comma and not metric.endswith("_stderr"):
                shown = "gp-IRT" if gp_irt and name.startswith("tiny") else metric
                row = {"task": name, "metric": shown if chosen == "none" else f"{shown}, {chosen}"}
                row |= {"value": number(value), "stderr": number(scores.get(f"{metric}_stderr,{chosen}"))}
                rows.append(row | {"n": counts["effective"]})
    return rows


def mean_of_six(rows: list[dict]) -> list[dict]:
    """The mean of the paper's six scores of a method as a row, if all six are there and of one kind."""
    six = [row for row in rows if row["task"] in FIVE and row["value"] is not None]
    kinds = {"gp-IRT" if row["metric"].startswith("gp-IRT") else "accuracy" for row in six}
    if len(six) != 6 or len(kinds) != 1:
        return []
    mean = {"task": "mean of six", "metric": kinds.pop(), "stderr": None}
    return [six[0] | mean | {"value": sum(row["value"] for row in six) / 6, "n": sum(row["n"] for row in six)}]


def table(rows: list[dict]) -> list[str]:
    """A Markdown table: tasks x methods, each value with its standard error where the harness gives one, and the
    differences to the base model."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    cells = {(row["task"], row["metric"], row["method"]): row for row in rows}
    lines = [("task", "score", "n", *methods, *(f"{method} - base" for method in methods[1:]))]
    missing = {"value": None, "stderr": None, "n": 0}
    for task, metric in dict.fromkeys(key[:2] for key in cells):
        base, *others = line = [cells.get((task, metric, method), missing) for method in methods]
        values = ["–" if row["value"] is None else f"{row['value']:.3f}" for row in line]
        errors = ["" if row["stderr"] is None else f" ± {row['stderr']:.3f}" for row in line]
        pairs = [(row["value"], base["value"]) for row in others]
        differences = ["–" if None in pair else f"{pair[0] - pair[1]:+.3f}" for pair in pairs]
        n = str(max(row["n"] for row in line))
        lines.append((task, metric, n, *map("".join, zip(values, errors, strict=True)), *differences))
    return metrics.markdown(zip(*lines, strict=True))


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--model", required=True, help="hub id or folder of a chat model")
    parser.add_argument(
        "--adapter", nargs="+", action="extend", default=[], metavar="DIR", help="PEFT folders; their names are methods"
    )
    parser.add_argument("--tasks", nargs="+", help="of the harness, or paloma_X (default: the paper's)")
    parser.add_argument(
        "--texts", nargs="+", action="extend", default=[], metavar="FILE", help="plain texts, in place of all tasks"
    )
    batch = "auto" if torch.cuda.is_available() else "8"
    parser.add_argument("--batch", default=batch, help="batch size of the harness (default: auto on a GPU, else 8)")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the results")
    args = parser.parse_args()
    out, methods = Path(args.out), {"base": None} | {Path(path).resolve().name: path for path in args.adapter}
    texts = {Path(path).name: path for path in args.texts}
    if len(methods) <= len(args.adapter) or len(texts) < len(args.texts):
        raise InputError("two adapters, or two texts, have the same name, or an adapter is called base")
    tasks = [*(args.tasks or (() if texts else TASKS)), *texts]
    gp_irt = importlib.util.find_spec("tinyBenchmarks") is not None

    # What is there was made as is asked now, or nothing begins.
    todo, identity = [], trie.identity(args.model)
    for method, adapter in methods.items():
        weights = digest(Path(adapter) / "adapter_model.safetensors") if adapter else None
        for task in tasks:
            made = {"model": identity, "adapter": weights}
            made |= {"text": digest(texts[task])} if task in texts else {"gp-IRT": gp_irt} if "tiny" in task else {}
            file = out / method / f"{task}.json"
            before = json.loads(file.read_text())["made"] if file.exists() else made
            if other := [key for key in made if before.get(key) != made[key]]:
                raise InputError(f"{file} was made with another {', '.join(other)}; remove it to make it anew")
            if not file.exists():
                todo.append((method, task, file, made))

    here = lambda task: task in texts or task.startswith("paloma_")
    if todo:
        trie.write_run(out / "run.json", args)
    if not all(here(task) for _, task, _, _ in todo):
        prepare(out / "scratch", gp_irt)
    failed, loaded = {}, {}
    for method, task, file, made in todo:
        if method not in loaded or not here(task):
            loaded.clear()  # the harness is a process of its own and needs the memory
        try:
            if here(task):
                documents = read_texts(task, texts)
                loaded[method] = loaded.get(method) or trie.load(args.model, methods[method])
                scores = perplexity(*loaded[method][:2], task, documents)
            else:
                scores = harness(args.model, methods[method], task, args.batch, gp_irt, out / "scratch")
        except (InputError, ImportError, OSError, ValueError) as error:
            failed[task] = " ".join(str(error).split())
            continue
        source = {"model": args.model, "method": method, "axis": "retention"}
        write_text(file, json.dumps({"made": made, "scores": [source | row for row in scores]}, indent=1) + "\n")

    rows = []
    for method in methods:
        files = [file for task in tasks if (file := out / method / f"{task}.json").exists()]
        own = [row for file in files for row in json.loads(file.read_text())["scores"]]
        rows += own + mean_of_six(own)
    write_text(out / "scores.jsonl", to_jsonl(rows))
    if rows:
        print("\n".join(table(rows)))
    if failed:
        why = "; ".join(f"{task} ({reason})" for task, reason in failed.items())
        raise InputError(f"did not run: {why}; what did is kept in {out}, and another run adds the rest")


if __name__ == "__main__":
    run(main)
