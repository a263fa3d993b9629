"""All quantizers and pruners, one line each. Listing them imports nothing."""

from __future__ import annotations

from harness.quantizers.base import Quantizer
from harness.registry import Registry

QUANTIZERS: Registry[type[Quantizer]] = Registry(
    "quantizer",
    {
        "none": "harness.quantizers.precision:NoQuantization",
        "bf16": "harness.quantizers.precision:BF16",
        "fp16": "harness.quantizers.precision:FP16",
        "rtn": "harness.quantizers.rtn:RTN",
        "bnb-int8": "harness.quantizers.bnb:BnbInt8",
        "bnb-nf4": "harness.quantizers.bnb:NF4",
        "bnb-fp4": "harness.quantizers.bnb:FP4",
        "torchao-int8": "harness.quantizers.torchao:TorchaoInt8",
        "torchao-int8-dynamic": "harness.quantizers.torchao:Int8Dynamic",
        "torchao-int4": "harness.quantizers.torchao:TorchaoInt4",
        "torchao-intx": "harness.quantizers.torchao:IntX",
        "torchao-float8": "harness.quantizers.torchao:TorchaoFloat8",
        "quanto-int8": "harness.quantizers.quanto:QuantoInt8",
        "quanto-int4": "harness.quantizers.quanto:QuantoInt4",
        "quanto-int2": "harness.quantizers.quanto:Int2",
        "quanto-float8": "harness.quantizers.quanto:QuantoFloat8",
        "hqq": "harness.quantizers.hqq:HQQ",
        "gptq": "harness.quantizers.calibrated:GPTQ",
        "awq": "harness.quantizers.calibrated:AWQ",
        "gptqmodel-gptq": "harness.quantizers.gptqmodel:LibraryGPTQ",
        "gptqmodel-awq": "harness.quantizers.gptqmodel:LibraryAWQ",
        "autoround": "harness.quantizers.autoround:AutoRound",
        "prequantized-gptq": "harness.quantizers.prequantized:GPTQCheckpoint",
        "prequantized-awq": "harness.quantizers.prequantized:AWQCheckpoint",
        "prequantized-autoround": "harness.quantizers.prequantized:AutoRoundCheckpoint",
        "gguf": "harness.quantizers.gguf_export:GGUF",
        "gguf-llamacpp": "harness.quantizers.gguf_export:LlamaCppGGUF",
        "prune-magnitude": "harness.quantizers.pruning:Magnitude",
        "prune-wanda": "harness.quantizers.pruning:Wanda",
        "prune-sparsegpt": "harness.quantizers.pruning:SparseGPT",
        "prune-dsnot": "harness.quantizers.pruning:DSnoT",
    },
)
"""The registry behind the key ``quantization`` of a sweep."""

PLANNED: dict[str, str] = {
    "prune-loraprune": "LoRAPrune (arXiv:2305.18403): prunes heads and channels by the gradients of a LoRA adapter; "
    "structured pruning changes the model's shapes, which no stage of a cell allows for yet",
    "prune-llm-pruner": "LLM-Pruner (arXiv:2305.11627): removes coupled structures by their Taylor importance; "
    "structured pruning changes the model's shapes, which no stage of a cell allows for yet",
    "llmcompressor": "llmcompressor 0.14.0.1 asks for transformers<=5.17, compressed-tensors==0.19.0 and through them "
    "for huggingface-hub 1.x; a worker asks for transformers>=5.20 and huggingface-hub>=2, and was not tried on less",
}
"""Not built, and why."""
