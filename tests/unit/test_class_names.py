"""Class names and prompts as configurations give them, for tasks that FusionBench does not know."""

import pytest
from fusion_bench.tasks.clip_classification import get_classnames_and_templates

from fusion_tinting.families.class_names import prompt_makers, read_names
from fusion_tinting.fusionbench.own_classes import name_classes


def test_names_are_a_list_or_the_lines_of_a_file(tmp_path):
    (tmp_path / "names.txt").write_bytes(b"\xef\xbb\xbfwild cat\n\n dog \n")
    assert read_names(str(tmp_path / "names.txt"), "here") == ["wild cat", "dog"]
    assert read_names(["wild cat", "dog"], "here") == ["wild cat", "dog"]
    with pytest.raises(FileNotFoundError, match="class names of here"):
        read_names(str(tmp_path / "nowhere.txt"), "here")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "no class names of here"),
        (["cat", 1], "must be texts.*Found 1"),
        ([False, "yes"], "must be texts.*Found False"),
        (["cat", " "], "must be texts.*Found ' '"),
        (["cat", "dog", "cat"], "0 and 2.*called `cat`"),
    ],
)
def test_what_is_no_name_is_refused(names, message):
    with pytest.raises(ValueError, match=message):
        read_names(names, "here")


def test_prompts_have_a_place_for_the_name():
    assert [make("dog") for make in prompt_makers(None, "here")] == ["a photo of a dog."]
    assert [make("dog") for make in prompt_makers(["one {}", "{} or {}"], "here")] == [
        "one dog",
        "dog or dog",
    ]
    for bad in ("a photo", [], ["one {}", 3]):
        with pytest.raises(ValueError, match="template"):
            prompt_makers(bad, "here")


def test_fusionbench_knows_the_classes_of_own_tasks_and_keeps_its_own():
    name_classes({"my-pets": ["cat", "dog"]}, {})
    name_classes({"my-pets": ["cat", "dog", "fox"]}, {"my-pets": "a drawing of a {}"})
    names, templates = get_classnames_and_templates("my-pets")
    assert [templates[0](name) for name in names] == [f"a drawing of a {n}" for n in ("cat", "dog", "fox")]
    with pytest.raises(ValueError, match="FusionBench knows the classes of `mnist` already"):
        name_classes({"mnist": ["a", "b"]}, {})
    with pytest.raises(ValueError, match=r"`templates` has the tasks \['my-cars'\]"):
        name_classes({"my-pets": ["cat", "dog"]}, {"my-cars": "a {}"})
    for names, templates, named in ((["cat", "dog"], {}, "class_names"), ({}, "a {}", "templates")):
        with pytest.raises(ValueError, match=f"`{named}` must map each task to its own"):
            name_classes(names, templates)
