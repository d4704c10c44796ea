"""Between text and tokens: chat prompts, the end token, the prefix trie, and the branched forward pass.

The canonical outputs of a prompt, tokenized and closed with the model's own end-of-turn token, form a
prefix trie. At each prefix the target for the next token is the remaining probability, renormalized (the soft target
of arXiv 2605.11845):

    q(c | prefix) = mass of the leaves that begin with prefix + c  /  mass of the leaves that begin with prefix

In the sorted token matrix of a trie the leaves that share a prefix are a contiguous range of rows, so no
dictionary of prefixes is ever built.

*Prefill once, branch many*: the prompt runs once, its KV cache is repeated per branch, and only the
branches run. No special attention mask is needed; the gradient flows through the cache.

Choices where the paper leaves room:
1. The end token is the one the model's chat template puts after an assistant's answer. `eos_token_id` is
   the wrong token for some models (Gemma closes a turn with <end_of_turn>, not <eos>).
2. Thinking is off (Qwen3), reasoning effort is low and the final channel is opened (gpt-oss).
3. One text is one token path: the tokenizer's own encoding.

Here too is what every script that runs a model shares: loading it, the record of its run, its share among the processes
of `accelerate launch`, and rows that survive a kill.

What this file does not do: know families, or train. It is a library; it has no command.
"""

import copy
import glob
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from safetensors import SafetensorError
from scipy.special import xlogy
from tqdm import tqdm
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, Mxfp4Config
from transformers.utils import logging as transformers_logging

from distributions import InputError, read_jsonl, write_jsonl, write_text

PAD = -1  # fills short rows of a token matrix; never a token id


# ------------------------------------------------------------------------------------- model and tokenizer


def processes() -> PartialState:
    """This process among those that `accelerate launch` started; started otherwise, it is the only one."""
    return PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(weeks=1))


def default_device() -> torch.device:
    return processes().device


def load_tokenizer(model: str):
    """The tokenizer of a hub id or folder. Raises InputError if there is none, or no chat template."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot load a tokenizer from {model!r}: {one_line(error)}") from None
    if not tokenizer.chat_template:
        raise InputError(f"{model!r} has no chat template; the kit needs a chat (instruct) model")
    return tokenizer


def load_model(name: str, adapter: str | None = None, device: torch.device | None = None):
    """The causal LM `name` (hub id or folder), with a PEFT adapter on it if one is given, in eval mode.

    bfloat16 on a GPU, float32 on a CPU (where bfloat16 is mostly emulated and ten times slower).
    Raises InputError for a missing model, an adapter of another model, or one that changes nothing.
    """
    device = device or default_device()
    options = {"dtype": torch.float32 if device.type == "cpu" else torch.bfloat16}
    transformers_logging.disable_progress_bar()
    try:
        quantized = getattr(AutoConfig.from_pretrained(name), "quantization_config", None) or {}
        if quantized.get("quant_method") == "mxfp4":  # gpt-oss: its four-bit experts cannot be trained through
            options["quantization_config"] = Mxfp4Config(dequantize=True)
        model = AutoModelForCausalLM.from_pretrained(name, **options).to(device).eval()
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"cannot load the model {name!r}: {one_line(error)}") from None
    # subtle: `generate` fills every option that its caller left out from the checkpoint's own settings (a top_k of
    # 20, a repetition penalty, suppressed tokens), which would bend the probabilities that are measured here.
    model.generation_config = GenerationConfig()
    return model if adapter is None else load_adapter(model, name, adapter)


def load_adapter(model, name: str, adapter: str):
    from peft import PeftConfig, PeftModel

    if not (Path(adapter) / "adapter_config.json").is_file():
        raise InputError(f"no adapter at {adapter}: adapter_config.json is missing; train one first")
    trained_on = PeftConfig.from_pretrained(adapter).base_model_name_or_path
    if os.path.realpath(trained_on) != os.path.realpath(name):
        raise InputError(f"the adapter {adapter} was trained on {trained_on!r}, not on {name!r}")
    try:
        model = PeftModel.from_pretrained(model, adapter).eval()
    except (RuntimeError, ValueError, SafetensorError) as error:
        raise InputError(f"the adapter {adapter} does not fit {name!r}: {one_line(error)}") from None
    # subtle: PEFT only warns when weights do not match by name, and the model then runs as its own base.
    probe = torch.arange(1, 9, device=model.device)[None]
    with torch.inference_mode():
        changed = model(input_ids=probe).logits
        if not changed.isfinite().all():
            raise InputError(f"the adapter {adapter} makes logits that are not finite; its training diverged")
        with model.disable_adapter():
            if torch.equal(changed, model(input_ids=probe).logits):
                raise InputError(f"the adapter {adapter} changes nothing; it was not trained, or did not load")
    return model


def save_adapter(accelerator, model, out: Path) -> None:
    """Write the adapter's weights, then its config: a folder with an adapter_config.json is a finished adapter."""
    weights = accelerator.get_state_dict(model)  # on all processes, which may each hold a part
    if accelerator.is_main_process:
        temporary = out / "unfinished"
        accelerator.unwrap_model(model).save_pretrained(temporary, state_dict=weights)
        for name in ("adapter_model.safetensors", "adapter_config.json"):
            os.replace(temporary / name, out / name)
        shutil.rmtree(temporary)
        print(f"{out}: adapter, log.jsonl and run.json written")


