"""Where text comes from: a file, plain or gzip, or the English that every CPython carries."""

from __future__ import annotations

import gzip
import os
import zlib

#: What a training text must hold at least, so that both of its parts are texts.
LEAST_CHARACTERS = 100


class TextError(ValueError):
    """A text that cannot be trained on; the message is one sentence that names it."""


def default_text() -> str:
    """The help texts of Python's language reference, from `pydoc_data.topics`: about 460,000 characters of English."""
    from pydoc_data import topics

    return "\n".join(topics.topics.values())


def read_text(path: str | os.PathLike[str]) -> str:
    r"""The text of a UTF-8 file, gzip recognised by its first two bytes.

    Parameters
    ----------
    path : path of the file

    Returns
    -------
    str
        Line ends are "\n", and a byte-order mark is gone.

    Raises
    ------
    TextError
        If the file is missing, unreadable, a folder, damaged, binary or not UTF-8.

    Examples
    --------
    >>> import gzip, os, tempfile
    >>> from fastseq.text import read_text
    >>> path = os.path.join(tempfile.mkdtemp(), "text")
    >>> with gzip.open(path, "wb") as file: _ = file.write(b"to be or not to be")
    >>> read_text(path)
    'to be or not to be'
    """
    name = os.fspath(path)
    try:
        with open(name, "rb") as file:
            content = file.read()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except FileNotFoundError:
        raise TextError(f"{name}: there is no such file") from None
    except IsADirectoryError:
        raise TextError(f"{name}: expected a text file, got a folder") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise TextError(f"{name}: the gzip file is damaged ({error})") from None
    except OSError as error:
        raise TextError(f"{name}: the file cannot be read ({error.strerror or error})") from None
    return _decoded(name, content)


def _decoded(name: str, content: bytes) -> str:
    if b"\0" in content:
        raise TextError(f"{name}: expected text, got binary data (a zero byte at position {content.index(0)})")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TextError(
            f"{name}: expected UTF-8 text, got byte 0x{content[error.start]:02x} at position {error.start}"
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def check_text(name: str, text: str) -> None:
    """Raise TextError unless there is enough in `text` to learn from."""
    if not text:
        raise TextError(f"{name}: the text is empty")
    if len(set(text)) == 1:
        raise TextError(f"{name}: the text has only one distinct character, {text[0]!a}, so there is nothing to learn")
    if len(text) < LEAST_CHARACTERS:
        raise TextError(f"{name}: expected at least {LEAST_CHARACTERS} characters to train on, got {len(text)}")
