"""The report of measurements, on results that are made up."""

import copy
import itertools
import json
import re

import pytest

from benchmarks import _report_tables, report
from tests.benchmarks.made_up import CPU, GAINS, GPU, VERSIONS, cold, data, everything, result, step

START, END = "<!-- performance -->", "<!-- /performance -->"


class Folder:
    """A folder with results, docs and README."""

    def __init__(self, path, results):
        self.results, self.docs, self.readme = path / "results", path / "docs", path / "README.md"
        for number, record in enumerate(results):
            file = self.results / record["device"]["slug"] / f"{number}-{record['kind']}.json"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(record), "utf-8")
        self.readme.write_bytes(f"# s2vfast\r\n\né\n{START}\nold text\n{END}\n\nAfter\t\n".encode())

    def pages(self):
        """The page and README."""
        files, rows = report.pages(self.results, self.docs, self.readme)
        return files[self.docs / report.PAGE].decode(), files[self.readme].decode(), rows

    def run(self, *more):
        return report.main([f"--results={self.results}", f"--docs={self.docs}", f"--summary={self.readme}", *more])


@pytest.fixture
def folder(tmp_path):
    """Makes a `Folder` of results."""
    numbers = itertools.count()
    return lambda results: Folder(tmp_path / str(next(numbers)), results)


def tables(text):
    """Tables of a page, each with the lines of its origin."""
    blocks = text.split("\n\n")
    for number, block in enumerate(blocks):
        if block.startswith("| "):
            after = itertools.takewhile(lambda block: block.startswith("<sub>"), blocks[number + 1 :])
            yield block, "\n".join(after)


def test_results_of_other_devices_commits_and_versions_are_never_mixed(folder):
    """Every result has a time of its own: no table and no picture has two of them; each has its own origin."""
    other = {**CPU, "name": "Other CPU"}
    kinds = [(CPU, "aaa", "2030-01-02"), (CPU, "bbb+12", "2030-01-05"), (other, "aaa", "2030-01-02")]
    kinds += [(GPU, "aaa", "2030-01-02"), (CPU, "unknown", "2029-01-01"), (CPU, "aaa", "2030-01-02")]
    records = []
    for number, (device, commit, date) in enumerate(kinds):
        rows = [step("torch", 1000.0 + 111 * number, ratio=2.0, clips=clips) for clips in (2, 4)]
        rows += [{**row, "sweep": "batch"} for row in rows]
        records.append(result("step", rows, device, commit, date, command=f"command {number}"))
    records[-1]["versions"] = {**VERSIONS, "torch": "2.14.0"}
    marks = [f"1,{111 * number:03}" for number in range(6)]
    text, _, _ = folder(records).pages()
    for number, mark in enumerate(marks):
        owned = [(table, origin) for table, origin in tables(text) if f" {mark} " in table]
        assert len(owned) >= 2
        for table, origin in owned:
            assert not [other for other in marks if other != mark and f" {other} " in table]
            assert f"`command {number}`" in origin
            assert origin.count("command") == 1
            assert kinds[number][0]["name"] in origin
            assert kinds[number][2] in origin
            assert ("2.14.0" in origin) == (number == 5)
    assert "commit `bbb+12`, with uncommitted changes" in text
    assert "unknown commit" in text
    # GPUs before CPUs.
    heads = [line for line in text.splitlines() if line.startswith("## ")][2:]
    assert heads == ["## NVIDIA H100 80GB HBM3", "## AMD EPYC", "## Other CPU"]


def test_results_of_no_known_commit_are_not_of_the_same_one(folder):
    records = [result("data", data(), CPU, "unknown"), result("cold_start", cold(), CPU, "unknown")]
    glance = folder(records).pages()[0].partition("## How to read")[0]
    assert glance.count("**AMD EPYC**") == 2
    assert folder(everything()).pages()[0].partition("## How to read")[0].count("**AMD EPYC**") == 1


def test_every_table_is_followed_by_its_origin(folder):
    blocks = list(tables(folder(everything()).pages()[0]))
    assert len(blocks) > 10
    for table, origin in blocks:
        assert "`python -m benchmarks.run" in origin, table
        assert "commit `3b446ea01234` · 2030-01-02 · " in origin
        assert "torch 2.13.0" in origin
        widths = {len(line.split(" | ")) for line in table.splitlines()}
        assert len(widths) == 1, table


