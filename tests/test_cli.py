"""The command line: the whole chain, exit codes, messages of bad input, cheap start."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bliss_reference import clip_like, reference_scores
from bulk_fixtures import scored, shard
from command import run, run_apart

from bliss_index.calibration.labels import Labels
from bliss_index.cli import console, options
from bliss_index.cli.app import app
from bliss_index.errors import InvalidInputError
from bliss_index.store import EmbeddingStore

MODEL = ["--model", "ViT-B-32", "--pretrained", "openai"]


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """A folder with a corpus, classes, images, labels and a calibration, made by commands."""
    folder = tmp_path_factory.mktemp("chain")
    images, vocabulary, texts, labels = clip_like(np.random.default_rng(5), 300, 80, 3, 16)
    np.save(folder / "vocabulary.npy", vocabulary)
    np.save(folder / "texts.npy", texts)
    np.save(folder / "normal.npy", images[:200])
    test = images[200:].copy()
    np.save(folder / "test.npy", test)
    test[7] = 0
    np.save(folder / "holes.npy", test)
    (folder / "vocabulary.txt").write_text("".join(f"word {i}\n" for i in range(80)))
    (folder / "classes.txt").write_text("cat\ndog\ncow\n")
    names = np.array(["cat", "dog", "cow"])
    (folder / "labels.txt").write_text("".join(f"{names[c]}\n" for c in labels[:200]))
    run("import", "vocabulary.npy", "--kind", "text", "--texts", "vocabulary.txt", *MODEL,
        "--out", "corpus", cwd=folder)  # fmt: skip
    run("import", "texts.npy", "--kind", "text", "--texts", "classes.txt", *MODEL,
        "--out", "classes", cwd=folder)  # fmt: skip
    run("import", "normal.npy", "--kind", "image", *MODEL, "--out", "normal", cwd=folder)
    run("import", "test.npy", "--kind", "image", *MODEL, "--out", "test", cwd=folder)
    run("import", "holes.npy", "--kind", "image", *MODEL, "--out", "holes", cwd=folder, code=3)
    run("calibrate", "normal", "--labels", "labels.txt", "--classes", "classes",
        "--out", "calibration", cwd=folder)  # fmt: skip
    return folder, labels


SCORE = ["--corpus", "corpus", "--calibration", "calibration"]


def test_the_chain_ends_in_the_formulas(chain, tmp_path):
    folder, labels = chain
    pytest.importorskip("faiss")
    out, _ = run("build", "corpus", "--json", cwd=folder)
    assert json.loads(out)["kind"] == "flat"
    for search in ("auto", "torch", "flat"):
        out, err = run("score", "test", *SCORE, "--out", tmp_path / search, "--search", search,
                       "--explain", "--json", cwd=folder)  # fmt: skip
        summary = json.loads(out)
        assert (summary["rows"], summary["bad_rows"], summary["complete"]) == (100, 0, True)
        assert "memory: at most" in err
    files = [scored(tmp_path / s).read_bytes() for s in ("auto", "torch", "flat")]
    assert files[0] == files[1] == files[2]
    table = pq.read_table(scored(tmp_path / "auto"))
    stored = {
        name: EmbeddingStore.open(folder / name).embeddings("float64")
        for name in ("test", "corpus", "classes", "normal")
    }
    expected = reference_scores(
        stored["test"], stored["corpus"], stored["classes"], stored["normal"], labels[:200],
        k=10, lam=0.5,
    )  # fmt: skip
    np.testing.assert_allclose(
        table.column("anomaly_score").to_numpy(), expected.anomaly, atol=1e-4, rtol=1e-5
    )
    names = ["cat", "dog", "cow"]
    assert table.column("nearest_class").to_pylist() == [names[c] for c in expected.nearest_class]
    assert table.column("entries")[0].as_py() == [f"word {i}" for i in expected.ids[0]]
    contributions = np.array(table.column("contributions").to_pylist())
    external = table.column("external_score").to_numpy()
    np.testing.assert_allclose(contributions.sum(1), 0.5 * external, atol=1e-5)


def test_scoring_again_is_harmless(chain, tmp_path):
    folder, _ = chain
    run("score", "test", *SCORE, "--out", tmp_path / "s", cwd=folder)
    before = scored(tmp_path / "s").stat().st_mtime_ns
    out, err = run("score", "test", *SCORE, "--out", tmp_path / "s", "--json", cwd=folder)
    assert json.loads(out)["rows_now"] == 0
    assert "continuing: 100 of 100 rows are scored already" in err
    assert scored(tmp_path / "s").stat().st_mtime_ns == before
    _, err = run("score", "test", *SCORE, "--out", tmp_path / "s", "-k", 5, cwd=folder, code=1)
    assert "was begun with k 10, now it is 5" in err


def test_quarantined_rows_end_in_exit_code_3(chain, tmp_path):
    folder, _ = chain
    out, err = run("score", "holes", *SCORE, "--out", tmp_path / "s", "--json", cwd=folder, code=3)
    assert json.loads(out)["status"] == {"ok": 99, "zero_embedding": 1}
    assert "1 of 100 rows have no score" in err
    table = pq.read_table(scored(tmp_path / "s"))
    row = table.slice(7, 1).to_pylist()[0]
    assert row["anomaly_score"] is row["nearest_class"] is None
    assert (row["status"], row["error"]) == ("zero_embedding", "the embedding is zero")
    run("verify", tmp_path / "s", cwd=folder, code=3)
    run("verify", "holes", cwd=folder, code=3)


def test_evaluate(chain, tmp_path):
    folder, _ = chain
    pytest.importorskip("sklearn")
    run("score", "test", *SCORE, "--out", tmp_path / "s", cwd=folder)
    scores = pq.read_table(scored(tmp_path / "s")).column("anomaly_score").to_numpy()
    anomaly = (scores > np.median(scores)).astype(int)
    np.save(tmp_path / "perfect.npy", anomaly)
    out, _ = run("evaluate", tmp_path / "s", "--labels", tmp_path / "perfect.npy", "--json")
    assert json.loads(out)["auroc"] == 1.0
    lines = [f"{key},{flag}\n" for key, flag in reversed(list(enumerate(anomaly)))]
    (tmp_path / "by_key.csv").write_text("key,label\n" + "".join(lines))
    out, _ = run("evaluate", tmp_path / "s", "--labels", tmp_path / "by_key.csv", "--json")
    assert json.loads(out)["auroc"] == 1.0
    out, _ = run("evaluate", tmp_path / "s", "--labels", tmp_path / "by_key.csv")
    assert "AUROC" in out
    np.save(tmp_path / "gaps.npy", np.where(np.arange(100) % 10 == 0, np.nan, anomaly))
    lines = [f"{key},{bool(flag)}\n" for key, flag in enumerate(anomaly) if key % 10]
    (tmp_path / "words.csv").write_text("key,label\n" + "".join(lines))
    for name in ("gaps.npy", "words.csv"):
        out, err = run("evaluate", tmp_path / "s", "--labels", tmp_path / name, "--json")
        assert (json.loads(out)["auroc"], json.loads(out)["unlabelled"]) == (1.0, 10)
        assert "10 images without a label are left out" in err
    lines = [f"{key},{key % 2},{flag}\n" for key, flag in enumerate(anomaly)]
    (tmp_path / "both.csv").write_text("key,label,anomaly\n" + "".join(lines))
    out, _ = run("evaluate", tmp_path / "s", "--labels", tmp_path / "both.csv", "--json")
    assert json.loads(out)["auroc"] == 1.0
    np.save(tmp_path / "short.npy", anomaly[:50])
    _, err = run("evaluate", tmp_path / "s", "--labels", tmp_path / "short.npy", code=1)
    assert "holds 50 labels, there are 100 rows" in err
    np.save(tmp_path / "odd.npy", anomaly + 1)
    _, err = run("evaluate", tmp_path / "s", "--labels", tmp_path / "odd.npy", code=1)
    assert "label 2 of row" in err
    assert "neither 0 (normal) nor 1 (anomaly)" in err


def test_labels_by_key_and_by_number(chain, tmp_path):
    folder, labels = chain
    rows = list(enumerate(labels[:200]))
    (tmp_path / "numbers.csv").write_text("key,label\n" + "".join(f"{i},{c}\n" for i, c in rows))
    run("calibrate", "normal", "--labels", tmp_path / "numbers.csv", "--classes", "classes",
        "--out", tmp_path / "c", cwd=folder)  # fmt: skip
    out, _ = run("info", tmp_path / "c", "--json")
    other, _ = run("info", folder / "calibration", "--json")
    assert json.loads(out)["content_hash"] == json.loads(other)["content_hash"]


def test_labels_of_which_some_are_missing(chain, tmp_path):
    """A table turns numbers with gaps into 1.0 and NaN, or into nulls."""
    folder, labels = chain
    given = [None if row % 10 == 0 else int(label) for row, label in enumerate(labels[:200])]
    np.save(tmp_path / "a.npy", np.array([np.nan if g is None else g for g in given]))
    pq.write_table(pa.table({"label": pa.array(given)}), tmp_path / "b.parquet")
    names = ["cat", "dog", "cow"]
    lines = [f"{row},{'' if g is None else names[g]}\n" for row, g in enumerate(given)]
    (tmp_path / "c.csv").write_text("key,label\n" + "".join(lines))
    lines = [f"{row},{'' if g is None else g}\n" for row, g in enumerate(given)]
    (tmp_path / "d.csv").write_text("key,label\n" + "".join(lines))
    hashes = set()
    for name in ("a.npy", "b.parquet", "c.csv", "d.csv"):
        _, err = run("calibrate", "normal", "--labels", tmp_path / name, "--classes", "classes",
                     "--out", tmp_path / f"{name} out", cwd=folder)  # fmt: skip
        assert "20 images without a label are left out" in err
        out, _ = run("info", tmp_path / f"{name} out", "--json")
        hashes.add(json.loads(out)["content_hash"])
    assert len(hashes) == 1


def test_a_class_named_by_digits(tmp_path):
    (tmp_path / "l.csv").write_text("label\n007\n008\n")
    assert Labels.read(tmp_path / "l.csv").values == ("007", "008")
    (tmp_path / "l.csv").write_text("label\n7\n-1\n")
    assert Labels.read(tmp_path / "l.csv").values == (7, -1)
    (tmp_path / "l.csv").write_text('key,label\na,1\n"b,""",1\n"b,""",0\n')
    with pytest.raises(InvalidInputError, match="has key 'b,\"' more than once"):
        Labels.read(tmp_path / "l.csv")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("cat\n" * 199, "holds 199 labels, there are 200 rows"),
        (
            "cat\n" * 200,
            "2 of 3 classes have fewer than 2 calibration images: 'dog' (0), 'cow' (0)",
        ),
        ("dog\n" + "cat\n" * 199, "'dog' (1), 'cow' (0)"),
        (
            "horse\n" * 200,
            "labels no row with one of the 3 classes ('cat', 'dog', 'cow'); its labels are 'horse'",
        ),
        ("3\n" * 200, "label 3 in row 0, there are 3 classes (0 to 2; -1 leaves a row out)"),
    ],
)
def test_labels_that_do_not_fit(chain, tmp_path, labels, message):
    folder, _ = chain
    (tmp_path / "l.txt").write_text(labels)
    _, err = run("calibrate", "normal", "--labels", tmp_path / "l.txt", "--classes", "classes",
                 "--out", tmp_path / "c", cwd=folder, code=1)  # fmt: skip
    assert message in err
    assert not (tmp_path / "c").exists()


