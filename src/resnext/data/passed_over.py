"""What is passed over in folders of images: counted by ending and reason, said in a few lines."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

_OF_SYSTEMS = {"@eadir", "#recycle", "__macosx", "lost+found", "thumbs.db", "desktop.ini"}
_OF_SYSTEMS |= {"$recycle.bin", "system volume information"}
_OF_TOOLS = {"__pycache__", "node_modules", "bower_components", "site-packages", "venv"}
_OF_TOOLS |= {"wandb", "mlruns", "lightning_logs", "tensorboard_logs"}
_LONGEST_ENDING = 12  # characters, with the dot; a longer one is part of the name
_ENDINGS_SHOWN = 5


class Reason(NamedTuple):
    """Why something is passed over."""

    one: str
    """Noun for one file or folder."""
    many: str
    """Noun for several."""
    advice: str = ""
    """What they are, or what to do, as a part of a sentence."""


def _files(advice: str) -> Reason:
    return Reason("file", "files", advice)


HIDDEN = Reason("hidden or system file or folder", "hidden or system files and folders")
LINKED_FOLDER = Reason(
    "linked folder", "linked folders", "links to folders inside a class are not followed"
)
BROKEN_LINK = Reason("broken link", "broken links")
NO_FILE = Reason("pipe or device", "pipes and devices")
NO_ENDING = Reason("file without ending", "files without ending", "name images .jpg or .png")
WITHOUT_CLASS = Reason(
    "image outside of the class folders", "images outside of the class folders", "move into a class"
)
BESIDE_SPLITS = Reason("folder beside the splits", "folders beside the splits")
NO_IMAGES = Reason("folder without images", "folders without images", "not a class")
_UNKNOWN = _files("not an image ending")
_TABLE = _files("a table is read if its own path is given")
_BY_ENDING = {
    ending: reason
    for endings, reason in (
        (".heic .heics .heif .heifs .hif", _files('pip install "resnext[heif]" to read HEIF')),
        (".avif .avifs", _files("update Pillow to read AVIF")),
        (
            ".mp4 .mov .avi .mkv .webm .m4v .mpg .mpeg .wmv .3gp .mts .m2ts .flv .ogv",
            _files("save frames of videos as images"),
        ),
        (".parquet", _TABLE),
        (".tar", _files("unpack it, or give its own path if it is a shard")),
        (".zip .gz .tgz .bz2 .xz .zst .7z .rar", _files("unpack archives")),
        (
            ".cr2 .cr3 .crw .nef .nrw .arw .sr2 .srf .dng .raf .orf .rw2 .pef .srw .raw .3fr .iiq "
            ".x3f .erf .mrw .kdc .dcr .rwl",
            _files("develop camera raw into JPEG or TIFF"),
        ),
        (
            ".svg .svgz .eps .ps .ai .pdf .wmf .emf .djvu",
            _files("render drawings and documents as PNG"),
        ),
        (
            ".jxl .psd .psb .xcf .ico .icns .cur .pcx .dds .exr .hdr .sgi .ras .xpm .jls .jxr .wdp "
            ".dcm .dicom .nii .mha .mhd .nrrd .fits .fit .czi .lif .nd2 .svs .npy .npz .mat",
            _files("not a format that is read; save as PNG or TIFF"),
        ),
    )
    for ending in endings.split()
}


def hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or is one of a system or tool by its name.

    A system leaves folders of thumbnails, a tool logs or packages, which hold images too.
    """
    lower = name.lower()
    return name.startswith(".") or lower in _OF_SYSTEMS | _OF_TOOLS or lower.endswith(".git")


@dataclass
class PassedOver:
    """Numbers of files and folders that are not read. A folder counts once, whatever it holds.

    Args:
        counts: Their numbers, by reason and ending.
        first: The first path of each reason, in alphabetical order.
    """

    counts: Counter[tuple[Reason, str]] = field(default_factory=Counter)
    first: dict[Reason, str] = field(default_factory=dict)

    def add(self, entry: os.DirEntry[str] | Path, reason: Reason | None = None) -> None:
        """Count a file or folder, for a given reason or for the one that its name shows."""
        ending = ""
        if reason is None:
            reason, ending = _reason(entry)
        self.counts[reason, ending] += 1
        path = os.fspath(entry)
        self.first[reason] = min(self.first.get(reason, path), path)

    def update(self, other: PassedOver) -> None:
        """Add what another one has counted."""
        self.counts.update(other.counts)
        for reason, path in other.first.items():
            self.first[reason] = min(self.first.get(reason, path), path)

    def __len__(self) -> int:
        return self.counts.total()

    def may_be_images(self) -> bool:
        """Whether some of it could be made images: photos of other formats, archives, links."""
        return any(reason not in (HIDDEN, NO_FILE, _UNKNOWN, _TABLE) for reason, _ in self.counts)

    def lines(self, *wanted: Reason) -> list[str]:
        """One sentence for each reason, the most frequent first; empty if nothing was passed over.

        `16 .HEIC files passed over: pip install "resnext[heif]" to read HEIF.`

        Args:
            wanted: The reasons to name; all without any.
        """
        numbers: dict[Reason, Counter[str]] = {}
        for (reason, ending), count in self.counts.items():
            if not wanted or reason in wanted:
                numbers.setdefault(reason, Counter())[ending] += count
        order = sorted(numbers, key=lambda reason: (-numbers[reason].total(), self.first[reason]))
        return [_line(reason, numbers[reason], self.first[reason]) for reason in order]


def _reason(entry: os.DirEntry[str] | Path) -> tuple[Reason, str]:
    """Why an entry of a folder is not read, and its ending if that is the reason."""
    if hidden(entry.name):
        return HIDDEN, ""
    entry = Path(entry)  # which takes links in a circle for broken ones
    if entry.is_dir():
        return LINKED_FOLDER, ""
    if not entry.is_file():
        return (NO_FILE if entry.exists() else BROKEN_LINK), ""
    ending = Path(entry.name).suffix
    if len(ending) < 2 or len(ending) > _LONGEST_ENDING or " " in ending:
        return NO_ENDING, ""
    return _BY_ENDING.get(ending.lower(), _UNKNOWN), ending


def _line(reason: Reason, numbers: Counter[str], first: str) -> str:
    total = numbers.total()
    noun = reason.one if total == 1 else reason.many
    advice = f": {reason.advice}" if reason.advice else ""
    if set(numbers) != {""}:
        line = f"{_endings(numbers)} {noun} passed over{advice}."
    else:
        example = first if total == 1 else f"such as {first}"
        line = f"{total:,} {noun} passed over, {example}{advice}."
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)


def _endings(numbers: Counter[str]) -> str:
    """Endings with their numbers, the most frequent first: "3 .txt, 1 .csv"."""
    spellings: dict[str, list[str]] = {}
    for ending in sorted(numbers):
        spellings.setdefault(ending.lower(), []).append(ending)
    counts = Counter(
        {
            found[0] if len(found) == 1 else ending: sum(numbers[spelling] for spelling in found)
            for ending, found in spellings.items()
        }
    )
    shown = counts.most_common(_ENDINGS_SHOWN)
    parts = [f"{count:,} {ending}" for ending, count in shown]
    if rest := counts.total() - sum(count for _, count in shown):
        parts.append(f"{rest:,} other")
    return ", ".join(parts)
