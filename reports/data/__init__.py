"""Records as data frames: accuracy samples, derived quantities, rankings."""
