"""Quantization back ends, one plug-in each; ``catalog`` lists them."""
