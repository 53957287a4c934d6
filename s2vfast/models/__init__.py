"""Models by name: those that come with the package, and those in a repository of the Hugging Face hub.

Wherever the folder of a run is expected on the command line, and by `s2vfast.load`, there may stand such a name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from s2vfast import errors
from s2vfast.models import hub
from s2vfast.train import packed, rundir

FOLDER = Path(__file__).parent
MOST_BYTES = 5_000_000
"""A model of the package is no larger."""


@dataclass(frozen=True)
class Shipped:
    """A packed run, ``NAME.safetensors``, in this folder."""

    about: str
    """What it is, in a line."""
    commands: tuple[str, ...]
    """What made it, the last of them ``s2vfast pack``."""


# One more is one more line, and the file that its last command writes.
SHIPPED: dict[str, Shipped] = {
    "nwucla-encoder": Shipped(
        "Skeleton2vec's encoder of NW-UCLA: features, no labels seen",
        (
            "s2vfast data import PATH/TO/nw_ucla --out data/nwucla",
            "s2vfast pretrain --config nwucla --data data/nwucla --train.seed 1 --train.threads 1 --out runs/nwucla",
            "s2vfast evaluate runs/nwucla --protocol linear,knn --seed 1 --out results/nwucla.json",
            "s2vfast pack runs/nwucla --results results/nwucla.json --out s2vfast/models/nwucla-encoder.safetensors",
        ),
    ),
    "nwucla": Shipped(
        "names NW-UCLA's 10 actions: nwucla-encoder, fine-tuned on cameras 1 and 2",
        (
            "s2vfast evaluate runs/nwucla --protocol finetune --recipe nwucla --finetune.seed 1 --out runs/tuned",
            "s2vfast pack runs/tuned --results runs/tuned/results.json --out s2vfast/models/nwucla.safetensors",
        ),
    ),
    "msr-encoder": Shipped(
        "clip order prediction's encoder of MSR-Action3D's depth: features, no labels seen",
        (
            "s2vfast data import msr_action3d --points 1024 --out data/msr",
            "s2vfast pretrain --config msr_order --data data/msr --train.seed 2 --train.threads 1 --out runs/order-2",
            "s2vfast evaluate runs/order-2 --protocol order,knn,retrieval --windows 5 --out results/order-2.json",
            "s2vfast pack runs/order-2 --results results/order-2.json --out s2vfast/models/msr-encoder.safetensors",
        ),
    ),
    "msr": Shipped(
        "names MSR-Action3D's 20 actions in depth: msr-encoder, fine-tuned on subjects 1, 3, 5, 7 and 9",
        (
            "s2vfast evaluate runs/order-2 --protocol finetune --recipe msr_finetune --finetune.seed 2 --out runs/msr",
            "s2vfast pack runs/msr --results runs/msr/results.json --out s2vfast/models/msr.safetensors",
        ),
    ),
    "synthetic-encoder": Shipped(
        "Skeleton2vec's encoder of the demo's synthetic people: features, no labels seen, 400 steps",
        (
            "s2vfast data synth --out data/synthetic",
            "s2vfast pretrain --config demo --data data/synthetic --train.steps 400 --train.seed 1 --train.threads 1 "
            "--out runs/synthetic",
            "s2vfast evaluate runs/synthetic --protocol knn --out results/synthetic.json",
            "s2vfast pack runs/synthetic --results results/synthetic.json "
            "--out s2vfast/models/synthetic-encoder.safetensors",
        ),
    ),
}


def path(name: str) -> Path:
    """Where the file of a model of the package lies."""
    return FOLDER / f"{name}{packed.SUFFIX}"


def locate(run: str | Path, log: Callable[[str], object] = print) -> str | Path:
    """The folder or file of a run that is named in any way.

    Args:
        run: the folder of a run, a packed run, ``hf://OWNER/NAME`` or ``hf://OWNER/NAME@REVISION``, or one of
            `SHIPPED`. A run or a file of that name is taken before a model of the package.
        log: told where both are there.

    Raises:
        ConfigError: an address of the hub that is none.
        CheckpointError: a repository that cannot be read.
    """
    if str(run).startswith(hub.SCHEME):
        return hub.fetch(str(run))
    if str(run) not in SHIPPED:
        return run
    if rundir.begun(run) or Path(run).is_file():
        log(f"{run}: the run that lies here is taken, not the model of this name in the package")
        return run
    return path(str(run))


def table() -> str:
    """The models of the package as text, a line each."""
    width = max(map(len, SHIPPED))
    sizes = {name: path(name).stat().st_size / 1e6 for name in SHIPPED}
    return "".join(f"{name:{width}}  {sizes[name]:.1f} MB  {model.about}\n" for name, model in SHIPPED.items())


def description(name: str) -> str:
    """A model's card, and the commands that made it, as Markdown.

    Raises:
        ConfigError: no model of the package.
    """
    if name not in SHIPPED:
        raise errors.ConfigError(f"{name}: no model of the package; {', '.join(SHIPPED)} are")
    return f"{packed.read(path(name)).card}\n## Made by\n\n```bash\n" + "\n".join(SHIPPED[name].commands) + "\n```\n"
