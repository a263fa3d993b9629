"""What got worse since last time, told apart from noise and from a changed environment (protocol 1, section 8).

:mod:`~reports.regressions.series` lines records up over time, :mod:`~reports.regressions.detect` finds what moved in
one cell and over the whole matrix, :mod:`~reports.regressions.decisions` keeps the recorded moves of a baseline.
"""
