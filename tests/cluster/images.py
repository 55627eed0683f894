"""The project's images, built as a user builds them (`make images`) with buildah, and brought into the node.

Layers are kept outside the work tree between runs, as is what uv has fetched for the developer's environment: both
hold the same versions, so a first build copies instead of downloading, and a later one remakes the code's layer alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shlex
import shutil
import ssl
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.cluster.configuration import PAUSE_IMAGE, ROOT, Layout, images_command
from tools.gomodules import cache, locked, tell

BASE_IMAGE = "localhost/vcot-base:1"
POLICY = '{"default": [{"type": "insecureAcceptAnything"}]}'
"""Whose signature an image must bear: nobody's, they are made here."""


NOTES = Path("/var/lib/containers")
"""Where buildah notes what it has moved, whatever storage it is told to use."""


class BuildFailed(Exception):
    """An image could not be made or moved; the message has the end of what was said."""


class Builder:
    """buildah on storage of our own."""

    def __init__(self) -> None:
        self.home = cache() / "images"
        self.home.mkdir(parents=True, exist_ok=True)
        (self.home / "policy.json").write_text(POLICY)
        places = ["--root", str(self.home / "storage"), "--runroot", str(self.home / "run")]
        self.buildah = ["buildah", *places, "--storage-driver", "overlay"]
        # What buildah puts below /var/tmp goes here too
        self.environment = os.environ | {"TMPDIR": str(self.home), "BUILDAH_ISOLATION": "chroot"}

    def has(self, image: str) -> bool:
        return subprocess.run(
            [*self.buildah, "inspect", "--type", "image", image], env=self.environment, capture_output=True, check=False
        ).returncode == 0  # fmt: skip

    def do(self, *words: str) -> str:
        return run([*self.buildah, *words], self.environment)

    def build(self, *targets: str, checkout: Path = ROOT, tag: str = "dev") -> dict[str, str]:
        """`make images` with these targets; returns target → name of the image."""
        with locked(self.home / "lock", "another process is building images; waiting for it"), self._lent() as lent:
            base = os.environ.get("BASE_IMAGE") or self._base()
            flags = ["--network", "host", "--isolation", "chroot", "--layers", "--pull-never", *lent]
            begun = time.monotonic()
            run(
                [
                    "make", "--no-print-directory", "images", f"ENGINE={shlex.join(self.buildah)}",
                    f"IMAGES={' '.join(targets)}", f"BASE_IMAGE={base}", f"TAG={tag}",
                    f"BUILD_FLAGS={shlex.join(flags)}",
                ],
                self.environment, cwd=checkout,
            )  # fmt: skip
            tell(f"built {' and '.join(targets)} in {time.monotonic() - begun:.0f} s")
        self.tidy()
        return {target: f"localhost/vcot-{target}:{tag}" for target in targets}

    def _base(self) -> str:
        """Debian with Python, made by debootstrap: no registry of images is asked."""
        if not self.has(BASE_IMAGE):
            tell("Making a base image with debootstrap (about half a minute, once)")
            mirror, suite = _distribution()
            with tempfile.TemporaryDirectory(dir=self.home, prefix="base-") as folder:
                run(
                    ["debootstrap", "--variant=minbase", "--include=python3,python3-venv", suite, folder, mirror],
                    self.environment,
                )
                for path in ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/man", "debootstrap"):
                    shutil.rmtree(Path(folder) / path, ignore_errors=True)
                self._commit(BASE_IMAGE, "scratch", folder)
        return BASE_IMAGE

    def pause(self) -> str:
        """What holds a pod's namespaces: the base image, asleep."""
        with locked(self.home / "lock", "another process is building images; waiting for it"):
            if not self.has(PAUSE_IMAGE):
                self._commit(
                    PAUSE_IMAGE, self._base(), None, "--entrypoint", '["sleep", "infinity"]', "--user", "65535"
                )
        return PAUSE_IMAGE

    def holding(self, name: str, program: Path) -> str:
        """The base image with a program of this machine in it, under a name that a registry has it by elsewhere."""
        with (
            locked(self.home / "lock", "another process is building images; waiting for it"),
            tempfile.TemporaryDirectory(dir=self.home, prefix="program-") as folder,
        ):
            target = Path(folder) / "usr/bin" / program.name
            target.parent.mkdir(parents=True)
            shutil.copy(program, target)
            Path(folder).chmod(0o755)  # it becomes that of /
            self._commit(name, self._base(), folder)
        return name

    def _commit(self, name: str, origin: str, folder: str | None, *configuration: str) -> None:
        container = self.do("from", "--pull-never", origin) if origin != "scratch" else self.do("from", origin)
        if folder is not None:
            self.do("copy", container, folder, "/")
        self.do("config", "--env", "PATH=/usr/local/bin:/usr/bin:/bin", *configuration, container)
        self.do("commit", "--rm", "--signature-policy", str(self.home / "policy.json"), container, name)

    def tidy(self) -> None:
        """Removes buildah's notes where nobody else on this machine has any."""
        if NOTES.exists() and [path.name for path in NOTES.iterdir()] == ["cache"]:
            shutil.rmtree(NOTES)

    @contextlib.contextmanager
    def _lent(self) -> Iterator[list[str]]:
        """What this machine needs to reach its package index, lent to the build and not kept in an image."""
        flags = ["--signature-policy", str(self.home / "policy.json")]
        bundle = os.environ.get("SSL_CERT_FILE") or ssl.get_default_verify_paths().cafile
        if bundle and Path(bundle).exists():
            flags += ["--secret", f"id=ca,src={bundle}"]
        with tempfile.NamedTemporaryFile("w", dir=self.home, suffix=".conf") as settings:
            if Path("/etc/pip.conf").exists():
                # Its bundle has another path in there; PIP_CERT says it
                kept = [line for line in Path("/etc/pip.conf").read_text().splitlines() if not line.startswith("cert")]
                settings.write("\n".join(kept) + "\n")
                settings.flush()
                flags += ["--secret", f"id=pip,src={settings.name}"]
            for uv in (Path.home() / ".config/uv/uv.toml", Path("/etc/uv/uv.toml")):
                if uv.exists():
                    flags += ["--secret", f"id=uv,src={uv}"]
                    break
            fetched = _uv_cache()
            fetched.mkdir(parents=True, exist_ok=True)
            flags += ["--volume", f"{fetched}:/run/uv-cache", "--build-arg", "UV_CACHE_DIR=/run/uv-cache"]
            yield flags

    def layers(self, image: str) -> dict[str, int]:
        """Digest → bytes of each layer, unpacked, the lowest first."""
        return {layer["digest"]: layer["size"] for layer in json.loads(self._inspect(image, "Manifest"))["layers"]}

    def bring(self, image: str, layout: Layout) -> None:
        """Into the node's containerd."""
        known = layout.home / f"brought-{hashlib.sha256(image.encode()).hexdigest()[:16]}"
        identity = self._inspect(image, "FromImageID")
        if known.exists() and known.read_text() == identity:
            return
        begun = time.monotonic()
        storage = self.home / "storage"
        if storage.stat().st_dev == layout.home.stat().st_dev:
            manifest, config = self._inspect(image, "Manifest"), self._inspect(image, "Config")
            hand_over(
                image, manifest, config, storage, images_command(layout), lambda words: run(words, self.environment)
            )
        else:
            self._through_a_pipe(image, layout)
        known.write_text(identity)
        self.tidy()
        tell(f"brought {image} into the node in {time.monotonic() - begun:.0f} s")

    def _through_a_pipe(self, image: str, layout: Layout) -> None:
        """No archive of gigabytes lies on the disk."""
        push = [*self.buildah, "push", "--quiet", "--signature-policy", str(self.home / "policy.json"), image]
        push += [f"docker-archive:/dev/stdout:{image}"]
        with subprocess.Popen(push, env=self.environment, stdout=subprocess.PIPE) as out:
            done = subprocess.run(
                [*images_command(layout), "images", "import", "-"],
                stdin=out.stdout, capture_output=True, text=True, check=False,
            )  # fmt: skip
        if out.returncode or done.returncode:
            raise BuildFailed(f"{image} could not be brought into the node: {done.stderr.strip() or done.stdout}")

    def _inspect(self, image: str, field: str) -> str:
        return self.do("inspect", "--type", "image", "--format", f"{{{{.{field}}}}}", image)


