"""What is built from records and boards: comparisons, site, regressions, reproduction, imports and exports."""
