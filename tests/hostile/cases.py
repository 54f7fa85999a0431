"""What people pass in, as tables: what is given, and what is right."""

from collections.abc import Callable
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch

from .verdicts import REFUSED, UNCLEAR, Verdict, judge


@dataclass(frozen=True)
class Case:
    """One call.

    Attributes:
        name: what is given.
        act: what the user does; its result is a tensor, or name -> value.
        equal: gives the right result; None where there is none, so that it must be refused.
        refusal: words of which one must be in a refusal; empty where none would do.
    """

    name: str
    act: Callable[[], Any]
    equal: Callable[[], Any] | None = None
    refusal: tuple[str, ...] = ()


def count(cases: list[Case] | None = None) -> list[Verdict]:
    """Try every case."""
    return [attempt(case) for case in (every() if cases is None else cases)]


def every() -> list[Case]:
    """Return the cases of all tables."""
    from . import cases_around, cases_batches, cases_identity, cases_models, cases_outputs

    return [
        *cases_batches.CASES,
        *cases_outputs.CASES,
        *cases_models.CASES,
        *cases_identity.CASES,
        *cases_around.CASES,
    ]


def attempt(case: Case) -> Verdict:
    """Try a case."""

    def wrong(found: Any) -> str | None:
        if case.equal is None:
            return "accepted"
        with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
            patch.setenv("FUSION_TINTING_CACHE", folder)  # what is right never comes from where this was
            return apart(case.equal(), found)

    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("FUSION_TINTING_CACHE", f"{folder}/used")
        verdict = judge(case.name, case.act, wrong, case.refusal)
    if verdict.kind == REFUSED and not case.refusal:
        return Verdict(case.name, UNCLEAR, f"refused without a need: {verdict.said}")
    return verdict


def apart(one: Any, two: Any) -> str | None:
    """Return how two results differ by more than rounding."""
    if isinstance(one, dict) and isinstance(two, dict):
        if one.keys() != two.keys():
            return f"keys {sorted(one.keys() ^ two.keys())}"
        return next((f"{key}: {said}" for key in one if (said := apart(one[key], two[key]))), None)
    if isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor):
        if one.shape != two.shape or one.dtype != two.dtype:
            return f"{tuple(one.shape)} {one.dtype} and {tuple(two.shape)} {two.dtype}"
        near = torch.allclose(one.double(), two.double(), rtol=1e-4, atol=1e-5, equal_nan=True)
        return None if near else f"apart by {float((one.double() - two.double()).abs().max()):.3g}"
    return None if one == two else f"{one!r:.80} and {two!r:.80}"
