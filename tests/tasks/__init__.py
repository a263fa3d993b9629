"""Tests of the package tasks."""
