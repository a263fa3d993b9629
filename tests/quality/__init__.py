"""Measured error rates of our detectors, printed for docs/findings; run by hand."""
