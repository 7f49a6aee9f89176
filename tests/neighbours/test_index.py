"""Search in an index, against a naive search, and indexes that no longer fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import photo_folder, tiny_network
from PIL import Image

from resnext import Card, Preprocessing, ResNeXt, save
from resnext.data.open import open_splits
from resnext.data.passed_over import PassedOver
from resnext.errors import CheckpointError, DataError, InputError, MissingFileError
from resnext.inference import open_runner
from resnext.neighbours import Index, build_index, open_index
from resnext.neighbours import build as building
from resnext.neighbours.file import IndexFile, UnfinishedIndex, single
from resnext.neighbours.model_files import index_path, model_digest
from resnext.neighbours.photos import open_photos
from resnext.system.progress import reporter

LABELS = ("ant", "bee")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes of ten pictures."""
    rng = np.random.default_rng(0)
    for k, label in enumerate(LABELS):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for i in range(10):
            image = rng.integers(0, 120, (20 + i, 30, 3), dtype=np.uint8)
            image[..., k] += 100
            Image.fromarray(image).save(tmp_path / "photos" / label / f"{i}.png")
    return tmp_path / "photos"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A model file."""
    save(network(), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def network() -> ResNeXt:
    """A network for the pictures."""
    return tiny_network(card=Card(LABELS, Preprocessing(16, 16)))


def build(file: Path, photos: Path, stop: int | None = None) -> Path:
    """Index the photos; with `stop`, interrupted before that batch."""
    runner = open_runner(file)
    runner.batch = 4  # pyright: ignore[reportAttributeAccessIssue]
    images, _ = open_photos(photos, runner.card or Card(), PassedOver())
    calls = iter(range(1000))

    def check_stop() -> None:
        if next(calls) == stop:
            raise KeyboardInterrupt

    out, digest = index_path(file), model_digest(file)
    build_index(runner, images, out, model=digest, progress=reporter(False), check_stop=check_stop)
    return out


def naive(file: Path, photos: Path, query: Path) -> list[tuple[str, float]]:
    """All photos by cosine distance, computed one by one in double precision."""
    runner = open_runner(file)
    embed = Index.embed

    def vector(path: Path) -> np.ndarray:
        x = embed(Index(IndexFile(index_path(file)), LABELS, runner), path).astype(np.float64)
        return x / np.linalg.norm(x)

    paths = sorted(photos.rglob("*.png"))
    near = [(1 - float(vector(path) @ vector(query)), str(path)) for path in paths]
    return [(path, distance) for distance, path in sorted(near)]


def test_search_agrees_with_a_naive_one(file: Path, photos: Path) -> None:
    """Blocks, half precision or a wrong order of names would show here."""
    build(file, photos)
    index = open_index(file)
    query = photos / "bee" / "3.png"
    wanted = naive(file, photos, query)
    found = index.search(query, 20)
    distances = [one.distance for one in found]
    np.testing.assert_allclose(distances, [distance for _, distance in wanted], atol=1e-4)
    np.testing.assert_allclose(distances, [dict(wanted)[x.name] for x in found], atol=1e-4)
    assert found[0].name == str(query)
    assert distances == sorted(distances)
    assert [one.label for one in found] == [Path(one.name).parent.name for one in found]
    assert index.search(index.embed(query), 3) == found[:3]
    assert index.search(np.asarray(Image.open(query)), 3) == found[:3]


def test_only_one_class_can_be_searched(file: Path, photos: Path) -> None:
    """The nearest of each of the top two classes are shown; a class may have few images."""
    build(file, photos)
    index = open_index(file)
    query = photos / "bee" / "3.png"
    ants = [one for one in index.search(query, 20) if one.label == "ant"]
    assert index.search(query, 99, label="ant") == ants
    assert len(ants) == 10
    with pytest.raises(InputError, match="'cat' is not a class"):
        index.search(query, label="cat")


def test_an_image_is_not_its_own_neighbour(
    file: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A doubtful training image is in the index itself; as many others are shown."""
    monkeypatch.chdir(photos.parent)
    build(file, Path("photos"))
    index = open_index(file)
    query = photos / "bee" / "3.png"
    embedding = index.embed(query)
    whole = index.of_classes(embedding, ["bee", "ant"], 3)
    assert [one.label for one in whole] == ["bee"] * 3 + ["ant"] * 3
    assert whole[0].name == "photos/bee/3.png"
    others = index.of_classes(embedding, ["bee", "ant"], 3, but=str(query))
    assert [one.label for one in others] == ["bee"] * 3 + ["ant"] * 3
    assert others[:2] == whole[1:3]
    assert others[3:] == whole[3:]


