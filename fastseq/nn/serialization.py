"""One file per model: safetensors for the arrays, the class and its arguments in the metadata.

The metadata's "fastseq" entry is JSON: the format's version, the model, names of shared parameters, and a checksum of every
array, so that a damaged file is refused with the name of what is damaged. Files are written beside their target and
moved onto it, so that a reader sees the old model or the new one, never a part.
"""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from fastseq.backends import to_cpu
from fastseq.nn.module import Module, Parameter

_FORMAT = 1


def save(module: Module, path: str | os.PathLike[str]) -> None:
    """Write `module` to `path`, from which `load` builds it again; a file that is there already is replaced at once or not at all.

    Parameters
    ----------
    module : Module
    path : path of the file, customarily ``*.safetensors``

    Raises
    ------
    TypeError
        If an argument that the model was made with cannot be written to a file.
    OSError
        If the file cannot be written.

    Examples
    --------
    >>> import fastseq as fs, os, tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "layer.safetensors")
    >>> fs.nn.Linear(3, 2).save(path)
    >>> fs.load(path)
    Linear(in_features=3, out_features=2, bias=True)
    """
    from safetensors.numpy import save as to_bytes

    arrays, shared = _distinct(module)
    description = {
        "format": _FORMAT,
        "model": _encode(module, type(module).__name__),
        "shared": shared,
        "checksums": {name: _checksum(name, array) for name, array in arrays.items()},
    }
    text = json.dumps(description)
    write_atomically(
        os.fspath(path), to_bytes(arrays, metadata={"fastseq": text, "crc32": str(zlib.crc32(text.encode()))})
    )


def load(path: str | os.PathLike[str]) -> Module:
    """The model that `Module.save` wrote, in evaluation mode.

    The class must be fastseq's or already defined (imported) in this process; nothing else is ever run from a file.

    Parameters
    ----------
    path : path of the file

    Returns
    -------
    Module

    Raises
    ------
    ValueError
        If the file is damaged, is no fastseq model, or names an unknown class; the message names the file, and the tensor
        where one is concerned.
    OSError
        If the file cannot be read.

    Examples
    --------
    >>> import fastseq as fs, os, tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "net.safetensors")
    >>> fs.nn.Sequential(fs.nn.Linear(4, 8), fs.nn.Tanh()).save(path)
    >>> fs.load(path)(range(4)).shape
    (8,)
    """
    name = os.fspath(path)
    arrays, description = _read(name)
    with _naming(name):
        module = _decode(description["model"])
        if not isinstance(module, Module):
            raise ValueError("expected a model, got something else")
        for alias, first in description["shared"].items():
            _assign(module, alias, _find(module, first))
        module.load_state_dict(arrays)
    return module.eval()


# ---------------------------------------------------------------------- arrays


def _distinct(module: Module) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Each array once under its first name, and {other name: first name} for the rest."""
    first: dict[int, str] = {}
    arrays, shared = {}, {}
    for name, array in module._state_arrays():
        if id(array) in first:
            shared[name] = first[id(array)]
        else:
            first[id(array)] = name
            arrays[name] = np.asarray(to_cpu(array), order="C")
    return arrays, shared


def _checksum(name: str, array: np.ndarray) -> int:
    head = f"{name} {array.dtype.str} {array.shape}".encode()
    return zlib.crc32(array.data if array.flags.c_contiguous and array.size else array.tobytes(), zlib.crc32(head))


def _find(module: Module, name: str) -> Any:
    """The attribute of a dotted name."""
    *path, last = name.split(".")
    for part in path:
        module = dict(module.named_children())[part]
    return module.__dict__[last]


def _assign(module: Module, name: str, value: Any) -> None:
    path, _, last = name.rpartition(".")
    owner = module
    for part in path.split(".") if path else ():
        owner = dict(owner.named_children())[part]
    if isinstance(value, Parameter) and owner.__dict__.get(last) is not value:
        setattr(owner, last, value)


# ---------------------------------------------------------------------- configuration


def _encode(value: Any, where: str) -> Any:
    """`value` as JSON; what JSON lacks becomes a dict with one key that says what it is."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Module):
        kind = type(value)
        arguments = {name: _encode(v, f"{where}.{name}") for name, v in value.configuration().items()}
        return {"module": _full_name(kind), "arguments": arguments}
    if isinstance(value, (list, tuple)):
        return {type(value).__name__ if type(value) in (list, tuple) else "list": [_encode(v, where) for v in value]}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"dict": {key: _encode(v, where) for key, v in value.items()}}
    if isinstance(value, (np.dtype, type)):
        with contextlib.suppress(TypeError):
            return {"dtype": np.dtype(value).name}
    raise TypeError(
        f"{where}: expected numbers, strings, lists, dicts, dtypes or modules, which a file can hold, got {type(value).__name__}; "
        "define configuration() in the model's class"
    )


