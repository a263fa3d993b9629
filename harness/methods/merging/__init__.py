"""What is done to a model when training is over: compress it, average it, move it to another base."""
