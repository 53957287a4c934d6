"""The benchmark of whole steps, on a network that takes no time."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch

from benchmarks import _ceilings, _results, _step, _step_processes, _step_profile, bench_step
from s2vfast import errors, presets
from s2vfast.config import Config
from s2vfast.train.distributed import Ranks

CPU = torch.device("cpu")
CEILINGS = {"copy_gb_s": 10.0, "matmul_float32": 0.1, "exp_g_s": 1.0}


def tiny(**mask):
    config = Config()
    config.data.frames = 30
    config.model.dim, config.model.heads, config.model.depth, config.model.decoder_depth = 32, 2, 2, 1
    config.objective.top_k = 2
    for name, value in mask.items():
        setattr(config.mask, name, value)
    config.validate(_step.JOINTS)
    return config


@pytest.fixture
def small(monkeypatch):
    """A network, a product and ceilings that take no time."""
    monkeypatch.setattr(_step, "load", lambda name: tiny())
    monkeypatch.setitem(_ceilings.SIDE, "cpu", 64)
    monkeypatch.setattr(_ceilings, "ceilings", lambda device: dict(CEILINGS))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # which wait for nobody
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def run(small, tmp_path):
    """Run the benchmark: its exit code and the rows that it wrote, read back by the schema."""

    def call(*arguments):
        code = bench_step.main(["--repeat", "2", "--out", str(tmp_path), *arguments])
        return code, _results.read(tmp_path / "cpu/step.json")["rows"]

    return call


def spoil(monkeypatch, name, do):
    """Let a contestant's losses, or its making, be what ``do`` makes of its step."""
    honest = _step.contestant

    def contestant(setting, asked, *more, **options):
        advance = honest(setting, asked, *more, **options)
        return do(advance) if asked == name else advance

    monkeypatch.setattr(_step, "contestant", contestant)


def test_every_contestant_has_a_row_and_its_ratio_to_the_last(run):
    code, rows = run("--batch", "2", "--empty-bodies", "compute", "share", "--vs", "torch:eager", "reference")
    assert code == 0
    assert [(row["impl"], row["empty_bodies"]) for row in rows] == [
        (impl, how) for how in ("compute", "share") for impl in ("torch", "torch:eager", "reference")
    ]
    for row in rows:
        assert (row["sweep"], row["clips"], row["tokens"], row["ranks"]) == ("main", 2, 250, 1)
        assert row["difference"] <= 1e-5
        assert row["p20"] <= row["p50"] <= row["p80"]
        assert row["clips_per_second"] == pytest.approx(2000 / row["p50"], rel=1e-3)
        assert (row["versus"], row["launches"], row["peak_mib"]) == ("reference", None, None)
    compute, share = rows[:3], rows[3:]
    assert compute[2]["ratio"] == 1.0
    # The published step saves nothing; ours saves less where no body is shared.
    assert share[2]["gflop"] == compute[2]["gflop"] > compute[0]["gflop"] > share[0]["gflop"]
    # The floor is one time for all.
    assert compute[0]["floor"] * compute[0]["p50"] == pytest.approx(compute[2]["floor"] * compute[2]["p50"], rel=1e-2)


def test_the_kinds_of_work_add_up_to_the_step(run):
    _, rows = run("--batch", "2")
    for row in rows:
        assert sum(row["breakdown"].values()) == pytest.approx(row["p50"], rel=1e-3)
        assert set(row["breakdown"]) <= {*_step_profile.KINDS, _step_profile.OTHER}
        for kind in ("masks", "optimizer", "attention", "linear maps", "norms and elementwise"):
            assert row["breakdown"][kind] > 0
        assert row["breakdown"]["other"] < row["p50"] / 2


def test_what_differs_is_not_timed_and_the_others_are(run, monkeypatch):
    spoil(monkeypatch, "torch:eager", lambda advance: lambda: advance() * 1.0001)
    code, rows = run("--vs", "torch:eager", "reference")
    assert code == 1
    assert [("refused" in row) for row in rows] == [False, True, False]
    assert "differ from reference's" in rows[1]["refused"]


