"""Training data, test data and scoring; one YAML file per task."""
