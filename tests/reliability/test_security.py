"""Nobody's file runs code here, leaves its folder, or writes into a page."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import stat
import sys
import types
import zipfile
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import look
import numpy as np
import pytest
import torch
from conftest import ROOT

from harness.assets import catalogue, fetch, networks
from harness.assets.cache import Store
from harness.assets.tokenizers import open_tokenizer
from harness.metrics.adm_reference import read_adm_reference
from harness.records import file
from harness.scoring.image_sets import open_samples
from harness.suites import suite
from recipes.core.errors import UserError
from recipes.data.files import ZipFiles
from recipes.data.images import open_images
from recipes.models.encoder import DINOV2, ENCODERS, load_encoder
from recipes.models.perceptual import load_perceptual
from recipes.released.autoencoder import load_autoencoder, load_discriminator
from recipes.training.import_run import import_checkpoint
from recipes.training.run_folder import Run
from reports.build import Wanted, build, render

EXAMPLE = ROOT / "reports" / "examples" / "digits"


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = str(target)

    def __reduce__(self):
        return (os.mkdir, (self.target,))


# ---------------------------------------------------------------- pickles, in every loader


def _inception(path: Path, store: Store) -> object:
    return networks.load_network("inception", store, torch.device("cpu"), path)


def _dinov2(path: Path, store: Store) -> object:
    return networks.load_network("dinov2-vit-b", store, torch.device("cpu"), path)


def _tokenizer_folder(path: Path, store: Store) -> object:
    """diffusers' form, with its statistics beside it."""
    folder = path.parent / "vae"
    folder.mkdir()
    config = {"latent_channels": 4, "block_out_channels": [32, 32], "down_block_types": ["DownEncoderBlock2D"] * 2}
    config |= {"up_block_types": ["UpDecoderBlock2D"] * 2, "norm_num_groups": 8}
    (folder / "config.json").write_text(json.dumps(config))
    path.rename(folder / "diffusion_pytorch_model.bin")
    return load_autoencoder(folder)


def _statistics(path: Path, store: Store) -> object:
    from builders import TOKENIZER

    from recipes.models.autoencoder import Autoencoder

    vae = path.with_name("vae.pt")
    torch.save(Autoencoder(TOKENIZER).kl.state_dict(), vae)
    path.rename(path.with_name("vae-latents-stats.pt"))
    return load_autoencoder(vae, norm_groups=4)


def _registered_tokenizer(path: Path, store: Store) -> object:
    catalogue.register(store, "sd-vae", path)
    return open_tokenizer(store, "sd-vae")


PICKLES = {
    "released checkpoint": lambda path, store: import_checkpoint(path, out=path.parent / "run", step=1),
    "tokenizer file": lambda path, store: load_autoencoder(path),
    "tokenizer folder": _tokenizer_folder,
    "tokenizer by name": _registered_tokenizer,
    "latents-stats": _statistics,
    "discriminator": lambda path, store: load_discriminator(path),
    "vgg16 of lpips": lambda path, store: load_perceptual(path),
    "inception of torch-fidelity": _inception,
    "dinov2 of timm": _dinov2,
    "encoder of timm": lambda path, store: load_encoder(next(iter((DINOV2 | ENCODERS).values())), path),
}


@pytest.mark.parametrize("form", ["zip", "old", "plain"])
@pytest.mark.parametrize("name", PICKLES)
def test_a_pickle_runs_in_no_loader(name, form, tmp_path):
    target, path = tmp_path / "exploded", tmp_path / "a.pt"
    state = {"model": {"x": Bomb(target)}, "ema": {"x": torch.ones(1)}, "state_dict": {"x": Bomb(target)}}
    if form == "plain":
        path.write_bytes(pickle.dumps(state, protocol=2))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(UserError, match="was not read: its pickle asks for"):
        PICKLES[name](path, Store(tmp_path / "cache"))
    assert not target.exists()
    assert not (tmp_path / "run").exists()


def _objects(path: Path, target: Path, name: str) -> None:
    """An .npz, or .npy, that holds a pickle."""
    array = np.empty(1, dtype=object)
    array[0] = Bomb(target)
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, buffer.getvalue())
        archive.writestr("dataset.json", json.dumps({"labels": [[name, 0]]}))