def test_several_masks_a_clip_are_not_the_published_step(run, monkeypatch):
    monkeypatch.setattr(_step, "load", lambda name: tiny(masks_per_clip=4))
    code, rows = run()
    assert code == 1
    assert "refused" in rows[0]
    assert "p50" in rows[1]


def test_a_loss_that_is_no_number_is_refused(run, monkeypatch):
    spoil(monkeypatch, "torch", lambda advance: lambda: advance() * float("nan"))
    code, rows = run()
    assert code == 1
    assert "refused" in rows[0]


def test_without_the_last_one_nothing_is_timed(run):
    code, rows = run("--vs", "native", "--sweep", "batch", "tokens", "ranks")
    assert code == 1
    assert len(rows) == 2
    assert "norm_linear has no native" in rows[1]["refused"]
    assert "could not run" in rows[0]["refused"]


def test_what_has_no_room_is_no_mistake(run, monkeypatch):
    def full(advance):
        raise torch.OutOfMemoryError

    spoil(monkeypatch, "torch:eager", full)
    code, rows = run("--vs", "torch:eager", "reference")
    assert code == 0
    assert rows[1]["refused"] == _step.NO_ROOM


def test_sweeps_over_clips_and_tokens(run):
    code, rows = run("--batch", "2", "--sweep", "batch", "tokens")
    assert code == 0
    found = {sweep: [row for row in rows if row["sweep"] == sweep] for sweep in ("main", "batch", "tokens")}
    # The published step takes part up to the size of the main one.
    assert [(row["clips"], row["impl"]) for row in found["batch"]] == [
        (1, "torch"), (1, "reference"), (2, "torch"), (2, "reference"), (4, "torch"), (8, "torch")
    ]  # fmt: skip
    assert {row["tokens"] for row in found["batch"]} == {250}
    assert [(row["tokens"], row["impl"]) for row in found["tokens"]] == [
        (125, "torch"), (125, "reference"), (250, "torch"), (250, "reference"), (500, "torch")
    ]  # fmt: skip
    assert {row["clips"] for row in found["tokens"]} == {2}
    assert found["batch"][2] == {**found["main"][0], "sweep": "batch"}
    for row in found["batch"] + found["tokens"]:
        alone = row["clips"] * row["tokens"] > 500
        assert (row["difference"] is None) == (row["ratio"] is None) == alone
    assert found["batch"][5]["gflop"] == pytest.approx(8 * found["batch"][0]["gflop"], rel=1e-2)


def test_ranks_share_a_batch_and_find_the_same_losses(run):
    code, rows = run("--batch", "2", "--empty-bodies", "share", "--sweep", "ranks")
    assert code == 0
    shared = [row for row in rows if row["sweep"] == "ranks"]
    assert [(row["impl"], row["ranks"], row["clips"]) for row in shared] == [("torch", 1, 2), ("torch", 2, 2)]
    for row in shared:
        assert row["difference"] <= 1e-5
        assert row["clips_per_second"] == pytest.approx(2000 / row["p50"], rel=1e-3)
        assert row["ratio"] is None


def test_memory_is_that_of_a_process_of_its_own(run, monkeypatch):
    assert 1 < _step_processes.peak(bench().main, "torch") < 500
    monkeypatch.setattr(_step_processes, "peak", lambda setting, name: {"torch": 1.5, "reference": 4.5}[name])
    assert [row["peak_mib"] for row in run("--memory")[1]] == [1.5, 4.5]


def bench(clips=2):
    return bench_step.Bench(_step.Setting(tiny(), clips, CPU), "tiny", ["torch", "reference"], 2, CEILINGS)


def done(bench):
    return [_step.Run(bench.main, name, losses=[1.0, 1.0], times=[2.0, 2.0]) for name in bench.names]


