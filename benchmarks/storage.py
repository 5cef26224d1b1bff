"""How slit datasets are best stored: trials of chunk lengths, codecs and dtypes.

    python benchmarks/storage.py [--slits 60] [--exposures 5] [--repeat 5]

Prints a table on stderr and one JSON line: for each trial bytes a pixel of all variables, by
variable, and Mpixel/s of writing and of reading all of them, one thread, processor time, the best
of rounds that go through all trials in turns (other work on the machine disturbs it least); for
some, what a pass of the fit over a store takes beside only reading what it reads. Every trial ends
in a checksum and is read back and compared bit by bit. `once` is what geometry (wavelength, yrel)
takes where it is the same in all exposures of a visit and would be stored once; `smallest` keeps
flags in the fewest bits that hold them.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import numpy as np
import zarr
from scaling import TRUTH, reading
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

import mbkg_xr as mx
from mbkg_xr.io.chunks import COMPRESSORS

NAMES = ["flux", "error", "var_rnoise", "var_poisson", "wavelength", "yrel", "quality"]
USUAL = "blosc-lz41-shuffle"
PASSES = {f"{USUAL} 32", f"{USUAL} 64", f"{USUAL} 128", "blosc-zstd1-shuffle 32"}
GEOMETRY = ["wavelength", "yrel"]


def codecs():
    out = {f"zstd{level}": ZstdCodec(level=level) for level in (1, 5)}
    for cname, level in (("lz4", 1), ("zstd", 1), ("zstd", 3), ("zstd", 5)):
        for shuffle in ("shuffle", "bitshuffle"):
            out[f"blosc-{cname}{level}-{shuffle}"] = BloscCodec(
                cname=cname, clevel=level, shuffle=shuffle
            )
    return out


def once(arrays, codec, length, path):
    """Processor time of writing and of reading all, and bytes by variable."""
    group = zarr.open_group(path, mode="w")
    start = time.process_time()
    for name, values in arrays.items():
        made = group.create_array(
            name,
            shape=values.shape,
            chunks=(length, *values.shape[1:]),
            dtype=values.dtype,
            compressors=[codec, Crc32cCodec()],
            fill_value=0,
            config={"write_empty_chunks": True},
        )
        for i in range(0, len(values), length):
            made[i : i + length] = values[i : i + length]
    writing = time.process_time() - start
    start = time.process_time()
    back = {
        name: np.concatenate([group[name][i : i + length] for i in range(0, len(values), length)])
        for name, values in arrays.items()
    }
    reading = time.process_time() - start
    for name, values in arrays.items():
        assert back[name].tobytes() == values.tobytes(), name
    sizes = {
        name: sum(f.stat().st_size for f in (path / name).rglob("*") if f.is_file())
        for name in arrays
    }
    return writing, reading, sizes


def in_rounds(arrays, trials, folder, repeat):
    """Rows of all trials; the first round warms up."""
    laps = {name: [] for name in trials}
    for _ in range(repeat + 1):
        for name, (codec, length) in trials.items():
            laps[name].append(once(arrays, codec, length, Path(folder) / "trial.zarr"))
    pixels = arrays["flux"].size
    rows = {}
    for name, rounds in laps.items():
        writing, reading = (min(r[k] for r in rounds[1:]) for k in (0, 1))
        sizes = {k: round(size / pixels, 2) for k, size in rounds[0][2].items()}
        rows[name] = {
            "bytes_a_pixel": round(sum(rounds[0][2].values()) / pixels, 2),
            "write_mpixel_cpu_s": round(pixels / writing / 1e6, 1),
            "read_mpixel_cpu_s": round(pixels / reading / 1e6, 1),
            "by_variable": sizes,
        }
    return rows


def passes(ds, trials, folder, repeat):
    """A pass of the fit beside reading, from stores of some of the trials."""
    rows = {}
    for name, (codec, length) in trials.items():
        store = Path(folder) / "pass.zarr"
        with mock.patch("mbkg_xr.io.store.COMPRESSORS", (codec, Crc32cCodec())):
            mx.save(ds.chunk({"slit": length}), store, overwrite=True)
        rows[name] = reading(store, repeat)
    return rows


def smallest(quality):
    """The smallest unsigned integers that hold the flags there are, bits renumbered."""
    used = [b for b in range(8 * quality.itemsize) if (quality >> quality.dtype.type(b) & 1).any()]
    kind = next(
        t for t in (np.uint8, np.uint16, np.uint32, np.uint64) if len(used) <= t(0).nbytes * 8
    )
    out = np.zeros(quality.shape, kind)
    for new, old in enumerate(used):
        out |= ((quality >> quality.dtype.type(old)) & 1).astype(kind) << kind(new)
    return out


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--exposures", type=int, default=5)
    parser.add_argument("--slits", type=int, default=60)
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    ds = mx.simulate_program(
        exposures=options.exposures, slits=options.slits, background_slits=options.slits // 4
    ).compute()
    arrays = {name: np.ascontiguousarray(ds[name].values) for name in NAMES}
    visits = ds["visit"].values.astype(str)
    usual_codec = COMPRESSORS[0]
    tried = {f"{name} 32": (codec, 32) for name, codec in codecs().items()}
    tried |= {f"{USUAL} {length}": (usual_codec, length) for length in (1, 8, 16, 64, 128)}
    with tempfile.TemporaryDirectory() as folder:
        trials = in_rounds(arrays, tried, folder, options.repeat)
        small = {"flux": arrays["flux"], "quality": smallest(arrays["quality"])}
        row = in_rounds(small, {"": (usual_codec, 32)}, folder, 1)[""]
        quality = {str(small["quality"].dtype): row["by_variable"]["quality"]}
        some = {name: tried[name] for name in tried if name in PASSES}
        beside = passes(ds.drop_vars(TRUTH), some, folder, options.repeat)
    for name, figures in beside.items():
        trials[name] |= figures
    for name, figures in trials.items():
        shown = {k: v for k, v in figures.items() if k != "by_variable"}
        print(f"{name:26}", *(f"{k} {v}" for k, v in shown.items()), file=sys.stderr)
    usual = trials[f"{USUAL} 32"]["by_variable"]
    quality[str(arrays["quality"].dtype)] = usual["quality"]
    # Slits of one slitlet at the same nod and visit lie on the same pixels.
    keys = list(zip(visits, ds["detector"].values, ds["slitlet"].values, strict=True))
    groups = {}
    for i, key in enumerate(keys):
        groups.setdefault(key, []).append(i)
    alike = [
        all(
            np.array_equal(arrays[n][g[0]], arrays[n][i], equal_nan=True)
            for n in GEOMETRY
            for i in g
        )
        for g in groups.values()
    ]
    whole = sum(usual[n] for n in GEOMETRY)
    row = {
        "slits": ds.sizes["slit"],
        "mpixel": round(ds.flux.size / 1e6, 2),
        "trials": trials,
        "geometry_bytes_a_pixel": {
            "each slit": round(whole, 2),
            "once": round(whole * len(groups) / len(keys), 2),
            "groups_alike": round(float(np.mean(alike)), 3),
        },
        "quality_bytes_a_pixel": quality,
    }
    print(json.dumps(row))


if __name__ == "__main__":
    main()
