"""Checkpoints as people's scripts write them: which weights are the average, what they predict, what wraps them."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import make_sit
from safetensors.torch import save_file
from torch import Tensor

from harness.sampling.protocol import find_protocol
from recipes.core import checkpoint
from recipes.core.errors import UserError
from recipes.models.sit import SiT, SiTSpec
from recipes.released.sit import read_checkpoint
from recipes.training.import_run import import_checkpoint
from recipes.training.run_folder import Run, import_notes, load_for_sampling

SPEC = SiTSpec(latent_size=4, channels=4, num_classes=10, patch_size=2, hidden=32, depth=2, heads=4, encoder_depth=1)
State = dict[str, Tensor]
PROBE = "blocks.0.mlp.fc1.weight"


def state(seed: int, **changes: Any) -> State:
    """A released SiT: no batch norm of ours."""
    sit = make_sit(seed, SPEC.model_copy(update=changes))
    return {name: value for name, value in sit.state_dict().items() if not name.startswith("bn.")}


RAW, EMA = state(0), state(1)


def renamed(change: Any, of: State = EMA) -> State:
    return {change(name): value for name, value in of.items()}


def before(prefix: str, of: State = EMA) -> State:
    return renamed(lambda name: prefix + name, of)


def lit_ema(prefix: str) -> State:
    """LDM's LitEma: no dots, trained tensors alone, and its counters."""
    trained = {name: value for name, value in EMA.items() if name != "pos_embed"}
    counters = {f"{prefix}.decay": torch.tensor(0.9999), f"{prefix}.num_updates": torch.tensor(3, dtype=torch.int)}
    return {f"{prefix}.{name.replace('.', '')}": value for name, value in trained.items()} | counters


def ema_pytorch() -> dict[str, Any]:
    """Of lucidrains' library: both networks in one state dict."""
    counters = {"initted": torch.tensor(True), "step": torch.tensor([7])}
    return {**before("online_model.", RAW), **before("ema_model."), **counters}


