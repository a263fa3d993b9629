"""Built-in generated tasks."""