def test_labels_without_the_column(chain, tmp_path):
    folder, _ = chain
    (tmp_path / "l.csv").write_text("a,b\n" + "x,y\n" * 200)
    _, err = run("calibrate", "normal", "--labels", tmp_path / "l.csv", "--classes", "classes",
                 "--out", tmp_path / "c", cwd=folder, code=1)  # fmt: skip
    assert "has no column 'label'" in err
    assert "its columns are a, b" in err
    _, err = run("calibrate", "normal", "--classes", "classes", "--out", tmp_path / "c",
                 cwd=folder, code=1)  # fmt: skip
    assert "names 3 classes: --labels must say which class" in err


def test_models_are_not_mixed(chain, tmp_path):
    folder, _ = chain
    run("import", "test.npy", "--kind", "image", "--model", "RN50", "--pretrained", "openai",
        "--out", tmp_path / "other", cwd=folder)  # fmt: skip
    _, err = run("score", tmp_path / "other", *SCORE, "--out", tmp_path / "s", cwd=folder, code=1)
    assert "model name is 'RN50' and 'ViT-B-32'" in err
    _, err = run("calibrate", tmp_path / "other", "--classes", "classes", "--labels", "labels.txt",
                 "--out", tmp_path / "c", cwd=folder, code=1)  # fmt: skip
    assert "'RN50' and 'ViT-B-32'" in err