def test_what_was_refused_is_no_figure(folder):
    """Even where a refused row has figures: they are nowhere, the reason is."""
    records = everything()
    rows = [row for record in records for row in record["rows"]]
    for number, row in enumerate(rows):
        if row.get("op") == "tube_mask" or row.get("impl") == "reference" or row.get("what") == "clip_sample":
            row.update(refused=f"it is | wrong: {number}", p50=987654.0, ratio=876543.0, registers=765432)
    reasons = [row["refused"] for row in rows if "refused" in row]
    text, readme, last = folder(records).pages()
    assert last == f"{len(rows) - len(reasons)} rows shown, {len(reasons)} not shown (refused)"
    assert f"Refused and not shown: {len(reasons)} rows" in text
    assert not [number for number in ("987,654", "876,543", "765432") if number in text + readme]
    for reason in reasons:
        assert f": {reason}".replace("|", "\\|") in text


def test_what_matters_most_comes_first(folder):
    """Of each main setting of a step the fastest; operations in the order of their gains."""
    text, readme, _ = folder(everything()).pages()
    lines = [line for line in readme.splitlines() if line.startswith(("| A training step", "| Operations"))]
    start, than = "| A training step: ntu60, 2 clips, float32, ", "× as fast as `reference`: "
    assert lines[0] == f"{start}every body computed | **3.10{than}".replace("×", "×**") + (
        "1,000 ms, 2.00 clips a second (`torch`) |"
    )
    assert lines[1].startswith(f"{start}empty bodies shared | **3.88×**")
    gains = [float(gain) for gain in re.findall(r"\*\*([\d.]+)×", lines[2])]
    assert gains == sorted(GAINS.values(), reverse=True)
    assert all(line in text for line in lines)


def test_says_that_no_gpu_has_run_this(folder):
    for text in folder(everything()).pages()[:2]:
        assert "**No GPU has run this yet.**" in text
        assert "not run, 4 for sm_80, sm_90; checked were" in text
        assert "1 failed" in text
    assert "| `attention` | forward | 90 | bfloat16 | it spills |" in folder(everything()).pages()[0]
    gpu = everything(GPU)
    assert "No GPU" not in folder(gpu).pages()[0]
    for record in gpu[:-1]:
        record["rows"] = [row | {"refused": "no"} for row in record["rows"]]
    assert "**No GPU has run this yet.**" in folder(gpu).pages()[0]


# What a number of a row is changed to, and how it is shown then.
SHOWN = {
    "ops": {"p20": (0.4321, "0.432–"), "p50": (0.7654, "0.765 ["), "p80": (0.8642, "–0.864]"), "gb": (0.97, "GB/s"),
            "ratio": (7.771, "7.77×"), "roofline": (0.4712, "47 %"), "threads": (17, "| 17 |"),
            "bound": ("exp", "| exp |")},
    "step": {"p20": (5432.1, "[5,432–"), "p50": (6543.2, "6,543 ["), "p80": (7654.3, "–7,654]"),
             "clips_per_second": (77.71, "| 77.7 |"), "ratio": (7.771, "7.77×"), "floor": (0.4712, "47 %"),
             "difference": (3e-5, "3e-05"), "peak_mib": (4321.0, "4,321"), "launches": (4711, "4711"),
             "clips": (17, "| 17 |"), "tokens": (1717, "1717"), "breakdown": ({"x": 55.55}, "55.5")},
    "data": {"p20": (5.4321, "[5.43–"), "p50": (6.5432, "6.54 ["), "p80": (7.6543, "–7.65]"), "ratio": (771.0, "771×"),
             "other_p50": (4321.0, "4,321"), "per_second": (77771.0, "77,771"), "threads": (17, "| 17 |")},
    "cold_start": {"p20": (5.4321, "[5.43–"), "p50": (6.5432, "6.54 ["), "p80": (7.6543, "–7.65]"),
                   "phases": ({"x": 5.555}, "| 5.5")},
    "static": {"registers": (251, "| 251 |"), "spills": (4711, "| 1 |"), "shared": (77777, "| 76.0 |"),
               "wrong": (["much"], "| much |")},
}  # fmt: skip


