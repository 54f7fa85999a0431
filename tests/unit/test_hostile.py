"""The short form of `python -m tests.hostile`: a few of each kind of attempt."""

import pytest
from hostile import cases, cases_api, kills, mutations, side_by_side, threads
from hostile.verdicts import REFUSED, RIGHT


def bad(verdicts) -> list[str]:
    return [f"{v.kind}: {v.name}: {v.said}" for v in verdicts if v.kind not in (RIGHT, REFUSED)]


def test_a_damaged_file_is_never_silently_wrong():
    verdicts = mutations.count(24, seed=1)
    assert len(verdicts) > 18
    assert bad(verdicts) == []


def test_processes_with_one_folder_are_right_or_refused():
    assert bad(side_by_side.count(6)) == []


def test_killed_runs_continue_as_if_they_had_not_been():
    assert bad(kills.count(3, seed=1)) == []


def test_threads_get_what_one_thread_gets():
    assert bad(threads.count(threads=32, turns=8)) == []


@pytest.mark.parametrize("case", cases_api.CASES, ids=lambda case: case.name)
def test_what_people_pass_in_is_right_or_refused(case):
    assert bad([cases.attempt(case)]) == []
