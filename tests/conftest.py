"""For every test: one thread, no network, and no file in the user's own cache."""

import gc
import os
import signal
from collections import defaultdict

import pytest

# Before torch and the hub client are imported, which read these once. One thread is about four times
# as fast as two for models as small as the tests'.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

RENDERED = pytest.StashKey[bool]()
"""Whether plots of the test that runs are rendered."""

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what is to run behind it
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_ignore_collect(collection_path, config):
    """With `-m quick` import no file that has no quick test: importing all takes as long as the tests."""
    if config.getoption("markexpr") == "quick" and collection_path.match("test_*.py"):
        return "mark.quick" not in collection_path.read_text(encoding="utf-8") or None
    return None


def pytest_collection_modifyitems(config, items):
    """With `-m quick` leave out long tests, and of one with many cases all but the first and the last."""
    if config.getoption("markexpr") == "quick":
        cases = defaultdict(list)
        for item in items:
            cases[item.nodeid.partition("[")[0]].append(item)
        left_out = {item for each in cases.values() for item in each[1:-1]}
        left_out |= {item for item in items if item.get_closest_marker("long")}
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session", autouse=True)
def seldom_tidied():
    """Memory is searched for garbage seldom, and never what was imported: half a million objects."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """Stands for the user's cache folder, in programs that the tests start too.

    All workers of a session share it: a mini is built once, by the first that asks, while others wait.
    """
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    folder = folder / "users_cache"
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FUSION_TINTING_CACHE", str(folder))
        yield folder


@pytest.hookimpl(tryfirst=True)  # before the fixtures of the test, which may draw
def pytest_runtest_setup(item):
    item.config.stash[RENDERED] = item.get_closest_marker("rendered") is not None


@pytest.fixture(scope="session", autouse=True)
def blank_plots(pytestconfig):
    """Only what a test marked `rendered` draws is turned into pixels; other runs' pictures are blank.

    Drawing and rendering are a third of the time of a FusionBench run with models as small as the tests'.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from fusion_tinting.reporting import plots

    def unless_rendered(function, other):
        return lambda *given: (function if pytestconfig.stash[RENDERED] else other)(*given)

    def blank(*_):
        return Figure((1, 1))

    with pytest.MonkeyPatch.context() as patch:
        agg = FigureCanvasAgg
        patch.setattr(agg, "draw", unless_rendered(agg.draw, agg.get_renderer))
        for name in ("curves", "coefficient_map"):
            patch.setattr(plots, name, unless_rendered(getattr(plots, name), blank))
        yield
