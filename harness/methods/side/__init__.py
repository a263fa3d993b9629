"""Side networks: a small network in parallel to a frozen backbone, into which no gradient flows."""