def digests(paths: list[str | Path]) -> dict[str, str]:
    """SHA-256 of each input file, so that a run can be told from one with the same options on other inputs."""
    return {str(path): hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in paths}


def write_run(path: Path, args, device: torch.device, inputs: dict[str, str]) -> None:
    """Write a run's provenance. Every script that uses a model does so before anything else happens."""
    path.parent.mkdir(parents=True, exist_ok=True)
    here = Path(__file__).parent
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True)
    record = {
        "script": Path(sys.argv[0]).name,
        "args": vars(args),
        "inputs": inputs,
        "seed": getattr(args, "seed", None),
        "git_commit": git.stdout.strip() or None,
        "versions": {name: version(name) for name in ("torch", "transformers", "peft", "numpy", "scipy")},
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{cpu_name()} (CPU)",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    write_text(path, json.dumps(record, indent=1) + "\n")


def begin_run(record: Path, args, device: torch.device, inputs: dict[str, str], unfinished: list[Path]) -> None:
    """Write a run's provenance or, where its unfinished output is there, check that this is the same run going on.

    It may go on with other --rows, if memory ran out.
    """
    if unfinished and record.exists():
        before = json.loads(record.read_text())
        if (before["args"] | {"rows": None}, before["inputs"]) != (vars(args) | {"rows": None}, inputs):
            names = ", ".join(map(str, unfinished))
            raise InputError(f"{names} is of another run (options or inputs differ, see {record}); remove it to go on")
    else:
        write_run(record, args, device, inputs)


def write_rows(out: Path, args, inputs: dict[str, str], asked: list[dict], answer: Callable, title: str) -> None:
    """Write the rows that answer(asked) yields, one for each of `asked`, by id and in that order, whole or not at all.

    Finished rows wait in FILE.partial, from where a rerun of the same run goes on. Under `accelerate launch` each
    process answers its share, with a partial file of its own. Raises InputError if the partial rows are of another run.
    """
    if out.is_dir():
        raise InputError(f"{out} is a folder; --out must name a file")
    state, record = processes(), out.with_name(out.name + ".run.json")
    partials = lambda: sorted(out.parent.glob(f"{glob.escape(out.name)}.partial*"))
    if state.is_main_process:
        out.parent.mkdir(parents=True, exist_ok=True)
        for partial in partials():
            whole, newline, _ = partial.read_bytes().rpartition(b"\n")
            partial.write_bytes(whole + newline)  # without a line that was cut off when the run was killed
            if not whole or not record.exists():
                partial.unlink()
        begin_run(record, args, state.device, inputs, partials())
    state.wait_for_everyone()
    finished = {row["id"] for partial in partials() for row in read_jsonl(partial, ("id",))}
    state.wait_for_everyone()
    todo = [row for row in asked if row["id"] not in finished][state.process_index :: state.num_processes]
    share = out.with_name(f"{out.name}.partial" + (f".{state.process_index}" if state.process_index else ""))
    with open(share, "a", encoding="utf-8") as file:
        bar = tqdm(total=len(todo), desc=title, disable=not state.is_main_process)
        for row in answer(todo):
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
            file.flush()
            bar.update()
    state.wait_for_everyone()
    if state.is_main_process:
        rows = {row["id"]: row for partial in partials() if partial.stat().st_size for row in read_jsonl(partial)}
        write_jsonl(out, [rows[row["id"]] for row in asked])
        for partial in partials():
            partial.unlink()


def cpu_name() -> str:
    try:
        info = Path("/proc/cpuinfo").read_text()
        return info.split("model name")[1].split(":")[1].split("\n")[0].strip()
    except (OSError, IndexError):  # not Linux, or an architecture that does not say
        return platform.processor() or platform.machine()


def one_line(error: Exception) -> str:
    """What an error says, as one line of bounded length."""
    return " ".join(str(error).split())[:300]


# ------------------------------------------------------------------------------- chat prompts and the end token


def render(tokenizer, messages: list[dict], thinking: bool = False, **kwargs) -> str:
    effort = "medium" if thinking else "low"
    try:
        return tokenizer.apply_chat_template(
            messages, tokenize=False, enable_thinking=thinking, reasoning_effort=effort, **kwargs
        )
    except Exception as error:  # a template is a program: it may raise anything
        raise InputError(f"the chat template cannot render a user's prompt: {one_line(error)}") from None


def encode_one(tokenizer, text: str) -> list[int]:
    # The rendered template already holds BOS and the like: adding special tokens would double them.
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def chat_ids(tokenizer, prompt: str, thinking: bool = False) -> list[int]:
    """Token ids of a user's prompt, up to where the assistant's answer (with `thinking`: its thoughts) begins."""
    text = render(tokenizer, [{"role": "user", "content": prompt}], thinking, add_generation_prompt=True)
    if text.endswith("<|start|>assistant") and not thinking:  # gpt-oss chooses a channel itself; open the answer's
        text += "<|channel|>final<|message|>"
    return encode_one(tokenizer, text)


def end_token(tokenizer) -> int:
    """The token that the chat template puts right after an assistant's answer.

    Raises InputError when the template puts nothing there, or nothing that is a token of its own.
    """
    answer = "Zq7ANSWER7qZ"
    messages = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": answer}]
    _, found, after = render(tokenizer, messages).rpartition(answer)
    ids = encode_one(tokenizer, after)
    if not found or not ids or ids[0] not in tokenizer.added_tokens_decoder:
        raise InputError(f"the chat template does not close an answer with a special token (it puts {after[:20]!r})")
    return ids[0]


def encode(tokenizer, texts: list[str], end: int) -> np.ndarray:
    """Completions as a matrix: each text's tokens, then the end token, then PAD. (N, W) int32.

    All texts go through the tokenizer as one string joined by the end token, which no merge can cross:
    several times faster than one call per text. Raises InputError if the tokenizer treats them differently.
    """
    backend, joint = tokenizer.backend_tokenizer, tokenizer.convert_ids_to_tokens(end)
    (encoding,) = backend.encode_batch_fast([joint.join(texts) + joint], add_special_tokens=False)
    ids = np.array(encoding.ids, np.int32)
    lengths = np.diff(np.flatnonzero(ids == end), prepend=-1)
    tokens = np.full((len(lengths), lengths.max()), PAD, np.int32)
    tokens[np.arange(tokens.shape[1]) < lengths[:, None]] = ids
    if len(lengths) != len(texts) or tokens[-1, : lengths[-1]].tolist() != [*encode_one(tokenizer, texts[-1]), end]:
        raise InputError(f"this tokenizer encodes {texts[-1]!r} differently after {joint!r} than on its own")
    return tokens


def decode(tokenizer, tokens: list[int]) -> str:
    return tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)