ARRAYS = {
    "samples": ("arr_0.npy", lambda path: open_samples(path, flag="--samples").read(0, 1)),
    "statistics": ("mu.npy", lambda path: read_adm_reference(path)),
    "statistics 2": ("sigma.npy", lambda path: read_adm_reference(path)),
    "images": ("00000/img00000000.npy", lambda path: open_images(path)),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_an_object_array_runs_in_no_loader(name, tmp_path):
    member, read = ARRAYS[name]
    _objects(tmp_path / "a.npz", tmp_path / "exploded", member)
    if name.startswith("statistics"):  # both have to be there to be looked at
        other = {"mu.npy": "sigma.npy", "sigma.npy": "mu.npy"}[member]
        buffer = io.BytesIO()
        np.save(buffer, np.eye(2) if other == "sigma.npy" else np.zeros(2))
        with zipfile.ZipFile(tmp_path / "a.npz", "a") as archive:
            archive.writestr(other, buffer.getvalue())
    with pytest.raises(UserError):
        read(tmp_path / "a.npz")
    assert not (tmp_path / "exploded").exists()


def test_no_module_of_ours_unpickles():
    """The readers that could are named in one file, and are told not to."""
    for path in [
        p for package in ("harness", "recipes", "baselines", "reports") for p in (ROOT / package).rglob("*.py")
    ]:
        text = path.read_text()
        assert not re.search(r"^\s*(import|from) (pickle|dill|joblib|marshal|shelve)\b", text, re.M), path
        assert "allow_pickle=True" not in text, path
        assert not re.search(r"\byaml\.(load|full_load|unsafe_load)\(", text), path
        assert not re.search(r"(?<![.\w])(eval|exec)\(|\bos\.(system|popen)\(", text), path
        assert "shell=True" not in text, path
        for call in re.findall(r"np\.load\([^\n]*", text):
            assert "allow_pickle=False" in call, path
        for call in re.findall(r"torch\.load\([^\n]*", text):
            assert "weights_only=True" in call, path
        assert "extractall(" not in text, path
        assert "unpack_archive(" not in text, path


# ---------------------------------------------------------------- archives


@pytest.mark.parametrize("member", ["../../evil.png", "/etc/evil.png", "..\\evil.png", "C:\\evil.png", "a/../../b.png"])
def test_a_member_outside_its_archive_is_refused(member, tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, b"x")
    for read in (ZipFiles, open_images):
        with pytest.raises(UserError, match="lies outside the archive"):
            read(path)
    assert {p.name for p in tmp_path.iterdir()} == {"a.zip"}


def test_a_link_in_an_archive_is_refused(tmp_path):
    info = zipfile.ZipInfo("00000/img00000000.png")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(UserError, match="is a link"):
        ZipFiles(tmp_path / "a.zip")


def test_a_member_that_unpacks_to_more_than_it_says_is_refused(tmp_path):
    """One megabyte that calls itself ten bytes: no more than ten are unpacked."""
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", b"\0" * 2**20)
    raw = bytearray(path.read_bytes())
    at = raw.rindex(b"PK\x01\x02") + 24  # the size in the directory
    raw[at : at + 4] = (10).to_bytes(4, "little")
    path.write_bytes(bytes(raw))
    with pytest.raises(UserError, match="is damaged"):
        ZipFiles(path).read(0)


# ---------------------------------------------------------------- pages

SCRIPT = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">&\"'`|{{7*7}}$(id)\n% x"


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """Records whose every free text is a script."""
    out = []
    for line in (EXAMPLE / file.FILE).read_text().splitlines():
        row = json.loads(line)
        row.pop("check", None)
        for key in ("label", "about", "notice", "name"):
            if isinstance(row.get(key), str):
                row[key] = f"{row[key]} {SCRIPT}"
        if row["kind"] == "score":
            row["notes"] = [SCRIPT]
            row["protocol"]["name"] += SCRIPT
        row["provenance"] |= {"processor": SCRIPT, "system": SCRIPT, "device": SCRIPT}
        row["provenance"]["versions"][SCRIPT] = SCRIPT
        out.append(json.dumps(row))
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / file.FILE).write_text("\n".join(out) + "\n")
    return tmp_path / "runs"


def test_text_of_records_is_text_in_every_format(hostile):
    made = render(Wanted([hostile]), ["html", "md", "tex", "csv"])
    files = {name: content.decode() for name, content in made.items() if not name.endswith("png")}
    for name in ("index.html", "report.md"):
        assert "<script" not in files[name], name
        assert "<img src=x" not in files[name], name
    assert "&lt;script&gt;" in files["index.html"]
    assert "{{7*7}}" in files["index.html"]  # no template is made of it
    for line in files["tables.tex"].splitlines():  # a line break in a name ends no comment
        assert line.startswith(("%", "\\")) or "&" in line or not line, line


