"""Detect what got worse, separately from noise and from changes of the environment (protocol 1, section 8).

:mod:`~reports.apps.regressions.series` lines records up over time, :mod:`~reports.apps.regressions.detect` finds what
moved in one cell and over the whole matrix, :mod:`~reports.apps.regressions.decisions` keeps the recorded moves of a
baseline.
"""
