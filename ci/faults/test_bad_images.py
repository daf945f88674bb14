"""Images and labels that are damaged, of another kind, or make no pair: refused by name, or read as meant."""

import io
import shutil
import struct
import zlib
from pathlib import Path

from common.cli import UserError
from common.images.read import MAX_PIXELS, read_image, read_label, read_size
from common.labels import load_custom
from common.samples.list_dataset import ListDataset

import cv2
import numpy as np
import pytest
from bad_input import nothing_written, refusal, require_refusal, scratch, trained
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from targets import RESUMABLE, TARGETS, call, images, run, write_data

RGB = np.random.default_rng(0).integers(0, 256, (30, 50, 3), dtype=np.uint8)
IDS = np.random.default_rng(1).integers(0, 3, (30, 50), dtype=np.uint8)
FORMATS = {"PNG": "png", "JPEG": "jpg", "BMP": "bmp", "TIFF": "tif", "WEBP": "webp"}
SLOW = pytest.mark.slow


def encoded(pixels, kind, **options) -> bytes:
    stream = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(stream, kind, **options)
    return stream.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def claiming(kind: str, height: int, width: int) -> bytes:
    """A small file whose header claims so many pixels."""
    if kind == "PNG":
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    data = bytearray(encoded(RGB, kind, **({"lossless": True} if kind == "WEBP" else {})))
    if kind == "JPEG":
        at = data.index(b"\xff\xc0")
        data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    elif kind == "BMP":
        data[18:26] = struct.pack("<ii", width, height)
    elif kind == "TIFF":
        (at,) = struct.unpack("<I", data[4:8])
        for entry in range(at + 2, at + 2 + 12 * struct.unpack("<H", data[at : at + 2])[0], 12):
            tag = struct.unpack("<H", data[entry : entry + 2])[0]
            if tag in (256, 257):
                data[entry + 2 : entry + 12] = struct.pack("<HII", 4, 1, width if tag == 256 else height)
    else:
        sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
        data[12:12] = b"VP8X" + struct.pack("<I", 10) + bytes(4) + sides
        data[4:8] = struct.pack("<I", len(data) - 8)
    return bytes(data)


def animation(kind: str) -> bytes:
    frames = [Image.fromarray(np.full((30, 50, 3), value, np.uint8)) for value in (10, 200)]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:])


