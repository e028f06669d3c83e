"""Reading a pickled torch module without running any of it.

A pickle is a program: it names functions and has them called. Here no name leads to the function
of that name. A short list of names has harmless stand-ins (containers, and tensors that are noted
but not read); classes of the libraries that such a module is made of become inert stubs, which take
whatever they are given and do nothing; every other name is refused, by name, and reading ends. The
archive is checked before: plain storage only, no more bytes than the file has.

References:
    https://docs.python.org/3/library/pickle.html#restricting-globals
    https://docs.pytorch.org/docs/stable/notes/serialization.html
"""

from __future__ import annotations

import io
import pickle
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from lad.utils import DamagedFile, InvalidInput

__all__ = ["ITEM_SIZES", "LazyTensor", "Stub", "TorchArchive", "walk"]

MOST_PICKLE_BYTES = 64 * 2**20  # the description of an 8 B module takes 1 or 2 MB

# Bytes an element, by safetensors' name of the type.
ITEM_SIZES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1,
    "BOOL": 1,
}  # fmt: skip
STORAGES = {
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}
DTYPES = (
    "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool",
)  # fmt: skip

# What a module that wraps a peft LLaMA is made of: packages whose names become stubs, and single
# names beside them, such as what a bound method or an activation function is pickled as.
STUB_PACKAGES = ("transformers", "peft", "accelerate", "torch.nn", "torch._C._nn", "__main__")
STUB_NAMES = {
    ("builtins", "getattr"),
    ("functools", "partial"),
    ("collections", "defaultdict"),
    ("torch", "device"),
    ("torch", "layout"),
    ("_codecs", "encode"),
}

# Opcodes that no torch archive uses and that reach for a registry, for foreign buffers, or for
# memory by a number in the file.
FORBIDDEN = (
    pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.INST, pickle.PERSID,
    pickle.BYTEARRAY8, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER,
)  # fmt: skip


class Stub:
    """Stands for an object of a class that is not loaded: keeps its state, does nothing."""

    def __new__(cls, *args, **kwargs):
        made = super().__new__(cls)
        made.state = {}
        return made

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        if isinstance(state, tuple) and len(state) == 2:  # of a class with slots
            state = state[0]
        self.state = state if isinstance(state, dict) else {}

    def __call__(self, *args, **kwargs):
        return Stub()

    # What subclasses of containers are filled with.
    def append(self, item):
        pass

    def extend(self, items):
        pass

    def add(self, item):
        pass

    def __setitem__(self, key, value):
        pass


@dataclass(frozen=True)
class LazyTensor:
    """Where a tensor's numbers are in the archive; always contiguous.

    Attributes:
        dtype: safetensors' name, such as "BF16".
        storage: name of the archive's member.
        offset: of the first element in it, in elements.
        shape: of the tensor.
    """

    dtype: str
    storage: str
    offset: int
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Its size."""
        return prod(self.shape) * ITEM_SIZES[self.dtype]


class TorchArchive:
    """A file that `torch.save` wrote, opened for reading; a context manager.

    Args:
        path: the file.
        modules: more modules whose names become stubs: where the pickled class itself is from.

    Raises:
        InvalidInput: no such file.
        DamagedFile: truncated, not torch's format, not what its directory says, or asking for
            something that is not admitted.
    """

    def __init__(self, path: Path, modules: Sequence[str] = ()) -> None:
        self.path, self.packages = path, (*STUB_PACKAGES, *modules)
        if not path.is_file():
            raise InvalidInput(f"no file {path}: expected a checkpoint that torch.save wrote")
        try:
            self.zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError, ValueError) as error:
            raise self.damaged(
                f"it is no archive of torch 1.6 or later, or is cut ({error})"
            ) from error
        try:
            self.members = self._check_members()
        except BaseException:
            self.zip.close()
            raise

    def __enter__(self) -> TorchArchive:
        return self

    def __exit__(self, *_) -> None:
        self.zip.close()

    def damaged(self, why: str) -> DamagedFile:
        """An error about this file."""
        return DamagedFile(
            f"{self.path} is refused: {why}; nothing of it was run; expected a module that "
            "torch.save wrote; download it again from where you trust it"
        )

    def _check_members(self) -> dict[str, zipfile.ZipInfo]:
        """The archive's members by name, without its folder; all stored as they are."""
        members: dict[str, zipfile.ZipInfo] = {}
        whole = self.path.stat().st_size
        for info in self.zip.infolist():
            _, _, name = info.filename.partition("/")
            if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
                raise self.damaged(f"{info.filename} is packed or encrypted, as torch never does")
            if info.file_size != info.compress_size or info.file_size > whole:
                raise self.damaged(f"{info.filename} claims {info.file_size:,} of {whole:,} bytes")
            if name in members:
                raise self.damaged(f"{info.filename} is there twice")
            members[name] = info
        if sum(info.file_size for info in members.values()) > whole:
            raise self.damaged("its members overlap: they claim more bytes than the file has")
        if "data.pkl" not in members:
            raise self.damaged("it has no data.pkl")
        if members["data.pkl"].file_size > MOST_PICKLE_BYTES:
            raise self.damaged(f"its data.pkl has {members['data.pkl'].file_size:,} bytes")
        return members

    def load(self) -> object:
        """The pickled object: stubs, containers and `LazyTensor`s."""
        try:
            order = self.read("byteorder") if "byteorder" in self.members else b"little"
            if order.strip() != b"little":
                raise self.damaged(f"its numbers are stored {order[:12]!r}, not little-endian")
            return _Unpickler(self).load()
        except DamagedFile:
            raise
        # A broken pickle can make an unpickler raise anything, from KeyError to MemoryError.
        except Exception as error:
            raise self.damaged(f"its pickle is broken ({type(error).__name__}: {error})") from error

    def read(self, name: str) -> bytes:
        """A small member as a whole."""
        try:
            with self.zip.open(self.members[name]) as file:
                return file.read()
        except (zipfile.BadZipFile, OSError, EOFError) as error:
            raise self.damaged(f"{name} cannot be read ({error})") from error

    def stream(self, tensor: LazyTensor, chunk: int = 2**24) -> Iterator[bytes]:
        """A tensor's bytes, a few at a time."""
        left = tensor.bytes
        try:
            with self.zip.open(self.members[tensor.storage]) as file:
                if tensor.offset:
                    file.seek(tensor.offset * ITEM_SIZES[tensor.dtype])
                while left:
                    data = file.read(min(chunk, left))
                    if not data:
                        raise EOFError("it ends too early")
                    left -= len(data)
                    yield data
        except (zipfile.BadZipFile, OSError, EOFError) as error:
            raise self.damaged(f"{tensor.storage} cannot be read ({error})") from error


