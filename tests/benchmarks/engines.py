"""llama.cpp beside transformers on the same GGUF weights: answers, speed and memory, each engine in its own processes.

Both are given the same token ids, one request at a time, with one thread. transformers computes in float32 with the
decoded weights; llama.cpp computes on the codes and rounds activations. The module is run in llama.cpp's environment
too, so nothing but the standard library is imported at its top.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Figure = tuple[str, str, str]

TYPES = ("q8_0", "q4_0", "q4_k_m")
ITEMS, ANSWERS, ANSWER_TOKENS = 60, 20, 32
PROMPT_TOKENS, DECODED_TOKENS, REPEATS = 256, 64, 7
CONTEXT = 512


# --- one engine, in a process of its own -----------------------------------------------------------
class LlamaCpp:
    """llama.cpp through llama-cpp-python.

    Args:
        every: whether logits of every position are kept, which scoring needs and speed does not.
    """

    def __init__(self, place: str, *, every: bool) -> None:
        from llama_cpp import Llama

        threads = {"n_threads": 1, "n_threads_batch": 1}
        self.model = Llama(place, n_ctx=CONTEXT, logits_all=every, verbose=False, **threads)

    def log_probs(self, head: list[int], tail: list[int]) -> float:
        """Log-probability of ``tail`` after ``head``, in nat."""
        import numpy as np

        self.model.reset()
        self.model.eval([*head, *tail[:-1]])
        at = len(head) - 1
        logits = np.asarray(self.model.scores[at : at + len(tail)], dtype=np.float64)
        logits -= logits.max(-1, keepdims=True)
        logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        return float(sum(logp[k, token] for k, token in enumerate(tail)))

    def read(self, ids: list[int]) -> None:
        """One pass over a prompt."""
        self.model.reset()
        self.model.eval(ids)

    def write(self, n: int) -> list[int]:
        """``n`` tokens after what was read, each the most likely one."""
        out = []
        for _ in range(n):
            out.append(int(self.model.sample(temp=0.0, top_k=1, repeat_penalty=1.0)))
            self.model.eval(out[-1:])
        return out


class Transformers:
    """transformers, a plain loop over its cache."""

    def __init__(self, place: str, *, every: bool) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(1)
        torch.set_grad_enabled(False)
        self.torch, self.every = torch, every
        self.model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).eval()
        self.cache: Any = None
        self.last = 0

    def log_probs(self, head: list[int], tail: list[int]) -> float:
        """Log-probability of ``tail`` after ``head``, in nat."""
        logits = self.model(input_ids=self.torch.tensor([[*head, *tail[:-1]]])).logits[0, len(head) - 1 :]
        logp = logits.double().log_softmax(-1)
        return float(sum(logp[k, token] for k, token in enumerate(tail)))

    def read(self, ids: list[int]) -> None:
        """One pass over a prompt."""
        out = self.model(input_ids=self.torch.tensor([ids]), use_cache=True, logits_to_keep=1)
        self.cache, self.last = out.past_key_values, int(out.logits[0, -1].argmax())

    def write(self, n: int) -> list[int]:
        """``n`` tokens after what was read, each the most likely one."""
        written = []
        for _ in range(n):
            written.append(self.last)
            out = self.model(input_ids=self.torch.tensor([[self.last]]), past_key_values=self.cache, use_cache=True)
            self.last = int(out.logits[0, -1].argmax())
        return written


def child(engine: str, mode: str, place: str, requests: str, out: str) -> None:
    """Answer the requests (``score``), or measure speed and memory (``speed``), and write the results as JSON."""
    asked = json.loads(Path(requests).read_text())
    made: Any = (LlamaCpp if engine == "llamacpp" else Transformers)(place, every=mode == "score")
    found: dict[str, Any] = {}
    if mode == "score":
        found["logp"] = [[made.log_probs(head, tail) for tail in tails] for head, tails in asked["items"]]
        found["answers"] = []
        for head in asked["prompts"]:
            made.read(head)
            found["answers"].append(made.write(ANSWER_TOKENS))
    else:
        found["prompt_s"], found["decode_s"] = [], []
        for _ in range(REPEATS + 1):
            began = time.perf_counter()
            made.read(asked["long"])
            middle = time.perf_counter()
            made.write(DECODED_TOKENS)
            found["prompt_s"].append(middle - began)
            found["decode_s"].append(time.perf_counter() - middle)
        found = {name: values[1:] for name, values in found.items()}  # the first pass lays memory out
        found["peak_rss_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    Path(out).write_text(json.dumps(found))


# --- the comparison --------------------------------------------------------------------------------
def figures(model: Path, root: Path, tool: Path, run: Any) -> Iterator[Figure]:
    """Accuracy, agreement, speed and memory of both engines, by type.

    Args:
        model: folder of the dequantized model.
        tool: interpreter of the environment ``llamacpp``.
        run: ``run(command, **environment)`` of a command that must succeed.
    """
    from transformers import AutoTokenizer

    from tests.benchmarks.real_model import items

    asked = items("arc-easy", root)[:ITEMS]
    tokenizer = AutoTokenizer.from_pretrained(model)

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    long = [token for item in asked for token in ids(item.prompt)][:PROMPT_TOKENS]
    requests = {
        "items": [[ids(item.prompt), [ids(choice) for choice in item.choices]] for item in asked],
        "prompts": [ids(item.prompt) for item in asked[:ANSWERS]],
        "long": long,
    }
    labels = [item.label for item in asked]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "requests.json").write_text(json.dumps(requests))
        for kind in TYPES:
            done = subprocess.run(
                [sys.executable, "-m", "tests.benchmarks.engines", "export", str(model), kind, str(tool), scratch],
                capture_output=True,
                text=True,
                check=True,
            )
            file = Path(done.stdout.splitlines()[-1])
            found = {}
            for engine, place in (("llamacpp", str(file)), ("transformers", str(folder / kind))):
                for mode in ("score", "speed"):
                    out = folder / f"{engine}-{mode}.json"
                    python = str(tool) if engine == "llamacpp" else sys.executable
                    script = [python, "-m", "tests.benchmarks.engines", "child", engine, mode, place]
                    run([*script, str(folder / "requests.json"), str(out)], OMP_NUM_THREADS="1")
                    found[engine, mode] = json.loads(out.read_text())
            yield from shown(kind, file.stat().st_size, labels, found)
            file.unlink()


def shown(kind: str, size: int, labels: list[int], found: dict[Any, Any]) -> Iterator[Figure]:
    """Lines of the table of one type."""
    ours, theirs = found["transformers", "score"], found["llamacpp", "score"]
    chosen = {
        name: [max(range(len(r)), key=r.__getitem__) for r in of["logp"]] for name, of in (("o", ours), ("t", theirs))
    }
    n = len(labels)
    for name, engine in (("t", "llamacpp"), ("o", "transformers")):
        right = sum(a == b for a, b in zip(chosen[name], labels, strict=True))
        speed = found[engine, "speed"]
        rates = {
            part: [tokens / s for s in speed[f"{part}_s"]]
            for part, tokens in (("prompt", PROMPT_TOKENS), ("decode", DECODED_TOKENS))
        }
        prompt, decode = (
            f"{statistics.median(r):.0f} ({min(r):.0f}–{max(r):.0f})" for r in (rates["prompt"], rates["decode"])
        )
        yield (
            f"{kind} / {engine}",
            f"accuracy {right}/{n}",
            f"prompt {prompt}, decode {decode} tokens/s (n={REPEATS}); "
            f"peak {speed['peak_rss_bytes'] / 2**20:.0f} MiB RSS",
        )
    same = sum(a == b for a, b in zip(chosen["o"], chosen["t"], strict=True))
    equal = sum(a == b for a, b in zip(ours["answers"], theirs["answers"], strict=True))
    tokens = [
        sum(x == y for x, y in zip(a, b, strict=True)) for a, b in zip(ours["answers"], theirs["answers"], strict=True)
    ]
    largest = max(
        abs(x - y) for a, b in zip(ours["logp"], theirs["logp"], strict=True) for x, y in zip(a, b, strict=True)
    )
    yield (
        f"{kind} / agreement",
        f"{same}/{n} choices",
        f"greedy answers of {ANSWER_TOKENS} tokens equal in {equal}/{len(tokens)}, tokens in the same place "
        f"{sum(tokens)}/{ANSWER_TOKENS * len(tokens)}; log-likelihoods differ by at most {largest:.2g} nat; "
        f"file {size / 1e6:.1f} MB",
    )


def export(model: str, kind: str, tool: str, scratch: str) -> None:
    """Write the GGUF file and, beside it, the model with the weights that the file decodes to."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from harness.quantizers.gguf_export import GGUF, LlamaCppGGUF
    from harness.quantizers.gguf_export import TYPES as PLAIN

    cls = GGUF if kind in PLAIN else LlamaCppGGUF
    quantizer = cls(cls.resolve({"type": kind}), "causal-lm")
    quantizer.tools = {"llamacpp": tool}
    quantizer.tokenizer, quantizer.cache = AutoTokenizer.from_pretrained(model), Path(scratch)
    quantizer.apply(loaded := AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32))
    loaded.save_pretrained(Path(scratch, kind))
    print(quantizer.file)


if __name__ == "__main__":
    {"child": child, "export": export}[sys.argv[1]](*sys.argv[2:])
