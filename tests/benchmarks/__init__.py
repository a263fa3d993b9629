"""Performance figures, printed as ratios and never asserted: `make bench`."""
