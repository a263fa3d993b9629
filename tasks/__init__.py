"""What is learned and what is scored; one YAML file a task."""
