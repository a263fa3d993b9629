"""Methods whose trained numbers are part of a quantized weight, or that repair what quantization broke."""
