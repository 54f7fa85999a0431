"""The last words of a program."""

import atexit

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from rich.table import Table

from fusion_tinting.reporting.tables import show


def show_last(table: Table) -> None:
    """Show a table after the report that the command prints; of several, the last asked for comes first."""
    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.RUN:
        atexit.register(show, table)
    else:
        show(table)
