import io
import os
import stat

import numpy as np
import pytest
from helpers.image_samples import GREY, bad_lines, png_bytes, write, write_zip
from PIL import Image

from kddpm import data
from kddpm.base.errors import InputError
from kddpm.data import decoding, image_files

# Names, order and layout.


def test_natural_order():
    names = ["b10.png", "b9.png", "a/1.png", "B.png", "b09.png", "10/x.png", "9/x.png", "b" + "1" * 5000 + ".png"]
    ordered = sorted(names, key=image_files.natural_key)
    assert ordered == ["9/x.png", "10/x.png", "B.png", "a/1.png", "b09.png", "b9.png", "b10.png", names[-1]]
    names.reverse()
    assert sorted(names, key=image_files.natural_key) == ordered


@pytest.mark.parametrize("zipped", [False, True])
def test_classes_and_order(tmp_path, zipped):
    members = {
        f"{folder}/{i}.png": png_bytes(np.full((2, 2), 10 * folder + i, np.uint8))
        for folder in (10, 9)
        for i in (10, 2)
    }
    members |= {"notes.txt": b"", "empty/readme.md": b"", ".hidden.png": b"", "9/._2.png": b"", ".git/a.png": b""}
    members["__MACOSX/9/2.png" if zipped else "9/.cache/x.png"] = b""
    loaded = data.load(write(tmp_path, members, zipped))
    assert loaded.images[:, 0, 0, 0].tolist() == [92, 100, 102, 110]
    assert loaded.class_names == ("9", "10") and loaded.labels.tolist() == [0, 0, 1, 1]


def test_zip_passes_over_one_common_folder(tmp_path):
    flat = data.load(write_zip(tmp_path / "a.zip", {"top/1.png": GREY, "top/2.png": GREY, "READ.me": b""}))
    assert len(flat.images) == 2 and flat.labels is None and flat.class_names == ()
    inner = data.load(write_zip(tmp_path / "b.zip", {"top/": b"", "top/a/1.png": GREY, "top/b/1.png": GREY}))
    assert inner.class_names == ("a", "b") and inner.labels.tolist() == [0, 1]
    bare = data.load(write_zip(tmp_path / "c.zip", {"1.png": GREY}))
    assert bare.labels is None


@pytest.mark.parametrize(
    "names, text",
    [
        (["1.png", "a/2.png"], r"or one subfolder a class, not both. Received 1.png and a/2.png"),
        (["a/1.png", "b/c/2.png"], r"one subfolder a class. Received deeper ones: b/c/2.png"),
    ],
)
def test_other_layouts(tmp_path, names, text):
    for name in names:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(GREY)
    for spec in (f"folder:{tmp_path}/in", write_zip(tmp_path / "a.zip", dict.fromkeys(names, GREY))):
        with pytest.raises(InputError, match=text):
            data.load(spec)


def test_names_of_any_characters(tmp_path):
    names = ["naïve é.png", "日本.png", "a\nb.png"]
    arrays = [np.full((2, 2), i, np.uint8) for i in range(3)]
    for name, array in zip(names, arrays, strict=True):
        (tmp_path / name).write_bytes(png_bytes(array))
    raw = os.path.join(os.fsencode(tmp_path), b"z\xff.png")  # no UTF-8
    with open(raw, "wb") as file:
        file.write(png_bytes(np.full((2, 2), 3, np.uint8)))
    assert data.load(f"folder:{tmp_path}").images[:, 0, 0, 0].tolist() == [2, 0, 3, 1]
    with open(raw, "wb"), open(tmp_path / "a\nb.png", "wb"):
        pass
    with pytest.raises(InputError) as caught:
        data.load(f"folder:{tmp_path}")
    lines = str(caught.value).splitlines()
    assert lines[1:] == ["  a\\nb.png: empty file", "  z\\udcff.png: empty file"]
    str(caught.value).encode("utf-8")
    spec = write_zip(tmp_path / "a.zip", {"ä/日本.png": GREY, "ö/é.png": GREY})
    assert data.load(spec).class_names == ("ä", "ö")


