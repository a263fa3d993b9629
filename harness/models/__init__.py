"""Model sources: built in, packaged, skeleton, folder or Hub."""
