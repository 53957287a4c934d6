"""The report of measurements, on results that are made up."""

import copy
import itertools
import json
import math
import re

import pytest

from benchmarks import _groups, _plots, _sheet, report
from tests.benchmarks.made_up import CPU, GPU, NOWHERE, VERSIONS, everything, parts, result, step


class Place:
    """A folder with results, and where the pages go."""

    def __init__(self, folder, results):
        self.results, self.docs, self.readme = folder / "results", folder / "docs", folder / "README.md"
        for number, made in enumerate(results):
            path = self.results / made["device"]["slug"] / f"{number}-{made['kind']}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(made), "utf-8")
        self.readme.write_bytes(
            f"# s2vfast\r\n\nBefore é\n{report.START}\nwhat was there\n{report.END}\n\nAfter\t\n".encode()
        )

    def page(self):
        return report.pages(self.results, self.docs, self.readme)[0]

    def run(self, *more):
        return report.main([f"--results={self.results}", f"--docs={self.docs}", f"--readme={self.readme}", *more])

    def files(self):
        paths = [path for path in [self.readme, *self.docs.rglob("*")] if path.is_file()]
        return {path.name: path.read_bytes() for path in paths}


@pytest.fixture
def place(tmp_path):
    """Makes a `Place` of results."""
    numbers = itertools.count()
    return lambda results: Place(tmp_path / str(next(numbers)), results)


def tables(text):
    """Tables of a page, each with what stands between it and the next heading, table or fold: its origin."""
    blocks = text.split("\n\n")
    for at, block in enumerate(blocks):
        if block.startswith("| "):
            after = itertools.takewhile(lambda block: block.startswith("<sub>"), blocks[at + 1 :])
            yield block, "\n".join(after)


def test_results_of_other_devices_commits_and_versions_are_never_mixed(place):
    """Every result has a time of its own: no table, and no picture, has two of them; each has its own origin."""
    other = {**CPU, "name": "Other CPU"}
    kinds = [(CPU, "aaa", "2030-01-02"), (CPU, "bbb+12", "2030-01-05"), (other, "aaa", "2030-01-02")]
    kinds += [(GPU, "aaa", "2030-01-02"), (CPU, "unknown", "2029-01-01"), (CPU, "aaa", "2030-01-02")]
    # Two of which nobody knows the commit need not be of the same one.
    assert len(_groups.groups([result("step", [], CPU, "unknown", "2029-01-01") for _ in range(2)])) == 2
    made = []
    for number, (device, commit, date) in enumerate(kinds):
        rows = [step("torch", 1000.0 + 111 * number, ratio=2.0, breakdown=parts(100.0 + 11 * number), clips=clips)
                for clips in (2, 4)]  # fmt: skip
        rows += [{**row, "sweep": "batch"} for row in rows]
        made.append(result("step", rows, device, commit, date, command=f"command {number}"))
    made[-1]["versions"] = {**VERSIONS, "torch": "2.14.0"}
    marks = [f"1,{111 * number:03}" for number in range(6)]
    where = place(made)
    text = where.page()
    for number, mark in enumerate(marks):
        assert text.count(f"{mark} [") == 4
        owned = [(table, origin) for table, origin in tables(text) if f" {mark} " in table]
        assert len(owned) >= 2
        for table, origin in owned:
            assert not [other for other in marks if other != mark and f" {other} " in table]
            assert f"`command {number}`" in origin
            assert origin.count("command") == 1
            assert kinds[number][0]["name"] in origin
            assert kinds[number][2] in origin
            assert ("2.14.0" in origin) == (number == 5)
    drawn = [plot for group in _groups.groups(made) for plot in _plots.plots(group).values()]
    assert len({plot.name for plot in drawn}) == len(drawn) == 12
    for plot in drawn:
        assert (
            sum(mark in plot.alt or f"{2000 / (1000 + 111 * n):#.3g} at 2" in plot.alt for n, mark in enumerate(marks))
            == 1
        )
    first = text.partition("## How to read")[0]
    assert [f" {mark} ms, " in first for mark in marks] == [False, True, True, True, False, False]
    assert "commit `bbb+12`, with uncommitted changes" in text
    assert "unknown commit" in text
    # Of a device the newest first, GPUs before CPUs.
    heads = [line for line in text.splitlines() if line.startswith("## ")][2:]
    assert heads[:2] == ["## NVIDIA H100 80GB HBM3", "## AMD EPYC"]
    assert heads[2].startswith("## AMD EPYC, commit `aaa`, 2030-01-02")
    assert heads[4:] == ["## AMD EPYC, unknown commit, 2029-01-01", "## Other CPU"]


