"""Image classifiers without a host: batch-norm statistics as merged tensors, encoder and head."""

import copy

import pytest
import torch
from torch import nn
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    Dinov2Config,
    Dinov2ForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
)

import fusion_tinting as ft
from fusion_tinting.families import image_classification as family
from fusion_tinting.families.batch_norm import (
    MergedBatchNorm,
    merge_statistics,
    name_on_disk,
    restore_statistics,
)

TASKS = ["few", "many"]


def resnet(classes):
    return ResNetForImageClassification(
        ResNetConfig(
            embedding_size=4, hidden_sizes=[4, 6, 8, 8], depths=[1, 1, 1, 1], layer_type="basic",
            num_labels=classes,
        )
    )  # fmt: skip


def convnext(classes):
    return ConvNextForImageClassification(
        ConvNextConfig(hidden_sizes=[4, 6, 8, 8], depths=[1, 1, 1, 1], num_labels=classes)
    )


def dinov2(classes):
    return Dinov2ForImageClassification(
        Dinov2Config(
            hidden_size=8, num_hidden_layers=2, num_attention_heads=2, image_size=56, num_labels=classes
        )
    )


def torchvision_resnet(classes):
    from torchvision.models.resnet import BasicBlock, ResNet

    return ResNet(BasicBlock, [1, 1, 1, 1], num_classes=classes)


MAKERS = [resnet, convnext, dinov2, torchvision_resnet]


def logits(output):
    return output if isinstance(output, torch.Tensor) else output.logits


def noisy(model, seed):
    """An expert of `model`, its statistics too."""
    generator = torch.Generator().manual_seed(seed)
    expert = copy.deepcopy(model)
    for name, tensor in expert.state_dict().items():
        if tensor.is_floating_point():
            change = torch.randn(tensor.shape, generator=generator)
            tensor.mul_((0.3 * change).exp()) if "running_var" in name else tensor.add_(0.1 * change)
    return expert.eval()


def models(make):
    """The pre-trained classifier, and experts with heads of other widths."""
    torch.manual_seed(0)
    pretrained = make(5).eval()
    experts = {}
    for k, task in enumerate(TASKS):
        experts[task] = noisy(pretrained, k)
        head = family.head_name(pretrained)
        experts[task]._modules[head] = noisy(make(3 + 4 * k), k)._modules[head]
    return pretrained, experts


def untrained(make):
    pretrained, experts = models(make)
    parts = {task: family.split(copy.deepcopy(expert)) for task, expert in experts.items()}
    return family.TintedClassifier.untrained(
        family.split(copy.deepcopy(pretrained))[0],
        {task: encoder for task, (encoder, _) in parts.items()},
        {task: head for task, (_, head) in parts.items()},
    )


@pytest.mark.parametrize("shape", [(7, 4), (7, 4, 5), (7, 4, 5, 6)])
@pytest.mark.parametrize("affine", [True, False])
def test_a_merged_batch_norm_computes_what_the_layer_did(shape, affine):
    kind = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}[len(shape)]
    norm = noisy(kind(4, eps=1e-3, affine=affine), 0)
    x = torch.randn(shape)
    ours = MergedBatchNorm(norm)
    torch.testing.assert_close(ours(x), norm(x))
    torch.testing.assert_close(ours.train()(x), norm(x))
    restored = ours.restored()
    assert type(restored) is kind
    torch.testing.assert_close(restored.state_dict(), norm.state_dict())
    torch.testing.assert_close(restored(x), norm(x))


def test_replacing_statistics_keeps_the_names_on_disk_and_comes_back():
    model, _ = models(resnet)
    before = copy.deepcopy(model.state_dict())
    merged = merge_statistics(model)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in merged.modules())
    assert {name_on_disk(name) for name, _ in merged.named_parameters()} == {
        name for name in before if "num_batches_tracked" not in name
    }
    torch.testing.assert_close(restore_statistics(merged).state_dict(), before)


