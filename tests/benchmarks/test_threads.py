"""What waiting threads cost: one short measurement, and one that cannot be made."""

import json

from benchmarks import bench_threads


def test_policies_alone_and_beside_others(capsys):
    assert bench_threads.main(["--batch", "2", "--seconds", "1", "--repeat", "1", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["config"], made["batch"]) == ("nwucla", 2)
    for policy in bench_threads.POLICIES:
        row = made[policy]
        assert row["alone"] > 0
        assert abs(row["of_fair_share"] - 2 * row["beside"] / row["alone"]) < 0.05


def test_what_cannot_be_measured_is_named(capsys):
    assert bench_threads.main(["--impl", "fastest", "--seconds", "1", "--repeat", "1"]) == 2
    assert "blocking: " in capsys.readouterr().err.splitlines()[-1]
