"""The benchmark of whole steps, on a network that takes no time."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch

from benchmarks import _ceilings, _results, _step_profile, _train_step, bench_step
from s2vfast import errors, presets
from s2vfast.config import Config

CPU = torch.device("cpu")
CEILINGS = {"copy_gb_s": 10.0, "matmul_float32": 0.1, "exp_g_s": 1.0}


def tiny(**mask):
    config = Config()
    config.data.frames = 30
    config.model.dim, config.model.heads, config.model.depth, config.objective.decoder_depth = 32, 2, 2, 1
    config.objective.top_k = 2
    for name, value in mask.items():
        setattr(config.mask, name, value)
    config.validate(_train_step.LAYOUT)
    return config


@pytest.fixture
def small(monkeypatch):
    """A network, a product and ceilings that take no time."""
    monkeypatch.setattr(_train_step, "load", lambda name: tiny())
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
    honest = _train_step.contestant

    def contestant(setting, asked, *more, **options):
        advance = honest(setting, asked, *more, **options)
        return do(advance) if asked == name else advance

    monkeypatch.setattr(_train_step, "contestant", contestant)


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
        assert row["breakdown"]["other"] < 0.8 * row["p50"]  # waiting, too: others may use the machine


def test_what_differs_is_not_timed_and_the_others_are(run, monkeypatch):
    spoil(monkeypatch, "torch:eager", lambda advance: lambda: advance() * 1.0001)
    code, rows = run("--vs", "torch:eager", "reference")
    assert code == 1
    assert [("refused" in row) for row in rows] == [False, True, False]
    assert "differ from reference's" in rows[1]["refused"]


def test_the_published_step_has_one_mask_a_clip_and_so_have_all(run, monkeypatch):
    monkeypatch.setattr(_train_step, "load", lambda name: tiny(masks_per_clip=4))
    code, rows = run("--config", "mine")
    assert code == 0
    assert {row["config"] for row in rows} == {"mine, one mask a clip"}
    code, rows = run("--config", "mine", "--impl", "torch:eager", "--vs", "torch")
    assert code == 0
    assert {row["config"] for row in rows} == {"mine"}


def test_a_loss_that_is_no_number_is_refused(run, monkeypatch):
    spoil(monkeypatch, "torch", lambda advance: lambda: advance() * float("nan"))
    code, rows = run()
    assert code == 1
    assert "refused" in rows[0]


def test_without_the_last_one_nothing_is_timed(run):
    code, rows = run("--vs", "native", "--sweep", "batch", "tokens")
    assert code == 1
    assert len(rows) == 2
    assert "norm_linear has no native" in rows[1]["refused"]
    assert "could not run" in rows[0]["refused"]


def test_what_has_no_memory_is_no_mistake(run, monkeypatch):
    def full(advance):
        raise torch.OutOfMemoryError

    spoil(monkeypatch, "torch:eager", full)
    code, rows = run("--vs", "torch:eager", "reference")
    assert code == 0
    assert rows[1]["refused"] == bench_step.NO_MEMORY


def test_sweeps_over_clips_and_tokens(run):
    code, rows = run("--batch", "2", "--sweep", "batch", "tokens")
    assert code == 0
    by_sweep = {sweep: [row for row in rows if row["sweep"] == sweep] for sweep in ("main", "batch", "tokens")}
    # The published step takes part up to the size of the main one.
    assert [(row["clips"], row["impl"]) for row in by_sweep["batch"]] == [
        (1, "torch"), (1, "reference"), (2, "torch"), (2, "reference"), (4, "torch"), (8, "torch")
    ]  # fmt: skip
    assert {row["tokens"] for row in by_sweep["batch"]} == {250}
    assert [(row["tokens"], row["impl"]) for row in by_sweep["tokens"]] == [
        (125, "torch"), (125, "reference"), (250, "torch"), (250, "reference"), (500, "torch")
    ]  # fmt: skip
    assert {row["clips"] for row in by_sweep["tokens"]} == {2}
    assert by_sweep["batch"][2] == {**by_sweep["main"][0], "sweep": "batch"}
    for row in by_sweep["batch"] + by_sweep["tokens"]:
        alone = row["clips"] * row["tokens"] > 500
        assert (row["difference"] is None) == (row["ratio"] is None) == alone
    assert by_sweep["batch"][5]["gflop"] == pytest.approx(8 * by_sweep["batch"][0]["gflop"], rel=1e-2)


def test_memory_is_that_of_a_process_of_its_own(run, monkeypatch):
    assert 1 < _train_step.peak(pair_of_clips(), "torch") < 500
    monkeypatch.setattr(_train_step, "peak", lambda setting, name: {"torch": 1.5, "reference": 4.5}[name])
    assert [row["peak_mib"] for row in run("--memory")[1]] == [1.5, 4.5]


def pair_of_clips():
    return _train_step.Setting(tiny(), 2, CPU)


def test_a_ratio_is_that_of_the_middle_round():
    bench = bench_step.Bench(pair_of_clips(), "tiny", ["torch", "reference"], 3, CEILINGS)
    ours = bench_step.Contestant(pair_of_clips(), "torch", times=[2.0, 4.0, 1.0])
    reference = bench_step.Contestant(pair_of_clips(), "reference", times=[6.0, 20.0, 9.0])
    rows = bench.rows([ours, reference])
    assert [row["ratio"] for row in rows] == [5.0, 1.0]
    assert [row["p50"] for row in rows] == [2.0, 9.0]
    assert bench.rows([ours])[0]["ratio"] is None


def test_rows_are_written_after_each_round(run, monkeypatch, tmp_path):
    """What is stopped has the rounds before."""
    real, rounds = bench_step.take_turns, []

    def stopped(contestants, repeat):
        for _ in real(contestants, repeat):
            rounds.append(1)
            if len(rounds) == 2:
                raise KeyboardInterrupt
            yield

    monkeypatch.setattr(bench_step, "take_turns", stopped)
    with pytest.raises(KeyboardInterrupt):
        run()
    rows = _results.read(tmp_path / "cpu/step.json.partial")["rows"]
    assert [row["impl"] for row in rows] == ["torch", "reference"]
    assert all(row["p50"] > 0 for row in rows)


def test_a_process_that_fails_says_why():
    with pytest.raises(errors.TrainingError, match=r"measures native failed: .*norm_linear has no native"):
        _train_step.peak(pair_of_clips(), "native")


def test_the_json_has_the_ratio_and_a_file_its_name_without_its_folder(run, capsys):
    code, rows = run("--json", "--config", "some/where/mine.yaml")
    printed = json.loads(capsys.readouterr().out)
    assert code == 0
    assert printed["rows"] == rows
    assert printed["ratio"] == rows[0]["ratio"] > 0
    assert {row["config"] for row in rows} == {"mine"}


def test_a_contestant_that_fails_is_refused_and_the_others_are_timed(run, monkeypatch):
    real = _train_step.contestant

    def failing(setting, name, *more, **options):
        advance, left = real(setting, name, *more, **options), [bench_step.CHECKED + 1]

        def step():
            left[0] -= 1
            if left[0] < 0 and name == "torch":
                raise IndexError("it is used up")
            return advance()

        return step

    monkeypatch.setattr(_train_step, "contestant", failing)
    code, rows = run()
    assert code == 1
    assert [row.get("refused") for row in rows] == ["IndexError: it is used up", None]


def test_what_is_not_found_beside_the_times_costs_no_more(run, monkeypatch, capsys):
    def failing(*arguments):
        raise errors.TrainingError("no process to be had")

    monkeypatch.setattr(_step_profile, "breakdown", failing)
    monkeypatch.setattr(_train_step, "peak", failing)
    code, rows = run("--memory")
    assert code == 0
    assert [(row["breakdown"], row["launches"], row["peak_mib"]) for row in rows] == [({}, None, None)] * 2
    assert "not measured: TrainingError: no process to be had" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--impl", "torch:graph"], "a graph needs a GPU"),
        (["--impl", "trion"], "no implementation 'trion'"),
        (["--impl", "torch:fast"], "with one of :eager, :graph"),
        (["--vs", "torch"], "torch is there twice"),
        (["--device", "cuda"], "no GPU that PyTorch can use"),
    ],
)
def test_what_cannot_be_done_is_one_line(small, capsys, monkeypatch, arguments, text):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert bench_step.main(arguments) == 2
    assert text in capsys.readouterr().err


def test_a_contestants_name_has_the_mode_of_the_device():
    cuda = torch.device("cuda")
    assert [_train_step.label(name, CPU) for name in ("torch", "reference")] == ["torch", "reference"]
    assert _train_step.label("triton", cuda) == "triton:graph"
    assert _train_step.label("torch:compile", cuda) == "torch:compile"
    assert _train_step.label("reference", cuda) == "reference"


def test_the_defaults_are_ntu60(monkeypatch):
    """A bare machine reads no YAML."""
    defaults, preset = Config().to_dict(), presets.load("ntu60").to_dict()
    for section in ("data", "model", "mask"):
        assert defaults[section] == preset[section]
    preset["objective"]["ema_steps"] = None
    assert defaults["objective"] == preset["objective"]
    monkeypatch.setitem(sys.modules, "yaml", None)
    assert _train_step.load("ntu60") == Config()
    with pytest.raises(errors.ConfigError, match="needs PyYAML"):
        _train_step.load("nwucla")


def test_empty_bodies_are_second_bodies():
    setting = _train_step.Setting(tiny(), 3, CPU).changed("objective", empty_bodies="share")
    clips = setting.inputs()
    assert [bool(track.any()) for track in clips] == [True, False, True, False, True, True]
    assert setting.empty == 2
    assert setting.changed("objective", empty_bodies="compute").empty == 0
    assert setting.changed("data", bodies=1).empty == 0


def test_the_floor_adds_up_what_each_part_is_bound_by():
    setting = _train_step.Setting(tiny(), 2, CPU).changed("objective", empty_bodies="compute")
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
    times, launches = _step_profile.sums(events, 2, cuda=False)
    assert {kind: ms for kind, ms in times.items() if ms} == {"optimizer": 1.5, "linear maps": 3.0}
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
    times, launches = _step_profile.sums(events, 1, cuda=True)
    assert {kind: ms for kind, ms in times.items() if ms} == {"optimizer": 3.0, "attention": 4.0}
    assert launches == 2


def test_shares_are_scaled_to_the_timed_step():
    assert _step_profile.scaled({"masks": 2.0, "attention": 0.0, "other": 1.0}, 10.0, 5.0) == {
        "masks": 1.0,
        "other": 4.0,
    }
    assert _step_profile.scaled({"masks": 20.0, "other": 0.0}, 10.0, 5.0) == {"masks": 5.0}


@pytest.mark.gpu
def test_on_a_gpu_kernels_are_counted_and_have_their_kinds(monkeypatch, tmp_path):
    monkeypatch.setattr(_train_step, "load", lambda name: tiny())
    arguments = ["--device", "cuda", "--impl", "triton", "--vs", "torch", "reference", "--repeat", "2"]
    assert bench_step.main([*arguments, "--batch", "8", "--memory", "--out", str(tmp_path)]) == 0
    rows = _results.read(next(tmp_path.glob("*/step.json")))["rows"]
    assert [row["impl"] for row in rows] == ["triton:graph", "torch:graph", "reference"]
    for row in rows:
        assert row["launches"] > 20
        assert row["peak_mib"] > 0
        assert sum(row["breakdown"].values()) == pytest.approx(row["p50"], rel=1e-3)
        assert {"attention", "linear maps", "optimizer", "masks"} <= set(row["breakdown"])
