"""Synthetic mel-spectrograms of one sound source at three receivers.

The source is at a random position in a square of 200 m by 200 m and emits a few bursts with a random spectrum. The
position determines three properties at each receiver: attenuation with distance (20 log10 d), absorption of high
frequencies by air, and delay (343 m/s). Loudness, pitch and the time of the bursts are random.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

# Positions are in units of 100 m. The receivers are on masts of 20 m, in a triangle around the square.
RECEIVERS = np.array([[0.0, 1.3], [-1.2, -0.7], [1.2, -0.7]], dtype=np.float32)
MAST_HEIGHT = 0.2
FRAMES_PER_UNIT = 100.0 / 343.0 / 0.032  # a frame is 32 ms
ABSORPTION_DB = 12.0  # per 100 m, at the highest of the mel bands

MEL_BINS = 128
FRAMES = 32
BURSTS = 2
TONES = 4

NOISE_POWER = 1e-3
SPECKLE_DB = 1.5
# Centre and scale of the data in dB. They give about zero mean and unit variance.
MEAN_DB = -24.0
SCALE_DB = 8.0


def make_spectrograms(count: int, seed: int) -> tuple[Floats, Floats]:
    """Return spectrograms (count, 3, 128, 32), normalised log power, and positions (count, 2) in [-1, 1].

    The same count and seed give the same arrays on one machine.
    """
    rng = np.random.default_rng(seed)
    positions = rng.uniform(-1.0, 1.0, (count, 2)).astype(np.float32)
    offsets = positions[:, None, :] - RECEIVERS
    distances = np.sqrt((offsets**2).sum(-1) + np.float32(MAST_HEIGHT**2))
    power = _spectra(rng, distances)[:, :, :, None] * _envelopes(rng, distances)[:, :, None, :]
    level_db = 10.0 * np.log10(power + np.float32(NOISE_POWER))
    level_db += SPECKLE_DB * rng.standard_normal(level_db.shape, dtype=np.float32)
    return (level_db - np.float32(MEAN_DB)) / np.float32(SCALE_DB), positions


def _spectra(rng: np.random.Generator, distances: Floats) -> Floats:
    """Return the power in each mel band at each receiver, (count, 3, 128)."""
    count = len(distances)
    centres = rng.uniform(10.0, MEL_BINS - 10.0, (count, TONES, 1))
    widths = rng.uniform(6.0, 20.0, (count, TONES, 1))
    bands = np.arange(MEL_BINS)
    source = np.exp(-0.5 * ((bands - centres) / widths) ** 2).sum(1) * 10.0 ** rng.normal(0.0, 0.2, (count, 1))
    absorbed_db = ABSORPTION_DB * (bands / (MEL_BINS - 1)) ** 2 * distances[:, :, None]
    loss = 10.0 ** (-absorbed_db / 10.0) / distances[:, :, None] ** 2
    power: Floats = (source[:, None, :] * loss).astype(np.float32)
    return power


def _envelopes(rng: np.random.Generator, distances: Floats) -> Floats:
    """Return the power in each frame at each receiver, (count, 3, 32). Delays are relative to the nearest receiver."""
    delays = (distances - distances.min(axis=1, keepdims=True)) * FRAMES_PER_UNIT
    starts = rng.uniform(1.0, 9.0, (len(distances), 1, BURSTS, 1))
    widths = rng.uniform(0.8, 2.0, (len(distances), 1, BURSTS, 1))
    offsets = np.arange(FRAMES) - starts - delays[:, :, None, None]
    power: Floats = np.exp(-0.5 * (offsets / widths) ** 2).sum(2).astype(np.float32)
    return power
