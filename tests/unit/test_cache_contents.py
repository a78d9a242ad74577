"""What lies in the cache, what of it can go, and what never does."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
import torch

from harness.assets import catalogue
from harness.assets.cache import Store
from harness.cli.app import main
from harness.pipeline.cache_contents import ABANDONED_SECONDS, choose, damage, items, remove
from harness.pipeline.opening import store_of
from recipes.core import checkpoint
from recipes.core.content import CACHE_VARIABLE, default_cache
from recipes.core.errors import UserError


@pytest.fixture
def store(tmp_path):
    """Something of everything."""
    made = Store(tmp_path / "cache")
    mine = tmp_path / "mine" / "vgg16.pth"
    mine.parent.mkdir()
    mine.write_bytes(b"weights of mine")
    catalogue.register(made, "vgg16", mine, published=False)
    fetched = made.root / "external" / "sd-vae" / "files" / "vae.pt"
    fetched.parent.mkdir(parents=True)
    fetched.write_bytes(b"weights of theirs")
    catalogue.register(made, "sd-vae", fetched, published=False)
    for name in ("digits-tokenizer-0123456789abcdef", "measured-00aa/0000000", "latent-statistics-0123456789abcdef"):
        checkpoint.save_folder(made.root / name, {"tensors": {"x": torch.arange(4)}}, {})
    (made.root / "latents" / "sd-vae-0a1b").mkdir(parents=True)
    (made.root / "latents" / "sd-vae-0a1b" / "plan.json").write_text("{}")
    (made.root / "notes").mkdir()
    (made.root / "notes" / "mine.txt").write_text("a user's")
    (made.root / ".digits-data-1.lock").touch()
    for name, age in ((".digits-data-1.77.tmp", 2 * ABANDONED_SECONDS), (".digits-data-1.78.tmp", 0)):
        (made.root / name).mkdir()
        (made.root / name / "x").write_text("half")
        os.utime(made.root / name / "x", (time.time() - age,) * 2)
    return made


@pytest.fixture
def run(monkeypatch):
    """A command line in this process; returns the exit code."""

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["repa-bench", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        return int(left.value.code or 0)

    return call


def by_name(store):
    return {item.name: item for item in items(store)}


def test_everything_is_listed_with_what_it_is(store):
    found = by_name(store)
    assert {name: (item.kind, item.spare) for name, item in found.items()} == {
        ".digits-data-1.77.tmp": ("unfinished", True),
        ".digits-data-1.78.tmp": ("unfinished", False),  # somebody may be writing it
        "digits-tokenizer-0123456789abcdef": ("made", True),  # of other settings
        "external/sd-vae": ("fetched", False),
        "external/vgg16": ("registered", False),
        "latent-statistics-0123456789abcdef": ("made", False),  # nobody can tell
        "latents/sd-vae-0a1b": ("unfinished", False),  # the same command continues it
        "measured-00aa": ("measured", True),
        "notes": ("other", False),
    }
    assert found["external/sd-vae"].suites == ("imagenet256",)
    assert found["external/vgg16"].size == len(b"weights of mine")
    assert found["digits-tokenizer-0123456789abcdef"].used == pytest.approx(time.time(), abs=100)


def test_what_is_not_the_caches_is_refused(store, tmp_path):
    found = by_name(store)
    with pytest.raises(UserError, match=r"external/vgg16 is yours: its files lie at .*mine/vgg16\.pth"):
        remove(store, found["external/vgg16"])
    with pytest.raises(UserError, match="notes is nothing that this version made"):
        remove(store, found["notes"])
    elsewhere = tmp_path / "disk"
    (store.root / "measured-00aa").rename(elsewhere)
    (store.root / "measured-00aa").symlink_to(elsewhere)
    with pytest.raises(UserError, match="remove it yourself"):
        remove(store, by_name(store)["measured-00aa"])
    assert (tmp_path / "mine" / "vgg16.pth").exists()
    assert (elsewhere / "0000000").exists()
    assert catalogue.find(store, "vgg16") is not None


def test_a_thing_goes_with_what_was_remembered_of_it(store):
    images = store.root / "images-256-0123456789ab"
    checkpoint.save_folder(images, {"x": {"x": torch.arange(4)}}, {})
    catalogue.register(store, "images", images, content="0" * 64)
    assert by_name(store)["images-256-0123456789ab"].suites == ("imagenet256",)
    assert "external/images" not in by_name(store)  # listed where its files lie
    for name in ("images-256-0123456789ab", "external/sd-vae"):
        remove(store, by_name(store)[name])
        assert name not in by_name(store)
    assert catalogue.find(store, "images") is None
    assert catalogue.find(store, "sd-vae") is None
    assert catalogue.find(store, "vgg16") is not None


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("nothing", "the cache holds no 'nothing'"), ("latent", "several 'latent...': latent-statistics"), ("", "no ''")],
)
def test_names_that_are_none(store, name, sentence):
    with pytest.raises(UserError, match=sentence):
        choose(items(store), [name])


def test_damage_is_found_and_nothing_looks_used(store):
    before = {name: item.used for name, item in by_name(store).items()}
    assert {name: damage(item) for name, item in by_name(store).items()} == dict.fromkeys(before)
    assert {name: item.used for name, item in by_name(store).items()} == before
    files = {
        "digits-tokenizer-0123456789abcdef": store.root / "digits-tokenizer-0123456789abcdef" / "tensors.safetensors",
        "measured-00aa": store.root / "measured-00aa" / "0000000" / "tensors.safetensors",
        "external/sd-vae": store.root / "external" / "sd-vae" / "files" / "vae.pt",
    }
    for file in files.values():
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    found = {name for name, item in by_name(store).items() if damage(item)}
    assert found == set(files)
    assert all("damaged" in str(damage(by_name(store)[name])) for name in found)


def test_the_commands(store, run, capsys, monkeypatch):
    monkeypatch.setenv("REPA_BENCH_CACHE", str(store.root))
    assert run("cache", "list", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert {item["name"]: item["bytes"] for item in told["items"]}["external/vgg16"] == len(b"weights of mine")
    assert run("cache") == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in by_name(store))
    assert run("cache", "verify") == 0
    assert f"{len(by_name(store))} of {len(by_name(store))} things" in capsys.readouterr().out
    everything = set(by_name(store))
    for arguments, sentence in (
        (["--spare"], "say --yes"),  # nobody is there to be asked
        ([], "name what is to go"),
        (["--spare", "notes"], "name what is to go"),
        (["external/vgg16", "--yes"], "is yours"),
        (["measured-00aa", "notes", "--yes"], "remove it yourself"),
    ):
        assert run("cache", "remove", *arguments) == 2
        assert sentence in capsys.readouterr().err
        assert set(by_name(store)) == everything
    assert run("cache", "remove", "--spare", "--yes", "--json") == 0
    gone = {item["name"] for item in json.loads(capsys.readouterr().out)["removed"]}
    assert gone == {".digits-data-1.77.tmp", "digits-tokenizer-0123456789abcdef", "measured-00aa"}
    assert set(by_name(store)) == everything - gone
    assert run("cache", "remove", "latent-s", "--yes") == 0
    (store.root / "external" / "sd-vae" / "files" / "vae.pt").write_bytes(b"weights of thairs")
    assert run("cache", "verify", "external/sd-vae") == 1
    assert run("cache", "verify") == 1


@pytest.mark.parametrize(("answer", "left"), [("n\n", True), ("y\n", False)])
def test_who_is_there_is_asked(store, run, answer, left, capsys, monkeypatch):
    class Terminal:
        def isatty(self):
            return True

    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr("typer.confirm", lambda text: answer == "y\n")
    run("cache", "remove", "measured-00aa", "--cache", store.root)
    assert "measured-00aa" in capsys.readouterr().out
    assert ("measured-00aa" in by_name(store)) == left


def test_a_cache_is_named_by_its_whole_path(tmp_path, monkeypatch):
    """What is registered in it is: a relative root would look like another place, and its images like spare ones."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(CACHE_VARIABLE, "")
    assert store_of(Path("cache")).root == tmp_path / "cache"
    assert default_cache() == tmp_path / "cache"  # what is remembered of files lies there too
