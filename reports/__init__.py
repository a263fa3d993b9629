"""Records to tables, figures, pages and verdicts. Never runs anything."""
