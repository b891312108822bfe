"""`gencls verify`: what is missing, torn, an orphan or foreign; what the next run makes again."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from run_fixtures import make_config
from s3_fixtures import S3Server, local_run, s3

from cluster.pipeline import run_all
from gencls_core.errors import StoreError
from gencls_core.ownership import OwnershipError, own
from gencls_core.remote_path import RemotePath
from gencls_core.run import RunDirectory
from gencls_core.scores import SCORE_SCHEMA, ScoreStore, ShardKey
from gencls_core.storage import file_sha256, files_below, write_json
from gencls_core.verify import repair, verify
from jobs.main import cli

__all__ = ["s3"]

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("shared_ray")]

ROOT = Path(__file__).parent.parent
SHARD = "scores/system=class-lm/class=Sci%2FTech/shard-00001-of-00003.parquet"
RECORD = "scores/system=class-lm/class=Sci%2FTech/_shard-00001-of-00003.json"
MODEL = "models/a%20b/adapter_model.safetensors"


@pytest.fixture(scope="module")
def source() -> Path:
    return local_run(4)


@pytest.fixture
def run(source, tmp_path) -> RunDirectory:
    """Give a copy of a finished run, to be damaged."""
    shutil.copytree(source / "run", tmp_path / "run")
    return RunDirectory(tmp_path / "run")


def found_in(run: RunDirectory) -> list[tuple[str, str]]:
    return [(finding.kind, finding.place) for finding in verify(run).findings]


def again(run: RunDirectory, source: Path) -> Counter[str]:
    """Run the same command again; gives how many events of each kind came."""
    config = make_config(source, model={"lora_rank": 4}, compute={"actors": 1})
    events = run_all(config.model_copy(update={"output_dir": run.path}))
    return Counter(type(event).__name__ for event in events)


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "deleted":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    else:
        # In the first column's data: a byte of Parquet's statistics changes no row of a dataset.
        content[100 if path.parent.name == "dataset" else len(content) // 2] ^= 1
        path.write_bytes(content)


def test_a_whole_run(run):
    found = verify(run)
    assert found.findings == ()
    assert found.whole
    # 3 classes: 3 test shards and 1 validation shard each, 1 of TF-IDF.
    assert (found.models, found.shards, found.datasets) == (3, 3 * 5, 1)
    assert repair(run).removed == ()


@pytest.mark.fault
@pytest.mark.parametrize("how", ["deleted", "truncated", "flipped"])
@pytest.mark.parametrize(
    "name",
    [SHARD, SHARD.replace("class-lm", "tfidf").replace("1-of-00003", "0-of-00001"), MODEL,
     "validation-scores/system=class-lm/class=01/shard-00000-of-00001.parquet",
     "dataset/train.parquet"],
)  # fmt: skip
def test_damage_is_found_and_only_that_is_removed(run, name, how):
    before = {n: file_sha256(run.path / n) for n in files_below(run.path)}
    damage(run.path / name, how)
    kind = "missing" if how == "deleted" else "torn"
    assert found_in(run) == [(kind, name)]
    found = repair(run)
    assert not found.whole
    assert found.removed
    after = {n: file_sha256(run.path / n) for n in files_below(run.path)}
    gone = before.keys() - after.keys()
    assert after == {n: before[n] for n in after}
    part = name.rpartition("/")[0]
    if name.startswith(("scores", "validation")):
        assert gone == {name, name.replace("/shard", "/_shard").replace(".parquet", ".json")}
    else:
        assert gone == {n for n in before if n.startswith(f"{part}/")}
    # Now something is missing, and nothing is torn.
    assert {kind for kind, _ in found_in(run)} == {"missing"}


@pytest.mark.fault
def test_the_next_run_makes_only_what_was_removed(run, source):
    scores = read_everything(run)
    damage(run.path / SHARD, "flipped")
    assert repair(run).removed == (RECORD, SHARD)
    events = again(run, source)
    assert (events["ClassTrained"], events["ShardCommitted"]) == (0, 1)
    assert verify(run).findings == ()
    damage(run.path / MODEL, "flipped")
    assert repair(run).removed == ("models/a%20b/",)
    events = again(run, source)
    assert events["ClassTrained"] == 1
    assert events["ShardCommitted"] == 4, "the scores of that class, and no other"
    assert verify(run).findings == ()
    for one, other in zip(read_everything(run), scores, strict=True):
        # A training that has the machine for itself takes more threads: other last bits.
        assert one.pop("score") == pytest.approx(other.pop("score"), abs=1e-4)
        assert one == other


def read_everything(run: RunDirectory) -> list[dict]:
    rows = run.scores.read(run.scores.records()).to_pylist()
    return sorted(rows, key=lambda row: (row["system"], row["class"], row["example_id"]))


def test_orphans_and_strangers(run):
    folder = (run.path / SHARD).parent
    temporary = ".shard-00001-of-00003.parquet.123-0a1b2c3d.tmp"
    (folder / temporary).write_bytes(b"half")
    (run.path / RECORD).unlink()
    model = run.path / "models" / ".x.123-0a1b2c3d.tmp"
    model.mkdir()
    (model / "config.json").write_text("{}")
    stale = run.path / "models" / f".training-a%20b-{'0' * 16}" / "checkpoint-3"
    stale.mkdir(parents=True)
    (stale / "trainer_state.json").write_text("{}")
    (folder / "notes.txt").write_text("mine")
    (run.path / "models" / "other").mkdir()
    (run.path / "models" / "other" / "weights.bin").write_text("mine")
    (run.path / "eval_results.json").write_text("{}")
    place = SHARD.rpartition("/")[0]
    assert set(found_in(run)) == {
        ("orphan", f"{place}/{temporary}"),
        ("orphan", SHARD),
        ("missing", place),
        ("orphan", "models/.x.123-0a1b2c3d.tmp"),
        ("orphan", f"models/.training-a%20b-{'0' * 16}"),
        ("foreign", f"{place}/notes.txt"),
        ("foreign", "models/other"),
        ("note", "eval_results.json"),
    }
    assert "no scores of examples 16 to 31" in str(verify(run).findings)
    repair(run)
    assert set(found_in(run)) == {
        ("missing", place),
        ("foreign", f"{place}/notes.txt"),
        ("foreign", "models/other"),
        ("note", "eval_results.json"),
    }
    assert (folder / "notes.txt").read_text() == "mine"


def test_shards_that_contradict_their_records(run):
    """Whole files, whose SHA-256 is right, and whose content is not."""

    def rewrite(table: pa.Table, **metadata: str) -> None:
        old = table.schema.metadata or {}
        new = {f"gencls.{k}".encode(): value.encode() for k, value in metadata.items()}
        pq.write_table(table.replace_schema_metadata({**old, **new}), run.path / SHARD)
        record = json.loads((run.path / RECORD).read_text())
        size = (run.path / SHARD).stat().st_size
        record |= {"sha256": file_sha256(run.path / SHARD), "bytes": size}
        write_json(run.path / RECORD, record)

    table = pq.read_table(run.path / SHARD, partitioning=None)
    for changed, metadata, problem in (
        (table, {"digest": "of another"}, "its digest is 'of another'"),
        (table, {"class": "01"}, "its class is '01'"),
        (table.slice(1), {}, "15 rows for examples 16 to 31"),
        (pa.concat_tables([table.slice(1), table.slice(1, 1)]), {}, "stands there twice"),
        (with_score(table, float("nan")), {}, "not a finite number"),
    ):
        rewrite(changed, **metadata)
        (finding,) = verify(run).findings
        assert (finding.kind, finding.place) == ("torn", SHARD)
        assert problem in finding.problem
    # The record of another place.
    record = json.loads((run.path / RECORD).read_text())
    write_json(run.path / RECORD, {**record, "index": 2})
    assert ("foreign", RECORD) in found_in(run)
    (run.path / RECORD).write_text("{ torn")
    assert ("torn", RECORD) in found_in(run)


def with_score(table: pa.Table, value: float) -> pa.Table:
    scores = pa.array([value, *table.column("score").to_pylist()[1:]])
    index = table.schema.get_field_index("score")
    return table.set_column(index, SCORE_SCHEMA.field("score"), scores)


def test_a_text_that_was_changed_behind_our_back(run):
    """The dataset's fingerprint is computed anew from its rows."""
    path = run.path / "dataset" / "test.parquet"
    table = pq.read_table(path)
    texts = ["changed", *table.column("text").to_pylist()[1:]]
    pq.write_table(table.set_column(1, table.schema.field("text"), pa.array(texts)), path)
    assert found_in(run) == [("torn", "dataset/test.parquet")]


