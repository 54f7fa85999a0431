"""For every test: one thread, no network, and no file in the user's own folders."""

import os

# Before torch and the hub client are imported, which read these once. One thread is about four times
# as fast as two for models as small as the tests'.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