# Bad input.


def test_huge_files_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(image_files, "MAX_FILE_BYTES", len(GREY) - 1)
    (tmp_path / "a.png").write_bytes(GREY)
    for spec in (f"folder:{tmp_path}", write_zip(tmp_path / "a.zip", {"a.png": GREY})):
        assert f"a.png: {len(GREY)} bytes; expected at most {len(GREY) - 1}" in bad_lines(spec)[1]


def test_symbolic_links(tmp_path):
    folder, outside = tmp_path / "in", tmp_path / "outside"
    for path in (folder, outside):
        path.mkdir()
        (path / "a.png").write_bytes(GREY)
    (folder / "b.png").symlink_to("a.png")
    assert len(data.load(f"folder:{folder}").images) == 2
    (tmp_path / "link").symlink_to(folder)
    assert len(data.load(f"folder:{tmp_path}/link").images) == 2  # the folder that was named may be a link
    (folder / "c.png").symlink_to(outside / "a.png")
    (folder / "d").symlink_to(outside)
    (folder / "e").symlink_to(folder)
    (folder / "f.png").symlink_to("nowhere.png")
    (folder / "g.png").symlink_to("g.png")
    (folder / "h.txt").symlink_to(outside / "a.png")
    lines = bad_lines(f"folder:{folder}")
    assert "5 of 7" in lines[0]
    assert lines[1:4] == [
        "  c.png: symbolic link that leads out of the folder",
        "  d: symbolic link that leads out of the folder",
        "  e: symbolic link to a folder; expected an image file",
    ]
    assert "f.png: No such file" in lines[4] and lines[5].startswith("  g.png: ")
    assert len(data.load(f"folder:{folder}", skip_bad_images=True).images) == 2


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    assert stat.S_ISFIFO(os.stat(tmp_path / "a.png").st_mode)
    assert bad_lines(f"folder:{tmp_path}")[1] == "  a.png: not a regular file"


def test_zip_members_that_lead_out_are_bad(tmp_path):
    names = ["../a.png", "/b.png", "c/../../d.png", "C:/e.png", "..\\f.png"]
    spec = write_zip(tmp_path / "a.zip", dict.fromkeys([*names, "ok.png"], GREY))
    lines = bad_lines(spec)
    assert "5 of 6" in lines[0] and all("must be relative and without '..'" in line for line in lines[1:])
    assert {line.split(": ")[0].strip() for line in lines[1:]} == {*names[:4], "..\\f.png"}
    assert len(data.load(spec, skip_bad_images=True).images) == 1


def test_damaged_zip_members(tmp_path):
    path = tmp_path / "a.zip"
    write_zip(path, {"1.png": GREY, "2.png": GREY})
    content = bytearray(path.read_bytes())
    content[content.index(GREY) + len(GREY) // 2] ^= 0xFF
    path.write_bytes(content)
    lines = bad_lines(f"zip:{path}")
    assert "1 of 2" in lines[0] and "1.png: Bad CRC-32" in lines[1]


@pytest.mark.parametrize(
    "content, text",
    [
        (None, "expected a zip archive; no such file"),
        (b"", "expected a zip archive; this file is empty"),
        (GREY, "expected a zip archive; this is another kind of file, or a damaged one"),
        ("folder", "expected a zip archive; this is a folder"),
        ("cut", "expected a zip archive; this is another kind"),
        ("nothing", "no image found; 1 file left out: 1 .txt. Expected PNG, "),
    ],
)
def test_files_that_are_no_zip(tmp_path, content, text):
    path = tmp_path / "a.zip"
    if content == "folder":
        path.mkdir()
    elif content in ("cut", "nothing"):
        write_zip(path, {"a.txt": GREY})
        path.write_bytes(path.read_bytes()[: -30 if content == "cut" else None])
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=text):
        data.load(f"zip:{path}")


