#!/bin/sh
# A step of the Dockerfile: fills /opt/venv from one of these files, with bytecode, by a uv that does not stay.
set -eu
here=$(dirname "$0")

# What the builder's network asks for, lent as secrets: a CA bundle, the address of an index.
if [ -s /run/secrets/ca ]; then export SSL_CERT_FILE=/run/secrets/ca PIP_CERT=/run/secrets/ca; fi
if [ -s /run/secrets/pip.conf ]; then export PIP_CONFIG_FILE=/run/secrets/pip.conf; fi
if [ -s /run/secrets/uv.toml ]; then export UV_CONFIG_FILE=/run/secrets/uv.toml; fi

tools=$(mktemp -d)
python3 -m venv "$tools"
"$tools/bin/pip" install --quiet --no-cache-dir --only-binary :all: --require-hashes -r "$here/uv.txt"

# Copies, since the cache does not stay either; bytecode that is not held against times, which change with each build.
export UV_LINK_MODE=copy PYC_INVALIDATION_MODE=UNCHECKED_HASH
[ -d /opt/venv ] || "$tools/bin/uv" venv --quiet --python python3 /opt/venv
"$tools/bin/uv" pip install --quiet --python /opt/venv/bin/python --only-binary :all: --compile-bytecode \
	--require-hashes -r "$here/$1.txt"
# The kubernetes client once more for asyncio: larger than the client, and nothing here calls it.
rm -rf /opt/venv/lib/python3*/site-packages/kubernetes/aio
# Tests and headers of libraries, likewise.
rm -rf /opt/venv/lib/python3*/site-packages/scipy/*/tests /opt/venv/lib/python3*/site-packages/scipy/*/*/tests \
	/opt/venv/lib/python3*/site-packages/pyarrow/tests /opt/venv/lib/python3*/site-packages/pyarrow/include
rm -rf "$tools"