def run(command: list[str], environment: dict[str, str], cwd: Path | None = None) -> str:
    done = subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        said = "\n".join((done.stdout + done.stderr).strip().splitlines()[-15:])
        raise BuildFailed(f"{shlex.join(command[:8])} … ended with {done.returncode}:\n{said}")
    return done.stdout.strip()


def _uv_cache() -> Path:
    named = os.environ.get("UV_CACHE_DIR")
    home = os.environ.get("XDG_CACHE_HOME", "")
    return Path(named) if named else (Path(home) if home.startswith("/") else Path.home() / ".cache") / "uv"


def _distribution() -> tuple[str, str]:
    """(mirror, suite) that this machine's own apt uses."""
    command = ["apt-get", "indextargets", "--format", "$(SITE) $(RELEASE)", "Created-By: Packages"]
    for line in run(command, dict(os.environ)).splitlines():
        site, suite = line.split()
        if "-" not in suite:  # neither updates nor security
            return site, suite
    raise BuildFailed(
        "no base image: apt names no Debian suite to make one of; set BASE_IMAGE to an image with Python 3.11 that "
        "buildah can find"
    )


# --- from buildah's storage to containerd without a copy --------------------------------------------------------------
#
# Both keep files unpacked, so they are linked. Through a pipe, 6 GB are packed, hashed on both sides, written, read and
# unpacked: two to three minutes of both cores. Containerd itself may forget packed layers (`discard_unpacked_layers`),
# so it starts containers without them.

