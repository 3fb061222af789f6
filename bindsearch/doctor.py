"""What this machine has: devices, drivers, wheels and clashes, OpenMP runtimes, caches, spaces at hand."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bindsearch.config import cache_dir, config_files, setting_with_origin
from bindsearch.errors import BindSearchError

WHEELS = (
    *(
        "torch",
        "torchvision",
        "torchaudio",
        "numpy",
        "faiss-cpu",
        "faiss-gpu",
        "pyarrow",
        "safetensors",
        "Pillow",
        "av",
    ),
    *("soundfile", "h5py", "typer"),
)
EXTRAS = {
    "scikit-learn": "probe",
    "matplotlib": "probe",
    "scipy": "evaluate",
    "duckdb": "sql",
    "transformers": "llm",
    "sentencepiece": "llm",
    "timm": "timm",
    "open_clip_torch": "open-clip",
    "scalable-vs": "svs",
    "bitsandbytes": "llm-quantized",
    "accelerate": "llm-quantized",
}
"""Optional package -> the extra that brings it; several extras bring some."""
_ANSWER_S = 20
OPENMP = re.compile(r"lib(?:gomp|iomp5|omp)[^/]*\.so[^/]*$")


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        topic: machine, device, wheel, openmp, cache, space or setting.
        name: what is reported on.
        value: what was found.
        problem: what is wrong and what to type, or "".
    """

    topic: str
    name: str
    value: str
    problem: str = ""


def examine() -> list[Finding]:
    """Look at this machine; imports torch and faiss, so it takes seconds.

    Returns:
        Findings in the order in which a person wants to read them.
    """
    parts: dict[str, Callable[[], Iterable[Finding]]] = {
        "machine": machine,
        "wheel": _wheels,
        "device": _devices,
        "openmp": _openmp,
        "cache": _caches,
        "setting": _settings,
        "space": _spaces,
    }
    findings: list[Finding] = []
    for topic, part in parts.items():
        try:
            for finding in part():
                findings.append(finding)  # kept where a later one fails
        except (BindSearchError, OSError) as error:
            findings.append(Finding(topic, "the rest", "cannot be looked at", str(error)))
    return findings


def problems(findings: list[Finding]) -> list[str]:
    """List what is wrong, in words, each once."""
    return list(dict.fromkeys(finding.problem for finding in findings if finding.problem))


def machine() -> list[Finding]:
    """Say what the machine is: Python, system, cores and their vector units, memory. Imports nothing."""
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    flags = _cpu_flags()
    useful = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_int8") if flag in flags]
    return [
        Finding("machine", "python", f"{platform.python_version()} ({sys.executable})"),
        Finding("machine", "system", f"{platform.system()} {platform.release()} {platform.machine()}"),
        Finding(
            "machine", "cores", f"{threads} usable of {os.cpu_count()}; {', '.join(useful) or 'no vector flags seen'}"
        ),
        Finding("machine", "memory", _memory()),
    ]


def _cpu_flags() -> set[str]:
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return set()
    match = re.search(r"^flags\s*:(.*)$", path.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    return set(match.group(1).split()) if match else set()


def _memory() -> str:
    path = Path("/proc/meminfo")
    if not path.is_file():
        return "unknown on this system"
    sizes = dict(re.findall(r"^(\w+):\s+(\d+) kB", path.read_text(encoding="utf-8"), re.MULTILINE))
    total, free = int(sizes.get("MemTotal", 0)), int(sizes.get("MemAvailable", 0))
    return f"{free / 2**20:.1f} GiB available of {total / 2**20:.1f}"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _wheels() -> list[Finding]:
    found = {name: _version(name) for name in WHEELS}
    lines = [Finding("wheel", name, version or "not installed") for name, version in found.items()]
    for name, extra in EXTRAS.items():
        fix = f"not installed; where it is needed: pip install 'bindsearch[{extra}]'"
        lines.append(Finding("wheel", name, _version(name) or fix))
    if found["faiss-cpu"] and found["faiss-gpu"]:
        fix = "pip uninstall -y faiss-cpu faiss-gpu && pip install 'bindsearch[cpu]' (or [gpu])"
        lines.append(
            Finding(
                "wheel",
                "faiss",
                "both wheels installed",
                f"faiss-cpu {found['faiss-cpu']} and faiss-gpu {found['faiss-gpu']} own the same files; one of them is "
                f"broken. Type: {fix}",
            )
        )
    if not found["faiss-cpu"] and not found["faiss-gpu"]:
        problem = "faiss is not installed. Type: pip install 'bindsearch[cpu]' (or [gpu])"
        lines.append(Finding("wheel", "faiss", "none", problem))
    return lines


def _numbers() -> str:
    """Say what "--dtype fast" computes in here, and why."""
    from bindsearch.models.packed import bfloat16_instructions, sums_bytes_whole

    found = bfloat16_instructions()
    eight = "" if sums_bytes_whole() else "; int8=on is refused: it has no VNNI, which sums bytes without loss"
    if found:
        return f"--dtype fast is bfloat16 on the CPU: it has {found}; --dtype auto is float32{eight}"
    return f"--dtype fast is float32 on the CPU: it has no instructions for bfloat16, which would be emulated{eight}"


def _devices() -> list[Finding]:
    try:
        import torch
    except ImportError as error:
        return [Finding("device", "torch", "cannot be imported", f"torch cannot be imported: {error}")]
    lines = [Finding("device", "cpu", f"torch {torch.__version__}, {torch.get_num_threads()} threads")]
    lines.append(Finding("device", "numbers", _numbers()))
    driver = _nvidia_driver()
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            about = torch.cuda.get_device_properties(number)
            lines.append(Finding("device", f"cuda:{number}", f"{about.name}, {about.total_memory / 2**30:.0f} GiB"))
    elif driver:
        why = f"there is a driver ({driver}) but torch {torch.__version__} sees no GPU: CUDA {torch.version.cuda}"
        lines.append(Finding("device", "cuda", "not usable", why))
    else:
        lines.append(Finding("device", "cuda", "no GPU and no driver on this machine"))
    return lines


def _nvidia_driver() -> str | None:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    asked = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, timeout=_ANSWER_S, check=False)
    except subprocess.TimeoutExpired:
        return f"nvidia-smi gives no answer in {_ANSWER_S} s"
    return done.stdout.strip().splitlines()[0] if done.returncode == 0 and done.stdout.strip() else None


