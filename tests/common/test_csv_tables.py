"""Tables as people and spreadsheets save them: what is taken as it is meant, and where the rest is wrong."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from histoclip_lib.common import csv_tables
from histoclip_lib.common.csv_tables import MAX_BYTES, read_table
from histoclip_lib.common.errors import HistoCLIPError

COLUMNS = {"file": ["a.png", "b.png"], "tumor": ["1", "0"]}


@pytest.fixture
def write(tmp_path):
    def to_file(content):
        path = tmp_path / "labels.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return to_file


def refusal(path):
    with pytest.raises(HistoCLIPError) as raised:
        read_table(path, "file")
    assert str(path) in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize(
    "content",
    [
        b"file,tumor\na.png,1\nb.png,0\n",
        b"file,tumor\na.png,1\nb.png,0",
        b"\xef\xbb\xbffile,tumor\r\na.png,1\r\nb.png,0\r\n",
        b"file,tumor\ra.png,1\rb.png,0\r",
        b"file;tumor\na.png;1\nb.png;0\n",
        b"file\ttumor\na.png\t1\nb.png\t0\n",
        b"sep=;\nfile;tumor\na.png;1\nb.png;0\n",
        b"sep=|\r\nfile|tumor\r\na.png|1\r\nb.png|0\r\n",
        b'"sep=,"\nfile,tumor\na.png,1\nb.png,0\n',
        b'"file","tumor"\n"a.png","1"\n"b.png","0"\n',
        b'"file";"tumor"\n"a.png";"1"\n"b.png";"0"\n',
        b" file , tumor \na.png ,1 \n\xc2\xa0b.png, 0\n",
        b"\n\nfile,tumor\n\na.png,1\n   \nb.png,0\n,\n\n",
        b"file,tumor,,\na.png,1,,\nb.png,0,,\n,,,\n",
        b"file,tumor\na.png,1,,\nb.png,0\n",
        b"file|tumor\na.png|1\nb.png|0\n",
        b"file  tumor\na.png 1\nb.png     0\n",
        b"# made by hand\n#\n\nfile,tumor\na.png,1\nb.png,0\n",
        b"tumor\tfile\n1\ta.png\n0\tb.png\n",
    ],
)
def test_variants_of_csv_are_read_alike(write, content):
    table = read_table(write(content), "file")
    assert table.columns == COLUMNS


def test_rows_know_their_lines(write):
    table = read_table(write('# of\r\nfile,a\n\n"x\ny",1\n\nz,0\n'), "file")
    assert table.columns["file"] == ["x\ny", "z"]
    assert table.lines == [4, 7]


def test_an_alias_of_the_key_is_read_as_it_with_a_note(write):
    for name in ("File", "filename", "Image_Name", "path"):
        table = read_table(write(f"{name},tumor\na.png,1\nb.png,0\n"), "file", ("filename", "imagename", "path"))
        assert table.columns == COLUMNS
        assert table.notes == (f"column {name!r} is read as 'file'",)
    with pytest.raises(HistoCLIPError, match="Which of 'path', 'filename' is it"):
        read_table(write("path,filename\n"), "file", ("filename", "path"))


def test_separators_within_quotes_are_text(write):
    table = read_table(write('"file","a,b;c"\n"x,y","say ""ah"""\n'), "file")
    assert table.columns == {"file": ["x,y"], "a,b;c": ['say "ah"']}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty. Its first line must name the columns, file among them"),
        (b"\n\n , \n", "is empty"),
        ("file,krebs\na.png,1\ngr\u00fcn.png,1\n".encode("latin-1"), "line 3: the byte 0xfc is not UTF-8"),
        ("file,krebs\n".encode("utf-16"), "is UTF-16"),
        (b"PK\x03\x04\x14\0", "is a zip archive, such as a spreadsheet (.xlsx)"),
        (b"file,a\nx\0y,1\n", "line 2: a null character: this is not"),
        (b'file,a\nb,1\n"c,1\nd,1\n', "line 3: is not CSV"),
        (b'file,a\n"b"c,1\n', "line 2: is not CSV"),
        (b"file,a\n" + b"x" * 200_000 + b",1\n", "line 2: is not CSV (field larger than field limit"),
        (b"image,a\nx,1\n", "has the columns ['image', 'a']. One of them must be 'file'"),
        (b"File,a\nx,1\n", "Write 'file' for 'File'"),
        (b"patch\ta\nx\t1\ny\t0\n", "has the columns ['patch', 'a']. One of them must be 'file'"),
        (b"patch a\nx 1\ny 0\n", "has the columns ['patch', 'a']. One of them must be 'file'"),
        (b"# x\na.png;1\nb.png;0\n", "has the columns ['a.png', '1']. These look like values: put a line before"),
        (b"file,,a\nx,1,1\n", "column 2 has no name"),
        (b"file,a,b,a,b,file\nx,1,1,1,1,1\n", "'file' appears 2 times\n  - 'a' appears 2 times\n  - 'b' "),
        (b"file,a\nx\ny,1\nz,1,1\n", "2 lines have more or fewer. Put a cell with ',' in it"),
        (b"file,a\nx\ny,1\nz,1,1\n", "\n  - 1 cells: line 2\n  - 3 cells: line 4"),
        (b"# x\n\nfile,a\n" + b"x\n" * 5000, "\n  - 1 cells: line 4-5003"),
    ],
)
def test_invalid_tables_are_refused_with_place_and_remedy(write, content, reason):
    assert reason in refusal(write(content))


@pytest.mark.parametrize("content", [b"PK\x03\x04", b"\xff\xfea", b"\xfc", b"a\0"])
def test_other_kinds_of_files_are_refused_with_how_to_save_them(write, content):
    assert "save it as `CSV UTF-8`" in refusal(write(content))


def test_a_file_that_is_too_large_is_not_read(write):
    path = write("")
    with path.open("wb") as sparse:
        sparse.truncate(MAX_BYTES + 1)
    assert "more than 134,217,728 bytes" in refusal(path)


def test_a_header_of_any_length_is_shown_in_part(write):
    assert len(refusal(write(",".join(f"column_{n}" for n in range(10_000)) + "\n"))) < 700


def test_a_large_table_is_scanned_once(write, monkeypatch):
    """Each cell is looked at a fixed number of times, however many there are."""
    looked = 0
    filled = csv_tables._filled

    def counting(cells):
        nonlocal looked
        looked += 1
        return filled(cells)

    monkeypatch.setattr(csv_tables, "_filled", counting)
    table = read_table(write("file,a,b,c\n" + "".join(f"{n}.png,0,1,0\n" for n in range(20_000))), "file")
    assert len(table.lines) == len(table.columns["c"]) == 20_000
    assert table.columns["file"][-1] == "19999.png"
    assert looked <= 3 * 20_001


@given(
    st.lists(
        st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=9), min_size=2),
        max_size=5,
    )
)
@settings(max_examples=100)
def test_what_the_csv_module_writes_comes_back(tmp_path_factory, rows):
    import csv

    path = tmp_path_factory.mktemp("any") / "labels.csv"
    rows = [[*(cell.strip() for cell in row[:2]), "x"] for row in rows]
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["file", "b", "c"], *rows])
    table = read_table(path, "file")
    assert [list(row) for row in zip(*table.columns.values(), strict=True)] == rows
