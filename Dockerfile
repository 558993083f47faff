# One file, two targets: `docker build --target cpu .` and `docker build --target gpu .`.
# Neither holds torch: models are served from exported artifacts. Both can read a repository at s3://
# and send traces, 57 MB more, since who runs an image can't install the extras for it.

FROM python:3.12-slim AS base
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1
RUN useradd --create-home --uid 10001 genserve
WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY service service
COPY artifacts artifacts
ENV GENSERVE_HOST=0.0.0.0 GENSERVE_MODEL_REPOSITORY=/app/artifacts
EXPOSE 8000 8001
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s \
    CMD python -c "import os, ssl, urllib.request as request; \
    tls = 'GENSERVE_TLS_CERTIFICATE' in os.environ; \
    port = os.environ.get('GENSERVE_HTTP_PORT', '8000'); \
    request.urlopen(f'http{\"s\" * tls}://127.0.0.1:{port}/readyz', timeout=2, \
    context=ssl._create_unverified_context() if tls else None)"
ENTRYPOINT ["genserve"]
CMD ["serve"]

FROM base AS cpu
RUN pip install --constraint constraints.txt '.[cpu,remote,otel]'
USER genserve

# The CUDA and cuDNN libraries come as Python packages, so the plain image is enough; the driver
# comes from the host (`docker run --gpus 1`).
FROM base AS gpu
RUN pip install --constraint constraints.txt '.[gpu,remote,otel]'
ENV GENSERVE_PROVIDER=cuda
USER genserve
