"""`evaluate`, from files to files: what is read, which rows the table gets, who prints it."""

import warnings
from pathlib import Path
from typing import Any, NamedTuple

from metricweight.checks import InputError
from metricweight.data.embeddings import Array, Embeddings, read
from metricweight.progress import part_done, say
from metricweight.retrieval import PROTOCOLS, Expand, Report, Rerank, evaluate
from metricweight.retrieval.evaluation import Missing
from metricweight.retrieval.points import Similarity
from metricweight.retrieval.report import EvaluationWarning, markdown, save
from metricweight.training.distributed import joined, several


class Files(NamedTuple):
    """Where queries and gallery are."""

    embeddings: Path
    labels: Path | None
    label_column: str | None
    gallery: Path | None
    gallery_labels: Path | None


class Asked(NamedTuple):
    """What is asked of `retrieval.evaluate`, as words of a command line."""

    protocol: str | None
    all_protocols: bool
    ks: list[int] | None
    similarity: Similarity
    missing: Missing
    memory: str
    image_to_video: bool
    multi_query: bool
    rerank: bool
    expand: str | None
    index_kind: str | None
    index_file: Path | None
    clustering: bool
    thresholds: bool


def report(files: Files, asked: Asked, out: Path | None, json: bool) -> None:
    """Evaluates what the files hold, prints the table and writes it beside them, or to the folder `out`."""
    with joined() as processes:
        found = read(files.embeddings, files.labels, files.label_column)
        gallery = None
        if files.gallery is not None:
            gallery = read(files.gallery, files.gallery_labels, files.label_column)
        elif files.gallery_labels is not None:
            raise InputError("--gallery-labels are of a gallery; give its embeddings with --gallery.")
        if asked.image_to_video and found.query_images is None:
            raise InputError(
                f"{files.embeddings} holds no query_images, the first frame alone of each query, so --image-to-video "
                "cannot be; `metricweight embed` writes them for tracklets with queries."
            )
        images = found.query_images
        if asked.image_to_video and gallery is not None and images is not None and len(images) < len(found.embeddings):
            raise InputError(
                f"with --gallery all {len(found.embeddings):,} rows of {files.embeddings} search, but it holds "
                f"query_images of {len(images):,}; evaluate it without --gallery."
            )
        name = _name(files.embeddings)
        given = _given(found, gallery)
        table: dict[str, Report] = {}
        for protocol in _protocols(asked, found, gallery):
            row = f"{name}, {protocol}" if asked.all_protocols else name
            table |= _rows(row, given, images, protocol, asked, quiet=json or not processes.first)
        if not processes.first:
            return
        home = files.embeddings if files.embeddings.is_dir() else files.embeddings.parent
        stem = (out or home) / f"{name}.report"
        stem.parent.mkdir(parents=True, exist_ok=True)
        save(table, stem, split=found.split, source=str(files.embeddings))
        if json:
            print(Path(f"{stem}.json").read_text(encoding="utf-8"), end="")
        else:
            what = [found.what, *([] if gallery is None else [gallery.what])]
            say(f"{' '.join(what)}\n\n{markdown(table)}\n\nSaved as {stem}.md, .json, .csv, .tex and, for each query "
                f"and class, {stem}.queries.csv and {stem}.classes.csv.")  # fmt: skip


def _rows(
    name: str, given: dict[str, Any], query_images: Array | None, protocol: str, asked: Asked, quiet: bool
) -> dict[str, Report]:
    """The rows of a protocol: as it is, and, where that was asked for, by other queries, expanded and re-ranked."""

    def made(**more: Any) -> Report:
        with warnings.catch_warnings(), part_done("searching", quiet) as progress:
            warnings.simplefilter("ignore", EvaluationWarning)  # they are printed below the table
            return evaluate(
                **given | more, protocol=protocol, ks=asked.ks, similarity=asked.similarity, missing=asked.missing,
                memory=asked.memory, distributed=several(), progress=progress,
            )  # fmt: skip

    index = {"index": asked.index_kind, "index_file": asked.index_file}
    rows = {name: made(**index, clustering=asked.clustering, thresholds=asked.thresholds)}
    if asked.image_to_video:
        seen = "; ".join(filter(None, (given["seen"], "of queries the first frame alone")))
        rows[f"{name}, image-to-video"] = made(**index, query_embeddings=query_images, seen=seen)
    if asked.multi_query:
        rows[f"{name}, multi-query"] = made(**index, multi_query=True)
    if asked.expand is not None:
        rows[f"{name}, expanded"] = made(**index, expand=_expand(asked.expand))
    if asked.rerank:
        rows[f"{name}, re-ranked"] = made(rerank=Rerank())
    return rows


def _given(found: Embeddings, gallery: Embeddings | None) -> dict[str, Any]:
    given = {"embeddings": found.embeddings, "labels": found.labels, "cameras": found.cameras, "seen": found.seen}
    if gallery is None:
        return {**given, "queries": found.queries}
    if gallery.seen != found.seen:
        given["seen"] = f"{found.seen or 'not said'} (queries), {gallery.seen or 'not said'} (gallery)"
    more = {"gallery": gallery.embeddings, "gallery_labels": gallery.labels, "gallery_cameras": gallery.cameras}
    return {**given, **more}


def _protocols(asked: Asked, found: Embeddings, gallery: Embeddings | None) -> list[str]:
    """Which protocols: the one that was asked for, or all that these items allow."""
    searched = gallery is not None or found.queries is not None
    if not asked.all_protocols:
        return [asked.protocol or found.protocol or ("gallery" if searched else "self")]
    if asked.protocol is not None:
        raise InputError("--all-protocols and --protocol were both given; give one of them.")
    if not searched:
        return ["self"]
    if not all(_with_cameras(items) for items in (found, gallery) if items is not None):
        return ["gallery"]
    fitting = [name for name, rules in PROTOCOLS.items() if rules.same_camera == "left out"]
    return sorted(fitting, key=lambda name: name != found.protocol)  # that of the data comes first


def _with_cameras(items: Embeddings) -> bool:
    """Whether the camera of any item is known; where some are not known, the protocols say so."""
    if items.cameras is None:
        return False
    return items.cameras.dtype.kind not in "iu" or bool((items.cameras >= 0).any())


def _expand(word: str) -> Expand:
    k, _, alpha = word.partition(":")
    try:
        return Expand(int(k), float(alpha or 0))
    except ValueError:
        raise InputError(f"--expand is a number of neighbours, or K:ALPHA such as 10:3, got {word}.") from None


def _name(path: Path) -> str:
    return "embeddings" if path.is_dir() else path.stem
