"""The offline benchmark: 8, 14 or 20 small tasks and a tiny CLIP, made on the spot on first use.

    from fusion_tinting import mini

    zoo = mini.build(seed=0)                  # folder with pretrained/, an expert a task, and data/
    test = mini.load_dataset("mini-digits", "test", seed=0)

Read `tasks` for what the tasks are, `training` for how the models are made, `zoo` for how they are
built and cached, `recipe` for all sizes, and `pools` for FusionBench's model pool and task pool.
"""

from .zoo import build, load_dataset

__all__ = ["build", "load_dataset"]
