"""Four small text tasks, a tiny RoBERTa and its experts, made on the spot to show `mergekit-tint` on.

python -m fusion_tinting.mini.texts DEMO
mergekit-tint learn DEMO/config.yml DEMO/run
"""

import sys
from pathlib import Path

from fusion_tinting.mini import zoo
from fusion_tinting.mini.text.demo import RECIPE
from fusion_tinting.run.files import write_text

CONFIG = """\
# Written by `python -m fusion_tinting.mini.texts`; a quarter of a minute on a CPU.
base_model: "{folder}/pretrained"
models:
  - {{model: "{folder}/review", task: review, data: "{folder}/data/review.jsonl"}}
  - {{model: "{folder}/doer", task: doer, data: "{folder}/data/doer.jsonl"}}
  - {{model: "{folder}/topic", task: topic, data: "{folder}/data/topic.jsonl"}}
  - model: "{folder}/compare"
    task: compare
    data: {{path: "{folder}/data/compare.jsonl", text_pair: second}}
# init: where λ starts, and λ of Task Arithmetic in the report; the usual 0.3 is for eight tasks.
adapt: {{layer: head, sampler: confidence_difference, steps: 80, batch_size: 32, lr: 1.0e-2, init: 0.4}}
data: {{text: text, label: label}}   # labels are for the report alone
"""


def make(folder: Path, progress: bool = True) -> None:
    """Write base, experts, unlabeled texts with labels to compare with, and a configuration.

    Args:
        folder: Gets `pretrained/`, `<task>/`, `data/<task>.jsonl` and `config.yml`.
        progress: Whether to show a progress bar.
    """
    zoo.build_in(folder, RECIPE, seed=0, progress=progress)
    write_text(folder / "config.yml", CONFIG.format(folder=folder))


if __name__ == "__main__":
    make(Path(sys.argv[1]).resolve())
