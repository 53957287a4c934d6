"""Supervised training from the first weights, by the command line that pretrains."""

import json
import os
import signal

from s2vfast import presets
from s2vfast.data.store import Store
from s2vfast.train import checkpoint
from s2vfast.train.trainer import Trainer


def refused(result, message, code):
    """The command ended with ``code`` and one line on standard error that holds ``message``."""
    answer, out, err = result
    assert (answer, len(err)) == (code, 1), (out, err)
    assert err[0].startswith("s2vfast: error: ")
    assert message in err[0]


def test_a_network_is_trained_with_labels_from_scratch(cli, place, tmp_path, monkeypatch):
    """It stops, goes on to the bytes of a run that did not, is measured as it is, and not on what it has learned."""
    trained = len(Store.open(place / "store").select("xsub", "train"))
    words = f"pretrain --config {place}/tiny.yaml --objective classify --objective.hidden 8 --data {place}/store --out"
    code, out, err = cli(f"{words} {tmp_path}/run")
    assert code == 0, err
    assert out[-1] == f"next: s2vfast evaluate {tmp_path}/run --protocol classify"
    written = presets.read(tmp_path / "run" / "config.yaml")
    assert (written["objective"]["name"], written["objective"]["hidden"], "mask" in written) == ("classify", 8, False)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(0 <= row["top1"] <= 100 for row in rows)
    assert "ema_decay" not in rows[0]

    step = Trainer.run_step

    def until(self):
        result = step(self)
        if self.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return result

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "run_step", until)
        assert cli(f"{words} {tmp_path}/parts")[0] == 128 + signal.SIGTERM
    assert checkpoint.steps(tmp_path / "parts")[-1] == 4
    assert cli(f"pretrain --resume --out {tmp_path}/parts")[0] == 0
    for name in ("metrics.jsonl", "checkpoints/step-00000008/model.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()

    code, out, err = cli(f"evaluate {tmp_path}/run --protocol classify --json")
    assert (code, err) == (0, [])
    result = json.loads(out[-1])
    assert (result["n_train"], result["objective"]) == (trained, "classify")
    assert 0 <= result["top1"] <= 100
    # Its head has learned to name these; a probe of its features would have seen their labels too.
    for protocol in ("classify", "knn"):
        refused(
            cli(f"evaluate {tmp_path}/run --protocol {protocol} --train_part test --test_part train"),
            f"{tmp_path}/run: was trained on the labels of {trained} sequence(s) of 'train' of split",
            1,
        )
    assert cli(f"evaluate {tmp_path}/run --protocol knn --untrained --train_part test --test_part train")[0] == 0
    # It is a network like any other, to be used as it is or to go on from.
    assert cli(f"export {tmp_path}/run --to torch --out {tmp_path}/net.pt2")[0] == 0
    assert cli(f"evaluate {tmp_path}/run --protocol knn")[0] == 0
    words = f"evaluate {tmp_path}/run --protocol finetune --finetune.epochs 1 --finetune.hidden 8 --finetune.batch 16"
    assert cli(f"{words} --out {tmp_path}/tuned")[0] == 0
    answer = cli(f"view mask {place}/store 0 --run {tmp_path}/run")
    refused(answer, "objective.name: classify masks nothing; there are no masks to show", 2)