def _openmp() -> list[Finding]:
    maps = Path("/proc/self/maps")
    if not maps.is_file():
        return [Finding("openmp", "runtimes", "cannot be listed on this system")]
    clash = ""
    try:
        from bindsearch.index import faiss_index  # loads faiss beside torch, as a search does

        faiss = f"faiss {faiss_index.version()}"
    except ImportError as error:
        faiss, clash = "faiss cannot be imported", f"faiss cannot be imported: {error}"
    paths = {line.split(maxsplit=5)[5].strip() for line in maps.read_text().splitlines() if line.count("/")}
    runtimes = sorted(path for path in paths if OPENMP.search(path))
    names = {re.split(r"[-.]", Path(path).name)[0] for path in runtimes}
    if {"libgomp", "libiomp5"} <= names or {"libomp", "libiomp5"} <= names:
        clash = f"two kinds of OpenMP are loaded ({', '.join(sorted(names))}); if a run hangs, set OMP_NUM_THREADS=1"
    value = ", ".join(Path(path).name for path in runtimes) or "none"
    return [Finding("openmp", "runtimes", f"{value} (torch and {faiss} loaded)", clash)]


def _caches() -> Iterator[Finding]:
    folder = cache_dir()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if there.is_dir():
        yield Finding("cache", "bindsearch", f"{folder} ({_size(folder)})")
    else:
        fix = f"Name a folder: set BINDSEARCH_CACHE_DIR (it comes from {setting_with_origin('cache_dir')[1]})."
        problem = f"{there}: is a file, the cache is a folder. {fix}"
        yield Finding("cache", "bindsearch", f"{folder} (a file is in the way)", problem)
    yield Finding("cache", "texts", _texts())
    yield Finding("cache", "free disk", f"{shutil.disk_usage(there).free / 2**30:.1f} GiB")


def _settings() -> Iterator[Finding]:
    yield from (Finding("setting", "file", f"{path}") for path in config_files() if path.is_file())
    for name in ("space", "index", "device", "offline"):
        value, origin = setting_with_origin(name)
        yield Finding("setting", name, f"{value} (from {origin})")


def _texts() -> str:
    """Say how many embeddings of texts are kept."""
    from bindsearch.models.text_cache import open_text_cache

    cache = open_text_cache()
    if cache is None:
        return "switched off (text_cache_mb is 0)"
    count, size_bytes = cache.size()
    limit = cache.limit_bytes / 2**20
    return f"{cache.folder}: {count} embeddings of texts, {size_bytes / 2**20:.1f} MiB of at most {limit:.0f}"


def _size(folder: Path) -> str:
    if not folder.is_dir():
        return "not there yet"
    size_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return f"{size_bytes / 2**20:.1f} MiB"


def _spaces() -> Iterator[Finding]:
    from bindsearch.models.spaces import list_spaces

    for row in list_spaces():
        status = str(row["status"])
        problem = f"space {row['name']}: {status}" if status.startswith("damaged") else ""
        yield Finding("space", str(row["name"]), _space_line(row), problem)


def _space_line(row: dict[str, Any]) -> str:
    return f"{row['status']}: {', '.join(row['modalities'])}" if row.get("modalities") else str(row["status"])
