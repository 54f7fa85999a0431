"""FusionBench programs in this process, on a micro zoo that all host tests share."""

from weakref import WeakKeyDictionary

import pytest


def pytest_configure(config):
    """Repair FusionBench before tests import more of it, which takes seconds: the quick ones wait."""
    if config.getoption("markexpr") != "quick":
        import fusion_tinting.fusionbench  # noqa: F401


@pytest.fixture(scope="session", autouse=True)
def pictures_processed_once():
    """CLIP's processor is asked for every picture of every run; it answers one that it knows from memory.

    It takes a few milliseconds for each, a fifth of the time of a run with models as small as the tests'.
    """
    from PIL.Image import Image
    from transformers import BatchFeature, CLIPProcessor

    whole, known, settings = CLIPProcessor.__call__, {}, WeakKeyDictionary()

    def call(self, text=None, images=None, **options):
        one = images[0] if isinstance(images, list) and len(images) == 1 else images
        if text is not None or not isinstance(one, Image) or options != {"return_tensors": "pt"}:
            return whole(self, text=text, images=images, **options)
        if self.image_processor not in settings:
            settings[self.image_processor] = self.image_processor.to_json_string()
        key = (settings[self.image_processor], one.mode, one.size, one.tobytes())
        if key not in known:
            known[key] = whole(self, images=images, **options)["pixel_values"]
        return BatchFeature({"pixel_values": known[key].clone()})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CLIPProcessor, "__call__", call)
        yield


@pytest.fixture
def fuse(cache, tmp_path):
    """Run FusionBench's program in the test's own folder, which is entered."""
    from command import program

    import fusion_tinting.fusionbench  # noqa: F401

    with program(tmp_path) as run:
        yield run
