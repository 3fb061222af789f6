import csv
import io
import math

import h5py
import numpy as np
import pytest
from hostile import imu_text, npy_bytes

from bindsearch.errors import DecodeError, InputError
from bindsearch.modalities import imu, imu_file
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


@pytest.mark.parametrize(
    ("accel", "gyro", "factors"),
    [
        (" (mg)", " (mdps)", (GRAVITY / 1000, math.pi / 180_000)),
        (" [G]", " [deg/sec]", (GRAVITY, math.pi / 180)),
        (" (cm/s^2)", " (rpm)", (0.01, math.pi / 30)),
        (" (m/s²)", " (degrees/sec)", (1, math.pi / 180)),
        (" [m s⁻²]", " [°/sec]", (1, math.pi / 180)),
        ("_m_s2", "_rad_s", (1, 1)),
        ("_g", "_mdps", (GRAVITY, math.pi / 180_000)),
        ("[0]", "[0]", (1, 1)),
    ],
)
def test_spellings_of_units(accel, gyro, factors):
    names = [f"{name}{accel if name.startswith('a') else gyro}" for name in NAMES]
    expected = SIGNAL * np.repeat(factors, 3)[:, None]
    found = decode(table(SIGNAL, TIMES, ("time (sec)", *names))).array
    assert np.abs(found - expected).max() <= 2e-7 * np.abs(expected).max()


@pytest.mark.parametrize("remark", [" (calibrated)", " [body frame]", "", " (m/sÂ²)"])
def test_remarks_behind_names_are_no_units(remark):
    names = [f"{name}{remark if name.startswith('a') else ' (uncalibrated)'}" for name in NAMES]
    one_ulp(decode(table(SIGNAL, TIMES, ("time (utc)", *names))).array, SIGNAL)


EUROC = [f"{kind}_RS_S_{axis} [{unit}]" for kind, unit in (("w", "rad s^-1"), ("a", "m s^-2")) for axis in "xyz"]


@pytest.mark.parametrize("mark", ["#", "# ", "# made by a robot\n#", ""])
def test_names_in_a_remark_are_names(mark):
    rows = table(np.concatenate([SIGNAL[3:], SIGNAL[:3]]), 1.4e18 + TIMES * 1e9, ("timestamp [ns]", *EUROC))
    found = decode(mark.encode("ascii") + rows if isinstance(rows, bytes) else mark + rows)
    assert found.rate_hz == pytest.approx(200, rel=1e-4)
    one_ulp(found.array, SIGNAL)


def test_of_two_times_the_one_that_says_its_unit_is_read():
    rows = np.concatenate([TIMES[None] * 1e9 + 1.7e18, TIMES[None], SIGNAL])
    text = ",".join(["time", "seconds_elapsed", *NAMES]) + "\n"
    text += "\n".join(",".join(f"{value:.9g}" for value in row) for row in rows.T) + "\n"
    found = decode(text.encode("ascii"))
    assert found.rate_hz == pytest.approx(200, rel=1e-5)


def test_a_unit_that_is_not_known_is_named():
    def named(accel="", gyro="", time="time_s"):
        return table(SIGNAL, TIMES, (time, *(f"{name}{accel if name[0] == 'a' else gyro}" for name in NAMES)))

    words = r"states the unit 'furlong'; of accel, m/s\^2, cm/s\^2, mm/s\^2, g, mg are known: set accel_unit"
    with pytest.raises(DecodeError, match=words):
        decode(named(" (furlong)"))
    with pytest.raises(DecodeError, match=r"states the unit 'm/s\^2'; of gyro, rad/s, .*rpm are known: set gyro_unit"):
        decode(named(gyro=" [m/s^2]"))
    with pytest.raises(DecodeError, match="states the unit 'fortnight'; of time"):
        decode(named(time="time (fortnight)"))
    one_ulp(decode(named(" (furlong)"), accel_unit="m/s^2").array, SIGNAL)
    mixed = ("time_s", "accel_x (g)", "accel_y (mg)", *NAMES[2:])
    with pytest.raises(DecodeError, match=r"states several units of accel \(g, mg\): set accel_unit"):
        decode(table(SIGNAL, TIMES, mixed))


def test_units_in_attributes():
    expected = SIGNAL * np.repeat([GRAVITY / 1000, math.pi / 180], 3)[:, None]
    for attributes in (
        {"accel_unit": "mg", "gyro_unit": "degrees/sec"},
        {"units": "mg, deg/s"},
        {"unit": ["mg", "°/s"]},
    ):
        found = decode(h5({"imu": SIGNAL}, rate_hz=100, **attributes)).array
        assert np.abs(found - expected).max() <= 2e-7 * np.abs(expected).max()
    for attributes in ({"accel_unit": "furlong"}, {"gyro_unit": "furlong"}, {"units": "furlong"}):
        with pytest.raises(DecodeError, match="states the unit 'furlong'"):
            decode(h5({"imu": SIGNAL}, rate_hz=100, **attributes))
    out = io.BytesIO()
    with h5py.File(out, "w") as file:
        for name, rows, unit in (("accelerometer", SIGNAL[:3], "mg"), ("gyroscope", SIGNAL[3:], "deg/s")):
            file[name] = rows
            file[name].attrs["units"] = unit
        file.attrs["rate_hz"] = 100
    assert np.abs(decode(out.getvalue()).array - expected).max() <= 2e-7 * np.abs(expected).max()


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


