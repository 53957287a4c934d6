"""Options of the commands about a run that has been trained; `s2vfast.evaluate.commands` carries them out."""

from __future__ import annotations

from typing import Any

POOLS = ("mean", "joint", "segment", "joint_time", "statistics")
"""As of `s2vfast.evaluate.features.pool_tracks`; here, so that ``--help`` imports no more than it needs."""
WHITEN = ("none", "sequence", "performance")
"""As of `s2vfast.evaluate.whitening`."""

PREDICT_FORMAT_OPTIONS = ("axes", "channels", "camera", "near", "far", "foreground")
"""Options of predict that some formats take."""

COMMANDS = {
    "evaluate": "measure a run's encoder on a labelled split: probes, neighbours, retrieval, fine-tuning",
    "embed": "write a run's features of a store's sequences to an npz file",
    "predict": "name the action in raw files, by a fine-tuned run",
    "table": "a table of several results, mean ± deviation over runs, for a paper or a page",
    "pack": "write a run as one file to share, with a card",
    "export": "write a run's network as a file that needs no s2vfast",
}
"""Names of the commands, and what they do."""


def add(name: str, parser: Any) -> None:
    """Give a command its options."""
    {"evaluate": _evaluate, "embed": _embed, "predict": _predict, "table": _table, "pack": _pack, "export": _export}[
        name
    ](parser)


def _run(parser: Any, **several: Any) -> None:
    parser.add_argument(
        "run", help="folder of a run, a packed run, hf://OWNER/NAME, or a name of `s2vfast models`", **several
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")


def _features(parser: Any, **several: Any) -> None:
    _run(parser, **several)
    parser.add_argument("--data", dest="store", metavar="STORE", help="a store; without it the run's own")
    parser.add_argument("--split", help="a split of the store; without it the run's own")
    parser.add_argument("--pool", choices=POOLS, default="mean", help="tokens to vector")
    parser.add_argument("--layers", type=int, default=1, help="last layers whose tokens are read")
    parser.add_argument("--untrained", action="store_true", help="the same encoder with the weights it started from")


def _evaluate(parser: Any) -> None:
    _features(parser, nargs="?")
    parser.add_argument(
        "--ensemble",
        nargs="+",
        metavar="RUN",
        help="add scores of runs of the same store and split: each by itself, and all together",
    )
    parser.add_argument(
        "--weights", help="of the ensemble's runs, with commas; without it chosen on folds of train_part"
    )
    parser.add_argument("--scores", choices=("log_softmax", "softmax"), default="log_softmax", help="what is added")
    parser.add_argument(
        "--protocol",
        help="floor, linear, knn, retrieval, finetune, supervised, semi, or several with commas between them; all: "
        "each of these; classify: a fine-tuned run as it is; order: of clips, of a run of clip_order [linear; of an "
        "ensemble classify, or linear]",
    )
    parser.add_argument(
        "--out",
        metavar="FILE.json|DIR",
        help="a file for the results, with confusion matrices and predictions; or a folder for results.json and what "
        "is fine-tuned (without it, that goes to RUN/finetuned)",
    )
    parser.add_argument(
        "--windows",
        type=int,
        default=1,
        help="clips of a sequence, of a segment's frames each, whose features are averaged; with --pool segment they "
        "stand one after the other (point clouds)",
    )
    parser.add_argument("--cache", action="store_true", help="keep features in RUN/features, and take those there")
    parser.add_argument("--k", type=int, help="neighbours of knn, beside one [1; of several protocols 10]")
    parser.add_argument("--transform", help="of features before knn: center (the default), none or standardize")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the floor, of the linear probe, and of the lists of semi"
    )
    parser.add_argument("--repeats", type=int, default=1, help="seeds of floor, linear, finetune and supervised")
    parser.add_argument(
        "--probe",
        default="published",
        metavar="NAME",
        help="recipe of the linear probe: published, skeattnclr or hitrs",
    )
    parser.add_argument("--epochs", type=int, help="epochs of the linear probe [its recipe's; published 100]")
    parser.add_argument("--lr", type=float, help="first rate of the linear probe [its recipe's; published 0.1]")
    parser.add_argument(
        "--draws", type=int, default=0, help="drawn clips of every training sequence for linear and knn, beside the one"
    )
    parser.add_argument(
        "--whiten",
        choices=WHITEN,
        default="none",
        help="features in units of what differs between drawn clips of one training sequence, or of one performance "
        "that several cameras saw; fitted without labels",
    )
    parser.add_argument(
        "--test_draws", type=int, default=0, help="drawn clips of every test sequence over which linear averages scores"
    )
    parser.add_argument(
        "--floor_draws",
        type=int,
        default=5,
        help="drawn clips of every training sequence for the floor of skeletons; 0 is the quickest",
    )
    parser.add_argument("--percents", default="1,5,10,20", help="shares of the labels for semi")
    parser.add_argument("--lists", type=int, default=5, help="lists of each share for semi")
    parser.add_argument("--semi", default="linear,probe,knn,finetune", help="what semi measures")
    parser.add_argument(
        "--linear",
        default="published,probe,ridge",
        metavar="NAMES",
        help="what linear measures, by itself or with commas: published, probe (L-BFGS), ridge (the quickest of many "
        "features); of an ensemble the first",
    )
    parser.add_argument("--train_part", default="train", help="part of the split that is fitted")
    parser.add_argument("--test_part", default="test", help="part of the split that is measured")
    parser.add_argument("--confusion", action="store_true", help="add confusion matrices and predictions to the JSON")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument(
        "--recipe",
        default="published",
        metavar="NAME|FILE",
        help="of fine-tuning: published, nwucla, convolutions, skeattnclr, hitrs, msr_finetune, or a YAML file",
    )


