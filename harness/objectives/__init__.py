"""Objectives: the loss of a cell, a plug-in beside the method that chooses what trains."""
