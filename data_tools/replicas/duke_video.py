"""DukeMTMC-VideoReID in small, with names of its later or its first release; queries are in the gallery too."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .persons import person
from .products import save

if TYPE_CHECKING:
    import pandas as pd

LAYOUTS = ("later_names", "first_names")
PEOPLE = 4  # in each half, at size 1


def write(root: Path, layout: str, size: int) -> "pd.DataFrame":
    import pandas as pd

    train, query, gallery = [], [], []  # (label, tracklet of that person, camera)
    for count in range(PEOPLE * size):
        for number in (1, 2):
            train.append((2 * count + 1, number, 1 + (count + 3 * number) % 8))
            gallery.append((2 * count + 2, number, 1 + (count + 5 * number) % 8))
        query.append(gallery[-1])
    gallery += [(9001 + count, 1, 1 + count % 8) for count in range(2 * size)]
    rows: list[tuple[Any, ...]] = []
    tracklet = 0
    for part, told in (("train", train), ("query", query), ("gallery", sorted(gallery))):
        for label, number, camera in told:
            above = part if layout == "later_names" else f"{part}_split"
            folder = f"{above}/{label:04d}/{number:04d}"
            first = 2 if number == 2 else 1
            length = 3 + (label + number) % 3
            start = 1000 * label + 100 * number
            for frame in range(first, first + length):
                parts = (f"{label:04d}", f"C{camera}", f"F{frame:04d}", f"X{start + 12 * frame}")
                name = ("_" if layout == "later_names" else "").join(parts) + ".jpg"
                save(person(label, camera, number, frame), root / folder / name)
                roles = ("train" if part == "train" else "test", part == "query", part == "gallery", label > 9000)
                rows.append((f"{folder}/{name}", label, *roles, camera, tracklet, frame))
            tracklet += 1
    columns = ["path", "label", "split", "is_query", "is_gallery", "is_distractor", "camera", "tracklet", "frame"]
    return pd.DataFrame(rows, columns=columns)
