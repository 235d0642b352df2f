"""The text of csv files: separators, encodings, line ends."""

import pytest
import torch
from data_files import colour, encode, write_folder

from weathered.core.errors import DataError
from weathered.data import load

ROWS = [("height", "label", "width"), ("1.5", "b", "2"), ("-3", "a", "4"), ("0.25", "b", "6")]


def table(separator, end="\n"):
    return end.join(separator.join(row) for row in ROWS) + end


def check(path):
    data = load(str(path))
    assert data.inputs.fetch(torch.arange(3)).tolist() == [[1.5, 2], [-3, 4], [0.25, 6]]
    assert data.class_names == ("a", "b")
    assert data.labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_separators_line_ends_and_the_mark_of_utf8(tmp_path, separator, end, encoding):
    (tmp_path / "x.csv").write_bytes(table(separator, end).encode(encoding))
    check(tmp_path / "x.csv")


def test_image_paths_with_semicolons(tmp_path):
    write_folder(tmp_path, ["a", "b"], each=1)
    (tmp_path / "x.csv").write_text("file;label\na/0.png;u\nb/0.png;v\n")
    assert load(str(tmp_path / "x.csv")).class_names == ("u", "v")


def test_a_name_may_hold_the_other_separator(tmp_path):
    (tmp_path / "x.csv").write_text('size;"width, in cm";label\n1;2;x\n3;4;y\n')
    assert load(str(tmp_path / "x.csv")).inputs.columns == ("size", "width, in cm")
    # unquoted: the rows decide
    (tmp_path / "y.csv").write_text("size;width, in cm;label\n1;2;x\n3;4;y\n")
    assert load(str(tmp_path / "y.csv")).inputs.columns == ("size", "width, in cm")
    (tmp_path / "z.csv").write_text("a;b,c,label\n1,2,x\n3,4,y\n")
    assert load(str(tmp_path / "z.csv")).inputs.columns == ("a;b", "c")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a;b;label\n1;2;x\n1;2\n", "the header, split at semicolons, has 3 fields, row 1 has 2"),
        ("a\tlabel\n1\tx\n1\tx\ty\n", "the header, split at tabs, has 2 fields, row 1 has 3"),
        ("a;b,label\n1;2,x\n", r"separated by commas \(2 columns\) or semicolons \(2 columns\)"),
        ("a|b|label\n1|2|x\n", r"the header gives one column, 'a\|b\|label'; columns are separated by commas"),
        ("a;b;label\n1,5;2;x\n3;4;y\n", r"holds string such as '1,5' in row 0 \(a decimal comma; write a point\)"),
        ("a,label\n1,x\n\0,y\n", "holds zero bytes"),
    ],
)
def test_what_cannot_be_split_in_one_way(tmp_path, text, message):
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        load(str(tmp_path / "x.csv"))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "x.csv"))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("größe,label\n1,x\n2,y\n", 1),
        ("a,label\n1,x\n2,hölle\n3,é\n", 3),
        ("a,label\r\n1,x\r\n2,y\r\n3,hölle\r\n", 4),
        ("a,label\r1,x\r2,hölle\r", 3),
        ("a,ö,label\n1,2,x\n", 1),
        ("a,b,label\n" + "1,2,x\n" * 400_000 + "1,2,ö\n", 400_002),
    ],
)
def test_latin1_is_named_with_its_first_bad_line(tmp_path, text, line):
    (tmp_path / "x.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=rf"x\.csv: not UTF-8 text, line {line} holds .*; save it as UTF-8\.$"):
        load(str(tmp_path / "x.csv"))


def test_utf16_is_refused(tmp_path):
    for encoding in ("utf-16", "utf-16-le"):
        (tmp_path / "x.csv").write_bytes(table(",").encode(encoding))
        with pytest.raises(DataError, match="UTF-8"):
            load(str(tmp_path / "x.csv"))


def test_utf8_letters_are_read_where_the_head_is_cut(tmp_path):
    # 'ö' takes two bytes, of which the first mebibyte of the file ends with one
    head = "a,label\n" + "1,x\n"
    filler = "1,y" + "y" * ((1 << 20) - len(head) - 4)
    (tmp_path / "x.csv").write_text(f"{head}{filler}ö\n2,x\n", encoding="utf-8")
    assert (tmp_path / "x.csv").read_bytes()[(1 << 20) - 1] == "ö".encode()[0]
    assert load(str(tmp_path / "x.csv")).class_names[1].endswith("yö")


def test_line_breaks_in_a_column_that_is_not_read_are_let_be(tmp_path):
    (tmp_path / "0.png").write_bytes(encode(colour(0)))
    (tmp_path / "x.csv").write_text('file,caption,label\n0.png,"two\nlines",x\n0.png,one,y\n')
    assert len(load(str(tmp_path / "x.csv"))) == 2
