"""Pickles are read as data: what asks for anything else is refused by name, and nothing runs."""

from __future__ import annotations

import builtins
import copyreg
import os
import pickle
import subprocess
import time
from functools import partial

import numpy as np
import pytest

from bliss_index.errors import CorruptStoreError
from bliss_index.evaluation.paper import plain_pickle
from bliss_index.evaluation.paper.plain_pickle import read_plain_pickle

RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85C\x01btR"
BYTE = b"cnumpy\ndtype\nX\x02\x00\x00\x00u1\x85R"


class Call:
    """Pickles as a call."""

    def __init__(self, function, *arguments, state=None):
        self.call = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.call


class Registered:
    pass


def read(tmp_path, content):
    path = tmp_path / "file"
    path.write_bytes(content)
    return read_plain_pickle(path)


@pytest.mark.parametrize("protocol", range(5))
def test_data_is_what_pickle_reads(tmp_path, protocol):
    values = {
        "texts": ["a", "ä\n\\", "", "x" * 300], "numbers": [0, 1, -5, 70000, 2**40, -(2**70), 1.5],
        "constants": [None, True, False], "nested": {"a": [(), (1,), (1, 2), (1, 2, 3), (1,) * 4]},
        "empty": [{}, []], "same": [["shared"]] * 2,
    }  # fmt: skip
    content = pickle.dumps(values, protocol)
    assert read(tmp_path, content) == values == pickle.loads(content)


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_of_bytes_are_what_pickle_reads(tmp_path, protocol, order):
    rng = np.random.default_rng(protocol)
    array = np.asarray(rng.integers(0, 256, (5, 7, 3)).astype(np.uint8), order=order)
    values = {"a": array, "b": np.uint8([[9]]), "bytes": b"\x00\xff"}
    found = read(tmp_path, pickle.dumps(values, protocol))
    assert found["bytes"] == values["bytes"]
    for name in "ab":
        np.testing.assert_array_equal(found[name], values[name], strict=True)


EVIL = {
    "os.system": (Call(os.system, "touch ran"), r"(posix|os)\.system"),
    "eval": (Call(eval, "open('ran', 'w')"), r"(__builtin__|builtins)\.eval"),
    "exec": (Call(exec, "open('ran', 'w')"), r"(__builtin__|builtins)\.exec"),
    "getattr": (Call(getattr, os, "system"), "."),
    "open": (Call(open, "ran", "w"), r"(io|_io|__builtin__|builtins)\.open"),
    "Popen": (Call(subprocess.Popen, ["touch", "ran"]), r"(subprocess|commands)\.Popen"),
    "partial": (partial(os.system, "touch ran"), r"functools\.partial"),
    "numpy.load": (Call(np.load, "ran.npy", None, True), r"numpy.*\.load"),
    "numpy.save": (Call(np.save, "ran", np.zeros(1)), r"numpy.*\.save"),
    "object array": ({"a": np.array([Call(os.system, "touch ran")])}, r"numpy\.dtype|\.system"),
    "structured": (np.zeros(2, [("a", "O"), ("b", "u1")]), r"numpy\.dtype of something else"),
    "floats": (np.zeros(2), r"numpy\.dtype of something else|_frombuffer"),
    "ndarray": (Call(np.ndarray, (1 << 40,)), r"numpy\.ndarray of something else"),
    "dtype state": (Call(np.dtype, "u1", state=(3, "|", None, ("a",), {}, 8, 1)), "gives a state"),
    "copyreg": (Registered(), r"(copy_reg|copyreg)\._reconstructor|instruction NEWOBJ|Registered"),
    "add_extension": (Call(copyreg.add_extension, "os", "system", 7), r"copy_?reg\.add_extension"),
    "import": (Call(builtins.__import__, "antigravity"), r"\.__import__"),
}  # fmt: skip


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("name", EVIL)
def test_calls_are_refused_by_name(tmp_path, monkeypatch, protocol, name):
    if name == "getattr":  # modules cannot be pickled; they are named
        content = b"c__builtin__\ngetattr\n(cos\n__dict__\nX\x06\x00\x00\x00systemtR."
    else:
        content = pickle.dumps({"data": EVIL[name][0]}, protocol)
    place = tmp_path / "work"
    place.mkdir()
    monkeypatch.chdir(place)
    with pytest.raises(CorruptStoreError, match=EVIL[name][1]):
        read(tmp_path, content)
    assert list(place.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x80\x02\x82\x01.", "instruction EXT1"),
        (b"\x80\x02\x83\x01\x00.", "instruction EXT2"),
        (b"\x80\x02\x84\x01\x00\x00\x00.", "instruction EXT4"),
        (b"Pos.system\n.", "instruction PERSID"),
        (b"K\x01Q.", "instruction BINPERSID"),
        (b"(X\x02\x00\x00\x00idios\nsystem\n.", "os system the instruction INST"),
        (b"(K\x01K\x02o.", "instruction OBJ"),
        (b"cnumpy\nndarray\n)\x81.", "instruction NEWOBJ"),
        (b"cnumpy\nndarray\n)}\x92.", "instruction NEWOBJ_EX"),
        (b"\x80\x05\x97.", "instruction NEXT_BUFFER"),
        (b"\x80\x05\x96\x01\x00\x00\x00\x00\x00\x00\x00a.", "instruction BYTEARRAY8"),
        (b"\x80\x04\x8f.", "instruction EMPTY_SET"),
        (b"X\x02\x00\x00\x00osX\x06\x00\x00\x00system\x93.", "it asks for os.system"),
        (b"cnumpy.core.multiarray\n_reconstruct\nq\x00h\x00h\x00R.", "not a function"),
        (b"cnumpy.core.multiarray\n_reconstruct.x\n.", "_reconstruct.x"),
        (b"c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00hex\x86R.", "something else"),
        (b"cnumpy\nndarray\n}b.", "gives a state"),
        (b"cnumpy.core.multiarray\n_reconstruct\n}X\x08\x00\x00\x00__code__K\x01sb.", "a state"),
        (b"}(K\x01K\x02u.", "not texts"),
        (b"}(X\x01\x00\x00\x00au.", "not texts"),
        (b"}]]sh.", "not texts|unknown|exhausted"),
        (b"K\x01K\x02a.", "not a list"),
        (b"]K\x01K\x02s.", "not a dict"),
        (b"h\x05.", "KeyError"),
        (b"t.", "IndexError"),
        (b".", "IndexError"),
        (b"R.", "lacks its operands"),
        (b"", "exhausted"),
    ],
)
def test_instructions_beyond_data_are_refused(tmp_path, content, message):
    with pytest.raises(CorruptStoreError, match=message):
        read(tmp_path, content)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (b"(K\x01J\xff\xff\xff\x7f\x85" + BYTE + b"\x89C\x01atb.", "not that of its bytes"),
        (b"(K\x01K\x01J\xff\xff\xff\xff\x86" + BYTE + b"\x89C\x01atb.", "not that of its bytes"),
        (b"(K\x01(" + b"K\x01" * 9 + b"t" + BYTE + b"\x89C\x01atb.", "lacks its shape"),
        (b"(K\x01K\x01\x85K\x07\x89C\x01atb.", "another type than bytes"),
        (b"(K\x01K\x01\x85" + BYTE + b"\x89]K\x01atb.", "lacks its shape or its bytes"),
        (b"Nb.", "gives a state"),
    ],
)  # fmt: skip
def test_arrays_that_lie_are_refused(tmp_path, state, message):
    with pytest.raises(CorruptStoreError, match=message):
        read(tmp_path, RECONSTRUCT + state)


