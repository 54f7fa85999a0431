"""The offline benchmark: small tasks, a tiny pre-trained model and its experts, built on first use.

    from fusion_tinting import mini

    zoo = mini.build(seed=0)                  # folder with pretrained/, an expert for each task, and data/
    test = mini.load_dataset("mini-digits", "test", seed=0)

See README.md in this folder.
"""

from fusion_tinting.mini.zoo import build, load_dataset

__all__ = ["build", "load_dataset"]
