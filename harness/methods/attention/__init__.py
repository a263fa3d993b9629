"""Methods that change the attention pattern."""
