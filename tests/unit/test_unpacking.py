import os
import stat
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from edgeopt.errors import UsageError, VerificationError
from edgeopt.publish.unpacking import check_name, pack, unpack

REGULAR = (stat.S_IFREG | 0o644) << 16
MIB = 1 << 20


def raw_zip(members: Iterable[tuple[bytes, bytes, dict[str, int]]], shared: bool = False) -> bytes:
    """A zip written byte by byte. A member: name, what lies there, and fields that say something else.

    ``shared``: all members are the first one's bytes.
    """
    body, directory, count = b"", b"", 0
    for name, data, told in members:
        field = {"flags": 0x800, "method": 0, "crc": zlib.crc32(data), "size": len(data)} | told
        offset = 0 if shared else len(body)
        common = struct.pack(
            "<HHHHIII", field["flags"], field["method"], 0, 0x21, field["crc"], len(data), field["size"]
        )
        if not (shared and body):
            body += (
                b"PK\3\4" + struct.pack("<H", 20) + common + struct.pack("<HH", len(name), 0) + name + data
            )
        directory += b"PK\1\2" + struct.pack("<HH", 0x314, 20) + common
        directory += struct.pack("<HHHHHII", len(name), 0, 0, 0, 0, field.get("mode", REGULAR), offset) + name
        count += 1
    end = b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, count, count, len(directory), len(body), 0)
    return body + directory + end


