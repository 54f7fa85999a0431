"""What of a batch reaches the encoder: all that its signature takes, and no label; or a refusal."""

from collections import UserDict, namedtuple
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fusion_tinting.run.unlabeled import Unlabeled

pytestmark = pytest.mark.quick

X = torch.arange(24.0).view(8, 3)
IDS = torch.arange(24).view(8, 3)
MASK = (torch.arange(24).view(8, 3) % 2).long()
Y = torch.arange(8)


def encoder(forward):
    """An encoder with this `forward`, which keeps what it was called with."""

    class Encoder(nn.Module):
        pass

    Encoder.forward = forward
    return Encoder()


class One(nn.Module):
    def forward(self, x):
        return x


class Masked(nn.Module):
    """As transformers' own: everything by name may be left out."""

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        **kwargs,
    ):
        return input_ids


class Typed(nn.Module):
    def forward(self, input_ids, attention_mask: torch.Tensor | None = None, return_dict: bool = True):
        return input_ids


class Vision(nn.Module):
    def forward(self, pixel_values=None, bool_masked_pos=None, interpolate_pos_encoding: bool = False):
        return pixel_values


class Two(nn.Module):
    def forward(self, left, right):
        return left


class Both(nn.Module):
    def forward(self, pixel_values, input_ids, attention_mask=None):
        return pixel_values


class Context(nn.Module):
    def forward(self, x, context=None):
        return x


