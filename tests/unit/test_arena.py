"""What follow-up recipes do besides computing what their released code computes."""

from __future__ import annotations

import pytest
import torch
from builders import OPTIONS, SIT, TOKENIZER, make_batch, make_recipe, make_train_spec
from test_run import make_spec

from harness.checks.conformance import conform
from harness.suites import SUITES, suite
from recipes.base import Needs
from recipes.core.distributed import World
from recipes.core.draws import KeyedDraws
from recipes.core.errors import UserError
from recipes.core.loop import Trainer
from recipes.core.optimizers import Together, make_optimizer
from recipes.core.spec import Execution, OptimizerSpec
from recipes.core.step import Step
from recipes.models.sit import SiT
from recipes.registry import RECIPES, find_recipe
from recipes.training.build import layout
from recipes.training.flops import flops_per_step, flops_to
from recipes.training.spec import RunSpec

FOLLOWUPS = ("irepa", "reg", "haste", "layersync", "sra", "contrastive", "dispersive")


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_of_the_tree_conforms(name):
    checks = list(conform(find_recipe(name, {}, where=name)))
    assert [(c.rule, c.fault) for c in checks if c.fault] == []
    assert len(checks) == 5


def trained(name: str, steps: int, **options: object) -> Trainer:
    recipe = make_recipe(name, **options)
    trainer = Trainer(recipe, make_train_spec("sit"))
    for step in range(steps):
        trainer.train_step(make_batch(seed=step), KeyedDraws(3, step, torch.arange(6)))
    return trainer


def run_spec(name: str, **options: object) -> RunSpec:
    found = find_recipe(name, OPTIONS.get(name, {}) | options, where=name)
    plain = make_spec("vanilla")
    return plain.model_copy(
        update={
            "recipe": name,
            "options": found.options.model_dump(mode="json"),
            "sit": found.shape(SIT, (12,)),
            "tokenizer": TOKENIZER,
        }
    )


def test_what_haste_has_stopped_is_not_computed_and_stands_still():
    trainer = trained("haste", 2)  # the two iterations before it stops
    sit = trainer.recipe.networks["sit"]
    projector = [p.detach().clone() for p in sit.projectors.parameters()]
    moments = {k: v.clone() for k, v in trainer.optimizer_state().items()}
    called = []
    for module in sit.projectors:
        module.register_forward_hook(lambda *_: called.append(1))
    bare = make_batch(seed=2)
    bare = type(bare)(labels=bare.labels, mean=bare.mean, std=bare.std)  # and no encoder's output is there
    logs = trainer.train_step(bare, KeyedDraws(3, 2, torch.arange(6)))
    assert not called
    assert "sit_align" not in logs
    assert "attention" not in logs
    assert all(torch.equal(a, b) for a, b in zip(projector, sit.projectors.parameters(), strict=True))
    names = [n for n, p in sit.named_parameters() if p.requires_grad]
    still = [k for k, n in enumerate(names) if n.startswith("projectors.")]
    after = trainer.optimizer_state()
    for index in still:  # neither coasts nor counts
        assert torch.equal(after[f"sit.{index}.exp_avg"], moments[f"sit.{index}.exp_avg"])
        assert torch.equal(after[f"sit.{index}.step"], moments[f"sit.{index}.step"])
    assert find_recipe("haste", OPTIONS["haste"], where="x").needs_at(2) == Needs()


def test_running_on_trains_the_same_and_costs_more():
    stopped, running = trained("haste", 4), trained("haste", 4, run_on=True)
    for key, value in stopped.weights().items():
        assert torch.equal(value, running.weights()[key]), key
    lean, full = run_spec("haste"), run_spec("haste", run_on=True)
    assert flops_to(lean, 16, 2) == flops_to(full, 16, 2)
    assert flops_to(lean, 16, 4) < flops_to(full, 16, 4)


@pytest.mark.parametrize("steps", [1, 2, 3, 10])
def test_flops_follow_the_schedule(steps):
    spec = run_spec("haste")
    each = [flops_per_step(spec, 16, number) for number in range(steps)]
    assert flops_to(spec, 16, steps) == sum(each)
    if steps > 2:
        assert each[2] < each[1] == each[0]


