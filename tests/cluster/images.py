"""The project's images, built as a user builds them (`make images`) with buildah, and brought into the node.

Layers are kept outside the work tree between runs, as is what uv has fetched for the developer's environment: both
hold the same versions, so a first build copies instead of downloading, and a later one remakes the code's layer alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
import shutil
import ssl
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.cluster.configuration import CTR, HOME, PAUSE_IMAGE, ROOT
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

    def run(self, *command: str, cwd: Path | None = None) -> str:
        done = subprocess.run(command, env=self.environment, cwd=cwd, capture_output=True, text=True, check=False)
        if done.returncode:
            said = "\n".join((done.stdout + done.stderr).strip().splitlines()[-15:])
            raise BuildFailed(f"{shlex.join(command[:8])} … ended with {done.returncode}:\n{said}")
        return done.stdout.strip()

    def do(self, *words: str) -> str:
        return self.run(*self.buildah, *words)

    def _alone(self) -> contextlib.AbstractContextManager[object]:
        return locked(self.home / "lock", "another process is building images; waiting for it")

    def build(self, *targets: str, checkout: Path = ROOT, tag: str = "dev") -> dict[str, str]:
        """`make images` with these targets; returns target → name of the image."""
        with self._alone(), self._lent() as lent:
            base = os.environ.get("BASE_IMAGE") or self._base()
            flags = ["--network", "host", "--isolation", "chroot", "--layers", "--pull-never", *lent]
            begun = time.monotonic()
            self.run(
                "make", "--no-print-directory", "images", f"ENGINE={shlex.join(self.buildah)}",
                f"IMAGES={' '.join(targets)}", f"BASE_IMAGE={base}", f"TAG={tag}", f"BUILD_FLAGS={shlex.join(flags)}",
                cwd=checkout,
            )  # fmt: skip
            tell(f"built {' and '.join(targets)} in {time.monotonic() - begun:.0f} s")
        self.tidy()
        return {target: f"localhost/vcot-{target}:{tag}" for target in targets}

    def _base(self) -> str:
        """Debian with Python, made by debootstrap: no registry of images is asked."""
        if not self.has(BASE_IMAGE):
            tell("Making a base image with debootstrap (about half a minute, once)")
            mirror, suite = self._distribution()
            with tempfile.TemporaryDirectory(dir=self.home, prefix="base-") as folder:
                include = "--include=python3,python3-venv"
                self.run("debootstrap", "--variant=minbase", include, suite, folder, mirror)
                for path in ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/man", "debootstrap"):
                    shutil.rmtree(Path(folder) / path, ignore_errors=True)
                self._commit(BASE_IMAGE, "scratch", folder)
        return BASE_IMAGE

    def pause(self) -> str:
        """What holds a pod's namespaces: the base image, asleep."""
        with self._alone():
            if not self.has(PAUSE_IMAGE):
                self._commit(
                    PAUSE_IMAGE, self._base(), None, "--entrypoint", '["sleep", "infinity"]', "--user", "65535"
                )
        return PAUSE_IMAGE

    def holding(self, name: str, program: Path) -> str:
        """The base image with a program of this machine in it, under a name that a registry has it by elsewhere."""
        with self._alone(), tempfile.TemporaryDirectory(dir=self.home, prefix="program-") as folder:
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

    def _distribution(self) -> tuple[str, str]:
        """(mirror, suite) that this machine's own apt uses."""
        targets = self.run("apt-get", "indextargets", "--format", "$(SITE) $(RELEASE)", "Created-By: Packages")
        for site, suite in map(str.split, targets.splitlines()):
            if "-" not in suite:  # neither updates nor security
                return site, suite
        raise BuildFailed(
            "no base image: apt names no Debian suite to make one of; set BASE_IMAGE to an image with Python 3.11 that "
            "buildah can find"
        )

    def layers(self, image: str) -> dict[str, int]:
        """Digest → bytes of each layer, unpacked, the lowest first."""
        return {layer["digest"]: layer["size"] for layer in json.loads(self._inspect(image, "Manifest"))["layers"]}

    def _inspect(self, image: str, field: str) -> str:
        return self.do("inspect", "--type", "image", "--format", f"{{{{.{field}}}}}", image)

    # --- into the node's containerd ---------------------------------------------------------------------------------

    def bring(self, image: str) -> None:
        known = HOME / f"brought-{hashlib.sha256(image.encode()).hexdigest()[:16]}"
        identity = self._inspect(image, "FromImageID")
        if known.exists() and known.read_text() == identity:
            return
        begun = time.monotonic()
        if self.home.stat().st_dev == HOME.stat().st_dev:
            self._link(image)
        else:
            self._through_a_pipe(image)
        known.write_text(identity)
        self.tidy()
        tell(f"brought {image} into the node in {time.monotonic() - begun:.0f} s")

    def _through_a_pipe(self, image: str) -> None:
        """No archive of gigabytes lies on the disk."""
        push = [*self.buildah, "push", "--quiet", "--signature-policy", str(self.home / "policy.json"), image]
        push += [f"docker-archive:/dev/stdout:{image}"]
        take = [*CTR, "images", "import", "-"]
        with subprocess.Popen(push, env=self.environment, stdout=subprocess.PIPE) as out:
            done = subprocess.run(take, stdin=out.stdout, capture_output=True, text=True, check=False)
        if out.returncode or done.returncode:
            raise BuildFailed(f"{image} could not be brought into the node: {done.stderr.strip() or done.stdout}")

    def _link(self, image: str) -> None:
        """Without a copy: buildah and containerd both keep files unpacked, so that they can be linked.

        Through a pipe, 6 GB are packed, hashed on both sides, written, read and unpacked: two to three minutes of both
        cores. Containerd itself may forget packed layers (`discard_unpacked_layers`), so it starts containers without.
        """
        manifest, config = (self._inspect(image, field) for field in ("Manifest", "Config"))
        layers, parent = json.loads(manifest)["layers"], ""
        for layer, folder in zip(layers, self._folders(_digest(config)), strict=True):
            chain = _digest(f"{parent} {layer['digest']}") if parent else layer["digest"]
            info = [*CTR, "snapshots", "info", chain]
            if subprocess.run(info, capture_output=True, check=False).returncode:  # it is not there yet
                key = f"handover-{chain}"
                mounts = self.run(*CTR, "snapshots", "prepare", "--mounts", key, *filter(None, [parent]))
                (mount,) = json.loads(mounts)
                options = dict(option.partition("=")[::2] for option in mount["Options"])
                # A lowest layer is one folder, the others have theirs on top.
                self.run("cp", "--archive", "--link", f"{folder}/.", options.get("upperdir") or mount["Source"])
                self.run(*CTR, "snapshots", "commit", chain, key)
            parent = chain
        with tempfile.TemporaryDirectory(dir=self.home, prefix="image-") as archive:
            self._write_oci(Path(archive) / "oci", image, manifest, config)
            self.run("tar", "--create", f"--file={archive}/image.tar", f"--directory={archive}/oci", ".")
            self.run(*CTR, "images", "import", "--no-unpack", f"{archive}/image.tar")

    def _folders(self, config_digest: str) -> list[Path]:
        """Where the files of each layer of an image lie, the lowest first."""
        storage = self.home / "storage"
        layers = {layer["id"]: layer for layer in json.loads((storage / "overlay-layers/layers.json").read_text())}
        images = json.loads((storage / "overlay-images/images.json").read_text())
        at = next(image["layer"] for image in images if f"sha256:{image['id']}" == config_digest)
        found = []
        while at:
            found.append(storage / "overlay" / at / "diff")
            at = layers[at].get("parent")
        return found[::-1]

    def _write_oci(self, folder: Path, image: str, manifest: str, config: str) -> None:
        """An OCI image of all but the layers."""
        kind, name = "application/vnd.oci.image.manifest.v1+json", {"io.containerd.image.name": image}
        entry = {"mediaType": kind, "digest": _digest(manifest), "size": len(manifest.encode()), "annotations": name}
        blobs = folder / "blobs/sha256"
        blobs.mkdir(parents=True)
        for blob in (manifest, config):
            (blobs / _digest(blob).removeprefix("sha256:")).write_bytes(blob.encode())
        (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))


def _uv_cache() -> Path:
    named = os.environ.get("UV_CACHE_DIR")
    home = os.environ.get("XDG_CACHE_HOME", "")
    return Path(named) if named else (Path(home) if home.startswith("/") else Path.home() / ".cache") / "uv"


def _digest(text: str) -> str:
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