class Passing(nn.Module):
    """A wrapper, such as of several devices or of adapters."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *args, **kwargs):
        return self.module(*args, **kwargs)


def taken(source, model, inputs=None, rows=(1, 2)):
    (found,) = Unlabeled.of(source, model, inputs).batches([rows])
    return found


def same(found, expected):
    rows = torch.tensor([1, 2])
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        return all(torch.equal(found[key], expected[key][rows]) for key in expected)
    if isinstance(expected, tuple):
        assert isinstance(found, tuple) and len(found) == len(expected)
        return all(torch.equal(f, e[rows]) for f, e in zip(found, expected, strict=True))
    return torch.equal(found, expected[rows])


Pair = namedtuple("Pair", ["attention_mask", "input_ids", "labels"])


@dataclass
class Record:
    input_ids: torch.Tensor
    labels: torch.Tensor
    attention_mask: torch.Tensor


def loader(*tensors, **options):
    return DataLoader(TensorDataset(*tensors), batch_size=4, **options)


def rows_of(**columns):
    return [{key: value[place] for key, value in columns.items()} for place in range(8)]


TAKEN = {
    "tuple: mask reaches the encoder": (loader(IDS, MASK, Y), Masked(), (IDS, MASK)),
    "tuple: mask without labels": (loader(IDS, MASK), Typed(), (IDS, MASK)),
    "tuple: labels of an encoder with options": (loader(X, Y), Vision(), X),
    "tuple: labels of an encoder with a mask": (loader(IDS, Y), Typed(), IDS),
    "tuple: all three and labels": (loader(IDS, MASK, MASK, Y), Masked(), (IDS, MASK, MASK)),
    "tuple: several labels": (loader(X, Y, Y), Vision(), X),
    "tuple: wide labels beyond what it takes": (loader(X, MASK), One(), X),
    "tuple: two that are required": (loader(X, IDS, Y), Two(), (X, IDS)),
    "tuple: a required scalar is no label": (loader(X, Y), Two(), (X, Y)),
    "batches: tuples": ([(IDS[:4], MASK[:4], Y[:4]), (IDS[4:], MASK[4:], Y[4:])], Masked(), (IDS, MASK)),
    "batches: lists of arrays": ([[X.numpy(), Y.numpy()]], One(), X),
    "batches: labels of None": ([(X, None)], One(), X),
    "batches: metadata": ([(X, {"path": "a.png"})], One(), X),
    "names: image and text": ([{"pixel_values": X, "input_ids": IDS, "labels": Y}], Both(),
                              {"pixel_values": X, "input_ids": IDS}),
    "names: what it knows": ([{"pixel_values": X, "input_ids": IDS, "labels": Y}], Vision(), X),
    "names: unknown name of the only input": ([{"img": X, "label": Y}], One(), X),
    "names: beside numbers": ([{"img": X, "idx": Y, "label": Y}], One(), X),
    "names: second parameter alone": ([{"attention_mask": MASK, "input_ids": IDS}], Typed(),
                                      {"attention_mask": MASK, "input_ids": IDS}),
    "names: userdict": ([UserDict(input_ids=IDS, attention_mask=MASK, labels=Y)], Masked(),
                        {"input_ids": IDS, "attention_mask": MASK}),
    "names: namedtuple": ([Pair(MASK, IDS, Y)], Typed(), {"attention_mask": MASK, "input_ids": IDS}),
    "names: dataclass": ([Record(IDS, Y, MASK)], Typed(), {"input_ids": IDS, "attention_mask": MASK}),
    "names: lists of numbers": ([{"input_ids": IDS.tolist(), "attention_mask": MASK.tolist()}], Typed(),
                                {"input_ids": IDS, "attention_mask": MASK}),
    "names: rows": (rows_of(input_ids=IDS.tolist(), attention_mask=MASK.tolist(), label=Y.tolist()),
                    Masked(), {"input_ids": IDS, "attention_mask": MASK}),
    "names: columns": ({"input_ids": IDS, "attention_mask": MASK, "labels": Y}, Masked(),
                       {"input_ids": IDS, "attention_mask": MASK}),
    "names within a tuple": ([({"input_ids": IDS, "attention_mask": MASK}, Y)], Masked(),
                             {"input_ids": IDS, "attention_mask": MASK}),
    "tuple within a tuple": ([((X, IDS), Y)], Two(), (X, IDS)),
    "wrapper: its module decides": (loader(IDS, MASK, Y), Passing(Passing(Masked())), (IDS, MASK)),
    "wrapper: by name": ([{"input_ids": IDS, "attention_mask": MASK, "labels": Y}], Passing(Typed()),
                         {"input_ids": IDS, "attention_mask": MASK}),
    "rows of a tensor": (X, One(), X),
    "rows of an array": (X.numpy(), One(), X),
    "sequential": (loader(X, Y), nn.Sequential(nn.Identity(), nn.Identity()), X),
}  # fmt: skip


@pytest.mark.parametrize("case", TAKEN)
def test_the_encoder_is_given_what_it_takes(case):
    source, model, expected = TAKEN[case]
    assert same(taken(source, model), expected)


def test_parameters_that_a_wrapper_passes_on_by_name():
    class Own(nn.Module):
        def forward(self, input_ids, **tokens):
            return tokens["attention_mask"]

    batch = {"input_ids": IDS, "attention_mask": MASK, "idx": Y, "labels": Y}
    assert same(taken([batch], Own()), {"input_ids": IDS, "attention_mask": MASK})


UNCLEAR = {
    "a second tensor for a parameter that may be left out": (loader(X, X), Context()),
    "numbers that may be an input": (loader(X, Y), Context()),
    "labels of each position, or types": (loader(IDS, MASK, IDS), Masked()),
    "labels that are no mask": (loader(IDS, IDS + 5), Typed()),
    "too few": (loader(X), Two()),
    "a name much like one it knows": ([{"input_ids": IDS, "attn_mask": MASK}], Typed()),
    "part of a name": ([{"input_ids": IDS, "mask": MASK}], Masked()),
    "two unknown names": ([{"left_image": X, "right_image": X}], One()),
    "two usual names": ([{"image": X, "pixel_values": X}], One()),
    "a required one missing": ([{"pixel_values": X}], Both()),
    "samples with labels": ([[(X[0], 1), (X[1], 0)]], Two()),
}


@pytest.mark.parametrize("case", UNCLEAR)
def test_what_is_not_certain_is_refused(case):
    source, model = UNCLEAR[case]
    with pytest.raises(ValueError, match=r"inputs=|unclear|lacks|not certain"):
        taken(source, model)


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        (lambda batch: batch[1], IDS),
        (lambda batch: (batch[1], batch[0]), (IDS, X)),
        (lambda batch: {"context": batch[0]}, {"context": X}),
    ],
)
def test_the_user_can_say_it(inputs, expected):
    for source in (loader(X, IDS, Y), [(X, IDS, Y)], Unlabeled(TensorDataset(X, IDS, Y))):
        assert same(taken(source, Context(), inputs), expected)


def test_the_same_is_taken_of_data_without_an_encoder_as_before():
    assert same(taken(loader(X, Y), None), X)


def test_lists_of_strings_are_one_argument():
    source = DataLoader(["a", "b", "c"], batch_size=2)
    assert taken(source, One(), rows=(2, 0)) == ["c", "a"]
    assert taken(["a", "b", "c"], One(), rows=(2, 0)) == ["c", "a"]


def test_a_collate_function_that_lists_samples_gives_one_argument():
    images = [torch.zeros(3, size, size) for size in (4, 6, 8)]
    found = taken(DataLoader(images, batch_size=2, collate_fn=list), One(), rows=(2, 0))
    assert [tuple(image.shape) for image in found] == [(3, 8, 8), (3, 4, 4)]


def test_integers_of_arrays_stay_integers():
    assert taken([np.arange(6).reshape(3, 2)], One()).dtype == torch.int64