def test_a_block_without_logits_is_the_block_with_them():
    sit = SiT(SIT).double()
    torch.nn.init.normal_(sit.blocks[1].adaLN_modulation[1].weight, std=0.1)
    x, t, y = torch.randn(3, 4, 4, 4).double(), torch.rand(3).double(), torch.tensor([0, 1, 10])
    plain, looked = sit(x, t, y), sit(x, t, y, logits=[1, 3], taps=[2])
    assert torch.equal(plain.velocity, looked.velocity)
    assert sorted(looked.logits) == [1, 3]
    assert looked.logits[1].shape == (3, 4, 4, 4)
    assert torch.equal(looked.taps[2], looked.features)


def test_sras_teacher_runs_no_block_behind_the_one_it_needs():
    recipe = make_recipe("sra", teacher_block=2)
    trainer = Trainer(recipe, make_train_spec("sit"))
    teacher, called = trainer.averages["sit"], []
    for k, block in enumerate(teacher.blocks, start=1):
        block.register_forward_hook(lambda *_, k=k: called.append((k, torch.is_grad_enabled())))
    trainer.train_step(make_batch(), KeyedDraws(3, 0, torch.arange(6)))
    assert called == [(1, False), (2, False)]


@pytest.mark.parametrize(
    ("number", "weight"), [(0, 0.2), (150 * 2 - 1, 0.2), (150 * 2, 0.2 * 0.1**0.001), (1149 * 2, 0.02)]
)
def test_sras_schedule(number, weight):
    recipe = make_recipe("sra", loss="smooth_l1", epoch=2)
    assert recipe.coefficient(number) == pytest.approx(weight)
    assert make_recipe("sra").coefficient(number) == 0.5


def test_a_negative_is_another_image_of_the_group():
    """With targets that name their image, the error to the negative says which it was."""
    recipe = make_recipe("contrastive", dtype=torch.float64, group=3)
    seen = []
    import recipes.contrastive as module

    original = module.denoising_loss

    def spy(velocity, target):
        seen.append(target)
        return original(velocity, target)

    module.denoising_loss = spy
    try:
        next(recipe.updates(Step(0, make_batch(dtype=torch.float64), KeyedDraws(1, 0, torch.arange(6)))))
    finally:
        module.denoising_loss = original
    negatives, targets = seen
    for i in range(6):
        j = next(j for j in range(6) if torch.equal(negatives[i], targets[j]))
        assert j != i
        assert j // 3 == i // 3


def test_groups_are_independent():
    """Of dispersive loss: what happens in one group changes nothing in another's gradient."""

    def gradient(shift: float) -> torch.Tensor:
        recipe = make_recipe("dispersive", dtype=torch.float64, group=3)
        batch = make_batch(dtype=torch.float64)
        mean = batch.mean.clone()
        mean[:3] += shift
        mean.requires_grad_(True)
        batch = type(batch)(labels=batch.labels, mean=mean, std=batch.std)
        next(recipe.updates(Step(0, batch, KeyedDraws(1, 0, torch.arange(6))))).loss.backward()
        return mean.grad[3:]

    torch.testing.assert_close(gradient(0.0), gradient(5.0))


def test_ddts_term_as_released_has_no_gradient():
    with_term, without = (trained("dispersive", 2, variant="ddt_as_released", dispersive=w) for w in (5.0, 0.0))
    for key, value in with_term.weights().items():
        assert torch.equal(value, without.weights()[key]), key


@pytest.mark.parametrize(("group", "micro"), [(None, 2), (4, 2), (4, 6), (3, 4)])
def test_a_layout_that_splits_groups_is_refused(group, micro):
    spec = run_spec("dispersive", group=group)
    spec = spec.model_copy(update={"train": spec.train.model_copy(update={"batch_size": 12})})
    if (group == 4 and micro == 6) or group == 3:
        assert layout(spec, Execution(device="cpu", micro_batch=micro), World()).micro_batch == {4: 4, 3: 3}[group]
        return
    with pytest.raises(UserError, match="hold no whole group of them; leave --micro-batch out"):
        layout(spec, Execution(device="cpu", micro_batch=micro), World())