Run = Callable[[list[str]], str]
"""A command line → what it printed; raises where it failed."""


def hand_over(image: str, manifest: str, config: str, storage: Path, ctr: Sequence[str], run: Run) -> None:
    """The image is in containerd afterwards, under its name, ready for containers.

    Args:
        manifest, config: the image's own, as `buildah inspect` prints them.
        storage: buildah's, with driver overlay, on the file system that containerd's snapshots are on.
        ctr: begins a command line on that containerd.
    """
    known = json.loads(manifest)
    parent = ""
    for layer, folder in zip(known["layers"], _folders(storage, known["config"]["digest"]), strict=True):
        digest = layer["digest"]
        chain = _digest(f"{parent} {digest}".encode()) if parent else digest
        if not _there(chain, ctr):
            _snapshot(chain, parent, folder, ctr, run)
        parent = chain
    with tempfile.NamedTemporaryFile(suffix=".tar") as archive:
        archive.write(_archive(image, manifest.encode(), config.encode()))
        archive.flush()
        run([*ctr, "images", "import", "--no-unpack", archive.name])


def _folders(storage: Path, config_digest: str) -> list[Path]:
    """Where the files of each layer lie, the lowest first."""
    layers = {layer["id"]: layer for layer in json.loads((storage / "overlay-layers/layers.json").read_text())}
    images = json.loads((storage / "overlay-images/images.json").read_text())
    at = next(image["layer"] for image in images if f"sha256:{image['id']}" == config_digest)
    found = []
    while at:
        found.append(storage / "overlay" / at / "diff")
        at = layers[at].get("parent")
    return found[::-1]


def _there(chain: str, ctr: Sequence[str]) -> bool:
    return subprocess.run([*ctr, "snapshots", "info", chain], capture_output=True, check=False).returncode == 0


def _snapshot(chain: str, parent: str, folder: Path, ctr: Sequence[str], run: Run) -> None:
    """A committed snapshot with hard links to these files."""
    key = f"handover-{chain}"
    mounts = json.loads(run([*ctr, "snapshots", "prepare", "--mounts", key, *filter(None, [parent])]))
    run(["cp", "--archive", "--link", f"{folder}/.", _written(mounts[0])])
    run([*ctr, "snapshots", "commit", chain, key])


def _written(mount: dict[str, Any]) -> str:
    """The folder of a snapshot's own files: a lowest layer is one folder, the others have theirs on top."""
    options = dict(option.partition("=")[::2] for option in mount["Options"])
    return str(options.get("upperdir") or mount["Source"])


def _archive(image: str, manifest: bytes, config: bytes) -> bytes:
    """An OCI archive of all but the layers."""
    index = {
        "schemaVersion": 2,
        "manifests": [
            {
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": _digest(manifest),
                "size": len(manifest),
                "annotations": {"io.containerd.image.name": image},
            }
        ],
    }
    files = {
        "oci-layout": b'{"imageLayoutVersion": "1.0.0"}',
        "index.json": json.dumps(index).encode(),
        f"blobs/sha256/{_digest(manifest)[7:]}": manifest,
        f"blobs/sha256/{_digest(config)[7:]}": config,
    }
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return packed.getvalue()


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
