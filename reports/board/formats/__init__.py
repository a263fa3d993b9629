"""A board in every format. Each module renders a finished :class:`~reports.board.board.BoardTable`."""