# ------------------------------------------------------------------------------------------- the prefix trie


class Trie:
    """The canonical outputs of one prompt as token paths.

    tokens (N, W) int32: one leaf per row, padded with PAD, rows in lexicographic order.
    probs (N,) float64: their probabilities. lengths (N,): tokens per leaf, end token included.
    order (N,): the row of the caller's arrays that each leaf came from.
    """

    def __init__(self, tokens: np.ndarray, probs: np.ndarray):
        self.order = np.lexsort(tokens.T[::-1])
        self.tokens, self.probs = tokens[self.order], probs[self.order]
        self.lengths = (self.tokens != PAD).sum(1)

    def path_targets(self, leaf: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each prefix on the way to a leaf: its children's tokens (C,) and their target q (C,), which sums to 1."""
        targets, low, high = [], 0, len(self.tokens)  # rows low..high share the prefix so far
        for depth in range(self.lengths[leaf]):
            column = self.tokens[low:high, depth]
            starts = np.flatnonzero(np.diff(column, prepend=PAD))
            mass = np.add.reduceat(self.probs[low:high], starts)
            targets.append((column[starts], mass / mass.sum()))
            child = np.searchsorted(starts, leaf - low, "right") - 1
            low, high = low + starts[child], low + (starts[child + 1] if child + 1 < len(starts) else high - low)
        return targets

    def path(self, leaf: int) -> np.ndarray:
        """A leaf's tokens, the end token included."""
        return self.tokens[leaf, : self.lengths[leaf]]

    def quantile_leaves(self, quantiles: np.ndarray) -> np.ndarray:
        """The leaf at each quantile (in [0, 1)) of the target. Same shape, int."""
        cumulative = np.cumsum(self.probs)
        return np.searchsorted(cumulative, quantiles * cumulative[-1], "right").clip(max=len(self.probs) - 1)


def pad_targets(paths: list[np.ndarray], targets: list[list]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """R paths and their path_targets as arrays: completions (R, L), filled up with PAD; the children of each
    prefix, tokens (R, L, C) int64, and their probabilities q (R, L, C) float32, filled up with 0."""
    length = max(map(len, paths))
    children = max(len(tokens) for path in targets for tokens, _ in path)
    completions = np.full((len(paths), length), PAD, np.int64)
    tokens = np.zeros((len(paths), length, children), np.int64)
    q = np.zeros(tokens.shape, np.float32)
    for r, (path, target) in enumerate(zip(paths, targets, strict=True)):
        completions[r, : len(path)] = path
        for t, (child_tokens, child_q) in enumerate(target):
            tokens[r, t, : len(child_tokens)] = child_tokens
            q[r, t, : len(child_q)] = child_q
    return completions, tokens, q


def kl_floor(probs: np.ndarray, perfect: np.ndarray, lengths: np.ndarray) -> float:
    """The logit KL, in nats per token, of a perfect sampler: sum over leaves of q / length * log(q / p5).

    It is not 0. The trie keeps 1001 of perhaps 10^6 five-decimal values, and no model can know which: the
    last digits look certain to the trie and uniform to a perfect sampler. Arguments are (N,), aligned:
    target q, distributions.perfect_probs p5, token counts. 0 for a discrete family, where q = p5. Derived here: along
    a path the conditional log-ratios add up to log(q / p5) of its leaf.
    """
    return float(np.sum((xlogy(probs, probs) - xlogy(probs, perfect)) / lengths))


# -------------------------------------------------------------------------- prefill once, branch many


@dataclass
class Prefix:
    """R rows that a model has read: KV cache, attention mask (R, P), and logits (R, V) of the next token."""

    cache: object
    mask: torch.Tensor
    logits: torch.Tensor

    def fork(self, rows: torch.Tensor) -> "Prefix":
        """A Prefix whose row i is this one's row rows[i]. This one stays as it is; gradients flow to it."""
        cache = copy.copy(self.cache)
        cache.layers = [copy.copy(layer) for layer in cache.layers]
        for layer in cache.layers:  # what cache.batch_select_indices does, with a faster way of indexing
            layer.keys, layer.values = layer.keys.index_select(0, rows), layer.values.index_select(0, rows)
        return Prefix(cache, self.mask[rows], self.logits[rows])


def pad_left(prompts: list[list[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask of B prompts, both (B, P)."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts], device=device)
    return ids, torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)


def prefill(model, prompts: list[list[int]]) -> Prefix:
    """Run B prompts, left-padded to one length so that their completions align."""
    ids, mask = pad_left(prompts, default_device())
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    out = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True, logits_to_keep=1)
    return Prefix(out.past_key_values, mask, out.logits[:, -1])


def extend(model, prefix: Prefix, tokens: torch.Tensor, keep: int = 0) -> tuple[Prefix, torch.Tensor]:
    """Read tokens (R, T) after the prefix, whose cache is used up. Returns the longer Prefix and the logits
    (R, T, V), or those of the last `keep` positions."""
    mask = torch.cat([prefix.mask, torch.ones_like(tokens)], 1)
    positions = prefix.mask.sum(1, keepdim=True) + torch.arange(tokens.shape[1], device=tokens.device)
    out = model(
        input_ids=tokens,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=prefix.cache,
        use_cache=True,
        logits_to_keep=keep,
    )
    return Prefix(out.past_key_values, mask, out.logits[:, -1]), out.logits


def branch(model, prefix: Prefix, completions: torch.Tensor) -> torch.Tensor:
    """Logits (B*K, L, V) of K completions per prefix row: position t holds the prediction of token t.

    completions (B*K, L): K consecutive rows belong to one row of the prefix; PAD after the end of short
    ones, where the logits mean nothing. Equal, up to rounding, to B*K separate rows of prompt + completion.
    """
    rows = torch.arange(len(completions), device=completions.device) // (len(completions) // len(prefix.mask))
    forked = prefix.fork(rows)
    if completions.shape[1] == 1:
        return forked.logits[:, None]
    _, logits = extend(model, forked, completions[:, :-1].clamp(min=0))  # what follows a PAD is never used
    return torch.cat([forked.logits[:, None], logits], 1)


def complete(model, prompts: list[list[int]], completions: torch.Tensor) -> torch.Tensor:
    """The same logits as `branch` from whole rows, prompt and completion, without a cache: more work, and what
    gradient checkpointing needs."""
    rows = [prompt for prompt in prompts for _ in range(len(completions) // len(prompts))]
    ids, mask = pad_left(rows, completions.device)
    ids = torch.cat([ids, completions[:, :-1].clamp(min=0)], 1)
    mask = torch.cat([mask, torch.ones_like(completions[:, :-1])], 1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    keep = completions.shape[1]
    return model(
        input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False, logits_to_keep=keep
    ).logits
