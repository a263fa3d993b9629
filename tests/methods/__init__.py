"""Tests of harness.methods."""