@pytest.mark.parametrize("kind", SHOWN)
def test_every_figure_comes_from_its_row(kind, folder):
    record = {record["kind"]: record for record in everything()}[kind]
    before = folder([record]).pages()[0]
    for name, (value, shown) in SHOWN[kind].items():
        changed = copy.deepcopy(record)
        changed["rows"][0][name] = value
        lines = set(folder([changed]).pages()[0].splitlines()) - set(before.splitlines())
        assert any(shown in line for line in lines), name
    if record["ceilings"]:
        tripled = {name: value * 3 for name, value in record["ceilings"].items()}
        assert "| 63.9 |" in folder([record | {"ceilings": tripled}]).pages()[0]


def test_a_broken_result_and_a_missing_one_are_named(folder, capsys):
    where = folder(everything())
    [path] = where.results.glob("*/*-step.json")
    record = json.loads(path.read_text("utf-8"))
    del record["rows"][3]["p50"]
    path.write_text(json.dumps(record), "utf-8")
    assert where.run() == 2
    assert capsys.readouterr().err == f"error: {path}: rows[3]: field 'p50' is missing\n"
    assert where.run("--results=nowhere") == 2
    assert "nowhere: holds no results (DEVICE/KIND.json); measure first" in capsys.readouterr().err
    assert not where.docs.exists()


def test_only_the_block_of_readme_is_replaced(folder, capsys):
    where = folder(everything())
    assert where.run() == 0
    text = where.readme.read_bytes().decode()
    assert text.startswith(f"# s2vfast\r\n\né\n{START}\n")
    assert text.endswith(f"\n{END}\n\nAfter\t\n")
    assert "old text" not in text
    assert "| clip_sample, 1 thread | 50,794 clips a second, **233×** as fast as NumPy loader |" in text
    assert "[docs/performance.md](docs/performance.md)" in text
    where.readme.write_text("no marks")
    assert where.run() == 0
    assert where.readme.read_text() == "no marks"
    where.readme.write_text(f"{END}\n{START}")
    assert where.run() == 2
    assert f"{where.readme}: needs one line <!-- performance --> and" in capsys.readouterr().err


def test_the_same_results_give_the_same_bytes_and_check_says_what_is_stale(folder, capsys):
    where = folder(everything())
    assert where.run("--check") == 1
    assert not where.docs.exists()
    assert where.run() == where.run("--check") == 0
    files, _ = report.pages(where.results, where.docs, where.readme)
    pictures = [path for path in files if path.suffix == ".svg"]
    assert {path.name for path in pictures} == {"cpu-speedup.svg", "cpu-breakdown.svg"}
    page = files[where.docs / report.PAGE].decode()
    assert all(page.count(f"](performance/{path.name})") == 1 for path in pictures)
    for path, content in files.items():
        path.write_bytes(content.replace(b"233", b"332") if path == where.readme else content + b"\n")
        assert where.run("--check") == 1
        assert str(path) in capsys.readouterr().out
        path.write_bytes(content)
    leftover = where.docs / "performance/gone-speedup.svg"
    leftover.write_text("")
    assert where.run("--check") == 1
    assert f"{leftover}: belongs to no result" in capsys.readouterr().out


def test_a_picture_has_bars_in_proportion():
    text = _report_tables.bars("A <title>", [("a", {"x": 1.0, "y": 3.0}, "4 ms"), ("b", {"x": 2.0}, "2 ms")])
    widths = [float(width) for width in re.findall(r'<rect [^>]*width="([\d.]+)" height="16"', text)]
    assert widths == pytest.approx([100.0, 300.0, 200.0])
    assert "A &lt;title&gt;" in text


def test_what_is_modelled_stands_at_the_end_apart_from_what_is_measured(folder):
    made = folder([result("step", [step("torch", 1000.0, ratio=2.0)], CPU)])
    without, _, _ = made.pages()
    assert "odelled" not in without.replace("what is modelled stands apart", "")
    (made.results / "static").mkdir()
    (made.results / "static/modelled.md").write_text("## Modelled, not measured\n\nA step: 13 ms.\n", "utf-8")
    text, summary, _ = made.pages()
    assert text == without + "\n## Modelled, not measured\n\nA step: 13 ms.\n"
    assert "odelled" not in summary