def test_other_bad_input_of_score(chain, tmp_path):
    folder, _ = chain
    np.save(tmp_path / "wide.npy", np.ones((3, 17), dtype=np.float32))
    _, err = run(
        "score", tmp_path / "wide.npy", *SCORE, "--out", tmp_path / "s", cwd=folder, code=1
    )
    assert "have dimension 17, corpus corpus has 16" in err
    _, err = run("score", "test", *SCORE, "-k", 81, "--out", tmp_path / "s", cwd=folder, code=1)
    assert "k = 81 must lie between 1 and the 80 entries of corpus" in err
    _, err = run("score", "nowhere", *SCORE, "--out", tmp_path / "s", cwd=folder, code=1)
    assert "nowhere does not exist" in err
    _, err = run("score", "test", *SCORE, "--out", folder / "test.npy" / "s", cwd=folder, code=1)
    assert "cannot write" in err
    _, err = run("score", "test", "--corpus", "test", "--calibration", "calibration",
                 "--out", tmp_path / "s", cwd=folder, code=1)  # fmt: skip
    assert "test is a store of image embeddings, here one of text embeddings is needed" in err
    _, err = run(
        "score", "test", *SCORE, "--search", "ivf", "--out", tmp_path / "s", cwd=folder, code=1
    )
    assert "bliss-index build corpus --index ivf" in err
    _, err = run(
        "score", "test", *SCORE, "--search", "fast", "--out", tmp_path / "s", cwd=folder, code=2
    )
    assert "'fast' is not one of" in err
    run("score", "test", cwd=folder, code=2)
    run("score", "test", *SCORE, "-k", "ten", "--out", tmp_path / "s", cwd=folder, code=2)