def test_folders_without_images(tmp_path):
    with pytest.raises(InputError, match=r"folder:.*missing: expected a folder; no such file or folder"):
        data.load(f"folder:{tmp_path}/missing")
    (tmp_path / "a.txt").write_bytes(b"")
    with pytest.raises(InputError, match="expected a folder; this file is empty"):
        data.load(f"folder:{tmp_path}/a.txt")
    (tmp_path / "b.mp4").write_bytes(b"")
    (tmp_path / "c").mkdir()
    with pytest.raises(InputError, match=r"no image found; 2 files left out: 1 .mp4, 1 .txt. Expected PNG, JPEG, WEBP"):
        data.load(f"folder:{tmp_path}")


# Names of any kind, and files that do not stay.

NAMES = {
    "right to left": "\u05e9\u05dc\u05d5\u05dd \u202etxt.png",
    "emoji of several": "\U0001f468\u200d\U0001f469\u200d\U0001f467.png",
    "composed": "caf\u00e9.png",
    "decomposed": "cafe\u0301.png",
    "newline and tab": "a\nb\tc.png",
    "escape sequence": "\x1b[2J\x1b[31m.png",
    "255 bytes": "\u65e5" * 83 + "ab.png",
    "quotes and shell": "'; \"$(reboot)` & | > x.png",
    "line separator": "a\u2028b\u0085c.png",
}


@pytest.mark.parametrize("zipped", [False, True])
def test_every_name_is_a_name(tmp_path, zipped):
    """As a file, as a class and in an error, which stays one line a file and can be printed."""
    names = list(NAMES.values()) if zipped else [*NAMES.values(), "\udcff\udc80.png"]
    bad = {f"{name[:-4]}/{name}": b"" for name in names}
    good = {f"{name[:-4]}/1{name[-5:]}": png_bytes(np.full((2, 2), i, np.uint8)) for i, name in enumerate(names)}
    for members in (good, bad):
        spec = write(tmp_path, members, zipped)
        if members is good:
            loaded = data.load(spec)
            assert len(loaded.images) == len(loaded.class_names) == len(names)
            assert set(loaded.class_names) == {name[:-4] for name in names}
    lines = bad_lines(spec)
    assert len(lines) == 1 + len(names)
    assert all(line.isprintable() and line.endswith(": empty file") for line in lines[1:])
    "\n".join(lines).encode("utf-8")


def test_a_folder_of_any_name_is_named_in_one_line(tmp_path):
    for kind in ("folder", "zip", "npz"):
        with pytest.raises(InputError) as caught:
            data.load(f"{kind}:{tmp_path}/\x1b[2J\nnothing \udcff here")
        assert str(caught.value).isprintable()


def test_the_end_of_a_name_says_nothing_of_what_is_in_it(tmp_path):
    (tmp_path / "a.jpg").write_bytes(GREY)
    (tmp_path / "b.gif").write_bytes(GREY)
    assert len(data.load(f"folder:{tmp_path}").images) == 2
    (tmp_path / "c.png").write_text("These are words.\n" * 100)
    (tmp_path / "d.png").write_bytes(b"")
    (tmp_path / "e.png").write_bytes(GREY[:20])
    lines = bad_lines(f"folder:{tmp_path}")
    assert lines[0].startswith(f"folder:{tmp_path}: 3 of 5 image files cannot be used")
    assert [line.split(": ")[0] for line in lines[1:]] == ["  c.png", "  d.png", "  e.png"]


def gone(path):
    path.unlink()


def longer(path):
    path.write_bytes(GREY + bytes(9))


def other_pixels(path):
    path.write_bytes(png_bytes(np.zeros((4, 4), np.uint8)))
    os.utime(path, ns=(1, 1))


