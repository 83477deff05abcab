"""Data of one's own: a folder of class folders, or a table with the columns `path` and `label`."""

from functools import partial
from pathlib import Path

from metricweight.checks import InputError
from metricweight.data import manifest
from metricweight.data.manifest import Manifest
from metricweight.data.split import split_classes

from .source import Converted, Dataset, Options, check_there

SPLIT = ("test", "validation", "order", "seed")


def convert_folder(root: Path, options: Options) -> Converted:
    """Each picture below `root/CLASS/` belongs to CLASS; labels are numbered in sorted order of the classes."""
    if root.exists() and not root.is_dir():
        raise InputError(f"--root {root} is a file; for a table: metricweight prepare csv --root {root}")
    whole = manifest.read(root)
    used = {path.split("/")[0] for path in whole.table["path"]}
    empty = sorted(path.name for path in root.iterdir() if path.is_dir() and path.name not in used)
    loose = sorted(path.name for path in root.iterdir() if path.suffix.lower() in manifest.SUFFIXES)
    notes = [f"{len(empty):,} folders hold no pictures, such as {empty[0]}."] if empty else []
    notes += [f"{len(loose):,} pictures lie in no class folder and are left out, such as {loose[0]}."] if loose else []
    return _split(whole, "class folders", notes, options)


def convert_csv(root: Path, options: Options) -> Converted:
    """A .csv or .parquet with `path` and `label`, and other columns of a manifest where they are known."""
    if root.is_dir():
        raise InputError(f"--root {root} is a folder; for class folders: metricweight prepare folder --root {root}")
    if manifest.sidecar(root).exists():
        raise InputError(f"{root} is a manifest already; metricweight data {root} shows and filters it.")
    whole = manifest.read(root)
    notes = check_there(whole.root, whole.table["path"].tolist(), partial(manifest.place, root))
    return _split(whole, "table with path and label", notes, options, read=[root])


def _split(
    whole: Manifest, layout: str, notes: list[str], options: Options, read: list[Path] | None = None
) -> Converted:
    """Splits by class, unless the table has splits of its own and nothing else is asked for."""
    asked = any(getattr(options, name) is not None for name in SPLIT)
    if asked or (whole.table["split"] == "all").all():
        whole = split_classes(
            whole,
            test=0.5 if options.test is None else options.test,
            validation=options.validation or 0.0,
            order=options.order or "random",
            seed=options.seed or 0,
        )
        notes = [*notes, whole.about.history[-1] + "."]
    return Converted(whole.table, layout, whole.root, read or [], notes=notes, name=whole.about.name)


FOLDER = Dataset(
    "a folder of class folders",
    get="your own: --root DIR with DIR/CLASS/picture.jpg",
    terms="your own",
    counts={},
    convert=convert_folder,
    options=SPLIT,
)
CSV = Dataset(
    "a table of pictures",
    get="your own: --root FILE.csv with the columns path and label",
    terms="your own",
    counts={},
    convert=convert_csv,
    options=SPLIT,
)
