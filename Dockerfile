# Two images from one file: `data` without torch (convert, distill, the pipeline's orchestrator), `gpu` with everything.
#
#   make images                                  both, with docker (BuildKit), podman or buildah
#   docker build --target gpu --tag vcot-gpu .   one of them by hand
#
# BASE is any image with glibc and a python3 of the version that the requirements are pinned for, its venv module included.
# A network that asks for it lends its CA bundle and its index to the build; nothing of them stays in an image:
#   --secret id=ca,src=ca-certificates.crt   --secret id=pip,src=pip.conf   --secret id=uv,src=uv.toml

ARG BASE=python:3.11-slim

# --- what both images share ---

FROM ${BASE} AS base
# A name for the user (some libraries ask for it) and the one folder that is written to: a volume in a pod.
RUN echo 'vcot:x:10001:10001::/scratch:/usr/sbin/nologin' >> /etc/passwd \
 && echo 'vcot:x:10001:' >> /etc/group \
 && mkdir -m 1777 /scratch
ENV PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONPATH=/opt/vcot \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/scratch \
    TMPDIR=/scratch \
    XDG_CACHE_HOME=/scratch/.cache \
    HF_HOME=/scratch/.cache/huggingface \
    HF_HUB_OFFLINE=1 \
    MPLCONFIGDIR=/scratch/.cache/matplotlib \
    TRITON_CACHE_DIR=/scratch/.cache/triton \
    TORCHINDUCTOR_CACHE_DIR=/scratch/.cache/torchinductor

# --- libraries, in layers that a change of the code leaves alone ---

FROM base AS data-libraries
COPY requirements/install.sh requirements/uv.txt requirements/data.txt /opt/requirements/
ARG UV_CACHE_DIR=/var/cache/uv
RUN --mount=type=cache,id=uv,target=/var/cache/uv \
    --mount=type=secret,id=ca,target=/run/secrets/ca \
    --mount=type=secret,id=pip,target=/run/secrets/pip.conf \
    --mount=type=secret,id=uv,target=/run/secrets/uv.toml \
    sh /opt/requirements/install.sh data

FROM data-libraries AS gpu-libraries
# GKE mounts the driver where nothing but these variables looks; NVIDIA's container runtime asks which parts to mount.
ENV PATH=${PATH}:/usr/local/nvidia/bin \
    LD_LIBRARY_PATH=/usr/local/nvidia/lib:/usr/local/nvidia/lib64 \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY requirements/gpu.txt /opt/requirements/
ARG UV_CACHE_DIR=/var/cache/uv
RUN --mount=type=cache,id=uv,target=/var/cache/uv \
    --mount=type=secret,id=ca,target=/run/secrets/ca \
    --mount=type=secret,id=pip,target=/run/secrets/pip.conf \
    --mount=type=secret,id=uv,target=/run/secrets/uv.toml \
    sh /opt/requirements/install.sh gpu

# --- the code, compiled; bytecode is not held against times, which change with each build ---

FROM base AS code
COPY jobs /opt/vcot/jobs
COPY vcot /opt/vcot/vcot
RUN chmod -R u=rwX,go=rX /opt/vcot \
 && python3 -m compileall -q --invalidation-mode unchecked-hash /opt/vcot

# --- the images: the code, and who may run it ---

FROM data-libraries AS data
COPY --from=code /opt/vcot /opt/vcot
WORKDIR /opt/vcot
USER 10001:10001
ENTRYPOINT ["python", "-m"]
CMD ["jobs.convert", "--help"]
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="vcot-data" \
      org.opencontainers.image.description="vcot without torch: convert, distill and the pipeline's orchestrator" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

FROM gpu-libraries AS gpu
COPY --from=code /opt/vcot /opt/vcot
WORKDIR /opt/vcot
USER 10001:10001
ENTRYPOINT ["python", "-m"]
CMD ["jobs.train", "--help"]
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="vcot-gpu" \
      org.opencontainers.image.description="vcot with torch: every stage" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