def test_a_class_without_scores_is_missed(run):
    shutil.rmtree(run.path / "scores" / "system=class-lm" / "class=01")
    assert found_in(run) == [("missing", "scores/system=class-lm/class=01")]
    shutil.rmtree(run.path / "scores")
    assert {place for _, place in found_in(run)} == {
        f"scores/system=class-lm/class={name}" for name in ("01", "Sci%2FTech", "a%20b")
    }


def test_an_owner_at_work(run):
    with own(run.path, "run"):
        assert [finding.kind for finding in verify(run).findings] == ["note"]
        assert verify(run).whole
        with pytest.raises(OwnershipError, match="another gencls owns this run"):
            repair(run)


def test_an_owner_that_died_on_this_machine(run):
    code = (
        "import os, sys; from pathlib import Path; from gencls_core.ownership import own\n"
        "with own(Path(sys.argv[1]), 'run'): os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", code, run.path], check=True, cwd=ROOT)
    (found,) = verify(run).findings
    assert found.kind == "note"
    assert found.problem.endswith("that process has died; the next run takes its place")
    # Of another machine's nobody here can tell.
    owner = run.path / found.place
    words = json.loads(owner.read_text())
    owner.write_text(json.dumps({**words, "host": "elsewhere"}))
    (found,) = verify(run).findings
    assert "on elsewhere): that process is at work, or died" in found.problem


