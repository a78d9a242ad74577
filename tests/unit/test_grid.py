"""Sweeps: variants that differ in what --grid names, and in nothing else."""

from __future__ import annotations

import pytest

from harness.cli.grid import Spread, minutes, words_of
from harness.cli.options import axes
from harness.pipeline.opening import choose
from harness.suites import SUITES, suite
from harness.suites.grid import with_grid
from recipes.core.errors import UserError


def test_every_combination_is_a_variant_and_what_is_so_already_is_itself():
    digits = suite("digits")
    wide, names = with_grid(
        digits, ["vanilla", "repa"], {"options.alignment": [0.25, 0.5], "sit_optimizer.lr": [1e-3, 2e-3]}
    )
    assert names == [
        "vanilla+sit_optimizer.lr=0.001", "vanilla",
        "repa+alignment=0.25+sit_optimizer.lr=0.001", "repa+alignment=0.25", "repa+sit_optimizer.lr=0.001", "repa",
    ]  # fmt: skip
    assert wide.identity() == digits.identity()
    both = wide.run_spec(names[2], 3, {})
    assert (both.options["alignment"], both.train.optimizers["sit"].lr) == (0.25, 1e-3)
    plain = digits.run_spec("repa", 3, {})
    optimizers = {"sit": plain.train.optimizers["sit"].changed(lr=1e-3)}
    expected = plain.changed(
        variant=names[2], options=plain.options | {"alignment": 0.25}, train=plain.train.changed(optimizers=optimizers)
    )
    assert both == expected
    assert wide.variants[names[2]].label == "REPA, alignment 0.25, sit_optimizer.lr 0.001"
    assert wide.run_spec("repa", 3, {}) == plain


@pytest.mark.parametrize("name", SUITES)
def test_a_variant_s_own_optimizer_is_what_is_varied(name):
    chosen, (muon,) = with_grid(suite(name), ["repa_muon"], {"sit_optimizer.lr": [0.5]})
    varied, plain = chosen.run_spec(muon, 0, {}), suite(name).run_spec("repa_muon", 0, {})
    assert varied.train.optimizers["sit"] == plain.train.optimizers["sit"].changed(lr=0.5)
    assert plain.train.optimizers["sit"].lr != 0.5


def test_fields_of_a_variant_and_training_keys_of_imagenet():
    grid = {"tokenizer": ["sd-vae", "in-vae"], "batch_size": [256, 512], "ema.decay": [0.9999]}
    chosen, names = with_grid(suite("imagenet256"), ["repa"], grid)
    assert names == ["repa", "repa+batch_size=512", "repa+tokenizer=in-vae", "repa+tokenizer=in-vae+batch_size=512"]
    spec = chosen.run_spec(names[3], 0, {})
    assert spec.train.batch_size == 512
    assert spec.sit.channels == 32


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (["a=1,2"], {"a": [1, 2]}), (["a=1e-4", "b=x,y"], {"a": [1e-4], "b": ["x", "y"]}),
        (["a=[1,2],[3]"], {"a": [[1, 2], [3]]}), (["a=true,x"], {"a": [True, "x"]}),
    ],
)  # fmt: skip
def test_values(given, read):
    assert axes(given) == read


@pytest.mark.parametrize("given", [["a"], ["=1"], ["a="], ["a=1,1"], ["a=1", "a=2"]])
def test_values_that_are_none(given):
    with pytest.raises(UserError, match="--grid"):
        axes(given)


@pytest.mark.parametrize(
    ("recipes", "grid", "told"),
    [
        (["vanilla"], {"options.alignment": [1]}, "none of vanilla has it"),
        (None, {"data.train": [1]}, "give --set data.train=VALUE, for a folder of its own"),
        (None, {"curve_protocol.steps": [1]}, "give --set"),
        (None, {"sit_optimizer.lrr": [1]}, "Did you mean 'lr'"),
        (None, {"sit_optimizer.lr": ["x"]}, "Input should be a valid number"),
        (None, {"sit.hidden": [7]}, "hidden 7 does not divide"),
        (None, {"sit.latent_size": [8]}, "the tokenizer does not make latents"),
        (["repa"], {"options.alignmnt": [1]}, "Did you mean 'options.alignment'"),
        (["repa+alignment=0.3"], {"options.alignment": [0.25]}, "makes no 'repa"),
        (["repa"], {"options.time_sampling": ["x" * 90]}, "should be 'uniform' or"),
        (["repa", "nothing"], {"options.alignment": [0.25]}, "has no recipe 'nothing'"),
    ],
)  # fmt: skip
def test_what_cannot_be_varied_is_said(recipes, grid, told):
    with pytest.raises(UserError, match=r"--grid|--recipes") as error:
        choose("digits", recipes, axes=grid)
    assert told in str(error.value)


def test_one_of_a_grid_by_its_name():
    chosen = choose("digits", ["repa+alignment=0.25"], axes={"options.alignment": [0.25, 0.5, 1.0]})
    assert chosen.variants == ("repa+alignment=0.25",)


@pytest.mark.parametrize(("text", "count"), [("90", 90), ("1:30:00", 90), ("0:00:30", 1), ("2-12:00:00", 3600)])
def test_minutes(text, count):
    assert minutes(text) == count


@pytest.mark.parametrize("text", ["", "0", "soon", "1:2", "0:00:00", "-5"])
def test_times_that_are_none(text):
    with pytest.raises(UserError, match="--time"):
        minutes(text)


def test_the_words_of_a_job_are_the_options_that_were_given():
    choices = Spread(suite="smoke", seeds=[0, 1], compile=False, checkpointing=True, grid=["a=1,2"], on="slurm", gpus=8)
    assert words_of(choices) == [
        "--suite", "smoke", "--grid", "a=1,2", "--seeds", "0", "--seeds", "1", "--no-compile", "--checkpointing",
    ]  # fmt: skip