def test_vectors_that_do_not_fit_into_memory_are_read_in_blocks(
    file: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The result must not depend on the machine."""
    build(file, photos)
    query = photos / "ant" / "0.png"
    wanted = open_index(file).search(query)
    monkeypatch.setattr("resnext.neighbours.index.available_memory", lambda: 0)
    monkeypatch.setattr("resnext.neighbours.file._BLOCK", 7 * 2 * 128)
    found = open_index(file).search(query)
    assert [one.row for one in found] == [one.row for one in wanted]
    was = [one.distance for one in wanted]
    np.testing.assert_allclose([one.distance for one in found], was, atol=1e-6)


def test_half_precision_is_converted_exactly() -> None:
    """All 63,488 finite numbers, with their signs, against NumPy's slow conversion."""
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    finite = every[np.isfinite(every)][:, None]
    wanted = finite.astype(np.float32)
    assert (single(finite).view(np.uint32) == wanted.view(np.uint32)).all()


def test_whitened_components_have_unit_variance(file: Path, photos: Path) -> None:
    """Whitened by hand: the cosine of centred vectors in the metric of the inverse covariance."""
    build(file, photos)
    index = open_index(file, whitened=4)
    x = np.concatenate([*index.file.vectors()]).astype(np.float64)
    centred = x - x.mean(0)
    values, directions = np.linalg.eigh(centred.T @ centred / len(x))
    white = centred @ directions[:, -4:] / np.sqrt(values[-4:])
    np.testing.assert_allclose(white.var(0), 1, rtol=1e-6)
    white /= np.linalg.norm(white, axis=1, keepdims=True)
    np.testing.assert_allclose(index.similarities(x.astype(np.float32)), white @ white.T, atol=2e-3)
    with pytest.raises(InputError, match="whitened must be"):
        open_index(file, whitened=0)


def test_an_interrupted_index_is_continued(
    file: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second call must not start again, and must write the same bytes."""
    whole = build(file, photos).read_bytes()
    index_path(file).unlink()
    with pytest.raises(KeyboardInterrupt):
        build(file, photos, stop=3)
    assert not index_path(file).exists()
    part = index_path(file).with_name("model.index.part")
    with part.open("ab") as torn:
        torn.write(b"\1\2\3")  # a record that a power cut tore
    seen: list[int] = []
    decode = building._decode
    monkeypatch.setattr(
        building, "_decode", lambda images, i, p: seen.append(i) or decode(images, i, p)
    )
    assert build(file, photos).read_bytes() == whole
    assert sorted(seen) == [*range(12, 20)]
    assert not part.exists()


def test_two_runs_do_not_write_one_index(tmp_path: Path) -> None:
    """Both would write into one unfinished file, and the pictures of the index would be wrong."""
    settings = {"model": "a"}, 4, 1
    first = UnfinishedIndex(tmp_path / "m.index", *settings)
    with pytest.raises(CheckpointError, match=r"Another run is writing .*m\.index\.part"):
        UnfinishedIndex(tmp_path / "m.index", *settings)
    first.close()
    UnfinishedIndex(tmp_path / "m.index", *settings).close()


def test_an_index_begun_with_other_images_is_not_continued(file: Path, photos: Path) -> None:
    """Rows would belong to the wrong images."""
    with pytest.raises(KeyboardInterrupt):
        build(file, photos, stop=3)
    (photos / "ant" / "0.png").unlink()
    build(file, photos)
    assert len(open_index(file)) == 19
    assert open_index(file).search(photos / "bee" / "9.png")[0].distance < 1e-6


def test_building_decodes_a_few_batches_ahead(
    file: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a million photos, only a few may be in memory."""
    started: list[int] = []
    decode = building._decode
    monkeypatch.setattr(
        building, "_decode", lambda images, i, p: started.append(i) or decode(images, i, p)
    )
    images, _ = open_photos(photos, Card(LABELS), PassedOver())
    ahead = building._AHEAD + 1
    for done, batch in enumerate(building.decoded(images, Preprocessing(16, 16), 0, 2), 1):
        assert len(batch) == 2
        assert len(started) <= 2 * (done - 1 + ahead)
    assert sorted(started) == [*range(20)]


def test_the_images_of_an_index_are_those_that_were_trained_on(photos: Path) -> None:
    """What was held out fits the threshold; other data have nothing held out."""
    splits = open_splits(photos, seed=3, val_fraction=0.3)
    trained_on = {"fingerprint": splits.fingerprint, "seed": 3, "val_fraction": 0.3}
    images, val = open_photos(photos, Card(LABELS, provenance=trained_on), PassedOver())
    assert [*images.images] == [*splits.train.images]
    assert val is not None
    assert [*val.images] == [*splits.val.images]
    images, val = open_photos(photos, Card(LABELS), PassedOver())
    assert (len(images), val) == (20, None)
    split = photos.with_name("split")
    split.mkdir()
    photos.rename(split / "train")
    photo_folder(split / "val", LABELS, count=3)
    images, val = open_photos(split, Card(LABELS), PassedOver())
    assert val is not None
    assert (len(images), len(val)) == (20, 6)


def test_unreadable_images_are_left_out(file: Path, photos: Path) -> None:
    """Later rows must keep their own names and thumbnails."""
    (photos / "ant" / "4.png").write_bytes(b"no image")
    build(file, photos)
    index = open_index(file)
    assert len(index) == 19
    for path in photos.rglob("*.png"):
        if path.parent.name == "bee":
            found = index.search(path, 1)[0]
            assert (found.name, found.label) == (str(path), "bee")
            whole, small = Image.open(path).convert("RGB"), found.thumbnail
            assert small.size == whole.size
            assert np.abs(np.asarray(small, float) - np.asarray(whole, float)).mean() < 40


def test_thumbnails_are_small(file: Path, photos: Path) -> None:
    """They are shown on pages, and a million of them must fit on a disk."""
    Image.new("RGB", (400, 100), "red").save(photos / "ant" / "wide.png")
    build(file, photos)
    index = open_index(file)
    small = index.search(photos / "ant" / "wide.png", 1)[0].thumbnail
    assert small.size == (96, 24)


def test_a_new_card_keeps_the_index_and_new_weights_do_not(file: Path, photos: Path) -> None:
    """Neighbours computed with other weights would be wrong without a sign of it."""
    build(file, photos)
    same = network()
    same.card = Card(("Ameise", "Biene"), Preprocessing(16, 16), threshold=0.5)
    save(same, file)
    assert open_index(file).labels == ("Ameise", "Biene")
    same.card = Card(LABELS, Preprocessing(16, 18))
    save(same, file)
    with pytest.raises(CheckpointError, match=r"model.index was made with other weights than"):
        open_index(file)
    other = network()
    with torch.no_grad():
        other.layer2[0].conv1.weight.mul_(1.5)  # pyright: ignore
    save(other, file)
    with pytest.raises(CheckpointError, match="resnext index PHOTOS --model"):
        open_index(file)


def test_damaged_and_foreign_files_are_refused(file: Path, photos: Path) -> None:
    """One line each, that says what to do."""
    path = build(file, photos)
    whole = path.read_bytes()
    with pytest.raises(MissingFileError, match="Make it with resnext index"):
        open_index(file, path.with_name("none.index"))
    for content, problem in (
        (whole[:-100], "is damaged, or not an index"),
        (b"", "is damaged, or not an index"),
        (b"x" * 1000, "is damaged, or not an index"),
        (file.read_bytes(), "is not an index of images"),
        (whole.replace(b'\\"version\\": 2', b'\\"version\\": 1'), "another version of resnext"),
    ):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=problem) as caught:
            open_index(file)
        assert "\n" not in str(caught.value)
        assert str(path) in str(caught.value)
    header = 8 + int.from_bytes(whole[:8], "little")
    path.write_bytes(
        whole[: header + 500] + bytes([whole[header + 500] ^ 1]) + whole[header + 501 :]
    )
    with pytest.raises(CheckpointError, match="is damaged"):
        open_index(file).search(np.ones(128, np.float32))


def test_a_query_of_another_kind_is_refused(file: Path, photos: Path) -> None:
    """NaN would give an arbitrary order, another length a NumPy error."""
    build(file, photos)
    index = open_index(file)
    with pytest.raises(InputError, match=r"embeddings of length 128, not 3"):
        index.search(np.zeros(3, np.float32))
    with pytest.raises(InputError, match="NaN"):
        index.search(np.full(128, np.nan, np.float32))
    with pytest.raises(InputError, match="not int"):
        index.search(7)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="k must be"):
        index.search(np.ones(128, np.float32), 0)
    with pytest.raises(DataError, match="no such file"):
        index.search("none.jpg")


