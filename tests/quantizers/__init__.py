"""Tests of harness.quantizers."""
