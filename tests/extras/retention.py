"""What training cost elsewhere: the paper's benchmarks and perplexities of the base model and of adapters.

    python tests/extras/retention.py --model Qwen/Qwen3-0.6B --adapter runs/Qwen3-0.6B/soft --out runs/retention
    python tests/extras/retention.py --model tests/tiny --texts LICENSE --out small            # seconds, and no hub

A task is one call of lm-evaluation-harness's `lm_eval run` with the chat template, thinking off: five of tinyBenchmarks
(arXiv 2402.14992: gp-IRT or, without that package, plain accuracy) and IFEval. paloma_X is the token perplexity of
PALOMA's slice X, a gated data set (accept its terms on the hub, and log in). --texts takes plain texts in place of all
tasks. Results are kept in DIR/<method>/<task>.json and DIR/scores.jsonl; what is there is not run again.

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

FIVE = (
    "tinyMMLU",
    "tinyHellaswag",
    "tinyTruthfulQA",
    "tinyWinogrande",
    "tinyGSM8k",
)  # the last has two scores
PALOMA = ("wikitext_103", "c4_en", "dolma-v1_5", "mc4", "ptb", "redpajama", "falcon-refinedweb")
TASKS = (*FIVE, "ifeval", *(f"paloma_{name}" for name in PALOMA))


@torch.inference_mode()
def token_nll(model, ids: list[int], window: int = 2048, stride: int = 1024) -> list[float]:
    """-log p, in nats, of each token of a text but the first, which nothing precedes: no BOS is put in front.
    Windows begin `stride` tokens apart, and of each only the tokens that none before it held are scored."""
    ids, nats = torch.tensor(ids, device=model.device), []
    for start in range(0, len(ids), stride):
        held = ids[start : start + window]
        new = held[1 + len(nats) - start :]
        if len(new):
            logits = model(
                input_ids=held[None], use_cache=False, logits_to_keep=len(new) + 1
            ).logits
            nats += torch.nn.functional.cross_entropy(
                logits[0, :-1].float(), new, reduction="none"
            ).tolist()
    return nats


def perplexity(model, tokenizer, task: str, texts: list[str]) -> list[dict]:
    """The token perplexity of texts, as a score."""
    window = min(2048, model.config.get_text_config().max_position_embeddings)
    nats = [
        x
        for text in texts
        for x in token_nll(model, trie.encode_one(tokenizer, text), window, window // 2)
    ]
    if not nats:
        raise InputError("fewer than two tokens")
    value = math.exp(math.fsum(nats) / len(nats))
    return [
        {"task": task, "metric": "token perplexity", "value": value, "stderr": None, "n": len(nats)}
    ]


def read_texts(task: str, files: dict[str, str]) -> list[str]:
    """A text of one's own, or the documents of a slice of PALOMA."""
    if task in files:
        return [Path(files[task]).read_text(encoding="utf-8")]
    datasets = importlib.import_module("datasets")  # of requirements-extras.txt
    return list(
        datasets.load_dataset("allenai/paloma", task.removeprefix("paloma_"), split="test")["text"]
    )


def prepare(scratch: Path, gp_irt: bool) -> None:
    """Fetch gp-IRT's parameters before hours of work, or write the harness's tasks with the plain mean in its place."""
    scratch.mkdir(exist_ok=True)
    if not (found := importlib.util.find_spec("lm_eval")):
        raise InputError("lm_eval is missing: pip install -r requirements-extras.txt")
    if gp_irt:
        code = (
            "import numpy, tinyBenchmarks; tinyBenchmarks.evaluate(numpy.arange(100) % 2, 'mmlu')"
        )
        if subprocess.run([sys.executable, "-c", code], cwd=scratch).returncode:
            raise InputError("cannot fetch gp-IRT's item parameters, see above")
        return
    print(
        "plain accuracies; for gp-IRT, pip install git+https://github.com/felipemaiapolo/tinyBenchmarks"
    )
    tasks = Path(found.origin).parent / "tasks" / "tinyBenchmarks"
    for file in (*tasks.glob("tiny[!B]*.yaml"), *tasks.glob("utils_*.py")):
        write_text(
            scratch / "tasks" / file.name,
            re.sub(r"!function agg_functions\.\w+", "mean", file.read_text()),
        )


def harness(
    model: str, adapter: Path | None, task: str, batch: str, gp_irt: bool, scratch: Path
) -> list[dict]:
    """The scores that `lm_eval run` finds: {task, metric, value, stderr, n}. Raises InputError."""
    template = {
        "enable_thinking": False,
        "reasoning_effort": "low",
        "date_string": trie.DATE.strftime("%d %b %Y"),
    }
    options = {
        "dtype": "bfloat16" if torch.cuda.is_available() else "float32",
        "chat_template_args": template,
    }
    options["pretrained"] = (
        str(Path(model).resolve()) if Path(model).exists() else model
    )  # it runs in another folder
    options |= {"peft": str(adapter)} if adapter else {}
    command = [
        sys.executable,
        "-m",
        "lm_eval",
        "run",
        "--model",
        "hf",
        "--model_args",
        json.dumps(options),
    ]
    command += ["--tasks", task, "--apply_chat_template", "--batch_size", batch]
    command += [] if gp_irt else ["--include_path", "tasks"]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([*command, "--output_path", f"{folder}/found.json"], cwd=scratch)
        if not (files := list(Path(folder).glob("*.json"))):
            raise InputError("lm_eval failed, see above")
        found = json.loads(files[0].read_text())

    rows = []
    number = lambda x: x if isinstance(x, int | float) and math.isfinite(x) else None
    for name, counts in found["n-samples"].items():  # several where the task is a group
        scores = found["results"][name]
        for key in scores:
            metric, _, chosen = key.partition(",")
            if chosen and not metric.endswith("_stderr"):
                shown = "gp-IRT" if gp_irt and name.startswith("tiny") else metric
                row = {"task": name, "metric": shown if chosen == "none" else f"{shown}, {chosen}"}
                row |= {
                    "value": number(scores[key]),
                    "stderr": number(scores.get(f"{metric}_stderr,{chosen}")),
                }
                rows.append(row | {"n": counts["effective"]})
    return rows


