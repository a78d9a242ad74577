"""Other people's weight files: tensors and arguments are read, code is not run, damage is told."""

from __future__ import annotations

import argparse
import collections
import datetime
import fractions
import os
import pathlib
import pickle
import random
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from recipes.core.errors import UserError
from recipes.core.weights import check_state, load_exactly, load_state


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


# What scripts keep beside their tensors


def loaded(path: Path, value: object, *, new: bool = True) -> object:
    torch.save({"x": torch.ones(2), "it": value}, path, _use_new_zipfile_serialization=new)
    state = load_state(path)
    assert torch.equal(state["x"], torch.ones(2))
    return state["it"]


BESIDE = {
    "float64": (np.float64(8.3), 8.3),
    "float32": (np.float32(0.5), 0.5),
    "float16": (np.float16(0.5), 0.5),
    "int64": (np.int64(-3), -3),
    "uint8": (np.uint8(3), 3),
    "bool": (np.bool_(True), True),
    "complex": (np.complex128(1 + 2j), 1 + 2j),
    "text": (np.str_("héllo"), "héllo"),
    "default": (collections.defaultdict(list, {"a": [np.int32(1)]}), {"a": [1]}),
    "nested default": (collections.defaultdict(dict, {"a": collections.OrderedDict(b=np.float64(2))}), {"a": {"b": 2}}),
    "posix path": (pathlib.PosixPath("somewhere/x"), pathlib.PurePosixPath("somewhere/x")),
    "windows path": (pathlib.PureWindowsPath("C:/a/b"), pathlib.PureWindowsPath("C:/a/b")),
    "date": (datetime.datetime(2026, 1, 2, 3), datetime.datetime(2026, 1, 2, 3)),
    "namespace": (argparse.Namespace(a=np.int64(1)), argparse.Namespace(a=1)),
    "simple namespace": (types.SimpleNamespace(a=np.int8(1)), types.SimpleNamespace(a=1)),
    "version": (torch.__version__, str(torch.__version__)),
    "types": ([int, float, str], [int, float, str]),
}  # fmt: skip


@pytest.mark.parametrize("new", [True, False], ids=["zip", "old"])
@pytest.mark.parametrize("name", BESIDE)
def test_numbers_and_paths_beside_the_tensors_are_read(tmp_path, name, new):
    value, expected = BESIDE[name]
    found = loaded(tmp_path / "a.pt", value, new=new)
    assert found == expected
    assert type(found) is type(expected)


ARRAYS = {
    "matrix": np.arange(6.0).reshape(2, 3),
    "columns first": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "float32": np.linspace(0, 1, 5, dtype=np.float32),
    "uint32": np.arange(4, dtype=np.uint32),
    "big-endian": np.arange(4, dtype=">f4"),
    "empty": np.zeros((0, 3)),
    "scalar": np.array(2.5),
    "bool": np.array([True, False]),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_become_tensors(tmp_path, name):
    array = ARRAYS[name]
    found = loaded(tmp_path / "a.pt", array)
    assert isinstance(found, torch.Tensor)
    assert found.shape == array.shape
    assert np.array_equal(found.numpy(), array)


def test_names_in_an_array_become_a_list(tmp_path):
    assert loaded(tmp_path / "a.pt", np.array(["a", "bc"])) == ["a", "bc"]


@pytest.mark.parametrize("make", [np.random.get_state, random.getstate, lambda: np.random.default_rng(0),
                                  lambda: np.random.RandomState(0), lambda: random.Random(0),
                                  torch.get_rng_state])  # fmt: skip
def test_states_of_random_generators_do_not_stand_in_the_way(tmp_path, make):
    loaded(tmp_path / "a.pt", make())


class Forged:
    """Asks for a type of NumPy's with a state that NumPy itself never writes."""

    def __init__(self, function: object, args: tuple, state: object = None) -> None:
        self.reduced = (function, args) if state is None else (function, args, state)

    def __reduce__(self):
        return self.reduced


def objects(*inside: object) -> np.ndarray:
    array = np.empty(len(inside), dtype=object)
    array[:] = inside
    return array


FORGED = {
    "objects": objects(1, "a"),
    "scalar of an object": Forged(np.float64(1).__reduce__()[0], (np.dtype("O"), "x")),
    "records": np.zeros(2, dtype=[("a", "f8"), ("b", "i4")]),
    "records of objects": np.zeros(2, dtype=[("a", "O")]),
    "times": np.array(["2026-01-01"], dtype="M8[D]"),
    # addresses from bytes: fields of objects in a type that says that it has none
    "a type that lies": Forged(np.dtype, ("V8", False, True), (3, "|", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 1)),
    "another": Forged(np.dtype, ("f8", False, True), (3, "|", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 1)),
}  # fmt: skip


@pytest.mark.parametrize("name", FORGED)
def test_arrays_that_could_hold_more_than_numbers_are_refused(tmp_path, name):
    with pytest.raises(UserError, match=r"was not read: its pickle asks for .*numpy.*, which could run code"):
        loaded(tmp_path / "a.pt", FORGED[name])


@pytest.mark.parametrize("value", [[], {}, collections.defaultdict(list), argparse.Namespace()], ids=repr)
def test_a_bomb_in_what_is_allowed_does_not_run(tmp_path, value):
    bomb = Bomb(tmp_path / "exploded")
    for make in (lambda: objects(bomb), lambda: {"a": bomb}, lambda: collections.defaultdict(list, a=bomb)):
        with pytest.raises(UserError, match="was not read"):
            loaded(tmp_path / "a.pt", [value, make()])
    assert not (tmp_path / "exploded").exists()


def test_what_is_refused_names_a_line_that_mends_it(tmp_path):
    path = tmp_path / "a b.pt"
    inner = {"ema": {"x": torch.arange(3.0)}, "args": {"lr": 0.1, "more": fractions.Fraction(1, 2)}, "steps": 7}
    torch.save(inner | {"net": torch.nn.Linear(2, 1), "odd": fractions.Fraction(1, 3)}, path)
    with pytest.raises(UserError, match=r"asks for fractions\.Fraction") as error:
        load_state(path)
    line = str(error.value).split("make one: ")[1].replace("python", sys.executable, 1)
    subprocess.run(["sh", "-c", line], check=True)
    repaired = load_state(tmp_path / "a b-tensors.pt")
    assert torch.equal(repaired["ema"]["x"], torch.arange(3.0))
    assert (repaired["args"], repaired["steps"]) == ({"lr": 0.1}, 7)
    assert repaired["net"].keys() == {"weight", "bias"}
    odd = tmp_path / "$(touch x).pt"
    torch.save({"odd": fractions.Fraction(1, 3)}, odd)
    with pytest.raises(UserError) as error:
        load_state(odd)
    assert "$" not in str(error.value).split("make one: ")[1]
