"""Test images that are kept in memory."""

from collections.abc import Mapping
from typing import Any

from torch.utils.data import DataLoader

from fusion_tinting.run.unlabeled import InMemory


class ImagesInMemory:
    """Stands before one of FusionBench's image task pools among the bases of a class.

    Args:
        in_memory: whether to keep preprocessed inputs in memory between passes; for small pools
            with `dataloader_kwargs.num_workers=0`.
        *args, **kwargs: as the stock class.
    """

    def __init__(self, *args: Any, in_memory: bool = False, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.in_memory = in_memory

    @property
    def loader_options(self) -> Mapping:
        """The stock class's options of its loaders."""
        return self._dataloader_kwargs

    def setup(self) -> None:
        """As the stock class; called on first use."""
        super().setup()
        if self.in_memory:
            for name, dataset in self.test_datasets.items():
                loader = DataLoader(InMemory(dataset), **self.loader_options)
                self.test_dataloaders[name] = self.fabric.setup_dataloaders(loader)
