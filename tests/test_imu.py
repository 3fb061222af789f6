import csv
import io
import math

import h5py
import numpy as np
import pytest
from hostile import imu_text, npy_bytes

from bindsearch.errors import DecodeError, InputError
from bindsearch.modalities.imu import GRAVITY, change_rate
from bindsearch.registry import MODALITIES
from bindsearch.sources import Source
from bindsearch.types import Media

IMU = MODALITIES["imu"]
DEFAULT = IMU.config()
NAMES = ["accel_x", "accel_y", "accel_z", "gyro_x", "gyro_y", "gyro_z"]
RNG = np.random.default_rng(8)
SIGNAL = RNG.normal(0, 3, (6, 500))


def table(values, times, names=("time_s", *NAMES), delimiter=","):
    """Write with the csv module, every digit kept."""
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter)
    writer.writerow(names)
    for time, row in zip(times, values.T, strict=True):
        writer.writerow([repr(float(time)), *(repr(float(cell)) for cell in row)])
    return out.getvalue().encode()


def decode(thing, preset="default", **numbers):
    source = thing if isinstance(thing, Source) else Source.of(thing)
    return IMU.decode(source, IMU.config(preset, **numbers))


def one_ulp(got, expected):
    expected = np.asarray(expected).astype(np.float32)
    assert got.shape == expected.shape
    assert got.dtype == np.float32
    assert (np.abs(got - expected) <= np.spacing(np.abs(expected))).all()


TIMES = np.arange(500) / 200

# -------------------------------------------------------- files written by other libraries, with known values


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_in_si_units(delimiter):
    found = decode(table(SIGNAL, TIMES, delimiter=delimiter))
    one_ulp(found.array, SIGNAL)
    assert (found.rate_hz, found.unit) == (200.0, "m/s^2 and rad/s")


@pytest.mark.parametrize(
    ("names", "accel", "gyro"),
    [
        (
            ["acc_x [g]", "acc_y [g]", "acc_z [g]", "gyr_x [deg/s]", "gyr_y [deg/s]", "gyr_z [deg/s]"],
            GRAVITY,
            math.pi / 180,
        ),
        (["ax_g", "ay_g", "az_g", "gx_dps", "gy_dps", "gz_dps"], GRAVITY, math.pi / 180),
        (
            [
                "Accelerometer X (m/s²)",
                "Accelerometer Y (m/s²)",
                "Accelerometer Z (m/s²)",
                "Gyroscope X (°/s)",
                "Gyroscope Y (°/s)",
                "Gyroscope Z (°/s)",
            ],
            1,
            math.pi / 180,
        ),
        (["accl_x", "accl_y", "accl_z", "gyro_x", "gyro_y", "gyro_z"], 1, 1),
        (
            [
                "LinearAccelerationX",
                "LinearAccelerationY",
                "LinearAccelerationZ",
                "AngularVelocityX",
                "AngularVelocityY",
                "AngularVelocityZ",
            ],
            1,
            1,
        ),
        (["accel_x_m/s^2", "accel_y_m/s^2", "accel_z_m/s^2", "gyro_x_rad/s", "gyro_y_rad/s", "gyro_z_rad/s"], 1, 1),
    ],
)
def test_units_in_column_names(names, accel, gyro):
    expected = SIGNAL * np.array([accel] * 3 + [gyro] * 3)[:, None]
    one_ulp(decode(table(SIGNAL, TIMES, ("timestamp", *names))).array, expected)


def test_units_that_are_set_win():
    found = decode(table(SIGNAL, TIMES), accel_unit="g", gyro_unit="deg/s")
    one_ulp(found.array, SIGNAL * np.array([GRAVITY] * 3 + [math.pi / 180] * 3)[:, None])


@pytest.mark.parametrize(
    ("name", "factor"),
    [("time_s", 1), ("canonical_timestamp_ms", 1e3), ("timestamp [us]", 1e6), ("t_ns", 1e9), ("Time (ms)", 1e3)],
)
def test_time_units(name, factor):
    found = decode(table(SIGNAL, 1.7e9 / factor + TIMES * factor, (name, *NAMES)))
    assert found.rate_hz == pytest.approx(200, rel=1e-5)
    one_ulp(found.array, SIGNAL)