def test_windows_that_were_never_recorded_are_refused():
    """5 s, then nothing for 20 s, then 15 s: a straight line is no movement."""
    times = np.concatenate([np.arange(1000) / 200, 25 + np.arange(3000) / 200])
    source = Source.of(table(np.stack([np.sin(6 * times + row) for row in range(6)]), times))
    for config in (DEFAULT, IMU.config(missing="zero")):
        spans = IMU.spans(source, config, None)
        assert spans == [(0.0, 10.0), (10.0, 20.0), (20.0, 30.0), (30.0, 40.0)]
        with pytest.raises(DecodeError, match=r"100% of the values are missing or NaN in 10-20 s \(max_missing 50%\)"):
            IMU.decode(source, config, spans[1])
        assert IMU.decode(source, config, spans[2]).notes["missing_share"] == pytest.approx(0.5, abs=0.01)
        assert IMU.decode(source, config, spans[3]).notes["missing_share"] == 0
    assert (IMU.decode(source, IMU.config(missing="zero"), (20.0, 30.0)).array[:, :980] == 0).all()
    assert decode(source).notes["missing_share"] == pytest.approx(0.5, abs=0.01)


def test_the_missing_share_is_that_of_the_span():
    times = np.arange(8000) / 200
    values = np.tile(SIGNAL, (1, 16))
    values[:, 2000:4000] = np.nan
    values[2, 4000:6000] = np.nan
    source = Source.of(table(values, times))
    assert IMU.decode(source, DEFAULT, (0.0, 10.0)).notes["missing_share"] == 0
    with pytest.raises(DecodeError, match="100% of the values are missing or NaN in 10-20 s"):
        IMU.decode(source, DEFAULT, (10.0, 20.0))
    with pytest.raises(DecodeError, match="channel 2 has no value at all in 20-30 s"):
        IMU.decode(source, DEFAULT, (20.0, 30.0))
    assert IMU.decode(source, DEFAULT, (30.0, 40.0)).array.shape == (6, 2000)


@pytest.mark.parametrize(
    "stamp",
    [
        lambda times: np.floor(times + 1e-9),
        lambda times: np.floor(times * 10 + 1e-9) / 10,
        lambda times: np.floor(times * 100 + 1e-9) / 100,
        lambda times: np.ceil(times - 1e-9),
        lambda times: np.floor(times + 0.5),
        lambda times: np.floor(times * 10 + 0.5) / 10,
        lambda times: np.repeat(times[::5], 5),  # five rows a message of the radio
        lambda times: np.concatenate([times[:1000], np.repeat(times[1000::5], 5)]),
    ],
)
def test_rows_that_share_a_time_are_all_kept(stamp):
    times = np.arange(2000) / 200
    wave = np.stack([np.sin(2 * np.pi * (row + 1) * 3 * times) for row in range(6)])
    found = decode(table(wave, stamp(times)))
    assert found.rate_hz == 200
    one_ulp(found.array, wave)


def test_times_rounded_to_the_nearest_keep_all_rows_and_nearly_the_rate():
    times = np.arange(2000) / 200
    rounded = np.array([round(time, 2) for time in times])
    assert set(np.unique(rounded, return_counts=True)[1]) > {1, 3}
    found = decode(table(np.tile(times, (6, 1)), rounded))
    assert found.array.shape == (6, 2000)
    assert found.rate_hz == pytest.approx(200, rel=2e-3)


def test_shared_times_and_a_gap():
    times = np.concatenate([np.arange(2000), 6000 + np.arange(2000)]) / 200
    found = decode(table(np.tile(times, (6, 1)), np.floor(times * 10 + 1e-9) / 10))
    assert (found.rate_hz, found.array.shape) == (200, (6, 8000))
    assert found.notes["missing_share"] == pytest.approx(0.5, abs=0.01)
    assert np.abs(found.array[0, :2000] - times[:2000]).max() < 1e-4
    assert np.abs(found.array[0, 6010:] - times[2010:]).max() < 1e-4


@pytest.mark.parametrize(
    "times",
    [
        np.floor(np.arange(500) / 200),  # three times: none is known to be whole
        np.zeros(500),
        np.concatenate([np.arange(400) / 200, np.full(100, 2.0), 2 + np.arange(1, 101) / 200]),  # the clock stood still
    ],
)
def test_times_that_are_too_coarse_are_refused_or_the_rate_is_said(times):
    signal = RNG.normal(0, 3, (6, times.size))
    data = table(signal, times)
    with pytest.raises(DecodeError, match=r"\d rows share \d+ times, too coarse to say the rate; set source_rate_hz"):
        decode(data)
    found = decode(data, source_rate_hz=200.0)
    assert found.rate_hz == 200
    one_ulp(found.array, signal)


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


def test_windows_of_one_recording_read_it_once(monkeypatch, tmp_path):
    """Else a long recording would cost the square of its length; other bytes or settings are read anew."""
    path, counts = tmp_path / "walk.imu.csv", []

    def read_recording(source, config):
        counts.append(source.name)
        return imu_file.read_recording(source, config)

    monkeypatch.setattr(imu, "read_recording", read_recording)
    for factor in (1, 2):
        data = table(factor * np.tile(SIGNAL, (1, 10)), np.arange(5000) / 200)
        path.write_bytes(data)
        for second in range(0, 24, 2):
            window = IMU.decode(Source.of(path), DEFAULT, (second, second + 2))
            alone = IMU.decode(Source.of(data), DEFAULT, (second, second + 2))
            assert np.array_equal(window.array, alone.array)
            assert window.notes == alone.notes
            window.array[:] = 0  # its own: the next window is not of it
    assert counts.count(str(path)) == 2
    IMU.decode(Source.of(path), IMU.config(accel_unit="g"), (2, 4))
    assert counts.count(str(path)) == 3
    with monkeypatch.context() as tight:
        tight.setattr(imu._LAST, "_limit_bytes", 1000)
        for second in (2, 4):
            IMU.decode(Source.of(path), DEFAULT, (second, second + 2))
    assert counts.count(str(path)) == 5, "what is large is not held"


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
