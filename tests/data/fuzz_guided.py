"""Fuzzing of every reader that is guided by coverage (libFuzzer, by atheris): ``make fuzz``.

    python -m tests.data.fuzz_guided [NAME …] [--runs N] [--keep]

Inputs begin with the corpus of `test_fuzz` and with those in ``fuzz_corpus``, which reached code that others did not;
``--keep`` adds what is found. An input that ends in another error than a DataError is written to ``crash-…`` here.
"""

import argparse
import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path

KEPT = Path(__file__).with_name("fuzz_corpus")
MOST_BYTES = 4096
"""Of an input: long ones are slow, and a reader's branches are all in short ones."""


def fuzz(name, runs, folder):
    """Fuzz one reader in this process, which libFuzzer ends."""
    import atheris

    with atheris.instrument_imports(include=["s2vfast.data"]):
        from s2vfast.errors import DataError

        from . import test_fuzz

    file, data = test_fuzz.CORPUS[name]
    work = Path(tempfile.mkdtemp(dir=folder))
    path = src = work / file
    if name == "stgcn labels":
        src = work / "train_data.npy"
        src.write_bytes(test_fuzz.CORPUS["stgcn"][1])

    def one(changed):
        path.write_bytes(changed)
        try:
            test_fuzz.read_all(name.split(" ")[0], src)
        except DataError as error:
            test_fuzz.one_line(str(error))

    seeds = Path(tempfile.mkdtemp(dir=folder))
    (seeds / "good").write_bytes(data)
    options = [f"-runs={runs}", f"-max_len={max(MOST_BYTES, 2 * len(data))}", "-seed=1", "-timeout=20"]
    options += ["-rss_limit_mb=4096", "-print_final_stats=1", "-verbosity=0"]
    grown = folder / "grown"
    grown.mkdir()
    kept = [str(KEPT / name.replace(" ", "_"))] if (KEPT / name.replace(" ", "_")).is_dir() else []
    atheris.Setup([sys.argv[0], *options, str(grown), str(seeds), *kept], one)
    atheris.Fuzz()


def main():
    """Fuzz readers one after the other, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="readers of test_fuzz.CORPUS (default: all)")
    parser.add_argument("--runs", type=int, default=20_000, help="inputs of each")
    parser.add_argument("--keep", action="store_true", help="add inputs that reach new code to fuzz_corpus")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)  # of a process of its own
    options = parser.parse_args()
    if options.folder:
        fuzz(options.names[0], options.runs, options.folder)
        return 0
    from . import test_fuzz

    failed = []
    for name in options.names or test_fuzz.CORPUS:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-W", "ignore", "-m", "tests.data.fuzz_guided", name]
            command += ["--runs", str(options.runs), "--folder", folder]
            done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            grown = [path.read_bytes() for path in (Path(folder) / "grown").iterdir()]
            print(f"{name}: {options.runs:,} inputs, {len(grown)} reached new code", flush=True)
            if done.returncode:
                failed.append(name)
                print(done.stderr[-4000:])
            for data in grown if options.keep else ():
                place = KEPT / name.replace(" ", "_")
                place.mkdir(parents=True, exist_ok=True)
                (place / hashlib.sha256(data).hexdigest()[:12]).write_bytes(data)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
