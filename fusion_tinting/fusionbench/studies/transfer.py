"""`method=model_tinting/transfer`: whether tints that were learned on one merged encoder help another."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from matplotlib.figure import Figure

from fusion_tinting.fusionbench.pools import PoolFamily
from fusion_tinting.fusionbench.studies import Scores, Study, coefficients_of
from fusion_tinting.method.settings import Settings
from fusion_tinting.method.tints import AUTO
from fusion_tinting.reporting.studies import heat_map
from fusion_tinting.reporting.tables import Table
from fusion_tinting.run.tinted_model import TintedModel
from fusion_tinting.run.unlabeled import Unlabeled

ENCODERS = ("Task Arithmetic", "AdaMerging", "Model Tinting")
ORIGINAL = "original layers"


class Transfer(Study):
    """Every merged encoder with its original layers, and with the tints that were learned on each.

    The encoders are Task Arithmetic's (λ = init everywhere), AdaMerging's, and that which Model Tinting
    learns with its tints. The tints of the first two are trained on the given encoder, λ frozen. The
    model of Model Tinting is returned.

    Args:
        adamerging: settings of the AdaMerging encoder, where they differ from the others.
        **options: as `Study`.

    Raises:
        ValueError: no layer to tint, frozen λ, or bad settings, before anything is loaded.
    """

    name = "transfer"
    _config_mapping = Study._config_mapping | {"adamerging": "adamerging"}

    def __init__(self, *, adamerging: Mapping, **options: Any):
        super().__init__(**options)
        _ = self.init  # refused before anything is loaded, where it is not one number
        layer = self.settings.get("layer", Settings.layer)
        if layer in (None, AUTO) or self.settings.get("lr_coefficients") == 0:
            raise ValueError(
                "The study transfer needs tints and λ that are trained: `method.layer` must name a layer, "
                "and `method.lr_coefficients` must not be 0."
            )
        self.adamerging = dict(adamerging)
        Settings.from_options(self.settings | self.adamerging)

    def study(self, family: PoolFamily, unlabeled: Mapping[str, Unlabeled]) -> TintedModel:
        """Make the encoders and the tints, score each with each, and return Model Tinting's model.

        Args:
            family: the models, loaded.
            unlabeled: task -> the inputs to adapt on.
        """

        def tinted(part: str, **changes: Any) -> TintedModel:
            return self._tint(family, unlabeled, self.folder(part), **changes)

        own = {"Model Tinting": tinted("model_tinting")}
        own["Task Arithmetic"] = tinted("task_arithmetic", lr_coefficients=0)
        merged = tinted("adamerging", **self.adamerging)
        encoders = {
            "Task Arithmetic": own["Task Arithmetic"].remerged(self.init),
            "AdaMerging": merged.remerged(coefficients_of(merged)),
            "Model Tinting": own["Model Tinting"].remerged(coefficients_of(own["Model Tinting"])),
        }
        # `init` is one number and λ of this encoder are many: the encoder becomes the base, and λ = 0.
        base = deepcopy(encoders["AdaMerging"].encoder).cpu()  # where the experts are
        own["AdaMerging"] = tinted("adamerging_tints", base=base, init=0.0, lr_coefficients=0)
        scores = {name: self._row(encoder, own) for name, encoder in encoders.items()}
        self._publish(scores, self.expert_scores(merged))
        return own["Model Tinting"]

    def _row(self, encoder: TintedModel, tinted: Mapping[str, TintedModel]) -> dict[str, Scores]:
        """Return the scores of an encoder with its original layers, and with the tints of each model."""
        scores = {source: self.scores(with_tints(encoder, tinted[source])) for source in ENCODERS}
        return {ORIGINAL: self.scores(encoder), **scores}

    def _publish(self, scores: Mapping[str, Mapping[str, Scores]], experts: Scores) -> None:
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
        table = Table(["encoder", *columns], rows, title=title, caption=caption)
        content = {"scores": scores, "experts": experts, "share_of_experts": shares}
        content["adamerging"] = self.adamerging
        self.publish(content, [table], _figure(shares, columns, f"{title}\n{self.protocol}"))


def _figure(shares: Mapping[str, Mapping[str, float]], columns: list[str], title: str) -> Figure:
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    values = [list(row.values()) for row in shares.values()]
    span = min(map(min, values)), max(map(max, values))
    heat_map(figure.subplots(), values, rows=ENCODERS, columns=columns, title=title, span=span)
    return figure


def with_tints(merged: TintedModel, tinted: TintedModel) -> TintedModel:
    """Return the encoder of one model with the tints of another.

    Args:
        merged: the model whose encoder, heads and task vectors are taken.
        tinted: the model whose tints are taken.
    """
    heads = dict(zip(merged.tasks, merged.heads, strict=True))
    return type(tinted)(
        merged.encoder, heads, tinted.tint_modules, layer=tinted.tinted, vectors=merged.vectors
    )
