"""Running the cells of a plan: scheduling, retries, recovery, progress."""
