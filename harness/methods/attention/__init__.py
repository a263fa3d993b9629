"""Methods that change what a token may look at."""