def test_every_table_is_followed_by_its_origin(place):
    found = list(tables(place(everything(GPU, CPU, NOWHERE)).page()))
    assert len(found) > 30
    for table, origin in found:
        assert "`python -m benchmarks.run" in origin, table
        assert "commit `3b446ea01234` · 2030-01-02 · " in origin
        assert "torch 2.13.0" in origin


def test_what_was_refused_is_no_figure(place):
    """Even where a refused row has figures: they are nowhere, the reason is."""
    made = everything(CPU, NOWHERE)
    rows = [row for one in made for row in one["rows"]]
    for number, row in enumerate(rows):
        if row.get("stem") == "tube_mask" or row.get("impl") == "reference" or row.get("what") == "clip_sample":
            row.update(refused=f"it is | wrong: {number}", p50=987654.0, ratio=876543.0, registers=765432)
    why = [row["refused"] for row in rows if "refused" in row]
    where = place(made)
    text, readme, drawn, last = report.pages(where.results, where.docs, where.readme)
    assert last == f"{len(rows) - len(why)} rows shown, {len(why)} not shown (refused)"
    assert f"Refused and not shown: {len(why)} rows" in text
    for figure in ("987,654", "876,543", "765432"):
        assert not [said for said in (text, readme, *(plot.alt for plot in drawn)) if figure in said]
    for reason in why:
        assert text.count(f"not shown: {reason}\n".replace("|", "\\|").removesuffix("\n")) >= 1
        assert f": {reason}".replace("|", "\\|") in text
    [line] = [line for line in text.splitlines() if line.startswith("| `tube_mask`")]
    assert "not shown: all" in line
    assert "Operations of which nothing is shown | `tube_mask`" in readme
    for table, _ in tables(text):
        for line in table.splitlines()[2:]:
            assert len(line.split(" | ")) == len(table.splitlines()[0].split(" | ")), line


def test_what_matters_most_comes_first(place):
    """Of each main setting of a step the fastest; operations in the order of what they gain."""
    where = place(everything(GPU))
    text, readme, _, _ = report.pages(where.results, where.docs, where.readme)
    lines = [line for line in readme.splitlines() if line.startswith(("| A training step", "| Operations"))]
    start, than = "| A training step: ntu60, 64 clips, bfloat16, ", "| **8.61×** as fast as `reference`: "
    assert lines[:2] == [
        f"{start}every body computed {than}12.9 ms, 4,961 clips a second (`triton:graph`) |",
        f"{start}empty bodies shared {than}11.2 ms, 5,703 clips a second (`triton:graph`) |",
    ]
    gains = [float(gain) for gain in re.findall(r"\*\*([\d.]+)×", lines[2])]
    assert len(lines) == 3
    assert len(gains) == 11
    assert gains == sorted(gains, reverse=True)
    assert all(line in text for line in lines)


