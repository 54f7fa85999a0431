"""What travels with a run and is no part of the method."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from fusion_tinting.method.settings import Settings
from fusion_tinting.method.tinted_model import TintedNetwork
from fusion_tinting.run.history import History
from fusion_tinting.run.identity import Identity
from fusion_tinting.run.processes import Processes
from fusion_tinting.run.unlabeled import Unlabeled

OnStep = Callable[[int, History], None]


@dataclass(frozen=True)
class Context:
    """Where a run computes, where it writes, and who is told.

    Attributes:
        processes: where it computes.
        run_dir: where checkpoints and the artifact go; None for nowhere.
        progress: whether the first process shows progress bars.
        on_step: called with (step, history) for every iteration.
        identity: of the run that is in `run_dir`, or will be.
    """

    processes: Processes = field(default_factory=Processes)
    run_dir: Path | None = None
    progress: bool = True
    on_step: OnStep | None = None
    identity: Identity | None = None

    def known(
        self,
        model: TintedNetwork,
        settings: Settings,
        unlabeled: Mapping[str, Unlabeled],
        split: str | None,
    ) -> "Context":
        """Return the same with the identity of the run, where that is still unknown and a folder needs it.

        Args:
            model: see `Identity.of`.
            settings: see `Identity.of`.
            unlabeled: see `Identity.of`.
            split: see `Identity.of`.
        """
        if self.run_dir is None or self.identity is not None:
            return self
        return replace(self, identity=Identity.of(model, settings, unlabeled, split, self.processes))

    @property
    def shows_progress(self) -> bool:
        """Whether this process shows progress bars."""
        return bool(self.progress) and self.processes.rank == 0 and sys.stderr is not None

    @property
    def writes(self) -> bool:
        """Whether this process writes into `run_dir`."""
        return self.run_dir is not None and self.processes.rank == 0
