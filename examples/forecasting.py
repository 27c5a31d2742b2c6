"""Forecasts of time series by an LSTM and a GRU, beside last season's values and ridge regression on the same windows.

Each series is cut in time: the last fifth is the test. Whatever is chosen or computed from data (scale, ridge penalty, number of epochs) comes
from the part before; TimeSeriesSplit validates on years that follow those it trains on. All four answer the same windows of the test.

    python examples/forecasting.py                               a chaotic series that it makes itself; writes forecasting.png
    python examples/forecasting.py --data ../shared/data/series  fine dust in Beijing 24 h ahead, sunspots, carbon dioxide; five minutes

The folder holds beijing_pm25.csv.gz (UCI 381), statsmodels_sunspots.csv and statsmodels_co2.csv.
"""

import argparse
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, TimeSeriesSplit
from sklearn.preprocessing import StandardScaler

import fastseq as fs

QUICK = bool(os.environ.get("FASTSEQ_QUICK"))  # only to see that it runs
COLORS = {"ridge": "#dd8452", "LSTM": "#4c72b0", "GRU": "#55a868"}


class Series(NamedTuple):
    """values (N, I), the first column to be forecast; observed (N,): the same, NaN where there was no measurement."""

    name: str
    values: np.ndarray
    observed: np.ndarray
    season: int  # steps
    length: int  # of a window
    horizon: int
    epochs: tuple  # numbers to choose from
    batch: int = 32
    networks: int = 1  # whose forecasts are averaged: trained on little, each is another
    unscale: callable = lambda values: values
    relative: bool = False  # windows count from their last value: for a series that leaves the range that it was trained on


def filled(x):
    """The last measurement before each gap, which is all that was known at the time."""
    return x[np.maximum.accumulate(np.where(np.isnan(x), 0, np.arange(len(x))))]


def circle(share):
    """A time of day or year as a point on a circle."""
    return np.stack([np.sin(2 * np.pi * share), np.cos(2 * np.pi * share)], axis=1)


def fine_dust(folder):
    rows = np.genfromtxt(folder / "beijing_pm25.csv.gz", delimiter=",", names=True, dtype=None, encoding="utf-8", missing_values="NA", filling_values=-1)
    rows = rows[np.argmax(rows["pm25"] >= 0) :]
    dust = np.log1p(np.where(rows["pm25"] < 0, np.nan, rows["pm25"]))
    weather = [rows["DEWP"], rows["TEMP"], rows["PRES"], np.log1p(rows["Iws"]), rows["Is"], rows["Ir"], *(rows["cbwd"] == d for d in ("NW", "NE", "SE"))]
    times = [circle(rows["hour"] / 24), circle((rows["month"] - 1) / 12 + rows["day"] / 365)]
    values = np.column_stack([filled(dust), np.isnan(dust), *weather, *times])
    return Series("PM2.5 in Beijing, micrograms per cubic metre, 24 hours ahead", values, dust, 24, 24, 24, (1, 2, 4), batch=128, unscale=np.expm1)


def sunspots(folder):
    spots = np.sqrt(np.genfromtxt(folder / "statsmodels_sunspots.csv", delimiter=",", skip_header=1)[:, 1])
    return Series("sunspots, five years ahead", spots[:, None], spots, 11, 33, 5, (15, 30, 60), networks=5, unscale=lambda values: np.maximum(values, 0) ** 2)


