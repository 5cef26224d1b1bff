"""One real and one simulated slitlet, side by side: flux, and signal to noise of the sky.

    python examples/real_and_simulated.py FILE [FIGURE.png]

FILE is a STScI product of a PRISM slit.
"""

import sys

import numpy as np
from matplotlib.figure import Figure

import mbkg_xr as mx


def main(path: str, out: str = "real_and_simulated.png") -> None:
    real = next(iter(mx.open_program(path).children.values())).to_dataset().compute()
    simulated = mx.simulate_program(
        exposures=1, slits=40, background_slits=10, detectors=("NRS2",), seed=4
    ).compute()
    # The simulated slit most like the real one: a source in the same shutter, as many columns.
    like = (simulated.source_shutter == real.source_shutter.values[0]) & (simulated.n_shutters == 3)
    columns = np.isfinite(simulated.wavelength).any("y").sum("x")
    distance = np.abs(columns - np.isfinite(real.wavelength[0]).any("y").sum())
    index = int(np.argmin(distance.where(like, np.inf).values))

    figure = Figure(figsize=(9, 6), layout="constrained")
    grid = figure.add_gridspec(3, 1, height_ratios=(1, 1, 1.3))
    limits = np.nanpercentile(real.flux.where((real.quality & 1) == 0), (1, 99))
    axes = [figure.add_subplot(grid[i]) for i in range(3)]
    sets = (("real", real.isel(slit=[0])), ("simulated", simulated.isel(slit=[index])))
    for axis, (name, slit) in zip(axes, sets, strict=False):
        slit = slit.isel(slit=0)
        inside = np.isfinite(slit.wavelength)
        slit = slit.isel(y=inside.any("x").values, x=inside.any("y").values)
        image = axis.imshow(
            slit.flux.where((slit.quality & 1) == 0),
            origin="lower",
            aspect="auto",
            vmin=limits[0],
            vmax=limits[1],
        )
        label = f"{slit.exposure.values} {slit.detector.values}, slitlet {slit.slitlet.values}"
        axis.set_title(f"{name}: {label}", loc="left", fontsize=9)
        axis.set(xlabel="column of the cut-out (pixel)", ylabel="row (pixel)")
    figure.colorbar(image, ax=axes[:2], label="flux (MJy/sr)")
    for (name, slit), colour in zip(sets, ("#0072B2", "#D55E00"), strict=True):
        sky = mx.select_background(slit)
        use = sky.selected.values
        ratio = (sky.flux / sky.error).values[use]
        axes[2].plot(sky.wavelength.values[use], ratio, ".", ms=2, color=colour, label=name)
    axes[2].set(xlabel="wavelength (um)", ylabel="flux / error", ylim=(-3, 25))
    axes[2].set_title("pixels at the centres of empty shutters", loc="left", fontsize=9)
    axes[2].legend(markerscale=5)
    figure.savefig(out, dpi=110)
    print("wrote", out)


if __name__ == "__main__":
    main(*sys.argv[1:])