def test_a_ratio_is_that_of_the_middle_round():
    made = bench()
    ours, theirs = done(made)
    ours.times, theirs.times = [2.0, 4.0, 1.0], [6.0, 20.0, 9.0]
    rows = bench_step.rows_of(made, [ours, theirs])
    assert [row["ratio"] for row in rows] == [5.0, 1.0]
    assert [row["p50"] for row in rows] == [2.0, 9.0]
    assert bench_step.rows_of(made, [ours])[0]["ratio"] is None


def test_ranks_that_differ_or_fail_are_refused(monkeypatch):
    found = {1: ([1.0, 1.1], [5.0, 6.0])}

    def ranks(setting, name, world, checked, repeat):
        if world not in found:
            raise errors.TrainingError("a rank is gone")
        return found[world]

    monkeypatch.setattr(_step_processes, "ranks", ranks)
    made = bench()
    rows = bench_step.ranks_rows(made, done(made))
    assert "differ from reference's" in rows[0]["refused"]
    assert rows[1]["refused"] == "a rank is gone"


def test_clips_that_cannot_be_shared_are_said_to_be_skipped(monkeypatch, capsys):
    monkeypatch.setattr(_step_processes, "ranks", lambda *given: ([1.0], [5.0, 6.0]))
    made = bench(clips=3)
    assert [row["ranks"] for row in bench_step.ranks_rows(made, done(made))] == [1]
    assert "2 skipped: 3 clips" in capsys.readouterr().err


def test_a_machine_with_one_gpu_has_no_ranks(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    made = bench_step.Bench(_step.Setting(tiny(), 2, torch.device("cuda")), "tiny", ["triton:graph"], 2, CEILINGS)
    assert bench_step.ranks_rows(made, [_step.Run(made.main, "triton:graph")]) == []
    assert "skipped: this machine has one GPU" in capsys.readouterr().err


def test_a_process_that_fails_says_why():
    with pytest.raises(errors.TrainingError, match=r"measures native failed: .*norm_linear has no native"):
        _step_processes.peak(bench().main, "native")


def test_growth_and_json_and_a_file_name_without_its_folder(run, capsys, monkeypatch):
    monkeypatch.setattr(_step_processes, "peak", lambda setting, name: 10.0 * setting.clips)
    code, rows = run("--growth", "4", "--json", "--config", "some/where/mine.yaml")
    printed = capsys.readouterr()
    assert code == 0
    assert json.loads(printed.out)["rows"] == rows
    assert "4 clips take" in printed.err
    assert [(row["sweep"], row["clips"], row["peak_mib"]) for row in rows] == [
        ("main", 2, None), ("main", 2, None), ("batch", 1, None), ("batch", 1, None), ("batch", 4, 40.0)
    ]  # fmt: skip
    assert {row["config"] for row in rows} == {"mine"}


def test_a_contestant_that_fails_is_refused_and_the_others_are_timed(run, monkeypatch):
    real = _step.contestant

    def failing(setting, name, *more, **options):
        advance, left = real(setting, name, *more, **options), [_step.CHECKED + 1]

        def step():
            left[0] -= 1
            if left[0] < 0 and name == "torch":
                raise IndexError("it is used up")
            return advance()

        return step

    monkeypatch.setattr(_step, "contestant", failing)
    code, rows = run()
    assert code == 1
    assert [row.get("refused") for row in rows] == ["IndexError: it is used up", None]


def test_what_is_not_found_beside_the_times_costs_no_more(run, monkeypatch, capsys):
    def failing(*given):
        raise errors.TrainingError("no process to be had")

    monkeypatch.setattr(bench_step, "look", failing)
    monkeypatch.setattr(_step_processes, "peak", failing)
    code, rows = run("--memory")
    assert code == 0
    assert [(row["breakdown"], row["launches"], row["peak_mib"]) for row in rows] == [({}, None, None)] * 2
    assert "not found: TrainingError: no process to be had" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--impl", "torch:graph"], "a graph needs a GPU"),
        (["--impl", "trion"], "no implementation 'trion'"),
        (["--impl", "torch:fast"], "with one of :eager, :graph"),
        (["--vs", "torch"], "torch is there twice"),
        (["--device", "cuda"], "no GPU that PyTorch can use"),
    ],
)
def test_what_cannot_be_done_is_one_line(small, capsys, monkeypatch, arguments, said):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert bench_step.main(arguments) == 2
    assert said in capsys.readouterr().err


