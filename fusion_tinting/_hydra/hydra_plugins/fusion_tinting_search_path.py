"""Found by Hydra by its place in `hydra_plugins`; does nothing but ask the package."""

import logging
import sys

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin


class FusionTintingSearchPath(SearchPathPlugin):
    """Every Hydra application of the user runs this: it must cost nothing and never raise."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Add the package's YAML, where FusionBench is loaded.

        Args:
            search_path: Hydra's, which is changed in place.
        """
        if "fusion_bench" not in sys.modules:
            return
        try:
            from fusion_tinting import _hydra

            _hydra.extend(search_path)
        except Exception as error:  # a broken plugin must not break the user's application
            logging.getLogger(__name__).warning(
                "fusion_tinting is installed but not available in this run: %r", error
            )
