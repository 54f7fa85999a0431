"""Test images: looked at before adaptation, read as those that teach, and kept in memory."""

from collections.abc import Mapping, Sequence
from typing import Any

from fusion_bench import instantiate
from fusion_bench.tasks.clip_classification import get_num_classes
from omegaconf import DictConfig
from torch.utils.data import DataLoader, Dataset

from fusion_tinting.families.pictures import naming, rgb
from fusion_tinting.fusionbench.own_classes import require_own_order
from fusion_tinting.fusionbench.pools import PoolFamily, read_data
from fusion_tinting.run.unlabeled import InMemory


class ReadImages(Dataset):
    """Rows `{image, label}`, or pairs of them, with the image as `pictures.rgb` reads it.

    Args:
        table: the rows.
        where: what an error calls them.
    """

    def __init__(self, table: Any, where: str):
        self.table, self.where = table, where

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, place: int) -> dict:
        with naming(place, self.where):
            row = _row(self.table[place])
            return {**row, "image": rgb(row["image"]), "label": int(row["label"])}


class TestImages:
    """Stands before one of FusionBench's image task pools among the bases of a class."""

    def setup(self) -> None:
        """As the stock class, with images read as those that teach; called on first use."""
        super().setup()
        for task, images in self.test_datasets.items():
            images.dataset = ReadImages(images.dataset, f"the test set of `{task}`")

    @property
    def loader_options(self) -> Mapping:
        """The stock class's options of its loaders."""
        return self._dataloader_kwargs

    def classes(self, task: str) -> int:
        """Return the number of a task's classes."""
        return get_num_classes(task)

    def check(self, models: PoolFamily) -> None:
        """Load the test sets, which are not read yet, and find out whether every task can be scored.

        Args:
            models: the model pool's.

        Raises:
            ValueError: a test set without images or labels, with a label that its task does not have, or
                that would not be scored whole.
            FileNotFoundError: a test set that cannot be reached.
        """
        require_whole(self.loader_options)
        for task, dataset in self._test_datasets.items():
            if isinstance(dataset, (DictConfig, dict)):
                dataset = read_data(instantiate, dataset, f"the test set of `{task}`")
            self._test_datasets = {**self._test_datasets, task: dataset}
            require_scored(dataset, self.classes(task), task)
            require_own_order(dataset, task)


def require_whole(options: Mapping) -> None:
    """Refuse loaders that leave the last images of a test set out.

    Args:
        options: of the task pool's loaders.

    Raises:
        ValueError: naming the option.
    """
    if options.get("drop_last"):
        raise ValueError("`taskpool.dataloader_kwargs.drop_last` would leave test images out: drop it.")


def require_scored(dataset: Any, classes: int, task: str) -> None:
    """Refuse a test set whose accuracy cannot be computed.

    Args:
        dataset: with columns, of which all labels are looked at; of another one row is. Not empty.
        classes: how many the task has.
        task: for the error.

    Raises:
        ValueError: no images, or no labels; or the first label that is none of the classes.
    """
    columns = getattr(dataset, "column_names", None)
    row = dict.fromkeys(columns) if columns else _row(dataset[0])
    if lacking := [column for column in ("image", "label") if column not in row]:
        raise ValueError(f"The test set of `{task}` lacks {lacking}: accuracy cannot be computed.")
    told = getattr(getattr(dataset, "features", {}).get("label"), "num_classes", 0)
    if told > classes:
        raise ValueError(
            f"The test set of `{task}` has {told} classes; its head tells only {classes} apart."
        )
    labels: Sequence = list(dataset["label"]) if columns else [row["label"]]
    strange = [place for place, label in enumerate(labels) if label not in range(classes)]
    if strange:
        raise ValueError(
            f"Row {strange[0]} of the test set of `{task}` has the label {labels[strange[0]]!r}, as "
            f"{len(strange)} of {len(labels)} rows have none from 0 to {classes - 1}: accuracy cannot be "
            "computed. Take a labeled split, or take those rows out."
        )


def _row(row: Any) -> Mapping:
    return row if isinstance(row, Mapping) else dict(zip(("image", "label"), row, strict=True))


class ImagesInMemory(TestImages):
    """`TestImages` that may be kept in memory.

    Args:
        in_memory: whether to keep preprocessed inputs in memory between passes; for small pools
            with `dataloader_kwargs.num_workers=0`.
        *args, **kwargs: as the stock class.
    """

    def __init__(self, *args: Any, in_memory: bool = False, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.in_memory = in_memory

    def setup(self) -> None:
        """As the stock class; called on first use."""
        super().setup()
        if self.in_memory:
            for name, dataset in self.test_datasets.items():
                loader = DataLoader(InMemory(dataset), **self.loader_options)
                self.test_dataloaders[name] = self.fabric.setup_dataloaders(loader)
