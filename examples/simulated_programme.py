"""A simulated programme, subtracted three ways, each held to the truth it was made from."""

import numpy as np

import mbkg_xr as mx
from mbkg_xr.simulate import CLEAN


def main() -> None:
    # Nothing but sky, noise, cosmic rays and bad pixels: this is about the estimators.
    ds = mx.simulate_program(
        exposures=3,
        slits=40,
        background_slits=40,
        signal_to_noise=3,
        seed=1,
        **CLEAN,
    )
    ds = mx.select_background(ds.compute())
    wave = ds.wavelength.values
    use = ds.selected.values & (wave > 0.7) & (wave < 5.2)
    models = {
        "B-spline": mx.BSpline(),
        "log link": mx.LogPolynomial(),
        "log of the data": mx.LogPolynomial(method="seed"),
    }
    print(f"{'model':<18}{'bias':>8}{'rms':>8}   in % of the sky, at S/N 3 a pixel")
    for name, model in models.items():
        # These slits are alike, so that what is left is the model's.
        master = mx.fit_master(ds, model=model, scales=None, profile=False)
        sky = mx.project_master(ds, master).background
        ratio = 100 * ((sky / ds.true_sky).values[use] - 1)
        print(f"{name:<18}{np.mean(ratio):>8.2f}{np.std(ratio):>8.2f}")


if __name__ == "__main__":
    main()
