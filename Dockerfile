# SPR for one or more NVIDIA GPUs.
#
#   docker build -t spr .
#   docker run --rm --gpus all -v "$PWD":/data -w /data spr run mine.yaml --out runs/mine
#
# The PyTorch wheels bring their own CUDA libraries; the host only needs the NVIDIA driver and the container toolkit.
FROM python:3.12-slim

ENV PIP_NO_CACHE_DIR=1 \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/cache/huggingface

WORKDIR /opt/spr
COPY pyproject.toml README.md LICENSE ./
COPY src ./src
RUN pip install ".[models,openai]"

# Models are downloaded into the cache: mount a volume there to keep them.
RUN useradd --create-home spr && mkdir -p /cache/huggingface && chown -R spr /cache
USER spr
VOLUME /cache
WORKDIR /home/spr

ENTRYPOINT ["spr"]
CMD ["doctor"]