def zeros(megabytes: int) -> bytes:
    """A deflate stream of this many MiB of zeros, about a thousandth of the size."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    piece = packer.compress(bytes(MIB)) + packer.flush(zlib.Z_FULL_FLUSH)
    return piece * megabytes + packer.flush()


def everything_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.fixture
def refused(tmp_path: Path) -> Callable[[bytes], str]:
    """The reason why an archive is refused; no file of it may remain, in its folder or elsewhere."""

    def refused(content: bytes) -> str:
        archive, folder = tmp_path / "kit.zip", tmp_path / "deep" / "er" / "out"
        archive.write_bytes(content)
        folder.mkdir(parents=True)
        before = everything_below(tmp_path)
        with pytest.raises(VerificationError) as caught:
            unpack(archive, folder)
        assert everything_below(tmp_path) == before
        assert caught.value.exit_code == 1
        return caught.value.message

    return refused


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    folder = tmp_path / "kit"
    (folder / "firmware" / "src").mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    (folder / "firmware" / "model_data.c").write_text(
        "const unsigned char model[] = {" + "0x1c, " * 9999 + "};"
    )
    (folder / "firmware" / "src" / "größe.h").write_bytes(bytes(range(256)) * 512)
    (folder / "empty.txt").touch()
    (folder / "model.tflite").write_bytes(b"TFL3")
    return folder


def test_what_is_packed_comes_out_again(kit: Path, tmp_path: Path) -> None:
    pack(kit, tmp_path / "kit.zip", exclude=("model.tflite",))
    names = unpack(tmp_path / "kit.zip", tmp_path / "new" / "out")
    assert names == ["empty.txt", "firmware/model_data.c", "firmware/src/größe.h", "manifest.json"]
    for name in names:
        copy = tmp_path / "new" / "out" / name
        assert copy.read_bytes() == (kit / name).read_bytes()
        assert not copy.stat().st_mode & 0o111
    assert (tmp_path / "kit.zip").stat().st_size < 6000


def test_the_same_files_give_the_same_bytes(kit: Path, tmp_path: Path) -> None:
    pack(kit, tmp_path / "a.zip")
    os.utime(kit / "manifest.json", (1, 1))
    (kit / "manifest.json").chmod(0o600)
    copy = tmp_path / "copy"
    for name in reversed(everything_below(kit)):
        if (kit / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((kit / name).read_bytes())
    pack(copy, tmp_path / "b.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.testzip() is None
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_packing_refuses_what_could_not_be_unpacked(kit: Path, tmp_path: Path) -> None:
    (kit / "link").symlink_to("manifest.json")
    with pytest.raises(UsageError, match="link cannot be packed: it is a link"):
        pack(kit, tmp_path / "kit.zip")
    (kit / "link").unlink()
    (kit / "MANIFEST.json").touch()
    with pytest.raises(UsageError, match=r"is the same file as 'MANIFEST\.json' on some systems"):
        pack(kit, tmp_path / "kit.zip")
    assert not (tmp_path / "kit.zip").exists()


@pytest.mark.parametrize(
    ("name", "why"),
    [
        (b"../evil", "it is not a file name"),
        (b"a/../../evil", "it is not a file name"),
        (b"/etc/evil", "it is not a file name"),
        (b"a//b", "it is not a file name"),
        (b"./a", "it is not a file name"),
        (b"", "it is not a file name"),
        (b"C:evil", "it contains ':'"),
        (b"C:\\evil", "it contains ':'"),
        (b"a\\..\\evil", "it contains '\\\\'"),
        (b"\\\\host\\share", "it contains '\\\\'"),
        (b"a\0b", "it contains '\\x00'"),
        (b"a\nb", "it contains '\\n'"),
        (b"a*", "it contains '*'"),
        (b"src/CON", "reserved on Windows"),
        (b"aux.h", "reserved on Windows"),
        ("com¹.txt".encode(), "reserved on Windows"),
        (b"NUL .txt", "reserved on Windows"),
        (b"a./b", "Windows removes its last character"),
        (b"a ", "Windows removes its last character"),
        (b"n" * 256, "longer than 255 bytes"),
        (b"\xff\xfe", "damaged, or not a zip archive"),
    ],
)
def test_names_that_lead_elsewhere_are_refused(
    refused: Callable[[bytes], str], name: bytes, why: str
) -> None:
    assert why in refused(raw_zip([(b"good.txt", b"good", {}), (name, b"evil", {})]))


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("a.txt", "a.txt", "a.txt"),
        ("a.txt", "A.TXT", "a.txt"),
        ("straße", "STRASSE", "straße"),
        ("\u00e9.h", "e\u0301.h", "\u00e9.h"),
        ("a", "a/b", "a"),
        ("a/b", "a", "a"),
        ("A/b", "a/c", "A"),
        ("dir/a", "DIR", "dir"),
        ("dir/A/", "dir/a/b", "dir/A"),
    ],
)
def test_two_names_of_one_file_are_refused(
    refused: Callable[[bytes], str], first: str, second: str, same: str
) -> None:
    told = refused(raw_zip([(first.encode(), b"1", {}), (second.encode(), b"2", {})]))
    assert f"member {second!r} is the same file as '{same}' on some systems" in told


@pytest.mark.parametrize(
    ("mode", "what"),
    [
        (stat.S_IFLNK | 0o777, "is a link"),
        (stat.S_IFIFO | 0o644, "is neither a file nor a folder"),
        (stat.S_IFCHR | 0o644, "is neither a file nor a folder"),
        (stat.S_IFDIR | 0o755, "is neither a file nor a folder"),
    ],
)
def test_special_members_are_refused(refused: Callable[[bytes], str], mode: int, what: str) -> None:
    assert f"member 'x' {what}" in refused(raw_zip([(b"x", b"/etc/passwd", {"mode": mode << 16})]))


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ({"flags": 0x801}, "is encrypted"),
        ({"flags": 0x820}, "is a patch"),
        ({"method": 12}, "a method other than deflate"),
        ({"method": 14}, "a method other than deflate"),
        ({"crc": 1}, "Bad CRC-32"),
        ({"size": 3}, "is larger than it declares"),
        ({"size": 5}, "is smaller than it declares"),
        ({"method": 8}, "damaged, or not a zip archive"),
    ],
)
def test_members_that_are_not_what_they_say_are_refused(
    refused: Callable[[bytes], str], told: dict[str, int], why: str
) -> None:
    assert why in refused(raw_zip([(b"first", b"first", {}), (b"x", b"abcd", told)]))


def test_a_bomb_is_refused_by_what_it_says(refused: Callable[[bytes], str]) -> None:
    bomb = raw_zip([(b"zeros", zeros(1) * 1, {"method": 8, "size": 3 << 30, "crc": 0})])
    assert "it would unpack to 3.0 GiB, more than 64.0 MiB" in refused(bomb)


def test_ten_gigabytes_in_one_megabyte_are_refused(refused: Callable[[bytes], str]) -> None:
    # 1,000 MiB of zeros take 1 MB; ten members share these bytes.
    stream = zeros(1000)
    fields = {"method": 8, "size": 1000 * MIB, "crc": 0}
    bomb = raw_zip([(b"%d" % number, stream, fields) for number in range(10)], shared=True)
    assert len(bomb) < 1.1 * MIB
    assert "it would unpack to 9.8 GiB, more than" in refused(bomb)


@pytest.mark.parametrize("size", [0, 1, 1000, 20 * MIB])
def test_a_bomb_that_lies_is_stopped_where_its_lie_ends(refused: Callable[[bytes], str], size: int) -> None:
    bomb = raw_zip([(b"zeros", zeros(2000), {"method": 8, "size": size, "crc": zlib.crc32(bytes(size))})])
    tracemalloc.start()
    try:
        assert "member 'zeros' is larger than it declares" in refused(bomb)
        assert tracemalloc.get_traced_memory()[1] < 24 * MIB
    finally:
        tracemalloc.stop()


def test_members_that_share_bytes_are_refused_even_if_they_are_small(
    refused: Callable[[bytes], str],
) -> None:
    stream = zeros(4)
    fields = {"method": 8, "size": 4 * MIB, "crc": zlib.crc32(bytes(4 * MIB))}
    refused(raw_zip([(b"%d" % number, stream, fields) for number in range(4)], shared=True))


def test_members_are_counted_before_they_are_listed(tmp_path: Path) -> None:
    many = tmp_path / "many.zip"
    many.write_bytes(raw_zip((b"%d" % number, b"", {}) for number in range(101)))
    with pytest.raises(VerificationError, match="it has 101 members, more than the 100 allowed"):
        unpack(many, tmp_path / "out", files=100)
    assert not (tmp_path / "out").exists()
    assert len(unpack(many, tmp_path / "out", files=101)) == 101
    many.write_bytes(raw_zip((b"%0200d" % number, b"", {}) for number in range(500)))
    with pytest.raises(VerificationError, match="more than the 100 members allowed"):
        unpack(many, tmp_path / "new", files=100)


def test_all_files_together_have_a_limit(tmp_path: Path) -> None:
    archive = tmp_path / "two.zip"
    archive.write_bytes(raw_zip([(b"a", bytes(600), {}), (b"b", bytes(600), {})]))
    with pytest.raises(VerificationError, match=r"it would unpack to 1\.2 KiB, more than 1\.0 KiB"):
        unpack(archive, tmp_path / "out", largest=1024)
    assert unpack(archive, tmp_path / "out", largest=1200) == ["a", "b"]


@pytest.mark.parametrize(
    "damage", ["cut", "before", "behind", "comment", "empty", "text", "directory", "zip64"]
)
def test_a_damaged_archive_is_refused(refused: Callable[[bytes], str], damage: str) -> None:
    whole = raw_zip([(b"a.txt", b"content", {})])
    damaged = {
        "cut": whole[:-9],
        "before": b"#!/bin/sh\n" + whole,
        "behind": whole + b"more",
        "comment": whole[:-2] + b"\3\0abc",
        "empty": b"",
        "text": b"no archive at all, but long enough to be one",
        "directory": whole[:-10] + b"\xff\xff\xff\x7f" + whole[-6:],
        "zip64": whole[:-22] + b"PK\6\7" + bytes(16) + whole[-22:],
    }[damage]
    assert "kit.zip is refused" in refused(damaged)


def test_every_damaged_byte_is_told_or_harmless(kit: Path, tmp_path: Path) -> None:
    (kit / "firmware" / "src" / "größe.h").write_bytes(bytes(range(256)))
    (kit / "firmware" / "model_data.c").write_text("const int x = 1;")
    pack(kit, tmp_path / "kit.zip")
    whole = (tmp_path / "kit.zip").read_bytes()
    unpack(tmp_path / "kit.zip", tmp_path / "good")
    for place in range(len(whole)):
        (tmp_path / "kit.zip").write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        out = tmp_path / f"out{place}"
        try:
            names = unpack(tmp_path / "kit.zip", out)
        except VerificationError:
            assert not out.exists()
        else:
            assert all((out / name).resolve().is_relative_to(out) for name in names)


def test_a_folder_that_holds_something_is_left_alone(kit: Path, tmp_path: Path) -> None:
    pack(kit, tmp_path / "kit.zip")
    before = everything_below(kit)
    with pytest.raises(UsageError, match="not an empty folder"):
        unpack(tmp_path / "kit.zip", kit)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to("elsewhere")
    with pytest.raises(UsageError, match="not an empty folder"):
        unpack(tmp_path / "kit.zip", tmp_path / "link")
    assert everything_below(kit) == before
    assert everything_below(tmp_path / "elsewhere") == []


def test_a_disk_that_is_full_leaves_nothing_behind(kit: Path, tmp_path: Path) -> None:
    import resource

    (kit / "big").write_bytes(os.urandom(MIB))
    pack(kit, tmp_path / "kit.zip")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            unpack(tmp_path / "kit.zip", tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not (tmp_path / "out").exists()


def test_a_file_name_is_only_that() -> None:
    assert check_name("kws int8.tflite") == "kws int8.tflite"
    for name in ("../model.tflite", "a/b", "", ".", "CON", "model.", "\ud800"):
        with pytest.raises(VerificationError, match="is not an acceptable file name"):
            check_name(name)
