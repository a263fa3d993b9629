"""Tools around plan and run: bisect, fetch, environments, init, listings."""
