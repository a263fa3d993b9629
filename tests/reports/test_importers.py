"""Results of other tools: what is mapped, what is named as not mapped, and that nothing of it is ranked with ours."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from harness.errors import UserError
from harness.store.store import Store
from reports.apps.importers import import_results
from reports.board.board import build, load_board
from reports.board.formats import to_markdown
from reports.board.publish import publish_board
from scripts.boards import for_docs
from tests.reports.making import cell, ok_record

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("PEFT_MATRIX_DATA", ROOT / ".." / "shared" / "data"))
PEFT_RUNS = DATA / "peft_method_comparison"

PEFT_FILE = {
    "run_info": {
        "created_at": "2026-07-01T10:00:00+00:00",
        "total_time": 1000.4,
        "experiment_name": "lora/llama-3.2-3B-rank8",
        "peft_branch": "main",
        "error_msg": "",
        "train_config": {
            "model_id": "meta-llama/Llama-3.2-3B",
            "dtype": "bfloat16",
            "max_seq_length": 768,
            "batch_size": 4,
            "batch_size_eval": 50,
            "max_steps": 500,
            "eval_steps": 25,
            "seed": 0,
            "optimizer_type": "AdamW",
            "optimizer_kwargs": {"lr": 0.0001, "weight_decay": 0.1},
            "lr_scheduler": "cosine",
        },
        "peft_config": {"peft_type": "LORA", "r": 8, "rank_pattern": {}},
    },
    "train_info": {
        "accelerator_memory_reserved_avg": 1,
        "accelerator_memory_max": 2 * 2**30,
        "accelerator_memory_reserved_99th": 1,
        "train_time": 900.0,
        "file_size": 1000,
        "num_trainable_params": 10,
        "num_total_params": 100,
        "status": "success",
        "metrics": [
            *({"step": 25 * (n + 1), "train loss": 1 - n / 100, "train time": 20.0, "train samples": 100 * (n + 1),
               "valid accuracy": 0.1, "eval time": 1.0, "tokens / sec": 9.0} for n in range(20)),
            {"step": 500, "test accuracy": 533 / 1319, "train total tokens": 5, "forgetting": 0.05, "new field": 1},
        ],
    },
    "meta_info": {
        "model_info": {"sha": "a" * 40, "created_at": "x"},
        "dataset_info": {"gsm8k": {"sha": "b" * 40, "created_at": "x"}},
        "package_info": {"peft-version": "0.19.2", "peft-commit-hash": "c" * 40, "torch-version": "2.13.0"},
        "system_info": {"system": "Linux", "processor": "x86_64", "accelerator": "NVIDIA L40S"},
        "pytorch_info": "flags",
    },
}  # fmt: skip


def written(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def changed(content: dict, *path: str, value: object) -> dict:
    copy = json.loads(json.dumps(content))
    part = copy
    for name in path[:-1]:
        part = part[name]
    part[path[-1]] = value
    return copy


def one(tmp_path: Path, kind: str, path: Path):
    done = import_results(kind, [path], Store(tmp_path / "store"))
    return done, done.records[0]


# --- peft's own suite ----------------------------------------------------------------------------
def test_a_run_of_the_peft_suite_keeps_kinds_apart(tmp_path):
    done, record = one(tmp_path, "peft-method-comparison", written(tmp_path / "r.json", PEFT_FILE))
    values = {name: reading.value for name, reading in record.metrics.items()}
    assert record.metrics["accuracy"].n == 1319
    assert values["train_s"] == pytest.approx(400.0)  # the steps alone
    assert values["run_train_s"] == 900.0  # with everything the suite counts into it
    assert values["process_reserved_peak_bytes"] == 2 * 2**30
    assert values["train_samples_per_s"] == pytest.approx(5.0)
    assert values["train_loss"] == pytest.approx((1 - 0.18 + 1 - 0.19) / 2)  # the last tenth of the steps
    assert not {"peak_rss_bytes", "cuda_reserved_peak_bytes", "train_tokens_per_s", "step_ms"} & set(values)
    assert record.spans == ()
    assert record.cell["method"]["label"] == "lora rank8"
    assert record.cell["method"]["learning_rate"] == 0.0001
    assert (record.started, record.finished) == ("2026-07-01T10:00:00+00:00", "2026-07-01T10:16:40+00:00")
    assert record.environment["imported"]["from"] == "peft-method-comparison"
    assert done.unmapped["train_info.metrics[].new field"][0] == "not known to this importer"
    assert "train_info.metrics.tokens / sec" in done.unmapped
    assert str(tmp_path) not in record.to_json()


@pytest.mark.parametrize(
    ("path", "value", "status", "reason"),
    [
        (("run_info", "error_msg"), "CUDA out of memory. Tried", "oom", "CUDA out of memory. Tried"),
        (("run_info", "error_msg"), "", "error", "the suite says 'canceled' and no more"),
    ],
)
def test_a_cancelled_run_says_how_it_ended(tmp_path, path, value, status, reason):
    content = changed(changed(PEFT_FILE, *path, value=value), "train_info", "status", value="canceled")
    content = changed(content, "train_info", "metrics", value=[])
    _, record = one(tmp_path, "peft-method-comparison", written(tmp_path / "r.json", content))
    assert (record.outcome.status, record.outcome.reason) == (status, reason)
    assert record.metrics["accuracy"].why_missing == "stage_not_reached"


@pytest.mark.parametrize(("size", "config"), [(99_999_999, {"peft_type": "LORA"}), (6_000_000_000, None)])
def test_a_placeholder_or_an_estimate_is_no_file_size(tmp_path, size, config):
    content = changed(
        changed(PEFT_FILE, "train_info", "file_size", value=size), "run_info", "peft_config", value=config
    )
    _, record = one(tmp_path, "peft-method-comparison", written(tmp_path / "r.json", content))
    assert record.metrics["adapter_bytes"].value is None


def test_repeats_form_a_history_and_reimport_adds_nothing(tmp_path):
    written(tmp_path / "in" / "a.json", PEFT_FILE)
    written(tmp_path / "in" / "b.json", changed(PEFT_FILE, "run_info", "created_at", value="2026-08-01T10:00:00+00:00"))
    store = Store(tmp_path / "store")
    assert import_results("peft-method-comparison", [tmp_path / "in"], store).added == 2
    assert import_results("peft-method-comparison", [tmp_path / "in"], store).added == 0
    records, _ = store.records()
    assert len({record.key for record in records}) == 1
    assert sorted(record.finished[:7] for record in records) == ["2026-07", "2026-08"]


@pytest.mark.skipif(not PEFT_RUNS.is_dir(), reason=f"needs {PEFT_RUNS}")
def test_peft_63_runs_become_63_records_and_the_board(tmp_path):
    store = Store(tmp_path / "store")
    done = import_results("peft-method-comparison", [PEFT_RUNS], store)
    assert (len(done.records), done.added, len({record.key for record in done.records})) == (63, 63, 63)
    assert not [name for name, (why, _) in done.unmapped.items() if "not known" in why]
    board = publish_board("peft-method-comparison", [], results=tmp_path / "store", out=tmp_path / "board")
    assert board.smells == ()
    (section,) = board.table.sections
    best = section.rows[0]
    assert len(section.rows) == 63
    assert best.labels["method"].startswith("lily rank140-mlp")
    assert best.cells["accuracy"].value == pytest.approx(0.5262, abs=5e-5)
    assert all(row.rank is None and "not run here" in row.notes for row in section.rows)
    assert any(row.front for row in section.rows)
    committed = (ROOT / "docs" / "peft-method-comparison" / "board.md").read_text(encoding="utf-8")
    assert for_docs((tmp_path / "board" / "board.md").read_text(encoding="utf-8")) == committed


# --- lm-eval -------------------------------------------------------------------------------------
STAMP = "2026-07-01T10-00-00.000000"
LM_EVAL_FILE = {
    "results": {
        "arc_easy": {
            "alias": "arc_easy",
            "sample_len": 4,
            "acc,none": 0.75,
            "acc_stderr,none": 0.25,
            "acc_norm,none": 0.5,
            "acc_norm_stderr,none": 0.2,
        },
        "gsm8k": {"alias": "gsm8k", "exact_match,strict-match": 0.5, "exact_match,flexible-extract": 0.75},
        "both": {"alias": "both", "acc,none": 0.7},
    },
    "groups": {"both": {"alias": "both", "acc,none": 0.7}},
    "group_subtasks": {"both": ["arc_easy"]},
    "configs": {
        "arc_easy": {"task": "arc_easy", "dataset_path": "ai2_arc", "output_type": "multiple_choice"},
        "gsm8k": {"task": "gsm8k", "dataset_path": "gsm8k", "dataset_name": "main", "output_type": "generate_until"},
    },
    "versions": {"arc_easy": 1.0, "gsm8k": 3.0},
    "n-shot": {"arc_easy": 0, "gsm8k": 5},
    "higher_is_better": {"arc_easy": {"acc": True}},
    "n-samples": {"arc_easy": {"original": 4, "effective": 4}, "gsm8k": {"original": 4, "effective": 2}},
    "config": {
        "model": "hf",
        "model_args": "pretrained=org/base,peft=org/adapter,load_in_4bit=True,bnb_4bit_quant_type=nf4,dtype=bfloat16",
        "model_sha": "d" * 40,
        "peft_sha": "e" * 40,
        "batch_size": "8",
        "device": "cuda:0",
        "random_seed": 7,
    },
    "git_hash": "abc1234",
    "date": 1782900000.5,
    "pretty_env_info": "PyTorch version: 2.13",
    "transformers_version": "5.13.1",
    "lm_eval_version": "0.4.13",
    "task_hashes": {"arc_easy": "f" * 64},
    "total_evaluation_time_seconds": "12.5",
}


def choice(number: int, target: int, logs: list[float]) -> str:
    right = max(range(len(logs)), key=logs.__getitem__) == target
    item = {
        "doc_id": number,
        "target": str(target),
        "filtered_resps": [[log, False] for log in logs],
        "filter": "none",
        "acc": float(right),
    }
    return json.dumps(item) + "\n"


def test_lm_eval_results_become_a_record_a_task_with_samples(tmp_path):
    results = written(tmp_path / "in" / f"results_{STAMP}.json", LM_EVAL_FILE)
    lines = [choice(n, 0, [-1.0, -2.0 - n]) for n in range(3)] + [choice(3, 1, [-1.0, -2.5])]
    written(results.with_name(f"samples_arc_easy_{STAMP}.jsonl"), "".join(lines))
    store = Store(tmp_path / "store")
    done = import_results("lm-eval", [tmp_path / "in"], store)
    arc, gsm = sorted(done.records, key=lambda record: record.cell["task"]["label"])
    assert (arc.metrics["accuracy"].value, arc.metrics["accuracy"].n) == (0.75, 4)
    assert "accuracy_norm" not in arc.metrics  # normalised by characters, ours is by bytes
    assert arc.cell["quantization"]["label"] == "bnb-nf4"
    assert arc.cell["method"]["label"] == "adapter"
    assert arc.cell["seed"] == 7
    assert arc.finished.startswith("2026-07-01T")
    rows = store.samples(arc).to_pylist()
    assert [row["correct"] for row in rows] == [True, True, True, False]
    assert rows[3]["margin"] == pytest.approx(-1.5)
    assert gsm.samples is None
    assert gsm.metrics["accuracy"].source == "lm-eval exact_match,flexible-extract"
    assert "another filter" in done.unmapped["results.gsm8k.exact_match,strict-match"][0]
    assert done.unmapped["results.*.acc_norm,*"][0].startswith("normalised by characters")
    assert import_results("lm-eval", [tmp_path / "in"], store).added == 0
    table = build(load_board("imported", []), store.records()[0], store)
    assert {row.rank for section in table.sections for row in section.rows} == {None}


def test_a_file_without_a_seed_gives_a_board_beside_one_with(tmp_path):
    other = {**LM_EVAL_FILE, "config": {k: v for k, v in LM_EVAL_FILE["config"].items() if k != "random_seed"}}
    for name, content in (("one", LM_EVAL_FILE), ("two", other | {"date": 1782990000.5})):
        results = written(tmp_path / name / f"results_{STAMP}.json", content)
        lines = [choice(n, 0, [-1.0, -2.0 - n]) for n in range(4)]
        written(results.with_name(f"samples_arc_easy_{STAMP}.jsonl"), "".join(lines))
    store = Store(tmp_path / "store")
    assert import_results("lm-eval", [tmp_path / "one", tmp_path / "two"], store).added == 4
    table = build(load_board("imported", []), store.records()[0], store)
    text = to_markdown.render(table, [], [])
    assert "nan" not in text.lower()


# --- optimum-benchmark ---------------------------------------------------------------------------
def latency(*values: float) -> dict:
    return {"unit": "s", "values": list(values), "count": len(values), "mean": sum(values) / len(values)}


OPTIMUM_FILE = {
    "config": {
        "name": "pytorch_llama",
        "backend": {
            "name": "pytorch",
            "version": "2.13.0",
            "model": "org/base-1b",
            "task": "text-generation",
            "device": "cuda",
            "torch_dtype": "bfloat16",
            "seed": 42,
            "no_weights": True,
            "quantization_scheme": "bnb",
            "quantization_config": {"load_in_4bit": True},
            "peft_type": "lora",
            "peft_config": {"r": 8},
        },
        "scenario": {
            "name": "training",
            "max_steps": 140,
            "warmup_steps": 40,
            "training_arguments": {"per_device_train_batch_size": 2},
            "input_shapes": {"batch_size": 2},
            "generate_kwargs": {"min_new_tokens": 11, "max_new_tokens": 11},
        },
        "launcher": {"name": "process", "device_isolation": True},
        "environment": {
            "cpu": " Example CPU 3000",
            "gpu": ["NVIDIA L40S"],
            "gpu_count": 1,
            "python_version": "3.11.9",
            "optimum_benchmark_version": "0.6.0",
            "transformers_version": "5.13.1",
        },
    },
    "report": {
        "load_model": {"latency": latency(2.0), "memory": None},
        "train": {
            "latency": latency(0.1, 0.2, 0.3),
            "throughput": {"unit": "samples/s", "value": 10.0},
            "memory": {
                "unit": "MB",
                "max_ram": 900.0,
                "max_global_vram": 3000.0,
                "max_reserved": 2500.0,
                "max_allocated": 2000.0,
            },
            "energy": {"unit": "kWh", "cpu": 0.1, "ram": 0.1, "gpu": 0.001, "total": 0.201},
        },
        "prefill": {"latency": latency(0.05, 0.06, 0.07)},
        "decode": {"latency": latency(0.5, 0.6, 0.7)},
        "per_token": {"latency": latency(0.01)},
    },
}


def test_optimum_benchmark_maps_same_meaning_and_names_rest(tmp_path):
    done, record = one(tmp_path, "optimum-benchmark", written(tmp_path / "in" / "benchmark.json", OPTIMUM_FILE))
    values = {name: reading.value for name, reading in record.metrics.items()}
    assert values["step_ms"] == pytest.approx(200.0)
    assert values["ttft_ms"] == pytest.approx(60.0)
    assert values["tpot_ms"] == pytest.approx(60.0)  # 0.6 s over ten tokens after the first
    assert values["accuracy"] is None
    train = next(span for span in record.spans if span.stage == "train")
    assert train.get("cuda_allocated_peak_bytes").value == 2e9  # MB are 10^6 bytes there
    assert train.get("energy_gross_j").value == pytest.approx(3600.0)
    assert train.get("cuda_reserved_peak_bytes") is None
    for field in ("report.per_token.*", "report.*.memory.max_reserved", "report.*.energy.total"):
        assert field in done.unmapped
    assert record.finished == ""
    assert any(lack.startswith("date") for lack in done.lacks)


def test_several_gpus_leave_the_summed_energy_unmapped(tmp_path):
    content = changed(OPTIMUM_FILE, "config", "environment", "gpu", value=["NVIDIA L40S", "NVIDIA L40S"])
    done, record = one(tmp_path, "optimum-benchmark", written(tmp_path / "in" / "benchmark.json", content))
    assert next(span for span in record.spans if span.stage == "train").get("energy_gross_j") is None
    assert "report.*.energy.*" in done.unmapped


# --- all -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        ("peft", "{}", "Did you mean 'peft-method-comparison'|unknown kind"),
        ("peft-method-comparison", "{not json", "not a readable JSON file"),
        ("lm-eval", '{"a": 1}', "not results of this kind: results"),
        ("optimum-benchmark", "[]", "not results of this kind"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, kind, text, said):
    with pytest.raises(UserError, match=said):
        import_results(kind, [written(tmp_path / "x.json", text)], Store(tmp_path / "store"))
    assert not (tmp_path / "store").exists()


def test_imported_rows_never_share_a_table_or_a_rank_with_ours(tmp_path):
    store = Store(tmp_path / "store")
    import_results("peft-method-comparison", [written(tmp_path / "r.json", PEFT_FILE)], store)
    foreign = store.records()[0][0]
    for method, rate in (("lora", 0.9), ("full", 0.5)):
        for seed in (0, 1):  # one seed alone is never ranked
            store.append(*ok_record(cell(method, seed=seed), accuracy=rate))
    same_labels = {"model": {"label": foreign.cell["model"]["label"]}, "task": {"label": foreign.cell["task"]["label"]}}
    store.append(*ok_record(cell("dora", **same_labels)))
    table = build(load_board("default", []), store.records()[0], store)
    homes = [section for section in table.sections if any("imported" in row.marks for row in section.rows)]
    assert len(homes) == 1
    assert [row.rank for row in homes[0].rows] == [None]
    assert any(row.rank for section in table.sections for row in section.rows)