def test_evaluations_are_looked_at(run):
    evaluation = run.evaluation("0123456789abcdef")
    shutil.copytree(run.dataset_path, evaluation.dataset_path)
    evaluation.write_manifest(run.manifest())
    table = pq.read_table(run.path / SHARD, partitioning=None)
    ScoreStore(evaluation.scores.path).commit(
        ShardKey("class-lm", "01", 0, 3), table, start=0, digest="d"
    )
    prefix = "evaluations/0123456789abcdef/"
    assert set(found_in(run)) == {
        ("missing", f"{prefix}scores/system=class-lm/class={name}")
        for name in ("01", "Sci%2FTech", "a%20b")
    }
    shard = evaluation.scores.shard_path(ShardKey("class-lm", "01", 0, 3))
    damage(Path(str(shard)), "flipped")
    removed = repair(run).removed
    assert removed[-1] == f"{prefix}scores/system=class-lm/class=01/{shard.name}"
    assert not shard.exists()


def test_the_command(run):
    def gencls(*arguments: object):
        return CliRunner().invoke(cli, ["verify", *map(str, arguments)])

    done = gencls(run.path)
    assert (done.exit_code, done.output) == (
        0, "whole: 3 models, 15 shards, 1 dataset checked\n"
    )  # fmt: skip
    damage(run.path / SHARD, "truncated")
    done = gencls(run.path)
    assert done.exit_code == 1
    assert f"torn     {SHARD}: " in done.output
    assert "verify --repair" in done.output
    done = gencls(run.path, "--json")
    assert done.exit_code == 1
    values = json.loads(done.output)
    assert values["whole"] is False
    assert [finding["place"] for finding in values["findings"]] == [SHARD]
    done = gencls(run.path, "--repair")
    assert done.exit_code == 1
    assert f"removed  {SHARD}" in done.output
    assert "it makes what was removed" in done.output
    # Merely unfinished: there is nothing to remove.
    for arguments in ((run.path,), (run.path, "--repair")):
        done = gencls(*arguments)
        assert done.exit_code == 1
        assert done.output.endswith("Run the same command again: it makes what is missing.\n")
    assert isinstance(gencls(run.path / "dataset").exception, StoreError)


def test_a_run_in_a_store(run, s3: S3Server):
    place = s3.path("verified")
    for name in files_below(run.path):
        s3.put(place / name, (run.path / name).read_bytes())
    remote = RunDirectory(place)
    assert verify(remote).findings == ()
    content = bytearray(s3.get(place / SHARD))
    content[len(content) // 2] ^= 1
    s3.put(place / SHARD, bytes(content))
    s3.delete(place / MODEL)
    s3.put(place / "scores" / "mine.txt", b"mine")
    assert set(found_in(remote)) == {
        ("torn", SHARD),
        ("missing", MODEL),
        ("foreign", "scores/mine.txt"),
    }
    before = s3.keys(place)
    repair(remote)
    assert before - s3.keys(place) == {SHARD, RECORD} | {
        key for key in before if key.startswith("models/a%20b/")
    }
    assert isinstance(place, RemotePath)
    assert set(found_in(remote)) == {
        ("missing", "scores/system=class-lm/class=Sci%2FTech"),
        ("missing", "models/a%20b"),
        ("foreign", "scores/mine.txt"),
    }
