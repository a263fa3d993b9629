"""Where a model comes from: built in, packaged, skeleton, folder or Hub."""