def carbon_dioxide(folder):
    date, co2 = np.genfromtxt(folder / "statsmodels_co2.csv", delimiter=",", skip_header=1).T
    year = circle((date // 100 % 100 - 1) / 12 + date % 100 / 365)
    values = np.column_stack([filled(co2), year])
    return Series("CO2 on Mauna Loa, ppm, eight weeks ahead", values, co2, 52, 104, 8, (10, 20), networks=2, relative=True)


def chaos(steps):
    """Mackey & Glass 1977: dx/dt = 0.2 x(t - 17) / (1 + x(t - 17)^10) - 0.1 x, in tenths, every tenth kept."""
    x = np.full(10 * steps, 1.2)
    for t in range(1, len(x)):
        late = x[max(0, t - 171)]
        x[t] = x[t - 1] + 0.1 * (0.2 * late / (1 + late**10) - 0.1 * x[t - 1])
    x = x[::10]
    return Series("Mackey and Glass's series, 20 steps ahead", x[:, None], x, 50, 60, 20, (2,) if QUICK else (5, 15))


def windows(series, values, observed):
    """Windows (W, T, I) whose horizons (W, horizon) were measured throughout, the value that each counts from, and where its horizon begins."""
    x, y = fs.training.windows(np.column_stack([values, observed]), series.length, series.horizon, target=-1)
    x, y, begins = x[..., :-1].swapaxes(0, 1), y.T, np.arange(y.shape[1]) + series.length
    last = x[:, -1:, 0].copy() * series.relative
    x[..., 0] -= last
    known = ~np.isnan(y).any(axis=1)
    return x[known].astype(np.float32), (y - last)[known].astype(np.float32), last[known], begins[known]


def forecaster(cell, x, y, epochs, series, options):
    """A function from windows to forecasts: the mean of what the trained networks say."""
    models = []
    for seed in range(options.seed, options.seed + series.networks):
        model = fs.models.Forecaster(x.shape[2], options.hidden, y.shape[1], cell=cell.lower(), rng=seed)
        batches = fs.training.Batches(x, y, batch_size=series.batch, axis=1, rng=seed)
        adam = fs.optim.Adam(model.parameters(), lr=1e-2)
        schedule = fs.optim.CosineDecay(adam, epochs * len(batches))
        fs.training.fit(model, batches, optimizer=adam, schedule=schedule, max_norm=1.0, epochs=epochs)
        models.append(model)
    return lambda x: np.mean([model(x.swapaxes(0, 1)) for model in models], axis=0)


def chosen_epochs(cell, x, y, series, options):
    """The number of epochs whose forecasts of later parts of the training period are best."""
    errors = dict.fromkeys(series.epochs, 0.0)
    for before, after in TimeSeriesSplit(3, gap=series.horizon).split(x) if len(errors) > 1 else ():
        for epochs in errors:
            forecast = forecaster(cell, x[before], y[before], epochs, series, options)
            errors[epochs] += np.abs(forecast(x[after]) - y[after]).mean()
    return min(errors, key=errors.get)


def scaled(series):
    """Values and measurements by the mean and deviation of the training period, where that ends, and what takes forecasts back."""
    cut = int(0.8 * len(series.values))
    scaler = StandardScaler().fit(series.values[:cut])
    scale, mean = scaler.scale_[0], scaler.mean_[0]
    return scaler.transform(series.values), (series.observed - mean) / scale, cut, lambda forecast: series.unscale(forecast * scale + mean)


def forecasts(series, options):
    """{method: (W, horizon)}, the truth among them, of the windows of the test, and where their horizons begin."""
    values, observed, cut, back = scaled(series)
    x, y, _, _ = windows(series, values[:cut], observed[:cut])
    start = cut - series.length  # the first test window ends where the test begins
    x_test, y_test, last, begins = windows(series, values[start:], observed[start:])
    lags = np.arange(series.horizon) % series.season - series.season
    found = {"truth": y_test, "last season": x_test[:, lags, 0]}
    ridge = GridSearchCV(Ridge(), {"alpha": 10.0 ** np.arange(-1, 5)}, cv=TimeSeriesSplit(3, gap=series.horizon), scoring="neg_mean_absolute_error")
    found["ridge"] = ridge.fit(x.reshape(len(x), -1), y).predict(x_test.reshape(len(x_test), -1))
    for cell in ("LSTM", "GRU"):
        epochs = options.epochs or chosen_epochs(cell, x, y, series, options)
        found[cell] = forecaster(cell, x, y, epochs, series, options)(x_test)
    return {name: back(each + last) for name, each in found.items()}, begins + start


def draw(results, path):
    """The middle of each test: what came, and forecasts one after another."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(results), 1, figsize=(10, 3.2 * len(results)), squeeze=False, layout="constrained")
    for ax, (series, found, begins) in zip(axes[:, 0], results, strict=True):
        first = begins[len(begins) // 2]
        shown = [w for w in range(len(begins)) if begins[w] >= first and (begins[w] - first) % series.horizon == 0][:8]
        for w in shown:
            time = begins[w] + np.arange(series.horizon)
            ax.plot(time, found["truth"][w], color="0.2", lw=1.6, label="truth" if w == shown[0] else None)
            ax.axvline(time[0] - 0.5, color="0.9", lw=0.8, zorder=0)
            for name, color in COLORS.items():
                ax.plot(time, found[name][w], color=color, lw=1.2, label=name if w == shown[0] else None)
        ax.set_title(f"{series.name}: each forecast made at its left edge", loc="left", fontsize=10)
        ax.set(xlabel="step", xlim=(begins[shown[0]] - 0.5, begins[shown[-1]] + series.horizon - 0.5))
        ax.spines[["top", "right"]].set_visible(False)
    axes[0, 0].legend(frameon=False, ncols=4, fontsize=8)
    figure.savefig(path, dpi=150)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, help="folder of the three series (default: one that is computed)")
    parser.add_argument("--epochs", type=int, default=1 if QUICK else None, help="in place of a number chosen by validation")
    parser.add_argument("--steps", type=int, default=300 if QUICK else 3000, help="of the computed series (default %(default)s)")
    parser.add_argument("--hidden", type=int, default=32, help="units (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and batches (default %(default)s)")
    parser.add_argument("--output", default="forecasting.png", help="the picture (default %(default)s)")
    options = parser.parse_args()

    makers = (fine_dust, sunspots, carbon_dioxide) if options.data else ()
    results = []
    for series in [make(options.data) for make in makers] or [chaos(options.steps)]:
        found, begins = forecasts(series, options)
        results.append((series, found, begins))
        print(f"{series.name}: mean absolute error over {len(begins)} windows of the test")
        for name in ("last season", *COLORS):
            print(f"    {name:12}{np.abs(found[name] - found['truth']).mean():8.3f}", flush=True)
    try:
        draw(results, options.output)
        print(f"wrote {options.output}")
    except ImportError:
        print('no picture, for matplotlib is missing: pip install "fastseq-kernels[plot]"')


if __name__ == "__main__":
    main()