def test_a_contestants_name_has_the_mode_of_the_device():
    cuda = torch.device("cuda")
    assert [_step.label(name, CPU) for name in ("torch", "reference")] == ["torch", "reference"]
    assert _step.label("triton", cuda) == "triton:graph"
    assert _step.label("torch:compile", cuda) == "torch:compile"
    assert _step.label("reference", cuda) == "reference"


def test_the_defaults_are_ntu60(monkeypatch):
    """A bare machine reads no YAML."""
    defaults, preset = Config().to_dict(), presets.load("ntu60").to_dict()
    for section in ("data", "model", "mask"):
        assert defaults[section] == preset[section]
    preset["objective"]["ema_steps"] = None
    assert defaults["objective"] == preset["objective"]
    monkeypatch.setitem(sys.modules, "yaml", None)
    assert _step.load("ntu60") == Config()
    with pytest.raises(errors.ConfigError, match="needs PyYAML"):
        _step.load("nwucla")


def test_empty_bodies_are_second_bodies():
    setting = _step.Setting(tiny(), 3, CPU).changed("objective", empty_bodies="share")
    clips = setting.inputs()
    assert [bool(track.any()) for track in clips] == [True, False, True, False, True, True]
    assert setting.empty == 2
    assert setting.changed("objective", empty_bodies="compute").empty == 0
    assert setting.changed("data", bodies=1).empty == 0


def test_the_floor_adds_up_what_each_part_is_bound_by():
    setting = _step.Setting(tiny(), 2, CPU).changed("objective", empty_bodies="compute")
    sums = setting.costs()["sum"]
    products = sums["gemm"] + sums["attention"]
    assert products > 0
    slow = {"copy_gb_s": 1e9, "exp_g_s": 1e9, "matmul_float32": 1e-3}
    assert setting.floor(slow) == pytest.approx(products / 1e9 * 1000)  # at 1 GFLOP/s, in ms
    slow = {"copy_gb_s": 1e-3, "exp_g_s": 1e9, "matmul_float32": 1e9}
    assert setting.floor(slow) == pytest.approx(sums["bytes"] / 1e6 * 1000)
    assert setting.floor({"copy_gb_s": 1.0, "exp_g_s": 1.0, "matmul_bfloat16": 1.0}) is None
    assert setting.costs(savings=False)["sum"]["gemm"] > sums["gemm"]
    # Clips are there: of the data, masks alone are made, which read four clips of 30 frames and write 250 tokens each.
    assert setting.costs()["data"]["bytes"] == 4 * (30 * 25 * 3 * 4 + 250 * 4)
    # What is left out costs nothing.
    dropped = setting.changed("objective", empty_bodies="drop").costs()["sum"]["gemm"]
    assert dropped == pytest.approx(sums["gemm"] / 2, rel=1e-2)