@pytest.mark.parametrize(
    "arguments",
    [
        ["import", "test.npy", *MODEL, "--kind", "picture"],
        ["import", "test.npy", *MODEL, "--kind", "image", "--dtype", "float64"],
        ["score", "test", *SCORE, "--engine", "spark"],
        ["score", "test", *SCORE, "--lam", "-1"],
        ["score", "test", *SCORE, "--max-bad-fraction", "5"],
        ["encode-text", "classes.txt", "--precision", "float16"],
        ["encode-images", ".", "--preprocess", "none"],
    ],
)
def test_values_that_an_option_does_not_take_are_usage_errors(chain, tmp_path, arguments):
    folder, _ = chain
    out, err = run(*arguments, "--out", tmp_path / "s", cwd=folder, code=2)
    assert out == ""
    assert arguments[-2] in err
    assert not (tmp_path / "s").exists()


def test_the_words_of_options_are_those_of_the_rooms():
    from bliss_index.encode import model
    from bliss_index.jobs import options as job_options
    from bliss_index.store import manifest

    assert options.KINDS == manifest.KINDS
    assert options.DTYPES == manifest.DTYPES
    assert options.PRECISIONS == model._PRECISIONS
    assert options.PREPROCESSES == model._PREPROCESSES
    assert options.ENGINES == job_options.ENGINES


def test_a_truncated_shard_fails_alone_and_is_tried_again(chain, tmp_path):
    folder, _ = chain
    run("import", "test.npy", "--kind", "image", *MODEL, "--out", tmp_path / "t", cwd=folder)
    damaged = shard(tmp_path / "t")
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-9])
    _, err = run("score", tmp_path / "t", *SCORE, "--out", tmp_path / "s", cwd=folder, code=1)
    assert f"has {len(whole) - 9} bytes, the manifest says {len(whole)}" in err
    assert "1 part failed; run the same command again" in err
    damaged.write_bytes(whole)
    run("score", tmp_path / "t", *SCORE, "--out", tmp_path / "s", cwd=folder)
    run("verify", tmp_path / "s")


def test_a_stale_index_is_refused(chain, tmp_path):
    folder, _ = chain
    pytest.importorskip("faiss")
    run("import", "vocabulary.npy", "--kind", "text", "--texts", "vocabulary.txt", *MODEL,
        "--out", tmp_path / "corpus", cwd=folder)  # fmt: skip
    run("build", tmp_path / "corpus", cwd=folder)
    index = tmp_path / "corpus" / "index" / "flat.json"
    values = json.loads(index.read_text())
    values["content_hash"] = "0" * 64
    index.write_text(json.dumps(values))
    arguments = ["--corpus", tmp_path / "corpus", "--calibration", "calibration"]
    _, err = run("score", "test", *arguments, "--search", "flat", "--out", tmp_path / "s",
                 cwd=folder, code=1)  # fmt: skip
    assert "was built of content 0000" in err
    _, err = run("verify", tmp_path / "corpus", code=1)
    assert "was built of content 0000" in err


def test_text_and_model_errors(tmp_path):
    (tmp_path / "empty.txt").write_text("\n  \n")
    _, err = run("encode-text", tmp_path / "empty.txt", "--out", tmp_path / "c", code=1)
    assert "2 rows read, 2 empty" in err
    (tmp_path / "words.txt").write_text("cat\n")
    _, err = run("encode-text", tmp_path / "words.txt", "--model", "ViT-B-32", "--pretrained",
                 "nothing", "--out", tmp_path / "c", code=1)  # fmt: skip
    assert "nothing" in err
    assert "openai" in err
    assert not (tmp_path / "c").exists()


