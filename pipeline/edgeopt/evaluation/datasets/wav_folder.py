"""Audio files in one subfolder per class."""

import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from edgeopt.config.files import file_digest
from edgeopt.errors import UsageError
from edgeopt.evaluation.datasets._class_folders import class_names, labelled_files
from edgeopt.formats.wire.bounded import MALFORMED
from edgeopt.plugin import Dataset, ExistingPath, Sample, digest_of

SUFFIXES = frozenset({".wav", ".wave"})


class WavFolder(Dataset):
    """``folder/<class>/<file>.wav``: labels are the indices of the sorted subfolder names.

    Samples are float32 in -1..1, ``[samples]``, or ``[samples, channels]`` with ``channels: keep``. PCM with
    8, 16, 24 or 32 bits is read, and never resampled. The classes alternate, so that the first few samples
    cover all of them. Files without the suffix are ignored.
    """

    path: ExistingPath = Field(description="folder with one subfolder per class")
    rate: int | None = Field(None, gt=0, description="sampling rate in Hz that all files must have")
    seconds: float | None = Field(
        None, gt=0, description="duration of all samples: longer ones are cut, shorter ones end with zeros"
    )
    channels: Literal["mono", "keep"] = Field("mono", description="mono: the mean of the channels")
    limit: int | None = Field(None, gt=0, description="read only the first samples")

    def samples(self) -> Iterator[Sample]:
        for label, file in self._files():
            yield Sample((self._read(file),), label)

    def digest(self) -> str:
        files = [[label, file.name, file_digest(file)] for label, file in self._files()]
        return digest_of(["wav_folder", files, self.rate, self.seconds, self.channels])

    def classes(self) -> list[str]:
        """Class names, in the order of their labels.

        Raises:
            UsageError: the path is not a folder, or has no subfolders.
        """
        return class_names(self.path, "recordings")

    def _files(self) -> Iterator[tuple[int, Path]]:
        return labelled_files(self.path, SUFFIXES, "recordings", self.limit)

    def _read(self, file: Path) -> NDArray[np.float32]:
        try:
            with wave.open(str(file), "rb") as recording:
                rate, count = recording.getframerate(), recording.getnframes()
                channels, width = recording.getnchannels(), recording.getsampwidth()
                length = count if self.seconds is None else max(1, round(self.seconds * rate))
                frames = recording.readframes(min(count, length))
        except (wave.Error, OSError, *MALFORMED) as error:
            raise UsageError(
                f"{self.path}: cannot read the recording {file}: {str(error) or 'it ends too early'}",
                fix="save it as PCM: ffmpeg -i recording -c:a pcm_s16le recording.wav",
            ) from error
        present = len(frames) // (channels * width)
        if present < min(count, length):
            raise UsageError(
                f"{self.path}: the recording {file} is truncated: it ends after {present} of {count} frames",
                fix="replace or remove the file",
            )
        if self.rate not in (None, rate):
            raise UsageError(
                f"{self.path}: the recording {file} has a rate of {rate} Hz, but 'rate' is {self.rate} Hz",
                fix=f"resample it: ffmpeg -i {file.name} -ar {self.rate} new.wav",
            )
        if width > 4 or not length:
            problem = f"has {8 * width} bits per value" if width > 4 else "is empty"
            raise UsageError(f"{self.path}: the recording {file} {problem}", fix="replace or remove the file")
        values = _decode(frames, width).reshape(-1, channels)
        if self.channels == "mono":
            values = values.mean(axis=1)
        missing = [(0, length - len(values))] + [(0, 0)] * (values.ndim - 1)
        return np.pad(values, missing).astype(np.float32)


def _decode(frames: bytes, width: int) -> NDArray[np.float64]:
    """PCM values of ``width`` bytes as numbers in -1..1. One byte is unsigned, more are signed."""
    if width == 1:
        return (np.frombuffer(frames, np.uint8) - 128.0) / 128
    # As the upper bytes of 32 bits, every width has the same range.
    padded = np.zeros((len(frames) // width, 4), np.uint8)
    padded[:, 4 - width :] = np.frombuffer(frames, np.uint8).reshape(-1, width)
    return padded.view("<i4")[:, 0] / float(1 << 31)
