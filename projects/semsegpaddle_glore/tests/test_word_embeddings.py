import tracemalloc

from common.cli import UserError
from common.labels import label_set
from semsegpaddle_glore.config import CONFIG_DIR
from semsegpaddle_glore.word_embeddings import made_up_vectors, read_word_embeddings

import numpy as np
import pytest


def write(path, *lines):
    path.write_bytes("".join(f"{line}\n" for line in lines).encode())
    return path


def test_names_of_several_words_are_means(tmp_path):
    lines = ("the 9 9 9", "light 1 2 3", "traffic 3 -2 0.5", "road 1e-1 0 0", "walking 2 2 2", "person 0 0 1")
    path = write(tmp_path / "v.txt", *lines)
    vectors = read_word_embeddings(path, ["road", "traffic light", "Person-Walking", "light_road,;person"])
    assert vectors.dtype == np.float32
    expected = [[0.1, 0, 0], [2, 0, 1.75], [1, 1, 1.5], [1.1 / 3, 2 / 3, 4 / 3]]
    np.testing.assert_allclose(vectors, expected, rtol=1e-6)


def test_the_first_line_of_a_word_counts_and_other_lines_may_be_anything(tmp_path):
    # As in real files: a header, a word with a blank in it, a line that is not UTF-8, tabs, Windows line ends.
    path = tmp_path / "v.txt"
    odd = b"400000 2\nat a@b.c 1 1\n\xff\xfe 1 1\n\nroad\t1\t2\r\nroad 5 5\ncafe 1\n"
    path.write_bytes(odd + "Café 1 1\ncafé 3 4\n".encode())
    np.testing.assert_array_equal(read_word_embeddings(path, ["café", "road"]), [[3, 4], [1, 2]])


def test_missing_classes_are_one_error(tmp_path):
    path = write(tmp_path / "glove.50d.txt", "road 1 2", "light 1 2")
    with pytest.raises(UserError) as error:
        read_word_embeddings(path, ["road", "traffic light", "kerb stone"])
    assert str(error.value) == (
        f"{path} has no vector for 'traffic light' (no word 'traffic'), 'kerb stone' (no word 'kerb', 'stone'): "
        f"write the words to take instead into {tmp_path}/glove.50d.aliases.yaml, a line per class such as "
        f"'tvmonitor: tv monitor'"
    )


def test_aliases_beside_the_file(tmp_path):
    path = write(tmp_path / "v.txt", "road 1 2", "stop 3 0", "light 1 4", "potted 0 0", "plant 2 2")
    (tmp_path / "v.aliases.yaml").write_text("traffic light: stop-light\n")
    vectors = read_word_embeddings(path, ["traffic light", "pottedplant"])  # the second is known to be two words
    np.testing.assert_array_equal(vectors, [[2, 2], [1, 1]])


@pytest.mark.parametrize("text", ["- a\n", "road: 3\n", "road: '-'\n", "road: [\n"])
def test_damaged_aliases(tmp_path, text):
    path = write(tmp_path / "v.txt", "road 1 2")
    (tmp_path / "v.aliases.yaml").write_text(text)
    with pytest.raises(UserError, match="v.aliases.yaml.*(must hold a line per class|.*not valid YAML)"):
        read_word_embeddings(path, ["road"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("car 1 2", r"v.txt, line 3 \('car'\): 2 numbers, but 3 in line 1: the file is damaged"),
        ("car 1 nan 2", r"v.txt, line 3 \('car'\): not a word and finite numbers"),
        ("car 1 inf 2", r"v.txt, line 3 \('car'\): not a word and finite numbers"),
        ("car 1 two 3", r"v.txt, line 3 \('car'\): not a word and finite numbers"),
        ("car", r"v.txt, line 3 \('car'\): not a word and finite numbers"),
    ],
)
def test_damaged_lines_are_named(tmp_path, line, message):
    path = write(tmp_path / "v.txt", "road 1 2 3", "other x", line)
    with pytest.raises(UserError, match=message):
        read_word_embeddings(path, ["road", "car"])


def test_no_file(tmp_path):
    with pytest.raises(UserError, match="no word vectors .*nowhere.txt: give a file in GloVe's text format"):
        read_word_embeddings(tmp_path / "nowhere.txt", ["road"])


def test_a_large_file_needs_little_memory(tmp_path):
    path = tmp_path / "v.txt"
    numbers = " ".join(["0.123456"] * 300)
    with open(path, "w") as stream:
        for index in range(8_000):
            stream.write(f"word{index} {numbers}\n")
        stream.write(f"road {numbers}\n")
    tracemalloc.start()
    vectors = read_word_embeddings(path, ["road"])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert vectors.shape == (1, 300)
    assert path.stat().st_size > 20 * 2**20 > 20 * peak


def test_made_up_vectors_are_committed_as_they_are_made():
    names = label_set("cityscapes").class_names
    committed = CONFIG_DIR / "made_up_word_vectors.txt"
    words = sorted({word for name in names for word in name.split()})
    lines = [
        f"{word} {' '.join(f'{value:.5f}' for value in vector)}\n"
        for word, vector in zip(words, made_up_vectors(words), strict=True)
    ]
    assert committed.read_text() == "".join(lines)
    vectors = read_word_embeddings(committed, names)
    assert vectors.shape == (19, 50)
    np.testing.assert_array_equal(vectors[0], made_up_vectors(["road"])[0])
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    similarity = unit @ unit.T - np.eye(19)
    assert np.abs(similarity[np.ix_([0, 1, 2], [0, 1, 2])]).max() < 0.5  # nothing is known: all unlike
