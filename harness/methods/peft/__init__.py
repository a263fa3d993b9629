"""Methods of the peft library: one table row each."""
