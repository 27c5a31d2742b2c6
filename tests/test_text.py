"""Reading training texts."""

import gzip

import pytest

from fastseq.text import TextError, check_text, default_text, read_text


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize(
    ("content", "text"), [(b"abc\r\nd\re\n", "abc\nd\ne\n"), ("\ufeff\u00e9".encode(), "\u00e9"), (b"", "")]
)
def test_text_plain_or_gzip_whatever_its_name(tmp_path, pack, content, text):
    path = tmp_path / "no.ending"
    path.write_bytes(pack(content))
    assert read_text(path) == text
    assert read_text(str(path)) == text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"ab\0c", r"expected text, got binary data \(a zero byte at position 2\)"),
        (b"ab\xffc", "expected UTF-8 text, got byte 0xff at position 2"),
        (gzip.compress(b"a" * 1000)[:-9], "the gzip file is damaged"),
        (b"\x1f\x8bnonsense", "the gzip file is damaged"),
        (gzip.compress(b"a\0b"), "binary data"),
    ],
)
def test_what_is_no_text(tmp_path, content, message):
    path = tmp_path / "text"
    path.write_bytes(content)
    with pytest.raises(TextError, match=message) as error:
        read_text(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(TextError, match="there is no such file"):
        read_text(tmp_path / "nothing")
    with pytest.raises(TextError, match="got a folder"):
        read_text(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the text is empty"),
        ("a", "only one distinct character, 'a'"),
        ("a" * 5000, "only one distinct"),
        ("ab" * 49, "at least 100 characters to train on, got 98"),
    ],
)
def test_what_is_too_little(text, message):
    with pytest.raises(TextError, match=message):
        check_text("name", text)
    check_text("name", "ab" * 50)


def test_the_default_text_is_english_and_long():
    text = default_text()
    assert len(text) > 300_000
    assert text.count(" the ") > 1000
    check_text("default", text)
