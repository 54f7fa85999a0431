"""For every test: one thread, no network, and no file in the user's own cache."""

import os

import pytest

# Before torch and the hub client are imported, which read these once. One thread is about four times
# as fast as two for models as small as the tests'.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="session", autouse=True)
def users_cache(tmp_path_factory):
    """Stands for the user's cache folder, in programs that the tests start too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FUSION_TINTING_CACHE", str(tmp_path_factory.mktemp("users_cache")))
        yield
