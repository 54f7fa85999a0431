"""`method=model_tinting/layer_sweep`: which layer to tint."""

from collections.abc import Mapping, Sequence
from typing import Any

from fusion_tinting.fusionbench.pools import PoolFamily
from fusion_tinting.fusionbench.studies import Scores, Study
from fusion_tinting.method.settings import Settings
from fusion_tinting.method.tints import HEAD, resolve_layer, tintable
from fusion_tinting.reporting.studies import by_parameters
from fusion_tinting.reporting.tables import Table
from fusion_tinting.run.tinted_model import TintedModel
from fusion_tinting.run.unlabeled import Unlabeled

NO_TINT = "no tint"


class LayerSweep(Study):
    """One adaptation for every layer, each with its score and its extra parameters per task.

    Extra parameters are the numbers in a task's tint, the mean over tasks; a head tint is counted whole.
    For comparison λ is also trained without a tint. The model that agrees best with the experts over the
    last tenth of its iterations is returned: the choice uses no label.

    Args:
        layers: those to tint, as `tints.resolve_layer` takes them; None for all that can be, and no tint.
        layer: must be None: `layers` names them.
        lr_head: the learning rate of head tints; None for `lr`.
        lr_tints: the learning rate of all other tints; None for `lr`.
        **options: as `Study`.

    Raises:
        ValueError: `layer` is given; as `Study`; and, once the models are loaded, an unknown layer.
    """

    name = "layer_sweep"
    _config_mapping = Study._config_mapping | {"layers": "layers", "lr_head": "lr_head"}

    def __init__(
        self,
        *,
        layers: Sequence[str | None] | None = None,
        layer: None = None,
        lr_head: float | None = None,
        lr_tints: float | None = None,
        **options: Any,
    ):
        if layer is not None:
            raise ValueError(
                f"`method.layer={layer}` has no effect in a layer sweep; use `method.layers=[{layer}]`."
            )
        self.layers = None if layers is None else list(layers)
        self.lr_tints, self.lr_head = lr_tints, lr_head
        super().__init__(**options)
        for rate in (lr_tints, lr_head):
            Settings.from_options({**self.settings, "lr_tints": rate})

    def study(self, family: PoolFamily, unlabeled: Mapping[str, Unlabeled]) -> TintedModel:
        """Adapt and score every layer, and return the model that agrees best with the experts.

        Args:
            family: the models, loaded.
            unlabeled: task -> the inputs to adapt on.
        """
        layers = self._every_layer(family) if self.layers is None else self.layers
        for layer in layers:
            resolve_layer(family.pretrained, family.layers.get(layer, layer))
        rows: dict[str, dict] = {}
        experts: Scores = {}
        best: tuple[float, str | None] = (-1.0, None)
        for layer in layers:
            model = self._tinted(family, unlabeled, layer)
            experts = experts or self.expert_scores(model)
            rows[layer or NO_TINT] = self._row(model, experts)
            best = max(best, (agreement(model), layer), key=lambda pair: pair[0])
        self._publish(rows, experts)
        return self._tinted(family, unlabeled, best[1])

    def _every_layer(self, family: PoolFamily) -> list[str | None]:
        frozen = self.settings.get("lr_coefficients") == 0
        return [*([] if frozen else [None]), *tintable(family.pretrained)]

    def _tinted(
        self, family: PoolFamily, unlabeled: Mapping[str, Unlabeled], layer: str | None
    ) -> TintedModel:
        in_head = (layer or "").split(".")[0] == HEAD
        lr = None if layer is None else self.lr_head if in_head else self.lr_tints
        return self._tint(family, unlabeled, self.folder(layer or NO_TINT), layer=layer, lr_tints=lr)

    def _row(self, model: TintedModel, experts: Scores) -> dict[str, Any]:
        scores = self.scores(model)
        numbers = sum(tensor.numel() for tensor in model.tint_modules.parameters())
        return {
            "extra_parameters_per_task": round(numbers / len(model.tasks)),
            "per_task": scores,
            "summary": self.summary(scores, experts),
            "share_of_experts": self.share(scores, experts),
            "agreement": agreement(model),
            "seconds": model.info.seconds,
        }

    def _publish(self, rows: dict, experts: Scores) -> None:
        points = {name: (row["extra_parameters_per_task"], row["summary"]) for name, row in rows.items()}
        lines = {"experts": self.summary(experts, experts)}
        if NO_TINT in points:
            lines[NO_TINT] = points.pop(NO_TINT)[1]
        title = f"The tinted layer\n{self.protocol}"
        figure = by_parameters(points, lines, unit=self.unit, title=title)
        rates = {"lr_tints": self.lr_tints, "lr_head": self.lr_head}
        content = {"unit": self.unit, **rates, "layers": rows, "experts": experts}
        summaries, by_task = self._summaries(rows, lines["experts"]), self._by_task(rows, experts)
        self.publish(content, [summaries], figure, details=[by_task])

    def _summaries(self, rows: dict, experts: float) -> Table:
        read = ("extra_parameters_per_task", "summary", "share_of_experts")
        lines = [[name, *map(row.get, read), 100 * row["agreement"]] for name, row in rows.items()]
        columns = ["layer", "extra parameters", self.unit, "% of the experts", "agreement %"]
        lines.append(["experts", None, experts, 100.0, None])
        caption = f"{self.protocol} Task by task: {self.name}.md in the log folder."
        return Table(columns, lines, title="The tinted layer", caption=caption)

    def _by_task(self, rows: dict, experts: Scores) -> Table:
        columns = [self.scaled(scores) for scores in (*(row["per_task"] for row in rows.values()), experts)]
        lines = [
            [f"{task}, {self._taskpool.metric(task).title}", *(column[task] for column in columns)]
            for task in self.tasks
        ]
        return Table(["task", *rows, "experts"], lines, title="Task by task")


def agreement(model: TintedModel) -> float:
    """Return the share of samples on which a tinted model and the experts agreed at the end.

    That is over the last tenth of the iterations.

    Args:
        model: the tinted model, with its history.
    """
    values = model.history.agreement
    return float(values[-max(1, len(values) // 10) :].mean())
