"""Other people's weight files: tensors and arguments are read, code is not run, damage is told."""

from __future__ import annotations

import argparse
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from recipes.core.errors import UserError
from recipes.core.pickles import check_state, load_exactly, load_state


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def checkpoint() -> dict:
    args = argparse.Namespace(model="SiT-XL/2", seed=0, path_type="linear", enc_type=None, lr=1e-4)
    return {"ema": {"x": torch.arange(6.0).view(2, 3)}, "steps": 400000, "args": args}


@pytest.mark.parametrize("new", [True, False], ids=["zip", "old"])
def test_tensors_and_arguments_are_read(tmp_path, new):
    torch.save(checkpoint(), tmp_path / "a.pt", _use_new_zipfile_serialization=new)
    state = load_state(tmp_path / "a.pt")
    assert torch.equal(state["ema"]["x"], torch.arange(6.0).view(2, 3))
    assert vars(state["args"]) == vars(checkpoint()["args"])
    assert state["steps"] == 400000
    # the allow-list was lent to this one call
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


def test_safetensors(tmp_path):
    save_file({"x": torch.ones(2)}, tmp_path / "a.safetensors")
    assert torch.equal(load_state(tmp_path / "a.safetensors")["x"], torch.ones(2))
    (tmp_path / "a.safetensors").write_bytes(b"nonsense")
    with pytest.raises(UserError, match=r"a\.safetensors cannot be read"):
        load_state(tmp_path / "a.safetensors")


@pytest.mark.parametrize("form", ["zip", "old", "plain"])
@pytest.mark.parametrize("inside", ["value", "arguments"])
def test_code_does_not_run(tmp_path, form, inside):
    target, path = tmp_path / "exploded", tmp_path / "a.pt"
    bomb = Bomb(target)
    state = {"x": torch.ones(2), "args": argparse.Namespace(x=bomb)} if inside == "arguments" else {"x": bomb}
    if form == "plain":
        path.write_bytes(pickle.dumps({"x": bomb}, protocol=2))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(UserError, match=r"a\.pt was not read: its pickle asks for \w+\.mkdir, which could run code"):
        load_state(path)
    assert not target.exists()


def test_a_whole_module_is_refused_by_name(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"asks for torch\.nn\.modules\.linear\.Linear"):
        load_state(tmp_path / "a.pt")


def test_torchscript_is_refused(tmp_path):
    torch.save({"x": torch.ones(1)}, tmp_path / "a.pt")
    shutil.unpack_archive(tmp_path / "a.pt", tmp_path / "unpacked", "zip")
    next((tmp_path / "unpacked").iterdir()).joinpath("constants.pkl").write_bytes(b"")
    shutil.make_archive(str(tmp_path / "b"), "zip", tmp_path / "unpacked")
    with pytest.raises(UserError, match="TorchScript"):
        load_state(tmp_path / "b.zip")


@pytest.mark.parametrize("new", [True, False], ids=["zip", "old"])
@pytest.mark.parametrize("keep", [0, 3, 40, 0.5, 0.99])
def test_a_cut_file_is_told(tmp_path, new, keep):
    torch.save({"x": torch.randn(400)}, tmp_path / "a.pt", _use_new_zipfile_serialization=new)
    data = (tmp_path / "a.pt").read_bytes()
    (tmp_path / "a.pt").write_bytes(data[: keep if isinstance(keep, int) else int(keep * len(data))])
    with pytest.raises(UserError, match=r"a\.pt is not a torch pickle that can be read safely"):
        load_state(tmp_path / "a.pt")


def test_a_missing_file_is_told(tmp_path):
    for path in (tmp_path, tmp_path / "none.pt"):
        with pytest.raises(UserError, match="is not a file"):
            load_state(path)


def test_states_are_compared_by_name_and_shape():
    with torch.device("meta"):
        network = torch.nn.Linear(2, 3)
    good = {"weight": torch.zeros(3, 2), "bias": torch.zeros(3)}
    check_state(network, good, where="f: it")
    with pytest.raises(UserError, match="f: it lacks 'bias'"):
        check_state(network, {"weight": good["weight"]}, where="f: it")
    with pytest.raises(UserError, match="f: it holds 'b', 'c'"):
        check_state(network, good | {"b": good["bias"], "c": good["bias"]}, where="f: it")
    with pytest.raises(UserError, match=r"'weight' is \(2, 3\), not \(3, 2\)"):
        check_state(network, good | {"weight": torch.zeros(2, 3)}, where="f: it")
    with pytest.raises(UserError, match="'bias' is str"):
        check_state(network, good | {"bias": "x"}, where="f: it")
    real = torch.nn.Linear(2, 3)
    load_exactly(real, {name: value.half() for name, value in good.items()}, where="f: it")
    assert real.weight.dtype == torch.float32
    assert not real.weight.any()