def mean_of_six(rows: list[dict]) -> list[dict]:
    """The mean of the paper's six scores of a method as a row, if all six are there and of one kind."""
    six = [row for row in rows if row["task"] in FIVE and row["value"] is not None]
    kinds = {"gp-IRT" if row["metric"].startswith("gp-IRT") else "accuracy" for row in six}
    if len(six) != 6 or len(kinds) != 1:
        return []
    mean = {"task": "mean of six", "metric": kinds.pop(), "stderr": None}
    return [
        six[0]
        | mean
        | {"value": sum(row["value"] for row in six) / 6, "n": sum(row["n"] for row in six)}
    ]


def table(rows: list[dict]) -> list[str]:
    """A Markdown table: tasks x methods, values ± standard errors where there are any, and differences to the base."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    cells = {(row["task"], row["metric"], row["method"]): row for row in rows}
    show = lambda x, form: "–" if x is None else format(x, form)
    lines = [("task", "score", "n", *methods, *(f"{method} - base" for method in methods[1:]))]
    for task, metric in dict.fromkeys(key[:2] for key in cells):
        own = [cells.get((task, metric, method), {}) for method in methods]
        base, *others = values = [row.get("value") for row in own]
        errors = ["" if row.get("stderr") is None else f" ± {row['stderr']:.3f}" for row in own]
        shown = [show(value, ".3f") + error for value, error in zip(values, errors, strict=True)]
        differences = [
            show(None if None in (base, value) else value - base, "+.3f") for value in others
        ]
        lines.append((task, metric, str(max(row.get("n", 0) for row in own)), *shown, *differences))
    return metrics.markdown(zip(*lines, strict=True))


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--model", required=True, help="hub id or folder of a chat model")
    several = {"nargs": "+", "action": "extend", "default": []}
    parser.add_argument(
        "--adapter", **several, metavar="DIR", help="PEFT folders; their names are methods"
    )
    parser.add_argument(
        "--tasks", nargs="+", help="of the harness, or paloma_X (default: the paper's)"
    )
    parser.add_argument(
        "--texts", **several, metavar="FILE", help="plain texts, in place of all tasks"
    )
    parser.add_argument(
        "--batch",
        default="auto" if torch.cuda.is_available() else "8",
        help="batch size of lm_eval",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the results")
    args = parser.parse_args()
    out, texts = Path(args.out), {Path(path).name: path for path in args.texts}
    methods = {"base": None} | {
        path.name: path for path in (Path(path).resolve() for path in args.adapter)
    }
    if len(methods) <= len(args.adapter) or len(texts) < len(args.texts):
        raise InputError(
            "two adapters, or two texts, have the same name, or an adapter is called base"
        )
    tasks = [*(args.tasks or (() if texts else TASKS)), *texts]
    gp_irt = importlib.util.find_spec("tinyBenchmarks") is not None

    # What is there was made as is asked now, or nothing begins.
    todo, identity = [], trie.identity(args.model)
    for method, adapter in methods.items():
        weights = digest(adapter / "adapter_model.safetensors") if adapter else None
        for task in tasks:
            file, made = out / method / f"{task}.json", {"model": identity, "adapter": weights}
            made |= (
                {"text": digest(texts[task])}
                if task in texts
                else {"gp-IRT": gp_irt}
                if "tiny" in task
                else {}
            )
            before = json.loads(file.read_text())["made"] if file.exists() else made
            if other := [key for key in made if before.get(key) != made[key]]:
                raise InputError(
                    f"{file} was made with another {', '.join(other)}; remove it to make it anew"
                )
            todo += [] if file.exists() else [(method, task, file, made)]

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
                loaded[method] = loaded.get(method) or trie.load(args.model, methods[method])
                scores = perplexity(*loaded[method][:2], task, read_texts(task, texts))
            else:
                scores = harness(
                    args.model, methods[method], task, args.batch, gp_irt, out / "scratch"
                )
            scores = [
                {"model": args.model, "method": method, "axis": "retention"} | row for row in scores
            ]
            write_text(file, json.dumps({"made": made, "scores": scores}, indent=1) + "\n")
        except (InputError, ImportError, OSError, ValueError) as error:
            failed[task] = f"{task} ({error})"

    rows = []
    for method in methods:
        files = [file for task in tasks if (file := out / method / f"{task}.json").exists()]
        own = [row for file in files for row in json.loads(file.read_text())["scores"]]
        rows += own + mean_of_six(own)
    write_text(out / "scores.jsonl", to_jsonl(rows))
    print("\n".join(table(rows)))
    if failed:
        raise InputError(
            f"did not run: {'; '.join(failed.values())}; the rest is in {out}, and is not run again"
        )


if __name__ == "__main__":
    run(main)
