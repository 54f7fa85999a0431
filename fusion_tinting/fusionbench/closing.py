"""Tables that are shown after everything else that a program prints."""

import atexit

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from fusion_tinting.reporting.tables import Table, show


def show_last(table: Table) -> None:
    """Show a table after the report that the command prints; of several, the last asked for comes first.

    Args:
        table: the table.
    """
    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.RUN:
        atexit.register(show, table)
    else:
        show(table)