def test_says_that_no_gpu_has_run_this(place):
    without, compiled = place(everything(CPU)), place(everything(CPU, NOWHERE))
    gpu = everything(GPU, NOWHERE)
    for where in (without, compiled):
        for text in report.pages(where.results, where.docs, where.readme)[:2]:
            assert "**No GPU has run this yet.**" in text
            assert "All else about GPUs is unknown: times, speed-ups" in text
    assert "Nor is there a result of compiling its kernels." in without.page()
    assert "not run, 198 for sm_80, sm_90, sm_100; checked were spilled registers, " in compiled.page()
    assert "matrix instructions: 1 failed" in compiled.page()
    assert "No GPU" not in place(gpu).page()
    for one in gpu[:-1]:
        one["rows"] = [row | {"refused": "no"} for row in one["rows"]]
    text = place(gpu).page()
    assert "**No GPU has given a figure yet.** One was tried, and " in text
    assert f"| training steps | not shown: {len(gpu[1]['rows'])} rows, all refused |" in text


BROKEN = {
    "rows[3]: field 'p50' is missing": ("rows", 3, "p50", None),
    "rows[3]: p50: expected int/float, got 'fast'": ("rows", 3, "p50", "fast"),
    "rows[3]: p50: expected more than 0, got 0.0": ("rows", 3, "p50", 0.0),
    "rows[3]: ratio: expected more than 0, got -1": ("rows", 3, "ratio", -1),
    "rows[0]: breakdown: attention: expected a number, 0 or more, got 'x'": (
        "rows",
        0,
        "breakdown",
        {"attention": "x"},
    ),
    "rows[3]: floor: expected a finite number, got inf": ("rows", 3, "floor", math.inf),
    "rows[3]: unknown field 'more'": ("rows", 3, "more", 1),
    "device: slug: expected letters, digits, - and ., got '../x'": ("device", "slug", "../x"),
    "device: field 'threads' is missing": ("device", "threads", None),
    "date: expected YYYY-MM-DD, got 'today'": ("date", "today"),
    "schema: expected 1, got 0; measure again": ("schema", 0),
    "ceilings: copy_gb_s: expected a number above 0, got 'much'": ("ceilings", "copy_gb_s", "much"),
}


@pytest.mark.parametrize("said", BROKEN)
def test_a_broken_result_is_named_with_row_and_field(said, place, capsys):
    where = place(everything(CPU))
    *way, last, value = BROKEN[said]
    [path] = where.results.glob("*/*-step.json")
    made = at = json.loads(path.read_text("utf-8"))
    for part in way:
        at = at[part]
    if value is None:
        del at[last]
    else:
        at[last] = value
    path.write_text(json.dumps(made), "utf-8")
    assert where.run() == 2
    assert capsys.readouterr().err == f"error: {path}: {said}\n"
    assert not where.docs.exists()


def test_results_that_are_not_there_and_a_readme_without_marks_are_errors(place, capsys):
    where = place(everything(NOWHERE))
    assert where.run("--results=nowhere") == 2
    assert "nowhere: holds no results (DEVICE/KIND.json); measure first" in capsys.readouterr().err
    for text in ("no marks", f"{report.END}\n{report.START}", f"{report.START}\n" * 2 + report.END):
        where.readme.write_text(text)
        assert where.run() == 2
        assert f"{where.readme}: needs one line <!-- performance --> and" in capsys.readouterr().err
        assert where.readme.read_text() == text
        assert not where.docs.exists()


def test_only_the_block_of_readme_is_replaced(place):
    where = place(everything(CPU)[2:])
    where.run()
    found = where.readme.read_bytes().decode()
    assert found.startswith(f"# s2vfast\r\n\nBefore é\n{report.START}\n")
    assert found.endswith(f"\n{report.END}\n\nAfter\t\n")
    assert "what was there" not in found
    assert "| clip_sample, 1 thread | 50,794 clips a second, **233×** as fast as NumPy loader |" in found
    assert "[docs/performance.md](docs/performance.md)" in found


