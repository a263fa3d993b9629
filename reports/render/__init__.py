"""A board in every format. Each module takes a finished :class:`~reports.board.BoardTable` and computes nothing new."""
