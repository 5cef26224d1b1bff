"""How slit datasets are best stored: trials of chunk lengths, codecs and dtypes.

    python benchmarks/storage.py [--slits 120] [--exposures 3] [--repeat 3]

Prints one JSON line: for each trial bytes a pixel of all variables, by variable, and Mpixel/s of
writing and of reading all of them, one thread, medians. Every trial ends in a checksum and is read
back and compared bit by bit. `once` is what geometry (wavelength, yrel) takes where it is the same
in all exposures of a visit and would be stored once; `smallest` keeps flags in the fewest bits that
hold them.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

import mbkg_xr as mx

NAMES = ["flux", "error", "var_rnoise", "var_poisson", "wavelength", "yrel", "quality"]
GEOMETRY = ["wavelength", "yrel"]


def codecs():
    out = {f"zstd{level}": ZstdCodec(level=level) for level in (1, 5)}
    for cname, level in (("lz4", 1), ("zstd", 1), ("zstd", 3), ("zstd", 5), ("zstd", 9)):
        for shuffle in ("shuffle", "bitshuffle"):
            out[f"blosc-{cname}{level}-{shuffle}"] = BloscCodec(
                cname=cname, clevel=level, shuffle=shuffle
            )
    return out


def trial(arrays, codec, length, folder, repeat):
    pixels = arrays["flux"].size / 1e6
    writing, reading = [], []
    for turn in range(repeat + 1):
        path = Path(folder) / f"t{turn}.zarr"
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
        writing.append(time.process_time() - start)
        start = time.process_time()
        back = {
            name: np.concatenate(
                [group[name][i : i + length] for i in range(0, len(values), length)]
            )
            for name, values in arrays.items()
        }
        reading.append(time.process_time() - start)
        for name, values in arrays.items():
            assert back[name].tobytes() == values.tobytes(), name
    sizes = {
        name: sum(f.stat().st_size for f in (path / name).rglob("*") if f.is_file())
        for name in arrays
    }
    return {
        "bytes_a_pixel": round(sum(sizes.values()) / pixels / 1e6, 2),
        "by_variable": {name: round(size / pixels / 1e6, 2) for name, size in sizes.items()},
        "write_mpixel_cpu_s": round(pixels / statistics.median(writing[1:]), 1),
        "read_mpixel_cpu_s": round(pixels / statistics.median(reading[1:]), 1),
    }


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
    parser.add_argument("--exposures", type=int, default=3)
    parser.add_argument("--slits", type=int, default=120)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    ds = mx.simulate_program(
        exposures=options.exposures, slits=options.slits, background_slits=options.slits // 4
    ).compute()
    arrays = {name: np.ascontiguousarray(ds[name].values) for name in NAMES}
    visits = ds["visit"].values.astype(str)
    trials = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, codec in codecs().items():
            trials[f"{name} 32"] = trial(arrays, codec, 32, folder, options.repeat)
        best = BloscCodec(cname="zstd", clevel=1, shuffle="shuffle")
        for length in (1, 8, 16, 64, 128):
            row = trial(arrays, best, length, folder, options.repeat)
            trials[f"blosc-zstd1-shuffle {length}"] = row
        small = {"flux": arrays["flux"], "quality": smallest(arrays["quality"])}
        row = trial(small, best, 32, folder, options.repeat)
        quality = {str(small["quality"].dtype): row["by_variable"]["quality"]}
    usual = trials["blosc-zstd1-shuffle 32"]["by_variable"]
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
