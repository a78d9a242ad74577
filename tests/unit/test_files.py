"""Checkpoints and records: whole or not at all, damage is seen, nothing runs."""

from __future__ import annotations

import json
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.assets.cache import Store
from harness.records import file as records_file
from harness.records import provenance
from harness.records.file import RecordFile
from harness.records.schema import FloorRecord
from recipes.core import atomic, checkpoint
from recipes.core.errors import UserError


def write(folder, value=1.0):
    checkpoint.save_folder(folder, {"a": {"x": torch.full((3,), value)}, "b": {"y": torch.arange(4)}}, {"step": 7})


def test_round_trip(tmp_path):
    write(tmp_path / "c")
    assert checkpoint.read_manifest(tmp_path / "c") == {"step": 7}
    assert torch.equal(checkpoint.load_part(tmp_path / "c", "b")["y"], torch.arange(4))
    write(tmp_path / "c", 2.0)
    assert checkpoint.load_part(tmp_path / "c", "a")["x"][0] == 2
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


@given(position=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_one_flipped_bit_is_seen(tmp_path_factory, position, bit):
    folder = tmp_path_factory.mktemp("flip") / "c"
    write(folder)
    path = folder / "a.safetensors"
    data = bytearray(path.read_bytes())
    data[position % len(data)] ^= 1 << bit
    path.write_bytes(bytes(data))
    with pytest.raises(UserError, match=r"a\.safetensors is damaged"):
        checkpoint.load_part(folder, "a")


def test_truncated_missing_and_foreign(tmp_path):
    write(tmp_path / "c")
    path = tmp_path / "c" / "a.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(UserError, match="damaged"):
        checkpoint.load_part(tmp_path / "c", "a")
    path.unlink()
    with pytest.raises(UserError, match=r"holds no a\.safetensors"):
        checkpoint.load_part(tmp_path / "c", "a")
    with pytest.raises(UserError, match="not a checkpoint"):
        checkpoint.load_part(tmp_path, "a")


def test_a_pickle_under_our_name_does_not_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (print, ("executed",))

    write(tmp_path / "c")
    path = tmp_path / "c" / "a.safetensors"
    path.write_bytes(pickle.dumps(Bomb()))
    manifest = json.loads((tmp_path / "c" / "manifest.json").read_text())
    manifest["files"]["a.safetensors"] = atomic.sha256_of(path)
    del manifest["check"]
    (tmp_path / "c" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="cannot be read"):
        checkpoint.load_part(tmp_path / "c", "a")


def test_dropping_a_part(tmp_path):
    write(tmp_path / "c")
    checkpoint.drop_part(tmp_path / "c", "b")
    checkpoint.drop_part(tmp_path / "c", "b")
    assert not (tmp_path / "c" / "b.safetensors").exists()
    assert checkpoint.load_part(tmp_path / "c", "a")["x"][0] == 1


def test_an_asset_is_made_once(tmp_path):
    made = []

    def make():
        made.append(1)
        return {"x": torch.ones(2)}, {"accuracy": 0.5}

    store = Store(tmp_path)
    first = store.get("thing", {"version": 1}, {}, make)
    again = store.get("thing", {"version": 1}, {}, make)
    assert len(made) == 1
    assert first.content == again.content
    assert again.facts == {"accuracy": 0.5}
    store.get("thing", {"version": 2}, {}, make)
    store.get("thing", {"version": 2}, {"source": "abc"}, make)
    assert len(made) == 3


def record(name: str, fid: float = 1.0) -> FloorRecord:
    return FloorRecord(
        suite="s",
        suite_digest="d",
        notice="n",
        provenance=provenance.provenance(),
        name=name,
        fid=fid,
        n_fake=1,
        n_real=2,
    )


@given(name=st.text(max_size=40), fid=st.floats(allow_nan=False, allow_infinity=False))
def test_records_round_trip(tmp_path_factory, name, fid):
    file = RecordFile(tmp_path_factory.mktemp("records"))
    written = [record(name, fid), record("second")]
    for r in written:
        file.append(r)
    assert file.all() == written
    assert file.keys() == {r.key() for r in written}


def test_what_was_measured_is_kept_once(tmp_path):
    file = RecordFile(tmp_path)
    file.append(record("x", 1.0))
    file.append(record("x", 2.0))  # the same measurement by another process
    assert [r.fid for r in file.all()] == [1.0]


def test_nan_is_no_record(tmp_path):
    with pytest.raises(ValueError, match=r"[Nn]a[Nn]|finite|JSON"):
        RecordFile(tmp_path).append(record("x", float("nan")))
    assert RecordFile(tmp_path).all() == []


def test_a_torn_last_line_is_passed_over_and_then_replaced(tmp_path):
    file = RecordFile(tmp_path)
    file.append(record("one"))
    whole = file.path.read_bytes()
    file.path.write_bytes(whole + whole[:40])
    assert [r.name for r in file.all()] == ["one"]
    file.append(record("two"))
    assert [r.name for r in file.all()] == ["one", "two"]


@pytest.mark.parametrize("line", ["nonsense", "{}", '{"kind": "score"}', '{"kind": "other"}'])
def test_a_wrong_line_is_named(tmp_path, line):
    (tmp_path / records_file.FILE).write_text(line + "\n")
    with pytest.raises(UserError, match=r"records\.jsonl, line 1"):
        RecordFile(tmp_path).all()


def test_provenance_says_where_it_came_from():
    here = provenance.provenance()
    assert here.versions["torch"] == torch.__version__.split("+")[0] or torch.__version__
    assert here.cores >= 1
    assert here.created.endswith("+00:00")
