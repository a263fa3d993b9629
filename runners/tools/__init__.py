"""Tools beside plan and run: bisect, fetch, environments, init, listings."""
