"""`CausalLMPool` through FusionBench on tiny Llamas: what it learns, leaves behind and refuses."""

import json

import pytest
import torch
from checkpoints import WORDS, expert, llama, make_tokenizer
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

TASKS = ["instruction", "math", "coding"]
TINTING = ("method=model_tinting", "modelpool=llama-3.2-3b", "~taskpool", "method.adapt_split=train")
SHORT = (*TINTING, "method.steps=3", "method.batch_size=4", "method.layer=block:-1")


@pytest.fixture
def pool(tmp_path):
    """Overrides that put tiny checkpoints and texts in the place of the hub's."""
    torch.manual_seed(0)
    base = llama(tmp_path / "base")
    found = [f"modelpool.models._pretrained_={base}", f"modelpool.tokenizer={base}"]
    data = []
    for seed, task in enumerate(TASKS):
        expert(tmp_path / task, base, seed)
        rows = [
            {"text": " ".join(WORDS[(place * 7 + seed + k) % 20] for k in range(9))} for place in range(60)
        ]
        (tmp_path / f"{task}.json").write_text("\n".join(map(json.dumps, rows)))
        found.append(f"modelpool.models.{task}={tmp_path / task}")
        file = f"{{_target_:datasets.load_dataset,path:json,split:train,data_files:{tmp_path / task}.json}}"
        data.append(f"{task}:{file}")
    return [*found, "~modelpool.train_datasets", f"+modelpool.train_datasets={{{','.join(data)}}}"]


@pytest.mark.parametrize(("layer", "part"), [("block:-1", ".layers.1."), ("head", "lm_head.weight")])
def test_a_tint_brings_each_task_nearer_to_its_expert(fuse, pool, tmp_path, capfd, layer, part):
    options = ("method.steps=30", "method.batch_size=4", f"method.layer={layer}", "method.objective=soft")
    model = fuse(*TINTING, *pool, *options, "method.run_dir=run")["merged_model"]
    history = model.history
    assert history.loss[-10:].mean() < history.loss[:10].mean()
    assert "kept aside" in capfd.readouterr().out
    tint = load_file(tmp_path / "run" / "tints" / "math.safetensors")
    assert tint and all(part in name for name in tint)
    coefficients = load_file(tmp_path / "run" / "coefficients.safetensors")
    assert coefficients.keys() <= load_file(tmp_path / "base" / "model.safetensors").keys()
    again = fuse(*TINTING, *pool, "method.artifact=run")["merged_model"]
    ids = torch.arange(8)[None]
    assert torch.equal(again(ids, "math"), model(ids, "math"))


@pytest.mark.quick
def test_one_hot_coefficients_are_transformers_own_expert(fuse, pool, tmp_path):
    model = fuse(*SHORT, *pool, "merged_model_save_path='{log_dir}/saved'")["merged_model"]
    ids = torch.arange(8)[None]
    for task in TASKS:
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / task).eval()
        with torch.no_grad():
            wanted = theirs(ids).logits.transpose(1, 2)
            torch.testing.assert_close(model.remerged(task)(ids, task), wanted, rtol=0, atol=1e-5)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "saved").eval()
    for name, parameter in model.merged.named_parameters():
        assert torch.equal(saved.get_parameter(name), parameter)


def test_checkpoints_may_be_read_from_their_files_in_every_step(fuse, pool):
    models = [
        fuse(*SHORT, *pool, f"method.task_vectors.storage={storage}")["merged_model"]
        for storage in ("memory", "stream")
    ]
    kept, streamed = (torch.stack(list(model.coefficients.values())) for model in models)
    assert (kept != 0.3).any()
    torch.testing.assert_close(kept, streamed, rtol=0, atol=1e-6)


def test_what_cannot_work_is_refused(fuse, pool, tmp_path):
    def refused(*overrides: str) -> str:
        with pytest.raises(ValueError) as caught:
            fuse(*SHORT, *pool, *overrides)
        return str(caught.value)

    tokenizer = make_tokenizer([*WORDS, "more", "words"])
    tokenizer.save_pretrained(tmp_path / "other")
    assert "do not belong together" in refused(f"modelpool.tokenizer={tmp_path / 'other'}")
    assert "layer=auto` is not for language models" in refused("method.layer=auto")
    rows = [{"text": "the film", "more": "the book"}] * 9
    (tmp_path / "math.json").write_text("\n".join(map(json.dumps, rows)))
    assert "Found ['text', 'more']" in refused()
    (tmp_path / "math.json").write_text(json.dumps({"text": "the"}))
    assert "split of `math`: The texts hold" in refused()


def test_the_head_of_tied_embeddings_gets_a_tensor_of_its_own(fuse, pool, tmp_path):
    base = llama(tmp_path / "tied", tied=True)
    changed = [f"modelpool.models._pretrained_={base}"]
    for seed, task in enumerate(TASKS):
        expert(tmp_path / f"tied-{task}", base, seed)
        changed.append(f"modelpool.models.{task}={tmp_path / f'tied-{task}'}")
    model = fuse(*SHORT, *pool, *changed, "method.layer=head")["merged_model"]
    assert model.layer == "model.lm_head"
    with pytest.raises(ValueError, match="shares a tensor with the LM head"):
        fuse(*SHORT, *pool, *changed, "method.layer=model.model.embed_tokens")
