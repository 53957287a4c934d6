"""What waiting threads cost: one short measurement, and one that cannot be made."""

import argparse
import json

from benchmarks import bench_threads


def test_policies_alone_and_beside_others(capsys):
    assert bench_threads.main(["--batch", "2", "--seconds", "1", "--repeat", "1", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["config"], made["batch"]) == ("nwucla", 2)
    for policy in bench_threads.POLICIES:
        row = made[policy]
        assert row["alone"] > 0
        assert 0 < row["of_fair_share"] < 3


def test_a_process_has_its_policy_and_no_other_setting(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(
        bench_threads, "MEASURED", "import os; print(sum(n[:4] in ('OMP_', 'GOMP') for n in os.environ))"
    )
    options = argparse.Namespace(config="nwucla", batch=2, impl="auto", seconds=1)
    assert [bench_threads.clips_a_second(options, policy) for policy in ("blocking", "spinning")] == [0, 1]


def test_what_cannot_be_measured_is_named(capsys):
    assert bench_threads.main(["--impl", "fastest", "--seconds", "1", "--repeat", "1"]) == 2
    assert "blocking: " in capsys.readouterr().err.splitlines()[-1]
