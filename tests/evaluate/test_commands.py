"""The commands about a trained run as one types them: what they print, what they leave, their exit codes."""

import json
import os
import signal

import pytest

from s2vfast.train import checkpoint


def refused(result, message, code=2):
    """The command ended with ``code`` and one line on standard error that holds ``message``."""
    found, out, err = result
    assert (found, len(err)) == (code, 1), (out, err)
    assert err[0].startswith("s2vfast: error: ")
    assert message in err[0]


def test_a_run_is_fine_tuned_measured_and_exported(cli, place, tmp_path):
    words = f"evaluate {place}/run --protocol finetune --finetune.epochs 1 --finetune.hidden 8 --finetune.batch 16"
    code, out, err = cli(f"{words} --out {tmp_path}/tuned")
    assert code == 0
    assert "encoder of step 8, fine-tuned, split xsub" in out[0]
    assert f"next: s2vfast predict {tmp_path}/tuned FILES" in out[-1]
    found = json.loads((tmp_path / "tuned/results.json").read_text())
    assert f"top-1 {found['top1']:.2f} %" in out[1]
    assert len(found["confusion"]) == len(found["per_class"])
    assert found["settings"]["recipe"]["hidden"] == 8
    code, out, err = cli(f"evaluate {tmp_path}/tuned --protocol classify,knn --k 3 --out {tmp_path}/r.json")
    headings = ["— 1 of 2: the classes of a run as it is —", "— 2 of 2: nearest neighbours of frozen features —"]
    assert (code, err) == (0, headings)
    assert any(line.startswith("as fine-tuned") and f"top-1 {found['top1']:.1f}" in line for line in out)
    assert any(line.startswith("3-NN") for line in out)
    assert set(json.loads((tmp_path / "r.json").read_text())["results"]) == {"classify", "knn"}
    code, out, err = cli(f"export {tmp_path}/tuned --to torch --out {tmp_path}/net.pt2")
    assert (code, err) == (0, [])
    assert "logits, features of clips [batch, 2, 8, " in out[0]


def test_a_stopped_fine_tuning_goes_on(cli, place, tmp_path, monkeypatch):
    from s2vfast.train.trainer import Trainer

    step = Trainer.run_step

    def until(self):
        result = step(self)
        if self.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return result

    line = f"evaluate {place}/run --protocol finetune --finetune.epochs 8 --finetune.hidden 8 --out {tmp_path}/tuned"
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "run_step", until)
        code, out, err = cli(line)
    assert (code, out) == (128 + signal.SIGINT, [])
    assert err[-1] == f"stopped by SIGINT, saved in {tmp_path}/tuned; the same command goes on"
    assert checkpoint.steps(tmp_path / "tuned") == [2]
    assert cli(line)[0] == 0


def test_all_protocols_in_one_command(cli, place, tmp_path):
    line = f"evaluate {place}/run --protocol all --epochs 1 --percents 50 --lists 2 --semi probe,knn --cache --json"
    code, out, _ = cli(f"{line} --finetune.epochs 1 --finetune.hidden 8 --finetune.batch 16 --out {tmp_path}/all")
    assert code == 0
    found = json.loads(out[-1])
    assert list(found["results"]) == ["floor", "linear", "knn", "retrieval", "finetune", "supervised", "semi"]
    assert found == json.loads((tmp_path / "all/results.json").read_text())
    assert {row["measure"] for row in found["table"]} >= {"1-NN", "10-NN", "fine-tuned", "supervised from scratch"}
    assert (place / "run/features").is_dir()


def test_one_measure_of_linear(cli, place):
    code, out, err = cli(f"evaluate {place}/run --linear ridge --pool statistics")
    assert (code, err) == (0, [])
    assert len(out) == 2
    assert out[1].startswith("by ridge regression: top-1 ")


def test_lists_of_labels_are_written(cli, place, tmp_path):
    code, out, err = cli(f"data subset {place}/store --split xsub --percents 10,50 --lists 3 --out {tmp_path}/l.json")
    assert (code, err) == (0, [])
    found = json.loads((tmp_path / "l.json").read_text())
    assert found["sha256"] in out[0]
    assert [len(lists) for lists in found["lists"].values()] == [3, 3]
    refused(cli(f"data subset {place}/store --split nowhere --out {tmp_path}/m.json"), "no split 'nowhere'", 1)


def test_a_place_for_results_is_looked_at_first(cli, place, tmp_path, monkeypatch):
    from s2vfast.evaluate import features

    monkeypatch.setattr(features, "load_encoder", lambda *a, **k: pytest.fail("the run was read"))
    (tmp_path / "precious.json").write_text('["mine"]')
    (tmp_path / "file").write_text("")
    words = f"evaluate {place}/run --protocol knn --out"
    refused(cli(f"{words} {tmp_path}/precious.json"), "holds no results of evaluate; name another file", 1)
    refused(cli(f"{words} {tmp_path}/file/x.json"), "--out", 1)
    (tmp_path / "null.json").write_text("null")
    refused(cli(f"{words} {tmp_path}/null.json"), "holds no results of evaluate; name another file", 1)
    assert (tmp_path / "precious.json").read_text() == '["mine"]'


def test_what_one_protocol_cannot_do_costs_no_other(cli, place, tmp_path, monkeypatch):
    from s2vfast.errors import DataError
    from s2vfast.evaluate import measures

    def failing(context):
        raise DataError("no retrieval today")

    monkeypatch.setattr(measures, "retrieval_scores", failing)
    code, out, err = cli(f"evaluate {place}/run --protocol knn,retrieval --json --out {tmp_path}/found.json")
    assert (code, err[-1]) == (1, "s2vfast: error: no retrieval today")
    found = json.loads(out[-1])
    assert list(found["results"]) == ["knn"]
    assert found == json.loads((tmp_path / "found.json").read_text())
    monkeypatch.undo()
    assert cli(f"evaluate {place}/run --protocol knn,retrieval --out {tmp_path}/found.json")[0] == 0
    assert list(json.loads((tmp_path / "found.json").read_text())["results"]) == ["knn", "retrieval"]


def test_what_cannot_be_asked(cli, place):
    refused(cli(f"evaluate {place}/run --protocol knn --k 0"), "k: 0; 1 or more")
    refused(cli(f"evaluate {place}/run --seed 99999999999999999999"), "seed: 99999999999999999999; a number from 0")
    refused(cli(f"evaluate {place}/run --protocol finetune --finetune.lrr 1"), "did you mean finetune.lr?")
    refused(cli(f"evaluate {place}/run --protocol finetune --finetune.lr=fast"), "finetune.lr: 'fast'; a finite number")
    refused(cli(f"evaluate {place}/run --protocol finetune --recipe ntu"), "--recipe ntu: neither a file nor one of")
    refused(cli(f"evaluate {place}/run --protocol semi --percents 1,x"), "--percents: '1,x'; numbers with commas")
    refused(cli(f"evaluate {place}/run --protocol knn --out {place}/somewhere"), "a FILE.json is expected, as knn")
    refused(cli(f"evaluate {place}/run --linear ridge,lasso"), "linear: 'lasso' is not one of published, probe, ridge")
    refused(cli(f"evaluate {place}/run --protocol floor --floor_draws -1"), "floor_draws: -1; 0 or more is expected")
    refused(cli(f"export {place}/run --to torch"), "needed: --out")
