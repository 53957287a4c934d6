"""What the emulator says when a kernel does something wrong, or something that the emulator does not know."""

from __future__ import annotations

from dataclasses import dataclass

from s2vfast import errors


class EmulatorError(errors.S2vfastError, RuntimeError):
    """Anything that stops the emulator."""


class Unsupported(EmulatorError):
    """The emulator does not know an instruction, or one of its modifiers."""


@dataclass(frozen=True)
class Site:
    """Where an instruction stands.

    Args:
        kernel: name of the kernel.
        line: line of the PTX text, from 1.
        text: the instruction.
        source: file:line of the source, from .loc; empty without line information.
    """

    kernel: str
    line: int
    text: str
    source: str

    def __str__(self) -> str:
        source = f" ({self.source})" if self.source else ""
        return f"{self.kernel}: PTX line {self.line}{source}: {self.text}"


class Fault(EmulatorError):
    """A kernel broke a rule of the machine.

    Args:
        kind: one of `KINDS`.
        detail: what happened, in a few words.
        site: the instruction.
        cta: block of the thread, (x, y, z).
        thread: its linear number in the block.
    """

    def __init__(self, kind: str, detail: str, site: Site, cta: tuple[int, int, int], thread: int) -> None:
        self.kind, self.detail, self.site, self.cta, self.thread = kind, detail, site, cta, thread
        super().__init__(f"{kind}: {detail}; block {cta}, thread {thread}; {site}")


KINDS = {
    "out of bounds": "an access outside every allocation",
    "misaligned": "an address that is no multiple of the access's width",
    "uninitialised": "a read of memory or of a register that nothing has written",
    "race between warps": "two warps of a block, one of which writes, without a barrier between them",
    "race between lanes": "two lanes of a warp, one of which writes, without bar.warp.sync between them",
    "race between blocks": "two blocks, one of which writes the other's memory in the same launch",
    "cp.async before its wait": "a read or write of what cp.async is still copying",
    "divergent": "an instruction for whole warps, or a barrier, that some threads do not reach",
    "wgmma before its wait": "a register or shared memory used while wgmma works on it",
    "missing fence": "shared memory written by threads and read by wgmma without fence.proxy.async or wgmma.fence",
    "no progress": "a launch that executes more instructions than allowed",
}
"""The kinds of faults."""