def written(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def imported(tmp_path: Path, content: Any, name: str = "x.pt", **given: Any) -> Run:
    return import_checkpoint(written(tmp_path / name, content), tmp_path / "run", heads=4, step=3, **given)


def weights_of(run: Run) -> tuple[str | None, str | None]:
    """Whose weights stand for the raw ones and for the average."""
    kept = run.weights(3)
    found = []
    for prefix in ("sit.", "ema.sit."):
        value = kept.get(prefix + PROBE)
        found.append(None if value is None else "raw" if torch.equal(value, RAW[PROBE]) else "ema")
        assert value is None or torch.equal(value, RAW[PROBE]) or torch.equal(value, EMA[PROBE])
    return found[0], found[1]


BOTH = {
    "model and ema": {"model": RAW, "ema": EMA},
    "model_ema": {"model": RAW, "model_ema": EMA},
    "ema_state_dict": {"model": RAW, "ema_state_dict": EMA},
    "ema_model": {"model": RAW, "ema_model": EMA},
    "timm": {"state_dict": RAW, "state_dict_ema": EMA},
    "capitals": {"net": RAW, "net_EMA": EMA},
    "camel case": {"model": RAW, "emaModel": EMA},
    "averaged": {"model": RAW, "averaged_model": before("module.") | {"n_averaged": torch.tensor(4)}},
    "rate in the name": {"model": RAW, "ema_0.9999": EMA},
    "nested": {"model": RAW, "ema": {"module": EMA, "decay": 0.9999}},
    "shadow": {"model": RAW, "ema": {"decay": 0.99, "shadow": EMA}},
    "lightning": {"state_dict": before("model.", RAW) | before("ema_model.")},
    "lightning, bare and ema": {"state_dict": RAW | before("ema.")},
    "LitEma": {"state_dict": before("model.", RAW) | lit_ema("model_ema")},
    "LitEma in a mapping of its own": {
        "model": RAW,
        "model_ema": {n.removeprefix("model_ema."): v for n, v in lit_ema("model_ema").items()},
    },
    "LitEma beside bare names": RAW | lit_ema("model_ema"),
    "LitEma of a wrapper": {
        "state_dict": before("model.diffusion_model.", RAW)
        | {n.replace("model_ema.", "model_ema.diffusion_model", 1): v for n, v in lit_ema("model_ema").items()}
    },
    "ema_pytorch": {"ema": ema_pytorch()},
    "ema_pytorch beside the model": {"model": RAW, "ema": ema_pytorch()},
    "one file of prefixes": before("model.", RAW) | before("model_ema."),
    "twice": {"model": RAW, "state_dict": RAW, "ema": EMA},
}


@pytest.mark.parametrize("form", BOTH)
def test_raw_weights_and_their_average_are_told_apart(tmp_path, form):
    run = imported(tmp_path, BOTH[form])
    assert weights_of(run) == ("raw", "ema")
    kept = {name.removeprefix("ema.sit."): v for name, v in run.weights(3).items() if name.startswith("ema.sit.")}
    torch.testing.assert_close(kept["pos_embed"], EMA["pos_embed"], rtol=0, atol=0)
    assert kept.keys() == SiT(SPEC).state_dict().keys()


@pytest.mark.parametrize("form", ["ema", "model"])
def test_weights_of_zeros_are_refused(tmp_path, form):
    zeros = {name: torch.zeros_like(value) for name, value in RAW.items()}
    with pytest.raises(UserError, match=f"'{form}' is of zeros"):
        imported(tmp_path, {"model": RAW, "ema": EMA} | {form: zeros})


def test_an_average_that_is_a_copy_says_so(tmp_path):
    said: list[str] = []
    imported(tmp_path, {"model": RAW, "ema": RAW}, on_note=said.append)
    assert any("its average 'ema' equals its raw weights 'model', tensor for tensor" in note for note in said)
    said.clear()
    (tmp_path / "other").mkdir()
    imported(tmp_path / "other", {"model": RAW, "ema": EMA}, on_note=said.append)
    assert not any("equals" in note for note in said)


RAW_ALONE = {
    "model": {"model": RAW},
    "no average": {"model": RAW, "ema": None},
    "an empty average": {"model": RAW, "ema": {}},
    "counters alone": {"model": RAW, "ema": {"decay": 0.9999, "step": torch.tensor(3)}},
    "lightning": {"state_dict": before("net.", RAW)},
    "net": {"net": RAW},
    "DeepSpeed": {"module": RAW},
    "an average in the optimizer": {"model": RAW, "optimizer": {"ema": {"x": torch.ones(3)}}},
}


@pytest.mark.parametrize("form", RAW_ALONE)
def test_raw_weights_alone_are_no_average(tmp_path, form):
    said: list[str] = []
    run = imported(tmp_path, RAW_ALONE[form], on_note=said.append)
    assert weights_of(run) == ("raw", None)
    assert any(re.search(r"^x\.pt: it holds raw weights alone .* --protocol repa-e-v3\+raw", note) for note in said)
    assert import_notes(run, 3) == said
    with pytest.raises(UserError, match=r"raw weights alone, and their average \(EMA\) is asked for: name a protocol"):
        load_for_sampling(run, 3, torch.nn.Identity(), average=True)
    sit, _ = load_for_sampling(run, 3, torch.nn.Identity(), average=False)
    assert torch.equal(sit.state_dict()[PROBE], RAW[PROBE])
    assert checkpoint.read_manifest(run.checkpoint(3))["imported"]["ema"] is None


def test_a_protocol_of_raw_weights_has_a_name():
    protocol, raw = find_protocol("repa-e-v3"), find_protocol("repa-e-v3+raw")
    assert (raw.weights, raw.name, protocol.weights) == ("raw", "repa-e-v3+raw", "ema")
    assert raw.digest() != protocol.digest()
    with pytest.raises(UserError, match="no protocol 'repa-e-v9"):
        find_protocol("repa-e-v9+raw")


BARE = {"bare": EMA, "in a module": before("model."), "data parallel": before("module.")}


@pytest.mark.parametrize("form", BARE)
def test_a_bare_state_dict_is_taken_for_the_average_and_says_so(tmp_path, form):
    said: list[str] = []
    assert weights_of(imported(tmp_path, BARE[form], on_note=said.append)) == (None, "ema")
    assert any("does not say which weights they are" in note and "--weights raw" in note for note in said)


def test_what_the_file_does_not_say_may_be_said(tmp_path):
    assert weights_of(imported(tmp_path / "", RAW, weights="raw")) == ("raw", None)
    run = import_checkpoint(written(tmp_path / "y.pt", {"model": EMA}), tmp_path / "b", heads=4, step=3, weights="ema")
    assert weights_of(run) == (None, "ema")
    with pytest.raises(UserError, match="--weights decides nothing: it names its average 'ema'"):
        read_checkpoint(written(tmp_path / "z.pt", {"ema": EMA}), heads=4, weights="raw")


REFUSED = {
    r"several averages: 'ema', 'ema_slow'": {"model": RAW, "ema": EMA, "ema_slow": RAW},
    r"several state dicts of a SiT: 'best', 'model'": {"model": RAW, "best": EMA},
    r"'ema' is an average by its name, but .* shadow_params": {
        "model": RAW,
        "ema": {"decay": 0.9, "num_updates": 5, "shadow_params": list(EMA.values())},
    },
    r"'train\.ema' is an average by its name": {"model": RAW, "train": {"ema": {"x": torch.ones(3)}}},
    r"no state dict in it holds 'x_embedder\..* it holds 'epoch', 'unet'": {"unet": RAW[PROBE], "epoch": 1},
    r"FSDP's flat parameters": {"_fsdp_wrapped_module._flat_param": torch.ones(9)},
    r"'pos_embed' and 'module\.pos_embed' are one name": {"ema": EMA | {"module.pos_embed": EMA["pos_embed"]}},
    r"ema: '.*fc1\.weight' holds NaN": {"ema": EMA | {PROBE: EMA[PROBE] * float("nan")}},
    r"model: '.*fc1\.weight' holds NaN": {"model": RAW | {PROBE: RAW[PROBE] / 0}, "ema": EMA},
    r"'.*fc1\.weight' holds NaN or numbers beyond float32": {"ema": EMA | {PROBE: EMA[PROBE].double() * 1e300}},
    r"'.*fc1\.weight' holds torch\.int8": {"ema": EMA | {PROBE: EMA[PROBE].to(torch.int8)}},
}  # fmt: skip


@pytest.mark.parametrize("sentence", REFUSED)
def test_what_cannot_be_right_is_refused_by_name(tmp_path, sentence):
    with pytest.raises(UserError, match=rf"x\.pt: .*{sentence}|x\.pt: {sentence}"):
        imported(tmp_path, REFUSED[sentence])
    assert not (tmp_path / "run").exists()


WRAPPED = {
    "module": before("module."),
    "_orig_mod": before("_orig_mod."),
    "module, then _orig_mod": before("module._orig_mod."),
    "_orig_mod, then module": before("_orig_mod.module."),
    "_orig_mod twice": before("_orig_mod._orig_mod."),
    "compiled blocks": renamed(lambda n: re.sub(r"^(blocks\.\d)\.", r"\1._orig_mod.", n)),
    "checkpointed blocks": renamed(lambda n: n.replace("blocks.1.", "blocks.1._checkpoint_wrapped_module.")),
    "fsdp": before("_fsdp_wrapped_module."),
    "fsdp and its blocks": renamed(
        lambda n: "_fsdp_wrapped_module." + n.replace("blocks.0.", "blocks.0._fsdp_wrapped_module.")
    ),
    "DeepSpeed": before("_forward_module."),
    "averaged": before("module.") | {"n_averaged": torch.tensor(400)},
    "with a counter": EMA | {"decay": torch.tensor(0.9999)},
    "a module's attribute": before("model."),
    "all of them": before("module.model._orig_mod."),
}


@pytest.mark.parametrize("form", WRAPPED)
def test_wrappers_parts_are_taken_off_wherever_they_stand(tmp_path, form):
    read = read_checkpoint(written(tmp_path / "x.pt", {"ema": WRAPPED[form]}), heads=4)
    bare = read_checkpoint(written(tmp_path / "y.pt", {"ema": EMA}), heads=4)
    assert read.ema is not None
    assert bare.ema is not None
    assert read.ema.keys() == bare.ema.keys()
    assert all(torch.equal(value, bare.ema[name]) for name, value in read.ema.items())


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_half_precision_is_said(tmp_path, kind):
    read = read_checkpoint(written(tmp_path / "x.pt", {"ema": {n: v.to(kind) for n, v in EMA.items()}}), heads=4)
    assert any("its weights are" in note for note in read.notes) == (kind != torch.float64)


def shards(folder: Path, ending: str = "safetensors") -> list[Path]:
    names = sorted(EMA)
    paths = [folder / f"model-0000{k}-of-00002.{ending}" for k in (1, 2)]
    for k, path in enumerate(paths):
        part = {name: EMA[name].contiguous() for name in names[k::2]}
        save_file(part, path) if ending == "safetensors" else torch.save(part, path)
    weight_map = {name: paths[k % 2].name for k, name in enumerate(names)}
    (folder / f"model.{ending}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return [*paths, folder / f"model.{ending}.index.json", folder]


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_shards_are_joined(tmp_path, ending):
    first, second, index, folder = shards(tmp_path, ending)
    runs = [import_checkpoint(path, tmp_path / f"run{k}", heads=4) for k, path in enumerate((first, second, index))]
    assert len({run.spec.inputs["source"] for run in runs}) == 1
    assert {run.weights_hash(0) for run in runs} == {import_checkpoint(folder, tmp_path / "r", heads=4).weights_hash(0)}
    assert torch.equal(runs[0].weights(0)[f"ema.sit.{PROBE}"], EMA[PROBE])
    second.unlink()
    for path in (first, index):
        with pytest.raises(UserError, match=rf"'model-00002-of-00002\.{ending}' is not beside it"):
            read_checkpoint(path, heads=4)
    index.write_text(json.dumps({"weight_map": {"x": "../other.safetensors"}}))
    with pytest.raises(UserError, match="names files outside its folder"):
        read_checkpoint(index, heads=4)


def test_a_folder_with_one_file_of_weights(tmp_path):
    with pytest.raises(UserError, match=r"has no checkpoints/STEP\.pt, and of weights files not one but none"):
        read_checkpoint(tmp_path, heads=4)
    written(tmp_path / "last.ckpt", {"ema": EMA, "global_step": 7})
    (tmp_path / "args.json").write_text(json.dumps({"prediction": "v", "num_classes": 10}))
    read = read_checkpoint(tmp_path, heads=4)
    assert (read.step, read.args["prediction"], read.notes) == (7, "v", ())
    written(tmp_path / "other.pt", EMA)
    with pytest.raises(UserError, match=r"not one but 'last\.ckpt', 'other\.pt'; name the file"):
        read_checkpoint(tmp_path, heads=4)


def test_a_file_is_what_its_bytes_say(tmp_path):
    save_file(EMA, tmp_path / "safetensors.pt")
    assert read_checkpoint(tmp_path / "safetensors.pt", heads=4).ema is not None
    (tmp_path / "lfs.pt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n")
    with pytest.raises(UserError, match="is a Git LFS pointer and not the weights; bring them with git lfs pull"):
        read_checkpoint(tmp_path / "lfs.pt", heads=4)


# What the network predicts

ALIGNED = state(1, encoder_widths=(12,), projector_width=16)
OTHERS = {
    "a DiT": {"model": "DiT-S/2", "image_size": 64, "vae": "ema"},
    "a DiT by its module": {"model": "models.dit.DiT_S_2"},
    "a DiT in a nested configuration": {"model": {"name": "DiT-XL/2"}, "prediction": "velocity"},
    "noise": {"model": "SiT-S/2", "prediction": "noise", "path_type": "Linear"},
    "score": {"model": "SiT-S/2", "prediction": "score"},
    "x": {"prediction": "x", "path_type": "linear"},
    "objective": {"objective": "pred_noise"},
    "parameterization": {"parameterization": "eps"},
    "v of diffusion": {"prediction-type": "v_prediction"},
    "a target": {"loss_target": "x0"},
    "predict_xstart": {"predict_xstart": True},
    "a noise schedule": {"noise_schedule": "linear", "learn_sigma": True},
    "another path": {"path_type": "VP", "prediction": "velocity"},
    "another path, nested": {"transport": {"path_type": "VP", "prediction": "velocity"}},
}


@pytest.mark.parametrize("name", ["0400000.pt", "SiT-XL-2-256x256.pt"])
@pytest.mark.parametrize("network", ["sit", "repa"])
@pytest.mark.parametrize("form", OTHERS)
def test_a_checkpoint_is_judged_by_what_it_says_of_itself(tmp_path, form, network, name):
    weights = EMA if network == "sit" else ALIGNED
    for key, args in (("args", argparse.Namespace(**OTHERS[form])), ("config", OTHERS[form])):
        path = written(tmp_path / name, {"model": weights, "ema": weights, key: args})
        with pytest.raises(UserError, match=rf"{re.escape(name)}: it (is a DiT|predicts|was trained)"):
            read_checkpoint(path, heads=4)
    path = written(tmp_path / name, {"ema": weights})
    (tmp_path / "args.json").write_text(json.dumps(OTHERS[form]))
    with pytest.raises(UserError, match=r"it (is a DiT|predicts|was trained)"):
        read_checkpoint(path, heads=4)


def test_a_name_counts_only_where_nothing_else_is_said(tmp_path):
    path = written(tmp_path / "DiT-XL-2-256x256.pt", EMA)
    with pytest.raises(UserError, match="it is a DiT of the release"):
        read_checkpoint(path, heads=4)
    said = argparse.Namespace(model="SiT-S/2", prediction="velocity", path_type="Linear")
    assert not read_checkpoint(written(path, {"ema": EMA, "args": said}), heads=4, classes=10).notes
    read = read_checkpoint(written(tmp_path / "DiT_codebase_run.pt", EMA), heads=4)
    assert any("it does not say what it predicts" in note and "SiT has it" in note for note in read.notes)
    read = read_checkpoint(written(tmp_path / "repa.pt", ALIGNED), heads=4)
    assert any("it does not say what it predicts" in note and "REPA has it" in note for note in read.notes)
    read = read_checkpoint(written(tmp_path / "gvp.pt", {"ema": EMA, "args": {"path_type": "GVP"}}), heads=4)
    assert any("a velocity on the cosine path" in note for note in read.notes)
    read_checkpoint(written(tmp_path / "none.pt", {"ema": EMA, "args": {"path_type": None}}), heads=4)


@pytest.mark.parametrize(
    "more",
    [{"predict_x": True}, {"x_pred": True}, {"model_output": "noise"}, {"output_type": "x0"}, {"loss_type": "eps"},
     {"target": "noise_prediction"}, {"parametrization": "EDM"},
     {"transport": {"path": "VP", "prediction": "velocity"}},
     {"Path_Type": "VP"}, {"pathtype": "VP"}, {"path_args": {"path": "VP"}}, {"interpolant": "VP"},
     {"diffusion": "ddpm"}, {"num_train_timesteps": 1000}, {"use_rope": True}, {"use_swiglu": True},
     {"encoder_depth": "eight"}, {"qk_norm": True}, {"seed": "abc"}, {"learning_rate": "1e-4x"}],
    ids=str,
)  # fmt: skip
def test_whatever_the_argument_is_called(tmp_path, more):
    """A SiT by its name, which something else contradicts."""
    with pytest.raises(UserError):
        imported(tmp_path, {"ema": EMA, "args": {"model": "SiT-S/2", "num_classes": 10, **more}})


@pytest.mark.parametrize("more", [{"path": "GVP"}, {"interpolant": "GVP"}, {"Path_Type": "cosine"}])
def test_a_path_by_another_name(tmp_path, more):
    run = imported(tmp_path, {"ema": EMA, "args": {"model": "SiT-S/2", "num_classes": 10, **more}})
    assert run.spec.options["path"] == "cosine"


def test_the_name_of_a_model_says_nothing_of_what_it_predicts(tmp_path):
    said = {"model": "SiT-S/2", "num_classes": "10", "lr_schedule": "cosine", "loss_type": "l2", "seed": "3"}
    (note,) = read_checkpoint(written(tmp_path / "x.pt", {"ema": EMA, "args": said}), heads=4).notes
    assert "it does not say what it predicts; it is taken for a velocity on the linear path, with data" in note


def test_heads_as_the_arguments_say(tmp_path):
    path = written(tmp_path / "x.pt", {"ema": EMA, "args": {"num_heads": 2}})
    assert read_checkpoint(path).sit.heads == 2


@pytest.mark.parametrize(
    ("said", "step"),
    [({"step": torch.tensor(40)}, 40), ({"step": 40.0}, 40), ({"iteration": 40}, 40), ({"steps": True}, 0)],
)
def test_the_step_that_a_file_says(tmp_path, said, step):
    path = written(tmp_path / "x.pt", {"ema": EMA, **said})
    assert read_checkpoint(path, heads=4).step == step


def test_a_step_that_contradicts_the_file_or_cannot_be(tmp_path):
    path = written(tmp_path / "x.pt", {"ema": EMA, "step": 40})
    with pytest.raises(UserError, match="--step 41: the file says step 40"):
        read_checkpoint(path, heads=4, step=41)
    with pytest.raises(UserError, match="is no number of steps"):
        read_checkpoint(written(path, {"ema": EMA, "steps": -5}), heads=4)


def test_an_average_with_gaps_is_not_filled_up(tmp_path):
    part = {name: value for name, value in lit_ema("model_ema").items() if "blocks1" not in name}
    with pytest.raises(UserError, match=r"lacks 'blocks\.1"):
        read_checkpoint(written(tmp_path / "x.pt", {"state_dict": {**before("model.", RAW), **part}}), heads=4)


@pytest.mark.parametrize("gone", ["blocks.1", "final_layer", "pos_embed"])
def test_a_plain_average_with_gaps_is_named(gone, tmp_path):
    part = {name: value for name, value in EMA.items() if not name.startswith(gone)}
    with pytest.raises(UserError, match=rf"'ema' lacks '{gone}.*, which 'model' has"):
        read_checkpoint(written(tmp_path / "x.pt", {"model": RAW, "ema": part}), heads=4)


@pytest.mark.parametrize("kind", ["model", "ema"])
def test_a_flipped_bit_is_seen(tmp_path, kind):
    path = written(tmp_path / "x.pt", {kind: EMA})
    raw = bytearray(path.read_bytes())
    raw[raw.index(EMA["blocks.0.mlp.fc1.weight"].numpy().tobytes()) + 100] ^= 0x40
    path.write_bytes(raw)
    with pytest.raises(UserError, match=r"is damaged: .* has another CRC"):
        read_checkpoint(path, heads=4)


def test_a_file_that_was_written_without_crcs_is_read(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        path = written(tmp_path / "x.pt", {"ema": EMA})
    finally:
        torch.serialization.set_crc32_options(True)
    assert read_checkpoint(path, heads=4).sit.hidden == EMA["x_embedder.proj.weight"].shape[0]


@pytest.mark.parametrize(
    ("args", "of", "turned"),
    [
        ({"path_type": "Linear", "prediction": "velocity"}, EMA, True),
        ({"path_type": "linear", "prediction": "v"}, EMA, False),
        ({"path_type": "Linear", "prediction": "velocity"}, ALIGNED, True),
        ({"path_type": "linear", "prediction": "v"}, ALIGNED, False),
        ({}, EMA, True),
        ({}, ALIGNED, False),
    ],
)
def test_the_arguments_say_whose_time_it_is(tmp_path, args, of, turned):
    """REPA's script and SiT's write them differently; projectors decide where there are none."""
    read = read_checkpoint(written(tmp_path / "x.pt", {"ema": of, "args": args}), heads=4)
    assert read.ema is not None
    sign = -1 if turned else 1
    assert torch.equal(read.ema["final_layer.linear.weight"], sign * of["final_layer.linear.weight"])


# Options of the released code


def test_norms_of_queries_and_keys(tmp_path):
    """REPA's --qk-norm against attention written out; the heads show in its shapes."""
    weights = state(1, qk_norm=True)
    g = torch.Generator().manual_seed(3)
    for name in weights:
        if "_norm." in name:
            weights[name] = weights[name] + 0.3 * torch.randn(8, generator=g)
    read = read_checkpoint(written(tmp_path / "x.pt", {"ema": weights, "args": {"path_type": "linear"}}))
    assert (read.sit.qk_norm, read.sit.heads) == (True, 4)
    sit = SiT(read.sit)
    sit.load_state_dict(read.ema)
    x = torch.randn(2, 4, 32, generator=g)
    attention = sit.blocks[0].attn
    q, k, v = (x @ attention.qkv.weight.T + attention.qkv.bias).reshape(2, 4, 3, 4, 8).permute(2, 0, 3, 1, 4)

    def norm(value: Tensor, which: str) -> Tensor:
        centred = value - value.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * weights[f"blocks.0.attn.{which}.weight"] + weights[f"blocks.0.attn.{which}.bias"]

    shares = (norm(q, "q_norm") @ norm(k, "k_norm").transpose(-1, -2) / 8**0.5).softmax(-1)
    mixed = (shares @ v).transpose(1, 2).reshape(2, 4, 32)
    torch.testing.assert_close(attention(x)[0], mixed @ attention.proj.weight.T + attention.proj.bias)
    assert "qk_norm" not in SPEC.model_dump()  # runs keep their digests
    assert SiTSpec.model_validate_json(read.sit.model_dump_json()) == read.sit


def test_a_label_table_without_a_null_class(tmp_path):
    weights = state(1, null_class=False)
    path = written(tmp_path / "x.pt", {"ema": weights, "args": {"num_classes": 10, "cfg_prob": 0.0}})
    run = import_checkpoint(path, tmp_path / "run", heads=4)
    assert (run.spec.sit.num_classes, run.spec.sit.null_class, run.spec.options["label_dropout"]) == (10, False, 0.0)
    assert any("no null class, so it cannot be guided" in note for note in import_notes(run, 0))
    sit, _ = load_for_sampling(run, 0, torch.nn.Identity(), average=True)
    with pytest.raises(UserError, match="has no null class, which guidance needs"):
        _ = sit.null_class
    imagenet = EMA | {"y_embedder.embedding_table.weight": torch.zeros(1000, 32)}
    read = read_checkpoint(written(tmp_path / "y.pt", {"ema": imagenet}), heads=4)
    assert (read.sit.num_classes, read.sit.null_class) == (1000, False)
    read = read_checkpoint(written(tmp_path / "y.pt", {"ema": imagenet}), heads=4, classes=999)
    assert (read.sit.num_classes, read.sit.null_class) == (999, True)


def test_repa_dropped_labels_twice(tmp_path):
    args = {"legacy": True, "cfg_prob": 0.1, "path_type": "linear", "prediction": "v", "num_classes": 10}
    run = import_checkpoint(written(tmp_path / "x.pt", {"ema": EMA, "args": args}), tmp_path / "run", heads=4)
    assert run.spec.options["label_dropout"] == pytest.approx(0.19)
    assert any("dropped labels twice" in note for note in import_notes(run, 0))


@pytest.mark.parametrize("shape", [(), (3,), (0, 0, 0, 0), (2, 3, 4), (1, 1, 1, 1, 1)], ids=str)
def test_tensors_of_other_dimensions_are_no_sit(shape, tmp_path):
    """Each of a network's tensors, one after the other."""
    of = state(2, encoder_widths=(7,))
    for name, value in of.items():
        if value.shape != shape:
            path = written(tmp_path / "x.pt", {"ema": {**of, name: torch.ones(shape)}})
            if name == "projectors.0.4.weight" and 0 in shape:
                assert read_checkpoint(path, heads=4).sit.encoder_widths == ()  # as REPA writes it without an encoder
            else:
                with pytest.raises(UserError):
                    read_checkpoint(path, heads=4)


@pytest.mark.parametrize(
    "args",
    [
        {"model_type": "noise"}, {"v_prediction": False}, {"predict_velocity": False}, {"predict_eps": 1},
        {"prediction": ["noise"]}, {"model": "LightningDiT-S/2"}, {"model": "MDT-S/2"}, {"model": "U-ViT-S"},
    ],
    ids=str,
)  # fmt: skip
def test_what_says_another_target_or_network(args, tmp_path):
    path = written(tmp_path / "x.pt", {"ema": EMA, "args": args})
    with pytest.raises(UserError, match="velocity"):
        read_checkpoint(path, heads=4)