def test_columns_in_any_order_and_by_name():
    order = [3, 4, 5, 2, 1, 0]
    found = decode(table(SIGNAL[order], TIMES, ("t", *(NAMES[place] for place in order))))
    one_ulp(found.array, SIGNAL)
    odd = ["q", "w1", "w2", "w3", "w4", "w5"]
    one_ulp(decode(table(SIGNAL, TIMES, ("t", *odd)), columns=odd).array, SIGNAL)
    with pytest.raises(DecodeError, match="no column 'w9'; there are t, q"):
        decode(table(SIGNAL, TIMES, ("t", *odd)), columns=["w9", *odd[1:]])


def test_csv_written_by_numpy_without_names():
    out = io.BytesIO()
    np.savetxt(out, np.vstack([TIMES, SIGNAL]).T, delimiter=",", fmt="%.17g")
    one_ulp(decode(out.getvalue()).array, SIGNAL)
    out = io.BytesIO()
    np.savetxt(out, SIGNAL.T, delimiter=",", fmt="%.17g")
    one_ulp(decode(out.getvalue(), source_rate_hz=50.0).array, SIGNAL)
    with pytest.raises(DecodeError, match="neither times nor a rate; set source_rate_hz"):
        decode(out.getvalue())


def test_npy_written_by_numpy():
    for array in (SIGNAL, SIGNAL.T, SIGNAL.astype(np.float32)):
        found = decode(npy_bytes(array), source_rate_hz=100.0)
        one_ulp(found.array, SIGNAL)
        assert found.rate_hz == 100
    one_ulp(decode(npy_bytes(SIGNAL), "reference").array, SIGNAL)
    one_ulp(decode(Source.of(SIGNAL, rate_hz=25.0)).array, SIGNAL)


def h5(datasets, **attributes):
    out = io.BytesIO()
    with h5py.File(out, "w") as file:
        for name, data in datasets.items():
            file[name] = data
        file.attrs.update(attributes)
    return out.getvalue()


def test_hdf5_written_by_h5py():
    found = decode(h5({"imu": SIGNAL}, rate_hz=400.0, accel_unit="g", gyro_unit="deg/s"))
    one_ulp(found.array, SIGNAL * np.array([GRAVITY] * 3 + [math.pi / 180] * 3)[:, None])
    assert found.rate_hz == 400
    two = decode(h5({"accelerometer": SIGNAL[:3].T, "gyroscope": SIGNAL[3:].T}, sampling_rate=100))
    one_ulp(two.array, SIGNAL)
    with pytest.raises(DecodeError, match="500 accelerations but 400 rotations"):
        decode(h5({"accelerometer": SIGNAL[:3].T, "gyroscope": SIGNAL[3:, :400].T}, sampling_rate=100))


# ------------------------------------------------------------------------------------ times, gaps and what is missing


def test_rows_are_sorted_by_time_and_doubles_dropped():
    order = RNG.permutation(500)
    shuffled = np.concatenate([order, order[:50]])
    one_ulp(decode(table(SIGNAL[:, shuffled], TIMES[shuffled])).array, SIGNAL)


def test_uneven_times_are_laid_on_a_grid():
    times = np.sort(TIMES + RNG.uniform(-0.001, 0.001, 500))
    line = np.stack([times * (row + 1) for row in range(6)])
    found = decode(table(line, times))
    grid = times[0] + np.arange(found.array.shape[1]) / found.rate_hz
    assert np.abs(found.array - np.stack([grid * (row + 1) for row in range(6)])).max() < 0.02


def test_a_gap_in_time_is_bridged():
    kept = np.concatenate([np.arange(100), np.arange(300, 500)])
    line = np.stack([TIMES * (row + 1) for row in range(6)])
    found = decode(table(line[:, kept], TIMES[kept]))
    assert found.array.shape == (6, 500)
    assert np.abs(found.array - line).max() < 1e-4


