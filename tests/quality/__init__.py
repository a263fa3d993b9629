"""Measured qualities of our own detectors, printed for docs/findings; run by hand."""