def test_info(chain):
    folder, _ = chain
    out, _ = run("info", folder / "corpus", "--json")
    facts = json.loads(out)
    assert (facts["kind"], facts["rows"], facts["dtype"]) == ("text store", 80, "float16")
    out, _ = run("info", folder / "corpus")
    assert "ViT-B-32" in out
    out, _ = run("info", "--json")
    facts = json.loads(out)
    assert set(facts["exact_search"]) == {"native", "torch", "cuda"}
    _, err = run("info", folder, code=1)
    assert "is not a store, calibration or scores directory" in err


COMMANDS = [command.name for command in app.registered_commands]


def test_the_commands_that_others_rely_on_are_there():
    assert {
        "demo", "encode-text", "encode-images", "import", "build", "calibrate", "score", "evaluate",
        "report", "verify", "info", "bench",
    } <= set(COMMANDS)  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command):
    out, _ = run(command, "--help")
    assert "Usage" in out
    assert " . " not in out  # rich takes words in brackets for its own
    assert "--json" in out


def test_a_log_gets_a_line_a_minute(monkeypatch, capsys):
    clock = iter(range(0, 10_000, 25))
    monkeypatch.setattr(console.time, "monotonic", lambda: float(next(clock)))
    with console.progress_line("encoding text", 1000) as progress:
        for _ in range(8):
            progress(100)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("encoding text: ")
    assert all(" of 1,000, " in line and " rows/s, 0:0" in line for line in lines)
    assert 2 <= len(lines) <= 4


def test_the_start_imports_nothing_heavy():
    script = """
import sys
from typer.testing import CliRunner
from bliss_index.cli.app import app
result = CliRunner().invoke(app, ["--help"])
assert result.exit_code == 0, result.output
heavy = {"torch", "faiss", "open_clip", "numpy", "pyarrow", "ray", "sklearn", "matplotlib", "PIL"}
print(sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
    script = "import sys, bliss_index; print(len(dir(bliss_index)), 'numpy' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.split()[1] == "False"


def test_a_protocol_over_stores(chain, tmp_path):
    folder, labels = chain
    np.save(tmp_path / "test.npy", labels[200:])
    arguments = ["--normal", "normal", "--normal-labels", "labels.txt", "--classes", "classes",
                 "--corpus", "corpus"]  # fmt: skip
    command = ["evaluate", "test", "--labels", tmp_path / "test.npy", "--protocol", "one-class"]
    out, err = run(*command, *arguments, "--detectors", "bliss,raw,knn", "--json", cwd=folder)
    report = json.loads(out)
    assert (report["runs"], report["images"]) == (3, 100)
    assert list(report["detectors"]) == ["bliss", "raw", "knn"]
    assert report["detectors"]["bliss"]["auroc"]["mean"] == pytest.approx(
        np.mean(report["per_run"]["bliss"]["auroc"])
    )
    assert "3 runs of 100 images" in err
    out, _ = run(*command, *arguments, cwd=folder)
    assert out.startswith("| one-class, 3 runs | AUROC |")
    _, err = run(*command, cwd=folder, code=2)
    assert "--protocol needs --normal, --normal-labels, --classes" in err
    _, err = run(*command[:-1], "cifar10-6-vs-4", *arguments, cwd=folder, code=1)
    assert "protocol 'cifar10-6-vs-4' is for 10 classes, there are 3" in err


@pytest.mark.parametrize("hidden", [".notes.tmp", ".draft.77.tmp"])
def test_a_refused_output_keeps_every_file(chain, tmp_path, hidden):
    """Also those that look like temporary ones of ours."""
    folder, _ = chain
    for name in (hidden, "thesis.tex"):
        (tmp_path / name).write_text("mine")
    commands = [
        ("score", "test", *SCORE),
        ("import", "test.npy", "--kind", "image", *MODEL),
        ("calibrate", "normal", "--labels", "labels.txt", "--classes", "classes"),
    ]
    for command in commands:
        _, err = run(*command, "--out", tmp_path, cwd=folder, code=1)
        assert "is not empty and not a" in err
        assert {p.name for p in tmp_path.iterdir()} == {hidden, "thesis.tex"}


@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        (0, ["info", "corpus", "--json"]),
        (1, ["verify", "labels.txt"]),
        (2, ["score", "test", "--corpus"]),
        (3, ["verify", "holes"]),
    ],
)
def test_a_command_in_its_own_process_says_the_same(chain, code, arguments):
    """So that what the tests see of `run` is what people see."""
    folder, _ = chain
    out, err = run_apart(*arguments, cwd=folder, code=code)
    assert (out, err.replace("python -m bliss_index", "bliss-index")) == run(
        *arguments, cwd=folder, code=code
    )
