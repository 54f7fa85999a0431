"""`method=model_tinting/transfer`: whether tints that were learned on one merged encoder help another."""

from collections.abc import Mapping
from copy import deepcopy

from matplotlib.figure import Figure

from fusion_tinting.fusionbench.pools import PoolFamily
from fusion_tinting.fusionbench.studies import Study, coefficients_of
from fusion_tinting.method.settings import Settings
from fusion_tinting.method.tinted_model import TintedModel
from fusion_tinting.method.tints import AUTO
from fusion_tinting.reporting.studies import Grid, heat_map
from fusion_tinting.run.unlabeled import Unlabeled

ENCODERS = ("Task Arithmetic", "AdaMerging", "Model Tinting")
ORIGINAL = "original layers"


class Transfer(Study):
    """Every merged encoder with its original layers, and with the tints that were learned on each.

    The encoders are Task Arithmetic's (λ = init everywhere), AdaMerging's, and that which Model Tinting
    learns with its tints. The tints of the first two are trained on the given encoder, λ frozen. Returned
    is Model Tinting's model.

    Args:
        adamerging: settings of the AdaMerging encoder, where they differ from the others.
        **options: as `Study`.

    Raises:
        ValueError: no layer to tint, frozen λ, or bad settings, before anything is loaded.
    """

    name = "transfer"
    _config_mapping = Study._config_mapping | {"adamerging": "adamerging"}

    def __init__(self, *, adamerging: Mapping, **options):
        super().__init__(**options)
        layer = self.settings.get("layer", Settings.layer)
        if layer in (None, AUTO) or self.settings.get("lr_coefficients") == 0:
            raise ValueError(
                "The study transfer needs tints and λ that are trained: `method.layer` must name a layer, "
                "and `method.lr_coefficients` must not be 0."
            )
        self.adamerging = dict(adamerging)
        Settings.from_options(self.settings | self.adamerging)

    def study(self, family: PoolFamily, unlabeled: Mapping[str, Unlabeled]) -> TintedModel:
        """Make the encoders and the tints, and score each with each."""

        def tinted(part: str, **changes) -> TintedModel:
            return self._tint(family, unlabeled, self.folder(part), **changes)

        own = {"Model Tinting": tinted("model_tinting")}
        own["Task Arithmetic"] = tinted("task_arithmetic", lr_coefficients=0)
        merged = tinted("adamerging", **self.adamerging)
        encoders = {
            "Task Arithmetic": own["Task Arithmetic"].remerged(self.settings.get("init", Settings.init)),
            "AdaMerging": merged.remerged(coefficients_of(merged)),
            "Model Tinting": own["Model Tinting"].remerged(coefficients_of(own["Model Tinting"])),
        }
        # λ of one encoder are many numbers, of which `init` is one: it is made the base, and λ = 0.
        base = deepcopy(encoders["AdaMerging"].encoder).cpu()  # where the experts are
        own["AdaMerging"] = tinted("adamerging_tints", base=base, init=0.0, lr_coefficients=0)
        self._publish(
            {
                name: {
                    ORIGINAL: self.scores(encoders[name]),
                    **{source: self.scores(with_tints(encoders[name], own[source])) for source in ENCODERS},
                }
                for name in ENCODERS
            },
            {task: self.scores(merged.remerged(task), [task])[task] for task in self.tasks},
        )
        return own["Model Tinting"]

    def _publish(self, scores: Mapping, experts: Mapping[str, float]) -> None:
        shares = {
            name: {tints: self.share(each, experts) for tints, each in row.items()}
            for name, row in scores.items()
        }
        columns = [ORIGINAL, *(f"tints of\n{source}" for source in ENCODERS)]
        title = f"Score, % of the experts, {self.settings.get('layer', Settings.layer)} tints"
        caption = (
            "Rows: the merged encoder. Columns: the layers put in for each task; on the diagonal those "
            f"that were trained on the encoder itself. {self.protocol}"
        )
        rows = [[name, *row.values()] for name, row in shares.items()]
        titles = ["encoder", *(column.replace("\n", " ") for column in columns)]
        figure = Figure(figsize=(7.5, 4.2), layout="constrained")
        values = [list(row.values()) for row in shares.values()]
        span = min(map(min, values)), max(map(max, values))
        labels = {"rows": ENCODERS, "columns": columns, "title": f"{title}\n{self.protocol}"}
        heat_map(figure.subplots(), values, span=span, **labels)
        found = {"scores": scores, "experts": experts, "share_of_experts": shares}
        found["adamerging"] = self.adamerging
        self.publish(found, [Grid(title, titles, rows, caption)], figure)


def with_tints(merged: TintedModel, tinted: TintedModel) -> TintedModel:
    """The encoder of one model with the tints of another."""
    heads = dict(zip(merged.tasks, merged.heads, strict=True))
    return type(tinted)(
        merged.encoder, heads, tinted.tint_modules, layer=tinted.layer, vectors=merged.vectors
    )
