"""Two versions of s2vfast: each in a folder of its own, with a process that measures it.

The revision comes out of ``git archive``: the working tree, the index and .git stay as they are. This tree is copied as
it is, dirty or not.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks._results import ROOT
from s2vfast import errors

_COPIED = ("s2vfast", "kernels", "configs", "csrc", "setup.py", "pyproject.toml", "README.md", "LICENSE")
_BUILT_FROM = ("csrc", "setup.py")


class NotCompared(Exception):
    """Why a case is not compared."""

    fault = False


class Refused(NotCompared):
    """A version is wrong, so that its time says nothing."""

    fault = True


@dataclass
class Version:
    """One version of s2vfast in a folder of its own, and the process that measures it."""

    name: str
    folder: Path
    device: torch.device
    dtype: str
    is_this_tree: bool  # which may lack nothing; an old revision may
    process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start the process."""
        with open(self._log, "w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks._worker", str(self.folder), str(self.device), self.dtype],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    @property
    def _log(self) -> Path:
        return self.folder.with_suffix(".log")

    def ask(self, **request: Any) -> dict[str, Any]:
        """The answer of `benchmarks._worker`; ``failed`` where its process ended: the next request starts another."""
        if self.process is None:
            self.start()
        assert self.process is not None
        assert self.process.stdout is not None
        try:
            print(json.dumps(request), file=self.process.stdin, flush=True)
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if line:
            return json.loads(line)
        code = self.process.wait()
        self.close()
        end = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return {"failed": f"its process ended with {end}; {_last_lines(self._log.read_text('utf-8', 'replace'))}"}

    def need(self, **request: Any) -> dict[str, Any]:
        """The answer; raises `NotCompared` where there is none.

        What this tree claims and cannot do is refused; what an old revision cannot do may be its age.
        """
        answer = self.ask(**request)
        if "wrong" in answer:
            raise Refused(f"{self.name} does not agree with its reference: {answer['wrong']}")
        if "failed" in answer and self.is_this_tree:
            raise Refused(f"{self.name}: {answer['failed']}")
        if why := answer.get("failed") or answer.get("declined"):
            raise NotCompared(f"{self.name}: {why}")
        return answer

    def close(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


def _last_lines(text: str) -> str:
    return " | ".join(line.strip() for line in text.strip().splitlines()[-3:])


def _git(*words: str) -> bytes:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True)
    except OSError as error:
        raise errors.ConfigError(f"--compare: git cannot be run ({error}); install it") from None
    if done.returncode:
        raise errors.ConfigError(f"git {words[0]}: {_last_lines(done.stderr.decode('utf-8', 'replace')) or 'failed'}")
    return done.stdout


def unpack(rev: str, folder: Path) -> str:
    """Write a revision's files into a folder; the commit's short name.

    Raises:
        ConfigError: no git checkout, or no such revision.
    """
    try:
        top = Path(_git("rev-parse", "--show-toplevel").decode().strip())
    except errors.ConfigError as error:
        raise errors.ConfigError(f"--compare {rev}: needs a git checkout of s2vfast; {error}") from None
    if top.resolve() != ROOT.resolve():
        raise errors.ConfigError(f"--compare {rev}: needs a git checkout of s2vfast, and {ROOT} is a part of {top}")
    try:
        commit = _git("rev-parse", "--verify", "--quiet", f"{rev}^{{commit}}").decode().strip()
    except errors.ConfigError:
        shallow = _git("rev-parse", "--is-shallow-repository").strip() == b"true"
        more = "; this is a shallow clone, git fetch --unshallow gets the others" if shallow else ""
        raise errors.ConfigError(f"--compare {rev}: there is no such commit, branch or tag here{more}") from None
    with zipfile.ZipFile(io.BytesIO(_git("archive", "--format=zip", "-0", commit))) as archive:
        archive.extractall(folder)
    _link(folder)
    return commit[:10]


def snapshot(folder: Path) -> None:
    """Copy this tree's package as it is: the processes import as they go, and somebody may be editing."""
    ignore = shutil.ignore_patterns("__pycache__", "*.so", "_native_*.txt")
    folder.mkdir()
    for name in _COPIED:
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, folder / name, symlinks=True, ignore=ignore)
        elif path.exists():
            shutil.copy2(path, folder / name)
    _link(folder)


def _link(folder: Path) -> None:
    """Link kernels/ and configs/ to where an installation puts them: what is installed here would be found instead."""
    for name in ("kernels", "configs"):
        link = folder / "s2vfast" / name
        if link.parent.is_dir() and (folder / name).is_dir() and not link.exists():
            link.symlink_to(f"../{name}")


def install(old: Path, new: Path, gpu: bool) -> None:
    """Put the compiled extension into both folders.

    Where its sources are the same, both get the one that is built in the working tree. Else both are built in the same
    way; on a CPU without the part for GPUs.
    """
    sources = [_sources(folder) for folder in (old, new)]
    built = list((ROOT / "s2vfast").glob("_native*"))
    if sources[0] == sources[1]:
        for path, folder in itertools.product(built, (old, new)):
            shutil.copy2(path, folder / "s2vfast")
        if not any(path.suffix == ".so" for path in built):
            print("the compiled extension is not built here, so that native is not compared: make install", flush=True)
    elif all({"csrc", "setup.py"} <= {name.partition("/")[0] for name in files} for files in sources):
        # Else the old revision has no extension.
        environment = {**os.environ, **({} if gpu else {"S2VFAST_CUDA": "0"})}
        command = [sys.executable, "setup.py", "build_ext", "--inplace"]
        for name, folder in (("the other revision", old), ("this tree", new)):
            print(f"the compiled extension of {name} is built: its sources differ", flush=True)
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
            if not any((folder / "s2vfast").glob("_native*.so")):
                reason = _last_lines(done.stdout + done.stderr)
                print(f"it cannot be built, so that native is not compared; {reason}", flush=True)


def _sources(folder: Path) -> dict[str, bytes]:
    """The extension's sources, by name."""
    paths = itertools.chain.from_iterable(
        [root] if root.is_file() else root.rglob("*") for root in (folder / name for name in _BUILT_FROM)
    )
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths if path.is_file()}
