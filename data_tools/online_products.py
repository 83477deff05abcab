"""Stanford Online Products. Oh Song, Xiang, Jegelka, Savarese: Deep Metric Learning via Lifted Structured Feature
Embedding, CVPR 2016.

Ebay_train.txt and Ebay_test.txt list pictures, numbered on from one file into the other. A class is an item of eBay,
whose number begins the names of its pictures; they lie in the folder of its super class.
"""

from collections.abc import Iterator
from pathlib import Path

from .replicas import online_products as replica
from .source import Converted, Dataset, Options, Replica, check_there, find, lines, whole, wrong

HEADER = "image_id class_id super_class_id path"
LISTS = (("train", "Ebay_train.txt"), ("test", "Ebay_test.txt"))


def convert(root: Path, options: Options) -> Converted:
    import pandas as pd

    lists = find(root, "Stanford Online Products", "Ebay_train.txt", "Info_Files/Ebay_train.txt").parent
    repacked = lists.name == "Info_Files"
    base, prefix = (lists.parent, "images/") if repacked else (lists, "")
    rows: list[tuple[str, int, int, str]] = []
    listed: list[tuple[Path, int]] = []
    read = [lists / name for _, name in LISTS]
    items, folders = _OneToOne("class", "item"), _OneToOne("super class", "folder")
    lines_of: dict[str, tuple[Path, int]] = {}
    for (split, _), file in zip(LISTS, read, strict=True):
        for line, image, label, kind, path in _listed(file):
            if image != len(rows) + 1:
                raise wrong(file, line, f"image {image}, expected {len(rows) + 1}: ids run on without a gap.")
            if path in lines_of:
                raise wrong(file, line, f"{path} is there already, in {_in_words(lines_of[path])}.")
            folder, _, name = path.rpartition("/")
            items.add(label, name.rpartition("_")[0], (file, line))
            folders.add(kind, folder, (file, line))
            lines_of[path] = (file, line)
            listed.append((file, line))
            rows.append((prefix + path, label, kind, split))
    table = pd.DataFrame(rows, columns=["path", "label", "super_label", "split"])
    notes = check_there(base, table["path"].tolist(), lambda i: _in_words(listed[i]))
    return Converted(
        table,
        "Info_Files and images" if repacked else "Ebay_train.txt and Ebay_test.txt beside the pictures",
        base,
        read,
        super_names={int(kind): str(folder).removesuffix("_final") for kind, (folder, _) in folders.second_of.items()},
        notes=notes,
    )


class _OneToOne:
    """Values of two kinds that belong together, and where that was said first."""

    def __init__(self, first: str, second: str) -> None:
        self.names = (first, second)
        self.second_of: dict[int | str, tuple[int | str, tuple[Path, int]]] = {}
        self.first_of: dict[int | str, tuple[int | str, tuple[Path, int]]] = {}

    def add(self, first: int, second: str, place: tuple[Path, int]) -> None:
        """Raises InputError where one of them goes with another."""
        known, where = self.second_of.setdefault(first, (second, place))
        if known != second:
            raise self._differs(self.names, (first, second, known), place, where)
        other, where = self.first_of.setdefault(second, (first, place))
        if other != first:
            raise self._differs(self.names[::-1], (second, first, other), place, where)

    def _differs(
        self, names: tuple[str, str], values: tuple[int | str, int | str, int | str], place: tuple[Path, int],
        where: tuple[Path, int],
    ) -> Exception:  # fmt: skip
        (one, two), (key, here, there) = names, values
        return wrong(*place, f"{one} {key} has {two} {here} here, but {two} {there} in {_in_words(where)}.")


def _listed(file: Path) -> Iterator[tuple[int, int, int, int, str]]:
    """The number of each line, and its ids of picture, class and super class, and its path."""
    first, *others = lines(file)
    if first.split() != HEADER.split():
        raise wrong(file, 1, f"'{first}'; expected '{HEADER}'.")
    for number, line in enumerate(others, start=2):
        fields = line.split(" ")
        if len(fields) != 4 or not fields[3]:
            raise wrong(file, number, f"'{line}' is not {HEADER}.")
        image, label, kind = (whole(text, file, number, "id") for text in fields[:3])
        yield number, image, label, kind, fields[3]


def _in_words(place: tuple[Path, int]) -> str:
    return f"{place[0]}, line {place[1]}"


DATASET = Dataset(
    "Stanford Online Products",
    get="ftp://cs.stanford.edu/cs/cvgl/Stanford_Online_Products.zip (3.1 GB)",
    terms="no licence is stated for the pictures, which are from sellers on eBay",
    counts={"train": {"images": 59551, "labels": 11318}, "test": {"images": 60502, "labels": 11316}},
    convert=convert,
    replica=Replica(replica.write, replica.LAYOUTS),
    archives={"Stanford_Online_Products.zip": "7f73d41a2f44250d4779881525aea32e"},
    files={
        "111265328556_0.JPG": "77420a4db9dd9284378d7287a0729edb",
        "111182689872_0.JPG": "ce78d10ed68560f4ea5fa1bec90206ba",
        "111194782300_0.JPG": "8203e079b5c134161bbfa7ee2a43a0a1",
        "111157129195_0.JPG": "d6c24ee8c05d986cafffa6af82ae224e",
    },
)
