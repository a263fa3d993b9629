"""Meters against known truths."""
