"""Quiet libraries: their bars and load reports would bury what `learn` says."""

from collections.abc import Iterator
from contextlib import contextmanager

import datasets
from transformers.utils import logging


@contextmanager
def quiet() -> Iterator[None]:
    """While it lasts transformers and datasets report errors alone; what a model lacks `load` tells."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    theirs = datasets.are_progress_bars_disabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
        if not theirs:
            datasets.enable_progress_bars()
