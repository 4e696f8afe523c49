"""What Triton kernels cost on a GPU that is not here: registers, spills and shared memory, from the compiler.

Every launch is turned into a compilation for the given architecture, with the signature, the alignments and the tile
that the launching code gave it, so nothing about the kernels is repeated here.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# Shared memory a block can have, by 10 x compute capability.
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024}


@dataclass(frozen=True)
class Resources:
    """Of one compiled kernel: registers a thread, bytes of stack a thread (spills), bytes of shared memory a block."""

    kernel: str
    constants: dict[str, Any]
    registers: int
    stack: int
    shared: int
    warps: int
    instructions: dict[str, int]

    def __str__(self) -> str:
        constants = " ".join(f"{name}={value}" for name, value in self.constants.items())
        return (
            f"{self.kernel}: {self.registers} registers, {self.stack} B stack, {self.shared} B shared, "
            f"{self.warps} warps, {self.instructions} ({constants})"
        )


def resources(file: str | Path, function: str, capability: int) -> list[Resources]:
    """Call `function()` of a Python file and compile, instead of run, every kernel that it launches.

    It runs in a process of its own, without the interpreter and with the same Python path as this one. There,
    launches do nothing, and `m2rag_kernels.launch.capability` says `capability`: tensors may lie on the CPU
    and hold anything, but must have the dtypes, widths and alignments of the real ones.

    Args:
        file: where the function is.
        function: its name; it takes nothing.
        capability: 10 x compute capability, 80 or 90.

    Returns:
        one entry per different compilation, in order of the launches.

    Raises:
        RuntimeError: the function failed or a kernel did not compile; with the output.
    """
    with tempfile.TemporaryDirectory() as cache:
        environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        environment |= {"TRITON_CACHE_DIR": cache, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [sys.executable, __file__, str(file), function, str(capability)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{function} of {file} for sm_{capability}:\n{done.stdout}{done.stderr}")
    return [Resources(**entry) for entry in json.loads(done.stdout.splitlines()[-1])]


class _AbsentGPU:
    """As much of a Triton driver as compiling takes."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def _measure(compiled: Any, constants: dict[str, Any]) -> Resources:
    import triton

    cuobjdump = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = subprocess.run([cuobjdump, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = {name: int(value) for name, value in re.findall(r"(REG|STACK|SHARED):(\d+)", usage)}
    ptx = compiled.asm["ptx"]
    counted = {name: len(re.findall(pattern, ptx)) for name, pattern in _INSTRUCTIONS.items()}
    return Resources(
        kernel=compiled.metadata.name,
        constants=constants,
        registers=found["REG"],
        stack=found["STACK"],
        shared=max(found["SHARED"], compiled.metadata.shared),
        warps=compiled.metadata.num_warps,
        instructions={name: count for name, count in counted.items() if count},
    )


_INSTRUCTIONS = {
    "wgmma": r"wgmma\.mma_async",
    "wgmma_wait": r"wgmma\.wait_group",
    "mma": r"\bmma\.sync",
    "cp_async": r"cp\.async\.c[ag]",
    "barrier": r"bar(rier)?\.sync",
    "load_16B": r"ld\.global[^;]*v4",
    "load": r"ld\.global",
    "store_16B": r"st\.global[^;]*v4",
    "store": r"st\.global",
}


def _main(file: str, function: str, capability: int) -> None:
    import triton

    from m2rag_kernels import launch

    triton.runtime.driver.set_active(_AbsentGPU(capability))
    launch.capability = lambda device: divmod(capability, 10)
    compiled: dict[str, Resources] = {}
    run = triton.runtime.JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        if kernel.hash not in compiled:
            compiled[kernel.hash] = _measure(kernel, options)
        return kernel

    triton.runtime.JITFunction.run = compile_only
    spec = importlib.util.spec_from_file_location("launches", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    getattr(module, function)()
    sys.stdout.write("\n" + json.dumps([asdict(entry) for entry in compiled.values()], default=str) + "\n")


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
