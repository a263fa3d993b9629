"""Low-rank adapters that peft does not have: the change of the weight is a product of small factors."""
