"""Methods that choose which of the base's own weights train, and when."""
