"""LoRA on the modules that a search with gates chose: factors learn from training data, gates from validation data."""