def a_pipe(path):
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (gone, "No such file or directory"),
        (longer, "it changed after it was listed"),
        (other_pixels, "it changed after it was listed"),
        (a_pipe, "it changed after it was listed"),
    ],
)
def test_a_file_that_changes_after_it_was_listed_is_named(tmp_path, change, reason):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(GREY)
    files = image_files.open_folder(str(tmp_path))
    change(tmp_path / "b.png")
    bad, _ = decoding.decode_all(files, np.zeros((2, 4, 4, 1), np.uint8), verbose=False)
    assert bad == {"b.png": reason}


def test_a_zip_that_is_cut_after_it_was_listed_is_named(tmp_path):
    write_zip(tmp_path / "a.zip", {"a.png": GREY, "b.png": GREY})
    files = image_files.open_zip(str(tmp_path / "a.zip"))
    os.truncate(tmp_path / "a.zip", 60)
    bad, _ = decoding.decode_all(files, np.zeros((2, 4, 4, 1), np.uint8), verbose=False)
    assert list(bad) == ["a.png", "b.png"] and all("\n" not in reason for reason in bad.values())


# What is left out is counted.


def picture(extension):
    stream = io.BytesIO()
    image = Image.new("L", (4, 4), 255 if extension == "pbm" else 200)
    form = {"jpg": "JPEG", "jp2": "JPEG2000", "tga": "TGA", "pbm": "PPM", "mpo": "MPO"}.get(extension, extension)
    image.convert("RGB" if extension == "qoi" else "1" if extension == "pbm" else "L").save(stream, form)
    return stream.getvalue()


@pytest.mark.parametrize("extension", ["avif", "AVIF", "jp2", "qoi", "tga", "pcx", "sgi", "pbm", "mpo", "Tiff"])
@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_what_pillow_reads_is_read(tmp_path, kind, extension, capsys):
    files = {"1.png": picture("png"), f"2.{extension}": picture(extension.lower())}
    if kind == "zip":
        write_zip(tmp_path / "a.zip", files)
        loaded = data.load(f"zip:{tmp_path}/a.zip", channels=1)
    else:
        for name, content in files.items():
            (tmp_path / name).write_bytes(content)
        loaded = data.load(f"folder:{tmp_path}", channels=1)
    assert len(loaded.images) == 2 and np.ptp(loaded.images[0]) == 0
    assert abs(int(loaded.images[1].mean()) - (255 if extension == "pbm" else 200)) <= 2
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_files_left_out_are_counted_in_a_line(tmp_path, kind, capsys):
    names = ["a.txt", "b.TXT", "c.heic", "README", "d.eps", ".DS_Store", "Thumbs.db", "desktop.ini"]
    files = {"1.png": GREY, **dict.fromkeys(names, b"x")}
    if kind == "zip":
        write_zip(tmp_path / "a.zip", files | {"__MACOSX/1.png": b"x"})
        spec = f"zip:{tmp_path}/a.zip"
    else:
        spec = f"folder:{tmp_path}"
        for name, content in files.items():
            (tmp_path / name).write_bytes(content)
    assert len(data.load(spec).images) == 1
    kinds = "2 .txt, 1 without a suffix, 1 .eps, 1 .heic (this Pillow cannot read it)"
    assert capsys.readouterr().err == f"{spec}: 5 files left out: {kinds}\n"


def test_a_format_without_a_signature_is_believed_by_its_suffix_only(tmp_path):
    (tmp_path / "1.png").write_bytes(picture("tga"))
    assert "1.png: not a readable image" in bad_lines(f"folder:{tmp_path}")[1]


def test_every_suffix_is_pillows_name_for_a_decoder_that_stays_in_the_process():
    Image.init()
    registered = {suffix[1:]: name for suffix, name in Image.registered_extensions().items()}
    for name in image_files.FORMATS:
        assert name in Image.OPEN
        for suffix in image_files._SUFFIXES[name]:
            assert registered[suffix] == name or suffix == "mpo"  # several JPEG pictures in a file
    assert not {"EPS", "WMF", "MPEG", "HDF5", "GRIB", "BUFR"} & set(image_files.FORMATS)
