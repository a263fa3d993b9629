"""Inside one cell: the stages, one module each."""
