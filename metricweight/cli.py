"""The command line. Each command calls one function; nothing heavy is loaded before it is known which."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from metricweight.checks import InputError, Interrupted, nearest

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Deep metric learning in which a loss is a direction times an example weight.",
)


@app.command()
def train(
    recipe: Annotated[
        str, typer.Argument(help="A name that `metricweight recipes` lists, or the path of a .yaml file.")
    ],
    settings: Annotated[
        list[str] | None, typer.Argument(help="Changes to the recipe, such as steps=300 loss.margin=0.3.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the run.", show_default="runs/<recipe>-<date-time>")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run that OUT holds.")] = False,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with the run that OUT holds from its last checkpoint, if it has one."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, tell what would be done, and try one batch.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON and nothing else.")] = False,
) -> None:
    """Train an embedding model, and test it on classes it has never seen.

    `metricweight train glyphs` needs no data and no GPU. `metricweight recipes glyphs` shows every setting.

    Started by `torchrun -m metricweight train ...`, all processes train one network.
    """
    from metricweight.settings import origins, read

    words = settings or []
    if dry_run:
        from metricweight.training.preflight import dry_run as tried

        tried(read(recipe, words), origins(recipe, words), json)
        return
    from metricweight.training.loop import train

    train(read(recipe, words), recipe, out, overwrite, resume, json)


@app.command()
def options(
    what: Annotated[
        str | None, typer.Argument(help="backbones, transforms, samplers, clips or fusions.", show_default="all")
    ] = None,
) -> None:
    """List what settings can name: backbones, transforms of pictures, rules by which batches and clips of tracklets are
    drawn, ways in which the frames of a tracklet become one embedding."""
    from metricweight.data import sampler, tracklets, transforms
    from metricweight.models import backbones, sets

    lists = {
        "backbones": backbones.listing,
        "transforms": transforms.listing,
        "samplers": sampler.listing,
        "clips": tracklets.listing,
        "fusions": sets.listing,
    }
    if what not in (*lists, None):
        raise InputError(
            f"'{what}' is not a list of options{nearest(what or '', lists)} There are: {', '.join(lists)}."
        )
    for name in [what] if what else lists:
        typer.echo(f"{name}\n\n{lists[name]()}\n")


@app.command()
def recipes(
    recipe: Annotated[str | None, typer.Argument(help="Show all settings of this one.")] = None,
) -> None:
    """List the recipes, or all settings of one, with what they mean."""
    from metricweight.recipes import describe, listing
    from metricweight.recipes import recipes as known

    if recipe is None:
        typer.echo(listing())
        return
    from metricweight.settings import explain, read

    settings = explain(read(recipe))
    typer.echo(f"{describe(recipe)}\n\n{settings}" if recipe in known() else settings)


@app.command()
def losses(
    loss: Annotated[str | None, typer.Argument(help="Show all of this one.")] = None,
) -> None:
    """List the losses, or show one with its formula and arguments."""
    import shutil

    from metricweight.settings import explain_loss, list_losses

    if loss is not None:
        typer.echo(explain_loss(loss))
        return
    typer.echo(list_losses(shutil.get_terminal_size().columns if sys.stdout.isatty() else None))
    typer.echo("\nmetricweight train RECIPE loss.name=NAME trains by one; metricweight losses NAME shows it.")


@app.command()
def emphasis(
    weightings: Annotated[
        list[str] | None,
        typer.Argument(help="Losses of kind example, such as imae:temperature=8 dm:mode=0.67,beta=12 cce.",
                       show_default="with --run: the loss of the run"),
    ] = None,
    run: Annotated[Path | None, typer.Option(help="Folder of a run: draw over the histogram of p in it.")] = None,
    out: Annotated[
        Path | None, typer.Option(help=".png, .svg or .pdf.", show_default="curves.png, or RUN/emphasis.png")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if there is one.")] = False,
) -> None:  # fmt: skip
    """Draw how much examples count over p, the probability of their own label."""
    from metricweight.curves import emphasis

    file, said = emphasis(weightings or [], run, out, overwrite)
    typer.echo(f"{said}\n\nDrawn in {file}.")


@app.command()
def embed(
    what: Annotated[
        str,
        typer.Argument(metavar="RUN|BACKBONE", help="Folder of a run, a checkpoint in it, or, for its features without "
                       "any training, a name that `metricweight options backbones` lists."),
    ],
    settings: Annotated[
        list[str] | None,
        typer.Argument(help="Of a backbone, such as model.pretrained=true data.size=224; of a run those by which "
                       "tracklets are judged, such as tracklets.test_fusion=max."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="glyphs, digits, a folder of class folders, a CSV with path and label, or a manifest.",
                     show_default="the data of the run"),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="train, validation, test or all.", show_default="test; all for other data"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="File to write.",
                     show_default="RUN/embeddings[-STEP][-DATA][-SPLIT].npz, BACKBONE-DATA[-SPLIT].npz"),
    ] = None,
    flip: Annotated[
        bool, typer.Option("--flip", help="The mean of each picture's and its mirror image's embedding.")
    ] = False,
    shards: Annotated[
        bool, typer.Option("--shards", help="Leave the parts in a folder OUT, which `metricweight evaluate` reads.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
) -> None:  # fmt: skip
    """Write the embeddings of pictures, by the network of a run or by a backbone as it is.

    What was stopped goes on with the same command. Started by `torchrun -m metricweight embed ...`, all share the work.
    """
    from metricweight.training.embedding import embed

    embed(what, settings or [], data, split, out, overwrite, flip, shards)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    onnx: Annotated[Path | None, typer.Option(help="File to write.", show_default="RUN/model.onnx")] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Pictures to check it on: glyphs, digits, a folder of class folders, a CSV or a manifest.",
                     show_default="the test pictures of the run"),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if there is one.")] = False,
) -> None:  # fmt: skip
    """Write the network of a run, preprocessing included, as an ONNX file that gives the same embeddings, or none."""
    from metricweight.training.export import export

    export(run, onnx, data, overwrite)


@app.command()
def quality(
    run: Annotated[Path, typer.Argument(help="Folder of a run that learned from tracklets, or a checkpoint in it.")],
    out: Annotated[Path | None, typer.Option(help="Folder for the sheets.", show_default="RUN/quality")] = None,
    split: Annotated[str | None, typer.Option(help="train or test.", show_default="both")] = None,
    tracklets: Annotated[int, typer.Option(min=1, help="How many of each split are drawn, at most.")] = 40,
    truth: Annotated[
        Path | None,
        typer.Option(help="CSV with path and columns of true and false that say what is wrong with a frame.",
                     show_default="is_noisy of the manifest, if it has noise"),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON and nothing else.")] = False,
) -> None:  # fmt: skip
    """Draw tracklets with how much each of their frames counts, and say how well bad frames come out."""
    from metricweight.training.quality import quality

    found = quality(run, out, split, tracklets, truth, overwrite, quiet=json)
    typer.echo(found.json() if json else found.text())


@app.command()
def evaluate(
    embeddings: Annotated[Path, typer.Argument(help=".npz, .npy, .csv or .parquet, or the folder of a run.")],
    labels: Annotated[
        Path | None, typer.Option(help="Labels in a file of their own: .npy, .txt, .csv or .parquet.")
    ] = None,
    label_column: Annotated[
        str | None, typer.Option(help="Column of the labels in a .csv or .parquet.", show_default="label")
    ] = None,
    gallery: Annotated[Path | None, typer.Option(help="What is searched, if not the embeddings themselves.")] = None,
    gallery_labels: Annotated[Path | None, typer.Option(help="Its labels in a file of their own.")] = None,
    protocol: Annotated[
        str | None,
        typer.Option(help="Who searches for whom: a name that `metricweight protocols` lists, or with changes "
                     "market1501:ap=step.", show_default="that of the embeddings, else self or gallery"),
    ] = None,
    all_protocols: Annotated[
        bool, typer.Option("--all-protocols", help="By each protocol that these items allow, side by side.")
    ] = False,
    ks: Annotated[
        list[int] | None,
        typer.Option(help="The K of Recall@K, as in --ks 1 2 4 8.", show_default="those of the protocol"),
    ] = None,
    similarity: Annotated[str, typer.Option(help="cosine or euclidean.")] = "cosine",
    missing: Annotated[
        str, typer.Option(help="Queries without a positive: skip, zero (they count as 0) or error.")
    ] = "skip",
    memory: Annotated[str, typer.Option(help="What may be used beyond the embeddings.")] = "1GiB",
    image_to_video: Annotated[
        bool, typer.Option("--image-to-video", help="Also with queries that are the first frame of their tracklet "
                           "alone, in a row of its own.")
    ] = False,
    multi_query: Annotated[
        bool, typer.Option("--multi-query", help="Also with queries that are the mean of all items of their label and "
                           "camera, in a row of its own.")
    ] = False,
    rerank: Annotated[
        bool, typer.Option("--rerank", help="Also k-reciprocal re-ranked, in a row of its own.")
    ] = False,
    expand: Annotated[
        str | None, typer.Option(help="Also with queries expanded by K neighbours, or K:ALPHA, in a row of its own.")
    ] = None,
    index: Annotated[
        str | None, typer.Option(help="ivf_flat, ivf_pq or hnsw: approximate, for very large galleries.")
    ] = None,
    index_file: Annotated[Path | None, typer.Option(help="The index: loaded if it is there, else saved.")] = None,
    clustering: Annotated[
        bool, typer.Option("--clustering", help="Also NMI, AMI and F1 of k-means clusters. Slow for many classes.")
    ] = False,
    thresholds: Annotated[
        bool, typer.Option("--thresholds", help="Also from which similarity on two items are called the same.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON and nothing else.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the report.", show_default="that of the embeddings")
    ] = None,
) -> None:  # fmt: skip
    """Print and save a Recall@K report of embeddings, whoever made them.

    Started by `torchrun -m metricweight evaluate ...`, each process does its share.
    """
    from metricweight.reporting import Asked, Files, report

    files = Files(embeddings, labels, label_column, gallery, gallery_labels)
    asked = Asked(
        protocol, all_protocols, ks, similarity, missing, memory,  # type: ignore[arg-type]
        image_to_video, multi_query, rerank, expand, index, index_file, clustering, thresholds,
    )  # fmt: skip
    report(files, asked, out, json)


@app.command()
def prepare(
    name: Annotated[
        str | None, typer.Argument(help="Which data set; without a name, all that are known are listed.")
    ] = None,
    root: Annotated[Path | None, typer.Option(help="Folder of the raw data, or a CSV file.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="The manifest, .csv or .parquet.", show_default="NAME.csv; REPLICA/manifest.csv")
    ] = None,
    replica: Annotated[
        Path | None, typer.Option(help="Write a tiny copy of the data set to this folder, and prepare that.")
    ] = None,
    layout: Annotated[str | None, typer.Option(help="Which form of it the replica has.")] = None,
    size: Annotated[int, typer.Option(help="How large the replica is: n times the labels.")] = 1,
    test: Annotated[
        float | None, typer.Option(help="Share of the classes to test on.", show_default="0.5")
    ] = None,
    validation: Annotated[
        float | None, typer.Option(help="Share of the other classes to validate on.", show_default="0")
    ] = None,
    order: Annotated[
        str | None, typer.Option(help="random, or given: the last classes test.", show_default="random")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the split and the folds.", show_default="0")] = None,
    fold: Annotated[
        int | None, typer.Option(help="Which of the published random splits.", show_default="1")
    ] = None,
    folds: Annotated[int | None, typer.Option(help="Number folds of the training classes, for validation.")] = None,
    allow_counts: Annotated[
        bool, typer.Option("--allow-counts", help="Go on where there is more or less than there should be.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the manifest if there is one.")] = False,
) -> None:  # fmt: skip
    """Write the manifest of a data set: a table of its pictures, labels and splits, known to be whole.

    Nothing is fetched: `metricweight prepare` says where each data set can be got, and under which terms.
    """
    from metricweight._data_tools import prepare as tools
    from metricweight._data_tools.source import Options
    from metricweight.data.manifest import check_free
    from metricweight.data.summary import text

    if name is None and (root or out or replica):
        raise InputError("say which data set: metricweight prepare NAME; without anything, all are listed.")
    if name is None:
        typer.echo(tools.listing())
        typer.echo("\nmetricweight prepare NAME --root DIR --out manifest.csv")
        return
    if (root is None) == (replica is None):
        raise InputError("give --root, where the raw data lie, or --replica, where a tiny copy may be written.")
    out = out or (replica / "manifest.csv" if replica else Path(f"{name}.csv"))
    if replica is not None:
        check_free(out, overwrite)
        tools.write_replica(name, replica, layout, size)
    elif layout is not None or size != 1:
        raise InputError("--layout and --size are of replicas; the layout of what --root holds is found by itself.")
    asked = Options(fold, test, validation, order, seed, pictures=out.parent)
    made = tools.prepare(
        name,
        root or replica,
        out,
        asked,
        folds=folds,
        allow_counts=allow_counts,
        overwrite=overwrite,
    )
    typer.echo(text(made))
    typer.echo(f"\nWritten to {out}. To look for damaged, double and doubtful pictures:\n  metricweight verify {out}")


@app.command()
def verify(
    manifest: Annotated[Path, typer.Argument(help=".csv, .parquet, or a folder of class folders.")],
    root: Annotated[
        Path | None, typer.Option(help="What its paths begin at.", show_default="what the manifest says")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="CSV file of the findings.", show_default="MANIFEST.findings.csv")
    ] = None,
    processes: Annotated[int | None, typer.Option(help="How many work at once.", show_default="one per core")] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Look at all pictures, also at those known from an earlier run.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON and nothing else.")] = False,
) -> None:
    """Look at every picture of a manifest: is it there, whole, there twice, in its box; and say what else to know.

    The exit code is 1 where there are faults. A run that was stopped goes on where it was.
    """
    from metricweight._data_tools.findings import as_json, text
    from metricweight._data_tools.verify import verify

    done = verify(manifest, root, out, processes, again)
    typer.echo(as_json(done) if json else text(done))
    if done.faults:
        raise typer.Exit(1)


@app.command()
def data(
    manifest: Annotated[Path, typer.Argument(help=".csv, .parquet, or a folder of class folders.")],
    where: Annotated[
        str | None, typer.Option(help="Rows alone for which this is true, such as \"split == 'train'\".")
    ] = None,
    root: Annotated[
        Path | None, typer.Option(help="What its paths begin at, if the pictures were moved.")
    ] = None,
    protocol: Annotated[
        str | None, typer.Option(help="By which its test half is judged from now on: see `metricweight protocols`.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write these rows to a manifest of their own.")] = None,
    accept: Annotated[
        bool, typer.Option("--accept", help="Take the table as it is, though it was changed by hand.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print counts as JSON and nothing else.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it is there.")] = False,
) -> None:  # fmt: skip
    """Say what a manifest holds: images, classes and how many images they have, by split; and filter it."""
    from metricweight.data import manifest as manifests
    from metricweight.data import summary

    if out is not None and out.resolve() == manifest.resolve():
        raise InputError(f"--out {out} is what is read; choose another, so that nothing is lost.")
    found = manifests.read(manifest, root, accept)
    if accept:
        manifests.write(found.changed(found.table, "accepted as it is"), manifest, overwrite=True)
    if where is not None:
        found = manifests.matching(found, where)
    if protocol is not None:
        from metricweight.retrieval.protocol import named

        if out is None:
            raise InputError("--protocol is written down; say where with --out NEW.csv.")
        found = found.changed(found.table, f"judged by {named(protocol).name}", protocol=protocol)
    if out is not None:
        manifests.write(found, out, overwrite)
    typer.echo(summary.as_json(found) if json else summary.text(found))
    if out is not None and not json:
        typer.echo(f"\nWritten to {out}.")


@app.command()
def noise(
    manifest: Annotated[
        Path | None, typer.Argument(help="A clean one; without it, all kinds of noise are listed.")
    ] = None,
    kind: Annotated[str | None, typer.Option(help="Which kind, such as sym_excl.")] = None,
    rate: Annotated[float | None, typer.Option(help="Share of the rows that may change, such as 0.4.")] = None,
    seed: Annotated[
        int | None, typer.Option(help="The same seed is the same noise everywhere.", show_default="0")
    ] = None,
    count: Annotated[
        str | None, typer.Option(help="exact, exact_per_class or bernoulli.", show_default="the first of the kind")
    ] = None,
    embeddings: Annotated[
        Path | None, typer.Option(help="Of the training rows, .npz or .npy, for kinds that compare pictures.")
    ] = None,
    listed: Annotated[
        Path | None, typer.Option("--list", help="Instead of --kind: a published list, with rows path,label.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The noisy manifest, .csv or .parquet.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it is there.")] = False,
) -> None:
    """Make labels wrong, or frames strange, in the training rows of a manifest; other rows are never touched."""
    from metricweight.data import noise as laboratory

    if manifest is None:
        typer.echo(laboratory.listing())
        typer.echo("\nmetricweight noise MANIFEST --kind KIND --rate RATE --out noisy.csv")
        return
    made = laboratory.make(manifest, out, kind, rate, seed, count, embeddings, listed, overwrite)
    typer.echo(f"{laboratory.report(made)}\nWritten to {out}.")


@app.command()
def protocols() -> None:
    """List the protocols: who searches for whom, and what does not count."""
    from metricweight.retrieval.protocol import PROTOCOLS

    for protocol in PROTOCOLS.values():
        typer.echo(f"{protocol.name:15s} {protocol.what}\n{'':15s} {protocol.rules()}")
    typer.echo("\nmetricweight evaluate FILE --protocol NAME uses one; NAME:ap=step,junk=-1 changes it.")


@app.command()
def compare(
    a: Annotated[str, typer.Argument(help="A report.json, or the folder of a run; with :MODEL, one of its models.")],
    b: Annotated[str, typer.Argument(help="The same: B is judged against A.")],
    metric: Annotated[
        str | None, typer.Option(help="By which metric, such as map@r.", show_default="the first of the report")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Compare although their stamps differ.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the comparison: which classes and queries changed.")
    ] = None,
) -> None:
    """Say whether B is better than A, worse, or whether one cannot tell."""
    from metricweight.retrieval import comparison

    found = comparison.compare(comparison.load(a), comparison.load(b), metric=metric, force=force)
    if out is not None:
        comparison.save(found, out)
    typer.echo(comparison.text(found))


def main() -> None:
    """The command line; what the user got wrong is one plain sentence and exit code 2, Ctrl-C is 130."""
    try:
        app(_repeat_option(sys.argv[1:], "--ks"))
    except InputError as error:
        sys.exit(_say(f"error: {error}", 2))
    except OSError as error:
        sys.exit(_say(f"error: {error.filename or ''}: {error.strerror or error}", 2))
    except Interrupted as stopped:
        sys.exit(_say(str(stopped), 130))
    except KeyboardInterrupt:
        sys.exit(_say("stopped.", 130))


def _say(text: str, code: int) -> int:
    if text:
        rank = os.environ.get("RANK", "0")  # by torchrun
        print(text if rank == "0" else f"[process {rank}] {text}", file=sys.stderr)
    return code


def _repeat_option(words: list[str], option: str) -> list[str]:
    """`--ks 1 2 4` as typer wants it: `--ks 1 --ks 2 --ks 4`."""
    repeated: list[str] = []
    inside = False
    for word in words:
        if inside and word.isdigit() and repeated[-1] != option:
            repeated.append(option)
        elif not word.isdigit():
            inside = word == option
        repeated.append(word)
    return repeated
