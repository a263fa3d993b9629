"""The matrix runner: plan, schedule, execute. It knows harness and tasks, and never draws."""