# name -> (bytes, what the message says); each is no image, whatever its file is called
NO_PICTURES = {
    "zero bytes": (b"", "the file is empty"),
    "text": (b"not an image at all\n" * 40, "not an image"),
    "a pdf called so": (b"%PDF-1.7\n" + bytes(500), "not an image"),
    "gif called so": (encoded(RGB, "GIF"), "not an image"),
    "portable map": (b"P6 50 30 255\n" + bytes(4500), "not an image"),
    "animated gif": (animation("GIF"), "not an image"),
    "animated png": (animation("PNG"), "an animation"),
    "animated webp": (animation("WEBP"), "an animation"),
    "no columns": (claiming("PNG", 30, 0), "claims 30x0 pixels"),
    "no rows": (claiming("BMP", 0, 50), "claims 0x50 pixels"),
    "half a signature": (b"\x89PNG\r\n", "not an image"),
    "a signature alone": (b"\x89PNG\r\n\x1a\n", "truncated"),
    "jpeg signature alone": (b"\xff\xd8", "truncated"),
    "bmp signature alone": (b"BM", "truncated"),
    "tiff signature alone": (b"II*\0", "truncated"),
    "webp signature alone": (b"RIFF\4\0\0\0WEBP", "truncated"),
    "tiff without sides": (b"II*\0\x08\0\0\0\0\0", "truncated"),
    "wrong checksum": (encoded(RGB, "PNG").replace(b"IDAT", b"IDAX", 1), "damaged"),
}
NO_PICTURES |= {f"30000x30000 {kind}": (claiming(kind, 30_000, 30_000), "30000x30000 pixels") for kind in FORMATS}
NO_PICTURES |= {
    f"tall {kind}": (claiming(kind, 65_000, MAX_PIXELS // 65_000 + 1), "pixels (1 to") for kind in ("PNG", "JPEG")
}

# name -> (bytes, what the message says); each is no label of three classes for an image of 30x50
NO_LABELS = {
    **{
        f"value {value}": (encoded(np.full((30, 50), value, np.uint8), "PNG"), f"{value}; it has") for value in (3, 254)
    },
    "values of another set": (encoded(IDS + 100, "PNG"), "not label values of 'squares': 100, 101, 102"),
    "one pixel wrong": (encoded(np.where(np.arange(1500).reshape(30, 50) == 777, 77, IDS), "PNG"), ": 77"),
    "16 bits beyond": (encoded(IDS.astype(np.uint16) + 300, "PNG"), "300, 301, 302"),
    "real numbers": (encoded(IDS.astype(np.float32), "TIFF"), "integers are needed"),
    "colours": (encoded(RGB, "PNG"), "one channel of ids, this has 3"),
    "colours and alpha": (encoded(np.dstack([RGB, RGB[..., 0]]), "PNG"), "one channel of ids, this has 4"),
    "grey and alpha": (encoded(Image.fromarray(RGB[..., :2].copy(), "LA"), "PNG"), "one channel of ids"),
    "one row less": (encoded(IDS[1:], "PNG"), "they must be the same size"),
    "turned": (encoded(np.ascontiguousarray(IDS.T), "PNG"), "they must be the same size"),
    "1x1": (encoded(IDS[:1, :1], "PNG"), "they must be the same size"),
    "as jpeg, blurred": (encoded(IDS * 100, "JPEG"), "not label values"),
    "zero bytes": (b"", "the file is empty"),
    "palette cut": (encoded(Image.fromarray(IDS, "P"), "PNG")[:-20], "truncated"),
    "30000x30000": (claiming("PNG", 30_000, 30_000), "30000x30000 pixels"),
}


@pytest.mark.parametrize("kind", list(NO_PICTURES))
def test_what_is_no_image_is_refused_by_every_reader(kind, tmp_path, tried):
    data, message = NO_PICTURES[kind]
    tried("an image that is none", "readers", 3)
    for suffix in ("png", "jpg", "tif"):  # what it is called makes no difference
        path = tmp_path / f"photo.{suffix}"
        path.write_bytes(data)
        for read in (read_image, read_label):
            with pytest.raises(UserError) as error:
                read(path)
            require_refusal(error.value, path, message)
    if "claims" in message or "pixels" in message:
        with pytest.raises(UserError, match="make it smaller"):
            read_size(path)


@pytest.mark.parametrize("kind", list(NO_LABELS))
def test_what_is_no_label_is_refused_with_its_pair(kind, tmp_path, tried):
    data, message = NO_LABELS[kind]
    tried("a label that is none", "pairs of a list")
    (tmp_path / "a.png").write_bytes(encoded(RGB, "PNG"))
    (tmp_path / "a_label.png").write_bytes(data)
    (tmp_path / "train.txt").write_text("a.png,a_label.png\n")
    (tmp_path / "classes.yaml").write_text("name: squares\nclasses: [one, two, three]\n")
    with pytest.raises(UserError) as error:
        ListDataset(load_custom(tmp_path / "classes.yaml"), tmp_path, "train.txt").load(0)
    require_refusal(error.value, tmp_path / "a_label.png", message)


def test_truncated_files_of_every_kind(tmp_path, tried):
    """Cut anywhere, a file is refused, or gives all of its pixels (it lost what follows them)."""
    whole = {kind: encoded(RGB, kind) for kind in FORMATS}
    paths = {kind: tmp_path / f"cut.{suffix}" for kind, suffix in FORMATS.items()}
    pixels = {}
    for kind, data in whole.items():
        paths[kind].write_bytes(data)
        pixels[kind] = read_image(paths[kind])
    seen = []

    @settings(max_examples=100, derandomize=True, deadline=None, database=None)
    @given(kind=st.sampled_from(list(FORMATS)), share=st.floats(0, 0.999))
    def cut(kind, share):
        seen.append(kind)
        paths[kind].write_bytes(whole[kind][: int(share * len(whole[kind]))])
        try:
            found = read_image(paths[kind])
        except UserError as error:
            require_refusal(error, paths[kind])
        else:
            np.testing.assert_array_equal(found, pixels[kind])

    cut()
    tried("an image cut somewhere", "readers", len(seen))


def test_damaged_bytes_of_every_kind(tmp_path, tried):
    """Whatever bytes are changed, an image comes or a refusal, never another error."""
    whole = {kind: encoded(RGB, kind) for kind in FORMATS} | {"PALETTE": encoded(Image.fromarray(IDS, "P"), "PNG")}
    path, seen = tmp_path / "damaged.png", []

    @settings(max_examples=150, derandomize=True, deadline=None, database=None)
    @given(st.sampled_from(list(whole)), st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=20))
    def damage(kind, changes):
        seen.append(kind)
        data = bytearray(whole[kind])
        for place, value in changes:
            data[int(place * place * len(data))] = value  # more often near the header
        path.write_bytes(data)
        for read in (read_image, read_label, read_size):
            try:
                read(path)
            except UserError as error:
                require_refusal(error, path)

    damage()
    tried("an image with changed bytes", "readers", len(seen))


def test_odd_images_are_read_rightly(tmp_path, tried):
    """16 bits, palette, grey, alpha, CMYK, EXIF and other names are no mistakes: the values are asserted."""
    exif = Image.Exif()
    exif[0x0112] = 6  # a viewer turns it by 90 degrees; labels are drawn on the pixels as stored
    deep = np.arange(1500, dtype=np.uint16).reshape(30, 50) * 43
    palette = Image.fromarray(RGB).quantize(200)
    grey = np.repeat(RGB[..., :1], 3, axis=2)
    cases = {
        "16-bit png": (encoded(deep, "PNG"), np.repeat((deep >> 8).astype(np.uint8)[..., None], 3, axis=2)),
        "16-bit tiff": (encoded(deep, "TIFF"), np.repeat((deep >> 8).astype(np.uint8)[..., None], 3, axis=2)),
        "palette png": (encoded(palette, "PNG"), np.asarray(palette.convert("RGB"))),
        "grey png": (encoded(RGB[..., 0], "PNG"), grey),
        "alpha png": (encoded(np.dstack([RGB, RGB[..., 0]]), "PNG"), RGB),
        "1x1 png": (encoded(RGB[:1, :1], "PNG"), RGB[:1, :1]),
        "png called jpg": (encoded(RGB, "PNG"), RGB),
        "bmp": (encoded(RGB, "BMP"), RGB),
        "webp": (encoded(RGB, "WEBP", lossless=True), RGB),
        **{f"exif {kind}": (encoded(RGB, kind, exif=exif), RGB) for kind in ("PNG", "TIFF")},
        "exif webp": (encoded(RGB, "WEBP", lossless=True, exif=exif), RGB),
    }
    for name, (data, expected) in cases.items():
        path = tmp_path / f"{name}.jpg"
        path.write_bytes(data)
        np.testing.assert_array_equal(read_image(path), expected, err_msg=name)
        assert read_size(path) == expected.shape[:2], name
    (tmp_path / "turned.jpg").write_bytes(encoded(RGB, "JPEG", quality=100, subsampling=0, exif=exif))
    (tmp_path / "cmyk.jpg").write_bytes(encoded(Image.fromarray(RGB).convert("CMYK"), "JPEG", quality=100))
    for name in ("turned.jpg", "cmyk.jpg"):
        assert np.abs(read_image(tmp_path / name).astype(int) - RGB).mean() < 4, name
    tried("an odd image, read rightly", "readers", len(cases) + 2)


def test_odd_labels_are_read_rightly(tmp_path, tried):
    exif = Image.Exif()
    exif[0x0112] = 6
    small = Image.fromarray(IDS, "P")
    small.putpalette(list(range(255, -1, -1)) * 3)
    cases = {
        "palette": encoded(small, "PNG"),
        "palette of 2 bits": encoded(small, "PNG", bits=2),
        "16 bits within": encoded(IDS.astype(np.uint16), "PNG"),
        "exif png": encoded(IDS, "PNG", exif=exif),
        "exif tiff": encoded(IDS, "TIFF", exif=exif),
        "bmp": encoded(IDS, "BMP"),
    }
    for name, data in cases.items():
        (tmp_path / "label.png").write_bytes(data)
        np.testing.assert_array_equal(read_label(tmp_path / "label.png"), IDS, err_msg=name)
    one_bit = IDS > 0
    (tmp_path / "label.png").write_bytes(encoded(one_bit, "PNG"))
    np.testing.assert_array_equal(read_label(tmp_path / "label.png"), one_bit)
    tried("an odd label, read rightly", "readers", len(cases) + 1)


# --- through the commands --------------------------------------------------------------------------------------------


def spoiled(name: str, split: str, what: str, data: bytes) -> tuple[Path, Path]:
    """A data set in which every image or label of a list is `data`; returns its root and the first such file."""
    root = scratch() / "spoiled" / name / split
    shutil.rmtree(root, ignore_errors=True)
    write_data(root)
    files = images(root, split)
    if what == "label":
        files = [root / line.split(",")[1] for line in (root / f"{split}.txt").read_text().split()]
    for file in files:
        file.write_bytes(data)
    return root, files


IMAGE = encoded(np.zeros((72, 80, 3), np.uint8), "PNG")
LABEL = np.zeros((72, 80), np.uint8)
SPOILED = {
    "cut": ("image", IMAGE[: len(IMAGE) // 2], "truncated"),
    "no image": ("image", b"nothing of the kind", "not an image"),
    "bomb": ("image", claiming("PNG", 30_000, 30_000), "30000x30000 pixels"),
    "empty": ("label", b"", "the file is empty"),
    "no class": ("label", encoded(LABEL + 77, "PNG"), ""),
    "small": ("label", encoded(LABEL[:50], "PNG"), ""),
    "colours": ("label", encoded(np.zeros((72, 80, 3), np.uint8), "PNG"), ""),
}
QUICK = ("cut", "no class")


@pytest.mark.parametrize("kind", [kind if kind in QUICK else pytest.param(kind, marks=SLOW) for kind in SPOILED])
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_training_on_a_bad_file_names_it(target, kind, tmp_path, tried):
    what, data, message = SPOILED[kind]
    root, files = spoiled(target.name, "train", what, data)
    tried(f"a bad {what} in training", target.name)
    with nothing_written(root):
        line = refusal(call(target.train(root, tmp_path, 2)), message)
    assert any(str(file) in line for file in files), line
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize("kind", [kind if kind in QUICK else pytest.param(kind, marks=SLOW) for kind in SPOILED])
@pytest.mark.parametrize("target", RESUMABLE, ids=lambda target: target.name)
def test_evaluating_a_bad_file_names_it(target, kind, tmp_path, tried):
    what, data, message = SPOILED[kind]
    run_ = trained(target)
    root, files = spoiled(target.name, "val", what, data)
    tried(f"a bad {what} in evaluation", target.name)
    with nothing_written(root, tmp_path):
        refusal(call(target.eval(run_.best, root, tmp_path)), files[0], message)


@pytest.mark.parametrize("target", RESUMABLE, ids=lambda target: target.name)
def test_labels_without_a_pixel_that_counts(target, tmp_path, tried):
    root, files = spoiled(target.name, "val", "label", encoded(LABEL + 255, "PNG"))
    tried("labels all ignored", target.name)
    with nothing_written(root, tmp_path):
        refusal(call(target.eval(trained(target).best, root, tmp_path)), files[0], "no pixel of this label counts")


@pytest.mark.parametrize("target", RESUMABLE, ids=lambda target: target.name)
def test_labels_of_one_class_are_refused_before_the_first_step(target, tmp_path, tried):
    """Masks of 0 and 255, as drawing programs save two classes: 255 is ignored, and 0 alone is always right."""
    mask = LABEL.copy()
    mask[20:40] = 255
    root, _ = spoiled(target.name, "train", "label", encoded(mask, "PNG"))
    tried("labels of one class", target.name)
    with nothing_written(root):
        outcome = call(target.train(root, tmp_path, 1))
    refusal(outcome, "nothing but 'one' (of 3 classes)", "create_dataset_list.py check")
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize("split", ["train", "val"])
def test_labels_without_a_pixel_that_counts_in_the_zoo(split, tmp_path, tried):
    """train.py says so of the labels to train on; of those to evaluate on, once what it has learnt is saved."""
    target = TARGETS[-1]
    root, files = spoiled(target.name, split, "label", encoded(LABEL + 255, "PNG"))
    tried("labels all ignored", target.name)
    with nothing_written(root):
        outcome = call(target.train(root, tmp_path, 1, "--do_eval"))
    words = (
        ("labels of the training list", "no class at all")
        if split == "train"
        else (files[0], "no pixel of this label counts")
    )
    assert "data.dataset" not in refusal(outcome, *words)
    saved = [path.name for path in tmp_path.rglob("*.safetensors")]
    assert saved == ([] if split == "train" else ["last.safetensors"])


@pytest.mark.parametrize("target", RESUMABLE, ids=lambda target: target.name)
def test_predicting_bad_images_names_them_and_keeps_what_was_there(target, tmp_path, tried):
    kinds = ("zero bytes", "text", "animated png", "30000x30000 PNG")
    tried("a bad image to predict", target.name, len(kinds))
    output = tmp_path / "out"
    for number, kind in enumerate(kinds):
        image = tmp_path / f"{number}.png"
        image.write_bytes(NO_PICTURES[kind][0])
        with nothing_written(output):
            refusal(call(target.predict(trained(target).best, image, output)), image, NO_PICTURES[kind][1])


@pytest.mark.parametrize("target", RESUMABLE, ids=lambda target: target.name)
def test_an_image_of_one_pixel(target, tmp_path, tried):
    """Trained on it is padded or enlarged; where a network cannot see it whole, it is refused by name."""
    tried("an image of 1x1", target.name, 2)
    root, files = spoiled(f"{target.name}_1x1", "val", "image", encoded(RGB[:1, :1], "PNG"))
    spoil_labels(root, encoded(LABEL[:1, :1], "PNG"))
    for number, command in enumerate(
        (
            target.eval(trained(target).best, root, tmp_path / "e"),
            target.predict(trained(target).best, files[0], tmp_path),
        )
    ):
        outcome = call(command)
        if outcome.returncode != 0:
            refusal(outcome, files[0], "1x1 pixels")
        else:
            assert target.name == "semsegpaddle_glore", (number, "only windows and pyramids of it take a pixel")


def spoil_labels(root: Path, data: bytes) -> None:
    for line in (root / "val.txt").read_text().split():
        (root / line.split(",")[1]).write_bytes(data)


@SLOW
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_in_a_process_of_its_own_the_line_is_the_last(target, tmp_path, tried):
    tried("a bad image, in a process of its own", target.name)
    root, files = spoiled(target.name, "train", "image", IMAGE[: len(IMAGE) // 2])
    outcome = run(target.train(root, tmp_path, 2), timeout=230)
    line = refusal(outcome, "truncated")
    assert any(str(file) in line for file in files)
    assert outcome.stderr.strip().splitlines()[-1] == f"error: {line}"


def test_the_bound_on_pixels_is_stated():
    assert str(MAX_PIXELS) in str(pytest.raises(UserError, read_size_of, claiming("PNG", 30_000, 30_000)).value)
    assert cv2.imdecode(np.frombuffer(IMAGE, np.uint8), cv2.IMREAD_COLOR).size < MAX_PIXELS


def read_size_of(data: bytes):
    path = scratch() / "claim.png"
    path.write_bytes(data)
    return read_size(path)
