"""The Python API and the command line of peft-matrix."""
