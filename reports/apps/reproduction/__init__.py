"""Claims in, verdicts out: what a paper printed, against what records say.

:mod:`~reports.apps.reproduction.claims` reads claim files, :mod:`~reports.apps.reproduction.record_lookup` picks the
records a claim may rest on, :mod:`~reports.apps.reproduction.measuring` turns them into an effect with its interval,
:mod:`~reports.apps.reproduction.judging` gives the verdict, :mod:`~reports.apps.reproduction.report` prints it.
"""