@pytest.mark.skipif(look.chromium() is None, reason="no Chromium on this machine (apt install chromium)")
def test_no_script_of_a_record_runs_in_a_browser(hostile, tmp_path):
    from playwright.sync_api import sync_playwright

    page_file = build(Wanted([hostile]), tmp_path / "report", ["html"])
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=look.chromium(), args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(page_file.as_uri())
        assert page.title() != "owned"
        assert page.locator("script").count() == 0
        assert page.locator("img[src=x]").count() == 0
        browser.close()


def test_a_picture_named_by_a_record_stays_in_its_folder(hostile):
    """A record may name any path; a report takes pictures from the records' own folder."""
    secret = hostile.parent / "secret.png"
    from PIL import Image

    Image.new("RGB", (100, 100), (1, 2, 3)).save(secret)
    text = (hostile / file.FILE).read_text()
    changed = re.sub(r'"grid": "[^"]*"', '"grid": "../secret.png"', text)
    (hostile / file.FILE).write_text(changed)
    with pytest.raises(UserError, match="outside"):
        render(Wanted([hostile]), ["html"])


def test_a_run_named_like_a_path_is_refused(tmp_path):
    spec = suite("smoke").run_spec("vanilla", 0, {})
    for name in ("../../evil", "a/b", "", "a" * 300, "a\nb"):
        data = json.loads(spec.model_dump_json()) | {"variant": name}
        (tmp_path / "spec.json").write_text(json.dumps(data))
        with pytest.raises(UserError, match="variant"):
            Run.open(tmp_path)


# ---------------------------------------------------------------- the network


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"weights")

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server():
    found = HTTPServer(("127.0.0.1", 0), _Handler)
    thread = Thread(target=found.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{found.server_port}"
    found.shutdown()
    thread.join()
    found.server_close()


def test_nothing_comes_without_encryption(server, tmp_path, monkeypatch):
    plain = catalogue.CATALOGUE["vgg16"].model_copy(update={"url": f"{server}/vgg16-397923af.pth"})
    monkeypatch.setitem(catalogue.CATALOGUE, "vgg16", plain)
    with pytest.raises(UserError, match="is not HTTPS"):
        fetch.fetch(Store(tmp_path), "vgg16")
    assert not list(tmp_path.rglob("*.pth"))
    handler = fetch._HTTPSOnly()
    with pytest.raises(ValueError, match="is not HTTPS"):
        handler.redirect_request(None, None, 302, "", {}, "http://elsewhere.org/x")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server)
    with pytest.raises(UserError, match="is not HTTPS"):
        fetch.fetch(Store(tmp_path), "sd-vae")


def test_a_download_that_is_another_file_is_refused(tmp_path, monkeypatch):
    def fake(url: str, path: Path) -> None:
        path.write_bytes(b"something else")

    monkeypatch.setattr(fetch, "_download_url", fake)
    with pytest.raises(UserError, match="is not the published vgg16: its SHA-256 begins with"):
        fetch.fetch(Store(tmp_path), "vgg16")
    assert catalogue.find(Store(tmp_path), "vgg16") is None


@pytest.mark.parametrize("honest", [True, False])
def test_a_file_of_the_hub_is_compared_with_its_tag(honest, tmp_path, monkeypatch):
    from recipes.core.atomic import sha256_of

    def fake(repository: str, allow_patterns: list[str], local_dir: Path) -> None:
        path = local_dir / "sub" / "model.safetensors"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"weights")
        card = local_dir / ".cache" / "huggingface" / "download" / "sub" / "model.safetensors.metadata"
        card.parent.mkdir(parents=True)
        tag = sha256_of(path) if honest else "0" * 64
        card.write_text(f"{'a' * 40}\n{tag}\n1700000000.0\n")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fake)
    if honest:
        found = fetch.fetch(Store(tmp_path), "sd-vae")
        assert found.path.name == "model.safetensors"
        return
    with pytest.raises(UserError, match=r"the SHA-256 of model\.safetensors is"):
        fetch.fetch(Store(tmp_path), "sd-vae")
    assert catalogue.find(Store(tmp_path), "sd-vae") is None


def test_a_partial_download_is_no_asset(tmp_path, monkeypatch):
    class Answer(io.BytesIO):
        headers = {"Content-Length": "100"}

    opener = types.SimpleNamespace(open=lambda request, timeout: Answer(b"half"))
    monkeypatch.setattr(fetch, "build_opener", lambda *handlers: opener)
    with pytest.raises(UserError, match="4 bytes of 100 came"):
        fetch.fetch(Store(tmp_path), "vgg16")
    assert "torch" in sys.modules
    assert not list(tmp_path.rglob("*.pth"))
