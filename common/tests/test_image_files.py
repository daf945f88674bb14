"""Images are read whole or refused; palette PNGs give indices."""

import io
import pickle
import struct
import zlib

from common.images.read import ImageError, read_image, read_label, read_size

import cv2
import numpy as np
import pytest
from PIL import Image

RGB = np.random.default_rng(0).integers(0, 256, (30, 50, 3), dtype=np.uint8)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"exif": b"Exif\0\0" + b"\xff\xd9" * 40}])
def test_jpeg_sizes_and_truncation(tmp_path, options):
    path = tmp_path / "a.jpg"
    Image.fromarray(RGB).save(path, quality=95, **options)
    whole = path.read_bytes()
    assert read_size(path) == (30, 50)
    assert read_image(path).shape == (30, 50, 3)
    for keep in (0.99, 0.9, 0.5, 0.2, 0.01):
        path.write_bytes(whole[: int(len(whole) * keep)])
        with pytest.raises(ImageError, match="truncated"):
            read_image(path)
    path.write_bytes(whole + b"what some cameras append")
    assert read_image(path).shape == (30, 50, 3)


def test_pngs_and_truncation(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(RGB).save(path)
    whole = path.read_bytes()
    assert read_size(path) == (30, 50)
    np.testing.assert_array_equal(read_image(path), RGB)
    for end in (20, len(whole) // 2, len(whole) - 12, len(whole) - 4):
        path.write_bytes(whole[:end])
        with pytest.raises(ImageError, match=r"a\.png: (truncated|damaged)"):
            read_image(path)
    middle = len(whole) // 2
    path.write_bytes(whole[:middle] + bytes(40) + whole[middle + 40 :])
    with pytest.raises(ImageError, match="damaged"):
        read_image(path)


def test_other_files(tmp_path):
    for name, data, message in (
        ("empty.png", b"", "empty"),
        ("text.png", b"not an image", "not an image"),
        ("short.jpg", b"\xff\xd8\xff", "truncated"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ImageError, match=message):
            read_image(tmp_path / name)
        with pytest.raises(ImageError, match=message):
            read_size(tmp_path / name)
    with pytest.raises(ImageError, match="no such file"):
        read_label(tmp_path / "nothing.png")
    bmp = tmp_path / "a.bmp"
    Image.fromarray(RGB).save(bmp)
    assert read_size(bmp) == (30, 50)


def test_a_header_that_claims_too_much_is_refused_before_decoding(tmp_path):
    path = tmp_path / "bomb.png"
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    for read in (read_image, read_label, read_size):
        with pytest.raises(ImageError, match="claims 100000x100000 pixels"):
            read(path)


def test_a_long_exif_before_the_size(tmp_path):
    path = tmp_path / "a.jpg"
    Image.fromarray(RGB).save(path)
    data = path.read_bytes()
    segment = b"\xff\xe5" + struct.pack(">H", 60_000) + bytes(59_998)
    path.write_bytes(data[:2] + segment * 3 + data[2:])
    assert read_size(path) == (30, 50)


def test_orientation_is_not_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.fromarray(RGB).save(tmp_path / "a.jpg", exif=exif)
    assert cv2.imread(str(tmp_path / "a.jpg")).shape[:2] == (50, 30)
    assert read_image(tmp_path / "a.jpg").shape[:2] == read_size(tmp_path / "a.jpg") == (30, 50)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palette_and_grey_files_give_the_same_ids(tmp_path, bits):
    ids = np.random.default_rng(bits).integers(0, 2**bits, (20, 37), dtype=np.uint8)
    if bits == 8:
        ids[0, :2] = 0, 255
    image = Image.fromarray(ids, mode="P")
    image.putpalette(list(range(255, -1, -1)) * 3)
    image.save(tmp_path / "p.png", bits=bits, transparency=0)
    cv2.imwrite(str(tmp_path / "grey.png"), ids)
    np.testing.assert_array_equal(read_label(tmp_path / "p.png"), ids)
    np.testing.assert_array_equal(read_label(tmp_path / "grey.png"), ids)
    (tmp_path / "p.png").write_bytes((tmp_path / "p.png").read_bytes()[:-20])
    with pytest.raises(ImageError):
        read_label(tmp_path / "p.png")


def test_wide_and_coloured_labels_are_handed_over_as_they_are(tmp_path):
    cv2.imwrite(str(tmp_path / "wide.png"), np.full((3, 4), 1000, np.uint16))
    assert read_label(tmp_path / "wide.png").dtype == np.uint16
    cv2.imwrite(str(tmp_path / "colour.png"), np.zeros((3, 4, 3), np.uint8))
    assert read_label(tmp_path / "colour.png").shape == (3, 4, 3)


def test_the_error_travels_between_processes():
    error = pickle.loads(pickle.dumps(ImageError("a.png", "damaged")))
    assert (str(error), error.reason) == ("a.png: damaged", "damaged")


@pytest.mark.parametrize("channels", [4, 6])
def test_channels_besides_rgb_are_refused(tmp_path, channels):
    """OpenCV takes the fourth of a TIFF for alpha, multiplies by it, and leaves out the others."""
    stream = io.BytesIO()
    Image.fromarray(np.full((4, 5, 4), 100, np.uint8), "RGBA").save(stream, "TIFF")
    data = stream.getvalue()
    count = data.index(struct.pack("<HHI", 277, 3, 1)) + 8
    (tmp_path / "infrared.tif").write_bytes(data[:count] + bytes([channels]) + data[count + 1 :])
    with pytest.raises(ImageError, match=rf"infrared\.tif: {channels} channels in a TIFF; networks here see RGB"):
        read_image(tmp_path / "infrared.tif")


def test_a_cmyk_tiff_is_an_image(tmp_path):
    Image.fromarray(np.full((4, 5, 4), (0, 0, 0, 55), np.uint8), "CMYK").save(tmp_path / "print.tif")
    assert (read_image(tmp_path / "print.tif") == 200).all()


def packed_rows(bits, values):
    """Rows of samples of `bits` bits, each row filled up to whole bytes."""
    rows = []
    for row in values:
        text = "".join(f"{int(value):0{bits}b}" for value in row)
        text += "0" * (-len(text) % 8)
        rows.append(int(text, 2).to_bytes(len(text) // 8, "big"))
    return rows


def bmp_bytes(bits, values, palette):
    """A BMP written by hand from its specification (BITMAPINFOHEADER, uncompressed, from the bottom row up)."""
    rows = [row + b"\0" * (-len(row) % 4) for row in packed_rows(bits, values)][::-1]
    colors = b"".join(bytes((blue, green, red, 0)) for red, green, blue in palette)
    start, data = 54 + len(colors), b"".join(rows)
    info = struct.pack("<IiiHHIIiiII", 40, *values.shape[::-1], 1, bits, 0, len(data), 0, 0, len(palette), 0)
    return b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start) + info + colors + data


def tiff_bytes(bits, values, photometric, palette=()):
    """A little-endian TIFF of one strip, written by hand from its specification."""
    data = b"".join(packed_rows(bits, values))
    height, width = values.shape
    entries = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1)]
    entries += [(278, height), (279, len(data))]
    directory = 8 + len(data)
    ends = directory + 2 + 12 * (len(entries) + bool(palette)) + 4
    fields = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    tail = b""
    if palette:
        fields += struct.pack("<HHII", 320, 3, 3 * len(palette), ends)
        tail = b"".join(struct.pack("<H", 257 * color[channel]) for channel in range(3) for color in palette)
    count = struct.pack("<H", len(entries) + bool(palette))
    return b"II*\0" + struct.pack("<I", directory) + data + count + fields + struct.pack("<I", 0) + tail


GREYS = {
    "as values": lambda count: [(i, i, i) for i in range(count)],
    "spread": lambda count: [(255 * i // (count - 1),) * 3 for i in range(count)],
    "turned": lambda count: [(255 - 255 * i // (count - 1),) * 3 for i in range(count)],
    "colours": lambda count: [(7 * i % 256, 255 - i, i % 3) for i in range(count)],
}


@pytest.mark.parametrize("palette", GREYS)
@pytest.mark.parametrize("bits", [1, 4, 8])
def test_a_bmp_label_gives_its_indices_whatever_its_palette(bits, palette, tmp_path):
    values = (np.arange(35).reshape(5, 7) * 3 % 2**bits).astype(np.uint8)
    (tmp_path / "l.bmp").write_bytes(bmp_bytes(bits, values, GREYS[palette](2**bits)))
    label = read_label(tmp_path / "l.bmp")
    assert label.dtype == np.uint8
    np.testing.assert_array_equal(label, values)


@pytest.mark.parametrize("colors", [2, 3, 200])
def test_a_short_palette_leaves_the_pixels_alone(colors, tmp_path):
    values = (np.arange(35).reshape(5, 7) % 2).astype(np.uint8)
    (tmp_path / "l.bmp").write_bytes(bmp_bytes(8, values, [(i, i, i) for i in range(colors)]))
    np.testing.assert_array_equal(read_label(tmp_path / "l.bmp"), values)


def test_the_oldest_bmp_header(tmp_path):
    values = (np.arange(35).reshape(5, 7) % 16).astype(np.uint8)
    rows = [row + b"\0" * (-len(row) % 4) for row in packed_rows(4, values)][::-1]
    colors, data = b"".join(bytes((i, i, i)) for i in range(16)), b"".join(rows)
    header = struct.pack("<IHHHH", 12, 7, 5, 1, 4)  # BITMAPCOREHEADER: colours of 3 bytes
    start = 14 + 12 + len(colors)
    whole = b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start) + header + colors + data
    (tmp_path / "l.bmp").write_bytes(whole)
    np.testing.assert_array_equal(read_label(tmp_path / "l.bmp"), values)


@pytest.mark.parametrize("palette", [None, *GREYS])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_tiff_label_gives_its_values_or_indices(bits, palette, tmp_path):
    values = (np.arange(35).reshape(5, 7) * 3 % 2**bits).astype(np.uint8)
    data = tiff_bytes(bits, values, 1) if palette is None else tiff_bytes(bits, values, 3, GREYS[palette](2**bits))
    (tmp_path / "l.tif").write_bytes(data)
    label = read_label(tmp_path / "l.tif")
    assert label.dtype == np.uint8
    np.testing.assert_array_equal(label, values)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_tiff_that_runs_from_white_is_refused_as_a_label(bits, tmp_path):
    values = (np.arange(35).reshape(5, 7) % 2**bits).astype(np.uint8)
    (tmp_path / "l.tif").write_bytes(tiff_bytes(bits, values, 0))
    with pytest.raises(ImageError, match=r"l\.tif: a TIFF whose values run from white .* as PNG"):
        read_label(tmp_path / "l.tif")


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif"])
def test_masks_of_one_bit_are_zero_and_one(suffix, tmp_path):
    mask = np.arange(35).reshape(5, 7) % 3 == 0
    Image.fromarray(mask).save(tmp_path / f"m.{suffix}")
    np.testing.assert_array_equal(read_label(tmp_path / f"m.{suffix}"), mask.astype(np.uint8))


@pytest.mark.parametrize("values", [np.zeros((4, 5), np.float32), np.zeros((4, 5), np.int32)])
def test_images_of_32_bits_are_named(values, tmp_path):
    Image.fromarray(values).save(tmp_path / "i.tif")
    with pytest.raises(ImageError, match=r"i\.tif: (floating-point|32-bit) samples; networks here see 8 bits"):
        read_image(tmp_path / "i.tif")


@pytest.mark.parametrize("kind", ["bmp", "tif"])
@pytest.mark.parametrize("kept", [0.3, 0.7])
def test_a_cut_palette_label_is_refused(kind, kept, tmp_path):
    values = (np.arange(350).reshape(50, 7) % 16).astype(np.uint8)
    palette = GREYS["colours"](16)
    data = bmp_bytes(4, values, palette) if kind == "bmp" else tiff_bytes(4, values, 3, palette)
    (tmp_path / f"l.{kind}").write_bytes(data[: int(kept * len(data))])
    with pytest.raises(ImageError, match=rf"l\.{kind}"):
        read_label(tmp_path / f"l.{kind}")
