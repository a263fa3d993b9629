"""Foreign results to records marked as imported."""
