"""Applications of records and boards: comparisons, site, regressions, reproduction, imports and exports."""