def add_finetune(parser: Any) -> None:
    """Every field of a recipe for the help; values are taken from the command line before it is parsed."""
    import dataclasses

    from s2vfast.config.fields import field_texts
    from s2vfast.evaluate.finetune_config import FinetuneConfig

    group = parser.add_argument_group("finetune")
    texts = field_texts(FinetuneConfig)
    for leaf in dataclasses.fields(FinetuneConfig):
        text = " ".join(texts[leaf.name].replace("``", "").split())
        group.add_argument(
            f"--finetune.{leaf.name}", metavar="VALUE", help=f"{text} [{leaf.default}]".replace("%", "%%")
        )


def add_subset(parser: Any) -> None:
    """Options of ``s2vfast data subset``."""
    parser.add_argument("store", help="folder of a store")
    parser.add_argument("--split", required=True, help="split whose training part is chosen from")
    parser.add_argument("--percents", default="1,5,10,20", help="shares, with commas between them")
    parser.add_argument("--lists", type=int, default=5, help="lists of each share")
    parser.add_argument("--seed", type=int, default=0, help="of the lists")
    parser.add_argument("--out", required=True, metavar="FILE.json", help="the file to write")


def _table(parser: Any) -> None:
    text = (
        "files of results that evaluate wrote, or folders of one; runs of one method are averaged, NAME=FILE names it"
    )
    parser.add_argument("results", nargs="+", metavar="RESULTS", help=text)
    parser.add_argument("--format", choices=("md", "csv", "latex"), default="md", help="of the table")
    parser.add_argument("--metric", choices=("top1", "top5", "mean_class", "map"), default="top1", help="what it shows")
    parser.add_argument("--out", metavar="FILE", help="write it there instead of printing it")


def _pack(parser: Any) -> None:
    parser.add_argument("run", help="folder of a run, or a packed run")
    parser.add_argument("--out", metavar="FILE.safetensors", help="the file to write")
    text = "upload it to a repository of the Hugging Face hub, as hf://OWNER/NAME (pip install s2vfast[hub])"
    parser.add_argument("--push", metavar="OWNER/NAME", help=text)
    parser.add_argument("--private", action="store_true", help="of a repository that --push makes")
    text = "results of evaluate for the card; NAME=FILE names what they are of"
    parser.add_argument("--results", nargs="+", default=[], metavar="RESULTS", help=text)
    parser.add_argument("--card", action="store_true", help="print the card; --out may lack")
    text = "keep the whole checkpoint (student, decoder), not the evaluated network alone"
    parser.add_argument("--everything", action="store_true", help=text)
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")


def _embed(parser: Any) -> None:
    _features(parser)
    parser.add_argument("--out", required=True, metavar="FILE.npz", help="the file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")


def _predict(parser: Any) -> None:
    parser.add_argument("--model", metavar="RUN", help="the run, where it is not the first word: --model nwucla FILES")
    _run(parser)
    parser.add_argument("files", nargs="*", help="raw files of the skeleton the run was made with; -: a frame a line")
    parser.add_argument("--format", help="name of a format; without it detected")
    parser.add_argument("--layout", help="name or JSON file of the skeleton, for formats without one")
    parser.add_argument("--axes", help="order of the axes of arrays, as TVC, MTVC or TMVC")
    parser.add_argument("--channels", help="numbers of a joint in arrays: xy, xyz, xys or xyzs")
    parser.add_argument("--camera", metavar="NAME|FILE", help="of depth, as of s2vfast data import")
    parser.add_argument("--near", type=float, help="of depth: metres from which pixels count")
    parser.add_argument("--far", type=float, help="of depth: metres up to which they do")
    parser.add_argument("--foreground", help="of depth: all pixels with one, or what is moving before the background")
    parser.add_argument("--top", type=int, default=5, help="classes a sequence")
    parser.add_argument("--window", type=int, help="frames of a window that slides over a sequence (default: all)")
    parser.add_argument("--step", type=int, default=1, help="frames from one window to the next")
    parser.add_argument("--smooth", type=float, default=0.0, help="share of the window before, in [0, 1)")
    parser.add_argument("--json", action="store_true", help="print one JSON object a sequence")


def _export(parser: Any) -> None:
    parser.add_argument("run", help="folder of a run; of a fine-tuned one the head is exported too")
    parser.add_argument("--to", choices=("onnx", "torch"), required=True, help="ONNX, or torch.export")
    parser.add_argument("--out", required=True, metavar="FILE", help="the file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
