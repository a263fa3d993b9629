"""From a sweep to the cells to run, in order."""