def event(name, parent=None, self_us=0.0, kernels=(), on=torch.autograd.DeviceType.CPU):
    kernels = [SimpleNamespace(name=kernel, duration=us) for kernel, us in kernels]
    return SimpleNamespace(name=name, cpu_parent=parent, self_cpu_time_total=self_us, kernels=kernels, device_type=on)


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["aten::bmm", "aten::matmul"], "attention"),
        (["aten::sub", "aten::logsumexp"], "attention"),
        (["aten::_scaled_dot_product_flash_attention_for_cpu"], "attention"),
        (["aten::mul", "s2vfast: update"], "optimizer"),
        (["aten::mm", "MmBackward0"], "linear maps"),
        (["aten::sum", "_LinearBackward"], "linear maps"),
        (["s2vfast::norm_linear_triton", "_forward_kernel"], "linear maps"),
        (["s2vfast::attention_triton_backward", "_grad_keys_kernel"], "attention"),
        (["CompiledFunction", "triton_poi_fused_addmm_gelu_3"], "norms and elementwise"),
        (["CompiledFunction", "nvjet_tst_128x64_64x8_1x2_h_bz_TNT"], "linear maps"),
        (["aten::copy_"], "gather, scatter, copies"),
        (["aten::sub"], "norms and elementwise"),
        (["s2vfast: forward"], "other"),
    ],
)
def test_kinds_of_work(names, kind):
    assert _step_profile.kind_of(names) == kind


def test_an_event_on_a_cpu_counts_with_its_own_time():
    outer = event("s2vfast: update", self_us=1000.0)
    backward = event("autograd::engine::evaluate_function: MmBackward0", self_us=4000.0)
    events = [outer, event("aten::mul", outer, 2000.0), backward, event("aten::t", backward, 2000.0)]
    found, launches = _step_profile.sums(events, 2, cuda=False)
    assert {kind: ms for kind, ms in found.items() if ms} == {"optimizer": 1.5, "linear maps": 3.0}
    assert launches == 0


def test_on_a_gpu_kernels_count_and_are_counted():
    cuda = torch.autograd.DeviceType.CUDA
    update = event("s2vfast: update", kernels=[("s2vfast: update", 900.0)])  # its shadow on the device
    events = [
        update,
        event("s2vfast::adamw_ema_triton", update, 50.0, [("_update_kernel", 2000.0), ("Memcpy DtoD", 1000.0)]),
        event("aten::bmm", None, 50.0, [("cutlass_80_gemm", 4000.0)]),
        event("cutlass_80_gemm", on=cuda),
    ]
    found, launches = _step_profile.sums(events, 1, cuda=True)
    assert {kind: ms for kind, ms in found.items() if ms} == {"optimizer": 3.0, "attention": 4.0}
    assert launches == 2


def test_shares_are_scaled_to_the_timed_step():
    assert _step_profile.shares({"masks": 2.0, "attention": 0.0, "other": 1.0}, 10.0, 5.0) == {
        "masks": 1.0,
        "other": 4.0,
    }
    assert _step_profile.shares({"masks": 20.0, "other": 0.0}, 10.0, 5.0) == {"masks": 5.0}


def test_a_rank_takes_its_own_share(monkeypatch):
    taken = []
    monkeypatch.setattr(_step.Step, "__call__", lambda self, parts: taken.extend(parts))
    setting = _step.Setting(tiny(), 4, CPU)
    _step.contestant(setting, "torch", Ranks(1, 2))()
    assert torch.equal(torch.cat([part.clips for part in taken]), setting.inputs()[4:])


@pytest.mark.gpu
def test_on_a_gpu_kernels_are_counted_and_have_their_kinds(monkeypatch, tmp_path):
    monkeypatch.setattr(_step, "load", lambda name: tiny())
    given = ["--device", "cuda", "--impl", "triton", "--vs", "torch", "reference", "--repeat", "2"]
    assert bench_step.main([*given, "--batch", "8", "--memory", "--out", str(tmp_path)]) == 0
    rows = _results.read(next(tmp_path.glob("*/step.json")))["rows"]
    assert [row["impl"] for row in rows] == ["triton:graph", "torch:graph", "reference"]
    for row in rows:
        assert row["launches"] > 20
        assert row["peak_mib"] > 0
        assert sum(row["breakdown"].values()) == pytest.approx(row["p50"], rel=1e-3)
        assert {"attention", "linear maps", "optimizer", "masks"} <= set(row["breakdown"])