def test_an_index_is_safetensors_without_pickle(file: Path, photos: Path) -> None:
    """Any reader of safetensors can use it, and opening one executes nothing."""
    from safetensors.numpy import load_file

    tables = load_file(build(file, photos))
    assert tables["embeddings"].dtype == np.float16
    assert tables["embeddings"].shape == (20, 128)
    assert tables["targets"].tolist() == [0] * 10 + [1] * 10


def test_a_folder_without_the_models_classes_has_no_labels(file: Path, tmp_path: Path) -> None:
    """An archive sorted by year is no data set of the class 2019."""
    (tmp_path / "archive" / "2019").mkdir(parents=True)
    Image.new("RGB", (20, 20), "red").save(tmp_path / "archive" / "2019" / "a.png")
    build(file, tmp_path / "archive")
    assert [one.label for one in open_index(file).search(np.ones(128, np.float32))] == [None]


def test_a_folder_without_images_is_refused(file: Path, tmp_path: Path) -> None:
    """The message of class folders would mislead."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no image"):
        build(file, tmp_path / "empty")


@pytest.mark.parametrize(
    ("file", "index"),
    [
        ("a/m.safetensors", "a/m.index"),
        ("a/m.pth", "a/m.index"),
        ("a/m.onnx", "a/m.onnx.index"),
        ("a/m.xml", "a/m.xml.index"),
    ],
)
def test_an_exported_file_has_its_own_index(file: str, index: str) -> None:
    """It lies beside the model: it was told to overwrite the model's index with its own."""
    assert index_path(Path(file)) == Path(index)