@pytest.mark.parametrize("kind", ["muon", "muon_torch"])
def test_muon_takes_the_matrices_and_leaves_out_what_is_not_finite(kind):
    sit = SiT(SIT)
    spec = OptimizerSpec(kind=kind, lr=1e-2)
    optimizer = make_optimizer(sit, spec)
    assert isinstance(optimizer, Together)
    rest, matrices = optimizer.param_groups
    assert {p.ndim for p in matrices["params"]} == {2}
    assert 2 not in {p.ndim for p in rest["params"]}
    trainer = Trainer(make_recipe("repa"), make_train_spec("sit").model_copy(update={"optimizers": {"sit": spec}}))
    trainer.train_step(make_batch(), KeyedDraws(3, 0, torch.arange(6)))
    before = {k: v.clone() for k, v in trainer.weights().items()} | {
        k: v.clone() for k, v in trainer.optimizer_state().items()
    }
    bad = make_batch()
    bad.mean[0] = float("nan")
    trainer.train_step(bad, KeyedDraws(3, 1, torch.arange(6)))
    after = trainer.weights() | trainer.optimizer_state()
    for key, value in before.items():
        if key.startswith("sit.") and "bn." not in key:
            assert torch.equal(value, after[key]), key
    whole = {k: v.clone() for k, v in trainer.optimizer_state().items()}
    again = Trainer(make_recipe("repa", seed=5), trainer.spec)
    again.restore({k: v.clone() for k, v in trainer.weights().items()}, whole, 2)
    for t in (trainer, again):
        t.train_step(make_batch(seed=4), KeyedDraws(3, 2, torch.arange(6)))
    assert all(torch.equal(v, again.weights()[k]) for k, v in trainer.weights().items())


def test_without_clipping_the_gradient_is_what_it_is():
    def moved(clip: float | None) -> torch.Tensor:
        spec = make_train_spec("sit")
        sgd_like = OptimizerSpec(lr=1e-3, eps=1e3, clip_norm=clip)  # so that a step is proportional to the gradient
        trainer = Trainer(make_recipe("vanilla"), spec.model_copy(update={"optimizers": {"sit": sgd_like}}))
        before = trainer.weights()["sit.final_layer.linear.weight"].clone()
        trainer.train_step(make_batch(), KeyedDraws(3, 0, torch.arange(6)))
        return trainer.weights()["sit.final_layer.linear.weight"] - before

    assert moved(None).norm() > 2 * moved(1e-3).norm()
    torch.testing.assert_close(moved(None), moved(1e9))


def test_a_class_token_has_no_place_on_the_grid():
    with pytest.raises(ValueError, match="a convolution over the token grid has no place for a class token"):
        SIT.changed(class_width=12, projector="convolution", encoder_widths=(12,))
    with pytest.raises(ValueError, match="goes with a network that has one"):
        SiT(SIT.changed(class_width=12))(torch.zeros(1, 4, 4, 4), torch.zeros(1), torch.zeros(1).long())


@pytest.mark.parametrize("name", sorted(SUITES))
def test_every_suite_has_the_recipes_of_the_field(name):
    chosen = suite(name)
    assert set(FOLLOWUPS) <= set(chosen.variants)
    for variant in FOLLOWUPS:
        assert flops_per_step(chosen.run_spec(variant, 0, {}), chosen.image_size) > 0
    first = {v: chosen.variants[v] for v in chosen.variants if not chosen.variants[v].later}
    assert chosen.identity() == chosen.model_copy(update={"variants": first}).identity()
    changed = suite(name, {"variants.sra.options.most_less_noise": 0.1})
    assert changed.identity() != chosen.identity()
    assert changed.run_spec("sra", 0, {}).digest() != chosen.run_spec("sra", 0, {}).digest()
    assert suite(name, {"variants.repa.options.gamma": 0.6}).method("repa").options.gamma == 0.6
