"""A training's whole state in one file, written beside its place and moved there."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import time
import zlib
from typing import Any

import numpy as np

from fastseq.functional import _check
from fastseq.nn.serialization import write_atomically

_FORMAT = 1


class Checkpoint:
    """Where and how often `fit` writes down all that it needs to go on.

    Parameters
    ----------
    path : path of the file
    every_seconds : float, optional
        After a step, where the last one was written so long ago.
    every_steps : int, optional
        After so many steps of the optimiser.

    In the end, after Ctrl-C too, one is written in any case.

    Examples
    --------
    >>> from fastseq.training import Checkpoint
    >>> Checkpoint("run.checkpoint", every_steps=500)
    Checkpoint('run.checkpoint', every_seconds=60.0, every_steps=500)
    """

    def __init__(self, path: str | os.PathLike[str], *, every_seconds: float | None = 60.0, every_steps: int | None = None) -> None:
        for name, value in (("every_seconds", every_seconds), ("every_steps", every_steps)):
            if value is not None and not _check.number(name, value) > 0:
                raise ValueError(f"{name}: expected more than 0, got {value}")
        if not isinstance(path, str | os.PathLike):
            raise TypeError(f"checkpoint: expected a path, got {type(path).__name__}")
        self.path, self.every_seconds, self.every_steps = os.fspath(path), every_seconds, every_steps
        self._written_at, self._written_step = time.monotonic(), 0

    def is_due(self, step: int) -> bool:
        """Whether one is to be written after this step."""
        if self.every_steps is not None and step - self._written_step >= self.every_steps:
            return True
        return self.every_seconds is not None and time.monotonic() - self._written_at >= self.every_seconds

    def write(self, state: dict[str, Any], step: int) -> None:
        """Replace the file, at once or not at all."""
        write_checkpoint(self.path, state)
        self._written_at, self._written_step = time.monotonic(), step

    def read(self) -> dict[str, Any] | None:
        """What the file holds; None where there is none.

        Raises
        ------
        ValueError
            If the file is damaged or is no checkpoint.
        FileNotFoundError, IsADirectoryError
            If there is no folder in which one could be written, or the path is itself a folder.
        """
        folder = os.path.dirname(os.path.realpath(self.path))
        if not os.path.isdir(folder):
            raise FileNotFoundError(f"checkpoint: there is no folder {folder} to write {self.path} to")
        if os.path.isdir(self.path):
            raise IsADirectoryError(f"checkpoint: expected the path of a file, got the folder {self.path}")
        _remove_leftovers(self.path)
        if not os.path.exists(self.path):
            return None
        return read_checkpoint(self.path)

    def __repr__(self) -> str:
        return f"Checkpoint({self.path!r}, every_seconds={self.every_seconds}, every_steps={self.every_steps})"


def write_checkpoint(path: str, state: dict[str, Any]) -> None:
    """Write nested dicts, lists, tuples, numbers, strings and arrays: arrays as safetensors, the rest as JSON beside them."""
    from safetensors.numpy import save

    arrays: dict[str, np.ndarray] = {}
    text = json.dumps({"format": _FORMAT, "state": _encode(state, "state", arrays)})
    crc = zlib.crc32(text.encode())
    for array in arrays.values():
        crc = zlib.crc32(array.tobytes(), crc)
    write_atomically(path, save(arrays, metadata={"fastseq-checkpoint": text, "crc32": str(crc)}))


def read_checkpoint(path: str) -> dict[str, Any]:
    """What `write_checkpoint` was given.

    Raises
    ------
    ValueError
        If the file is damaged or is no checkpoint.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        raise ValueError(f"{path}: damaged or no checkpoint ({error})") from None
    text = metadata.get("fastseq-checkpoint")
    if text is None:
        raise ValueError(f"{path}: expected a checkpoint that fit has written, got another safetensors file")
    crc = zlib.crc32(text.encode())
    for name in sorted(arrays, key=int):
        crc = zlib.crc32(arrays[name].tobytes(), crc)
    if str(crc) != metadata.get("crc32"):
        raise ValueError(f"{path}: the checkpoint is damaged")
    description = json.loads(text)
    if description["format"] != _FORMAT:
        raise ValueError(f"{path}: expected format {_FORMAT}, got {description['format']}; another fastseq wrote it")
    state: dict[str, Any] = _decode(description["state"], arrays)
    return state


def _encode(value: Any, where: str, arrays: dict[str, np.ndarray]) -> Any:
    """`value` as JSON, exactly; what JSON lacks becomes a dict with one key that says what it is."""
    if value is None or (isinstance(value, (bool, int, float, str)) and not isinstance(value, np.generic)):
        return value
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "biuf" and value.dtype.itemsize <= 8:
        name = str(len(arrays))
        arrays[name] = np.ascontiguousarray(value).reshape(np.shape(value))
        return {"array" if isinstance(value, np.ndarray) else "scalar": name}
    if isinstance(value, (list, tuple)):
        return {"tuple" if isinstance(value, tuple) else "list": [_encode(v, f"{where}[{k}]", arrays) for k, v in enumerate(value)]}
    if isinstance(value, dict):
        return {"dict": [[_encode(k, where, arrays), _encode(v, f"{where}.{k}", arrays)] for k, v in value.items()]}
    raise TypeError(f"{where}: expected numbers, strings, arrays, and lists and dicts of them, which a file can hold, got {_kind(value)}")


def _kind(value: Any) -> str:
    return f"an array of {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__


def _decode(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind in ("array", "scalar"):
        return arrays[content] if kind == "array" else arrays[content][()]
    if kind == "dict":
        return {_decode(k, arrays): _decode(v, arrays) for k, v in content}
    return {"list": list, "tuple": tuple}[kind](_decode(v, arrays) for v in content)


def _remove_leftovers(path: str) -> None:
    """Parts of files that killed processes have left beside it."""
    folder, name = os.path.split(os.path.realpath(path))
    for part in glob.glob(os.path.join(glob.escape(folder), f".{glob.escape(name)}.*.part")):
        process = part.split(".")[-2]
        if process.isdecimal() and not _is_running(int(process)):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(part)


def _is_running(process: int) -> bool:
    if os.name != "posix":
        return True  # there is no signal 0 to ask with
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