def test_a_single_batch_norm_is_replaced_too():
    assert isinstance(merge_statistics(nn.BatchNorm2d(3)), MergedBatchNorm)
    assert isinstance(restore_statistics(merge_statistics(nn.BatchNorm2d(3))), nn.BatchNorm2d)


def test_no_coefficients_make_a_variance_negative():
    """Of the variances themselves the sum would be 1 + 2 · (0.1 - 1) < 0."""
    pretrained, expert = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    expert.running_var.fill_(0.1)
    norms = [merge_statistics(nn.Sequential(norm)) for norm in (pretrained, expert, copy.deepcopy(expert))]
    heads = {task: nn.Linear(3, 2) for task in TASKS}
    model = ft.TintedModel.untrained(norms[0], dict(zip(TASKS, norms[1:], strict=True)), heads)
    norm = restore_statistics(model.remerged(1.0).encoder)[0]
    torch.testing.assert_close(norm.running_var, torch.full((3,), 0.01), rtol=1e-2, atol=0)


@pytest.mark.parametrize("make", MAKERS)
def test_encoder_and_head_are_the_classifier(make):
    model, _ = models(make)
    x = torch.randn(3, 3, 64, 64)
    expected = logits(model(x))
    encoder, head = family.split(copy.deepcopy(model))
    torch.testing.assert_close(head(encoder(x)), expected, rtol=1e-4, atol=1e-5)
    again = encoder.classifier(head)
    assert type(again) is type(model)
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("make", MAKERS)
def test_no_coefficients_are_the_pretrained_model_and_one_is_the_expert_statistics_too(make):
    pretrained, experts = models(make)
    model, x = untrained(make), torch.randn(3, 3, 64, 64)
    shared = model.remerged(0.0).merged
    torch.testing.assert_close(shared.state_dict(), pretrained.state_dict(), rtol=1e-4, atol=1e-6)
    for task in TASKS:
        expected = logits(experts[task](x))
        torch.testing.assert_close(model.remerged(task)(x, task), expected, rtol=1e-3, atol=1e-4)


def test_a_copy_of_a_model_with_fusionbenchs_forward_computes_with_its_own_weights():
    model, _ = models(resnet)
    original = model.forward
    model.forward = lambda pixel_values, **kwargs: original(pixel_values=pixel_values, **kwargs).logits
    model.original_forward = original
    x = torch.randn(2, 3, 64, 64)
    expected = model(x)
    encoder, head = family.split(model)
    twin = copy.deepcopy(encoder)
    torch.testing.assert_close(head(encoder(x)), expected, rtol=1e-4, atol=1e-5)
    for parameter in twin.parameters():
        parameter.data.zero_()
    assert not torch.equal(twin(x), encoder(x))


def test_statistics_have_coefficients_that_are_learned():
    pretrained, experts = models(resnet)
    parts = {task: family.split(expert) for task, expert in experts.items()}
    unlabeled = {task: [torch.randn(8, 3, 64, 64)] for task in TASKS}
    model = ft.tint(
        family.split(pretrained)[0],
        experts={task: encoder for task, (encoder, _) in parts.items()},
        heads={task: head for task, (_, head) in parts.items()},
        unlabeled=unlabeled, model_class=family.TintedClassifier, steps=2, batch_size=4, progress=False,
    )  # fmt: skip
    name = "model.resnet.embedder.embedder.normalization.{}"
    for statistic in ("running_mean", "log_variance"):
        assert not torch.equal(model.coefficients[name.format(statistic)], torch.full((2,), 0.3))


def test_what_has_no_head_of_a_known_name_is_refused():
    with pytest.raises(ValueError, match="Sequential has no last layer named classifier or fc"):
        family.split(nn.Sequential(nn.Linear(2, 2)))


def test_a_checkpoint_without_its_head_is_refused_where_one_is_needed(tmp_path):
    model, _ = models(resnet)
    model.resnet.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"no complete ResNetForImageClassification.*classifier"):
        family.load(str(tmp_path))
    assert family.load(str(tmp_path), with_head=False).resnet.state_dict().keys()