def _decode(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if "module" in value:
        arguments = {name: _decode(v) for name, v in value["arguments"].items()}
        return _class_named(value["module"]).from_configuration(arguments)
    ((kind, content),) = value.items()
    if kind == "dtype":
        return np.dtype(content)
    if kind == "dict":
        return {key: _decode(v) for key, v in content.items()}
    return {"list": list, "tuple": tuple}[kind](_decode(v) for v in content)


def _full_name(kind: type) -> str:
    """Where the class is found: for fastseq's own the public name, which outlives a move between files."""
    package = ".".join(kind.__module__.split(".")[:2]) if kind.__module__.startswith("fastseq.") else kind.__module__
    return f"{package}.{kind.__qualname__}"


def _class_named(name: str) -> type[Module]:
    """The Module class of that full name, among those that are defined in this process."""
    pending: list[type[Module]] = [Module]
    while pending:
        kind = pending.pop()
        if _full_name(kind) == name:
            return kind
        pending.extend(kind.__subclasses__())
    raise ValueError(
        f"the model's class {name} is not defined in this process; import the module that defines it first"
    )


# ---------------------------------------------------------------------- files


def _read(path: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and the description in a file, every checksum compared."""
    from safetensors import SafetensorError, safe_open

    _check_size(path)
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        raise ValueError(f"{path}: damaged or no safetensors file ({error})") from None
    text = metadata.get("fastseq")
    if text is None:
        raise ValueError(
            f"{path}: holds arrays but no fastseq model; build the model and give the arrays to load_state_dict"
        )
    if str(zlib.crc32(text.encode())) != metadata.get("crc32"):
        raise ValueError(f"{path}: the model's description is damaged")
    description = json.loads(text)
    if description["format"] != _FORMAT:
        raise ValueError(f"{path}: expected format {_FORMAT}, got {description['format']}; a newer fastseq wrote it")
    for name, expected in description["checksums"].items():
        if name not in arrays:
            raise ValueError(f"{path}: tensor {name} is missing")
        if _checksum(name, arrays[name]) != expected:
            raise ValueError(f"{path}: tensor {name} is damaged")
    return arrays, description


def _check_size(path: str) -> None:
    """Raise ValueError where the file ends before its header or one of its tensors does; the rest is safetensors' to check."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise ValueError(f"{path}: no safetensors file, or cut off inside its header ({size} bytes)")
        try:
            entries = json.loads(file.read(length))
            ends = sorted((entry["data_offsets"][1], name) for name, entry in entries.items() if name != "__metadata__")
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            raise ValueError(f"{path}: no safetensors file, or its header is damaged") from None
    for end, name in ends:
        if 8 + length + end > size:
            raise ValueError(
                f"{path}: tensor {name} is cut off: the file has {size} bytes, {8 + length + end} are needed"
            )


@contextlib.contextmanager
def _naming(path: str) -> Iterator[None]:
    """Errors on the way from a description to a model, with the file's name."""
    try:
        yield
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: {error}") from error


def write_atomically(path: str, content: bytes) -> None:
    """Write beside `path`, flush to the disk, move onto `path`."""
    target = os.path.realpath(path)
    folder, name = os.path.split(target)
    temporary = os.path.join(folder, f".{name}.{os.getpid()}.part")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
    with contextlib.suppress(
        OSError
    ):  # some file systems do not let a folder be opened; the file itself is safe by now
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