class _Unpickler(pickle._Unpickler):
    """The unpickler in Python: its memo is a dictionary, so that no number in the file makes it
    allocate, and its table of opcodes can be cut down."""

    dispatch = {  # noqa: RUF012
        code: act
        for code, act in pickle._Unpickler.dispatch.items()
        if code not in {forbidden[0] for forbidden in FORBIDDEN}
    }

    def __init__(self, archive: TorchArchive) -> None:
        super().__init__(io.BytesIO(archive.read("data.pkl")))
        self.archive = archive
        self.stubs: dict[tuple[str, str], type] = {}

    def find_class(self, module: str, name: str) -> object:
        """What a name stands for here; never what it names."""
        if (module, name) in NAME_MAPPING:  # torch writes pickles that Python 2 could read
            module, name = NAME_MAPPING[module, name]
        module = IMPORT_MAPPING.get(module, module)
        known = {
            ("collections", "OrderedDict"): OrderedDict,
            ("builtins", "set"): set,
            ("builtins", "frozenset"): frozenset,
            ("torch", "Size"): tuple,
            ("torch._utils", "_rebuild_tensor_v2"): self.tensor,
            ("torch._utils", "_rebuild_parameter"): self.parameter,
            ("torch._utils", "_rebuild_parameter_with_state"): self.parameter,
        }
        if (module, name) in known:
            return known[module, name]
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if module == "torch" and name in DTYPES:
            return name
        inert = any(module == p or module.startswith(f"{p}.") for p in self.archive.packages)
        if inert or (module, name) in STUB_NAMES:
            key = (module, name)
            return self.stubs.setdefault(key, type(name.rpartition(".")[2], (Stub,), {}))
        raise self.archive.damaged(
            f"it asks for {module}.{name}, which is not admitted (if that is the model's own "
            f"class: --module {module})"
        )

    def persistent_load(self, pid: object) -> tuple[str, str, int]:
        """(type, member, elements) of a storage, checked against the archive's directory."""
        kind, dtype, key, _, count = pid
        name = f"data/{key}"
        if kind != "storage" or dtype not in ITEM_SIZES or name not in self.archive.members:
            raise self.archive.damaged(f"storage {key!r} of {dtype!r} is not in it")
        size = self.archive.members[name].file_size
        if not isinstance(count, int) or count * ITEM_SIZES[dtype] != size:
            raise self.archive.damaged(
                f"storage {key!r} has {size:,} bytes, not {count!r} elements"
            )
        return dtype, name, count

    def tensor(self, storage, offset, size, stride, *_) -> LazyTensor:
        """Stands for torch's function that makes a tensor of a storage."""
        dtype, name, count = storage
        shape, stride = tuple(size), tuple(stride)
        if not all(isinstance(n, int) and n >= 0 for n in (offset, *shape, *stride)):
            raise self.archive.damaged(f"a tensor of shape {shape!r} at {offset!r}")
        row, plain = [], 1
        for n in reversed(shape):
            row.append(plain)
            plain *= n
        moved = [s != r for s, r, n in zip(stride, reversed(row), shape, strict=True) if n > 1]
        # Else a few bytes could stand for any number of them.
        if any(moved) or offset + prod(shape) > count:
            raise self.archive.damaged(
                f"a tensor of shape {shape} and strides {stride} in {count:,} elements"
            )
        return LazyTensor(dtype, name, offset, shape)

    def parameter(self, data, *_) -> LazyTensor:
        """Stands for torch's functions that make a parameter of a tensor."""
        if not isinstance(data, LazyTensor):
            raise self.archive.damaged("a parameter that is no tensor")
        return data


def walk(root: object) -> tuple[dict[str, LazyTensor], dict[str, Stub]]:
    """Tensors and modules of a pickled module, by their dotted names; or of a state dict."""
    tensors: dict[str, LazyTensor] = {}
    modules: dict[str, Stub] = {}
    if isinstance(root, dict):
        named = {key: value for key, value in root.items() if isinstance(value, LazyTensor)}
        return {str(key): value for key, value in named.items()}, modules
    queue = [("", root)]
    seen: set[int] = set()
    while queue:
        name, module = queue.pop()
        if not isinstance(module, Stub) or id(module) in seen:
            continue
        seen.add(id(module))  # a module that holds itself would go on for ever
        modules[name] = module
        for part in ("_parameters", "_buffers", "_modules"):
            held = module.state.get(part)
            for key, value in held.items() if isinstance(held, dict) else ():
                dotted = f"{name}.{key}" if name else str(key)
                if isinstance(value, LazyTensor):
                    tensors[dotted] = value
                else:
                    queue.append((dotted, value))
    return tensors, modules
