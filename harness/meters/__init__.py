"""Time, memory, energy and FLOPs behind one interface."""
