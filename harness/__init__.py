"""The words and the instruments: cells, records, metrics, methods, quantizers, meters, statistics."""
