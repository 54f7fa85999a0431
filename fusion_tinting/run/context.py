"""What travels with a run and is no part of the method."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from fusion_tinting.run.history import History
from fusion_tinting.run.processes import Processes

OnStep = Callable[[int, History], None]


@dataclass(frozen=True)
class Context:
    """Where a run computes, where it writes, and who is told.

    Attributes:
        processes: where it computes.
        run_dir: where checkpoints and the artifact go; None for nowhere.
        progress: whether the first process shows progress bars.
        on_step: called with (step, history) for every iteration.
    """

    processes: Processes = field(default_factory=Processes)
    run_dir: Path | None = None
    progress: bool = True
    on_step: OnStep | None = None

    @property
    def shows_progress(self) -> bool:
        """Whether this process shows progress bars."""
        return self.progress and self.processes.rank == 0

    @property
    def writes(self) -> bool:
        """Whether this process writes into `run_dir`."""
        return self.run_dir is not None and self.processes.rank == 0
