"""A small store with awkward sequences, a run on it, and pages taken apart."""

import json
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from s2vfast.config import Config
from s2vfast.data import Body, Layout, Sequence, Store, write_store
from s2vfast.evaluate import protocols
from s2vfast.networks import build_network
from s2vfast.train import checkpoint, rundir

EVIL = "</script><img src=x onerror=alert(1)>\"quoted\" & 'so' $\\frac^$"
EVIL_CLASS = "<!-- <script>wave</script> $^$"
LAYOUT = Layout(
    name="stick",
    joints=("hip", "neck", "head", "left", "right$^$"),
    parents=(-1, 0, 1, 1, 1),
    root=0,
    torso=(0, 1),
    sides=(3, 4),
    parts={"trunk": (0, 1, 2), "arms": (3, 4)},
)
CONFIG = {
    "data": {"frames": 12, "bodies": 2, "split": "halves"},
    "model": {"segment_frames": 3, "dim": 16, "heads": 2, "depth": 3, "layer_scale": 0.5},
    "mask": {"ratio": 0.6, "tube_len": 2, "masks_per_clip": 2},
    "objective": {"decoder_depth": 1, "top_k": 2},
    "train": {"seed": 7, "steps": 1, "batch": 4},
}


def sequence(number, name, label, length, bodies=1, missing=()):
    rng = np.random.default_rng(number)
    pose = rng.normal(0, 0.02, (length, 5, 3)) + np.arange(1, 6)[None, :, None] * 0.2
    pose[:, 2 + label, 1] += np.sin(np.arange(length) * 0.8 + rng.uniform(0, 6))
    for frame, joint in missing:
        pose[frame, joint] = 0
    members = []
    for body in range(bodies):
        seen = np.arange(length) if body == 0 else np.arange(4, length)
        members.append(Body(f"b{body}", seen.astype(np.int32), (pose[seen] + 0.5 * body).astype(np.float32)))
    return Sequence(name=name, label=label, total_frames=length, bodies=members, subject=3, view=number % 3)


def make_store(path, layout=LAYOUT):
    sequences = [sequence(i, f"s{i:03d}", i % 3, 9 + i % 7, 1 + (i % 4 == 0)) for i in range(21)]
    sequences += [
        sequence(21, EVIL, 0, 15, bodies=2),
        sequence(22, "single", 1, 1),
        sequence(23, "holes", 2, 14, missing=[(0, 3), (5, 4)]),
    ]
    names = [each.name for each in sequences]
    return write_store(
        path,
        sequences,
        layout=layout,
        classes=[EVIL_CLASS, "nod", "kick"],
        splits={"halves": {"train": names[::2], "test": names[1::2]}},
        source={},
        dropped=[],
    )


def make_run(path, store, **changes):
    tree = {section: dict(fields) for section, fields in CONFIG.items()}
    for name, value in changes.items():
        section, _, field = name.partition("__")
        tree[section][field] = value
    made = Config.from_dict(tree)
    teacher = build_network(made, store.layout)
    generator = torch.Generator().manual_seed(99)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    tensors = {f"teacher.{name}": tensor for name, tensor in teacher.state_dict().items()}
    rundir.create(path, made, store)
    checkpoint.save(path, 30, {"model": tensors, "optimizer": {"step": torch.tensor(30)}}, {}, keep=2)
    rows = [
        {"step": n, "epoch": n / 5, "loss": 1 / n, "lr": 1e-3 * n, "ema_decay": 0.9, "grad_norm": 2.0}
        | {"target_var": 1.0, "pred_var": n / 40}
        for n in range(1, 31)
    ]
    (path / rundir.METRICS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    # A run that went on from step 10: what it did twice counts once.
    rates = [{"step": n, "clips_per_second": 100.0 + n} for n in (10, 20, 15, 20, 30)]
    (path / rundir.THROUGHPUT).write_text("".join(json.dumps(row) + "\n" for row in rates))
    return made, teacher.eval()


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    """``store``, ``run``, ``results`` (paths), ``opened``, ``config``, ``teacher``; sequence 21 is called ``evil``."""
    folder = tmp_path_factory.mktemp("view")
    opened = Store.open(make_store(folder / "store"))
    config, teacher = make_run(folder / "run", opened)
    found = {"store": folder / "store", "opened": opened, "run": folder / "run", "folder": folder}
    options = {"confusion": True, "log": lambda line: None, "protocol": "knn"}
    content = protocols.evaluate(folder / "run", folder / "store", **options)
    found["results"] = folder / "results.json"
    found["results"].write_text(json.dumps(content))
    return SimpleNamespace(**found, config=config, teacher=teacher, evil=EVIL, evil_class=EVIL_CLASS)


@pytest.fixture(scope="session")
def other_run(place):
    """A run on a skeleton of another kind."""
    layout = Layout("stork", LAYOUT.joints, LAYOUT.parents, LAYOUT.root, LAYOUT.torso, LAYOUT.sides)
    make_run(place.folder / "other", Store.open(make_store(place.folder / "storks", layout)))
    return place.folder / "other"


class Parts(HTMLParser):
    """The elements of a page, what its attributes load, and what stands in its scripts and styles."""

    def __init__(self):
        super().__init__()
        self.opened, self.loaded, self.content, self.inside = set(), [], {"script": [], "style": []}, None

    def handle_starttag(self, tag, attrs):
        self.opened.add(tag)
        self.loaded += [value for name, value in attrs if name in ("src", "href", "srcset", "action", "style")]
        self.inside = tag if tag in self.content else None
        if self.inside:
            self.content[tag].append("")

    def handle_endtag(self, tag):
        self.inside = None

    def handle_data(self, data):
        if self.inside:
            self.content[self.inside][-1] += data


@pytest.fixture
def read_page():
    """read_page(path) -> the numbers of a page, which has been found to be one whole file that loads nothing."""

    def read(path):
        text = path.read_text("utf-8")
        parts = Parts()
        parts.feed(text)
        parts.close()
        assert parts.opened == set("html head meta link title style body header div h1 p main noscript script".split())
        # Nothing is fetched: not by the markup, not by the script, not by the style; and the browser is told so.
        assert parts.loaded == ["data:,"]
        assert "default-src 'none'" in text
        data, script = parts.content["script"]
        (style,) = parts.content["style"]
        assert not re.search(r"https?:|//\w+\.\w|\bfetch\(|XMLHttpRequest|WebSocket|\bimport\b|innerHTML", script)
        assert not re.search(r"https?:|@import|url\(", style)
        return json.loads(data)

    return read


@pytest.fixture
def is_picture():
    """Whether a PNG is there that is not all of one colour."""

    def check(path):
        from matplotlib.image import imread

        picture = imread(path)[..., :3]
        assert min(picture.shape[:2]) > 150
        assert picture.std() > 0.03

    return check
