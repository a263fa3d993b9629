"""What the template process imports once, so that a worker starts in milliseconds. Creates no CUDA context.

An import that fails here fails again in the worker, whose log is kept.
"""

from __future__ import annotations

from harness.quiet import quiet_stderr

with quiet_stderr():
    import pandas  # noqa: F401 - pyarrow imports it when the samples are written
    import pyarrow.parquet  # noqa: F401 - likewise
    import torch.utils.flop_counter  # noqa: F401 - imported late by the meters

    import runners.worker.main  # noqa: F401 - imported for its imports
