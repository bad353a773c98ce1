"""Debian packages and encoded sounds, made here."""

import hashlib
import io
import subprocess

import numpy as np

from echostream.training.everyday.debian import DebianPackage


def tone(hertz, seconds=0.5):
    clock_s = np.arange(int(seconds * 16000)) / 16000
    return (0.4 * np.sin(2 * np.pi * hertz * clock_s)).astype(np.float32)


def g722(samples):
    """Raw G.722 as Asterisk stores it."""
    import av

    written = io.BytesIO()
    with av.open(written, "w", format="g722") as container:
        stream = container.add_stream("g722", rate=16000)
        stream.layout = "mono"
        pcm = (samples * 32767).astype(np.int16)[None]
        frame = av.AudioFrame.from_ndarray(pcm, format="s16", layout="mono")
        frame.sample_rate = 16000
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    return written.getvalue()


def make_deb(folder, name, files):
    """A .deb by dpkg-deb, and its pin."""
    tree = folder / f"tree-{name}"
    control = f"Package: {name}\nVersion: 1.0-1\nArchitecture: all\nMaintainer: a\nDescription: b\n"
    for path, content in {"DEBIAN/control": control.encode(), **files}.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_bytes(content)
    packages = folder / "packages"
    packages.mkdir(exist_ok=True)
    path = packages / f"{name}_1.0-1_all.deb"
    command = ["dpkg-deb", "--build", "--root-owner-group", "-Zxz", str(tree), str(path)]
    subprocess.run(command, check=True, capture_output=True)
    return DebianPackage(name, "1.0-1", hashlib.sha256(path.read_bytes()).hexdigest())