def test_missing_values():
    line = np.stack([TIMES * (row + 1) for row in range(6)])
    holey = line.copy()
    holey[2, 100:120] = np.nan
    data = table(holey, TIMES).replace(b"nan", b"")
    assert np.abs(decode(data).array - line).max() < 1e-5
    assert decode(data).notes["missing_share"] == pytest.approx(20 / 3000)
    assert (decode(data, "reference").array[2, 100:120] == 0).all()
    holey[3] = np.nan
    with pytest.raises(DecodeError, match="channel 3 has no value at all"):
        decode(table(holey, TIMES))
    holey[:4] = np.nan
    with pytest.raises(DecodeError, match=r"67% of the values are missing"):
        decode(table(holey, TIMES))


def test_a_wrong_time_unit_is_noticed():
    with pytest.raises(DecodeError, match=r"times 5 s apart \(0\.2 Hz\).*set time_unit"):
        decode(table(SIGNAL, TIMES * 1000))
    assert decode(table(SIGNAL, TIMES * 1000), time_unit="ms").rate_hz == 200


def test_too_short():
    with pytest.raises(DecodeError, match=r"0\.095 s of samples; at least 0\.1 s"):
        decode(imu_text(19).encode())
    assert decode(imu_text(20).encode()).array.shape == (6, 20)


def test_spans_and_windows():
    data = table(np.tile(SIGNAL, (1, 10)), np.arange(5000) / 200)
    one_ulp(decode(data).array[:, 300:700], IMU.decode(Source.of(data), DEFAULT, (1.5, 3.5)).array)
    assert IMU.spans(Source.of(data), DEFAULT, None) == [(0.0, 10.0), (10.0, 20.0), (20.0, 25.0)]
    assert IMU.spans(Source.of(table(SIGNAL, TIMES)), DEFAULT, None) == []
    assert IMU.spans(Source.of(data), IMU.config("reference"), None) == []


# ---------------------------------------------------------------------------------------------------- preprocessing


def media(signal, rate=200.0):
    return Media("imu", np.asarray(signal, np.float32), "m/s^2 and rad/s", rate)


def test_short_recordings_are_padded_at_the_end_and_long_ones_cut_in_the_middle():
    x = IMU.preprocess(media(SIGNAL), DEFAULT)
    assert x.shape == (1, 6, 2000)
    assert np.array_equal(x[0, :, :500], SIGNAL.astype(np.float32))
    assert (x[0, :, 500:] == 0).all()
    ramp = np.tile(np.arange(3000.0), (6, 1))
    assert IMU.preprocess(media(ramp), DEFAULT)[0, 0, [0, -1]].tolist() == [500, 2499]
    three = IMU.preprocess(media(ramp), IMU.config(clips=3))
    assert three[:, 0, 0].tolist() == [0, 500, 1000]


def test_rates_are_changed():
    time = np.arange(1000) / 100
    wave = np.tile(np.sin(2 * np.pi * 1.5 * time), (6, 1)).astype(np.float32)
    up = change_rate(wave, 100, 200)
    assert up.shape == (6, 2000)
    assert np.abs(up[0, :1990] - np.sin(2 * np.pi * 1.5 * np.arange(1990) / 200)).max() < 2e-3
    fast = np.arange(10_000) / 1000
    noisy = np.tile(np.sin(2 * np.pi * 1.5 * fast) + np.sin(2 * np.pi * 400 * fast), (6, 1)).astype(np.float32)
    down = change_rate(noisy, 1000, 200)
    assert down.shape == (6, 2000)
    # 400 Hz would come back as a wave of full size if samples were just dropped
    assert np.abs(down[0, 10:-10] - np.sin(2 * np.pi * 1.5 * np.arange(10, 1990) / 200)).max() < 0.05
    assert change_rate(wave, 200, 200) is wave


def test_surplus_and_wrong_shapes_are_refused():
    with pytest.raises(InputError, match=r"expected \(6, T\) with rate_hz, got \(5, 9\)"):
        IMU.preprocess(media(np.zeros((5, 9))), DEFAULT)
    with pytest.raises(DecodeError, match="cannot tell channels from samples"):
        decode(npy_bytes(np.zeros((6, 6))), source_rate_hz=9.0)
    with pytest.raises(InputError, match="six names"):
        IMU.config(columns=["a"])
