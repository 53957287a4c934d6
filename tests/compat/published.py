"""Checkpoints as others publish them, made up from small models of ours."""

import argparse
import pathlib
from collections import OrderedDict

import numpy as np
import safetensors.torch
import torch

from s2vfast import compat
from s2vfast.config import Config
from s2vfast.objectives import build_objective

from ..skeletons import chain

JOINTS = 5
TREES = {
    "skeleton2vec": {
        "data": {"frames": 12, "split": "halves", "bodies": 2},
        "model": {"segment_frames": 3, "dim": 16, "heads": 2, "depth": 3, "layer_scale": 0.5},
        "mask": {"ratio": 0.6, "tube_len": 2},
        "objective": {"decoder_depth": 2, "name": "skeleton2vec", "top_k": 2},
    },
    "mamp": {
        "data": {"frames": 12, "split": "halves", "bodies": 2},
        "model": {
            "segment_frames": 3,
            "dim": 16,
            "heads": 2,
            "depth": 3,
            "layer_scale": None,
            "norm_eps": 1e-5,
        },
        "mask": {"ratio": 0.6},
        "objective": {"name": "mamp", "decoder_depth": 2},
    },
}


def config(naming, **changes):
    tree = {section: dict(fields) for section, fields in TREES[naming].items()}
    for path, value in changes.items():
        section, _, name = path.partition("__")
        tree.setdefault(section, {})[name] = value
    return Config.from_dict(tree)


def model(naming, seed=0, joints=JOINTS, **changes):
    """An objective whose every parameter is random; the teacher's are its own."""
    made = build_objective(config(naming, **changes), chain(joints))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return made.eval()


def state(naming, made, teacher=False, channels=3):
    """Student (encoder and decoder) or teacher (its encoder, and the student's decoder) under the published names."""
    ours = {k: v for k, v in made.state_dict().items() if not k.startswith("teacher.")}
    if teacher:
        ours |= {f"encoder.{k}": v for k, v in made.teacher.state_dict().items()}
    to = compat.to_published if naming == "skeleton2vec" else compat.to_mamp
    return OrderedDict((k, v.detach().clone()) for k, v in to(ours, channels).items())


def prefixed(prefix, tensors):
    return OrderedDict((prefix + k, v) for k, v in tensors.items())


def released(made):
    """Skeleton2vec's checkpoint as its authors' training script writes it: spec and weights of student and teacher."""
    sd = prefixed("auto_encoder.", state("skeleton2vec", made))
    sd |= prefixed("ema.model.", state("skeleton2vec", made, teacher=True))
    return {
        "model": {"name": "X", "args": {"model_spec": {"args": {"num_heads": 2}}}, "sd": sd},
        "optimizer": {
            "name": "adamw",
            "sd": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 1e-3}]},
        },
        "epoch": 800,
        "scale": {"scale": 1.0},
    }


def mae(made, **arguments):
    """MAMP's, as scripts derived from MAE write it: weights beside the command line's arguments."""
    given = {"output_dir": pathlib.PurePosixPath("out"), "lr": np.float64(1e-3), "model_args": {"num_heads": 2}}
    return {
        "model": state("mamp", made),
        "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": []},
        "epoch": 399,
        "scaler": {"scale": np.float32(2.0)},
        "args": argparse.Namespace(**given | arguments),
    }


def write(path, content, form="zip"):
    """A checkpoint file of a format."""
    if form == "safetensors":
        safetensors.torch.save_file({k: v.contiguous() for k, v in content.items()}, path)
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    return path


def clips(frames=12, joints=JOINTS, channels=3):
    return torch.randn(3, frames, joints, channels, generator=torch.Generator().manual_seed(5))
