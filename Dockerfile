# syntax=docker/dockerfile:1
# Two images of one project: `worker` (default) carries no torch, `train` adds it for the retrain.
#   docker build -t livevalue:0.1.0 .
#   docker build -t livevalue-train:0.1.0 --target train .

FROM python:3.11-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/livevalue
WORKDIR /src
# The locked packages come first: they change less often than the code.
COPY requirements/base.txt requirements/
RUN /opt/livevalue/bin/pip install --require-hashes -r requirements/base.txt
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY featurestore featurestore
COPY scoring scoring
COPY streams streams
COPY livevalue livevalue
RUN /opt/livevalue/bin/pip install --no-deps .

FROM build AS build-train
COPY requirements/train.txt requirements/torch.txt requirements/
RUN /opt/livevalue/bin/pip install --require-hashes -r requirements/train.txt \
    && /opt/livevalue/bin/pip install -r requirements/torch.txt

FROM python:3.11-slim AS runtime
RUN useradd --uid 10001 --create-home --shell /usr/sbin/nologin livevalue \
    && install -d -o livevalue -g livevalue /var/lib/livevalue
# One thread a process: a partition's batches are sequential, and workers are the way to scale.
ENV PATH=/opt/livevalue/bin:$PATH PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1
WORKDIR /var/lib/livevalue
USER livevalue
STOPSIGNAL SIGTERM
ENTRYPOINT ["livevalue"]

FROM runtime AS train
COPY --from=build-train /opt/livevalue /opt/livevalue
CMD ["retrain", "kafka"]

FROM runtime AS worker
COPY --from=build /opt/livevalue /opt/livevalue
ENV LIVEVALUE_WORKER__METRICS_PORT=9100
EXPOSE 9100
# Alive, not ready: a worker that waits for Redis must not be restarted for it.
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=4 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:9100/livez', timeout=4)"]
CMD ["run"]