# What a number of a row is changed to, and how it is shown then.
SHOWN = {
    "ops": {"p20": (0.4321, "0.432–"), "p50": (0.7654, "0.765 ["), "p80": (0.8642, "–0.864]"), "gb": (0.97, "GB/s"),
            "ratio": (7.771, "7.77×"), "roofline": (0.4712, "47 %"), "threads": (17, "| 17 |"),
            "bound": ("exp", "| exp |")},
    "step": {"p20": (5432.1, "[5,432–"), "p50": (6543.2, "6,543 ["), "p80": (7654.3, "–7,654]"),
             "clips_per_second": (77.71, "| 77.7 |"), "ratio": (7.771, "7.77× `reference`"), "floor": (0.4712, "47 %"),
             "difference": (3e-5, "3e-05"), "peak_mib": (4321.0, "4,321"), "launches": (4711, "4,711"),
             "clips": (17, "| 17 |"), "tokens": (1717, "1717"), "ranks": (17, "17"),
             "breakdown": ({"x": 55.55}, "55.5")},
    "data": {"p20": (5.4321, "[5.43–"), "p50": (6.5432, "6.54 ["), "p80": (7.6543, "–7.65]"), "ratio": (771.0, "771×"),
             "other_p50": (4321.0, "4,321"), "per_second": (77771, "77,771"), "threads": (17, "| 17 |")},
    "cold_start": {"p20": (5.4321, "[5.43–"), "p50": (6.5432, "6.54 ["), "p80": (7.6543, "–7.65]"),
                   "phases": ({"x": 5.555}, "| 5.5")},
    "static": {"registers": (251, "| 251 |"), "spills": (4711, "| 4711 |"), "shared": (77777, "| 76.0 |"),
               "instructions": ({"HGMMA": 4711}, "| 4711 |"), "wrong": (["much"], "| much |")},
}  # fmt: skip


@pytest.mark.parametrize("kind", SHOWN)
def test_every_figure_comes_from_its_row(kind, place):
    made = {one["kind"]: one for one in everything(NOWHERE, CPU)}[kind]
    before = place([made]).page()
    for field, (value, shown) in SHOWN[kind].items():
        changed = copy.deepcopy(made)
        changed["rows"][0][field] = value
        after = place([changed]).page()
        new, old = (set(text.splitlines()) for text in (after, before))
        assert any(shown in line for line in new - old), field
    ceilings = {name: value * 3 for name, value in made["ceilings"].items()}
    if ceilings:
        assert "| 63.9 |" in place([made | {"ceilings": ceilings}]).page()


def test_the_same_results_give_the_same_bytes(place):
    made = everything(CPU, NOWHERE)
    first, second = place(made), place(list(reversed(made)))
    assert first.run() == second.run() == 0
    files, others = first.files(), second.files()
    assert files.keys() == others.keys()
    # Only the order in which a table's commands are named is that of the files.
    assert [name for name in files if name.endswith(".png") and files[name] != others[name]] == []
    pages = report.pages(first.results, first.docs, first.readme)
    assert (files["performance.md"], files["README.md"]) == tuple(text.encode() for text in pages[:2])
    pictures = {name: content for name, content in files.items() if name.endswith(".png")}
    assert len(pictures) == 12
    for name, content in pictures.items():
        assert not {b"tIME", b"tEXt", b"iTXt"} & set(re.findall(rb"[a-zA-Z]{4}", content[:1200])), name
        assert files["performance.md"].decode().count(f'="performance/{name}"') == 1


def test_check_says_what_is_stale(place, capsys):
    where = place([one for one in everything(CPU, NOWHERE) if one["kind"] != "step"])
    assert where.run("--check") == 1
    assert not where.docs.exists()
    where.run()
    assert where.run("--check") == 0
    assert report.stale(where.docs, where.results, where.readme) == []
    picture = where.docs / "performance/cpu-speedup-dark.png"
    spoiled = {where.docs / "performance.md": b"\n", where.readme: None, picture: b"another version's"}
    for path, more in spoiled.items():
        good = path.read_bytes()
        path.write_bytes(good + more if more else good.replace(b"233", b"332"))
        # Another matplotlib draws other bytes.
        assert where.run("--check") == (path != picture)
        assert (str(path) in capsys.readouterr().out) == (path != picture)
        path.write_bytes(good)
    picture.rename(picture.with_name("old-speedup-dark.png"))
    found = report.stale(where.docs, where.results, where.readme)
    assert [line.rpartition("/")[2] for line in found] == [
        "cpu-speedup-dark.png: is missing; run python -m benchmarks.report",
        "old-speedup-dark.png: belongs to no result; delete it",
    ]
    where.run()
    assert where.run("--check") == 0
    [path] = where.results.glob("*/*-data.json")
    path.write_text(path.read_text("utf-8").replace("232.6", "999.9"), "utf-8")
    assert where.run("--check") == 1


