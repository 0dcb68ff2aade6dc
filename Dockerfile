# Images of docker-compose.yml, on Debian: `database`, `autotune` (service and CPU worker), `cuda` (a worker for it).
# bench/image.py runs every step of it in a debootstrap chroot, where there is no container engine.

FROM debian:bookworm-slim AS database
RUN apt-get update \
    && apt-get install --yes --no-install-recommends openssl postgresql-15 \
    && rm -rf /var/lib/apt/lists/* /var/lib/postgresql/15
COPY db/server/postgresql.sh /usr/local/bin/autotune-postgresql
RUN chmod 0755 /usr/local/bin/autotune-postgresql \
    && install --directory --owner=postgres --group=postgres --mode=0700 /var/lib/postgresql/data \
    && install --directory --mode=1777 /run/postgresql
USER postgres
ENTRYPOINT ["autotune-postgresql"]

FROM debian:bookworm-slim AS autotune
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
COPY requirements/image.txt /src/requirements/image.txt
RUN python3 -m venv /opt/autotune \
    && /opt/autotune/bin/pip install --no-cache-dir --require-hashes --requirement /src/requirements/image.txt
COPY pyproject.toml README.md LICENSE /src/
COPY strategies /src/strategies
COPY autotune /src/autotune
COPY db /src/db
COPY api /src/api
RUN /opt/autotune/bin/pip install --no-cache-dir --no-deps --no-build-isolation /src \
    && rm -rf /src \
    && install --directory --mode=1777 /run/postgresql /run/tinygrad-autotune \
    && useradd --system --uid 10001 --user-group --create-home --home-dir /var/lib/autotune autotune
ENV PATH=/opt/autotune/bin:/usr/local/bin:/usr/bin:/bin
ENV PYTHONUNBUFFERED=1
USER autotune
WORKDIR /var/lib/autotune
EXPOSE 8000
ENTRYPOINT ["autotune"]
CMD ["serve", "--host", "0.0.0.0"]

# The driver comes from the host, with NVIDIA's container toolkit; the compiler and its headers are these.
# Built by nobody of this project yet on a machine with an engine and a GPU.
FROM autotune AS cuda
USER root
COPY requirements/cuda.txt /src/requirements/cuda.txt
RUN /opt/autotune/bin/pip install --no-cache-dir --no-deps --require-hashes --requirement /src/requirements/cuda.txt \
    && rm -rf /src
ENV NVRTC_PATH=/opt/autotune/lib/python3.11/site-packages/nvidia/cuda_nvrtc/lib/libnvrtc.so.12
# What tinygrad gives NVRTC to include from is $CUDA_PATH/include.
ENV CUDA_PATH=/opt/autotune/lib/python3.11/site-packages/nvidia/cuda_runtime
# The PTX of this NVRTC is for drivers of its own release or later: with another the container does not start, and says so.
ENV NVIDIA_REQUIRE_CUDA="cuda>=12.9"
ENV NVIDIA_VISIBLE_DEVICES=all
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER autotune
CMD ["worker", "--device", "CUDA"]