def test_depth_and_size_cost_no_more_than_the_file(tmp_path, monkeypatch):
    began = time.perf_counter()
    depth = 200_000
    key = b"X\x01\x00\x00\x00a"
    nested = read(tmp_path, b"}" + key + b"]" * depth + b"a" * (depth - 1) + b"s.")
    assert list(nested) == ["a"]
    del nested
    assert read(tmp_path, b"}" + key + b")" + b"\x85" * depth + b"s.").keys() == {"a"}
    # Tuples of the tuple before: to hash or to print them would take 2 ** 200 steps.
    doubled = b"K\x01\x85" + b"q\x00h\x00\x86" * 200
    with pytest.raises(CorruptStoreError, match="not texts"):
        read(tmp_path, b"}" + doubled + b"K\x01s.")
    with pytest.raises(CorruptStoreError, match="not a function"):
        read(tmp_path, doubled + b")R.")
    assert read(tmp_path, b"}" + key + doubled + b"s.").keys() == {"a"}
    for claim in (b"T\xff\xff\xff\x7f", b"B\xff\xff\xff\xff", b"X\xff\xff\xff\xff"):
        with pytest.raises(CorruptStoreError, match="ValueError"):
            read(tmp_path, claim + b"a.")
    assert read(tmp_path, b"}r\xff\xff\xff\xff.") == {}
    with pytest.raises(CorruptStoreError, match="4300 digits|string conversion"):
        read(tmp_path, b"L" + b"9" * 100_000 + b"L\n.")
    assert time.perf_counter() - began < 20
    monkeypatch.setattr(plain_pickle, "_LARGEST_FILE", 10)
    with pytest.raises(CorruptStoreError, match="larger than"):
        read(tmp_path, b"}" + b" " * 20)


@pytest.mark.filterwarnings("ignore:invalid escape")
def test_mutated_files_give_data_or_a_typed_error(tmp_path):
    values = {
        "data": np.arange(12, dtype=np.uint8).reshape(3, 4),
        "labels": [0, 1, 2],
        "b": b"\xff",
    }
    rng = np.random.default_rng(0)
    data = 0
    for number in range(3000):
        content = bytearray(pickle.dumps(values, number % 5 or 2))
        for place in rng.integers(0, len(content), 1 + number % 3):
            content[place] = int(rng.integers(0, 256))
        if number % 7 == 0:
            del content[int(rng.integers(0, len(content))) :]
        try:
            assert type(read(tmp_path, bytes(content))) is dict
            data += 1
        except CorruptStoreError:
            pass
    assert 30 < data < 2900


def test_no_missing_file(tmp_path):
    with pytest.raises(CorruptStoreError, match="FileNotFoundError"):
        read_plain_pickle(tmp_path / "none")


def test_the_reader_has_no_unpickler():
    assert not {"pickle", "importlib", "sys", "copyreg", "_pickle"} & vars(plain_pickle).keys()
