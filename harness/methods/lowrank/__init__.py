"""Adapters of our own whose change of the weight is a product of small factors, beside peft's."""
