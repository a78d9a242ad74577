"""Runs: FLOPs, folders, and checkpoints that resume."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from builders import SIT, TOKENIZER, make_batch

from recipes.core.distributed import World
from recipes.core.draws import KeyedDraws
from recipes.core.errors import Stopped, UserError
from recipes.core.spec import Execution, OptimizerSpec, TrainSpec
from recipes.models.autoencoder import Autoencoder
from recipes.models.encoder import EncoderOutput
from recipes.training.build import build_trainer, layout
from recipes.training.flops import flops_per_step
from recipes.training.run_folder import Run, load_for_sampling
from recipes.training.spec import RunSpec, TrainingInputs
from recipes.training.train import TrainingOptions, train_run

EVERY = TrainingOptions(log_every=1)
OFF = {"gan": 0.0, "perceptual": 0.0, "train_pos_embed": False}


def make_spec(recipe: str = "repa_e", **sit) -> RunSpec:
    return RunSpec(
        suite="test",
        variant=recipe,
        recipe=recipe,
        options=OFF if recipe == "repa_e" else {},
        sit=SIT.model_copy(update=sit),
        tokenizer=TOKENIZER,
        train=TrainSpec(
            seed=1, batch_size=4, optimizers={"sit": OptimizerSpec(lr=1e-3), "vae": OptimizerSpec(lr=1e-3)}
        ),
        inputs={},
    )


def make_inputs() -> TrainingInputs:
    torch.manual_seed(0)
    return TrainingInputs(make_batch(12), Autoencoder(TOKENIZER), torch.zeros(4), torch.ones(4))


def test_flops_of_vanilla_by_hand():
    """Counted: matrix products of the blocks, attention included, times three for forward and backward."""
    d, tokens, depth, n = 64, 256, 3, 4
    spec = make_spec("vanilla", hidden=d, latent_size=32, patch_size=2, depth=depth, encoder_widths=())
    linear = 12 * d * d * tokens
    attention = 2 * tokens * tokens * d
    conditioning = 6 * d * d
    forward = 2 * depth * (linear + attention + conditioning)
    ends = 2 * tokens * (2 * 2 * 4 * d) * 2 + 2 * (2 * d * d + 256 * d + d * d)
    expected = 3 * n * (forward + ends)
    # The first convolution wants no gradient of its input, and attention's backward recomputes: a few per cent.
    assert flops_per_step(spec, 128) == pytest.approx(expected, rel=0.12)
    without_attention = 3 * n * (2 * depth * (linear + conditioning) + ends)
    assert flops_per_step(spec, 128) > 1.15 * without_attention


def test_joint_training_costs_more_than_repa_and_repa_more_than_vanilla():
    vanilla, repa, joint = (flops_per_step(make_spec(r), 16) for r in ("vanilla", "repa", "repa_e"))
    assert vanilla <= repa < joint


@pytest.mark.parametrize("recipe", ["vanilla", "repa", "repa_e"])
def test_a_run_resumes_to_the_same_weights(tmp_path, recipe):
    spec, inputs = make_spec(recipe), make_inputs()
    whole, parts = Run(spec, tmp_path / "whole"), Run(spec, tmp_path / "parts")
    train_run(whole, inputs, [3, 6], EVERY)
    train_run(parts, inputs, [3], EVERY)
    assert parts.resumable() == 3
    train_run(parts, inputs, [3, 6], EVERY)
    assert whole.weights_hash(6) == parts.weights_hash(6)
    assert parts.steps() == [3, 6]
    assert parts.resumable() == 6
    assert (parts.checkpoint(3) / "optimizer.safetensors").exists()  # the last two keep it
    assert parts.clock(6)["seconds"] > parts.clock(3)["seconds"] > 0
    losses = [line.split('"seconds"')[0] for line in parts.log_path.read_text().splitlines()]
    assert losses == [line.split('"seconds"')[0] for line in whole.log_path.read_text().splitlines()]
    assert len(losses) == 6


def test_the_log_forgets_what_was_logged_after_the_checkpoint(tmp_path):
    run, inputs = Run(make_spec("vanilla"), tmp_path), make_inputs()
    train_run(run, inputs, [2], EVERY)
    with run.log_path.open("a") as log:
        log.write('{"step": 3, "denoising": 1.0}\n{"step": 4, "den')
    train_run(run, inputs, [2, 4], EVERY)
    assert [line[9] for line in run.log_path.read_text().splitlines()] == ["1", "2", "3", "4"]


def test_a_damaged_checkpoint_is_named(tmp_path):
    run, inputs = Run(make_spec("vanilla"), tmp_path), make_inputs()
    train_run(run, inputs, [2])
    path = run.checkpoint(2) / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"weights\.safetensors is damaged"):
        train_run(run, inputs, [2, 4])


def test_sampling_takes_the_weights_it_is_asked_for(tmp_path):
    run, inputs = Run(make_spec(), tmp_path), make_inputs()
    train_run(run, inputs, [2])
    weights = run.weights(2)
    average, tokenizer = load_for_sampling(run, 2, inputs.tokenizer, average=True)
    raw, _ = load_for_sampling(run, 2, inputs.tokenizer, average=False)
    key = "blocks.0.attn.qkv.weight"
    assert torch.equal(average.state_dict()[key], weights[f"ema.sit.{key}"])
    assert torch.equal(raw.state_dict()[key], weights[f"sit.{key}"])
    assert not torch.equal(raw.state_dict()[key], average.state_dict()[key])
    assert tokenizer is not inputs.tokenizer
    frozen = Run(make_spec("vanilla"), tmp_path / "v")
    train_run(frozen, inputs, [1])
    with pytest.raises(UserError, match="holds no tokenizer of its own"):
        load_for_sampling(frozen, 1, None, average=True)
    train_run(frozen, inputs, [1])
    assert load_for_sampling(frozen, 1, inputs.tokenizer, average=True)[1] is inputs.tokenizer


def saved(run: Run) -> dict[int, bool]:
    """Steps with a checkpoint, and whether it can be resumed."""
    return {s: (run.checkpoint(s) / "optimizer.safetensors").exists() for s in run.steps()}


def test_old_checkpoints_let_go(tmp_path):
    run = Run(make_spec("vanilla"), tmp_path)
    train_run(run, make_inputs(), [4, 9], TrainingOptions(Execution(device="cpu", save_every=2, keep=2)))
    assert saved(run) == {4: False, 8: True, 9: True}


def test_a_signal_saves_and_the_same_call_continues(tmp_path):
    spec, inputs = make_spec("repa_e"), make_inputs()
    whole, parts = Run(spec, tmp_path / "whole"), Run(spec, tmp_path / "parts")
    train_run(whole, inputs, [6], EVERY)
    seen: list[int] = []
    with pytest.raises(Stopped, match="saved at step 3"):
        train_run(parts, inputs, [6], TrainingOptions(log_every=1, on_step=seen.append, stop=lambda: len(seen) == 2))
    assert saved(parts) == {3: True}
    train_run(parts, inputs, [6], EVERY)
    assert whole.weights_hash(6) == parts.weights_hash(6)


@pytest.mark.parametrize(
    ("batch", "processes", "most", "text"),
    [
        (256, 8, None, "256 = 8 GPUs x 32 x 1"),
        (256, 2, 32, "256 = 2 GPUs x 32 x 4"),
        (256, 1, 100, "256 = 1 GPU x 64 x 4"),
    ],
)
def test_layout_is_told(batch, processes, most, text):
    spec = make_spec("vanilla")
    spec = spec.model_copy(update={"train": spec.train.model_copy(update={"batch_size": batch})})
    world = World(size=processes, device=torch.device("cuda"))
    assert str(layout(spec, Execution(micro_batch=most), world)) == text


def test_layouts_that_would_change_the_training_are_refused():
    spec = make_spec("vanilla")
    with pytest.raises(UserError, match="batch of 4 does not divide by 3 processes"):
        layout(spec, Execution(), World(size=3))
    joint = make_spec("repa_e").model_copy(update={"options": {}})
    with pytest.raises(UserError, match=r"pool 2 images and not 4.*--set norm_batch=2"):
        layout(joint, Execution(micro_batch=2), World())
    accepted = joint.model_copy(update={"train": joint.train.model_copy(update={"norm_batch": 2})})
    assert layout(accepted, Execution(micro_batch=2), World()).accumulation == 2
    assert layout(joint, Execution(), World(size=2)).micro_batch == 2  # all processes pool


def test_tokens_are_computed_where_they_are_not_stored(tmp_path):
    """Encoders that look at the batch give what stored tokens give."""

    class Eye(torch.nn.Module):
        def look(self, images: torch.Tensor, attention: tuple[int, ...] = ()) -> EncoderOutput:
            return EncoderOutput(images.float().flatten(1)[:, : 4 * 12].unflatten(1, (4, 12)) / 255, None, ())

    data, eye = make_batch(12), Eye()
    stored = replace(make_inputs(), data=replace(data, features=(eye.look(data.images).patches,)))
    computed = replace(make_inputs(), data=replace(data, features=()), encoders=(eye,))
    hashes = set()
    for name, inputs in (("stored", stored), ("computed", computed)):
        run = Run(make_spec("repa"), tmp_path / name)
        train_run(run, inputs, [2])
        hashes.add(run.weights_hash(2))
    assert len(hashes) == 1


def test_a_run_is_opened_by_its_folder(tmp_path):
    run = Run(make_spec("vanilla"), tmp_path)
    train_run(run, make_inputs(), [1])
    assert Run.open(tmp_path).spec == run.spec
    with pytest.raises(UserError, match=r"is not a run: its spec\.json"):
        Run.open(tmp_path / "elsewhere")


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # Dynamo looks at it
def test_compiled_regions_give_the_same_numbers(monkeypatch):
    """Through AOTAutograd without code generation, which takes a minute here; graphs and guards are the real ones."""
    whole = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: whole(self, backend="aot_eager"))
    logs = []
    for compiled in (False, True):
        trainer = build_trainer(make_spec(), make_inputs(), execution=Execution(device="cpu", compile=compiled))
        rows = torch.arange(4)
        for step in range(2):
            found = trainer.train_step(make_batch(12).take(rows), KeyedDraws(1, step, rows))
        logs.append({name: value.item() for name, value in found.items()})
    assert logs[0] == pytest.approx(logs[1], rel=1e-4, abs=1e-5)
    assert any("compiled" in name for name in vars(trainer.recipe.networks["sit"].blocks[0]))
