"""The record store: records, samples, index, garbage collection and merging."""