def boxes(sheet):
    """All words of a picture that stand upright, and where they are, in pixels. It has been drawn."""
    words = list(sheet.figure.texts)
    for axes in sheet.figure.axes:
        words += [*axes.get_xticklabels(), *axes.get_yticklabels(), axes.xaxis.label, axes.yaxis.label]
    words = [word for word in words if word.get_text().strip() and not word.get_rotation() % 90]
    for word in words:
        word.set_bbox(None)
    return [(word.get_text(), word.get_window_extent(sheet.canvas.get_renderer())) for word in words]


@pytest.mark.parametrize("device", [CPU, GPU], ids=["few", "many"])
def test_no_words_cover_each_other(device):
    [group] = _groups.groups(everything(device, commit="3b446ea01234+12345678"))
    for name, plot in _plots.plots(group).items():
        sheet = plot.draw(_plots.THEMES[0])
        assert len(sheet.png()) < 150_000
        width, height = sheet.canvas.get_width_height()
        found = boxes(sheet)
        for word, box in found:
            assert min(box.x0, box.y0) >= 0, (name, word)
            assert (box.x1 <= width, box.y1 <= height) == (True, True), (name, word)
        for (one, a), (other, b) in itertools.combinations(found, 2):
            apart = min(a.x1, b.x1) - max(a.x0, b.x0) < 2 or min(a.y1, b.y1) - max(a.y0, b.y0) < 4
            assert apart, f"{name}: {one!r} and {other!r}"


def test_labels_are_kept_apart_and_lines_do_not_cross():
    assert _sheet.apart([1.0, 1.0, 5.0], 0.5) == [0.75, 1.25, 5.0]
    assert _sheet.apart([3.0, 1.0], 0.5) == [3.0, 1.0]
    points = [(0.0, 0.0), (0.5, 0.0)]
    assert _sheet.uncrossed(points, 1.0, [1.0, 2.0]) == [2.0, 1.0]
    assert _sheet.uncrossed(points, 1.0, [2.0, 1.0]) == [2.0, 1.0]
    assert _sheet.decades(0.9, 30) == [1, 2, 5, 10, 20]
    assert _sheet.decades(0.9, 1000) == [1, 10, 100, 1000]


def test_one_setting_stands_for_an_operation():
    """The published shape, with the backward pass, bfloat16 on a GPU, out of no cache; on a CPU all threads."""
    [gpu], [cpu] = _groups.groups(everything(GPU)), _groups.groups(everything(CPU))
    for group, state, count in ((gpu, "cold", 0), (cpu, "warm", 2)):
        for stem, shape in {"embed_gather": "ntu", "attention": "ntu"}.items():
            rows = _groups.headline(group, stem)
            assert len({row["impl"] for row in rows}) == len(rows) > 1
            found = {(row["shape"], row["pass"], row["state"], row["threads"]) for row in rows}
            assert found == {(shape, "forward+backward", state, count)}
    # A shape at which a kernel of ours was measured comes first.
    for row in gpu.rows("ops"):
        row["impl"] = "torch:graph" if (row["impl"], row["shape"]) == ("triton", "ntu") else row["impl"]
    assert {row["shape"] for row in _groups.headline(gpu, "mlp")} == {"ntu_student"}
