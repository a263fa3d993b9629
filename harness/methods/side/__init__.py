"""Side networks: a small network beside a frozen backbone, into which no gradient flows."""
